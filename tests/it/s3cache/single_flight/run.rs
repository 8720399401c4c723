//! Runs of the binary that continue while the test observes them, and the state they leave in the cache.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use hostkit_tests::{ChildGuard, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::{CacheHost, CommandOutcome, every_file, sha256};

/// A running command whose log can be read.
#[derive(Debug)]
pub(in super::super) struct FetchRun {
    child: ChildGuard,
    log: PathBuf,
}

impl FetchRun {
    /// Starts `command`, with the log in `<name>.log` in the sandbox.
    pub(in super::super) fn start(
        host: &CacheHost,
        name: &str,
        mut command: std::process::Command,
    ) -> Self {
        let log = host.path(format!("{name}.log"));
        command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let child = ChildGuard(command.spawn().unwrap());
        Self { child, log }
    }

    /// The log so far.
    pub(in super::super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the log contains `text`.
    pub(in super::super) fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} in {}", self.log.display()), || {
            self.log().contains(text)
        });
    }

    pub(in super::super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Whether it has a path open that ends like this.
    pub(in super::super) fn has_open(&self, end: &str) -> bool {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        open.flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|path| path.ends_with(end))
    }

    pub(in super::super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.0.id() as i32), signal).unwrap();
    }

    /// Sends a signal to its child processes.
    pub(in super::super) fn signal_children(&self, signal: Signal) {
        let pid = self.child.0.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        for child in std::fs::read_to_string(children).unwrap().split(' ') {
            if let Ok(child) = child.parse() {
                kill(Pid::from_raw(child), signal).unwrap();
            }
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(in super::super) fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    pub(in super::super) fn ended(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(in super::super) fn end(mut self) -> CommandOutcome {
        use std::os::unix::process::ExitStatusExt as _;
        wait_until(&format!("the end of {}", self.log.display()), || {
            self.ended()
        });
        let status = self.child.0.wait().unwrap();
        let signal = status.signal().unwrap_or(1);
        CommandOutcome {
            code: status.code().unwrap_or(-signal),
            stdout: String::new(),
            stderr: self.log(),
        }
    }
}

/// Starts a fetch of `url` to the file `to`, with more flags.
pub(in super::super) fn fetch(host: &CacheHost, url: &str, to: &str, flags: &[&str]) -> FetchRun {
    let copy_to = format!("--copy-to={to}");
    let args = [url, copy_to.as_str(), "--loglevel=debug"];
    FetchRun::start(host, to, host.command(args.iter().chain(flags)))
}

/// The recorded parts of all partial downloads of this cache.
pub(in super::super) fn recorded_parts(host: &CacheHost) -> Vec<u64> {
    let records = every_file(&host.cache())
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(".record"));
    records
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.strip_prefix("p ")?.split(' ').next()?.parse().ok())
                .collect::<Vec<u64>>()
        })
        .collect()
}

/// Asserts that every blob matches the digest in its name, and returns their number.
#[track_caller]
pub(in super::super) fn assert_blobs(host: &CacheHost) -> usize {
    let blobs: Vec<PathBuf> = every_file(&host.cache())
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "blobs"))
        .collect();
    for blob in &blobs {
        let name = blob.parent().unwrap().file_name().unwrap();
        let found = sha256(&std::fs::read(blob).unwrap());
        assert_eq!(found.as_str(), name, "{}", blob.display());
    }
    blobs.len()
}

pub(in super::super) fn days_ago(days: u64) -> SystemTime {
    now() - Duration::from_secs(days * 24 * 3600)
}

pub(in super::super) fn days_ahead(days: u64) -> SystemTime {
    now() + Duration::from_secs(days * 24 * 3600)
}

#[allow(
    clippy::disallowed_methods,
    reason = "what is written to the disk is compared with this clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
