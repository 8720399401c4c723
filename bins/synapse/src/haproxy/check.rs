//! Asking HAProxy whether it would take a file: `haproxy -c`, and the operator's `check_command`.
//!
//! It says nothing of ports that others hold, nor of the limit of open files: [`super::bind`] and [`super::limits`] do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::spawn::{self, Ended};
use crate::model::shown;

/// How long a check may take: 100,000 servers take 1.8 s on one free core.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How many alerts are kept.
const ALERTS: usize = 100;

/// One thing HAProxy says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// The line of the file, from 1, when it says one.
    pub line: Option<usize>,
    /// What it says, without the process and the place.
    pub text: String,
    /// Whether it is why the file is refused; otherwise it is a warning.
    pub fatal: bool,
}

/// Why a file is not good, or could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// HAProxy refuses it.
    #[error("HAProxy refuses {}: {}", file.display(), first(alerts))]
    Refused {
        /// The file.
        file: PathBuf,
        /// What it says, warnings too.
        alerts: Vec<Alert>,
    },
    /// `check_command` refuses it.
    #[error("check_command `{command}` refuses the file: {output}")]
    Command {
        /// The command.
        command: String,
        /// How it ended, and the last it said.
        output: String,
    },
    /// No verdict in time.
    #[error(
        "`{command}` gave no verdict within {after:?}: the host is overloaded, or the file is huge"
    )]
    TimedOut {
        /// What was run.
        command: String,
        /// The deadline.
        after: Duration,
    },
    /// The program did not start.
    #[error("cannot run `{command}`: install haproxy, or correct `binary`")]
    Start {
        /// What was to be run.
        command: String,
        /// Why not.
        source: io::Error,
    },
}

/// The first fatal alert, in words.
fn first(alerts: &[Alert]) -> String {
    let fatal = alerts.iter().find(|alert| alert.fatal);
    match fatal {
        Some(Alert {
            line: Some(line),
            text,
            ..
        }) => format!("line {line}: {text}"),
        Some(alert) => alert.text.clone(),
        None => "it does not say why".to_owned(),
    }
}

/// Runs `haproxy -c` on the file; its warnings come back.
///
/// # Errors
/// [`CheckError`].
pub async fn check(
    binary: &Path,
    file: &Path,
    deadline: Duration,
) -> Result<Vec<Alert>, CheckError> {
    let mut command = Command::new(binary);
    command.arg("-c").arg("-f").arg(file);
    let shown = format!("{} -c -f {}", binary.display(), file.display());
    let ended = run(command, shown, deadline).await?;
    let alerts = alerts(file, &ended.output);
    if ended.success() {
        return Ok(alerts);
    }
    Err(CheckError::Refused {
        file: file.to_owned(),
        alerts,
    })
}

/// Runs the operator's `check_command`.
///
/// # Errors
/// [`CheckError`].
pub async fn check_command(line: &str, deadline: Duration) -> Result<(), CheckError> {
    let ended = run(spawn::shell(line), line.to_owned(), deadline).await?;
    if ended.success() {
        return Ok(());
    }
    Err(CheckError::Command {
        command: line.to_owned(),
        output: ended.shown(),
    })
}

async fn run(command: Command, shown: String, deadline: Duration) -> Result<Ended, CheckError> {
    match spawn::run(command, deadline).await {
        Ok(ended) if ended.status.is_some() => Ok(ended),
        Ok(_) => Err(CheckError::TimedOut {
            command: shown,
            after: deadline,
        }),
        Err(source) => Err(CheckError::Start {
            command: shown,
            source,
        }),
    }
}

/// What HAProxy says of `file`. A line is `[ALERT]    (123) : config : parsing [FILE:12] : what is wrong.`, with fewer
/// parts where there is no place.
fn alerts(file: &Path, output: &str) -> Vec<Alert> {
    let place = format!("[{}:", file.display());
    let lines = output.lines().filter_map(|line| {
        let (fatal, rest) = match line.strip_prefix("[ALERT]") {
            Some(rest) => (true, rest),
            None => (false, line.strip_prefix("[WARNING]")?),
        };
        let text = rest.split_once(") : ").map_or(rest, |(_, text)| text);
        let text = text.strip_prefix("config : ").unwrap_or(text);
        let found = text.split_once(&place).and_then(|(_, after)| {
            let (number, after) = after.split_once(']')?;
            Some((
                number.parse().ok()?,
                after.trim_start_matches([' ', ':']).trim_end(),
            ))
        });
        let (line, text) = found.map_or((None, text), |(line, text)| (Some(line), text));
        // The summary that ends every refusal says nothing.
        let summary = text.starts_with("Error(s) found in configuration file")
            || text.starts_with("Fatal errors found in configuration");
        (!summary).then(|| Alert {
            line,
            text: shown(text),
            fatal,
        })
    });
    lines.take(ALERTS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alerts_have_their_lines() {
        let output = "[NOTICE]   (8) : haproxy version is 2.6.12-1+deb12u4\n\
            [ALERT]    (8) : config : parsing [/x/a.cfg:2] : unknown keyword 'bogus' in 'global' section\n\
            [ALERT]    (8) : config : [/x/a.cfg:15] : 'server b/v' : 'id' : custom id 7 already used at /x/a.cfg:14 ('server u').\n\
            [ALERT]    (8) : config : parsing [/x/a.cfg:2]: Missing LF on last line, file might have been truncated at position 11.\n\
            [WARNING]  (8) : config : Proxy 'f': unable to find required default_backend: 'nope'.\n\
            [ALERT]    (8) : config : Error(s) found in configuration file : /x/a.cfg\n\
            [ALERT]    (8) : config : Fatal errors found in configuration.\n";
        let found = alerts(Path::new("/x/a.cfg"), output);
        let lines: Vec<_> = found.iter().map(|alert| alert.line).collect();
        assert_eq!(lines, [Some(2), Some(15), Some(2), None]);
        assert_eq!(found[0].text, "unknown keyword 'bogus' in 'global' section");
        assert!(found[0].fatal && !found[3].fatal);
        let error = CheckError::Refused {
            file: "/x/a.cfg".into(),
            alerts: found,
        };
        assert_eq!(
            error.to_string(),
            "HAProxy refuses /x/a.cfg: line 2: unknown keyword 'bogus' in 'global' section"
        );
    }

    proptest! {
        #[test]
        fn any_output_is_read_without_a_panic(text: String, number: u64) {
            let _ = alerts(Path::new("/x"), &text);
            let _ = alerts(Path::new("/x"), &format!("[ALERT] (1) : config : [/x:{number}]{text}"));
        }
    }
}
