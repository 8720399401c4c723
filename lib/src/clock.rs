//! Clocks. Wall time may step at any moment, so it is only displayed or compared loosely; waits use a monotonic clock.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Wall time, in UTC.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "the only reader of the wall clock"
)]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Time since boot (`CLOCK_BOOTTIME`): the same for every process of the host and monotonic, so that processes can
/// compare it with one another.
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// The CPU time of this process, all threads together (`CLOCK_PROCESS_CPUTIME_ID`).
#[must_use]
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
