//! What a person asks of synapse. Verbs read the configuration, the state file, HAProxy and the registries themselves, so
//! that they answer when no synapse runs, and change nothing.

pub mod doctor;
pub mod explain;
pub mod journal;
mod observe;
pub mod plan;
pub mod reload;
pub mod render;
pub mod status;

/// A table for people: aligned columns, no frame.
fn table<const N: usize>(head: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(head);
    table
}
