//! Random histories of logs on a real filesystem, with a clock that steps, against a model that keeps everything that
//! was written and decides by the rule: a line's time is the one it carries, else the file's time of modification at
//! the first check that finds it.
//!
//! Left out is what nobody could see: that a file which was never read, because it was too old, was truncated and has
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

const FRESHNESS: i64 = 100_000;
/// Rotated files that are kept.
const KEPT: usize = 3;
/// A second on Saturday, 21 November 2026.
const START: i64 = 1_795_247_188_000;

#[derive(Debug, Clone)]
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
    /// The process ends and is started anew.
    Restart,
    /// The state file is removed.
    Forget,
    Check,
}

#[derive(Debug, Clone)]
enum Line {
    Bare,
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
        3 => Just(Line::Bare),
        3 => (-150_000..20_000_i64).prop_map(Line::Timed),
        4 => Just(Line::Noise),
        1 => Just(Line::Empty),
    ]
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
        1 => stream.prop_map(Step::Truncate),
        1 => Just(Step::Restart),
        1 => Just(Step::Forget),
        8 => Just(Step::Check),
    ]
}

/// A file as the model knows it.
#[derive(Debug, Clone)]
struct Kept {
    path: PathBuf,
    run: u64,
    /// 0 for the log itself.
    rotated: usize,
    stream: usize,
    bytes: Vec<u8>,
    modified: i64,
    /// What checks have seen, or passed over because it was too old.
    seen: usize,
    /// Whether a check has read it.
    read: bool,
    /// Whether it was truncated since it was read.
    cut: bool,
}

impl Kept {
    /// What a check may take for seen.
    fn known(&self) -> usize {
        if self.cut { 0 } else { self.seen }
    }
}

struct Writer {
    /// Into [`World::files`]; `None` when its file is gone, or not made yet.
    file: Option<usize>,
    place: u64,
    /// The rest of the line it is in.
    rest: Vec<u8>,
}

struct World {
    home: TempDir,
    style: Style,
    now: i64,
    count: u64,
    run: u64,
    files: Vec<Kept>,
    writers: [Writer; 2],
    // What the model remembers, as the state file does.
    first_check: Option<i64>,
    newest: Option<i64>,
    seen_run: u64,
}

impl World {
    fn new(style: Style) -> Self {
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        };
        let writer = || Writer {
            file: None,
            place: 0,
            rest: Vec::new(),
        };
        let mut world = Self {
            home: home.unwrap(),
            style,
            now: START,
            count: 0,
            run: 0,
            files: Vec::new(),
            writers: [writer(), writer()],
            first_check: None,
            newest: None,
            seen_run: 0,
        };
        world.start();
        world
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join(format!(".logs/app/{}", self.run))
    }

    fn start(&mut self) {
        fs::create_dir_all(self.directory()).unwrap();
        for stream in 0..2 {
            self.writers[stream].rest.clear();
            self.make(stream);
        }
    }

    /// Makes the log of a stream, and lets the writer use it.
    fn make(&mut self, stream: usize) {
        let path = self.directory().join(["stdout", "stderr"][stream]);
        File::create_new(&path).unwrap();
        let run = self.run;
        self.writers[stream].file = Some(self.files.len());
        self.writers[stream].place = 0;
        let (bytes, modified) = (Vec::new(), self.now);
        self.files.push(Kept {
            path,
            run,
            rotated: 0,
            stream,
            bytes,
            modified,
            seen: 0,
            read: false,
            cut: false,
        });
        self.touch(self.files.len() - 1);
    }

    fn touch(&mut self, index: usize) {
        let kept = &mut self.files[index];
        kept.modified = self.now;
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now.unsigned_abs());
        let file = OpenOptions::new().write(true).open(&kept.path).unwrap();
        file.set_modified(time).unwrap();
    }

    fn write(&mut self, stream: usize, line: &Line, cut: Option<usize>) {
        self.count += 1;
        let text = match line {
            Line::Bare => format!("{{\"n\":{}}}\n", self.count),
            Line::Timed(away) => {
                let time = Duration::from_millis((self.now + away).unsigned_abs());
                let time = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + time);
                format!("{{\"n\":{},\"@timestamp\":\"{time}\"}}\n", self.count)
            }
            Line::Noise => format!("noise {} {{\n", self.count),
            Line::Empty => "\n".to_owned(),
        };
        let writer = &mut self.writers[stream];
        let mut bytes = std::mem::take(&mut writer.rest);
        // The cut is in the new line, counted from its end where its time is.
        let cut = text.len() - cut.unwrap_or(0).min(text.len() - 1);
        bytes.extend_from_slice(&text.as_bytes()[..cut]);
        writer.rest = text.as_bytes()[cut..].to_vec();
        match (self.writers[stream].file, self.log(stream)) {
            (Some(_), _) => {}
            // Its file was the oldest, and is gone: it begins with the new one at last.
            (None, Some(log)) => {
                self.writers[stream].file = Some(log);
                self.writers[stream].place = self.files[log].bytes.len() as u64;
            }
            (None, None) => self.make(stream),
        }
        let writer = &mut self.writers[stream];
        let index = writer.file.unwrap();
        let kept = &mut self.files[index];
        let place = if self.style.appends {
            kept.bytes.len() as u64
        } else {
            writer.place
        };
        let end = place as usize + bytes.len();
        kept.bytes.resize(kept.bytes.len().max(end), 0);
        kept.bytes[place as usize..end].copy_from_slice(&bytes);
        writer.place = end as u64;
        let file = OpenOptions::new().write(true).open(&kept.path).unwrap();
        file.write_all_at(&bytes, place).unwrap();
        self.touch(index);
    }

    /// The log itself, if it is there.
    fn log(&self, stream: usize) -> Option<usize> {
        let here = |kept: &Kept| kept.run == self.run && kept.stream == stream && kept.rotated == 0;
        self.files.iter().position(here)
    }

    /// Counts the rotated files of a stream up, for which the oldest is removed.
    fn shift(&mut self, stream: usize) {
        let run = self.run;
        let ours = |kept: &Kept| kept.run == run && kept.stream == stream;
        let oldest = |kept: &Kept| ours(kept) && kept.rotated == KEPT;
        if let Some(index) = self.files.iter().position(oldest) {
            fs::remove_file(&self.files[index].path).unwrap();
            // Its place in the list stays: writers count on it.
            self.files[index].run = u64::MAX;
            self.files[index].path = PathBuf::new();
            for writer in &mut self.writers {
                writer.file = writer.file.filter(|file| *file != index);
            }
        }
        let base = self.directory().join(["stdout", "stderr"][stream]);
        for rotated in (1..KEPT).rev() {
            for kept in self
                .files
                .iter_mut()
                .filter(|kept| ours(kept) && kept.rotated == rotated)
            {
                kept.rotate(&base);
            }
        }
    }

    fn rotate(&mut self, stream: usize, make: bool, reopen: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        if self.style.copies {
            return self.truncate(stream, true);
        }
        self.shift(stream);
        let base = self.files[log].path.clone();
        self.files[log].rotate(&base);
        if make {
            let (file, place) = (self.writers[stream].file, self.writers[stream].place);
            self.make(stream);
            if !reopen {
                (self.writers[stream].file, self.writers[stream].place) = (file, place);
            }
        } else if reopen {
            self.writers[stream].file = None;
        }
    }

    fn truncate(&mut self, stream: usize, copy: bool) {
        let Some(log) = self.log(stream) else {
            return;
        };
        if self.files[log].seen > 0 && !self.files[log].read {
            return;
        }
        if copy {
            self.shift(stream);
            let mut kept = self.files[log].clone();
            kept.seen = kept.known();
            (kept.read, kept.cut) = (false, false);
            let base = kept.path.clone();
            kept.path = base.with_extension("1");
            kept.rotated = 1;
            fs::copy(&base, &kept.path).unwrap();
            self.files.push(kept);
            self.touch(self.files.len() - 1);
        }
        let kept = &mut self.files[log];
        kept.bytes.clear();
        kept.cut |= kept.read;
        OpenOptions::new()
            .write(true)
            .open(&kept.path)
            .unwrap()
            .set_len(0)
            .unwrap();
        self.touch(log);
    }

    fn forget(&mut self, state: &Path) {
        let _ = fs::remove_file(state);
        (self.first_check, self.newest) = (None, None);
        for kept in &mut self.files {
            (kept.seen, kept.read, kept.cut) = (0, false, false);
        }
    }

    /// Whether the rule calls this healthy.
    fn healthy(&mut self) -> bool {
        let now = self.now;
        let first = self.first_check.is_none();
        let first_check = self.first_check.unwrap_or(now).min(now);
        let since = if first { self.run } else { self.seen_run };
        let mut newest = self.newest;
        let mut logs = 0;
        let mut written = false;
        for kept in self
            .files
            .iter_mut()
            .filter(|kept| (since..u64::MAX).contains(&kept.run))
        {
            let fresh = now - kept.modified <= FRESHNESS;
            if kept.rotated == 0 {
                logs += 1;
                written |= fresh;
            }
            if !fresh || first && kept.rotated > 0 {
                kept.read &= !(kept.cut && kept.bytes.len() < kept.seen);
                kept.cut &= kept.read;
                kept.seen = kept.bytes.len();
                continue;
            }
            let seen = kept.known();
            newest = newest.max(newest_of(&kept.bytes, seen, kept.modified, now));
            kept.seen = kept.bytes.len();
            kept.read |= kept.seen > seen;
            kept.read &= kept.seen > 0;
            kept.cut = false;
        }
        newest = newest.map(|newest| newest.min(now));
        (self.first_check, self.newest, self.seen_run) = (Some(first_check), newest, self.run);
        match newest {
            Some(newest) if now - newest <= FRESHNESS => true,
            Some(_) => false,
            None => logs > 0 && written && now - first_check <= FRESHNESS,
        }
    }
}

impl Kept {
    fn rotate(&mut self, base: &Path) {
        self.rotated += 1;
        let path = base.with_extension(self.rotated.to_string());
        fs::rename(&self.path, &path).unwrap();
        self.path = path;
    }
}

/// The time of the newest line with bytes behind `seen`.
fn newest_of(bytes: &[u8], seen: usize, modified: i64, now: i64) -> Option<i64> {
    let mut newest = None;
    let mut place = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let start = place;
        place += line.len();
        let text = String::from_utf8_lossy(line);
        let text = if start == 0 {
            text.trim_start_matches('\0')
        } else {
            &text
        };
        if place <= seen || !text.starts_with('{') {
            continue;
        }
        let time = text
            .split_once("\"@timestamp\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let time = time.map(|(time, _)| {
            let time = humantime::parse_rfc3339(time).unwrap();
            time.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_millis() as i64
        });
        newest = newest.max(Some(time.unwrap_or(modified).min(now)));
    }
    newest
}

/// Lives through a history; fails at the first verdict that is not the model's.
fn live(style: Style, steps: &[Step]) -> Result<(), TestCaseError> {
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
            Step::Restart => {
                world.run += 1;
                world.start();
            }
            Step::Forget => world.forget(&state),
            Step::Check => {
                // Each check is a process of its own, as far as what it remembers goes.
                let mut check = Check::new(&args, places.clone(), None).unwrap();
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
            }
        }
    }
    Ok(())
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
        .run(&histories, |(style, steps)| live(style, &steps))
        .unwrap();
}
