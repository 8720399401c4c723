//! How much a share holds: space is reserved before a download, and made by evicting when there is none.
//!
//! The amount in use is a counter beside the index, and another one for unpacked pexes; only when they say "full" is
//! anything read, so that a fetch into a cache of 100,000 artifacts costs what one into an empty cache does. What pexes
//! unpack between two counts is not known to the counter; before something is evicted, all is counted.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::{Dir, Durability};
use hostkit::units::format_size;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

use super::eviction::{RecentPolicy, evict};
use super::gc::pex_root_bytes;
use super::process_references::ProcessScanError;
use super::repair::existing_folder;
use super::share::CacheShare;
use crate::digest;

/// The longest that another process's making room is waited for: it may have been stopped in the middle of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried until then.
const POLL: Duration = Duration::from_millis(5);
/// The counter of blobs and partial downloads.
pub(super) const CACHED: &str = "held";
/// The counter of unpacked pexes.
pub(super) const UNPACKED: &str = "unpacked";
/// The lock of both counters, among the locks.
pub(super) const LOCK: &str = "space";

/// The bounds of one share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpaceLimits {
    /// The most it may hold (bytes).
    pub max_size: u64,
    /// What stays free on its filesystem (bytes).
    pub keep_free: u64,
    /// What becomes of blobs that were used within the last hour.
    pub recent: RecentPolicy,
}

/// A blob as the disk has it.
#[derive(Debug, Clone)]
pub(crate) struct StoredBlob {
    /// Its digest.
    pub sha256: String,
    /// Its length (bytes).
    pub size: u64,
    /// When it was last used, as far as the disk knows.
    pub used: SystemTime,
}

/// What a share holds of what counts toward its bound.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CountedBytes {
    /// Blobs and all in the folder of partial downloads (bytes).
    pub cached: u64,
    /// Unpacked pexes (bytes).
    pub unpacked: u64,
}

impl CountedBytes {
    /// Both together (bytes).
    #[must_use]
    pub(crate) const fn total(self) -> u64 {
        self.cached.saturating_add(self.unpacked)
    }
}

/// Grows the space reserved in `data` from `have` to `want` bytes, evicting what is least recently used.
///
/// # Errors
/// The disk fails. Too little room is `Ok(Err(why))`: the caller goes on without the cache.
pub(crate) fn reserve(
    share: &CacheShare,
    bounds: SpaceLimits,
    data: &File,
    have: u64,
    want: u64,
) -> io::Result<Result<(), String>> {
    match reserve_locked(share, bounds, data, have, want) {
        Err(error)
            if error.kind() == io::ErrorKind::TimedOut || ProcessScanError::is_cause(&error) =>
        {
            Ok(Err(error.to_string()))
        }
        // Not even a counter can be written.
        Err(error) if is_full(&error) => Ok(Err(format!(
            "the disk of {} is full",
            share.dir().path().display()
        ))),
        other => other,
    }
}

fn is_full(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::ENOSPC | Errno::EDQUOT))
}

fn reserve_locked(
    share: &CacheShare,
    bounds: SpaceLimits,
    data: &File,
    have: u64,
    want: u64,
) -> io::Result<Result<(), String>> {
    let more = want.saturating_sub(have);
    if want > bounds.max_size {
        let (want, max) = (format_size(want), format_size(bounds.max_size));
        return Ok(Err(format!("{want} do not fit into {max} (--max-size)")));
    }
    let _lock = lock(share)?;
    let mut held = match read_counter(share, CACHED) {
        Some(cached) => CountedBytes {
            cached,
            unpacked: read_counter(share, UNPACKED).unwrap_or(0),
        },
        None => count(share)?.1,
    };
    let fits = |held: CountedBytes| {
        let room = free(share)? >= bounds.keep_free.saturating_add(more);
        Ok::<_, io::Error>(held.total().saturating_add(more) <= bounds.max_size && room)
    };
    if !fits(held)? {
        let counted = count(share)?;
        if let Some(why) = cannot_keep_free(free(share)?, counted.1.total(), bounds.keep_free, more)
        {
            write_counter(share, CACHED, counted.1.cached)?;
            return Ok(Err(why));
        }
        held = evict(share, bounds, more, counted)?;
        if !fits(held)? {
            // The counter may have been wrong, and is right now.
            write_counter(share, CACHED, held.cached)?;
            return Ok(Err(format!(
                "there is no room for {} more, and nothing more to evict{}",
                format_size(more),
                bounds.recent.shown()
            )));
        }
    }
    // Written before the space is taken: a crash in between leaves the counter too high, which the next eviction mends.
    write_counter(share, CACHED, held.cached + more)?;
    match allocate(data, have, more) {
        Err(error) if is_full(&error) => {
            write_counter(share, CACHED, held.cached)?;
            Ok(Err(format!("the disk has no {} left", format_size(more))))
        }
        other => other.map(Ok),
    }
}

/// Gives back `bytes` that were reserved, after their file is gone.
///
/// # Errors
/// The disk fails.
pub(crate) fn release(share: &CacheShare, bytes: u64) -> io::Result<()> {
    let _lock = lock(share)?;
    match read_counter(share, CACHED) {
        Some(held) => write_counter(share, CACHED, held.saturating_sub(bytes)),
        None => Ok(()),
    }
}

/// Reads the whole share and writes down what it holds; what gc ends with.
///
/// # Errors
/// The disk fails.
pub(crate) fn recount(share: &CacheShare) -> io::Result<CountedBytes> {
    let _lock = lock(share)?;
    let held = count(share)?.1;
    write_counter(share, CACHED, held.cached)?;
    Ok(held)
}

/// Why `keep_free` bytes and `more` would not be free even if all that is `held` were evicted: then nothing is, because
/// it would help nothing.
#[must_use]
pub(crate) fn cannot_keep_free(free: u64, held: u64, keep_free: u64, more: u64) -> Option<String> {
    (free.saturating_add(held) < keep_free.saturating_add(more)).then(|| {
        format!(
            "cannot keep {} free: the filesystem has {} free and the cache holds {}: lower --keep-free",
            format_size(keep_free),
            format_size(free),
            format_size(held)
        )
    })
}

fn allocate(data: &File, have: u64, more: u64) -> io::Result<()> {
    let (offset, length) = (
        i64::try_from(have).unwrap_or(i64::MAX),
        i64::try_from(more).unwrap_or(i64::MAX),
    );
    if more == 0 {
        return Ok(());
    }
    match fallocate(data, FallocateFlags::empty(), offset, length) {
        // Not every filesystem can reserve; then the length alone is what others count.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => data.set_len(have + more),
        other => Ok(other?),
    }
}

/// Free space for us on the share's filesystem (bytes).
pub(super) fn free(share: &CacheShare) -> io::Result<u64> {
    let found = fstatvfs(share.dir())?;
    Ok(found.blocks_available() as u64 * found.fragment_size() as u64)
}

fn lock(share: &CacheShare) -> io::Result<Option<File>> {
    let dir = share.records("locks")?;
    let began = clock::since_boot();
    loop {
        if let Some(lock) = share.try_lock(&dir, LOCK)? {
            return Ok(lock);
        }
        if clock::since_boot().saturating_sub(began) > PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "another process is making room in the cache and does not get on",
            ));
        }
        std::thread::sleep(POLL);
    }
}

fn read_counter(share: &CacheShare, name: &str) -> Option<u64> {
    let bytes = share.records("index").ok()?.read(name, 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

/// What unpacked pexes hold, counted by a walk over them and written down for the fetches to come (bytes).
pub(super) fn count_unpacked(share: &CacheShare) -> io::Result<u64> {
    let bytes = pex_root_bytes(share).unwrap_or(0);
    write_counter(share, UNPACKED, bytes)?;
    Ok(bytes)
}

fn write_counter(share: &CacheShare, name: &str, held: u64) -> io::Result<()> {
    share.records("index")?.write_atomic(
        name,
        format!("{held}\n").as_bytes(),
        0o644,
        Durability::Process,
    )
}

/// All blobs, and what is held.
pub(super) fn count(share: &CacheShare) -> io::Result<(Vec<StoredBlob>, CountedBytes)> {
    // In this order: a download that becomes a blob meanwhile is counted twice, which the next count mends. Missed, it
    // would take the share above its bound.
    let partial = partial_bytes(share)?;
    let blobs = blobs(share)?;
    let held = CountedBytes {
        cached: partial + blobs.iter().map(|blob| blob.size).sum::<u64>(),
        unpacked: count_unpacked(share)?,
    };
    Ok((blobs, held))
}

/// What lies in the folder of partial downloads, reservations included (bytes).
fn partial_bytes(share: &CacheShare) -> io::Result<u64> {
    let Some(dir) = share.existing_records("partial")? else {
        return Ok(0);
    };
    let mut bytes = 0;
    for entry in dir.entries()? {
        bytes += dir
            .stat(&entry?.0)
            .map_or(0, |found| u64::try_from(found.st_size).unwrap_or(0));
    }
    Ok(bytes)
}

/// All blobs of a share, in no order.
///
/// # Errors
/// The disk fails.
pub(crate) fn blobs(share: &CacheShare) -> io::Result<Vec<StoredBlob>> {
    let Some(root) = existing_folder(share.dir(), "blobs")? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for shelf in root.entries()? {
        let start = shelf?.0.to_string_lossy().into_owned();
        let Ok(shelf) = root.child(&start) else {
            continue;
        };
        if start.len() != 2 {
            continue;
        }
        for blob in shelf.entries()? {
            let (name, _) = blob?;
            let name = name.to_string_lossy();
            // Anything else is not ours; in another user's part it may have any name.
            if digest::parse(&name).is_ok_and(|sha256| sha256 == name && sha256.starts_with(&start))
            {
                found.extend(stored(&shelf, &name));
            }
        }
    }
    Ok(found)
}

/// What a blob of this shelf is; `None` when it is gone.
pub(super) fn stored(shelf: &Dir, sha256: &str) -> Option<StoredBlob> {
    let dir = shelf.child(sha256).ok()?;
    let at = |seconds: i64, nanoseconds: i64| {
        let (seconds, nanoseconds) = (u64::try_from(seconds), u32::try_from(nanoseconds));
        SystemTime::UNIX_EPOCH + Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
    };
    let found = dir.metadata().ok()?;
    let mut used = at(found.st_mtime, found.st_mtime_nsec);
    let mut size = None;
    for entry in dir.entries().ok()? {
        let file = dir.stat(&entry.ok()?.0).ok()?;
        // Links of one file: every name has the same length. Its atime knows of users who cannot mark the folder.
        size = Some(u64::try_from(file.st_size).unwrap_or(0));
        used = used.max(at(file.st_atime, file.st_atime_nsec));
    }
    Some(StoredBlob {
        sha256: sha256.to_owned(),
        // A folder that is empty is that of a blob to come, or of one that was put aside.
        size: size?,
        used,
    })
}
