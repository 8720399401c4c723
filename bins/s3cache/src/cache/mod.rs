//! The cache directory of a host: its shares, which of them the caller trusts, and looking up a source in them.
//!
//! Job roles do not trust one another. An index entry of root, of the caller, or of a uid named in the configuration is
//! used as it is. From any other user only bytes are taken, and only after their digest has been compared with one that
//! the store vouches for (`untrusted_copy`).

pub(crate) mod eviction;
pub(crate) mod gc;
pub(crate) mod index_entry;
pub(crate) mod partial_download;
pub(crate) mod pex_root;
pub(crate) mod process_references;
pub(crate) mod repair;
pub(crate) mod share;
pub(crate) mod space;
pub(crate) mod usage;

use std::cell::OnceCell;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hostkit::dir::Dir;
use tracing::warn;

pub use index_entry::IndexEntry;
pub use share::{CacheShare, CachedBlob, LookupResult};

use crate::settings::Settings;

/// The cache as one caller sees it.
#[derive(Debug)]
pub struct HostCache {
    root: Dir,
    /// The caller's own share.
    pub own: CacheShare,
    /// Trusted shares, each opened as soon as it exists: its owner's first run may be in progress.
    trusted: Vec<(u32, OnceCell<CacheShare>)>,
    /// Whether the caller is one of several uids that trust each other, and fetch once for all of them.
    pub(crate) mutual_trust: bool,
}

/// Why the cache cannot be used. A fetch continues without it.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the cache {path}: {why}")]
pub struct CacheUnusable {
    /// The directory.
    pub path: PathBuf,
    /// The cause, with a remedy.
    pub why: String,
    /// Trusted shares that can be read nevertheless.
    pub readable: Vec<CacheShare>,
}

impl HostCache {
    /// Opens the cache, and creates the directory and the caller's share when they are missing.
    ///
    /// # Errors
    /// It cannot be created or written, or another user could redirect a path in it.
    pub fn open(settings: &Settings) -> Result<Self, CacheUnusable> {
        let path = settings.cache_dir.clone();
        let unusable = |why: String, readable| CacheUnusable {
            path: path.clone(),
            why,
            readable,
        };
        let root = root(&path).map_err(|why| unusable(why, Vec::new()))?;
        let me = nix::unistd::geteuid().as_raw();
        let mut set = vec![0];
        set.extend(&settings.trusted_uids);
        let mutual_trust = !settings.trusted_uids.is_empty() && set.contains(&me);
        set.sort_unstable();
        set.dedup();
        set.retain(|uid| *uid != me);
        match CacheShare::open(&root, me, true) {
            Ok(own) => Ok(Self {
                root,
                own,
                trusted: set.into_iter().map(|uid| (uid, OnceCell::new())).collect(),
                mutual_trust,
            }),
            Err(error) => {
                let why = format!(
                    "cannot use its directory {me}: {error}; only uid {me} may own it and write to it"
                );
                let open = |uid| CacheShare::open(&root, uid, false).ok();
                Err(unusable(why, set.into_iter().filter_map(open).collect()))
            }
        }
    }

    /// The caller's own share, then the trusted ones.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &CacheShare> {
        std::iter::once(&self.own).chain(self.trusted_shares())
    }

    /// The trusted shares that exist by now.
    pub(crate) fn trusted_shares(&self) -> impl Iterator<Item = &CacheShare> {
        self.trusted.iter().filter_map(|(uid, cell)| {
            if cell.get().is_none()
                && let Ok(share) = CacheShare::open(&self.root, *uid, false)
            {
                let _ = cell.set(share);
            }
            cell.get()
        })
    }

    /// Looks up a source in the caller's and the trusted shares.
    #[must_use]
    pub(crate) fn lookup(&self, key: &str) -> LookupResult {
        lookup(self.shares(), key)
    }

    /// The shares of all other uids. Their content is hostile.
    #[must_use]
    pub(crate) fn untrusted_shares(&self) -> Vec<CacheShare> {
        let trusted = |uid| self.trusted.iter().any(|(known, _)| *known == uid);
        let mut found: Vec<CacheShare> = uids(&self.root)
            .into_iter()
            .filter(|uid| *uid != self.own.uid && !trusted(*uid))
            .filter_map(|uid| CacheShare::open(&self.root, uid, false).ok())
            .collect();
        found.sort_by_key(|share| share.uid);
        found
    }
}

/// Looks up a source in several shares. A corrupt or unreadable copy is logged, and the next share searched.
pub fn lookup<'a>(shares: impl Iterator<Item = &'a CacheShare>, key: &str) -> LookupResult {
    let mut found = LookupResult::Miss;
    for share in shares {
        match share.lookup(key) {
            Ok(hit @ LookupResult::Hit(_)) => return hit,
            Ok(LookupResult::Miss) => {}
            Ok(LookupResult::Corrupt(entry)) => {
                warn!(
                    source = entry.source,
                    sha256 = entry.sha256,
                    uid = share.uid,
                    quarantined = share.own,
                    "cached copy is corrupt"
                );
                found = LookupResult::Corrupt(entry);
            }
            Err(error) => warn!(uid = share.uid, %error, "cannot read the cached copy"),
        }
    }
    found
}

/// The uids that have a share.
pub(crate) fn uids(root: &Dir) -> Vec<u32> {
    let Ok(entries) = root.entries() else {
        return Vec::new();
    };
    // Every user may create names here: only the canonical form of a uid counts, not `007` or `+7`.
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.0.into_string().ok()?;
            name.parse()
                .ok()
                .filter(|uid: &u32| uid.to_string() == name)
        })
        .collect()
}

/// Opens the cache directory, created when missing: for all users when root creates it, else for the caller.
///
/// # Errors
/// The cause, as text for people.
pub(crate) fn root(path: &Path) -> Result<Dir, String> {
    let me = nix::unistd::geteuid().as_raw();
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    if path.symlink_metadata().is_err() {
        let mode = if me == 0 { 0o1777 } else { 0o755 };
        Dir::create_all(&path, mode).map_err(|error| format!("cannot create it: {error}"))?;
    }
    for part in path.ancestors() {
        let found = part
            .symlink_metadata()
            .map_err(|error| format!("{}: {error}", part.display()))?;
        if found.is_symlink() && found.uid() != 0 && found.uid() != me {
            return Err(format!(
                "{} is a symlink of uid {}, which could redirect it",
                part.display(),
                found.uid()
            ));
        }
    }
    let dir = Dir::open(&path).map_err(|error: io::Error| error.to_string())?;
    let found = dir.metadata().map_err(|error| error.to_string())?;
    if found.st_mode & 0o002 != 0 && found.st_mode & 0o1000 == 0 {
        return Err("every user may rename files in it: set its sticky bit (chmod +t)".to_owned());
    }
    Ok(dir)
}
