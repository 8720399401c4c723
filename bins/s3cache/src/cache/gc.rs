//! Housekeeping that nobody waits for: what killed processes left, records without a blob, unpacked pexes, and the
//! bounds of every share root may reach.

use std::io;
use std::time::Duration;

use hostkit::clock;
use hostkit::dir::{Dir, try_exclusive};

use super::share::Share;
use super::space::{self, Stored};

/// Partial downloads older than this are not continued any more.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// What housekeeping did to one share.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Freed {
    /// Blobs evicted.
    pub blobs: u64,
    /// Bytes freed altogether.
    pub bytes: u64,
    /// Index entries removed because their blob is gone.
    pub entries: u64,
    /// Whether unpacked pexes were removed.
    pub pex_root: bool,
}

/// Removes garbage of a share: dead partial downloads, quarantined blobs, entries without a blob, locks nobody holds.
///
/// # Errors
/// The disk fails.
pub fn sweep(share: &Share) -> io::Result<Freed> {
    let mut freed = Freed {
        bytes: space::remove_dead_partials(share, PARTIAL_AGE)?,
        ..Freed::default()
    };
    for_each_record(share, "index", |shelf, name| {
        let gone = share.entry(name).map_or(true, |entry| {
            share.open_blob(&entry.sha256, &entry.name).is_err()
        });
        if gone && name.len() == 64 {
            shelf.remove_file(name)?;
            freed.entries += 1;
        }
        Ok(())
    })?;
    for_each_record(share, "locks", |shelf, name| {
        let old = shelf
            .stat(name)
            .is_ok_and(|found| age(found.st_mtime) > PARTIAL_AGE);
        // Held while it is removed: who waits for it looks again whether it still is what stands there.
        if old && let Some(_lock) = shelf.try_lock(name, 0o600)? {
            shelf.remove_file(name)?;
        }
        Ok(())
    })?;
    Ok(freed)
}

fn age(seconds: i64) -> Duration {
    let then = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    clock::now().duration_since(then).unwrap_or_default()
}

fn for_each_record(
    share: &Share,
    folder: &str,
    mut visit: impl FnMut(&Dir, &str) -> io::Result<()>,
) -> io::Result<()> {
    let records = share.records(folder)?;
    for shelf in records.entries()? {
        let (name, is_dir) = shelf?;
        if !is_dir {
            continue;
        }
        let shelf = records.child(&name)?;
        for record in shelf.entries()? {
            visit(&shelf, &record?.0.to_string_lossy())?;
        }
    }
    Ok(())
}

/// Bytes below a share's folder of unpacked pexes.
#[must_use]
pub fn pex_root_bytes(share: &Share) -> u64 {
    share
        .dir()
        .child("pex-root")
        .and_then(|dir| tree_bytes(&dir))
        .unwrap_or(0)
}

fn tree_bytes(dir: &Dir) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in dir.entries()? {
        let (name, is_dir) = entry?;
        if is_dir {
            bytes += dir
                .child(&name)
                .and_then(|child| tree_bytes(&child))
                .unwrap_or(0);
        } else if let Ok(found) = dir.stat(&name) {
            bytes += u64::try_from(found.st_size).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// Removes a share's unpacked pexes unless a program runs from them. What was unpacked is tied together by symlinks, so
/// that it goes as a whole or not at all; the next start unpacks again.
///
/// # Errors
/// As unlinkat(2).
pub fn prune_pex_root(share: &Share) -> io::Result<bool> {
    let Ok(root) = share.dir().child("pex-root") else {
        return Ok(false);
    };
    let handle = std::fs::File::from(std::os::fd::AsFd::as_fd(&root).try_clone_to_owned()?);
    // pexrun holds it shared across exec.
    if !try_exclusive(&handle)? {
        return Ok(false);
    }
    for entry in root.entries()? {
        root.remove_all(entry?.0)?;
    }
    Ok(true)
}

/// A blob of some share.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Whose it is.
    pub share: &'a Share,
    /// What it is.
    pub blob: Stored,
}

/// All blobs of several shares, the least recently used first.
///
/// # Errors
/// The disk fails.
pub fn by_age<'a>(shares: &[&'a Share]) -> io::Result<Vec<Candidate<'a>>> {
    let mut found = Vec::new();
    for share in shares {
        found.extend(
            space::blobs(share)?
                .into_iter()
                .map(|blob| Candidate { share, blob }),
        );
    }
    found.sort_by_key(|candidate| candidate.blob.used);
    Ok(found)
}
