//! Shutdown signals: one future for SIGINT, SIGTERM and SIGHUP. Daemons use [`DaemonSignals`] instead, where SIGHUP
//! reloads the configuration.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::AT_START;
use crate::units;

/// The flag for the graceful shutdown of a daemon.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainFlags {
    /// Time to finish work in progress on SIGTERM; a second signal exits at once
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = units::parse_duration, group = AT_START)]
    pub drain_timeout: Duration,
}

/// A signal to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonSignal {
    /// SIGTERM or SIGINT: shut down gracefully.
    Terminate,
    /// SIGHUP: reload the configuration.
    Hangup,
}

/// The signals of a daemon, caught from construction on.
#[derive(Debug)]
pub struct DaemonSignals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Signal,
}

impl DaemonSignals {
    /// Catches SIGTERM, SIGINT and SIGHUP. A second SIGTERM or SIGINT terminates the process at once, even if it is not
    /// waiting for signals. SIGTERM and SIGINT stay ignored if the parent ignored them.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        let ignored = ignored_signals();
        let ending = Arc::new(AtomicBool::new(false));
        let listen = |kind: SignalKind| {
            let number = kind.as_raw_value();
            if is_ignored(ignored, kind) {
                return Ok(None);
            }
            // In this order the first signal sets the flag and the next one finds it set.
            flag::register_conditional_default(number, Arc::clone(&ending))?;
            flag::register(number, Arc::clone(&ending))?;
            signal(kind).map(Some)
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Repeated signals of one kind are merged. Cancel safe.
    pub async fn next(&mut self) -> DaemonSignal {
        tokio::select! {
            Some(()) = next(&mut self.interrupt) => DaemonSignal::Terminate,
            Some(()) = next(&mut self.terminate) => DaemonSignal::Terminate,
            Some(()) = self.hangup.recv() => DaemonSignal::Hangup,
            else => std::future::pending().await,
        }
    }
}

/// Waits for SIGINT, SIGTERM or SIGHUP and returns its number. From the first call on they no longer terminate the
/// process, so the caller must exit. A signal that the parent ignored (nohup, `&` in a script) stays ignored, here and
/// in what this process becomes by exec.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn wait_for_signal() -> io::Result<i32> {
    let ignored = ignored_signals();
    let listen = |kind: SignalKind| {
        (!is_ignored(ignored, kind))
            .then(|| signal(kind))
            .transpose()
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(tokio::select! {
        Some(()) = next(&mut interrupt) => SignalKind::interrupt(),
        Some(()) = next(&mut terminate) => SignalKind::terminate(),
        Some(()) = next(&mut hangup) => SignalKind::hangup(),
        else => std::future::pending().await,
    }
    .as_raw_value())
}

async fn next(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

fn is_ignored(mask: u64, kind: SignalKind) -> bool {
    mask & (1 << (kind.as_raw_value() - 1)) != 0
}

/// The signals that the parent ignored, as a bit mask (proc(5), `SigIgn`); 0 if unreadable.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Terminates this process by `signal` as if it were not caught: the parent (thermos, a shell) must see the signal, not
/// an exit code. Returns only if the signal's default action is not to terminate.
pub fn terminate_by_signal(signal: i32) {
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
