//! The verbs of s3cache: one file each, with its flags and `run`.

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
/// There is no cache directory (exit 66).
pub fn readable_shares(settings: &Settings) -> Result<Vec<CacheShare>, Failure> {
    let opened = open_shares(settings)?.into_iter();
    Ok(opened.filter_map(|(_, share)| share.ok()).collect())
}

/// The share of each uid, opened or not.
fn open_shares(settings: &Settings) -> Result<Vec<(u32, io::Result<CacheShare>)>, Failure> {
    let path = &settings.cache_dir;
    let root = Dir::open(path).map_err(|error| {
        Failure::new(
            Exit::NOT_FOUND,
            format!("cannot open the cache {}", path.display()),
        )
        .remedy("name its directory with --cache-dir")
        .because(error)
    })?;
    let me = nix::unistd::geteuid().as_raw();
    let mut uids = cache::uids(&root);
    uids.sort_by_key(|uid| (*uid != me, *uid));
    let open = |uid| (uid, CacheShare::open(&root, uid, uid == me || me == 0));
    Ok(uids.into_iter().map(open).collect())
}

/// The caller's own share, if it can be opened.
pub(crate) fn own_share(settings: &Settings) -> Option<CacheShare> {
    let root = cache::root(&settings.cache_dir).ok()?;
    CacheShare::open(&root, nix::unistd::geteuid().as_raw(), true).ok()
}

/// The shares the caller may change: its own; as root, those of all users.
///
/// # Errors
/// There is no cache (exit 66), or the caller's own share cannot be opened (exit 74).
fn own_shares(settings: &Settings) -> Result<Vec<CacheShare>, Failure> {
    match usable_shares(settings)? {
        (_, Some(failure)) => Err(failure),
        (shares, None) => Ok(shares),
    }
}

/// As [`own_shares`], but a failure of the caller's own share is returned beside the others: it must not keep root from
/// them. Failures of other users' shares are logged.
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
                failed = Some(io_failure_at(
                    &settings.cache_dir.join(uid.to_string()),
                    error,
                ));
            }
            Err(error) if me.is_root() => {
                warn!(uid, %error, "cannot open this user's share");
            }
            _ => {}
        }
    }
    Ok((shares, failed))
}

fn io_failure(share: &CacheShare, error: io::Error) -> Failure {
    io_failure_at(share.dir().path(), error)
}

fn io_failure_at(share: &Path, error: io::Error) -> Failure {
    Failure::new(
        Exit::IO,
        format!("cannot read or write {}", share.display()),
    )
    .because(error)
}

/// Checks that index keys of the sources can be computed.
///
/// # Errors
/// One is in S3, and the AWS configuration is invalid (exit 78).
fn check_sources(words: &[String], settings: &Settings) -> Result<(), Failure> {
    let mut sources = words
        .iter()
        .filter_map(|word| ArtifactSource::parse(word).ok());
    sources.try_for_each(|source| settings.index_key(&source).map(drop))
}

/// Whether a word of the command line names an entry: a source, a digest or its prefix, a file name, or the path of a
/// blob.
fn names_entry(
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
        || (word.starts_with('/') && is_blob_path(share, entry, Path::new(word)))
}

/// The words that name an entry.
fn names_of<'a>(
    share: &CacheShare,
    found: &(String, cache::IndexEntry),
    words: &'a [String],
    settings: &Settings,
) -> Vec<&'a str> {
    let words = words.iter().map(String::as_str);
    words
        .filter(|word| names_entry(share, found, word, settings))
        .collect()
}

fn is_blob_path(share: &CacheShare, entry: &cache::IndexEntry, path: &Path) -> bool {
    let blobs = std::path::absolute(share.dir().path().join("blobs"));
    let blob = [&entry.sha256[..2], &entry.sha256, &entry.name];
    blobs.is_ok_and(|blobs| path == blobs.join(blob.iter().collect::<PathBuf>()))
}

/// Checks that each word named something.
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
    .remedy(format!("`s3cache ls` lists cached artifacts{store}")))
}

fn format_count(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
