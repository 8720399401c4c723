//! The text of an ACL file: a list of keys, accepted or rejected as a whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hostkit::{Exit, Failure, config, file_watcher, hex};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use sha2::{Digest as _, Sha256};

use crate::grant::{Grant, KeyHash, validation};

const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_KEYS: usize = 1_000_000;

#[derive(Debug, Default)]
pub(super) struct AclDocument {
    pub(super) grants: HashMap<KeyHash, Arc<Grant>>,
    /// SHA-256 of the text, as hex.
    pub(super) sha256: String,
}

pub(crate) const REMEDY_MISSING: &str =
    "name an existing file, or create one with `authproxy key new --into FILE`";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentRoot {
    keys: KeyMap,
}

struct KeyMap(HashMap<KeyHash, Arc<Grant>>);

/// The fields of a `Grant` once more: here, unlike in the ACL protocol, an unknown field is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryFields {
    #[serde(deserialize_with = "validation::deserialize_id")]
    id: String,
    sha256: KeyHash,
    #[serde(deserialize_with = "validation::deserialize_rights")]
    rights: Vec<String>,
    #[serde(default, deserialize_with = "validation::deserialize_hosts")]
    hosts: Vec<String>,
    #[serde(default, deserialize_with = "validation::deserialize_paths")]
    paths: Vec<String>,
    #[serde(default, deserialize_with = "validation::deserialize_methods")]
    methods: Vec<String>,
    #[serde(default, deserialize_with = "validation::deserialize_expires")]
    expires: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AclEntry {
    pub(crate) key: KeyHash,
    pub(crate) grant: Grant,
    /// The line of its first field, counted from 0.
    pub(crate) line: usize,
    /// The column of its first field, in characters from 0.
    pub(crate) column: usize,
}

pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    file_watcher::read_text(path, MAX_FILE_BYTES).map_err(|why| {
        let failure = Failure::new(Exit::CONFIG, why);
        match path.try_exists() {
            Ok(false) => failure.remedy(REMEDY_MISSING),
            _ => failure,
        }
    })
}

/// The entries of a text, in their order.
pub(crate) fn read_entries(path: &Path, text: &str) -> Result<Vec<AclEntry>, Failure> {
    #[derive(Deserialize)]
    struct SpannedRoot {
        keys: Vec<Spanned<EntryFields>>,
    }
    // Checks what concerns several entries, such as a key with two.
    parse::<DocumentRoot>(path, text)?;
    let from_zero = |number: u64| {
        usize::try_from(number)
            .unwrap_or(usize::MAX)
            .saturating_sub(1)
    };
    let to_entry = |entry: Spanned<EntryFields>| AclEntry {
        key: entry.value.sha256,
        line: from_zero(entry.referenced.line()),
        column: from_zero(entry.referenced.column()),
        grant: entry.value.into(),
    };
    Ok(parse::<SpannedRoot>(path, text)?
        .keys
        .into_iter()
        .map(to_entry)
        .collect())
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    // A file has at most as many events and nodes as bytes.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: MAX_FILE_BYTES as usize,
            max_nodes: MAX_FILE_BYTES as usize,
        },
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| config::explain(path, &error))
}

/// Reads a file; `None` if its SHA-256 is `current`.
pub(super) fn read(path: &Path, current: Option<&str>) -> Result<Option<AclDocument>, Failure> {
    let text = read_text(path)?;
    let sha256 = hex::encode(&Sha256::digest(&text));
    if current == Some(&sha256) {
        return Ok(None);
    }
    Ok(Some(AclDocument {
        grants: parse::<DocumentRoot>(path, &text)?.keys.0,
        sha256,
    }))
}

impl<'de> Deserialize<'de> for KeyMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // `deserialize_seq` would accept `keys:` without a list, which may be a truncated file.
        from.deserialize_any(KeyMapVisitor)
    }
}

/// Collects the keys without an intermediate copy.
struct KeyMapVisitor;

impl<'de> Visitor<'de> for KeyMapVisitor {
    type Value = KeyMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of keys, or `keys: []`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<KeyMap, A::Error> {
        let mut keys = HashMap::new();
        while let Some(entry) = entries.next_element::<EntryFields>()? {
            if keys.len() == MAX_KEYS {
                return Err(A::Error::custom(format!("more than {MAX_KEYS} keys")));
            }
            match keys.entry(entry.sha256) {
                MapEntry::Vacant(slot) => slot.insert(Arc::new(entry.into())),
                MapEntry::Occupied(slot) => {
                    let other: &Arc<Grant> = slot.get();
                    return Err(A::Error::custom(format!(
                        "duplicate key: {:?} and {:?} have the same sha256",
                        other.id, entry.id
                    )));
                }
            };
        }
        keys.shrink_to_fit();
        Ok(KeyMap(keys))
    }
}

impl From<EntryFields> for Grant {
    fn from(entry: EntryFields) -> Self {
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
