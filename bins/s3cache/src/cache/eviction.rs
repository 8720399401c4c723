//! What is removed to make room: the least recently used blobs go first, what was used within the last hour only when
//! nothing else helps, and what is in use never.

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
use super::space::{CountedBytes, SpaceLimits, StoredBlob, count_unpacked, free, stored};

/// With more blobs than this an eviction goes a sixteenth below the bound, so that the next fetches need none.
const MANY: usize = 256;
/// What was used within this time is recent: the program that was started from it may still be loading from it.
pub(crate) const RECENT: Duration = Duration::from_secs(3600);

/// Whether something is removed, or only counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EvictionMode {
    /// It is removed.
    Remove,
    /// What would be removed is counted, and nothing changes.
    DryRun,
}

/// What an eviction does with blobs and unpacked pexes that were used within the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecentPolicy {
    /// They stay: the fetch that needs room can go past the cache.
    Keep,
    /// They go after all others: without room the fetch would fail.
    Evict,
}

impl RecentPolicy {
    /// What an error adds about it.
    pub(super) const fn shown(self) -> &'static str {
        match self {
            Self::Keep => " (what was used within the last hour stays)",
            Self::Evict => "",
        }
    }
}

/// Whether something used at `used` counts as recently used.
#[must_use]
pub(crate) fn is_recent(used: SystemTime, now: SystemTime) -> bool {
    is_within(RECENT, used, now)
}

/// Whether `used` is less than `span` before `now`. A time further in the future says nothing: the clock was set back.
#[must_use]
pub(crate) fn is_within(span: Duration, used: SystemTime, now: SystemTime) -> bool {
    now.duration_since(used)
        .unwrap_or_else(|ahead| ahead.duration())
        < span
}

/// Evicts until `more` bytes fit within the bounds, or nothing is left to evict. `blobs` and `held` are what was just
/// counted. Returns what is held then.
pub(super) fn evict(
    share: &CacheShare,
    bounds: SpaceLimits,
    more: u64,
    (mut blobs, mut held): (Vec<StoredBlob>, CountedBytes),
) -> io::Result<CountedBytes> {
    let dead = remove_dead_partials(share, |_| Duration::ZERO, EvictionMode::Remove)?;
    held.cached = held.cached.saturating_sub(dead);
    let slack = if blobs.len() > MANY {
        bounds.max_size / 16
    } else {
        0
    };
    let fits = |held: u64, slack: u64| {
        let room = free(share)? >= bounds.keep_free.saturating_add(more);
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
                    // gc may be going on.
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
    // Unpacked pexes come back without the network, so they go first.
    prune(&mut held, RECENT)?;
    evict_blobs(&mut held, others, slack)?;
    if bounds.recent == RecentPolicy::Evict {
        prune(&mut held, Duration::ZERO)?;
        // Room for the fetches to come is not worth what was just used.
        evict_blobs(&mut held, recent, 0)?;
    }
    Ok(held)
}

/// Removes a blob unless it is leased or a running process names it; says whether it is gone.
///
/// # Errors
/// As unlinkat(2); `NotFound` when it was gone before.
pub(crate) fn remove_blob(
    share: &CacheShare,
    sha256: &str,
    in_use: &ProcessReferences,
    act: EvictionMode,
) -> io::Result<bool> {
    remove_unused(share, sha256, None, in_use, act)
}

/// Does as [`remove_blob`], but leaves a blob that was used since it was chosen.
///
/// # Errors
/// As unlinkat(2); `NotFound` when it was gone before.
pub(crate) fn evict_blob(
    share: &CacheShare,
    chosen: &StoredBlob,
    in_use: &ProcessReferences,
    act: EvictionMode,
) -> io::Result<bool> {
    remove_unused(share, &chosen.sha256, Some(chosen.used), in_use, act)
}

fn remove_unused(
    share: &CacheShare,
    sha256: &str,
    used: Option<SystemTime>,
    in_use: &ProcessReferences,
    act: EvictionMode,
) -> io::Result<bool> {
    // Before the locks are taken, which starts wait for: it may have to read all of /proc.
    if !in_use.of_blob(sha256)?.is_empty() {
        return Ok(false);
    }
    match unlink_blob(share, sha256, used, act) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        other => share.own_failures(other),
    }
}

fn unlink_blob(
    share: &CacheShare,
    sha256: &str,
    used: Option<SystemTime>,
    act: EvictionMode,
) -> io::Result<bool> {
    let start = sha256.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
    let shelf = share.dir().child("blobs")?.child(start)?;
    let dir = shelf.child(sha256)?;
    let names: Vec<_> = dir.entries()?.collect::<io::Result<_>>()?;
    let mut locks: Vec<(u64, File)> = Vec::new();
    for (name, _) in &names {
        if let Ok(file) = dir.open_file(name) {
            // Links of one file share its lock, which we may hold already.
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
    // A program may have been started from it, and have given its lease up, after the processes were looked at.
    let found = used.and_then(|_| stored(&shelf, sha256));
    if found.is_some_and(|found| Some(found.used) > used) {
        return Ok(false);
    }
    if act == EvictionMode::DryRun {
        return Ok(true);
    }
    for (name, _) in &names {
        // The same content may be published again under this name at this moment: that file is not ours to remove.
        let regular = dir.open_file(name).and_then(|file| file.metadata());
        if regular.is_ok_and(|found| !locks.iter().any(|(held, _)| *held == found.ino())) {
            continue;
        }
        gone(dir.remove_all(name))?;
    }
    match shelf.remove_dir(sha256) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTEMPTY as i32) => Ok(true),
        other => gone(other).map(|()| true),
    }
}

/// What somebody else removed is removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What a file in the folder of partial downloads is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartialKind {
    /// Bytes on their way in, and the record of them.
    Arriving,
    /// A blob that turned out corrupt.
    Quarantined,
    /// Why a leader failed, for those who waited for it.
    FailureRecord,
}

impl PartialKind {
    /// The kind of a file by its name.
    #[must_use]
    pub(crate) fn of(name: &str) -> Self {
        if name.ends_with(".bad") {
            Self::Quarantined
        } else if name.contains(".failed") {
            Self::FailureRecord
        } else {
            Self::Arriving
        }
    }
}

/// Removes partial downloads that no process works on, quarantined blobs and failure records that are older than `age`
/// says for their kind; returns the bytes freed.
///
/// # Errors
/// The disk fails.
pub(crate) fn remove_dead_partials(
    share: &CacheShare,
    age: impl Fn(PartialKind) -> Duration,
    act: EvictionMode,
) -> io::Result<u64> {
    let Some(dir) = share.existing_records("partial")? else {
        return Ok(0);
    };
    let mut freed = 0;
    for entry in dir.entries()? {
        let (name, is_dir) = entry?;
        let name = name.to_string_lossy().into_owned();
        let Ok(found) = dir.stat(&name) else { continue };
        let written = SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(found.st_mtime).unwrap_or(0));
        // A time in the future means that the clock stepped; such a file is as dead as its lock says.
        if clock::now()
            .duration_since(written)
            .is_ok_and(|since| since < age(PartialKind::of(&name)))
        {
            continue;
        }
        // <key>.<turn>.data and .record belong to whoever holds the lock <key>.<turn>.
        let mut words = name.split('.');
        let _lock = match (words.next(), words.next(), words.next()) {
            (Some(key), Some(turn), Some("data" | "record")) if key.len() == 64 => {
                match lock_of(share, key, turn, act) {
                    Ok(Some(lock)) => lock,
                    // A lock that cannot be had because there is no place for one is nobody's.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    _ => continue,
                }
            }
            _ => None,
        };
        if is_dir || act == EvictionMode::Remove && dir.remove_file(&name).is_err() {
            // It is not a file, or somebody else was faster.
            continue;
        }
        freed += u64::try_from(found.st_size).unwrap_or(0);
    }
    Ok(freed)
}

/// Takes the lock of a partial download, as [`CacheShare::try_lock`] does; only to look, none is made.
fn lock_of(
    share: &CacheShare,
    key: &str,
    turn: &str,
    act: EvictionMode,
) -> io::Result<Option<Option<File>>> {
    let name = format!("{key}.{turn}");
    if act == EvictionMode::Remove {
        return share.try_lock(&share.shelf("locks", key)?, &name);
    }
    let start = key.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
    match existing_file(&share.records("locks")?.child(start)?, &name)? {
        Some(file) => Ok(try_lock_exclusive(&file)?.then_some(Some(file))),
        None => Ok(Some(None)),
    }
}
