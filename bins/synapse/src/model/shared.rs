//! The parts of a backend that would be most of its size if each had its own copy: where it was found, and its labels.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use hostkit::zookeeper::Name;
use serde::{Serialize, Serializer};

/// Where something was found: a znode, a file, `default_servers`. What is found in one place shares the text of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    place: Arc<str>,
    name: Name,
}

impl Source {
    /// `name` below `place`, between which a slash stands.
    #[must_use]
    pub const fn below(place: Arc<str>, name: Name) -> Self {
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

/// Labels, which most backends do not have.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    clippy::box_collection,
    reason = "a third of the size where there are none, which is the rule"
)]
pub struct Labels(Option<Box<BTreeMap<String, String>>>);

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self((!labels.is_empty()).then(|| Box::new(labels)))
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        Self::from(BTreeMap::from_iter(labels))
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
    fn no_labels_are_no_labels_however_they_came_about() {
        assert_eq!(Labels::from(BTreeMap::new()), Labels::default());
        assert_eq!(Labels::default().get("az"), None);
    }
}
