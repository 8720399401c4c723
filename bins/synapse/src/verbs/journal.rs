//! `synapse journal`: what changed, when, and which reload had which cause.

use std::path::Path;
use std::time::Duration;

use hostkit::{Exit, Failure, clock, stdout};

use crate::journal::{self, Entry, Filter, Follow};
use crate::settings::Settings;

/// How often the files are looked at while they are followed.
const POLL: Duration = Duration::from_millis(250);

/// What to show.
#[derive(Debug, Clone)]
pub struct Show {
    /// Only what is newer than this.
    pub since: Option<Duration>,
    /// Only of this service.
    pub service: Option<String>,
    /// Only the last so many.
    pub lines: Option<usize>,
    /// Whether to go on as entries are added.
    pub follow: bool,
    /// Whether to print JSON.
    pub json: bool,
}

/// Prints the journal.
///
/// # Errors
/// It cannot be read (exit 66), or stdout cannot be written.
pub async fn run(settings: &Settings, show: Show) -> Result<Exit, Failure> {
    let directory = settings.state_file.parent().unwrap_or(Path::new("."));
    let unreadable = |error: std::io::Error| {
        Failure::new(
            Exit::NOT_FOUND,
            format!("cannot read the journal in {}", directory.display()),
        )
        .remedy("has synapse run with this configuration?")
        .because(error)
    };
    let filter = Filter {
        since: show.since.and_then(|since| clock::now().checked_sub(since)),
        service: show.service,
    };
    // Before what is there is read, so that nothing is missed between the two.
    let mut more = if show.follow {
        Some(Follow::new(directory, filter.clone()).map_err(unreadable)?)
    } else {
        None
    };
    let entries = journal::read(directory, &filter).map_err(unreadable)?;
    match show.lines {
        Some(count) => journal::last(entries, count)
            .iter()
            .try_for_each(|entry| print(entry, show.json))?,
        None => {
            for entry in entries {
                print(&entry, show.json)?;
            }
        }
    }
    while let Some(follow) = &mut more {
        tokio::time::sleep(POLL).await;
        for entry in follow.more().map_err(unreadable)? {
            print(&entry, show.json)?;
        }
    }
    Ok(Exit::OK)
}

fn print(entry: &Entry, json: bool) -> Result<(), Failure> {
    if json {
        let value = serde_json::to_value(entry).map_err(|error| {
            Failure::new(Exit::FAILED, "an entry of the journal is no JSON").because(error)
        })?;
        return stdout::print_json(&value);
    }
    let kind = serde_json::to_value(entry.kind).unwrap_or_default();
    let mut line = format!(
        "{} {:<14}",
        humantime::format_rfc3339_millis(entry.time),
        kind.as_str().unwrap_or("?")
    );
    let words = [
        &entry.service,
        &entry.member,
        &entry.slot,
        &entry.cause,
        &entry.detail,
        &entry.source,
    ];
    for word in words.into_iter().flatten() {
        line.push(' ');
        line.push_str(&crate::model::shown(word));
    }
    if let Some(number) = entry.reload {
        line.push_str(&format!(" reload {number}"));
    }
    if let Some(millis) = entry.duration_ms {
        line.push_str(&format!(" {millis} ms"));
    }
    stdout::print_line(line)
}
