//! proxy-healthcheck: implements Aurora's HTTP health and shutdown endpoints for a server that has none. Each check is a
//! request on a new connection, with one deadline.
//!
//! The contract with Aurora is `hostkit::health`; here is what a healthy server is (`probe`), and how the server and its
//! siblings are shut down (`shutdown`).

mod cli;
mod expectation;
mod probe;
mod settings;
mod shutdown;
mod target;

pub use cli::Args;

use std::path::Path;
use std::time::Duration;

use hostkit::health::{self, HealthCheck, HealthReason, ProbeResult, SNOOZE_FILE, ShutdownRequest};
use hostkit::nagios::{self, NagiosStatus};
use hostkit::{Exit, Failure, stdout};
use serde_json::json;
use settings::CheckSettings;
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// How much longer than its own deadline a probe may take: the message of its own names the phase.
const PROBE_MARGIN: Duration = Duration::from_secs(1);

/// Runs the tool.
///
/// # Errors
/// The command line is not valid (exit 2), or the port cannot be bound (exit 73).
pub fn run(args: Args) -> Result<Exit, Failure> {
    let Some(port) = args.port.filter(|_| !args.once) else {
        let unknown = |failure: Failure| {
            print_result(
                NagiosStatus::Unknown,
                HealthReason::ERROR,
                &nagios::text_of(&failure),
                None,
                args.json,
            )
        };
        return check_once(&args).or_else(unknown);
    };
    let settings = CheckSettings::new(&args)?;
    let runtime = build_runtime()?;
    tracing::info!(
        server = settings.describe_targets(),
        timeout = ?settings.timeout,
        "health check configured"
    );
    let server = ServerCheck(settings);
    // Thermos starts a task's processes in its sandbox.
    let end = runtime.block_on(health::serve(port, Path::new("."), &args.health, server));
    // A name server that does not answer must not keep the process alive.
    runtime.shutdown_background();
    end
}

fn build_runtime() -> Result<Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // For resolving names, one at a time; localhost and addresses need none.
    builder.enable_all().max_blocking_threads(1);
    hostkit::runtime::build(&mut builder)
}

/// Checks the server once and prints the result for Nagios.
fn check_once(args: &Args) -> Result<Exit, Failure> {
    if health::is_snoozed(Path::new(".")) {
        let text = format!("not checked while {SNOOZE_FILE} exists");
        return print_result(
            NagiosStatus::Ok,
            HealthReason::SNOOZED,
            &text,
            None,
            args.json,
        );
    }
    let settings = CheckSettings::new(args)?;
    let runtime = build_runtime()?;
    let (result, duration) = runtime.block_on(async {
        let start = Instant::now();
        (probe::probe_all(&settings).await, start.elapsed())
    });
    runtime.shutdown_background();
    let status = match result.reason() {
        HealthReason::OK => NagiosStatus::Ok,
        HealthReason::ERROR => NagiosStatus::Unknown,
        _ => NagiosStatus::Critical,
    };
    let times = (duration.as_secs_f64(), settings.timeout.as_secs_f64());
    print_result(
        status,
        result.reason(),
        result.detail(),
        Some(times),
        args.json,
    )
}

/// Prints a result; `times` are the seconds that the check took, and its timeout.
fn print_result(
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
            "time_seconds": times.map(|(seconds, _)| seconds),
            "timeout_seconds": times.map(|(_, timeout)| timeout),
        }))?;
        return Ok(status.exit());
    }
    let data = times.map(|(seconds, timeout)| format!("time={seconds:.6}s;;{timeout};0;{timeout}"));
    let text = match reason {
        HealthReason::OK => text.to_owned(),
        reason => format!("{reason}: {text}"),
    };
    nagios::print(status, &text, data.as_deref())
}

/// The server under Aurora's contract.
struct ServerCheck(CheckSettings);

impl HealthCheck for ServerCheck {
    fn deadline(&self) -> Duration {
        self.0.timeout + PROBE_MARGIN
    }

    async fn probe(&self) -> ProbeResult {
        probe::probe_all(&self.0).await
    }

    async fn shut_down(&self, request: ShutdownRequest) {
        shutdown::shut_down(&self.0, request).await;
    }
}
