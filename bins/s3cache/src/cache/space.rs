//! The space of a share: reserved before a download, and made by eviction when there is too little.
//!
//! The used space is a counter beside the index, with another one for unpacked pexes. Files are read only when the
//! counters exceed the limit, so that a fetch into a cache of 100,000 artifacts costs as much as one into an empty
//! cache. The counter does not see what pexes unpack between two counts; before anything is evicted, everything is
//! counted.

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

/// The longest that another process's eviction is waited for: that process may have been stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The counter of blobs and partial downloads.
pub(super) const USED_COUNTER: &str = "held";
/// The counter of unpacked pexes.
pub(super) const UNPACKED_COUNTER: &str = "unpacked";
/// The lock of both counters.
pub(super) const SPACE_LOCK: &str = "space";

/// The limits of one share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpaceLimits {
    /// The most it may use (bytes).
    pub max_size: u64,
    /// To be kept free on its filesystem (bytes).
    pub keep_free: u64,
    /// Whether blobs that were used within the last hour may be evicted.
    pub recent: RecentPolicy,
}

/// A blob on disk.
#[derive(Debug, Clone)]
pub(crate) struct StoredBlob {
    pub sha256: String,
    pub size: u64,
    /// The last use that the file times show.
    pub used: SystemTime,
}

/// The used space that counts toward the limit.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CountedBytes {
    /// Blobs and all files in `partial` (bytes).
    pub cached: u64,
    /// Unpacked pexes (bytes).
    pub unpacked: u64,
}

impl CountedBytes {
    #[must_use]
    pub(crate) const fn total(self) -> u64 {
        self.cached.saturating_add(self.unpacked)
    }
}

/// Grows the space reserved in `data` from `have` to `want` bytes, with eviction if needed.
///
/// # Errors
/// The disk fails. Too little room is `Ok(Err(why))`: the caller bypasses the cache.
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
        // Not even the counter can be written.
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
        return Ok(Err(format!(
            "{want} exceed the maximum of {max} (--max-size)"
        )));
    }
    let _lock = lock(share)?;
    let mut held = match read_counter(share, USED_COUNTER) {
        Some(cached) => CountedBytes {
            cached,
            unpacked: read_counter(share, UNPACKED_COUNTER).unwrap_or(0),
        },
        None => count(share)?.1,
    };
    let fits = |held: CountedBytes| {
        let room = free_space(share)? >= bounds.keep_free.saturating_add(more);
        Ok::<_, io::Error>(held.total().saturating_add(more) <= bounds.max_size && room)
    };
    if !fits(held)? {
        let counted = count(share)?;
        if let Some(why) = cannot_keep_free(
            free_space(share)?,
            counted.1.total(),
            bounds.keep_free,
            more,
        ) {
            write_counter(share, USED_COUNTER, counted.1.cached)?;
            return Ok(Err(why));
        }
        held = evict(share, bounds, more, counted)?;
        if !fits(held)? {
            // The counter may have been wrong; this count is right.
            write_counter(share, USED_COUNTER, held.cached)?;
            return Ok(Err(format!(
                "no room for {} more, and nothing more to evict{}",
                format_size(more),
                bounds.recent.note()
            )));
        }
    }
    // Written first: after a crash in between, the counter is too high, which the next eviction corrects.
    write_counter(share, USED_COUNTER, held.cached + more)?;
    match allocate(data, have, more) {
        Err(error) if is_full(&error) => {
            write_counter(share, USED_COUNTER, held.cached)?;
            Ok(Err(format!("the disk has no {} left", format_size(more))))
        }
        other => other.map(Ok),
    }
}

/// Releases `bytes` that were reserved, after their file is removed.
pub(crate) fn release(share: &CacheShare, bytes: u64) -> io::Result<()> {
    let _lock = lock(share)?;
    match read_counter(share, USED_COUNTER) {
        Some(held) => write_counter(share, USED_COUNTER, held.saturating_sub(bytes)),
        None => Ok(()),
    }
}

/// Counts the whole share and writes the counters; the last step of gc.
pub(crate) fn recount(share: &CacheShare) -> io::Result<CountedBytes> {
    let _lock = lock(share)?;
    let held = count(share)?.1;
    write_counter(share, USED_COUNTER, held.cached)?;
    Ok(held)
}

/// Why `keep_free` and `more` bytes could not be freed even by evicting all that is `held`. Then nothing is evicted.
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
        // Not every filesystem can preallocate; then only the file's length shows the reservation to others.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => data.set_len(have + more),
        other => Ok(other?),
    }
}

/// Free space on the share's filesystem (bytes).
pub(super) fn free_space(share: &CacheShare) -> io::Result<u64> {
    let found = fstatvfs(share.dir())?;
    Ok(found.blocks_available() as u64 * found.fragment_size() as u64)
}

fn lock(share: &CacheShare) -> io::Result<Option<File>> {
    let dir = share.record_dir("locks")?;
    let began = clock::since_boot();
    loop {
        if let Some(lock) = share.try_lock(&dir, SPACE_LOCK)? {
            return Ok(lock);
        }
        if clock::since_boot().saturating_sub(began) > LOCK_TIMEOUT {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "another process has held the space lock of the cache for too long",
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn read_counter(share: &CacheShare, name: &str) -> Option<u64> {
    let bytes = share.record_dir("index").ok()?.read(name, 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

/// Counts the bytes of unpacked pexes and writes the counter.
pub(super) fn count_unpacked(share: &CacheShare) -> io::Result<u64> {
    let bytes = pex_root_bytes(share).unwrap_or(0);
    write_counter(share, UNPACKED_COUNTER, bytes)?;
    Ok(bytes)
}

fn write_counter(share: &CacheShare, name: &str, held: u64) -> io::Result<()> {
    share.record_dir("index")?.write_atomic(
        name,
        format!("{held}\n").as_bytes(),
        0o644,
        Durability::Process,
    )
}

/// All blobs, and the used space.
pub(super) fn count(share: &CacheShare) -> io::Result<(Vec<StoredBlob>, CountedBytes)> {
    // Partial downloads first: one that becomes a blob meanwhile is counted twice until the next count. If it were
    // missed, the share could exceed its limit.
    let partial = partial_bytes(share)?;
    let blobs = blobs(share)?;
    let held = CountedBytes {
        cached: partial + blobs.iter().map(|blob| blob.size).sum::<u64>(),
        unpacked: count_unpacked(share)?,
    };
    Ok((blobs, held))
}

/// Bytes of the files in `partial`, reservations included.
fn partial_bytes(share: &CacheShare) -> io::Result<u64> {
    let Some(dir) = share.existing_record_dir("partial")? else {
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
            // In another user's share names are arbitrary.
            if digest::parse(&name).is_ok_and(|sha256| sha256 == name && sha256.starts_with(&start))
            {
                found.extend(stored_blob(&shelf, &name));
            }
        }
    }
    Ok(found)
}

/// Size and last use of a blob; `None` when it is gone.
pub(super) fn stored_blob(shelf: &Dir, sha256: &str) -> Option<StoredBlob> {
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
        // All names are links of one file. Its atime shows uses by users that cannot mark the directory.
        size = Some(u64::try_from(file.st_size).unwrap_or(0));
        used = used.max(at(file.st_atime, file.st_atime_nsec));
    }
    Some(StoredBlob {
        sha256: sha256.to_owned(),
        // The directory is empty before its blob arrives, and after a quarantine.
        size: size?,
        used,
    })
}
