//! The pattern that a line must begin with: a literal, searched at memory speed, or a regular expression.

use memchr::memmem::Finder;
use regex_lite::{Regex, RegexBuilder};

const MAX_LITERAL_BYTES: usize = 1024;
/// The part of a line that a regular expression is matched against (bytes).
const MAX_REGEX_INPUT: usize = 4096;
/// The memory limit of a compiled regular expression (bytes).
const MAX_REGEX_MEMORY: usize = 1 << 18;

#[derive(Debug)]
pub(crate) struct LinePattern {
    text: String,
    kind: PatternKind,
}

#[derive(Debug)]
enum PatternKind {
    /// Searches for a newline followed by the literal.
    Literal(Box<Finder<'static>>),
    Regex(Regex),
}

impl LinePattern {
    /// Matches lines that begin with `text`; empty matches any line.
    ///
    /// # Errors
    /// `text` contains a newline or NUL, or is too long.
    pub(crate) fn literal(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LITERAL_BYTES {
            return Err(format!("longer than {MAX_LITERAL_BYTES} bytes"));
        }
        if text.contains(['\n', '\0']) {
            return Err("it contains a newline or NUL".to_owned());
        }
        let needle = format!("\n{text}");
        Ok(Self {
            text: text.to_owned(),
            kind: PatternKind::Literal(Box::new(Finder::new(needle.as_bytes()).into_owned())),
        })
    }

    /// Matches lines with a beginning that matches the regular expression `text`, within their first 4096 bytes.
    ///
    /// # Errors
    /// `text` is an invalid or too large regular expression.
    pub(crate) fn regex(text: &str) -> Result<Self, String> {
        // Compiled by itself first: `a)|(b` would be valid only within our group.
        let compile = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(MAX_REGEX_MEMORY)
                .build()
                .map_err(|error| error.to_string())
        };
        compile(text)?;
        Ok(Self {
            text: text.to_owned(),
            kind: PatternKind::Regex(compile(&format!("^(?:{text})"))?),
        })
    }

    /// The text of the pattern.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The number of bytes of a line that [`Self::find_candidates`] needs after the newline.
    pub(crate) fn overlap(&self) -> usize {
        match &self.kind {
            PatternKind::Literal(finder) => finder.needle().len() - 1,
            PatternKind::Regex(_) => 0,
        }
    }

    /// Calls `found` with the position of each newline in `bytes` that may precede a matching line, in order.
    pub(crate) fn find_candidates(&self, bytes: &[u8], mut found: impl FnMut(usize)) {
        match &self.kind {
            PatternKind::Literal(finder) if finder.needle().len() > 1 => {
                finder.find_iter(bytes).for_each(&mut found);
            }
            _ => memchr::memchr_iter(b'\n', bytes).for_each(&mut found),
        }
    }

    /// Whether the available bytes of a line match.
    pub(crate) fn matches(&self, line: &[u8]) -> bool {
        match &self.kind {
            PatternKind::Literal(finder) => line.starts_with(&finder.needle()[1..]),
            PatternKind::Regex(regex) => {
                let start = &line[..line.len().min(MAX_REGEX_INPUT)];
                regex.is_match(&String::from_utf8_lossy(start))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_matches_at_the_beginning_of_a_line() {
        let pattern = LinePattern::literal("{").unwrap();
        assert!(pattern.matches(b"{") && pattern.matches(b"{\"a\":1}"));
        assert!(!pattern.matches(b"") && !pattern.matches(b" {"));
        let mut found = Vec::new();
        pattern.find_candidates(b"{\n{ {\n\n{", |place| found.push(place));
        assert_eq!(found, [1, 6]);
        assert!(LinePattern::literal("").unwrap().matches(b""));
        assert!(LinePattern::literal("a\nb").is_err() && LinePattern::literal("\0").is_err());
        assert!(LinePattern::literal(&"x".repeat(MAX_LITERAL_BYTES + 1)).is_err());
    }

    #[test]
    fn regular_expression_is_anchored_at_the_beginning() {
        let pattern = LinePattern::regex("(INFO|WARN) ").unwrap();
        assert!(pattern.matches(b"WARN x\xff") && !pattern.matches(b" INFO x"));
        let either = LinePattern::regex("a|b").unwrap();
        assert!(either.matches(b"bx") && !either.matches(b"xb"));
        for wrong in ["(", "a)|(b", r"(\w{1000}){1000}"] {
            assert!(LinePattern::regex(wrong).is_err(), "{wrong}");
        }
    }
}
