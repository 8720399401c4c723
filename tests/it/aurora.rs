//! Aurora's contract with a task: how its health is checked and how it is stopped. First the kit's executor itself is
//! tested, row by row, against scripted servers; then the health checkers against that executor.

mod counters;
mod lifecycle;
mod log;
mod proxy;
mod server;
mod shell;
mod signaler;
mod tasks;

use std::time::Duration;

use hostkit_tests::thermos::{HealthCheck, HttpCheck};

/// The length of one of Aurora's seconds in tests of the executor alone.
const SECOND: Duration = Duration::from_millis(20);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The health check of the blog's API jobs; its template sets no initial interval.
fn blog() -> HealthCheck {
    HealthCheck::http(HttpCheck::default())
        .timeout(seconds(5))
        .interval(seconds(5))
        .max_consecutive_failures(5)
}
