//! Results of Nagios plugins: an exit code and one line on stdout, with performance data behind `|`.

use std::ffi::OsString;

use crate::printable::is_printable;
use crate::{Exit, Failure, stdout};

/// The status of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NagiosStatus {
    /// Healthy.
    Ok,
    /// Healthy, but close to a threshold.
    Warning,
    /// Unhealthy.
    Critical,
    /// The check failed.
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

    /// The word on the line.
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
        escape(text),
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

/// Escapes control characters, and the `|` that starts performance data.
#[must_use]
pub fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped: Vec<char> = match c {
                '|' => "\\x7c".chars().collect(),
                c if !is_printable(c) => c.escape_default().collect(),
                c => vec![c],
            };
            escaped
        })
        .collect()
}

/// Whether a command line, valid or not, has this switch.
#[must_use]
pub fn has_switch(line: &[OsString], switch: &str) -> bool {
    line.iter().filter_map(|word| word.to_str()).any(|word| {
        let rest = word.strip_prefix(switch);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// The line for an invalid command line: the first paragraph of clap's error.
pub(crate) fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    format!("UNKNOWN - {}", escape(&words.join(" ")))
}
