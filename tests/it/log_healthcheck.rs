//! Tests of log-healthcheck: the real binary over real files, with the [`LogSandbox`] they share. Random histories are
//! tested beside the code, where the clock can be set.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use hostkit_tests::CommandOutcome;
use tempfile::TempDir;

mod disk;
mod files;
mod locations;
mod one_shot;
mod resident;

/// The flags of the check in the articles.
const ARTICLE_FLAGS: [&str; 6] = [
    "--app-directory",
    "app",
    "--line-pattern",
    "{",
    "--freshness",
    "100",
];

/// A sandbox with the logs of the process `app`. Commands run there in a clean environment.
struct LogSandbox {
    directory: TempDir,
}

impl LogSandbox {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let world_readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), world_readable).unwrap();
        Self { directory }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The log of run 0.
    fn log(&self) -> PathBuf {
        self.path(".logs/app/0/stderr")
    }

    /// Appends to a log, which is created with its directories if it is missing.
    fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(bytes.as_ref()).unwrap();
    }

    /// Appends to the log of run 0.
    fn logs(&self, bytes: impl AsRef<[u8]>) {
        self.write(self.log(), bytes);
    }

    /// Sets the modification time of the log of run 0 to `seconds` ago.
    fn age(&self, seconds: u64) {
        age(&self.log(), seconds);
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.clean(&mut command);
        command
    }

    fn clean(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
    }

    fn run<I>(&self, args: I) -> CommandOutcome
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = self.command(hostkit_tests::bin("log-healthcheck"));
        command.args(args).output().unwrap().into()
    }

    /// Runs the check of the articles.
    fn check(&self) -> CommandOutcome {
        self.run(ARTICLE_FLAGS)
    }
}

/// Sets the modification time of a file to `seconds` ago.
fn age(path: &Path, seconds: u64) {
    #[allow(
        clippy::disallowed_methods,
        reason = "the kernel's own clock stamps the files"
    )]
    let then = SystemTime::now() - Duration::from_secs(seconds);
    File::open(path).unwrap().set_modified(then).unwrap();
}

/// A value of the performance data.
#[track_caller]
fn perfdata(outcome: &CommandOutcome, label: &str) -> f64 {
    let (_, data) = outcome
        .stdout
        .trim_end()
        .split_once(" | ")
        .expect(&outcome.stdout);
    let value = data
        .split(' ')
        .find_map(|item| item.strip_prefix(&format!("{label}=")));
    let value = value.expect(&outcome.stdout).split(';').next().unwrap();
    value
        .trim_end_matches(['s', 'B'])
        .parse()
        .expect(&outcome.stdout)
}

/// Asserts that the result is one line that contains `text`.
#[track_caller]
fn assert_result_contains(outcome: &CommandOutcome, text: &str) {
    assert!(
        outcome.stdout.contains(text),
        "no {text:?} in {}",
        outcome.stdout
    );
    assert_eq!(
        outcome.stdout.matches('\n').count(),
        1,
        "{}",
        outcome.stdout
    );
}

/// A JSON line with a time of `seconds` ago.
fn timed(seconds: i64) -> String {
    #[allow(clippy::disallowed_methods, reason = "the log is written now")]
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    format!(
        "{{\"timestamp\": {}, \"message\": \"x\"}}\n",
        now.as_secs() as i64 - seconds
    )
}
