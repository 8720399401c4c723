//! Paths in which a component may be `*`.

use std::fmt;

use crate::{Exit, Failure};

/// The longest path, in bytes.
const LENGTH: usize = 1024;

/// A path whose components may be `*`, each of which stands for any one name: `/aurora/*/prod/*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPattern {
    text: String,
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It is not an absolute path, or `*` is only a part of a component (exit 78).
    pub fn new(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            let shown = text.escape_debug();
            Failure::new(Exit::CONFIG, format!("ZooKeeper path `{shown}`: {why}"))
        };
        validate_path(text).map_err(wrong)?;
        let pattern = Self {
            text: text.to_owned(),
        };
        if pattern
            .components()
            .any(|one| one != "*" && one.contains('*'))
        {
            return Err(wrong("`*` stands for a whole component or not at all"));
        }
        Ok(pattern)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has no `*`.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        !self.text.contains('*')
    }

    /// The longest prefix without `*`, which is an ancestor of all that matches; `/` when the first component is one.
    #[must_use]
    pub fn root(&self) -> &str {
        match self.text.find("/*") {
            None => &self.text,
            Some(0) => "/",
            Some(end) => &self.text[..end],
        }
    }

    /// How many components a matching path has.
    #[must_use]
    pub fn depth(&self) -> usize {
        depth(&self.text)
    }

    /// Whether a path matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        depth(path) == self.depth() && self.covers(path)
    }

    /// Whether `path` matches as far as both go: it is an ancestor of what may match, matches, or is below what does.
    pub(super) fn covers(&self, path: &str) -> bool {
        let mut theirs = components(path);
        self.components()
            .all(|one| theirs.next().is_none_or(|name| one == "*" || one == name))
    }

    /// The component at `level`, from 0.
    pub(super) fn component(&self, level: usize) -> Option<&str> {
        self.components().nth(level)
    }

    fn components(&self) -> impl Iterator<Item = &str> {
        components(&self.text)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// How many components a path has.
pub(super) fn depth(path: &str) -> usize {
    components(path).count()
}

/// The path of a child.
pub(super) fn join(parent: &str, name: &str) -> String {
    let parent = if parent == "/" { "" } else { parent };
    format!("{parent}/{name}")
}

/// Whether a path is one: absolute, normal, and without characters that would garble a log.
pub(super) fn validate_path(path: &str) -> Result<(), &'static str> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err("a path begins with `/`");
    };
    if path.len() > LENGTH {
        return Err("a path has at most 1024 bytes");
    }
    if rest.chars().any(char::is_control) {
        return Err("a path has no control characters");
    }
    if rest.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err("a path has no empty component, no `.` and no `..`, and does not end with `/`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_components() {
        let pattern = PathPattern::new("/aurora/*/prod/*").unwrap();
        assert_eq!((pattern.root(), pattern.depth()), ("/aurora", 4));
        assert!(pattern.matches("/aurora/www/prod/eightball"));
        for other in [
            "/aurora/www/prod",
            "/aurora/www/test/eightball",
            "/aurora/www/prod/eightball/member_1",
            "/nerve/www/prod/eightball",
        ] {
            assert!(!pattern.matches(other), "{other}");
        }
        for ancestor in ["/", "/aurora", "/aurora/www", "/aurora/www/prod"] {
            assert!(pattern.covers(ancestor), "{ancestor}");
        }
        assert!(pattern.covers("/aurora/www/prod/eightball/member_1"));
        assert!(!pattern.covers("/aurora/www/test"));
    }

    #[test]
    fn the_root_of_a_literal_is_itself() {
        assert_eq!(PathPattern::new("/a/b").unwrap().root(), "/a/b");
        assert_eq!(PathPattern::new("/*/b").unwrap().root(), "/");
        assert!(PathPattern::new("/a/b").unwrap().is_literal());
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long = format!("/{}", "x".repeat(LENGTH));
        for text in [
            "", "/", "a/b", "/a//b", "/a/", "/a/../b", "/a/b*", "/a\n", &long,
        ] {
            assert!(PathPattern::new(text).is_err(), "{text:?}");
        }
    }
}
