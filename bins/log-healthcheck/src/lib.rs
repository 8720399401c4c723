//! log-healthcheck: tells whether a line that begins with a pattern was written to a log lately.
//!
//! [`check::Check`] goes from the state file over the logs to a verdict: [`find`] says where logs are, [`watch`] what is
//! new in them, [`verdict`] what that means.

pub mod check;
pub mod cli;
pub mod find;
pub mod moment;
pub mod pattern;
mod scan;
mod serve;
pub mod stamp;
pub mod state;
pub mod store;
pub mod verdict;
pub mod watch;
mod wildcard;

pub use cli::Args;

use check::Check;
use find::Places;
use hostkit::health::{self, SNOOZE_FILE};
use hostkit::nagios::{self, NagiosStatus};
use hostkit::{Exit, Failure, clock, stdout};
use moment::Moment;
use serde_json::json;

/// Does what the command line asks for: looks once, or answers on a port until told to end.
///
/// # Errors
/// stdout cannot be written, or the port cannot be bound (exit 73).
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let instance = hostkit::env::var("CB_AURORA_INSTANCE");
    let check = Check::new(args, Places::of_process(), instance.as_deref());
    match (check, args.port) {
        (Ok(check), Some(port)) => serve::serve(check, port, &args.health),
        (Ok(check), None) => once(check, args.json).or_else(|failure| unknown(&failure, args.json)),
        (Err(failure), Some(_)) => Err(failure),
        (Err(failure), None) => unknown(&failure, args.json),
    }
}

/// Looks once and says so.
fn once(mut check: Check, json: bool) -> Result<Exit, Failure> {
    if health::is_snoozed(&check.sandbox()) {
        let message = format!("not checked as long as there is {SNOOZE_FILE}");
        return say(NagiosStatus::Ok, "snoozed", &message, json);
    }
    let checked = check.check(Moment::from(clock::now()))?;
    let (verdict, seen) = (&checked.verdict, &checked.seen);
    if json {
        stdout::print_json(&verdict.json(check.question(), seen, checked.saved.is_ok()))?;
    } else {
        stdout::print_line(verdict.line(check.question(), seen))?;
    }
    Ok(verdict.status.exit())
}

/// Says on stdout, where Nagios looks, why it could not be checked.
fn unknown(failure: &Failure, json: bool) -> Result<Exit, Failure> {
    say(
        NagiosStatus::Unknown,
        "error",
        &nagios::text_of(failure),
        json,
    )
}

/// Says what was found out without looking.
fn say(status: NagiosStatus, reason: &str, message: &str, json: bool) -> Result<Exit, Failure> {
    if !json {
        return nagios::print(status, &format!("{reason}: {message}"), None);
    }
    let word = status.as_str();
    stdout::print_json(&json!({"status": word, "reason": reason, "message": message}))?;
    Ok(status.exit())
}
