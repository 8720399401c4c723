//! Where logs are: below the sandbox as thermos writes them, or what was named. Owns paths; what is in the files is
//! [`crate::watch`]'s.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hostkit::{Exit, Failure};

use crate::moment::Moment;
use crate::state::{FILES, Run};
use crate::wildcard;

/// Run directories that are looked into, the highest.
const RUNS: usize = 64;
/// What thermos calls the two logs of a process.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The directories that a check may find itself in: thermos runs shell checks in the executor's, processes in the
/// sandbox.
#[derive(Debug, Clone)]
pub struct Places {
    /// The working directory.
    pub here: PathBuf,
    /// `$MESOS_SANDBOX`.
    pub mesos_sandbox: Option<PathBuf>,
    /// `$MESOS_DIRECTORY`.
    pub mesos_directory: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| hostkit::env::var_os(name).map(PathBuf::from);
        Self {
            here: PathBuf::from("."),
            mesos_sandbox: variable("MESOS_SANDBOX"),
            mesos_directory: variable("MESOS_DIRECTORY"),
        }
    }

    /// What may be the sandbox, in the order of preference.
    fn sandboxes(&self) -> Vec<PathBuf> {
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

    /// The sandbox: where `.logs` has the process, else where it is at all, else the first of the places that exists
    /// by more than being the working directory, else that.
    fn sandbox(&self, process: Option<&OsStr>) -> PathBuf {
        let sandboxes = self.sandboxes();
        let has = |wanted: &Path| {
            let found = sandboxes.iter().find(|path| path.join(wanted).is_dir());
            found.cloned()
        };
        let with_process = process.and_then(|process| has(&Path::new(".logs").join(process)));
        with_process
            .or_else(|| has(Path::new(".logs")))
            .or_else(|| sandboxes.iter().skip(1).find(|path| path.is_dir()).cloned())
            .unwrap_or_else(|| self.here.clone())
    }
}

/// What was asked to be looked at.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A thermos process by its name, or the directory of its runs by an absolute path.
    pub app_directory: Option<PathBuf>,
    /// Files, also with wildcards.
    pub files: Vec<PathBuf>,
    /// When a directory was made, where that is known: [`Moment::birth`] but in tests.
    pub birth: fn(&Metadata) -> Option<Moment>,
}

/// Where logs are now.
#[derive(Debug)]
pub struct Logs {
    /// Files to look at, whether they are there or not.
    pub paths: Vec<PathBuf>,
    /// The highest run directory.
    pub run: Option<Run>,
    /// Which of the files are those of lower runs.
    pub earlier: Range<usize>,
    /// The directories they were looked for in, for who asks why there are none.
    pub searched: Vec<PathBuf>,
    /// What is left out because there are too many, if something is.
    pub left_out: Option<String>,
}

impl Wanted {
    /// The sandbox these logs are in, or the working directory: where the state file is by default.
    #[must_use]
    pub fn sandbox(&self, places: &Places) -> PathBuf {
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
        places.sandbox(process.map(Path::as_os_str))
    }

    /// Finds the logs. Run directories from `since` on count, because what was written to an earlier run after the
    /// check that saw it last was written; without it only the highest one does.
    ///
    /// # Errors
    /// More files than are watched, or a directory that cannot be read (exit 3 in both cases).
    pub fn find(&self, places: &Places, since: Option<Run>) -> Result<Logs, Failure> {
        let mut logs = Logs {
            paths: Vec::new(),
            run: None,
            earlier: 0..0,
            searched: Vec::new(),
            left_out: None,
        };
        if let Some(process) = &self.app_directory {
            let directory = if process.is_absolute() {
                process.clone()
            } else {
                self.sandbox(places).join(".logs").join(process)
            };
            logs.add_runs(&directory, since, self.birth)?;
            logs.searched.push(directory);
        }
        for file in &self.files {
            let found = matching(file);
            if logs.paths.len() + found.len() > FILES {
                let message = format!("{} matches more than {FILES} files", file.display());
                return Err(Failure::new(Exit::from_code(3), message).remedy("name fewer"));
            }
            logs.paths.extend(found);
            logs.searched.push(file.clone());
        }
        Ok(logs)
    }
}

impl Logs {
    /// Adds those of the runs in `directory` from `since` on, or of the highest one. A directory without runs is one
    /// itself.
    fn add_runs(
        &mut self,
        directory: &Path,
        last: Option<Run>,
        birth: fn(&Metadata) -> Option<Moment>,
    ) -> Result<(), Failure> {
        let mut runs = BTreeSet::new();
        let mut dropped = None;
        for entry in entries(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = run_number(&name).filter(|_| is_directory(&entry)) else {
                continue;
            };
            runs.insert((number, name));
            if runs.len() > RUNS {
                dropped = dropped.max(runs.pop_first().map(|(number, _)| number));
            }
        }
        let Some((highest, name)) = runs.last() else {
            self.add_run(directory);
            return Ok(());
        };
        let highest = Run {
            number: *highest,
            birth: self::birth(&directory.join(name), *highest, last, birth),
        };
        let since = last.map_or(highest.number, |last| last.number.min(highest.number));
        self.run = Some(highest);
        for (number, name) in runs.iter().rev() {
            if *number >= since {
                self.add_run(&directory.join(name));
            }
        }
        self.earlier = STREAMS.len()..self.paths.len();
        if dropped.is_some_and(|number| number >= since) {
            let runs = directory.display();
            self.left_out = Some(format!(
                "more than {RUNS} runs in {runs} since the last check"
            ));
        }
        Ok(())
    }

    fn add_run(&mut self, run: &Path) {
        self.paths.extend(STREAMS.map(|stream| run.join(stream)));
    }
}

/// When a run directory was made. Where the file system does not know, that is the lowest time of a change that was
/// seen: the directory changes when logs are made in it.
fn birth(
    path: &Path,
    number: u64,
    last: Option<Run>,
    birth: fn(&Metadata) -> Option<Moment>,
) -> Moment {
    let known = last.filter(|last| last.number == number);
    let known = known.map_or(Moment(i64::MAX), |last| last.birth);
    match path.metadata() {
        Ok(metadata) => birth(&metadata).unwrap_or(Moment::changed(&metadata).min(known)),
        Err(_) => known,
    }
}

/// The number that the name of a run directory is.
fn run_number(name: &OsStr) -> Option<u64> {
    let name = name.to_str().filter(|name| !name.starts_with('+'))?;
    name.parse().ok()
}

/// Whether an entry is a directory, or leads to one.
fn is_directory(entry: &DirEntry) -> bool {
    match entry.file_type() {
        Ok(kind) if kind.is_symlink() => entry.path().is_dir(),
        kind => kind.is_ok_and(|kind| kind.is_dir()),
    }
}

/// The files that a name with or without wildcards stands for. A name that stands for nothing yet stands for itself.
fn matching(name: &Path) -> Vec<PathBuf> {
    if wildcard::has_any(name.as_os_str()) && !name.exists() {
        wildcard::expand(name, FILES)
    } else {
        vec![name.to_owned()]
    }
}

/// Calls `found` with what rotation has made of logs, `stdout.1` or `app.log-20261121`, each with the index of its log.
/// Compressed ones are not logs.
pub(crate) fn each_rotated(logs: &[PathBuf], mut found: impl FnMut(usize, &Path)) {
    let mut listed: Vec<&Path> = Vec::new();
    for directory in logs.iter().filter_map(|log| log.parent()) {
        if listed.contains(&directory) {
            continue;
        }
        listed.push(directory);
        // Whether a log can be read is told where it is opened.
        for entry in entries(or_here(directory)).into_iter().flatten().flatten() {
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

/// Whether `name` is what rotation makes of `log`.
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
pub(crate) fn or_here(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}

/// The entries of a directory, one at a time, however many there are; none when there is no such directory.
pub(crate) fn entries(
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

/// Whether the error says that there is no such file.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests;
