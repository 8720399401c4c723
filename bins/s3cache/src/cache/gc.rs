//! Housekeeping that nobody waits for: what killed processes left, records without a blob, unpacked pexes, and the
//! bounds of every share root may reach.

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

/// Partial downloads older than this are not continued any more.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// Quarantined blobs are kept for this long, for those who look for the cause.
const QUARANTINE_AGE: Duration = Duration::from_secs(24 * 3600);
/// Failure records are of use to processes that waited when they were written.
const FAILURE_AGE: Duration = Duration::from_secs(3600);

/// Deeper than this nothing is unpacked: whoever nests directories without end only wants the stack to.
pub(super) const DEPTH: usize = 128;

/// What housekeeping did to one share.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreedSpace {
    /// Blobs evicted.
    pub blobs: u64,
    /// Bytes freed altogether.
    pub bytes: u64,
    /// Index entries removed because their blob is gone.
    pub entries: u64,
    /// Unpacked pexes removed.
    pub pexes: u64,
}

/// How long what lies in the folder of partial downloads is kept; `max_age` is what gc was told.
fn kept_for(kind: PartialKind, max_age: Option<Duration>) -> Duration {
    match kind {
        PartialKind::Arriving => PARTIAL_AGE,
        PartialKind::Quarantined => max_age.unwrap_or(QUARANTINE_AGE).min(QUARANTINE_AGE),
        PartialKind::FailureRecord => FAILURE_AGE,
    }
}

/// Removes garbage of a share: dead partial downloads, quarantined blobs, failure records, entries without a blob, locks
/// nobody holds, and what a killed process left of writing them.
///
/// # Errors
/// The disk fails.
pub(crate) fn sweep(
    share: &CacheShare,
    max_age: Option<Duration>,
    act: EvictionMode,
) -> io::Result<FreedSpace> {
    let dead = remove_dead_partials(share, |kind| kept_for(kind, max_age), act);
    let mut freed = FreedSpace {
        bytes: share.own_failures(dead)?,
        ..FreedSpace::default()
    };
    if act == EvictionMode::DryRun {
        return Ok(freed);
    }
    share.own_failures(for_each_record(share, "index", |shelf, name| {
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
    share.own_failures(for_each_record(share, "locks", |shelf, name| {
        // Held while it is removed: who waits for it looks again whether it still is what stands there.
        if is_old(shelf, name)
            && let Ok(Some(_lock)) = share.try_lock(shelf, name)
        {
            let _ = shelf.remove_file(name);
        }
    }))?;
    share.own_failures(remove_empty(share))?;
    Ok(freed)
}

/// Removes a temporary file of a process that has been gone for long.
fn remove_old(dir: &Dir, name: &str) {
    if name.ends_with(".tmp") && is_old(dir, name) {
        let _ = dir.remove_file(name);
    }
}

/// Whether it was written so long ago, or in a future that the clock has stepped back from.
fn is_old(dir: &Dir, name: &str) -> bool {
    dir.stat(name).is_ok_and(|found| {
        let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
        let written = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        !clock::now()
            .duration_since(written)
            .is_ok_and(|since| since <= PARTIAL_AGE)
    })
}

/// Removes the folders of blobs that never came. Who is about to move one in makes its folder again.
fn remove_empty(share: &CacheShare) -> io::Result<()> {
    let blobs = share.dir().child("blobs")?;
    for shelf in blobs.entries()? {
        let Ok(shelf) = blobs.child(shelf?.0) else {
            continue;
        };
        for blob in shelf.entries()? {
            // Refused when there is something in it.
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
    let records = share.records(folder)?;
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

/// Bytes below a share's folder of unpacked pexes.
///
/// # Errors
/// The folder cannot be read: it is closed to other users.
pub(crate) fn pex_root_bytes(share: &CacheShare) -> io::Result<u64> {
    let dir = existing_folder(share.dir(), "pex-root")?;
    dir.map_or(Ok(0), |dir| tree_bytes(&dir))
}

/// Bytes of all files below a directory; links of one file count once.
///
/// # Errors
/// The directory cannot be read. What cannot be read below it counts nothing.
pub(crate) fn tree_bytes(dir: &Dir) -> io::Result<u64> {
    let (mut bytes, mut linked) = (0, HashSet::new());
    for_each_file(dir, 0, &mut |found| {
        if found.st_nlink < 2 || linked.insert(found.st_ino) {
            bytes += bytes_of(found);
        }
    })?;
    Ok(bytes)
}

/// Visits every link of every file below a directory, except where it cannot be read.
///
/// # Errors
/// The directory itself cannot be read.
pub(crate) fn for_each_file(
    dir: &Dir,
    depth: usize,
    visit: &mut impl FnMut(&FileStat),
) -> io::Result<()> {
    if depth > DEPTH {
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

/// The length of a file (bytes).
#[must_use]
pub(crate) fn bytes_of(found: &FileStat) -> u64 {
    u64::try_from(found.st_size).unwrap_or(0)
}

/// A blob of some share.
#[derive(Debug)]
pub(crate) struct EvictionCandidate<'a> {
    /// Whose it is.
    pub share: &'a CacheShare,
    /// What it is.
    pub blob: StoredBlob,
}

/// All blobs of several shares, the least recently used first. What cannot be read is left out: counting what the share
/// holds has failed before.
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
