//! Aurora's health and shutdown contract, served on the `health` port of a task.
//!
//! * `GET /health`: `200 ok`, or [`HealthFlags::unhealthy_status`] with a [`HealthReason`] as the body. Checks that arrive
//!   during a probe share its result. Aurora compares the body with `ok`, and shows 7 bytes of any other.
//! * `POST /quitquitquit`, `/abortabortabort`: answered at once, because Aurora waits one second for it; then
//!   [`HealthCheck::shut_down`] runs, `/health` returns `quit`, and the process ends with 0 when that is done.
//! * `GET /history`: the last results.
//!
//! Owns the port, the endpoints, and when a probe runs. What healthy means is the tool's [`HealthCheck`].
//! (Aurora: `common/health_check/http_signaler.py`, `executor/http_lifecycle.py`, `executor/common/health_checker.py`.)

mod history;
mod listeners;
mod monitor;
mod report;
mod result;
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

/// The longest body of a request; none of the endpoints uses one.
const MAX_BODY: usize = 64 << 10;

/// While this file is in the sandbox's root, Aurora counts every check as passed, and no probe runs.
pub const SNOOZE_FILE: &str = ".healthchecksnooze";

/// The flags of every tool that serves this contract. Its port is the tool's to declare.
#[derive(Debug, Clone, clap::Args)]
pub struct HealthFlags {
    /// HTTP status of /health while unhealthy
    #[arg(
        long,
        alias = "sick-status",
        value_name = "STATUS",
        default_value = "503",
        help_heading = "Health"
    )]
    pub unhealthy_status: UnhealthyStatus,
    /// Longest time after the start in which /health returns ok before the first success (0: none)
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = units::parse_duration, help_heading = "Health")]
    pub grace: Duration,
    /// How long requests under way may take at the end.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// The admin listener.
    #[command(flatten)]
    pub admin: AdminFlags,
}

/// The HTTP status of `/health` while unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum UnhealthyStatus {
    /// Every load balancer understands it; Aurora discards the body.
    #[value(name = "503")]
    Unavailable,
    /// Only clients that compare the body see that it is not `ok`; Aurora's page shows it.
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
    /// `/quitquitquit`: finish the requests under way. Aurora waits `graceful_shutdown_wait_secs` (5).
    Quit,
    /// `/abortabortabort`: end now. Aurora waits `shutdown_wait_secs` (5), then sends SIGTERM.
    Abort,
}

impl ShutdownRequest {
    /// The path that Aurora posts it to.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Quit => "/quitquitquit",
            Self::Abort => "/abortabortabort",
        }
    }
}

/// What a tool checks. It runs on the thread of the server: a long probe has to yield.
pub trait HealthCheck: Send + Sync + 'static {
    /// The longest time of a probe. A longer one is dropped and counts as [`HealthReason::TIMEOUT`].
    fn deadline(&self) -> Duration;

    /// Checks once. There is never more than one probe at a time.
    fn probe(&self) -> impl Future<Output = ProbeResult> + Send;

    /// Shuts the task down, once per kind of request, after the response to it. When it is done, or `--drain-timeout`
    /// has passed, the process ends with 0.
    fn shut_down(&self, request: ShutdownRequest) -> impl Future<Output = ()> + Send;
}

/// Whether the checks of the task in this sandbox are turned off ([`SNOOZE_FILE`]).
#[must_use]
pub fn is_snoozed(sandbox: &Path) -> bool {
    sandbox.join(SNOOZE_FILE).exists()
}

/// Serves the contract on `port` of 127.0.0.1 and ::1 until the process is asked to end; the kernel chooses a port for
/// port 0. `sandbox` is the directory of [`SNOOZE_FILE`].
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
    let (sockets, addresses) = listeners::bind(port)?;
    let limits = ServerLimits {
        max_connections: listeners::max_connections(),
        max_body: MAX_BODY,
        idle_timeout: None,
        drain_timeout: flags.drain.drain_timeout,
    };
    let (sender, requests) = mpsc::channel(2);
    let monitor = Arc::new(HealthMonitor::new(check, sandbox, flags, sender));
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
        tokio::spawn(admin.serve(report::build_router(&monitor)));
    }
    let stop = wait_for_shutdown(signals, requests, &monitor, limits.drain_timeout);
    serve_http(sockets, build_router(&monitor), limits, stop).await;
    Ok(Exit::OK)
}

fn build_router<C: HealthCheck>(monitor: &Arc<HealthMonitor<C>>) -> Router {
    let (health, history) = (Arc::clone(monitor), Arc::clone(monitor));
    let mut router = Router::default()
        .route_async("GET", "/health", move |_| {
            Arc::clone(&health).health_response()
        })
        .route("GET", "/history", move |_| {
            RouteResponse::json(200, &history.history_json())
        });
    for request in [ShutdownRequest::Quit, ShutdownRequest::Abort] {
        let monitor = Arc::clone(monitor);
        router = router.route("POST", request.path(), move |_| {
            monitor.accept_shutdown(request);
            RouteResponse::text(200, "ok")
        });
    }
    router
}

/// Ready after a signal, or when the shutdown that Aurora requested is done.
async fn wait_for_shutdown<C: HealthCheck>(
    mut signals: DaemonSignals,
    mut requests: mpsc::Receiver<ShutdownRequest>,
    monitor: &Arc<HealthMonitor<C>>,
    drain_timeout: Duration,
) {
    let mut shutdowns = JoinSet::new();
    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                DaemonSignal::Terminate => return tracing::info!("termination signal received"),
                // There is no configuration to reload.
                DaemonSignal::Hangup => {}
            },
            Some(request) = requests.recv() => {
                let monitor = Arc::clone(monitor);
                let shutdown = async move { timeout(drain_timeout, monitor.check.shut_down(request)).await };
                shutdowns.spawn(shutdown);
            }
            Some(ended) = shutdowns.join_next() => return match ended {
                Ok(Err(_)) => tracing::warn!("drain timeout exceeded"),
                _ => tracing::info!("shutdown completed"),
            },
        }
    }
}
