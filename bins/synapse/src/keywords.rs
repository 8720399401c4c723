//! Which proxy keyword of HAProxy stands in which section.
//!
//! Owns the lookup; the facts are in `table`. Arguments are not looked at: `haproxy -c` does that.

mod table;

use table::{GONE, KEYWORDS, LEAVING};

/// A proxy keyword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyword {
    /// One to three words.
    pub name: &'static str,
    places: &'static str,
}

/// A kind of section that synapse writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// An anonymous `defaults`.
    Defaults,
    /// A `frontend`.
    Frontend,
    /// A `backend`.
    Backend,
}

impl Section {
    /// HAProxy's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Frontend => "frontend",
            Self::Backend => "backend",
        }
    }
}

impl Keyword {
    /// Whether the section takes it.
    #[must_use]
    pub fn fits(&self, section: Section) -> bool {
        self.places.contains(match section {
            Section::Defaults => 'D',
            Section::Frontend => 'F',
            Section::Backend => 'B',
        })
    }

    /// Why it will not work with every version of HAProxy from 2.4 on.
    #[must_use]
    pub fn leaving(&self) -> Option<&'static str> {
        LEAVING
            .iter()
            .find(|(name, _)| *name == self.name)
            .map(|(_, why)| *why)
    }
}

/// What a line's keyword is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// A keyword.
    Known(Keyword),
    /// A keyword before which `no` must not stand.
    NoInverse(Keyword),
    /// A keyword of older versions: the version that took it away, and what to do.
    Gone(&'static str, &'static str),
    /// Nothing: the keyword that was perhaps meant.
    Unknown(Option<&'static str>),
}

/// Every keyword.
pub fn all() -> impl Iterator<Item = Keyword> {
    KEYWORDS
        .iter()
        .map(|(name, places)| Keyword { name, places })
}

/// The keywords that no version from 2.4 on takes.
pub fn gone() -> impl Iterator<Item = &'static str> {
    GONE.iter().map(|(name, ..)| *name)
}

/// Finds the keyword that `line` begins with.
#[must_use]
pub fn find(line: &str) -> Lookup {
    let mut words = line.split_ascii_whitespace().peekable();
    // `no option x` turns it off, `default option x` takes it back to HAProxy's own default.
    let inverse = words
        .next_if(|word| matches!(*word, "no" | "default"))
        .is_some();
    let mut name = String::new();
    let mut known = None;
    for word in words.take(3) {
        if !name.is_empty() {
            name.push(' ');
        }
        name.push_str(word);
        if let Ok(at) = KEYWORDS.binary_search_by(|(known, _)| (*known).cmp(&name)) {
            let (name, places) = KEYWORDS[at];
            known = Some(Keyword { name, places });
        }
        if let Some((_, version, remedy)) = GONE.iter().find(|(gone, ..)| *gone == name) {
            return Lookup::Gone(version, remedy);
        }
    }
    match known {
        Some(keyword) if inverse && !keyword.places.contains('!') => Lookup::NoInverse(keyword),
        Some(keyword) => Lookup::Known(keyword),
        None => Lookup::Unknown(nearest(&name)),
    }
}

fn nearest(wrong: &str) -> Option<&'static str> {
    // Compared word by word with as many words as the keyword has: arguments are not misspelt keywords.
    KEYWORDS
        .iter()
        .map(|(name, _)| {
            let words = name.split(' ').count();
            let start: Vec<&str> = wrong.split(' ').take(words).collect();
            (
                strsim::normalized_damerau_levenshtein(&start.join(" "), name),
                *name,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
