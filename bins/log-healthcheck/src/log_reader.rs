//! One pass over the logs: which files exist, which lines are new since the last check, and when they were written.
//!
//! A line's time is the one it carries, else the file's modification time at the first check that finds it. A line that
//! grew is found again, and so are all lines of a file that was written to and has the same length. A file with a
//! modification time that is too old is not read: nothing in it can be new enough. The last state and the time are
//! arguments.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;

use crate::check_state::{CheckState, FileFingerprint, FileId, FileState, MAX_FILES};
use crate::cli::TimeSource;
use crate::line_pattern::LinePattern;
use crate::line_scanner::{FirstLine, LineScanner};
use crate::line_time;
use crate::log_files::{LogFiles, for_each_rotated, is_missing};
use crate::wall_time::WallTime;

/// How far back to read an unknown log, and to search for the start of a line (bytes).
const MAX_LOOK_BACK: u64 = 64 << 20;

/// The criteria of a check.
#[derive(Debug)]
pub(crate) struct CheckCriteria {
    pub(crate) pattern: LinePattern,
    pub(crate) assume_utc: bool,
    pub(crate) time_from: TimeSource,
    /// The age of the newest line beyond which there is a warning.
    pub(crate) warning: Option<Duration>,
    /// The maximum age of the newest line.
    pub(crate) freshness: Duration,
}

/// The result of a pass, besides the next state.
#[derive(Debug, Default)]
pub(crate) struct LogSummary {
    /// The number of existing logs.
    pub(crate) logs: usize,
    /// The log that was written to last, and when.
    pub(crate) last_written: Option<(PathBuf, WallTime)>,
    /// The creation time of the newest log.
    pub(crate) birth: Option<WallTime>,
    /// A recently written log that could not be read.
    pub(crate) unreadable: Option<(PathBuf, io::Error)>,
    /// A path that is not a regular file.
    pub(crate) not_a_file: Option<PathBuf>,
    /// Description of logs left out because there are too many.
    pub(crate) omitted: Option<String>,
    /// Whether no line was in time and the last written log is UTF-16.
    pub(crate) is_utf16: bool,
    pub(crate) has_future_time: bool,
    /// The difference between the newest time in a log and its modification time, if larger than the freshness.
    pub(crate) time_offset: Option<Duration>,
    pub(crate) read: u64,
}

/// An existing log.
struct OpenLog {
    metadata: Metadata,
    file: io::Result<File>,
}

#[derive(Clone, Copy)]
enum LogRole<'a> {
    Current,
    /// A rotated file of a log with this state: a copy has the same contents.
    Rotated(Option<&'a FileState>),
}

/// A pass in progress.
struct LogReader<'a> {
    criteria: &'a CheckCriteria,
    prior: Option<&'a CheckState>,
    now: WallTime,
    scanner: LineScanner,
    summary: LogSummary,
    newest: Option<WallTime>,
    files: Vec<FileState>,
}

impl CheckCriteria {
    /// The time that a line carries, if it counts.
    fn line_time(&self, line: &[u8]) -> Option<WallTime> {
        match self.time_from {
            TimeSource::Line => line_time::parse_line_time(line, self.assume_utc),
            TimeSource::File => None,
        }
    }

    fn is_fresh(&self, time: WallTime, now: WallTime) -> bool {
        time.age(now) <= self.freshness
    }

    /// Reads the logs. Returns the next state and the result.
    pub(crate) fn read_logs(
        &self,
        criteria_hash: u64,
        logs: &LogFiles,
        prior: Option<&CheckState>,
        now: WallTime,
    ) -> (CheckState, LogSummary) {
        let prior = prior.filter(|prior| prior.criteria_hash == criteria_hash);
        let mut reader = LogReader {
            criteria: self,
            prior,
            now,
            scanner: LineScanner::new(),
            summary: LogSummary {
                omitted: logs.omitted.clone(),
                ..LogSummary::default()
            },
            newest: None,
            files: Vec::new(),
        };
        if let Some(newest) = prior.and_then(|prior| prior.newest) {
            reader.summary.has_future_time = newest > now;
            reader.newest = Some(newest.min(now));
        }
        let until = |log: usize| {
            logs.run
                .filter(|_| logs.earlier_runs.contains(&log))
                .map(|run| run.birth)
        };
        let paths = logs.paths.iter().enumerate();
        let previous: Vec<_> = paths
            .map(|(log, path)| reader.read_path(path, LogRole::Current, until(log)))
            .collect();
        for_each_rotated(&logs.paths, |log, path| {
            reader.read_path(path, LogRole::Rotated(previous[log]), until(log));
        });
        // A file that was not met may be between two names.
        let earlier_files = prior.map_or(&[][..], |prior| &prior.files);
        for previous in earlier_files {
            if reader.files.iter().all(|file| file.id != previous.id) {
                reader.files.push(previous.clone());
            }
        }
        reader.files.truncate(MAX_FILES);
        if !reader
            .newest
            .is_some_and(|newest| self.is_fresh(newest, now))
        {
            reader.summary.is_utf16 = reader.detect_utf16().unwrap_or(false);
        }
        reader.summary.read = reader.scanner.read;
        let state = CheckState {
            criteria_hash,
            first_check: prior.map_or(now, |prior| prior.first_check.min(now)),
            newest: reader.newest,
            run: logs.run.or(prior.and_then(|prior| prior.run)),
            files: reader.files,
        };
        (state, reader.summary)
    }
}

impl<'a> LogReader<'a> {
    /// Reads the file at `path` once; returns its previous state. In the log of an earlier run nothing written after
    /// `until`, the start of the current run, counts: a process that it left behind may still write.
    fn read_path(
        &mut self,
        path: &Path,
        role: LogRole<'_>,
        until: Option<WallTime>,
    ) -> Option<&'a FileState> {
        let found = match open_log(path) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.summary
                    .not_a_file
                    .get_or_insert_with(|| path.to_owned());
                return None;
            }
            Err(error) => {
                if !is_missing(&error) {
                    self.record_unreadable(path, role, error);
                }
                return None;
            }
        };
        let id = FileId::from_metadata(&found.metadata);
        let prior = self.prior.map_or(&[][..], |prior| &prior.files);
        let previous = prior.iter().find(|file| file.id == id);
        if self.files.iter().any(|file| file.id == id) {
            return previous;
        }
        let modified = WallTime::modified(&found.metadata);
        if let LogRole::Current = role {
            self.summary.logs += 1;
            self.summary.birth = self.summary.birth.max(id.birth);
            let last = self.summary.last_written.as_ref();
            let last_written = until.map_or(modified, |until| modified.min(until));
            if last.is_none_or(|(_, time)| *time < last_written) {
                self.summary.last_written = Some((path.to_owned(), last_written));
            }
        }
        let is_fresh = self.criteria.is_fresh(modified, self.now);
        if let LogRole::Rotated(_) = role {
            // A file that cannot be stored would be new at every check. Old files leave room for fresh ones.
            let room = if is_fresh { MAX_FILES } else { MAX_FILES / 2 };
            if self.files.len() >= room {
                if is_fresh {
                    let beside = path.with_file_name("");
                    self.summary.omitted.get_or_insert_with(|| {
                        format!(
                            "more than {MAX_FILES} recently written logs in {}",
                            beside.display()
                        )
                    });
                }
                return previous;
            }
        }
        let result = if is_fresh {
            let state = found.file.and_then(|file| {
                self.read_new_lines(&file, &found.metadata, previous, role, until)
            });
            state.map(Some).unwrap_or_else(|error| {
                self.record_unreadable(path, role, error);
                previous.cloned()
            })
        } else {
            Some(skip_file(id, &found.metadata, previous))
        };
        self.files.extend(result);
        previous
    }

    /// Whether the last written log begins as UTF-16: with a byte order mark, or with every other byte NUL.
    fn detect_utf16(&mut self) -> Option<bool> {
        let (path, _) = self.summary.last_written.as_ref()?;
        let file = open_log(path).ok()??.file.ok()?;
        let start = self.scanner.read_chunk(&file, 0, 64).ok()?;
        let is_nul = |odd: usize| {
            let mut bytes = start.iter().skip(odd).step_by(2);
            start.len() > 3 && bytes.all(|byte| *byte == 0)
        };
        let has_byte_order_mark = matches!(start, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
        Some(has_byte_order_mark || is_nul(0) != is_nul(1))
    }

    /// Records a log that cannot be read. A rotated file may belong to root alone, and is not needed.
    fn record_unreadable(&mut self, path: &Path, role: LogRole<'_>, error: io::Error) {
        if let LogRole::Current = role {
            self.summary
                .unreadable
                .get_or_insert((path.to_owned(), error));
        }
    }

    /// Reads the new part of a file and returns its next state.
    fn read_new_lines(
        &mut self,
        file: &File,
        metadata: &Metadata,
        previous: Option<&FileState>,
        role: LogRole<'_>,
        until: Option<WallTime>,
    ) -> io::Result<FileState> {
        let (id, end) = (FileId::from_metadata(metadata), metadata.len());
        let modified = WallTime::modified(metadata);
        let is_first_check = self.prior.is_none();
        let previous = match (previous, role) {
            (None, LogRole::Rotated(_)) if is_first_check => {
                return Ok(skip_file(id, metadata, None));
            }
            (None, LogRole::Rotated(log)) => log,
            (previous, _) => previous,
        };
        let previous = match previous {
            Some(previous) if self.has_same_prefix(file, end, previous)? => Some(previous),
            _ => None,
        };
        let unchanged = previous.filter(|previous| previous.id == id && previous.end == end);
        if let Some(previous) = unchanged
            && (previous.modified == modified || is_disk_full(file))
        {
            return Ok(previous.clone());
        }
        let was_rewritten = unchanged.is_some();
        let (from, first) = match previous {
            Some(previous) if !was_rewritten => {
                let first = previous
                    .line
                    .map_or(FirstLine::Behind(MAX_LOOK_BACK), FirstLine::At);
                (previous.end, first)
            }
            _ if (is_first_check || was_rewritten) && end > MAX_LOOK_BACK => {
                (end - MAX_LOOK_BACK, FirstLine::Behind(0))
            }
            _ => (0, FirstLine::At(0)),
        };
        let (criteria, now) = (self.criteria, self.now);
        let (mut newest, mut newest_carried, mut future) = (None, None, false);
        let scanned =
            self.scanner
                .scan_lines(file, &criteria.pattern, (from, end), first, |line| {
                    let own = criteria.line_time(line);
                    let time = own.unwrap_or(modified);
                    if until.is_some_and(|until| time > until) {
                        return false;
                    }
                    future |= time > now;
                    newest_carried = newest_carried.max(own);
                    // A future time counts as now, once: otherwise a clock that was set back would hide for hours that
                    // nothing is written.
                    newest = newest.max(Some(time.min(now)));
                    newest.is_some_and(|newest| self.criteria.is_fresh(newest, now))
                })?;
        // The kernel changes the time of a file before its length: an appended line is about to appear.
        if let Some(previous) = unchanged
            && file.metadata()?.len() != end
        {
            return Ok(previous.clone());
        }
        self.summary.has_future_time |= future;
        self.newest = self.newest.max(newest);
        let time_offset = newest_carried.map(|newest_carried| newest_carried.distance(modified));
        self.summary.time_offset = time_offset
            .filter(|time_offset| *time_offset > criteria.freshness)
            .or(self.summary.time_offset);
        // A file truncated during the scan is read from its beginning the next time.
        let (end, line) = if scanned.is_truncated {
            (0, Some(0))
        } else {
            (end, scanned.line)
        };
        let fingerprint = FileFingerprint::compute(&mut self.scanner, file, end)?;
        Ok(FileState {
            id,
            end,
            line,
            fingerprint,
            modified,
        })
    }

    /// Whether a file of `length` bytes still begins with the contents it had in the state `previous`.
    fn has_same_prefix(
        &mut self,
        file: &File,
        length: u64,
        previous: &FileState,
    ) -> io::Result<bool> {
        Ok(length >= previous.end
            && match previous.fingerprint {
                Some(fingerprint) => {
                    FileFingerprint::compute(&mut self.scanner, file, fingerprint.at)?
                        == Some(fingerprint)
                }
                None => true,
            })
    }
}

/// Whether the file system is full: then a failed write changes the modification time, too.
fn is_disk_full(file: &File) -> bool {
    fstatvfs(file).is_ok_and(|system| system.blocks() > 0 && system.blocks_available() == 0)
}

/// The state of a file that is skipped because all of it is too old to count, now and later.
fn skip_file(id: FileId, metadata: &Metadata, previous: Option<&FileState>) -> FileState {
    let end = metadata.len();
    let same = previous.filter(|previous| previous.end <= end);
    FileState {
        id,
        end,
        line: same
            .filter(|previous| previous.end == end)
            .and_then(|previous| previous.line),
        fingerprint: same.and_then(|previous| previous.fingerprint),
        modified: WallTime::modified(metadata),
    }
}

/// Opens `path` if it leads to a regular file. Nothing else is opened: opening a FIFO unblocks its writer, and a device
/// may have side effects. Opening makes NFS ask the server for the attributes.
///
/// # Errors
/// The file does not exist, or its metadata cannot be read.
fn open_log(path: &Path) -> io::Result<Option<OpenLog>> {
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
            Ok(metadata.is_file().then_some(OpenLog {
                metadata,
                file: Ok(file),
            }))
        }
        Err(error) if is_missing(&error) => Err(error),
        Err(error) => Ok(Some(OpenLog {
            metadata,
            file: Err(error),
        })),
    }
}
