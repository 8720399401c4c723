//! Random histories of logs on a real filesystem, with a clock that steps, against a model that records everything that
//! was written and applies the rule: a line's time is the one it carries, else the file's modification time at the
//! first check that finds it. All lines of a file are found again if its contents differ where they were read before,
//! if it was written to and has the same length, or if it is a copy whose log was replaced before a check saw it.
//!
//! Left out is what cannot be detected: a file that was never read, because it was too old, is rewritten and grows
//! beyond its former size.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hostkit::cli::parse;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::*;
use log_model::LogModel;

mod log_model;
mod model_file;

const FRESHNESS: i64 = 100_000;
/// The number of rotated files.
const MAX_ROTATED: usize = 3;
/// A second on Saturday, 21 November 2026.
const START: i64 = 1_795_247_188_000;

#[derive(Debug, Clone, Copy)]
enum HistoryStep {
    /// Time passes (milliseconds).
    Pass(i64),
    /// The clock is set (by milliseconds).
    Set(i64),
    /// A line is written to a stream, in two pieces: the second precedes the next line.
    Write(usize, LogLine, Option<usize>),
    /// The log is renamed, and a new one is created or not; the writer reopens it or keeps the old one.
    Rotate {
        stream: usize,
        make: bool,
        reopen: bool,
    },
    /// The log is truncated, without a copy.
    Truncate(usize),
    /// The log is rewritten, with the same bytes or another line.
    Rewrite {
        stream: usize,
        way: RewriteMethod,
        same: bool,
    },
    /// The process restarts.
    Restart,
    /// A child of the previous run writes a line to its log.
    Orphan(usize, LogLine),
    /// The state file is removed.
    Forget,
    Check,
}

#[derive(Debug, Clone, Copy)]
enum RewriteMethod {
    /// Truncated, then written.
    Truncate,
    /// Overwritten with the same length.
    Overwrite,
    /// Replaced by renaming.
    Rename,
}

const WAYS: [RewriteMethod; 3] = [
    RewriteMethod::Truncate,
    RewriteMethod::Overwrite,
    RewriteMethod::Rename,
];

#[derive(Debug, Clone, Copy)]
enum LogLine {
    Bare,
    /// Without a time, always equal.
    Same,
    /// With a time, this many milliseconds from now.
    Timed(i64),
    Noise,
    Empty,
}

/// How a log is rotated and written, constant over a history.
#[derive(Debug, Clone, Copy)]
struct RotationStyle {
    /// Rotation copies and truncates instead of renaming.
    copies: bool,
    /// The writer appends instead of writing at its own position.
    appends: bool,
}

fn line() -> impl Strategy<Value = LogLine> {
    prop_oneof![
        2 => Just(LogLine::Bare),
        2 => Just(LogLine::Same),
        3 => (-150_000..20_000_i64).prop_map(LogLine::Timed),
        4 => Just(LogLine::Noise),
        1 => Just(LogLine::Empty),
    ]
}

fn way() -> impl Strategy<Value = RewriteMethod> {
    prop::sample::select(&WAYS[..])
}

fn step() -> impl Strategy<Value = HistoryStep> {
    let stream = 0..2_usize;
    prop_oneof![
        4 => (1..60_000_i64).prop_map(HistoryStep::Pass),
        2 => (60_000..180_000_i64).prop_map(HistoryStep::Pass),
        1 => (-200_000..200_000_i64).prop_map(HistoryStep::Set),
        9 => (stream.clone(), line(), prop::option::weighted(0.3, 0..12_usize))
            .prop_map(|(stream, line, cut)| HistoryStep::Write(stream, line, cut)),
        2 => (stream.clone(), any::<(bool, bool)>())
            .prop_map(|(stream, (make, reopen))| HistoryStep::Rotate { stream, make, reopen }),
        1 => stream.clone().prop_map(HistoryStep::Truncate),
        1 => (stream.clone(), line()).prop_map(|(stream, line)| HistoryStep::Orphan(stream, line)),
        2 => (stream, way(), any::<bool>())
            .prop_map(|(stream, way, same)| HistoryStep::Rewrite { stream, way, same }),
        1 => Just(HistoryStep::Restart),
        1 => Just(HistoryStep::Forget),
        8 => Just(HistoryStep::Check),
    ]
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs())
}

/// Runs a history and returns whether each check was healthy; fails at the first verdict that differs from the model's.
fn run_history(style: RotationStyle, steps: &[HistoryStep]) -> Result<Vec<bool>, TestCaseError> {
    let mut verdicts = Vec::new();
    let mut model = LogModel::new(style);
    let state = model.home.path().join("state");
    let flags = format!(
        "l --app-directory app --line-pattern {{ --freshness 100 --state-file {}",
        state.display()
    );
    let (args, _) = parse::<Args, _>(flags.split(' ')).unwrap();
    let locations = SandboxLocations {
        here: model.home.path().to_owned(),
        mesos_sandbox: None,
        mesos_directory: None,
    };
    for (index, step) in steps.iter().chain([&HistoryStep::Check]).enumerate() {
        match step {
            HistoryStep::Pass(millis) | HistoryStep::Set(millis) => model.now += millis,
            HistoryStep::Write(stream, line, cut) => model.write(*stream, line, *cut),
            HistoryStep::Rotate {
                stream,
                make,
                reopen,
            } => model.rotate(*stream, *make, *reopen),
            HistoryStep::Truncate(stream) => model.truncate(*stream, false),
            HistoryStep::Rewrite { stream, way, same } => model.rewrite(*stream, *way, *same),
            HistoryStep::Restart => model.restart(),
            HistoryStep::Orphan(stream, line) => model.orphan(*stream, line),
            HistoryStep::Forget => model.forget(&state),
            HistoryStep::Check => {
                // Each check has only the state file, like a process of its own.
                let mut check = LogCheck::new(&args, locations.clone(), None).unwrap();
                // The birth time of a directory cannot be set, but its modification time can.
                check.selector.birth = |metadata| Some(WallTime::modified(metadata));
                let directory = File::open(model.directory()).unwrap();
                directory.set_modified(time(model.birth)).unwrap();
                let checked = check.check(WallTime(model.now)).unwrap();
                let healthy = model.is_healthy();
                let found = checked.verdict.reason.as_str();
                prop_assert!(checked.saved.is_ok() && found != "unread");
                prop_assert_eq!(
                    found == "ok",
                    healthy,
                    "step {}: {}",
                    index,
                    checked.verdict.message
                );
                verdicts.push(healthy);
            }
        }
    }
    Ok(verdicts)
}

#[test]
fn log_rewritten_every_second_is_fresh_until_that_ends() {
    let rewrite = |way, same| {
        [HistoryStep::Rewrite {
            stream: 1,
            way,
            same,
        }]
        .to_vec()
    };
    let rotate = HistoryStep::Rotate {
        stream: 1,
        make: true,
        reopen: true,
    };
    let ways = WAYS
        .into_iter()
        .flat_map(|way| [rewrite(way, true), rewrite(way, false)]);
    let copied = vec![rotate, HistoryStep::Write(1, LogLine::Same, None)];
    for (write, copies) in ways.map(|way| (way, false)).chain([(copied, true)]) {
        let style = RotationStyle {
            copies,
            appends: true,
        };
        let second = [HistoryStep::Pass(1000)]
            .into_iter()
            .chain(write.clone())
            .chain([HistoryStep::Check]);
        let seconds = second.collect::<Vec<_>>().repeat(250);
        let mut steps = vec![
            HistoryStep::Write(1, LogLine::Same, None),
            HistoryStep::Check,
        ];
        steps.extend(seconds);
        steps.push(HistoryStep::Pass(FRESHNESS + 1000));
        let verdicts = run_history(style, &steps).unwrap();
        let (last, before) = verdicts.split_last().unwrap();
        assert!(
            before.iter().all(|healthy| *healthy),
            "{write:?}: {before:?}"
        );
        assert!(!last, "{write:?}");
    }
}

#[test]
fn copy_whose_log_was_replaced_before_a_check_is_new() {
    let style = RotationStyle {
        copies: true,
        appends: false,
    };
    let rotate = HistoryStep::Rotate {
        stream: 0,
        make: false,
        reopen: false,
    };
    let replace = HistoryStep::Rewrite {
        stream: 0,
        way: RewriteMethod::Rename,
        same: true,
    };
    let write = HistoryStep::Write(0, LogLine::Bare, None);
    let steps = [
        write,
        HistoryStep::Check,
        HistoryStep::Pass(FRESHNESS + 1),
        HistoryStep::Check,
        rotate,
        replace,
    ];
    assert_eq!(run_history(style, &steps).unwrap(), [true, false, true]);
}

#[test]
fn verdicts_over_random_histories_agree_with_the_model() {
    let long = std::env::var("HOSTKIT_TEST_LONG").is_ok_and(|value| value == "1");
    let config = Config {
        cases: if long { 100_000 } else { 10_000 },
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let style =
        any::<(bool, bool)>().prop_map(|(copies, appends)| RotationStyle { copies, appends });
    let histories = (style, prop::collection::vec(step(), 1..40));
    TestRunner::new(config)
        .run(&histories, |(style, steps)| {
            run_history(style, &steps).map(drop)
        })
        .unwrap();
}
