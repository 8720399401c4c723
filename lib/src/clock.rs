//! The clocks. Wall time may step at any moment and is only shown or compared loosely; everything that waits uses a
//! clock that cannot step.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Wall time, in UTC.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Time since boot, the same for every process of the host and never set back (`CLOCK_BOOTTIME`): what one process
/// writes down for another to compare.
#[must_use]
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// Processor time this process has used, all threads together (`CLOCK_PROCESS_CPUTIME_ID`).
#[must_use]
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}
