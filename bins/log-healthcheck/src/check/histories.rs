//! Random histories of logs on a real filesystem, with a clock that steps, against a model that keeps everything that
//! was written and decides by the rule: a line's time is the one it carries, else the file's time of modification at
//! the first check that finds it. All lines of a file are found again when other bytes stand where it was read, and
//! when it was written to and is as long as before, and those of a copy whose log was replaced before a check saw it.
//!
//! Left out is what cannot be seen: that a file which was never read, because it was too old, was written anew and has
//! grown beyond its former size.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hostkit::cli::parse;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::*;
use world::World;

mod kept;
mod world;

const FRESHNESS: i64 = 100_000;
/// Rotated files that are kept.
const KEPT: usize = 3;
/// A second on Saturday, 21 November 2026.
const START: i64 = 1_795_247_188_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Time passes: so many milliseconds.
    Pass(i64),
    /// The clock is set: so many milliseconds away.
    Set(i64),
    /// A line is written to a stream, in two pieces: the second comes with the next line.
    Write(usize, Line, Option<usize>),
    /// The log gets another name, and a new one is made, or not yet; the writer uses it, or goes on with the old one.
    Rotate {
        stream: usize,
        make: bool,
        reopen: bool,
    },
    /// The log loses what it holds; a copy has it, or nothing.
    Truncate(usize),
    /// The log is written anew, with the bytes it holds or with another line.
    Rewrite {
        stream: usize,
        way: Rewrite,
        same: bool,
    },
    /// The process ends and is started anew.
    Restart,
    /// A child that the run before left behind writes a line to its log.
    Orphan(usize, Line),
    /// The state file is removed.
    Forget,
    Check,
}

#[derive(Debug, Clone, Copy)]
enum Rewrite {
    /// It is truncated, then written.
    Truncate,
    /// It is written over, and stays as long as it is.
    Overwrite,
    /// Another file gets its name.
    Rename,
}

const WAYS: [Rewrite; 3] = [Rewrite::Truncate, Rewrite::Overwrite, Rewrite::Rename];

#[derive(Debug, Clone, Copy)]
enum Line {
    Bare,
    /// Without a time, and always the same.
    Same,
    /// With a time, so many milliseconds away.
    Timed(i64),
    Noise,
    Empty,
}

/// How the histories of one log go: that does not change from day to day.
#[derive(Debug, Clone, Copy)]
struct Style {
    /// Rotation copies and truncates instead of giving another name.
    copies: bool,
    /// The writer appends, and does not write at the place where it was.
    appends: bool,
}

fn line() -> impl Strategy<Value = Line> {
    prop_oneof![
        2 => Just(Line::Bare),
        2 => Just(Line::Same),
        3 => (-150_000..20_000_i64).prop_map(Line::Timed),
        4 => Just(Line::Noise),
        1 => Just(Line::Empty),
    ]
}

fn way() -> impl Strategy<Value = Rewrite> {
    prop::sample::select(&WAYS[..])
}

fn step() -> impl Strategy<Value = Step> {
    let stream = 0..2_usize;
    prop_oneof![
        4 => (1..60_000_i64).prop_map(Step::Pass),
        2 => (60_000..180_000_i64).prop_map(Step::Pass),
        1 => (-200_000..200_000_i64).prop_map(Step::Set),
        9 => (stream.clone(), line(), prop::option::weighted(0.3, 0..12_usize))
            .prop_map(|(stream, line, cut)| Step::Write(stream, line, cut)),
        2 => (stream.clone(), any::<(bool, bool)>())
            .prop_map(|(stream, (make, reopen))| Step::Rotate { stream, make, reopen }),
        1 => stream.clone().prop_map(Step::Truncate),
        1 => (stream.clone(), line()).prop_map(|(stream, line)| Step::Orphan(stream, line)),
        2 => (stream, way(), any::<bool>())
            .prop_map(|(stream, way, same)| Step::Rewrite { stream, way, same }),
        1 => Just(Step::Restart),
        1 => Just(Step::Forget),
        8 => Just(Step::Check),
    ]
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs())
}

/// Lives through a history and returns whether each check was healthy; fails at the first verdict that is not the
/// model's.
fn live(style: Style, steps: &[Step]) -> Result<Vec<bool>, TestCaseError> {
    let mut verdicts = Vec::new();
    let mut world = World::new(style);
    let state = world.home.path().join("state");
    let flags = format!(
        "l --app-directory app --line-pattern {{ --freshness 100 --state-file {}",
        state.display()
    );
    let (args, _) = parse::<Args, _>(flags.split(' ')).unwrap();
    let places = Places {
        here: world.home.path().to_owned(),
        mesos_sandbox: None,
        mesos_directory: None,
    };
    for (index, step) in steps.iter().chain([&Step::Check]).enumerate() {
        match step {
            Step::Pass(millis) | Step::Set(millis) => world.now += millis,
            Step::Write(stream, line, cut) => world.write(*stream, line, *cut),
            Step::Rotate {
                stream,
                make,
                reopen,
            } => world.rotate(*stream, *make, *reopen),
            Step::Truncate(stream) => world.truncate(*stream, false),
            Step::Rewrite { stream, way, same } => world.rewrite(*stream, *way, *same),
            Step::Restart => world.restart(),
            Step::Orphan(stream, line) => world.orphan(*stream, line),
            Step::Forget => world.forget(&state),
            Step::Check => {
                // Each check is a process of its own, as far as what it remembers goes.
                let mut check = Check::new(&args, places.clone(), None).unwrap();
                // The birth of a directory cannot be set, but its time of modification can.
                check.wanted.birth = |metadata| Some(Moment::modified(metadata));
                let directory = File::open(world.directory()).unwrap();
                directory.set_modified(time(world.birth)).unwrap();
                let checked = check.check(Moment(world.now)).unwrap();
                let healthy = world.healthy();
                let found = checked.verdict.reason.word();
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
fn a_log_that_is_written_anew_every_second_is_fresh_until_that_ends() {
    let rewrite = |way, same| {
        [Step::Rewrite {
            stream: 1,
            way,
            same,
        }]
        .to_vec()
    };
    let rotate = Step::Rotate {
        stream: 1,
        make: true,
        reopen: true,
    };
    let ways = WAYS
        .into_iter()
        .flat_map(|way| [rewrite(way, true), rewrite(way, false)]);
    let copied = vec![rotate, Step::Write(1, Line::Same, None)];
    for (write, copies) in ways.map(|way| (way, false)).chain([(copied, true)]) {
        let style = Style {
            copies,
            appends: true,
        };
        let second = [Step::Pass(1000)]
            .into_iter()
            .chain(write.clone())
            .chain([Step::Check]);
        let seconds = second.collect::<Vec<_>>().repeat(250);
        let mut steps = vec![Step::Write(1, Line::Same, None), Step::Check];
        steps.extend(seconds);
        steps.push(Step::Pass(FRESHNESS + 1000));
        let verdicts = live(style, &steps).unwrap();
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
    let style = Style {
        copies: true,
        appends: false,
    };
    let rotate = Step::Rotate {
        stream: 0,
        make: false,
        reopen: false,
    };
    let replace = Step::Rewrite {
        stream: 0,
        way: Rewrite::Rename,
        same: true,
    };
    let write = Step::Write(0, Line::Bare, None);
    let steps = [
        write,
        Step::Check,
        Step::Pass(FRESHNESS + 1),
        Step::Check,
        rotate,
        replace,
    ];
    assert_eq!(live(style, &steps).unwrap(), [true, false, true]);
}

#[test]
fn no_verdict_is_wrong() {
    let long = std::env::var("HOSTKIT_TEST_LONG").is_ok_and(|value| value == "1");
    let config = Config {
        cases: if long { 100_000 } else { 10_000 },
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let style = any::<(bool, bool)>().prop_map(|(copies, appends)| Style { copies, appends });
    let histories = (style, prop::collection::vec(step(), 1..40));
    TestRunner::new(config)
        .run(&histories, |(style, steps)| live(style, &steps).map(drop))
        .unwrap();
}
