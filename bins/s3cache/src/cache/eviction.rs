//! Eviction: the least recently used blobs go first, those used within the last hour only when nothing else helps, and
//! those in use never.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::try_lock_exclusive;
use nix::errno::Errno;
use tracing::info;

use super::pex_root;
use super::process_references::ProcessReferences;
use super::repair::existing_file;
use super::share::CacheShare;
use super::space::{
    CountedBytes, SpaceLimits, StoredBlob, count_unpacked, free_space, stored_blob,
};

/// With more blobs than this, an eviction goes a sixteenth below the limit, so that the next fetches need none.
const SLACK_THRESHOLD: usize = 256;
/// The program that was started from a recently used blob may still be loading from it.
pub(crate) const RECENT: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictionMode {
    Remove,
    /// Nothing is removed, only counted.
    DryRun,
}

/// The treatment of blobs and unpacked pexes that were used within the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecentPolicy {
    /// Keep them: the fetch that needs room can bypass the cache.
    Keep,
    /// Evict them after all others: without room the fetch would fail.
    Evict,
}

impl RecentPolicy {
    /// The note in an error about it.
    pub(super) const fn note(self) -> &'static str {
        match self {
            Self::Keep => " (blobs used within the last hour are kept)",
            Self::Evict => "",
        }
    }
}

#[must_use]
pub(crate) fn is_recent(used: SystemTime, now: SystemTime) -> bool {
    is_within(RECENT, used, now)
}

/// Whether `used` is less than `span` before `now`. A time further in the future is ignored: the clock was set back.
#[must_use]
pub(crate) fn is_within(span: Duration, used: SystemTime, now: SystemTime) -> bool {
    now.duration_since(used)
        .unwrap_or_else(|ahead| ahead.duration())
        < span
}

/// Evicts until `more` bytes fit within the limits, or nothing is left to evict. `blobs` and `held` were just counted.
/// Returns the new count.
pub(super) fn evict(
    share: &CacheShare,
    bounds: SpaceLimits,
    more: u64,
    (mut blobs, mut held): (Vec<StoredBlob>, CountedBytes),
) -> io::Result<CountedBytes> {
    let dead = remove_dead_partials(share, |_| Duration::ZERO, EvictionMode::Remove)?;
    held.cached = held.cached.saturating_sub(dead);
    let slack = if blobs.len() > SLACK_THRESHOLD {
        bounds.max_size / 16
    } else {
        0
    };
    let fits = |held: u64, slack: u64| {
        let room = free_space(share)? >= bounds.keep_free.saturating_add(more);
        let most = held.saturating_add(more).saturating_add(slack);
        Ok::<_, io::Error>(most <= bounds.max_size && room)
    };
    let (in_use, now) = (ProcessReferences::default(), clock::now());
    let prune = |held: &mut CountedBytes, spare: Duration| -> io::Result<()> {
        let all = held.total();
        if held.unpacked == 0 || fits(all, 0)? {
            return Ok(());
        }
        let enough = |freed| fits(all.saturating_sub(freed), 0);
        if pex_root::prune(share, &in_use, EvictionMode::Remove, spare, enough)?.bytes > 0 {
            held.unpacked = count_unpacked(share)?;
        }
        Ok(())
    };
    let evict_blobs =
        |held: &mut CountedBytes, blobs: Vec<StoredBlob>, slack: u64| -> io::Result<()> {
            for blob in blobs {
                if fits(held.total(), slack)? {
                    break;
                }
                let removed = match evict_blob(share, &blob, &in_use, EvictionMode::Remove) {
                    // gc may have removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                    other => other?,
                };
                if removed {
                    info!(sha256 = blob.sha256, bytes = blob.size, "evicted");
                    held.cached = held.cached.saturating_sub(blob.size);
                }
            }
            Ok(())
        };
    blobs.sort_by_key(|blob| blob.used);
    let (recent, others) = (blobs.into_iter()).partition(|blob| is_recent(blob.used, now));
    // Unpacked pexes can be restored without the network, so they go first.
    prune(&mut held, RECENT)?;
    evict_blobs(&mut held, others, slack)?;
    if bounds.recent == RecentPolicy::Evict {
        prune(&mut held, Duration::ZERO)?;
        // Room for later fetches does not justify evicting recently used blobs.
        evict_blobs(&mut held, recent, 0)?;
    }
    Ok(held)
}

/// Removes a blob unless it is leased or a process refers to it; returns whether it is gone.
///
/// # Errors
/// As unlinkat(2); `NotFound` when it was gone before.
pub(crate) fn remove_blob(
    share: &CacheShare,
    sha256: &str,
    in_use: &ProcessReferences,
    mode: EvictionMode,
) -> io::Result<bool> {
    remove_unused(share, sha256, None, in_use, mode)
}

/// As [`remove_blob`], but keeps a blob that was used since it was chosen.
///
/// # Errors
/// As unlinkat(2); `NotFound` when it was gone before.
pub(crate) fn evict_blob(
    share: &CacheShare,
    chosen: &StoredBlob,
    in_use: &ProcessReferences,
    mode: EvictionMode,
) -> io::Result<bool> {
    remove_unused(share, &chosen.sha256, Some(chosen.used), in_use, mode)
}

fn remove_unused(
    share: &CacheShare,
    sha256: &str,
    used: Option<SystemTime>,
    in_use: &ProcessReferences,
    mode: EvictionMode,
) -> io::Result<bool> {
    // Before the locks, which starting programs wait for: this may have to read all of /proc.
    if !in_use.pids_of_blob(sha256)?.is_empty() {
        return Ok(false);
    }
    match unlink_blob(share, sha256, used, mode) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        other => share.tolerate_foreign(other),
    }
}

fn unlink_blob(
    share: &CacheShare,
    sha256: &str,
    used: Option<SystemTime>,
    mode: EvictionMode,
) -> io::Result<bool> {
    let start = sha256.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
    let shelf = share.dir().child("blobs")?.child(start)?;
    let dir = shelf.child(sha256)?;
    let names: Vec<_> = dir.entries()?.collect::<io::Result<_>>()?;
    let mut locks: Vec<(u64, File)> = Vec::new();
    for (name, _) in &names {
        if let Ok(file) = dir.open_file(name) {
            // Links of one file share its lock, which may be held already.
            let inode = file.metadata()?.ino();
            if locks.iter().any(|(held, _)| *held == inode) {
                continue;
            }
            if !try_lock_exclusive(&file)? {
                return Ok(false);
            }
            locks.push((inode, file));
        }
    }
    // A program may have been started from it, and closed its lease, after /proc was read.
    let found = used.and_then(|_| stored_blob(&shelf, sha256));
    if found.is_some_and(|found| Some(found.used) > used) {
        return Ok(false);
    }
    if mode == EvictionMode::DryRun {
        return Ok(true);
    }
    for (name, _) in &names {
        // The same content may just have been published under this name: that file must stay.
        let regular = dir.open_file(name).and_then(|file| file.metadata());
        if regular.is_ok_and(|found| !locks.iter().any(|(held, _)| *held == found.ino())) {
            continue;
        }
        ignore_not_found(dir.remove_all(name))?;
    }
    match shelf.remove_dir(sha256) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => Ok(true),
        other => ignore_not_found(other).map(|()| true),
    }
}

/// A file that another process removed counts as removed.
fn ignore_not_found(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The kinds of files in `partial`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartialKind {
    /// A partial download or its record.
    Download,
    /// A corrupt blob.
    Quarantined,
    /// Why a leader failed, for its followers.
    FailureRecord,
}

impl PartialKind {
    #[must_use]
    pub(crate) fn of(name: &str) -> Self {
        if name.ends_with(".bad") {
            Self::Quarantined
        } else if name.contains(".failed") {
            Self::FailureRecord
        } else {
            Self::Download
        }
    }
}

/// Removes partial downloads without a process, quarantined blobs and failure records that are older than `age` allows
/// for their kind; returns the bytes freed.
pub(crate) fn remove_dead_partials(
    share: &CacheShare,
    age: impl Fn(PartialKind) -> Duration,
    mode: EvictionMode,
) -> io::Result<u64> {
    let Some(dir) = share.existing_record_dir("partial")? else {
        return Ok(0);
    };
    let mut freed = 0;
    for entry in dir.entries()? {
        let (name, is_dir) = entry?;
        let name = name.to_string_lossy().into_owned();
        let Ok(found) = dir.stat(&name) else { continue };
        let written = SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(found.st_mtime).unwrap_or(0));
        // A time in the future means that the clock was set back; then only the lock decides.
        if clock::now()
            .duration_since(written)
            .is_ok_and(|since| since < age(PartialKind::of(&name)))
        {
            continue;
        }
        // <key>.<turn>.data and .record belong to the process that holds the lock <key>.<turn>.
        let mut words = name.split('.');
        let _lock = match (words.next(), words.next(), words.next()) {
            (Some(key), Some(turn), Some("data" | "record")) if key.len() == 64 => {
                match lock_of(share, key, turn, mode) {
                    Ok(Some(lock)) => lock,
                    // Without a directory for the lock, no process holds it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    _ => continue,
                }
            }
            _ => None,
        };
        if is_dir || mode == EvictionMode::Remove && dir.remove_file(&name).is_err() {
            // It is not a file, or another process removed it first.
            continue;
        }
        freed += u64::try_from(found.st_size).unwrap_or(0);
    }
    Ok(freed)
}

/// Takes the lock of a partial download as [`CacheShare::try_lock`] does; a dry run does not create it.
fn lock_of(
    share: &CacheShare,
    key: &str,
    turn: &str,
    mode: EvictionMode,
) -> io::Result<Option<Option<File>>> {
    let name = format!("{key}.{turn}");
    if mode == EvictionMode::Remove {
        return share.try_lock(&share.prefix_dir("locks", key)?, &name);
    }
    let start = key.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
    match existing_file(&share.record_dir("locks")?.child(start)?, &name)? {
        Some(file) => Ok(try_lock_exclusive(&file)?.then_some(Some(file))),
        None => Ok(Some(None)),
    }
}
