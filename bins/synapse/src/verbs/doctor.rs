//! `synapse doctor`: whether everything synapse needs is there and permitted.

use std::time::Duration;

use hostkit::{Exit, Failure, stdout};
use serde_json::json;

use super::{observe, table};
use crate::haproxy::doctor::{Check, Health, doctor};
use crate::settings::Settings;
use crate::state;

/// How many troubles with registries are shown.
const SHOWN: usize = 5;
/// How long registries get to answer.
const WAIT: Duration = Duration::from_secs(5);

/// Prints the checks.
///
/// # Errors
/// One of them failed (exit 1), or stdout cannot be written.
pub async fn run(settings: &Settings, as_json: bool) -> Result<Exit, Failure> {
    let mut checks = doctor(&settings.haproxy).await;
    checks.push(state_file(settings));
    let seen = observe::observe(settings, None, WAIT).await;
    checks.push(registries(&seen));
    let failed = checks.iter().any(|check| check.health == Health::Failed);
    if as_json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| {
                json!({"name": check.name, "health": check.health.word(), "detail": check.detail, "remedy": check.remedy})
            })
            .collect();
        stdout::print_json(&json!({"checks": checks}))?;
    } else {
        let mut rows = table(["", "check", "what was found", "what to do"]);
        for check in &checks {
            rows.add_row([
                check.health.word(),
                check.name,
                check.detail.as_str(),
                check.remedy.as_str(),
            ]);
        }
        stdout::print_line(rows.trim_fmt())?;
    }
    Ok(if failed { Exit::FAILED } else { Exit::OK })
}

fn state_file(settings: &Settings) -> Check {
    let path = settings.state_file.display();
    let directory = settings
        .state_file
        .parent()
        .unwrap_or(std::path::Path::new("."));
    let (health, detail) = match (
        state::holder(&settings.state_file),
        state::peek(&settings.state_file),
    ) {
        (Some(pid), Ok(state)) => (
            Health::Ok,
            format!(
                "{path}: {} services, used by synapse (pid {pid})",
                state.services.len()
            ),
        ),
        (None, Ok(state)) => (
            Health::Ok,
            format!("{path}: {} services, no synapse runs", state.services.len()),
        ),
        (_, Err(failure)) if failure.exit() == Exit::NOT_FOUND && directory.is_dir() => (
            Health::Warning,
            format!("{path}: nothing yet: synapse has not run with this configuration"),
        ),
        (_, Err(failure)) => (Health::Failed, failure.to_string()),
    };
    Check {
        name: "state file",
        health,
        detail,
        remedy: match health {
            Health::Failed => format!(
                "make {} writable for the user that synapse runs as",
                directory.display()
            ),
            _ => String::new(),
        },
    }
}

fn registries(seen: &observe::Seen) -> Check {
    let troubles = seen
        .tracked
        .iter()
        .filter_map(|(name, tracked)| Some(format!("{name}: {}", tracked.trouble.as_ref()?)));
    let silences = seen.silences();
    let (health, mut details) = match silences.is_empty() {
        false => (Health::Failed, silences),
        true => (Health::Warning, troubles.collect()),
    };
    let (health, detail, remedy) = if details.is_empty() {
        let known = format!("services that are known: {}", seen.tracked.len());
        (Health::Ok, known, String::new())
    } else {
        if details.len() > SHOWN {
            let more = format!("and {} more", details.len() - SHOWN);
            details.truncate(SHOWN);
            details.push(more);
        }
        let remedy = "look at hosts, paths and credentials".to_owned();
        (health, details.join("\n"), remedy)
    };
    Check {
        name: "registries",
        health,
        detail,
        remedy,
    }
}
