//! The counting of check results in both releases. The cases of the latest are those of Aurora's own tests
//! (`test_health_checker.py`), edge cases of its arithmetic, and the settings of the blog.

use hostkit_tests::thermos::AuroraRelease::{self, Last, V0_15};
use hostkit_tests::thermos::{HealthCheck, HealthCounters, HttpCheck};

use super::{blog, seconds};

/// The state after each result, as a letter: starting (`.`), running (`r`), dead (`D`). Results are letters, too:
/// success (`s`), failure (`f`). A missing last letter means that no further check was made.
fn trace(contract: AuroraRelease, check: &HealthCheck, results: &str) -> String {
    let mut counters = HealthCounters::new(contract, check);
    let mut seen = String::new();
    for result in results.chars() {
        assert!(counters.death_reason().is_none(), "dead after {seen}");
        assert!(counters.should_check(), "too late after {seen}");
        counters.count(&match result {
            's' => Ok(()),
            _ => Err("sick".to_owned()),
        });
        seen.push(match (counters.death_reason(), counters.running()) {
            (Some(_), _) => 'D',
            (None, true) => 'r',
            (None, false) => '.',
        });
    }
    if counters.death_reason().is_none() && !counters.should_check() {
        let why = counters.death_reason();
        assert_eq!(why, Some("Not enough successful health checks in time."));
        seen.push('D');
    }
    seen
}

/// Initial interval and interval in seconds, tolerated failures, required successes.
fn check(initial: u64, interval: u64, failures: u32, successes: u32) -> HealthCheck {
    HealthCheck::http(HttpCheck::default())
        .initial_interval(seconds(initial))
        .interval(seconds(interval))
        .max_consecutive_failures(failures)
        .min_consecutive_successes(successes)
}

#[track_caller]
fn table(contract: AuroraRelease, rows: &[(HealthCheck, &str, &str)]) {
    for (check, results, expected) in rows {
        let found = trace(contract, check, results);
        assert_eq!(&found, expected, "{contract:?}: {results} with {check:?}");
    }
}

#[test]
fn latest_release_counts_as_its_own_unit_tests_do() {
    let twice = || check(20, 10, 0, 1);
    table(
        Last,
        &[
            (twice(), "s", "r"),
            (twice(), "fs", ".r"),
            // A forgiven failure is not counted, running or not.
            (twice(), "sf", "rr"),
            (twice(), "sff", "rrD"),
            (twice(), "fff", "..D"),
            (twice(), "ffs", "..r"),
            (check(20, 10, 4, 1), "ffffffsfffff", "......rrrrrD"),
            (check(0, 10, 0, 1), "f", "D"),
            (check(15, 10, 2, 2), "ssfff", ".rrrD"),
            (check(15, 10, 2, 4), "fffff", "....D"),
            // One success of two within the grace.
            (check(20, 10, 0, 2), "fss", "..r"),
            (check(20, 10, 0, 2), "sfss", "...r"),
        ],
    );
}

#[test]
fn latest_release_counts_edge_cases() {
    table(
        Last,
        &[
            // A part of an interval forgives a whole attempt: ceil(21 / 10) = 3, ceil(1 / 10) = 1.
            (check(21, 10, 0, 1), "ffff", "...D"),
            (check(1, 10, 0, 1), "ff", ".D"),
            (check(30, 10, 0, 1), "ffff", "...D"),
            // `max` consecutive failures are tolerated, one more is not.
            (check(0, 10, 0, 1), "sf", "rD"),
            (check(0, 10, 2, 1), "sfff", "rrrD"),
            (check(0, 10, 2, 1), "sffsffsfff", "rrrrrrrrrD"),
            // The task is dead once the required successes cannot be reached any more, before too many consecutive
            // failures.
            (check(0, 10, 2, 3), "fsf", "..D"),
            // But not with one attempt left.
            (check(0, 10, 1, 2), "fsfs", "....D"),
            // One attempt more than the sum, because the limit is evaluated before a check.
            (check(10, 10, 1, 2), "fsfss", "....r"),
            (check(10, 10, 1, 2), "fsfsf", ".....D"),
            // A running task may flap without end.
            (check(0, 10, 1, 1), "sfsfsfsfsfsfsff", "rrrrrrrrrrrrrrD"),
            // Successes within the grace make it running early.
            (check(100, 10, 0, 2), "ss", ".r"),
            (check(100, 10, 0, 2), "ssffffffff", ".rrrrrrrrr"),
        ],
    );
}

#[test]
fn release_0_15_counts_failures_after_initial_interval() {
    // The initial interval is slept through before, so it does not matter here.
    for initial in [15, 120] {
        let check = |failures| check(initial, 10, failures, 1);
        table(
            V0_15,
            &[
                (check(0), "s", "r"),
                (check(0), "f", "D"),
                (check(0), "ssssf", "rrrrD"),
                (check(1), "ff", "rD"),
                (check(1), "fsfsfsff", "rrrrrrrD"),
                (check(5), "ffffff", "rrrrrD"),
                (check(5), "fffffsffffff", "rrrrrrrrrrrD"),
                // It has no number of required successes: this task is never stopped.
                (check(5), "fffffsfffffsfffff", "rrrrrrrrrrrrrrrrr"),
            ],
        );
    }
}

#[test]
fn release_0_15_without_initial_interval_decides_by_one_check() {
    let check = check(0, 10, 5, 1);
    let sick = Err("sick".to_owned());
    let mut counters = HealthCounters::new(V0_15, &check);
    counters.count_at_once(&sick);
    assert_eq!(counters.death_reason(), Some("sick"));
    let mut counters = HealthCounters::new(V0_15, &check);
    counters.count_at_once(&Ok(()));
    counters.count(&sick);
    assert_eq!((counters.death_reason(), counters.failures()), (None, 1));
}

#[test]
fn settings_of_blog_give_expected_states() {
    let log = || check(120, 60, 3, 1);
    table(
        Last,
        &[
            (blog(), "fffffffff", "........D"),
            (blog(), "sffffffff", "rrrrrrrrD"),
            (blog(), "ssssffffff", "rrrrrrrrrD"),
            (blog(), "fffffffs", ".......r"),
            (log(), "ffffff", ".....D"),
            (log(), "ssfffsffff", "rrrrrrrrrD"),
        ],
    );
    table(
        V0_15,
        &[
            (blog(), "ffffff", "rrrrrD"),
            (blog(), "fffffsffffff", "rrrrrrrrrrrD"),
            (log(), "ffff", "rrrD"),
        ],
    );
}
