//! What s3cache does besides fetching: one file per verb, each with its own flags and `run`.

pub mod exists;
pub mod gc;
pub mod ls;
mod ls_store;
pub mod put;
pub mod rm;
pub mod stats;
pub mod verify;

use hostkit::dir::Dir;
use hostkit::{Exit, Failure};

use crate::cache::{self, Share};
use crate::settings::Settings;
use crate::source::Source;

/// Every share the caller can read: its own first, then the others by uid.
///
/// # Errors
/// There is no such directory (exit 66).
pub fn all_shares(settings: &Settings) -> Result<Vec<Share>, Failure> {
    let path = &settings.cache_dir;
    let root = Dir::open(path).map_err(|error| {
        Failure::new(
            Exit::NOT_FOUND,
            format!("cannot open the cache {}", path.display()),
        )
        .remedy("name it with --cache-dir")
        .because(error)
    })?;
    let me = nix::unistd::geteuid().as_raw();
    let mut uids = cache::uids(&root);
    uids.sort_by_key(|uid| (*uid != me, *uid));
    Ok(uids
        .into_iter()
        .filter_map(|uid| Share::open(&root, uid, uid == me || me == 0).ok())
        .collect())
}

/// The caller's own share, where it is usable.
pub(crate) fn own_share(settings: &Settings) -> Option<Share> {
    let root = cache::root(&settings.cache_dir).ok()?;
    Share::open(&root, nix::unistd::geteuid().as_raw(), true).ok()
}

/// The caller's own shares: as root, everybody's.
fn own_shares(settings: &Settings) -> Result<Vec<Share>, Failure> {
    let me = nix::unistd::geteuid();
    Ok(all_shares(settings)?
        .into_iter()
        .filter(|share| me.is_root() || share.uid == me.as_raw())
        .collect())
}

/// The failure of reading or writing a share.
fn disk(share: &Share, error: std::io::Error) -> Failure {
    Failure::new(
        Exit::IO,
        format!("cannot work on {}", share.dir().path().display()),
    )
    .because(error)
}

/// All index entries of a share, with their keys; what cannot be read is left out.
pub fn entries(share: &Share) -> Vec<(String, cache::Entry)> {
    let Ok(index) = share.records("index") else {
        return Vec::new();
    };
    let Ok(shelves) = index.entries() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (shelf, _) in shelves.flatten() {
        let Ok(records) = index.child(&shelf).and_then(|shelf| shelf.entries()) else {
            continue;
        };
        for (key, _) in records.flatten() {
            let key = key.to_string_lossy().into_owned();
            if key.len() == 64
                && let Ok(entry) = share.entry(&key)
            {
                found.push((key, entry));
            }
        }
    }
    found
}

/// Makes sure that the keys of sources can be computed, before entries are compared with them.
///
/// # Errors
/// One is in S3, and the AWS configuration cannot be used (exit 78).
fn check_words(words: &[String], settings: &Settings) -> Result<(), Failure> {
    let mut sources = words.iter().filter_map(|word| Source::parse(word).ok());
    sources.try_for_each(|source| settings.index_key(&source).map(drop))
}

/// What people name on a command line: a source, a digest or its beginning, or a file name.
fn matches(entry: &cache::Entry, key: &str, word: &str, settings: &Settings) -> bool {
    let source = Source::parse(word)
        .ok()
        .and_then(|source| settings.index_key(&source).ok());
    source.as_deref() == Some(key)
        || entry.name == word
        || entry.source == word
        || (word.len() >= 8 && entry.sha256.starts_with(&word.to_ascii_lowercase()))
}
