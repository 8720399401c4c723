//! Results as a Nagios plugin gives them: an exit code and one line on stdout, with performance data behind `|`.

use std::ffi::OsString;

use crate::printable::is_printable;
use crate::{Exit, Failure, stdout};

/// The state of what was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NagiosStatus {
    /// Healthy.
    Ok,
    /// Healthy, but close to not being so.
    Warning,
    /// Not healthy.
    Critical,
    /// It could not be checked.
    Unknown,
}

impl NagiosStatus {
    /// The exit code.
    #[must_use]
    pub const fn exit(self) -> Exit {
        Exit::from_code(match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        })
    }

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Prints a result.
///
/// # Errors
/// stdout cannot be written.
pub fn print(status: NagiosStatus, text: &str, data: Option<&str>) -> Result<Exit, Failure> {
    let data = data.map(|data| format!(" | {data}"));
    stdout::print_line(format_args!(
        "{}: {}{}",
        status.as_str(),
        printable(text),
        data.unwrap_or_default()
    ))?;
    Ok(status.exit())
}

/// A failure and its causes as one text.
#[must_use]
pub fn text_of(failure: &Failure) -> String {
    let causes = failure
        .causes()
        .into_iter()
        .map(|cause| format!("; {cause}"));
    format!("{failure}{}", causes.collect::<String>())
}

/// A text on one line, and without what begins performance data.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let shown: Vec<char> = match c {
                '|' => "\\x7c".chars().collect(),
                c if !is_printable(c) => c.escape_default().collect(),
                c => vec![c],
            };
            shown
        })
        .collect()
}

/// Whether a command line, which need not be a valid one, has this switch.
#[must_use]
pub fn has_switch(line: &[OsString], switch: &str) -> bool {
    line.iter().filter_map(|word| word.to_str()).any(|word| {
        let rest = word.strip_prefix(switch);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// The line for a wrong command line: what clap says first, without its usage.
pub(crate) fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    format!("UNKNOWN - {}", printable(&words.join(" ")))
}
