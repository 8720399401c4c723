//! What s3cache does besides fetching: one file per verb, each with its own flags and `run`.

pub(crate) mod exists;
pub(crate) mod gc;
pub(crate) mod ls;
mod ls_store;
pub(crate) mod put;
pub(crate) mod rm;
pub(crate) mod stats;
pub(crate) mod verify;

pub use ls_store::list_store;

use std::io;
use std::path::{Path, PathBuf};

use hostkit::dir::Dir;
use hostkit::{Exit, Failure};
use tracing::warn;

use crate::cache::{self, CacheShare};
use crate::settings::Settings;
use crate::source::ArtifactSource;

/// Every share the caller can read: its own first, then the others by uid.
///
/// # Errors
/// There is no such directory (exit 66).
pub fn readable_shares(settings: &Settings) -> Result<Vec<CacheShare>, Failure> {
    let opened = open_shares(settings)?.into_iter();
    Ok(opened.filter_map(|(_, share)| share.ok()).collect())
}

/// The part of each uid, opened or not.
fn open_shares(settings: &Settings) -> Result<Vec<(u32, io::Result<CacheShare>)>, Failure> {
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
    let open = |uid| (uid, CacheShare::open(&root, uid, uid == me || me == 0));
    Ok(uids.into_iter().map(open).collect())
}

/// The caller's own share, where it is usable.
pub(crate) fn own_share(settings: &Settings) -> Option<CacheShare> {
    let root = cache::root(&settings.cache_dir).ok()?;
    CacheShare::open(&root, nix::unistd::geteuid().as_raw(), true).ok()
}

/// The caller's own shares: as root, those of all users.
///
/// # Errors
/// There is no cache (exit 66), or the caller's own part of it is not usable (exit 74).
fn own_shares(settings: &Settings) -> Result<Vec<CacheShare>, Failure> {
    match usable_shares(settings)? {
        (_, Some(failure)) => Err(failure),
        (shares, None) => Ok(shares),
    }
}

/// The caller's own shares, and why the caller's own part is not one of them: it does not keep root from those of others.
/// What is wrong with another user's part is logged.
///
/// # Errors
/// There is no cache (exit 66).
fn usable_shares(settings: &Settings) -> Result<(Vec<CacheShare>, Option<Failure>), Failure> {
    let me = nix::unistd::geteuid();
    let (mut shares, mut failed) = (Vec::new(), None);
    for (uid, opened) in open_shares(settings)? {
        match opened {
            Ok(share) if share.own => shares.push(share),
            Err(error) if uid == me.as_raw() => {
                failed = Some(disk_at(&settings.cache_dir.join(uid.to_string()), error));
            }
            Err(error) if me.is_root() => {
                warn!(uid, %error, "cannot use this user's part of the cache");
            }
            _ => {}
        }
    }
    Ok((shares, failed))
}

/// The failure of reading or writing a share.
fn disk(share: &CacheShare, error: io::Error) -> Failure {
    disk_at(share.dir().path(), error)
}

fn disk_at(share: &Path, error: io::Error) -> Failure {
    Failure::new(Exit::IO, format!("cannot work on {}", share.display())).because(error)
}

/// Makes sure that the keys of sources can be computed, before entries are compared with them.
///
/// # Errors
/// One is in S3, and the AWS configuration cannot be used (exit 78).
fn check_words(words: &[String], settings: &Settings) -> Result<(), Failure> {
    let mut sources = words
        .iter()
        .filter_map(|word| ArtifactSource::parse(word).ok());
    sources.try_for_each(|source| settings.index_key(&source).map(drop))
}

/// What people name on a command line: a source, a digest or its beginning, a file name, or the path of a blob as it was
/// printed.
fn matches(
    share: &CacheShare,
    (key, entry): &(String, cache::IndexEntry),
    word: &str,
    settings: &Settings,
) -> bool {
    let source = ArtifactSource::parse(word)
        .ok()
        .and_then(|source| settings.index_key(&source).ok());
    source.as_deref() == Some(key)
        || entry.name == word
        || entry.source == word
        || (word.len() >= 8 && entry.sha256.starts_with(&word.to_ascii_lowercase()))
        || (word.starts_with('/') && is_path_of(share, entry, Path::new(word)))
}

/// The words of a command line that name an entry.
fn names_of<'a>(
    share: &CacheShare,
    found: &(String, cache::IndexEntry),
    words: &'a [String],
    settings: &Settings,
) -> Vec<&'a str> {
    let words = words.iter().map(String::as_str);
    words
        .filter(|word| matches(share, found, word, settings))
        .collect()
}

fn is_path_of(share: &CacheShare, entry: &cache::IndexEntry, path: &Path) -> bool {
    let blobs = std::path::absolute(share.dir().path().join("blobs"));
    let blob = [&entry.sha256[..2], &entry.sha256, &entry.name];
    blobs.is_ok_and(|blobs| path == blobs.join(blob.iter().collect::<PathBuf>()))
}

/// Makes sure that each word of a command line named something.
///
/// # Errors
/// Some did not (exit 66).
fn check_found(words: &[String], is_found: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let missing = words.iter().filter(|word| !is_found(word));
    let missing: Vec<_> = missing.map(|word| hostkit::mask::mask_url(word)).collect();
    let verb = match missing.len() {
        0 => return Ok(()),
        1 => "is",
        _ => "are",
    };
    let store = match missing.iter().any(|word| word.contains("://")) {
        true => "; to list a store, end the prefix in a slash",
        false => "",
    };
    Err(Failure::new(
        Exit::NOT_FOUND,
        format!("{} {verb} not in the cache", missing.join(", ")),
    )
    .remedy(format!("`s3cache ls` lists what is{store}")))
}

/// A number of things, for people.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
