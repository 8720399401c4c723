//! Making HAProxy run its file: through its master, by a new process that takes over, or by the operator's command.
//!
//! Owns telling it, and learning that it was refused. Whether what runs then is what was meant is
//! [`super::verify`]'s.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::info::{Info, Processes};
use super::socket::{Socket, SocketError};
use super::{processes, spawn};
use crate::model::shown;
use crate::settings;

/// How often it is asked whether it is done.
const POLL: Duration = Duration::from_millis(20);

/// How HAProxy is reloaded.
#[derive(Debug, Clone)]
pub enum Way {
    /// Its master is told to (`haproxy -W -S PATH`).
    Master(Socket),
    /// A new process takes the listeners over and tells the old ones to finish; also starts HAProxy when none runs.
    Process {
        /// The program.
        binary: PathBuf,
        /// Where it writes its pid.
        pid_file: PathBuf,
    },
    /// A shell command.
    Command(String),
}

/// Why HAProxy was not reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The master does not answer.
    #[error(
        "the master does not answer: start HAProxy with `-W -S PATH`, or correct `master_socket`"
    )]
    Master(#[source] SocketError),
    /// What answers at the master's socket is no master.
    #[error("{}: not a master's socket (`show proc` names none): correct `master_socket`", .0.display())]
    NoMaster(PathBuf),
    /// It was told to and could not; what ran before still does.
    #[error("HAProxy could not start with the new file: {0}")]
    Refused(String),
    /// The command failed.
    #[error("reload_command `{command}` failed: {output}")]
    Command {
        /// The command.
        command: String,
        /// How it ended, and the last it said.
        output: String,
    },
    /// Nothing of a new process in time.
    #[error("no new HAProxy within {0:?}: its log says why")]
    TimedOut(Duration),
    /// The pid file cannot be read.
    #[error("cannot read {}: correct `pid_file`, or remove it", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The program did not start.
    #[error("cannot run `{command}`: correct `binary` or `reload_command`")]
    Start {
        /// What was to be run.
        command: String,
        /// Why not.
        source: io::Error,
    },
}

impl Way {
    /// The way that is configured, if any: what is told HAProxy directly before what is told a command.
    #[must_use]
    pub fn of(haproxy: &settings::Haproxy) -> Option<Self> {
        if let Some(path) = &haproxy.master_socket {
            return Some(Self::Master(Socket::new(path)));
        }
        if let Some(pid_file) = &haproxy.pid_file {
            return Some(Self::Process {
                binary: haproxy.binary.clone(),
                pid_file: pid_file.clone(),
            });
        }
        haproxy.reload_command.clone().map(Self::Command)
    }

    /// Reloads HAProxy on the file `config`; `stats` is its stats socket. Returns when a new process runs, or, with a
    /// command, when that has ended.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub async fn reload(
        &self,
        config: &Path,
        stats: Option<&Socket>,
        deadline: Duration,
    ) -> Result<(), ReloadError> {
        match self {
            Self::Master(socket) => through_master(socket, deadline).await,
            Self::Process { binary, pid_file } => {
                take_over(binary, pid_file, config, stats, deadline).await
            }
            Self::Command(line) => {
                let ended = run(spawn::shell(line), line, deadline).await?;
                if ended.success() {
                    return Ok(());
                }
                Err(ReloadError::Command {
                    command: line.clone(),
                    output: ended.shown(),
                })
            }
        }
    }

    /// Workers of before that have not ended. `current` is the process that serves.
    pub async fn leftover(&self, config: &Path, current: i32) -> BTreeSet<i32> {
        if let Self::Master(socket) = self {
            let processes = ask(socket).await.unwrap_or_default();
            return processes.old_workers.into_iter().collect();
        }
        processes::leftover(config, current)
    }
}

/// The master's processes; `None` while it does not answer.
async fn ask(socket: &Socket) -> Option<Processes> {
    Processes::parse(&socket.ask("show proc").await.ok()?)
}

async fn through_master(socket: &Socket, deadline: Duration) -> Result<(), ReloadError> {
    let reply = socket.ask("show proc").await.map_err(ReloadError::Master)?;
    let before =
        Processes::parse(&reply).ok_or_else(|| ReloadError::NoMaster(socket.path().to_owned()))?;
    let until = Instant::now() + deadline;
    // Up to 2.6 it closes the connection without a word and executes itself; from 2.7 on it says how it went, once it
    // knows. Either way `show proc` has the truth.
    let said = socket.ask("reload").await.unwrap_or_default();
    if said.starts_with("Success=0") {
        return Err(ReloadError::Refused(shown(&said.replace('\n', " "))));
    }
    while Instant::now() < until {
        if let Some(now) = ask(socket).await {
            if now.failed > before.failed {
                return Err(ReloadError::Refused(
                    "its master counts a failed reload, and its log says why".to_owned(),
                ));
            }
            let new = now
                .workers
                .iter()
                .any(|pid| !before.workers.contains(pid) && !before.old_workers.contains(pid));
            if new {
                return Ok(());
            }
        }
        sleep(POLL).await;
    }
    Err(ReloadError::TimedOut(deadline))
}

async fn take_over(
    binary: &Path,
    pid_file: &Path,
    config: &Path,
    stats: Option<&Socket>,
    deadline: Duration,
) -> Result<(), ReloadError> {
    let mut pids = processes::pids(pid_file).map_err(|source| ReloadError::PidFile {
        path: pid_file.to_owned(),
        source,
    })?;
    // Who serves is asked, too: a pid file may be gone.
    let answer = match stats {
        Some(socket) => socket.ask("show info").await.ok(),
        None => None,
    };
    let running = answer.and_then(|text| Info::parse(&text));
    pids.extend(running.as_ref().map(|info| info.pid));
    pids.retain(|pid| processes::is_haproxy(*pid));

    let mut command = Command::new(binary);
    command
        .arg("-f")
        .arg(config)
        .arg("-p")
        .arg(pid_file)
        .arg("-D");
    // With `-x` a socket that does not answer is fatal.
    if let (Some(socket), Some(_)) = (stats, &running) {
        command.arg("-x").arg(socket.path());
    }
    if !pids.is_empty() {
        command.arg("-sf");
        command.args(pids.iter().map(ToString::to_string));
    }
    let shown = format!("{} -f {} -D", binary.display(), config.display());
    let ended = run(command, &shown, deadline).await?;
    if ended.status.is_none() {
        return Err(ReloadError::TimedOut(deadline));
    }
    if !ended.success() {
        let alerts = ended
            .output
            .lines()
            .filter(|line| line.starts_with("[ALERT]"));
        let alerts: Vec<&str> = alerts
            .map(|line| line.split_once(") : ").map_or(line, |(_, text)| text))
            .take(2)
            .collect();
        let why = if alerts.is_empty() {
            ended.shown()
        } else {
            shown_lines(&alerts)
        };
        return Err(ReloadError::Refused(why));
    }
    Ok(())
}

fn shown_lines(lines: &[&str]) -> String {
    shown(&lines.join("; "))
}

async fn run(
    command: Command,
    what: &str,
    deadline: Duration,
) -> Result<spawn::Ended, ReloadError> {
    spawn::run(command, deadline)
        .await
        .map_err(|source| ReloadError::Start {
            command: what.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_haproxy_itself_comes_first() {
        let mut haproxy = settings::Haproxy::default();
        assert!(Way::of(&haproxy).is_none());
        haproxy.reload_command = Some("service haproxy reload".to_owned());
        assert!(matches!(Way::of(&haproxy), Some(Way::Command(_))));
        haproxy.pid_file = Some("/run/haproxy.pid".into());
        assert!(matches!(Way::of(&haproxy), Some(Way::Process { .. })));
        haproxy.master_socket = Some("/run/haproxy-master.sock".into());
        assert!(matches!(Way::of(&haproxy), Some(Way::Master(_))));
    }
}
