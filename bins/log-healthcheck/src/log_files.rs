//! Finding logs: below the sandbox, where thermos writes them, or by name. Owns paths, not contents.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hostkit::{Exit, Failure};

use crate::check_state::{MAX_FILES, RunDirectory};
use crate::wall_time::WallTime;
use crate::wildcard;

/// Only this many of the highest run directories are searched.
const MAX_RUNS: usize = 64;
/// The logs of a thermos process.
const STREAM_NAMES: [&str; 2] = ["stdout", "stderr"];

/// The directories that may contain the sandbox: thermos runs shell checks in the executor's directory, processes in
/// the sandbox.
#[derive(Debug, Clone)]
pub(crate) struct SandboxLocations {
    /// The working directory.
    pub(crate) here: PathBuf,
    /// `$MESOS_SANDBOX`.
    pub(crate) mesos_sandbox: Option<PathBuf>,
    /// `$MESOS_DIRECTORY`.
    pub(crate) mesos_directory: Option<PathBuf>,
}

impl SandboxLocations {
    /// The locations of this process.
    pub(crate) fn detect() -> Self {
        let variable = |name| hostkit::env::var_os(name).map(PathBuf::from);
        Self {
            here: PathBuf::from("."),
            mesos_sandbox: variable("MESOS_SANDBOX"),
            mesos_directory: variable("MESOS_DIRECTORY"),
        }
    }

    /// The candidates for the sandbox, in order of preference.
    fn candidate_sandboxes(&self) -> Vec<PathBuf> {
        let below = |path: &Path| path.join("sandbox");
        [
            Some(self.here.clone()),
            Some(below(&self.here)),
            self.mesos_sandbox.clone(),
            self.mesos_directory.as_deref().map(below),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The sandbox: the first candidate with logs of the process, else with `.logs`, else the first that exists besides
    /// the working directory, else the working directory.
    fn sandbox(&self, process: Option<&OsStr>) -> PathBuf {
        let sandboxes = self.candidate_sandboxes();
        let has = |selector: &Path| {
            let found = sandboxes.iter().find(|path| path.join(selector).is_dir());
            found.cloned()
        };
        let with_process = process.and_then(|process| has(&Path::new(".logs").join(process)));
        with_process
            .or_else(|| has(Path::new(".logs")))
            .or_else(|| sandboxes.iter().skip(1).find(|path| path.is_dir()).cloned())
            .unwrap_or_else(|| self.here.clone())
    }
}

/// The selection of logs on the command line.
#[derive(Debug, Clone)]
pub(crate) struct LogSelector {
    /// The name of a thermos process, or the absolute path of its run directories.
    pub(crate) app_directory: Option<PathBuf>,
    /// Files, with or without wildcards.
    pub(crate) files: Vec<PathBuf>,
    /// Returns the creation time of a directory, if known: [`WallTime::birth`] except in tests.
    pub(crate) birth: fn(&Metadata) -> Option<WallTime>,
}

/// The logs that a selector finds.
#[derive(Debug)]
pub(crate) struct LogFiles {
    /// The paths of the logs, which need not exist.
    pub(crate) paths: Vec<PathBuf>,
    /// The highest run directory.
    pub(crate) run: Option<RunDirectory>,
    /// The indices of logs of earlier runs.
    pub(crate) earlier_runs: Range<usize>,
    /// The searched directories, for error messages.
    pub(crate) searched: Vec<PathBuf>,
    /// Description of logs left out because there are too many.
    pub(crate) omitted: Option<String>,
}

impl LogSelector {
    /// The sandbox of these logs, or the working directory: the default directory of the state file.
    pub(crate) fn sandbox(&self, locations: &SandboxLocations) -> PathBuf {
        if let Some(directory) = &self.app_directory
            && directory.is_absolute()
        {
            let logs = directory.ancestors().find(|path| path.ends_with(".logs"));
            if let Some(sandbox) = logs.and_then(Path::parent) {
                return sandbox.to_owned();
            }
        }
        let process = self
            .app_directory
            .as_deref()
            .filter(|path| path.is_relative());
        locations.sandbox(process.map(Path::as_os_str))
    }

    /// Finds the logs: those of run directories from `since` on, because an earlier run may have been written to after
    /// the check that saw it last; without `since` only those of the highest one.
    ///
    /// # Errors
    /// More than 256 files, or an unreadable directory (exit 3).
    pub(crate) fn find_logs(
        &self,
        locations: &SandboxLocations,
        since: Option<RunDirectory>,
    ) -> Result<LogFiles, Failure> {
        let mut logs = LogFiles {
            paths: Vec::new(),
            run: None,
            earlier_runs: 0..0,
            searched: Vec::new(),
            omitted: None,
        };
        if let Some(process) = &self.app_directory {
            let directory = if process.is_absolute() {
                process.clone()
            } else {
                self.sandbox(locations).join(".logs").join(process)
            };
            logs.add_runs(&directory, since, self.birth)?;
            logs.searched.push(directory);
        }
        for file in &self.files {
            let found = expand_file(file);
            if logs.paths.len() + found.len() > MAX_FILES {
                let message = format!("{} matches more than {MAX_FILES} files", file.display());
                return Err(Failure::new(Exit::from_code(3), message).remedy("name fewer files"));
            }
            logs.paths.extend(found);
            logs.searched.push(file.clone());
        }
        Ok(logs)
    }
}

impl LogFiles {
    /// Adds the logs of the runs in `directory` from `last` on, or of the highest one. A directory without runs counts
    /// as a run.
    fn add_runs(
        &mut self,
        directory: &Path,
        last: Option<RunDirectory>,
        birth: fn(&Metadata) -> Option<WallTime>,
    ) -> Result<(), Failure> {
        let mut runs = BTreeSet::new();
        let mut dropped = None;
        for entry in list_directory(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = run_number(&name).filter(|_| is_directory(&entry)) else {
                continue;
            };
            runs.insert((number, name));
            if runs.len() > MAX_RUNS {
                dropped = dropped.max(runs.pop_first().map(|(number, _)| number));
            }
        }
        let Some((highest, name)) = runs.last() else {
            self.add_run(directory);
            return Ok(());
        };
        let highest = RunDirectory {
            number: *highest,
            birth: creation_time(&directory.join(name), *highest, last, birth),
        };
        let since = last.map_or(highest.number, |last| last.number.min(highest.number));
        self.run = Some(highest);
        for (number, name) in runs.iter().rev() {
            if *number >= since {
                self.add_run(&directory.join(name));
            }
        }
        self.earlier_runs = STREAM_NAMES.len()..self.paths.len();
        if dropped.is_some_and(|number| number >= since) {
            let runs = directory.display();
            self.omitted = Some(format!(
                "more than {MAX_RUNS} runs in {runs} since the last check"
            ));
        }
        Ok(())
    }

    fn add_run(&mut self, run: &Path) {
        self.paths
            .extend(STREAM_NAMES.map(|stream| run.join(stream)));
    }
}

/// The creation time of a run directory. If the file system does not record it: the lowest change time that a check has
/// seen, because creating logs changes the directory.
fn creation_time(
    path: &Path,
    number: u64,
    last: Option<RunDirectory>,
    birth: fn(&Metadata) -> Option<WallTime>,
) -> WallTime {
    let known = last.filter(|last| last.number == number);
    let known = known.map_or(WallTime(i64::MAX), |last| last.birth);
    match path.metadata() {
        Ok(metadata) => birth(&metadata).unwrap_or(WallTime::changed(&metadata).min(known)),
        Err(_) => known,
    }
}

/// The number of a run directory, by its name.
fn run_number(name: &OsStr) -> Option<u64> {
    let name = name.to_str().filter(|name| !name.starts_with('+'))?;
    name.parse().ok()
}

/// Whether an entry is a directory, or a symlink to one.
fn is_directory(entry: &DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_symlink() => entry.path().is_dir(),
        kind => kind.is_ok_and(|kind| kind.is_dir()),
    }
}

/// The files of a name with or without wildcards. A name without matches stands for itself.
fn expand_file(name: &Path) -> Vec<PathBuf> {
    if wildcard::has_wildcards(name.as_os_str()) && !name.exists() {
        wildcard::expand(name, MAX_FILES)
    } else {
        vec![name.to_owned()]
    }
}

/// Calls `found` with each rotated file of the logs, such as `stdout.1` or `app.log-20261121`, and the index of its
/// log. Compressed files are skipped.
pub(crate) fn for_each_rotated(logs: &[PathBuf], mut found: impl FnMut(usize, &Path)) {
    let mut listed: Vec<&Path> = Vec::new();
    for directory in logs.iter().filter_map(|log| log.parent()) {
        if listed.contains(&directory) {
            continue;
        }
        listed.push(directory);
        // Unreadable logs are reported when they are opened.
        for entry in list_directory(or_current(directory))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let is_of = |log: &PathBuf| {
                log.parent() == Some(directory)
                    && log.file_name().is_some_and(|log| is_rotated(&name, log))
            };
            if let Some(index) = logs.iter().position(is_of) {
                found(index, &directory.join(name));
            }
        }
    }
}

/// Whether `name` is a rotated file of `log`.
fn is_rotated(name: &OsStr, log: &OsStr) -> bool {
    let suffix = name.as_bytes().strip_prefix(log.as_bytes());
    suffix.is_some_and(|suffix| match suffix {
        [b'.' | b'-', first, rest @ ..] => {
            let known = |byte: &u8| byte.is_ascii_digit() || b"-._:TZ".contains(byte);
            first.is_ascii_digit() && rest.iter().all(known)
        }
        _ => false,
    })
}

/// The directory to list for a path that may be empty.
pub(crate) fn or_current(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}

/// The entries of a directory, one at a time; empty if the directory does not exist.
pub(crate) fn list_directory(
    directory: &Path,
) -> Result<impl Iterator<Item = Result<DirEntry, Failure>>, Failure> {
    let unreadable = {
        let message = format!("cannot list {}", directory.display());
        move |error: io::Error| {
            Failure::new(Exit::from_code(3), message.clone())
                .remedy("run the check as the user of the job")
                .because(error)
        }
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => Some(entries),
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(unreadable(error)),
    };
    Ok(entries
        .into_iter()
        .flatten()
        .map(move |entry| entry.map_err(&unreadable)))
}

pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests;
