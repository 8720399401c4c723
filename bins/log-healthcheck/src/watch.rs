//! One look at the logs: which files there are, what is new in them since the last look, and when that was written.
//!
//! A line's time is the one it carries, else the file's time of modification at the first look that finds it; a line
//! that grew is found again, and so are all lines of a file that was written to and is as long as before. A file whose
//! time of modification is too old is not read: nothing in it can be new enough. The state of the last look and the time are arguments; nothing here is kept.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;

use crate::cli::TimeFrom;
use crate::find::{Logs, each_rotated, is_missing};
use crate::moment::Moment;
use crate::pattern::Pattern;
use crate::scan::{First, Scanner};
use crate::stamp;
use crate::state::{FILES, Id, Known, Mark, State};

/// How far back a log is read when nothing is known of it, and a line's beginning is looked for (bytes).
const LOOK_BACK: u64 = 64 << 20;

/// What is looked for.
#[derive(Debug)]
pub struct Question {
    /// What lines must begin with.
    pub pattern: Pattern,
    /// Whether times without a zone are UTC.
    pub assume_utc: bool,
    /// Whether times in lines count.
    pub time_from: TimeFrom,
    /// How old the newest line may be without a warning.
    pub warning: Option<Duration>,
    /// How old the newest line may be.
    pub freshness: Duration,
}

/// What one look has seen, besides what it leaves for the next.
#[derive(Debug, Default)]
pub struct Seen {
    /// Logs that are there.
    pub logs: usize,
    /// The log that was written to last, and when.
    pub written: Option<(PathBuf, Moment)>,
    /// When the youngest of the logs was made.
    pub birth: Option<Moment>,
    /// A log that was written to lately and could not be read.
    pub unread: Option<(PathBuf, io::Error)>,
    /// A path that is something else than a regular file.
    pub not_a_file: Option<PathBuf>,
    /// What was left out because there is too much of it.
    pub left_out: Option<String>,
    /// Whether no line was in time, and the log that was written to last is UTF-16.
    pub utf16: bool,
    /// Whether a time lay in the future.
    pub future: bool,
    /// How far the newest time in the lines of a log is from the time of its file, if that is more than the freshness.
    pub apart: Option<Duration>,
    /// Bytes read.
    pub read: u64,
}

/// A file that is there.
struct Found {
    metadata: Metadata,
    file: io::Result<File>,
}

/// What a path is to the check.
#[derive(Clone, Copy)]
enum Role<'a> {
    Log,
    /// What rotation has made of a log of which this was known: a copy has that too.
    Rotated(Option<&'a Known>),
}

/// One look in progress.
struct Look<'a> {
    question: &'a Question,
    prior: Option<&'a State>,
    now: Moment,
    scanner: Scanner,
    seen: Seen,
    newest: Option<Moment>,
    files: Vec<Known>,
}

impl Question {
    /// The time that a line carries, if it counts.
    fn time_of(&self, line: &[u8]) -> Option<Moment> {
        match self.time_from {
            TimeFrom::Line => stamp::of(line, self.assume_utc),
            TimeFrom::File => None,
        }
    }

    fn is_fresh(&self, time: Moment, now: Moment) -> bool {
        time.age(now) <= self.freshness
    }

    /// Looks at the logs.
    #[must_use]
    pub fn look(&self, id: u64, logs: &Logs, prior: Option<&State>, now: Moment) -> (State, Seen) {
        let prior = prior.filter(|prior| prior.question == id);
        let mut look = Look {
            question: self,
            prior,
            now,
            scanner: Scanner::new(),
            seen: Seen {
                left_out: logs.left_out.clone(),
                ..Seen::default()
            },
            newest: None,
            files: Vec::new(),
        };
        if let Some(newest) = prior.and_then(|prior| prior.newest) {
            look.seen.future = newest > now;
            look.newest = Some(newest.min(now));
        }
        let until = |log: usize| {
            logs.run
                .filter(|_| logs.earlier.contains(&log))
                .map(|run| run.birth)
        };
        let paths = logs.paths.iter().enumerate();
        let known: Vec<_> = paths
            .map(|(log, path)| look.path(path, Role::Log, until(log)))
            .collect();
        each_rotated(&logs.paths, |log, path| {
            look.path(path, Role::Rotated(known[log]), until(log));
        });
        // One that was not met may only be between two names.
        let gone = prior.map_or(&[][..], |prior| &prior.files);
        for known in gone {
            if look.files.iter().all(|file| file.id != known.id) {
                look.files.push(known.clone());
            }
        }
        look.files.truncate(FILES);
        if !look.newest.is_some_and(|newest| self.is_fresh(newest, now)) {
            look.seen.utf16 = look.is_utf16().unwrap_or(false);
        }
        look.seen.read = look.scanner.read;
        let state = State {
            question: id,
            first_check: prior.map_or(now, |prior| prior.first_check.min(now)),
            newest: look.newest,
            run: logs.run.or(prior.and_then(|prior| prior.run)),
            files: look.files,
        };
        (state, look.seen)
    }
}

impl<'a> Look<'a> {
    /// Looks at what a path leads to, once; returns what was known of it. In the log of an earlier run nothing counts that
    /// was written after `until`, when the current run began: a process that it left behind may still write.
    fn path(&mut self, path: &Path, role: Role<'_>, until: Option<Moment>) -> Option<&'a Known> {
        let found = match open(path) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.seen.not_a_file.get_or_insert_with(|| path.to_owned());
                return None;
            }
            Err(error) => {
                if !is_missing(&error) {
                    self.unread(path, role, error);
                }
                return None;
            }
        };
        let id = Id::of(&found.metadata);
        let prior = self.prior.map_or(&[][..], |prior| &prior.files);
        let known = prior.iter().find(|file| file.id == id);
        if self.files.iter().any(|file| file.id == id) {
            return known;
        }
        let modified = Moment::modified(&found.metadata);
        if let Role::Log = role {
            self.seen.logs += 1;
            self.seen.birth = self.seen.birth.max(id.birth);
            let last = self.seen.written.as_ref();
            let written = until.map_or(modified, |until| modified.min(until));
            if last.is_none_or(|(_, time)| *time < written) {
                self.seen.written = Some((path.to_owned(), written));
            }
        }
        let is_fresh = self.question.is_fresh(modified, self.now);
        if let Role::Rotated(_) = role {
            // What cannot be remembered would be new at every check. Old files leave room for fresh ones.
            let room = if is_fresh { FILES } else { FILES / 2 };
            if self.files.len() >= room {
                if is_fresh {
                    let beside = path.with_file_name("");
                    self.seen.left_out.get_or_insert_with(|| {
                        format!(
                            "more than {FILES} logs written to lately in {}",
                            beside.display()
                        )
                    });
                }
                return known;
            }
        }
        let result = if is_fresh {
            let news = found
                .file
                .and_then(|file| self.news(&file, &found.metadata, known, role, until));
            news.map(Some).unwrap_or_else(|error| {
                self.unread(path, role, error);
                known.cloned()
            })
        } else {
            Some(passed(id, &found.metadata, known))
        };
        self.files.extend(result);
        known
    }

    /// Whether the log that was written to last begins as UTF-16 does: with a byte order mark, or every other byte is NUL.
    fn is_utf16(&mut self) -> Option<bool> {
        let (path, _) = self.seen.written.as_ref()?;
        let file = open(path).ok()??.file.ok()?;
        let beginning = self.scanner.piece(&file, 0, 64).ok()?;
        let is_nul = |odd: usize| {
            let mut bytes = beginning.iter().skip(odd).step_by(2);
            beginning.len() > 3 && bytes.all(|byte| *byte == 0)
        };
        let is_marked = matches!(beginning, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
        Some(is_marked || is_nul(0) != is_nul(1))
    }

    /// Notes that a log cannot be read. What rotation has put away may be nobody's but root's, and is not missed.
    fn unread(&mut self, path: &Path, role: Role<'_>, error: io::Error) {
        if let Role::Log = role {
            self.seen.unread.get_or_insert((path.to_owned(), error));
        }
    }

    /// Reads what is new in a file and returns what is known of it now.
    fn news(
        &mut self,
        file: &File,
        metadata: &Metadata,
        known: Option<&Known>,
        role: Role<'_>,
        until: Option<Moment>,
    ) -> io::Result<Known> {
        let (id, end) = (Id::of(metadata), metadata.len());
        let modified = Moment::modified(metadata);
        let first_look = self.prior.is_none();
        let known = match (known, role) {
            (None, Role::Rotated(_)) if first_look => return Ok(passed(id, metadata, None)),
            (None, Role::Rotated(log)) => log,
            (known, _) => known,
        };
        let known = match known {
            Some(known) if self.holds(file, end, known)? => Some(known),
            _ => None,
        };
        let unchanged = known.filter(|known| known.id == id && known.end == end);
        if let Some(known) = unchanged
            && (known.modified == modified || is_full(file))
        {
            return Ok(known.clone());
        }
        let was_rewritten = unchanged.is_some();
        let (from, first) = match known {
            Some(known) if !was_rewritten => {
                let first = known.line.map_or(First::Behind(LOOK_BACK), First::At);
                (known.end, first)
            }
            _ if (first_look || was_rewritten) && end > LOOK_BACK => {
                (end - LOOK_BACK, First::Behind(0))
            }
            _ => (0, First::At(0)),
        };
        let (question, now) = (self.question, self.now);
        let (mut newest, mut carried, mut future) = (None, None, false);
        let scanned = self
            .scanner
            .lines(file, &question.pattern, (from, end), first, |line| {
                let own = question.time_of(line);
                let time = own.unwrap_or(modified);
                if until.is_some_and(|until| time > until) {
                    return false;
                }
                future |= time > now;
                carried = carried.max(own);
                // One that is still to come is taken for now, once and for all: otherwise a clock that was set
                // back would hide for hours that nothing is written.
                newest = newest.max(Some(time.min(now)));
                newest.is_some_and(|newest| self.question.is_fresh(newest, now))
            })?;
        // The kernel changes a file's time before its length: then it was an appended line whose bytes come now.
        if let Some(known) = unchanged
            && file.metadata()?.len() != end
        {
            return Ok(known.clone());
        }
        self.seen.future |= future;
        self.newest = self.newest.max(newest);
        let apart = carried.map(|carried| carried.distance(modified));
        self.seen.apart = apart
            .filter(|apart| *apart > question.freshness)
            .or(self.seen.apart);
        // One that was shortened under our eyes is read from its beginning the next time.
        let (end, line) = if scanned.shrunk {
            (0, Some(0))
        } else {
            (end, scanned.line)
        };
        let mark = Mark::of(&mut self.scanner, file, end)?;
        Ok(Known {
            id,
            end,
            line,
            mark,
            modified,
        })
    }

    /// Whether a file of `length` bytes still begins with what it held when it was `known`.
    fn holds(&mut self, file: &File, length: u64, known: &Known) -> io::Result<bool> {
        Ok(length >= known.end
            && match known.mark {
                Some(mark) => Mark::of(&mut self.scanner, file, mark.at)? == Some(mark),
                None => true,
            })
    }
}

/// Whether there is no room left where the file is. There a write that fails changes the time of the file, too.
fn is_full(file: &File) -> bool {
    fstatvfs(file).is_ok_and(|system| system.blocks() > 0 && system.blocks_available() == 0)
}

/// What is known of a file that was passed over: all that is in it is too old to count, now and later.
fn passed(id: Id, metadata: &Metadata, known: Option<&Known>) -> Known {
    let end = metadata.len();
    let same = known.filter(|known| known.end <= end);
    Known {
        id,
        end,
        line: same
            .filter(|known| known.end == end)
            .and_then(|known| known.line),
        mark: same.and_then(|known| known.mark),
        modified: Moment::modified(metadata),
    }
}

/// Opens what `path` leads to if it is a regular file. Nothing else is opened: a FIFO would tell its writer that there
/// is a reader, and a device may do anything. Opening, and not only asking, is what makes NFS look at the server.
///
/// # Errors
/// It is not there, or nothing can be known of it.
fn open(path: &Path) -> io::Result<Option<Found>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    match opened {
        Ok(file) => {
            let metadata = file.metadata()?;
            Ok(metadata.is_file().then_some(Found {
                metadata,
                file: Ok(file),
            }))
        }
        Err(error) if is_missing(&error) => Err(error),
        Err(error) => Ok(Some(Found {
            metadata,
            file: Err(error),
        })),
    }
}
