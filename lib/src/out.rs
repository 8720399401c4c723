//! stdout as an interface: results only, and a reader that has gone away is not an error.

use std::io::{ErrorKind, Write as _};

use crate::{Exit, Failure};

/// Writes one line of result to stdout. When the reader has closed the pipe the process ends with 0: whoever asked has
/// seen enough.
///
/// # Errors
/// stdout cannot be written for another reason, such as a full disk (exit 74).
pub fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe =>
        {
            #[allow(
                clippy::disallowed_methods,
                reason = "the one place where a result has no reader left"
            )]
            std::process::exit(Exit::OK.code().into())
        }
        Err(error) => Err(Failure::new(Exit::IO, "cannot write to stdout").because(error)),
    }
}

/// A text of others with `?` for each character that a terminal obeys or that shows nothing of itself: controls, and
/// Unicode's invisible and bidirectional ones, which reorder what stands beside them.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_format = |c| matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.replace(|c: char| c.is_control() || is_format(c), "?")
}

/// Writes a text that ends its own lines, as [`line()`] does.
///
/// # Errors
/// As [`line()`].
pub fn text(text: &str) -> Result<(), Failure> {
    match text.strip_suffix('\n') {
        Some(text) => line(text),
        None if text.is_empty() => Ok(()),
        None => line(text),
    }
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &serde_json::Value) -> Result<(), Failure> {
    line(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_terminal_shows_as_it_is_stays() {
        for (text, expected) in [
            ("s3://b/gr\u{fc}n-1.2.pex", "s3://b/gr\u{fc}n-1.2.pex"),
            ("a\u{1b}[31m\u{9b}\n\u{7f}", "a?[31m???"),
            ("\u{202e}xep\u{2066}\u{200f}\u{feff}", "?xep???"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }
}
