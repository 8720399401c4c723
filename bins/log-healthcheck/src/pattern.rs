//! What a line must begin with: a literal, found at the speed of memory, or a regular expression.

use memchr::memmem::Finder;
use regex_lite::{Regex, RegexBuilder};

/// A literal of more bytes is refused.
const LITERAL: usize = 1024;
/// Bytes of a line that a regular expression is shown.
const SHOWN: usize = 4096;
/// Memory that a compiled regular expression may take (bytes).
const COMPILED: usize = 1 << 18;

/// What a line must begin with.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Finds a newline with the literal behind it.
    Literal(Box<Finder<'static>>),
    Regex(Regex),
}

impl Pattern {
    /// Lines that begin with `text` itself; empty means any line.
    ///
    /// # Errors
    /// `text` cannot be the beginning of a line, or is too long; the message says which.
    pub fn literal(text: &str) -> Result<Self, String> {
        if text.len() > LITERAL {
            return Err(format!("it is longer than {LITERAL} bytes"));
        }
        if text.contains(['\n', '\0']) {
            return Err("a line holds no newline and no NUL".to_owned());
        }
        let needle = format!("\n{text}");
        Ok(Self {
            text: text.to_owned(),
            kind: Kind::Literal(Box::new(Finder::new(needle.as_bytes()).into_owned())),
        })
    }

    /// Lines of which a beginning matches the regular expression `text`. Of a line 4096 bytes are looked at.
    ///
    /// # Errors
    /// `text` is no regular expression, or one that is too large; the message says which.
    pub fn regex(text: &str) -> Result<Self, String> {
        // By itself first: `a)|(b` would only be one in our brackets.
        let compile = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(COMPILED)
                .build()
                .map_err(|error| error.to_string())
        };
        compile(text)?;
        Ok(Self {
            text: text.to_owned(),
            kind: Kind::Regex(compile(&format!("^(?:{text})"))?),
        })
    }

    /// As it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many bytes of a line [`Self::candidates`] must have before it.
    pub(crate) fn overlap(&self) -> usize {
        match &self.kind {
            Kind::Literal(finder) => finder.needle().len() - 1,
            Kind::Regex(_) => 0,
        }
    }

    /// Calls `found` with the place of each newline in `bytes` behind which there may be a line to ask
    /// [`Self::begins`] about, in their order.
    pub(crate) fn candidates(&self, bytes: &[u8], mut found: impl FnMut(usize)) {
        match &self.kind {
            Kind::Literal(finder) if finder.needle().len() > 1 => {
                finder.find_iter(bytes).for_each(&mut found);
            }
            _ => memchr::memchr_iter(b'\n', bytes).for_each(&mut found),
        }
    }

    /// Whether the line begins so, as far as its bytes are known.
    pub(crate) fn begins(&self, line: &[u8]) -> bool {
        match &self.kind {
            Kind::Literal(finder) => line.starts_with(&finder.needle()[1..]),
            Kind::Regex(regex) => {
                let shown = &line[..line.len().min(SHOWN)];
                regex.is_match(&String::from_utf8_lossy(shown))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        let pattern = Pattern::literal("{").unwrap();
        assert!(pattern.begins(b"{") && pattern.begins(b"{\"a\":1}"));
        assert!(!pattern.begins(b"") && !pattern.begins(b" {"));
        let mut found = Vec::new();
        pattern.candidates(b"{\n{ {\n\n{", |place| found.push(place));
        assert_eq!(found, [1, 6]);
        assert!(Pattern::literal("").unwrap().begins(b""));
        assert!(Pattern::literal("a\nb").is_err() && Pattern::literal("\0").is_err());
        assert!(Pattern::literal(&"x".repeat(LITERAL + 1)).is_err());
    }

    #[test]
    fn regular_expressions_are_tied_to_the_beginning() {
        let pattern = Pattern::regex("(INFO|WARN) ").unwrap();
        assert!(pattern.begins(b"WARN x\xff") && !pattern.begins(b" INFO x"));
        let either = Pattern::regex("a|b").unwrap();
        assert!(either.begins(b"bx") && !either.begins(b"xb"));
        for wrong in ["(", "a)|(b", r"(\w{1000}){1000}"] {
            assert!(Pattern::regex(wrong).is_err(), "{wrong}");
        }
    }
}
