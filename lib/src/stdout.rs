//! stdout as an interface: results only. A closed pipe is not an error.

use std::io::{ErrorKind, Write as _};

use crate::printable::{escape_json, is_printable};
use crate::{Exit, Failure};

/// Writes one line to stdout. If the reader has closed the pipe, the process exits with 0.
///
/// # Errors
/// stdout cannot be written for another reason, such as a full disk (exit 74).
pub fn print_line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe =>
        {
            #[allow(
                clippy::disallowed_methods,
                reason = "a result without a reader ends the process"
            )]
            std::process::exit(Exit::OK.code().into())
        }
        Err(error) => Err(Failure::new(Exit::IO, "cannot write to stdout").because(error)),
    }
}

/// Replaces each unprintable character of untrusted text by `?`.
#[must_use]
pub fn replace_unprintable(text: &str) -> String {
    text.replace(|c| !is_printable(c), "?")
}

/// Writes text that contains its own line ends, as [`print_line`] does.
///
/// # Errors
/// As [`print_line`].
pub fn print_text(text: &str) -> Result<(), Failure> {
    match text.strip_suffix('\n') {
        Some(text) => print_line(text),
        None if text.is_empty() => Ok(()),
        None => print_line(text),
    }
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`print_line`].
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print_line(escape_json(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unprintable_characters_are_replaced() {
        for (text, expected) in [
            ("s3://b/gr\u{fc}n-1.2.pex", "s3://b/gr\u{fc}n-1.2.pex"),
            ("a\u{1b}[31m\u{9b}\n\u{7f}", "a?[31m???"),
            ("\u{202e}xep\u{2066}\u{200f}\u{feff}", "?xep???"),
        ] {
            assert_eq!(replace_unprintable(text), expected);
        }
    }
}
