//! Being told to stop: one future for SIGINT, SIGTERM and SIGHUP.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Waits until this process is told to stop and returns the signal's number. From the first call on the signals no
/// longer kill the process by themselves, so the caller must see to it that it ends.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn signalled() -> io::Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
        _ = hangup.recv() => SignalKind::hangup(),
    }
    .as_raw_value())
}
