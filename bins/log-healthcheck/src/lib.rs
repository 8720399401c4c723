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
pub mod stamp;
pub mod state;
pub mod store;
pub mod verdict;
pub mod watch;

pub use cli::Args;

use check::Check;
use find::Places;
use hostkit::{Exit, Failure, clock, out};
use moment::Moment;

/// Does what the command line asks for.
///
/// # Errors
/// stdout cannot be written.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let instance = std::env::var("CB_AURORA_INSTANCE").ok();
    let checked = Check::new(args, Places::of_process(), instance.as_deref())
        .and_then(|mut check| Ok((check.check(Moment::from(clock::now()))?, check)));
    match checked {
        Ok((checked, check)) => {
            let (verdict, seen) = (&checked.verdict, &checked.seen);
            if args.json {
                out::json(&verdict.json(check.question(), seen, checked.saved.is_ok()))?;
            } else {
                out::line(verdict.line(check.question(), seen))?;
            }
            Ok(verdict.status.exit())
        }
        Err(failure) => {
            // Nagios shows what is on stdout.
            let causes: String = failure
                .causes()
                .iter()
                .map(|cause| format!("; {cause}"))
                .collect();
            out::line(format_args!("UNKNOWN: {failure}{causes}"))?;
            Ok(failure.exit())
        }
    }
}
