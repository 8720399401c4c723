//! A shell check as Aurora's executor runs it: `apache/aurora/common/health_check/shell.py`. It has the working
//! directory and the environment of the executor, not those of the task's processes.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::AuroraRelease;
use crate::POLL;

pub(super) struct ShellCheck<'a> {
    pub(super) contract: AuroraRelease,
    pub(super) cmdline: &'a str,
    pub(super) timeout: Duration,
    /// The working directory that Mesos gives the executor.
    pub(super) directory: &'a Path,
    pub(super) uid: Option<u32>,
}

impl ShellCheck<'_> {
    /// Runs the check; the error is the reason on Aurora's page.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut command = self.command();
        let output = match self.contract {
            // The output goes to that of the executor.
            AuroraRelease::V0_15 => None,
            AuroraRelease::Last => {
                let (read, write) = std::io::pipe().expect("a pipe");
                let same = write.try_clone().expect("a pipe");
                command.stdout(write).stderr(same);
                Some(std::thread::spawn(move || {
                    std::io::read_to_string(read).unwrap_or_default()
                }))
            }
        };
        let child = command.spawn();
        drop(command);
        let mut child = child.map_err(|error| format!("OSError: {error}"))?;
        let until = Instant::now() + self.timeout;
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break Some(status);
            }
            if Instant::now() >= until {
                // Only the shell is killed; its children live on.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(POLL);
        };
        let message = output.map_or_else(String::new, |reader| reader.join().expect("a reader"));
        let (command, status) = (self.cmdline, status.map(code));
        match (status, self.contract) {
            (Some(0), _) => Ok(()),
            (Some(code), AuroraRelease::V0_15) => Err(format!(
                "Command '{command}' returned non-zero exit status {code}"
            )),
            (Some(code), AuroraRelease::Last) => Err(format!(
                "Command '{command}' returned non-zero exit status {code} with output '{message}'"
            )),
            (None, AuroraRelease::V0_15) => Err(format!(
                "Internal health check error: Command '{command}' timed out after {} seconds",
                self.timeout.as_secs_f64()
            )),
            (None, AuroraRelease::Last) => Err("Health check timed out.".to_owned()),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(match self.contract {
            AuroraRelease::V0_15 => "/bin/sh",
            AuroraRelease::Last => "/bin/bash",
        });
        command
            .args(["-c", self.cmdline])
            .current_dir(self.directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("MESOS_DIRECTORY", self.directory)
            .env("MESOS_SANDBOX", self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }
}

/// Python's `returncode`: negative for a signal.
fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or_default())
}
