//! Aurora's health contract, served on the `health` port of a task: what a checker finds, told so that Aurora's
//! executor acts on it and a person can see why.
//!
//! * `GET /health`: `200 ok`, or [`HealthFlags::unhealthy_status`] with a [`HealthReason`] as the body. Checks that come while one
//!   is under way share its verdict. Aurora compares the body with `ok`, and shows 7 bytes of another.
//! * `POST /quitquitquit`, `/abortabortabort`: answered at once, because Aurora waits one second for it; then the tool's
//!   [`HealthCheck::quit`] runs, `/health` answers `quit`, and the process ends with 0 when that is done.
//! * `GET /history`: the last verdicts.
//!
//! Owns the port, HTTP, when a verdict is asked for and what is told of it. What healthy means is the tool's [`HealthCheck`].
//! (Aurora: `common/health_check/http_signaler.py`, `executor/http_lifecycle.py`, `executor/common/health_checker.py`.)

mod history;
mod monitor;
mod report;
mod result;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admin::{AdminFlags, AdminListener};
use crate::http::server::{ServerLimits, serve as serve_http};
use crate::http::{RouteResponse, Router};
use crate::shutdown::{DaemonSignal, DaemonSignals, DrainFlags};
use crate::{Exit, Failure, units};
use monitor::HealthMonitor;

pub use result::{HealthReason, ProbeResult};

/// While this file is in the sandbox's root, Aurora counts every check as passed; so does everybody else here.
pub const SNOOZE_FILE: &str = ".healthchecksnooze";

/// The flags of everything that serves this contract. Its port is the tool's to declare.
#[derive(Debug, Clone, clap::Args)]
pub struct HealthFlags {
    /// HTTP status of /health while it is sick
    #[arg(
        long,
        alias = "sick-status",
        value_name = "STATUS",
        default_value = "503",
        help_heading = "Health"
    )]
    pub unhealthy_status: UnhealthyStatus,
    /// How long after the start /health answers ok until the first success (0: not at all)
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = units::parse_duration, help_heading = "Health")]
    pub grace: Duration,
    /// How it ends.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// Where it can be asked.
    #[command(flatten)]
    pub admin: AdminFlags,
}

/// The HTTP status of a sick `/health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum UnhealthyStatus {
    /// Every load balancer understands it; Aurora discards the body.
    #[value(name = "503")]
    Unavailable,
    /// Only who compares the body sees that it is not `ok`; Aurora's page shows it.
    #[value(name = "200")]
    Ok,
}

impl UnhealthyStatus {
    const fn code(self) -> u16 {
        match self {
            Self::Unavailable => 503,
            Self::Ok => 200,
        }
    }
}

/// How Aurora asks a task to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `/quitquitquit`: finish what was begun. Aurora waits `graceful_shutdown_wait_secs` (5).
    Quit,
    /// `/abortabortabort`: end now. Aurora waits `shutdown_wait_secs` (5), then SIGTERM.
    Abort,
}

impl ShutdownRequest {
    /// Where it is posted.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Quit => "/quitquitquit",
            Self::Abort => "/abortabortabort",
        }
    }
}

/// What a tool checks. It runs on the one thread that also answers: what takes long has to yield.
pub trait HealthCheck: Send + Sync + 'static {
    /// The longest a probe may take. One that takes longer is dropped and counts as [`HealthReason::TIMEOUT`].
    fn deadline(&self) -> Duration;

    /// Looks. There is never more than one probe at a time.
    fn probe(&self) -> impl Future<Output = ProbeResult> + Send;

    /// Does what there is to do when the task is told to end, once per kind. The answer has been given then. When it is
    /// done, or `--drain-timeout` is over, the process ends with 0.
    fn shut_down(&self, how: ShutdownRequest) -> impl Future<Output = ()> + Send;
}

/// Whether somebody has turned the checks of the task in this sandbox off ([`SNOOZE_FILE`]).
#[must_use]
pub fn is_snoozed(sandbox: &Path) -> bool {
    sandbox.join(SNOOZE_FILE).exists()
}

/// Serves the contract on `port` of 127.0.0.1 and ::1 until the process is told to end. `sandbox` is where
/// [`SNOOZE_FILE`] is looked for. A port of 0 is one that is free; the log names it.
///
/// # Errors
/// An address cannot be bound (exit 73).
pub async fn serve<C: HealthCheck>(
    port: u16,
    sandbox: &Path,
    flags: &HealthFlags,
    check: C,
) -> Result<Exit, Failure> {
    let signals = DaemonSignals::new()
        .map_err(|error| Failure::new(Exit::FAILED, "cannot catch signals").because(error))?;
    let (sockets, addresses) = socket::bind(port).await?;
    let bounds = ServerLimits {
        connections: socket::connections(),
        drain: flags.drain.drain_timeout,
    };
    let (quits, told) = mpsc::channel(2);
    let monitor = Arc::new(HealthMonitor::new(check, sandbox, flags, quits));
    let admin = match &flags.admin.admin {
        Some(address) => Some(AdminListener::bind(address).await?),
        None => None,
    };
    tracing::info!(
        version = crate::VERSION,
        health = addresses.join(" "),
        admin = admin.as_ref().map(|admin| admin.address().to_string()),
        "started"
    );
    // Ends with the runtime.
    if let Some(admin) = admin {
        tokio::spawn(admin.serve(report::admin_router(&monitor)));
    }
    let stop = told_to_end(signals, told, &monitor, bounds.drain);
    serve_http(sockets, routes(&monitor), bounds, stop).await;
    Ok(Exit::OK)
}

fn routes<C: HealthCheck>(monitor: &Arc<HealthMonitor<C>>) -> Router {
    let (health, history) = (Arc::clone(monitor), Arc::clone(monitor));
    let mut routes = Router::default()
        .route_async("GET", "/health", move |_| Arc::clone(&health).health())
        .route("GET", "/history", move |_| {
            RouteResponse::json(200, &history.history())
        });
    for how in [ShutdownRequest::Quit, ShutdownRequest::Abort] {
        let monitor = Arc::clone(monitor);
        routes = routes.route("POST", how.path(), move |_| {
            monitor.shut_down(how);
            RouteResponse::text(200, "ok")
        });
    }
    routes
}

/// Ready when a signal says so, or when what there was to do after Aurora said so is done.
async fn told_to_end<C: HealthCheck>(
    mut signals: DaemonSignals,
    mut quits: mpsc::Receiver<ShutdownRequest>,
    monitor: &Arc<HealthMonitor<C>>,
    patience: Duration,
) {
    let mut quitting = JoinSet::new();
    loop {
        tokio::select! {
            told = signals.next() => match told {
                DaemonSignal::Terminate => return tracing::info!("told to stop"),
                // There is no configuration to read again.
                DaemonSignal::Hangup => {}
            },
            Some(how) = quits.recv() => {
                let monitor = Arc::clone(monitor);
                quitting.spawn(async move { timeout(patience, monitor.check.shut_down(how)).await });
            }
            Some(ended) = quitting.join_next() => return match ended {
                Ok(Err(_)) => tracing::warn!("ending, although not all is done: --drain-timeout is over"),
                _ => tracing::info!("ending, as told"),
            },
        }
    }
}
