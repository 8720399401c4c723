//! Aurora's contract with a task: how it is checked and how it is stopped. First that the harness plays Aurora right,
//! row by row, against servers that say what a row needs; then that the health checkers keep the contract.

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

/// How long one of Aurora's seconds is where nobody else has to keep up.
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
