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

use hostkit::suggestion::by_similarity;

/// How many names are offered for one that is not known.
const NEAREST: usize = 5;

/// A table for people: aligned columns, no frame.
fn table<const N: usize>(head: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_header(head);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The words of `known` most like `wrong`, the likeliest first, as a remedy.
fn nearest<'k>(wrong: &str, known: impl Iterator<Item = &'k str>) -> String {
    match by_similarity(wrong, known).as_slice() {
        [] => "no service is configured".to_owned(),
        [(likeness, word), ..] if *likeness > 0.9 => format!("did you mean {word}?"),
        more => {
            let shown: Vec<&str> = more.iter().take(NEAREST).map(|(_, word)| *word).collect();
            format!(
                "the nearest of {} services are {}",
                more.len(),
                shown.join(", ")
            )
        }
    }
}
