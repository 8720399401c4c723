//! `synapse status`: what the running synapse knows and does, from the file it keeps beside its state.

use hostkit::{Exit, Failure, stdout};
use serde_json::Value;

use super::table;
use crate::settings::Settings;

/// Prints the status.
///
/// # Errors
/// No synapse has run with this configuration (exit 66), or stdout cannot be written.
pub fn run(settings: &Settings, as_json: bool) -> Result<Exit, Failure> {
    let path = settings.state_file.with_file_name("status.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::new(Exit::NOT_FOUND, format!("cannot read {}", path.display()))
            .remedy("has synapse run with this configuration?")
            .because(error)
    })?;
    let status: Value = serde_json::from_str(&text).map_err(|error| {
        Failure::new(Exit::CORRUPT, format!("{} is no status", path.display())).because(error)
    })?;
    let running = crate::state::holder(&settings.state_file);
    if as_json {
        let mut status = status;
        status["running"] = running.into();
        stdout::print_json(&status)?;
        return Ok(Exit::OK);
    }
    let word = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    match running {
        Some(pid) => stdout::print_line(format_args!(
            "synapse {} runs as pid {pid}; as of {}",
            word("version"),
            word("time")
        ))?,
        None => stdout::print_line(format_args!(
            "synapse does not run; it last wrote at {}",
            word("time")
        ))?,
    }
    for haproxy in status["haproxy"].as_array().into_iter().flatten() {
        let trouble = haproxy["trouble"].as_str().map_or_else(
            || {
                format!(
                    "version {}, pid {}",
                    haproxy["version"].as_str().unwrap_or("?"),
                    haproxy["pid"]
                )
            },
            str::to_owned,
        );
        stdout::print_line(format_args!(
            "haproxy {}: {trouble}",
            haproxy["socket"].as_str().unwrap_or("?")
        ))?;
    }
    for ensemble in status["zookeeper"].as_array().into_iter().flatten() {
        stdout::print_line(format_args!(
            "zookeeper {}: {}",
            ensemble["ensemble"].as_str().unwrap_or("?"),
            ensemble["state"].as_str().unwrap_or("?")
        ))?;
    }
    for (name, why) in status["structure"]["quarantine"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let why = why.as_str().unwrap_or("?");
        stdout::print_line(format_args!(
            "! {name} is not as configured, HAProxy refuses it: {why}"
        ))?;
    }
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        if let Some(why) = service["kept"]["why"].as_str() {
            let members = &service["kept"]["members"];
            stdout::print_line(format_args!(
                "! {name}: {members} vanished members are kept: {why}"
            ))?;
        }
    }
    for trouble in status["troubles"].as_array().into_iter().flatten() {
        stdout::print_line(format_args!("! {}", trouble.as_str().unwrap_or("?")))?;
    }
    let mut rows = table([
        "service", "ready", "probing", "held", "draining", "refused", "synced", "trouble",
    ]);
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        let count = |key: &str| service[key].as_u64().unwrap_or(0).to_string();
        rows.add_row([
            name.clone(),
            count("ready"),
            count("probing"),
            count("held"),
            count("draining"),
            count("rejected"),
            service["age_seconds"]
                .as_f64()
                .map_or_else(|| "never".to_owned(), |age| format!("{age:.0} s ago")),
            service["trouble"].as_str().unwrap_or("").to_owned(),
        ]);
    }
    stdout::print_line(rows.trim_fmt())?;
    Ok(Exit::OK)
}
