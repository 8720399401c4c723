//! The parts of a backend that would be most of its size if each had its own copy: where it was found, and its labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use hostkit::zookeeper::ZnodeName;
use serde::{Serialize, Serializer};

/// Where something was found: a znode, a file, `default_servers`. What is found in one place shares the text of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    place: Arc<str>,
    name: ZnodeName,
}

impl Source {
    /// `name` below `place`, between which a slash stands.
    #[must_use]
    pub const fn below(place: Arc<str>, name: ZnodeName) -> Self {
        Self { place, name }
    }

    /// What stands before the last slash; empty where there is none.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The rest.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        self.name.text()
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        match text.rsplit_once('/') {
            Some((place, name)) if !place.is_empty() => Self::below(place.into(), name.into()),
            _ => Self::below(Arc::default(), text.into()),
        }
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}/", self.place)?;
        }
        write!(f, "{}", self.name)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What most backends do not have.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rare {
    /// The registered name (Nerve's `name`, `default_servers`).
    pub name: Option<Box<str>>,
    /// Options for its HAProxy server line alone, checked as [`safe_options`](super::safe_options) does.
    pub options: Option<Box<str>>,
    /// The HAProxy server id that was registered.
    pub server_id: Option<u32>,
    /// What filters select by.
    pub labels: BTreeMap<String, String>,
}

/// The same, in a box where there is any: a backend is a third smaller without.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rarely(Option<Box<Rare>>);

impl From<Rare> for Rarely {
    fn from(rare: Rare) -> Self {
        Self((rare != Rare::default()).then(|| Box::new(rare)))
    }
}

impl Rarely {
    /// Changes it.
    pub fn edit(&mut self, change: impl FnOnce(&mut Rare)) {
        let mut rare = self.0.take().map(|rare| *rare).unwrap_or_default();
        change(&mut rare);
        *self = rare.into();
    }
}

impl Deref for Rarely {
    type Target = Rare;

    fn deref(&self) -> &Self::Target {
        static NONE: Rare = Rare {
            name: None,
            options: None,
            server_id: None,
            labels: BTreeMap::new(),
        };
        self.0.as_deref().unwrap_or(&NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_the_text_that_it_was_made_of() {
        for text in ["", "base", "/x", "/a/b", "/a//b", "a/", "/"] {
            assert_eq!(Source::from(text).to_string(), text);
        }
        let source = Source::from("/aurora/job/member_1");
        assert_eq!(
            (source.place(), &*source.name()),
            ("/aurora/job", "member_1")
        );
        assert_eq!(
            source,
            Source::below("/aurora/job".into(), "member_1".into())
        );
    }

    #[test]
    fn nothing_is_nothing_however_it_came_about() {
        assert_eq!(Rarely::from(Rare::default()), Rarely::default());
        let mut rarely = Rarely::default();
        rarely.edit(|rare| rare.server_id = Some(7));
        assert_eq!(rarely.server_id, Some(7));
        rarely.edit(|rare| rare.server_id = None);
        assert_eq!(rarely, Rarely::default());
    }
}
