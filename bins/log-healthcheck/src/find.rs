//! Where logs are: below the sandbox as thermos writes them, or what was named. Owns paths; what is in the files is
//! [`crate::watch`]'s.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hostkit::{Exit, Failure};

use crate::state::FILES;
use crate::wildcard;

/// Run directories that are looked into, the highest.
const RUNS: usize = 64;
/// Names of one directory that are looked at.
const NAMES: usize = 10_000;
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
}

/// Where logs are now.
#[derive(Debug)]
pub struct Logs {
    /// Files to look at, whether they are there or not.
    pub paths: Vec<PathBuf>,
    /// The highest run directory.
    pub run: Option<u64>,
    /// The directories they were looked for in, for who asks why there are none.
    pub searched: Vec<PathBuf>,
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
    pub fn find(&self, places: &Places, since: Option<u64>) -> Result<Logs, Failure> {
        let mut logs = Logs {
            paths: Vec::new(),
            run: None,
            searched: Vec::new(),
        };
        if let Some(process) = &self.app_directory {
            let directory = if process.is_absolute() {
                process.clone()
            } else {
                self.sandbox(places).join(".logs").join(process)
            };
            logs.run = runs(&directory, since, &mut logs.paths)?;
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

/// Adds the logs of the runs in `directory` to `paths`; returns the highest run. A directory without runs is one itself.
fn runs(
    directory: &Path,
    since: Option<u64>,
    paths: &mut Vec<PathBuf>,
) -> Result<Option<u64>, Failure> {
    let mut runs: Vec<(u64, PathBuf)> = Vec::new();
    for name in names(directory)? {
        let number = name.to_str().filter(|name| !name.starts_with('+'));
        let Some(number) = number.and_then(|name| name.parse().ok()) else {
            continue;
        };
        let path = directory.join(name);
        if path.is_dir() {
            runs.push((number, path));
        }
    }
    runs.sort();
    let highest = runs.last().map(|(number, _)| *number);
    let since = since.or(highest).min(highest);
    let count = runs
        .iter()
        .filter(|(number, _)| Some(*number) >= since)
        .count();
    if runs.is_empty() {
        runs.push((0, directory.to_owned()));
    }
    for (_, run) in runs.iter().rev().take(count.clamp(1, RUNS)) {
        paths.extend(STREAMS.iter().map(|stream| run.join(stream)));
    }
    Ok(highest)
}

/// The files that a name with or without wildcards stands for. A name that stands for nothing yet stands for itself.
fn matching(name: &Path) -> Vec<PathBuf> {
    if wildcard::has_any(name.as_os_str()) && !name.exists() {
        wildcard::expand(name, FILES)
    } else {
        vec![name.to_owned()]
    }
}

/// What rotation has made of logs, `stdout.1` or `app.log-20261121`, each with the index of its log. Compressed ones are
/// not logs.
pub(crate) fn rotated(logs: &[PathBuf]) -> Vec<(usize, PathBuf)> {
    let mut found = Vec::new();
    let mut listed: Vec<&Path> = Vec::new();
    for directory in logs.iter().filter_map(|log| log.parent()) {
        if listed.contains(&directory) {
            continue;
        }
        listed.push(directory);
        let itself = directory.as_os_str().is_empty();
        // Whether a log can be read is told where it is opened.
        let names = names(if itself { Path::new(".") } else { directory }).unwrap_or_default();
        for name in names {
            let is_of = |log: &PathBuf| {
                log.parent() == Some(directory)
                    && log.file_name().is_some_and(|log| is_rotated(&name, log))
            };
            if let Some(index) = logs.iter().position(is_of) {
                found.push((index, directory.join(name)));
            }
        }
    }
    found
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

/// The names in a directory; none when there is no such directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<OsString>, Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            Exit::from_code(3),
            format!("cannot list {}", directory.display()),
        )
        .remedy("run the check as the user of the job")
        .because(error)
    };
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .take(NAMES)
            .map(|entry| entry.map(|entry| entry.file_name()).map_err(unreadable))
            .collect(),
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(unreadable(error)),
    }
}

/// Whether the error says that there is no such file.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        directory
    }

    fn places(here: &Path) -> Places {
        Places {
            here: here.to_owned(),
            mesos_sandbox: None,
            mesos_directory: None,
        }
    }

    fn app(name: impl Into<PathBuf>) -> Wanted {
        Wanted {
            app_directory: Some(name.into()),
            files: Vec::new(),
        }
    }

    #[test]
    fn the_highest_run_is_so_by_number() {
        let home = below(&[
            ".logs/app/9/stderr",
            ".logs/app/10/stderr",
            ".logs/app/x/stderr",
            ".logs/app/11",
        ]);
        let logs = app("app").find(&places(home.path()), None).unwrap();
        let run = home.path().join(".logs/app/10");
        assert_eq!(logs.paths, [run.join("stdout"), run.join("stderr")]);
        assert_eq!(logs.run, Some(10));
        let logs = app("app").find(&places(home.path()), Some(9)).unwrap();
        assert_eq!(logs.paths.len(), 4);
        let logs = app("app").find(&places(home.path()), Some(99)).unwrap();
        assert_eq!(logs.paths.len(), 2, "another sandbox's state");
    }

    #[test]
    fn sandboxes_in_their_order() {
        let home = below(&[
            "a/.logs/app/0/stdout",
            "b/sandbox/.logs/app/0/stdout",
            "c/.logs/app/0/stdout",
            "d/sandbox/.logs/app/0/stdout",
            "e/.logs/other/0/stdout",
            "f/x",
        ]);
        let find = |here: &str, mesos: bool| {
            let variable = |name: &str| mesos.then(|| home.path().join(name));
            let places = Places {
                here: home.path().join(here),
                mesos_sandbox: variable("c"),
                mesos_directory: variable("d"),
            };
            let path = app("app").sandbox(&places);
            path.strip_prefix(home.path())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(find("a", true), "a");
        assert_eq!(find("b", true), "b/sandbox");
        assert_eq!(
            find("e", true),
            "c",
            "where the process is goes before where any is"
        );
        assert_eq!(find("e", false), "e");
        assert_eq!(find("f", true), "c");
        assert_eq!(find("f", false), "f");
        let absolute = app(home.path().join("d/sandbox/.logs/app"));
        assert_eq!(
            absolute.sandbox(&places(home.path())),
            home.path().join("d/sandbox")
        );
    }

    #[test]
    fn a_directory_without_runs_is_a_run() {
        let home = below(&["run/stdout"]);
        let logs = app(home.path().join("run"))
            .find(&places(home.path()), None)
            .unwrap();
        assert_eq!(logs.paths[0], home.path().join("run/stdout"));
    }

    #[test]
    fn wildcards_and_names_that_look_like_them() {
        let home = below(&["a.log", "b.log", "c[1].log", "d.txt"]);
        let find = |name: &str| matching(&home.path().join(name)).len();
        assert_eq!(find("*.log"), 3);
        assert_eq!(find("c[1].log"), 1);
        assert_eq!(find("none-*.log"), 0);
        assert_eq!(
            find("none.log"),
            1,
            "a name is one whether it is there or not"
        );
    }

    #[test]
    fn what_rotation_makes() {
        let home = below(&[
            "x.log",
            "x.log.1",
            "x.log.2.gz",
            "x.log-20261121",
            "x.log.bak",
            "x.log1",
            "y.log.1",
        ]);
        let found = rotated(&[home.path().join("y"), home.path().join("x.log")]);
        let mut paths: Vec<&PathBuf> = found.iter().map(|(_, path)| path).collect();
        paths.sort();
        let expected = ["x.log-20261121", "x.log.1"].map(|name| home.path().join(name));
        assert_eq!(paths, expected.iter().collect::<Vec<_>>());
        assert!(found.iter().all(|(log, _)| *log == 1));
    }

    #[test]
    fn too_many_files_are_not_watched_in_part() {
        let names: Vec<String> = (0..=FILES).map(|number| format!("{number}.log")).collect();
        let home = below(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let wanted = Wanted {
            app_directory: None,
            files: vec![home.path().join("*.log")],
        };
        let failure = wanted.find(&places(home.path()), None).unwrap_err();
        assert_eq!(failure.exit().code(), 3);
    }
}
