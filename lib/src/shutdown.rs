//! Shutdown signals: one future for SIGINT, SIGTERM and SIGHUP. Daemons use [`DaemonSignals`] instead, where SIGHUP
//! reloads the configuration.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::units;

/// The flag of every daemon that finishes what it has begun before it ends.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainFlags {
    /// Longest time to finish what was begun when told to stop; a second signal ends at once
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = units::parse_duration)]
    pub drain_timeout: Duration,
}

/// What a daemon is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonSignal {
    /// SIGTERM or SIGINT: stop taking work, finish what was begun, end.
    Terminate,
    /// SIGHUP: read the configuration again.
    Hangup,
}

/// The signals of a daemon. They are caught from its making on.
#[derive(Debug)]
pub struct DaemonSignals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Signal,
}

impl DaemonSignals {
    /// Catches SIGTERM, SIGINT and SIGHUP. The second of the former two ends the process at once, whatever it is doing
    /// then: nobody has to be listening. One of those two that the parent had ignored stays ignored.
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

    /// Waits for the next one. Several of a kind that came since the last call are one. Nothing is lost when the future
    /// is dropped.
    pub async fn next(&mut self) -> DaemonSignal {
        tokio::select! {
            Some(()) = next(&mut self.interrupt) => DaemonSignal::Terminate,
            Some(()) = next(&mut self.terminate) => DaemonSignal::Terminate,
            Some(()) = self.hangup.recv() => DaemonSignal::Hangup,
            else => std::future::pending().await,
        }
    }
}

/// Waits until this process is told to stop and returns the signal's number. From the first call on the signals no
/// longer kill the process by themselves, so the caller must see to it that it ends. A signal that the parent had
/// ignored (nohup, `&` in a script) stays ignored, here and in what this process becomes by exec.
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

/// The signals this process was started with ignored, a bit each (proc(5), `SigIgn`); none where that cannot be read.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Ends this process by `signal` as if nobody had caught it: the parent (thermos, a shell) must see the signal, not a
/// made-up exit code. Returns only for a signal that ends nobody.
pub fn terminate_by_signal(signal: i32) {
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
