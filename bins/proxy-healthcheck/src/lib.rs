//! proxy-healthcheck: answers Aurora's health checks on a task's `health` port, by asking the server that the task is
//! about. Each check is a fresh connection, with one deadline for all of it.
//!
//! The contract with Aurora is `hostkit::health`; here is what a healthy server is (`probe`), and what the server and
//! its siblings are told when the task ends (`quit`).

pub mod cli;
mod exchange;
pub mod expect;
mod probe;
mod quit;
pub mod settings;
pub mod target;

pub use cli::Args;

use std::path::Path;
use std::time::Duration;

use hostkit::health::{self, HealthCheck, HealthReason, ProbeResult, SNOOZE_FILE, ShutdownRequest};
use hostkit::nagios::{self, NagiosStatus};
use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use settings::Settings;
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// What a probe may take beyond its own deadline, which tells more of what went wrong.
const MARGIN: Duration = Duration::from_secs(1);

/// Does what the command line asks for.
///
/// # Errors
/// The command line makes no sense (exit 2), or the port cannot be bound (exit 73).
pub fn run(args: Args) -> Result<Exit, Failure> {
    let Some(port) = args.port.filter(|_| !args.once) else {
        let unknown = |failure: Failure| {
            say(
                NagiosStatus::Unknown,
                HealthReason::ERROR,
                &nagios::text_of(&failure),
                None,
                args.json,
            )
        };
        return once(&args).or_else(unknown);
    };
    let settings = Settings::new(&args)?;
    let runtime = runtime()?;
    tracing::info!(server = settings.shown(), timeout = ?settings.timeout, "checking");
    let server = Server(settings);
    // Thermos starts a task's processes in its sandbox.
    let end = runtime.block_on(health::serve(port, Path::new("."), &args.health, server));
    // A name server that does not answer must not keep the process.
    runtime.shutdown_background();
    end
}

fn runtime() -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // For looking up names, one at a time; localhost and addresses need none.
    builder.enable_all().max_blocking_threads(1);
    hostkit::runtime::build(&mut builder)
}

/// Asks the server once and prints the result for Nagios.
fn once(args: &Args) -> Result<Exit, Failure> {
    if health::is_snoozed(Path::new(".")) {
        let text = format!("not checked as long as there is {SNOOZE_FILE}");
        return say(
            NagiosStatus::Ok,
            HealthReason::SNOOZED,
            &text,
            None,
            args.json,
        );
    }
    let settings = Settings::new(args)?;
    let runtime = runtime()?;
    let (verdict, took) = runtime.block_on(async {
        let start = Instant::now();
        (probe::all(&settings).await, start.elapsed())
    });
    runtime.shutdown_background();
    let status = match verdict.reason() {
        HealthReason::OK => NagiosStatus::Ok,
        HealthReason::ERROR => NagiosStatus::Unknown,
        _ => NagiosStatus::Critical,
    };
    let times = (took.as_secs_f64(), settings.timeout.as_secs_f64());
    say(
        status,
        verdict.reason(),
        verdict.detail(),
        Some(times),
        args.json,
    )
}

/// Prints a result, with the seconds that the check took and that it might have taken.
fn say(
    status: NagiosStatus,
    reason: HealthReason,
    text: &str,
    times: Option<(f64, f64)>,
    json: bool,
) -> Result<Exit, Failure> {
    if json {
        stdout::print_json(&json!({
            "status": status.as_str(),
            "reason": reason.to_string(),
            "message": text,
            "time_seconds": times.map(|(took, _)| took),
            "timeout_seconds": times.map(|(_, limit)| limit),
        }))?;
        return Ok(status.exit());
    }
    let data = times.map(|(took, limit)| format!("time={took:.6}s;;{limit};0;{limit}"));
    let text = match reason {
        HealthReason::OK => text.to_owned(),
        reason => format!("{reason}: {text}"),
    };
    nagios::print(status, &text, data.as_deref())
}

/// The server, as Aurora's contract sees it.
struct Server(Settings);

impl HealthCheck for Server {
    fn deadline(&self) -> Duration {
        self.0.timeout + MARGIN
    }

    async fn probe(&self) -> ProbeResult {
        probe::all(&self.0).await
    }

    async fn shut_down(&self, how: ShutdownRequest) {
        quit::quit(&self.0, how).await;
    }
}
