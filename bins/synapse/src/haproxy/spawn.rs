//! Running a program that should end soon: with a deadline, and keeping at most so much of what it says.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

/// How much of what a program says is kept; the rest is read and dropped.
const LIMIT: usize = 256 << 10;

/// How long output is waited for after the program has ended: what it left in the background may hold the pipe for ever.
const REST: Duration = Duration::from_millis(100);

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit status; `None` when it was killed at the deadline.
    pub status: Option<ExitStatus>,
    /// What it wrote to stdout and stderr.
    pub output: String,
}

impl Ended {
    /// Whether it ended with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// In words: its exit status, and the last lines it said.
    #[must_use]
    pub fn shown(&self) -> String {
        let status = self.status.map_or_else(
            || "killed at its deadline".to_owned(),
            |status| status.to_string(),
        );
        let lines = self.output.lines().filter(|line| !line.trim().is_empty());
        let mut last: Vec<String> = lines.rev().take(3).map(crate::model::shown).collect();
        last.reverse();
        if last.is_empty() {
            return status;
        }
        format!("{status}: {}", last.join("; "))
    }
}

/// Runs it, in a process group of its own that is killed at the deadline or when the future is dropped.
///
/// # Errors
/// It cannot be started.
pub async fn run(mut command: Command, deadline: Duration) -> io::Result<Ended> {
    let (reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    // Its copies of the writing end must go, or the end of the output is never seen.
    drop(command);
    let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;
    let group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()));
    let mut ended = Ended {
        status: None,
        output: String::new(),
    };
    let (mut kept, mut chunk, mut open) = (Vec::new(), vec![0; 8192], true);
    let mut until = Instant::now() + deadline;
    while open || ended.status.is_none() {
        tokio::select! {
            read = reader.read(&mut chunk), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(n) => {
                    let room = LIMIT.saturating_sub(kept.len());
                    kept.extend_from_slice(&chunk[..n.min(room)]);
                }
            },
            status = child.wait(), if ended.status.is_none() => {
                ended.status = Some(status?);
                until = until.min(Instant::now() + REST);
            }
            () = sleep_until(until) => break,
        }
    }
    if ended.status.is_some() {
        group.release();
    } else {
        drop(group);
        // Killed, it ends now; nobody else would collect it.
        let _ = child.wait().await;
    }
    ended.output = String::from_utf8_lossy(&kept).into_owned();
    Ok(ended)
}

/// A process group that is killed unless it is released.
struct Group(Option<i32>);

impl Group {
    /// Its leader has ended; what it left in the background (a daemon) is meant to stay.
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.filter(|pid| *pid > 1) {
            // Ended already is as good.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A command for `/bin/sh`.
#[must_use]
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]);
    command
}

/// Whether `/bin/sh` finds a program or builtin of this name.
pub async fn shell_knows(program: &str) -> bool {
    let mut command = shell("command -v -- \"$1\"");
    command.args(["sh", program]);
    run(command, Duration::from_secs(5))
        .await
        .is_ok_and(|ended| ended.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(line: &str, deadline: Duration) -> Ended {
        run(shell(line), deadline).await.unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn output_and_status_come_back() {
        let ended = sh("echo one; echo two >&2; exit 3", LONG).await;
        assert_eq!(ended.output, "one\ntwo\n");
        assert!(!ended.success());
        assert_eq!(ended.shown(), "exit status: 3: one; two");
    }

    #[tokio::test]
    async fn what_runs_too_long_is_killed_with_its_children() {
        let ended = sh(
            "echo $$; sleep 1000 & echo $!; wait",
            Duration::from_millis(200),
        )
        .await;
        assert!(ended.status.is_none());
        let pids: Vec<i32> = ended.output.lines().map(|n| n.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2);
        let alive = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        // The kernel ends them at its leisure.
        while pids.iter().any(alive) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_stays_in_the_background_is_not_waited_for() {
        let ended = sh("sleep 5 & echo started $!", LONG).await;
        assert!(ended.success());
        let pid = ended.output.trim().rsplit_once(' ').unwrap().1;
        let pid = Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn endless_output_is_read_and_not_kept() {
        let ended = sh("yes | head -c 1000000", LONG).await;
        assert!(ended.success());
        assert_eq!(ended.output.len(), LIMIT);
    }
}
