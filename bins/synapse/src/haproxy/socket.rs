//! The client of HAProxy's sockets (management guide, "Unix Socket commands"): one question, or many at once.
//!
//! Many are asked in prompt mode. Without it replies end in an empty line only mostly (`del server` in 2.6 ends its
//! reply without one); in prompt mode each ends in `\n> `, whatever it says.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// How long one question or batch may take.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// The longest reply: 20,000 servers are 4.4 MB of `show stat`.
const LIMIT: u64 = 64 << 20;

/// The longest command. HAProxy reads a line into a buffer of `tune.bufsize` (16 KiB).
const COMMAND: usize = 8 << 10;

/// What ends a reply in prompt mode.
const PROMPT: &str = "\n> ";

/// A stats socket, or the master's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    path: PathBuf,
    deadline: Duration,
}

/// Why HAProxy was not asked or did not answer. Each names the socket and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is no such file.
    #[error(
        "{}: no such socket: start HAProxy, or name the socket that it has", path.display()
    )]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// We may not open it.
    #[error(
        "{}: permission denied: give synapse's user access with `user`, `group` and `mode` of the `stats socket` line", path.display()
    )]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The file is there, and nobody listens.
    #[error("{}: nobody listens: HAProxy is not running, or another process replaced it and uses another socket", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// No full answer in time.
    #[error("{}: no answer within {after:?}: HAProxy is stopped or overloaded", path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// What the deadline was.
        after: Duration,
    },
    /// The socket's level does not allow it.
    #[error("{}: `{command}` is not allowed: add `level admin` to the `stats socket` line", path.display())]
    Level {
        /// The socket.
        path: PathBuf,
        /// The command's first words.
        command: String,
    },
    /// More than any answer we ask for.
    #[error("{}: the answer is longer than {LIMIT} bytes", path.display())]
    Oversized {
        /// The socket.
        path: PathBuf,
    },
    /// It was closed before all was answered: HAProxy was stopped meanwhile.
    #[error("{}: closed after {answered} of {asked} answers: HAProxy ended or was reloaded; try again", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
        /// How many commands were answered.
        answered: usize,
        /// How many were asked.
        asked: usize,
    },
    /// The text is not one command.
    #[error("`{command}` is not one command of at most {COMMAND} bytes")]
    Command {
        /// What was to be sent, escaped.
        command: String,
    },
    /// Anything else.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SocketError {
    /// The word that metrics have.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Permission { .. } => "permission",
            Self::Refused { .. } => "refused",
            Self::TimedOut { .. } => "timeout",
            Self::Level { .. } => "level",
            Self::Oversized { .. } => "oversized",
            Self::Closed { .. } => "closed",
            Self::Command { .. } => "command",
            Self::Io { .. } => "io",
        }
    }
}

impl Socket {
    /// The socket at `path`, with [`DEADLINE`]. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            deadline: DEADLINE,
        }
    }

    /// The same with another deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The reply to one command, without the line ends after it.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn ask(&self, command: &str) -> Result<String, SocketError> {
        one_command(command)?;
        let mut text = self.exchange(format!("{command}\n")).await?;
        // Every reply ends a line, an empty one too: what does not was cut off.
        if !text.ends_with('\n') {
            return Err(SocketError::Closed {
                path: self.path.clone(),
                answered: 0,
                asked: 1,
            });
        }
        text.truncate(text.trim_end_matches('\n').len());
        self.permitted(command, text)
    }

    /// The replies to many commands, in order, over one connection. They are carried out in order, and not as a unit:
    /// after an error any number of them may have been.
    ///
    /// # Errors
    /// [`SocketError`]; `Level` if any of them is not allowed.
    pub async fn batch(&self, commands: &[String]) -> Result<Vec<String>, SocketError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut lines = String::from("prompt\n");
        for command in commands {
            one_command(command)?;
            lines.push_str(command);
            lines.push('\n');
        }
        lines.push_str("quit\n");
        let text = self.exchange(lines).await?;
        // Before the first prompt stands the reply to `prompt`, after the last one nothing.
        let mut replies: Vec<&str> = text.split(PROMPT).skip(1).collect();
        if replies.pop().is_none_or(|rest| !rest.is_empty()) || replies.len() != commands.len() {
            return Err(SocketError::Closed {
                path: self.path.clone(),
                answered: replies.len().min(commands.len()),
                asked: commands.len(),
            });
        }
        let each = commands.iter().zip(replies);
        each.map(|(command, reply)| {
            self.permitted(command, reply.trim_end_matches('\n').to_owned())
        })
        .collect()
    }

    fn permitted(&self, command: &str, reply: String) -> Result<String, SocketError> {
        if reply == "Permission denied" {
            let words: Vec<&str> = command.split(' ').take(2).collect();
            return Err(SocketError::Level {
                path: self.path.clone(),
                command: words.join(" "),
            });
        }
        Ok(reply)
    }

    /// Sends the lines and reads until HAProxy closes.
    async fn exchange(&self, lines: String) -> Result<String, SocketError> {
        let done = timeout(self.deadline, async {
            let (mut reader, mut writer) = self.connect().await?.into_split();
            let write = async {
                // HAProxy that closes early says why in what it sent before: the reader's finding counts.
                let _ = writer.write_all(lines.as_bytes()).await;
                // Without this the master's socket stays open after its reply.
                let _ = writer.shutdown().await;
            };
            // Both at once: HAProxy stops reading when nobody takes its replies.
            let ((), text) = tokio::join!(write, read(&mut reader));
            text
        });
        match done.await {
            Ok(Ok(Some(bytes))) => Ok(String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())),
            Ok(Ok(None)) => Err(SocketError::Oversized {
                path: self.path.clone(),
            }),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(SocketError::TimedOut {
                path: self.path.clone(),
                after: self.deadline,
            }),
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        loop {
            match UnixStream::connect(&self.path).await {
                // The queue of a listener is full: unlike TCP, a Unix socket does not wait for that by itself.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sleep(Duration::from_millis(5)).await;
                }
                other => return other,
            }
        }
    }

    fn failed(&self, source: io::Error) -> SocketError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound => SocketError::Missing { path },
            io::ErrorKind::PermissionDenied => SocketError::Permission { path },
            io::ErrorKind::ConnectionRefused => SocketError::Refused { path },
            _ => SocketError::Io { path, source },
        }
    }
}

/// Everything until the end; `None` when that is too much. A reset is an end too: HAProxy resets what it closes while
/// there is more to read.
async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match reader.take(LIMIT + 1).read_to_end(&mut bytes).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
        _ => {}
    }
    Ok((bytes.len() as u64 <= LIMIT).then_some(bytes))
}

/// The last defence: [`super::command`] lets nothing through that could be two commands.
fn one_command(command: &str) -> Result<(), SocketError> {
    let harmless = |c: char| !c.is_control() && c != ';' && c != '\\';
    if command.is_empty()
        || command.len() > COMMAND
        || !command.chars().all(harmless)
        || command.contains("<<")
    {
        return Err(SocketError::Command {
            command: crate::model::shown(command),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_command_is_refused() {
        for command in [
            "",
            "show info\nshow stat",
            "show info; shutdown sessions server b/s",
            "add map x <<",
            "show \\; info",
            &"x".repeat(COMMAND + 1),
        ] {
            assert!(one_command(command).is_err(), "{command:?}");
        }
        assert!(one_command("set server b/slot1 addr ::1 port 80").is_ok());
    }

    #[test]
    fn errors_say_what_to_do() {
        let socket = Socket::new("/run/x.sock");
        let error = socket.permitted("set server b/s weight 1", "Permission denied".to_owned());
        assert_eq!(
            error.unwrap_err().to_string(),
            "/run/x.sock: `set server` is not allowed: add `level admin` to the `stats socket` line"
        );
    }

    /// Root may open everything, so that no test with a real HAProxy sees this.
    #[test]
    fn a_socket_that_is_not_ours_is_named() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let text = Socket::new("/run/x.sock").failed(denied).to_string();
        assert!(
            text.starts_with("/run/x.sock: permission denied: give"),
            "{text}"
        );
    }
}
