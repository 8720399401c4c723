//! The text of an ACL file: a list of keys, valid as a whole or not at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hostkit::{Exit, Failure, config, file_watcher};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use sha2::{Digest as _, Sha256};

use crate::grant::{Grant, KeyHash, read};

/// The largest file (bytes).
const LIMIT: u64 = 64 << 20;
/// The most keys.
const KEYS: usize = 1_000_000;

/// The keys of a file.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) grants: HashMap<KeyHash, Arc<Grant>>,
    /// SHA-256 of the text, as hex.
    pub(super) sha256: String,
}

/// What to do about an ACL file that is missing.
pub(crate) const REMEDY_MISSING: &str =
    "name a file that is there; `authproxy key new --into` makes one";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    keys: Keys,
}

struct Keys(HashMap<KeyHash, Arc<Grant>>);

/// One key as people write it. The members of a `Grant` once more, because unknown ones are mistakes here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(deserialize_with = "read::id")]
    id: String,
    sha256: KeyHash,
    #[serde(deserialize_with = "read::rights")]
    rights: Vec<String>,
    #[serde(default, deserialize_with = "read::hosts")]
    hosts: Vec<String>,
    #[serde(default, deserialize_with = "read::paths")]
    paths: Vec<String>,
    #[serde(default, deserialize_with = "read::methods")]
    methods: Vec<String>,
    #[serde(default, deserialize_with = "read::expires")]
    expires: Option<u64>,
}

/// An entry, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AclEntry {
    pub(crate) key: KeyHash,
    pub(crate) grant: Grant,
    /// The line of its first member, counted from 0.
    pub(crate) line: usize,
    /// The characters before that.
    pub(crate) column: usize,
}

/// The text of an ACL file.
///
/// # Errors
/// It cannot be read (exit 78).
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    file_watcher::read_text(path, LIMIT).map_err(|why| {
        let failure = Failure::new(Exit::CONFIG, why);
        match path.try_exists() {
            Ok(false) => failure.remedy(REMEDY_MISSING),
            _ => failure,
        }
    })
}

/// The entries of a text, in their order.
///
/// # Errors
/// It is not valid (exit 78).
pub(crate) fn read_entries(path: &Path, text: &str) -> Result<Vec<AclEntry>, Failure> {
    #[derive(Deserialize)]
    struct Spans {
        keys: Vec<Spanned<Entry>>,
    }
    // What is not valid as a whole has no entries.
    parse::<Text>(path, text)?;
    let place = |number: u64| {
        usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_sub(1)
    };
    let listed = |entry: Spanned<Entry>| AclEntry {
        key: entry.value.sha256,
        line: place(entry.referenced.line()),
        column: place(entry.referenced.column()),
        grant: entry.value.into(),
    };
    Ok(parse::<Spans>(path, text)?
        .keys
        .into_iter()
        .map(listed)
        .collect())
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    // What is counted here cannot be more than the bytes of the file are.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: LIMIT as usize,
            max_nodes: LIMIT as usize,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| config::explain(path, &error))
}

/// Reads a file; none if its text is the one that is `known`.
///
/// # Errors
/// It cannot be read or is not valid (exit 78).
pub(super) fn read(path: &Path, known: Option<&str>) -> Result<Option<Table>, Failure> {
    let text = read_text(path)?;
    let sha256 = format!("{:x}", Bytes::copy_from_slice(&Sha256::digest(&text)));
    if known == Some(&sha256) {
        return Ok(None);
    }
    Ok(Some(Table {
        grants: parse::<Text>(path, &text)?.keys.0,
        sha256,
    }))
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Not deserialize_seq, to which `keys:` without a list is an empty one: it is half of a file.
        from.deserialize_any(KeysVisitor)
    }
}

/// Takes the keys one by one: there is never a second copy of them.
struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of keys, or `keys: []`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Keys, A::Error> {
        let mut keys = HashMap::new();
        while let Some(entry) = entries.next_element::<Entry>()? {
            if keys.len() == KEYS {
                return Err(A::Error::custom(format!("more than {KEYS} keys")));
            }
            match keys.entry(entry.sha256) {
                Slot::Vacant(slot) => slot.insert(Arc::new(entry.into())),
                Slot::Occupied(slot) => {
                    let other: &Arc<Grant> = slot.get();
                    return Err(A::Error::custom(format!(
                        "the key of {:?} is that of {:?}, too: a key has one entry",
                        entry.id, other.id
                    )));
                }
            };
        }
        keys.shrink_to_fit();
        Ok(Keys(keys))
    }
}

impl From<Entry> for Grant {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            rights: entry.rights,
            hosts: entry.hosts,
            paths: entry.paths,
            methods: entry.methods,
            expires: entry.expires,
        }
    }
}
