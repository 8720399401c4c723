//! Paths in which a component may be `*`.

use std::fmt;

use crate::{Exit, Failure};

const MAX_PATH_LENGTH: usize = 1024;

/// A path whose components may be `*`, which matches any one name: `/aurora/*/prod/*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathPattern {
    text: String,
}

impl PathPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// Not an absolute path, or a component that contains `*` and more (exit 78).
    pub fn new(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            let shown = text.escape_debug();
            Failure::new(
                Exit::CONFIG,
                format!("invalid ZooKeeper path `{shown}`: {why}"),
            )
        };
        validate_path(text).map_err(wrong)?;
        let pattern = Self {
            text: text.to_owned(),
        };
        if pattern
            .components()
            .any(|one| one != "*" && one.contains('*'))
        {
            return Err(wrong("`*` must be a whole component"));
        }
        Ok(pattern)
    }

    /// Whether it contains no `*`.
    pub(super) fn is_literal(&self) -> bool {
        !self.text.contains('*')
    }

    /// The longest prefix without `*`, an ancestor of all matches; `/` if the first component is `*`.
    pub(super) fn root(&self) -> &str {
        match self.text.find("/*") {
            None => &self.text,
            Some(0) => "/",
            Some(end) => &self.text[..end],
        }
    }

    /// The number of components of a matching path.
    pub(super) fn depth(&self) -> usize {
        depth(&self.text)
    }

    /// Whether a path matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        depth(path) == self.depth() && self.covers(path)
    }

    /// Whether `path` is an ancestor of a possible match, a match, or below one.
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

/// The number of components of a path.
pub(super) fn depth(path: &str) -> usize {
    components(path).count()
}

pub(super) fn join_path(parent: &str, name: &str) -> String {
    let parent = if parent == "/" { "" } else { parent };
    format!("{parent}/{name}")
}

/// Checks that a path is absolute, normal, and without characters that garble a log.
pub(super) fn validate_path(path: &str) -> Result<(), &'static str> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err("it must begin with `/`");
    };
    if path.len() > MAX_PATH_LENGTH {
        return Err("it must have at most 1024 bytes");
    }
    if rest.chars().any(char::is_control) {
        return Err("it must not contain control characters");
    }
    if rest.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err("it must not end with `/` or contain an empty component, `.` or `..`");
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
    fn root_of_a_literal_pattern_is_the_pattern() {
        assert_eq!(PathPattern::new("/a/b").unwrap().root(), "/a/b");
        assert_eq!(PathPattern::new("/*/b").unwrap().root(), "/");
        assert!(PathPattern::new("/a/b").unwrap().is_literal());
    }

    #[test]
    fn invalid_path_is_rejected() {
        let long = format!("/{}", "x".repeat(MAX_PATH_LENGTH));
        for text in [
            "", "/", "a/b", "/a//b", "/a/", "/a/../b", "/a/b*", "/a\n", &long,
        ] {
            assert!(PathPattern::new(text).is_err(), "{text:?}");
        }
    }
}
