//! log-healthcheck: checks that a log line with a given prefix was written within N seconds.
//!
//! `LogCheck` is one check, from the state file to the verdict: `log_files` finds the logs, `log_reader` reads their
//! new lines, `verdict` evaluates them.

mod check;
mod check_state;
mod cli;
mod line_pattern;
mod line_scanner;
mod line_time;
mod log_files;
mod log_reader;
mod resident;
mod state_file;
mod verdict;
mod wall_time;
mod wildcard;

pub use cli::Args;

use check::LogCheck;
use hostkit::health::{self, SNOOZE_FILE};
use hostkit::nagios::{self, NagiosStatus};
use hostkit::{Exit, Failure, clock, stdout};
use log_files::SandboxLocations;
use serde_json::json;
use wall_time::WallTime;

/// Entry points for fuzzing; not part of the interface.
#[doc(hidden)]
pub mod testing {
    use crate::check_state::CheckState;

    /// The time that a line carries, in milliseconds since 1970.
    #[must_use]
    pub fn parse_line_time(line: &[u8], assume_utc: bool) -> Option<i64> {
        crate::line_time::parse_line_time(line, assume_utc).map(|time| time.0)
    }

    /// Parses a state file and formats it again; `None` if it is invalid.
    #[must_use]
    pub fn reformat_state(bytes: &[u8]) -> Option<String> {
        CheckState::parse(bytes).map(|state| state.to_text())
    }
}

/// Runs the tool: checks once, or serves health checks on a port until it is shut down.
///
/// # Errors
/// stdout cannot be written, or the port cannot be bound (exit 73).
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let instance = hostkit::env::var("CB_AURORA_INSTANCE");
    let check = LogCheck::new(args, SandboxLocations::detect(), instance.as_deref());
    match (check, args.port) {
        (Ok(check), Some(port)) => resident::serve(check, port, &args.health),
        (Ok(check), None) => {
            check_once(check, args.json).or_else(|failure| report_unknown(&failure, args.json))
        }
        (Err(failure), Some(_)) => Err(failure),
        (Err(failure), None) => report_unknown(&failure, args.json),
    }
}

/// Checks once and prints the result.
fn check_once(mut check: LogCheck, json: bool) -> Result<Exit, Failure> {
    if health::is_snoozed(&check.sandbox()) {
        let message = format!("not checked while {SNOOZE_FILE} exists");
        return report(NagiosStatus::Ok, "snoozed", &message, json);
    }
    let checked = check.check(WallTime::from(clock::now()))?;
    let (verdict, summary) = (&checked.verdict, &checked.summary);
    if json {
        stdout::print_json(&verdict.to_json(check.criteria(), summary, checked.saved.is_ok()))?;
    } else {
        stdout::print_line(verdict.to_nagios_line(check.criteria(), summary))?;
    }
    Ok(verdict.status.exit())
}

/// Prints a failure as UNKNOWN on stdout, which Nagios reads.
fn report_unknown(failure: &Failure, json: bool) -> Result<Exit, Failure> {
    report(
        NagiosStatus::Unknown,
        "error",
        &nagios::text_of(failure),
        json,
    )
}

/// Prints a result without a verdict.
fn report(status: NagiosStatus, reason: &str, message: &str, json: bool) -> Result<Exit, Failure> {
    if !json {
        return nagios::print(status, &format!("{reason}: {message}"), None);
    }
    let word = status.as_str();
    stdout::print_json(&json!({"status": word, "reason": reason, "message": message}))?;
    Ok(status.exit())
}
