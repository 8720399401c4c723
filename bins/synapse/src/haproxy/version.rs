//! HAProxy's version, and what depends on it.

use std::fmt;

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// The version at the start of `2.6.12-1+deb12u4`, `3.0-dev3` or `2.8.3`; a missing patch is 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |part: &str| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().ok()
        };
        let mut parts = text.trim().splitn(3, '.');
        let (major, minor) = (number(parts.next()?)?, number(parts.next()?)?);
        let patch = parts.next().and_then(number).unwrap_or_default();
        Some(Self(major, minor, patch))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What a version of HAProxy can do, of what synapse uses (HAProxy's CHANGELOG and management guides).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Whether synapse knows this version: 2.4 to 3.x.
    pub supported: bool,
    /// `add server` and `del server` (2.4).
    pub dynamic_servers: bool,
    /// They must be asked for with `experimental-mode on` (2.4, 2.5).
    pub experimental: bool,
    /// `check` and `agent-check` of dynamic servers, switched on by `enable health` (2.5).
    pub dynamic_checks: bool,
    /// The master's `reload` says how it went: `Success=1` (2.7).
    pub reload_answers: bool,
}

impl Features {
    /// Those of a version.
    #[must_use]
    pub fn of(version: Version) -> Self {
        let from = |major, minor| version >= Version(major, minor, 0);
        Self {
            supported: from(2, 4) && version.0 < 4,
            dynamic_servers: from(2, 4),
            experimental: from(2, 4) && !from(2, 6),
            dynamic_checks: from(2, 5),
            reload_answers: from(2, 7),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, expected) in [
            ("2.6.12-1+deb12u4", Some(Version(2, 6, 12))),
            ("2.4.0", Some(Version(2, 4, 0))),
            ("3.0-dev3", Some(Version(3, 0, 0))),
            ("2", None),
            ("x.y.z", None),
            ("99999999.1", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn features_begin_and_end() {
        let of = |major, minor| Features::of(Version(major, minor, 3));
        assert!(!of(2, 3).supported && of(2, 4).supported && of(3, 4).supported);
        assert!(of(2, 5).experimental && !of(2, 6).experimental && of(2, 6).dynamic_servers);
        assert!(!of(2, 6).reload_answers && of(2, 7).reload_answers);
        assert!(!of(4, 0).supported);
    }
}
