//! Being told to stop: one future for SIGINT, SIGTERM and SIGHUP.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Waits until this process is told to stop and returns the signal's number. From the first call on the signals no
/// longer kill the process by themselves, so the caller must see to it that it ends. A signal that the parent had
/// ignored (nohup, `&` in a script) stays ignored, here and in what this process becomes by exec.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn signalled() -> io::Result<i32> {
    let ignored = ignored();
    let listen = |kind: SignalKind| {
        let bit = 1u64 << (kind.as_raw_value() - 1);
        (ignored & bit == 0).then(|| signal(kind)).transpose()
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

/// The signals this process was started with ignored, a bit each (proc(5), `SigIgn`); none where that cannot be read.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Ends this process by `signal` as if nobody had caught it: the parent (thermos, a shell) must see the signal, not a
/// made-up exit code. Returns only for a signal that ends nobody.
pub fn die_of(signal: i32) {
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
