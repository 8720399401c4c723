//! Garbage collection: files of killed processes, records without a blob, and the candidates for eviction of all
//! shares.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use hostkit::clock;
use hostkit::dir::Dir;
use nix::sys::stat::FileStat;

use super::eviction::{EvictionMode, PartialKind, remove_dead_partials};
use super::repair::existing_folder;
use super::share::CacheShare;
use super::space::{self, StoredBlob};

/// Partial downloads older than this are not continued.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// Quarantined blobs are kept for this long, for diagnosis.
const QUARANTINE_AGE: Duration = Duration::from_secs(24 * 3600);
/// Failure records only matter to followers at the time they were written.
const FAILURE_AGE: Duration = Duration::from_secs(3600);

/// The deepest nesting that is followed: an attacker could nest directories until the stack overflows.
pub(super) const MAX_DEPTH: usize = 128;

/// The result of collecting one share.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreedSpace {
    pub blobs: u64,
    /// Bytes freed in total.
    pub bytes: u64,
    /// Index entries removed because their blob is gone.
    pub entries: u64,
    pub pexes: u64,
}

/// How long a file in `partial` is kept; `max_age` is the flag of gc.
fn retention(kind: PartialKind, max_age: Option<Duration>) -> Duration {
    match kind {
        PartialKind::Download => PARTIAL_AGE,
        PartialKind::Quarantined => max_age.unwrap_or(QUARANTINE_AGE).min(QUARANTINE_AGE),
        PartialKind::FailureRecord => FAILURE_AGE,
    }
}

/// Removes the garbage of a share: abandoned partial downloads, quarantined blobs, failure records, entries without a
/// blob, unused locks, and temporary files of killed processes.
pub(crate) fn sweep(
    share: &CacheShare,
    max_age: Option<Duration>,
    mode: EvictionMode,
) -> io::Result<FreedSpace> {
    let dead = remove_dead_partials(share, |kind| retention(kind, max_age), mode);
    let mut freed = FreedSpace {
        bytes: share.tolerate_foreign(dead)?,
        ..FreedSpace::default()
    };
    if mode == EvictionMode::DryRun {
        return Ok(freed);
    }
    share.tolerate_foreign(for_each_record(share, "index", |shelf, name| {
        if name.starts_with('.') {
            return remove_old(shelf, name);
        }
        let gone = share.entry(name).map_or(true, |entry| {
            share.open_blob(&entry.sha256, &entry.name).is_err()
        });
        if gone && name.len() == 64 && shelf.remove_file(name).is_ok() {
            freed.entries += 1;
        }
    }))?;
    share.tolerate_foreign(for_each_record(share, "locks", |shelf, name| {
        // Removed while locked: a process that waits for the lock checks afterwards that the file still has its name.
        if is_old(shelf, name)
            && let Ok(Some(_lock)) = share.try_lock(shelf, name)
        {
            let _ = shelf.remove_file(name);
        }
    }))?;
    share.tolerate_foreign(remove_empty(share))?;
    Ok(freed)
}

/// Removes an old temporary file of a killed process.
fn remove_old(dir: &Dir, name: &str) {
    if name.ends_with(".tmp") && is_old(dir, name) {
        let _ = dir.remove_file(name);
    }
}

/// Whether a file is older than [`PARTIAL_AGE`], or from a future that the clock was set back from.
fn is_old(dir: &Dir, name: &str) -> bool {
    dir.stat(name).is_ok_and(|found| {
        let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
        let written = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        !clock::now()
            .duration_since(written)
            .is_ok_and(|since| since <= PARTIAL_AGE)
    })
}

/// Removes empty blob directories. A process that is about to move a blob in creates its directory again.
fn remove_empty(share: &CacheShare) -> io::Result<()> {
    let blobs = share.dir().child("blobs")?;
    for shelf in blobs.entries()? {
        let Ok(shelf) = blobs.child(shelf?.0) else {
            continue;
        };
        for blob in shelf.entries()? {
            // Refused unless it is empty.
            let _ = shelf.remove_dir(blob?.0);
        }
    }
    Ok(())
}

fn for_each_record(
    share: &CacheShare,
    folder: &str,
    mut visit: impl FnMut(&Dir, &str),
) -> io::Result<()> {
    let records = share.record_dir(folder)?;
    for shelf in records.entries()? {
        let (name, is_dir) = shelf?;
        if !is_dir {
            remove_old(&records, &name.to_string_lossy());
            continue;
        }
        let Ok(shelf) = records.child(&name) else {
            continue;
        };
        for record in shelf.entries()? {
            visit(&shelf, &record?.0.to_string_lossy());
        }
    }
    Ok(())
}

/// Bytes below a share's `pex-root`.
///
/// # Errors
/// The directory cannot be read: it is closed to other users.
pub(crate) fn pex_root_bytes(share: &CacheShare) -> io::Result<u64> {
    let dir = existing_folder(share.dir(), "pex-root")?;
    dir.map_or(Ok(0), |dir| tree_bytes(&dir))
}

/// Bytes of all files below a directory; links of one file count once, unreadable directories as 0.
///
/// # Errors
/// The directory itself cannot be read.
pub(crate) fn tree_bytes(dir: &Dir) -> io::Result<u64> {
    let (mut bytes, mut linked) = (0, HashSet::new());
    for_each_file(dir, 0, &mut |found| {
        if found.st_nlink < 2 || linked.insert(found.st_ino) {
            bytes += bytes_of(found);
        }
    })?;
    Ok(bytes)
}

/// Visits every link of every readable file below a directory.
///
/// # Errors
/// The directory itself cannot be read.
pub(crate) fn for_each_file(
    dir: &Dir,
    depth: usize,
    visit: &mut impl FnMut(&FileStat),
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    for entry in dir.entries()? {
        let (name, is_dir) = entry?;
        if is_dir {
            let _ = dir
                .child(&name)
                .and_then(|child| for_each_file(&child, depth + 1, visit));
        } else if let Ok(found) = dir.stat(&name) {
            visit(&found);
        }
    }
    Ok(())
}

#[must_use]
pub(crate) fn bytes_of(found: &FileStat) -> u64 {
    u64::try_from(found.st_size).unwrap_or(0)
}

/// A blob that may be evicted.
#[derive(Debug)]
pub(crate) struct EvictionCandidate<'a> {
    pub share: &'a CacheShare,
    pub blob: StoredBlob,
}

/// All blobs of several shares, the least recently used first. Unreadable shares are left out: counting them has failed
/// before.
#[must_use]
pub(crate) fn by_age<'a>(shares: &[&'a CacheShare]) -> Vec<EvictionCandidate<'a>> {
    let mut found = Vec::new();
    for share in shares {
        let blobs = space::blobs(share).unwrap_or_default().into_iter();
        found.extend(blobs.map(|blob| EvictionCandidate { share, blob }));
    }
    found.sort_by_key(|candidate| candidate.blob.used);
    found
}
