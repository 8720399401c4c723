//! How much a share holds, and making room: space is reserved before a download, the least recently used blobs go
//! first, and nothing in use goes at all.
//!
//! The amount in use is a counter beside the index; only when it says "full" is the directory read, so that a fetch
//! into a cache of 100,000 artifacts costs what one into an empty cache does.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::{Dir, Durability, try_exclusive};
use hostkit::units::show_size;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;
use tracing::info;

use super::share::Share;
use crate::digest;

/// The longest that another process's making room is waited for: it may have been stopped in the middle of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the lock is tried until then.
const POLL: Duration = Duration::from_millis(5);
/// With more blobs than this an eviction goes a sixteenth below the bound, so that the next fetches need none.
const MANY: usize = 256;

/// The bounds of one share.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most it may hold (bytes).
    pub max_size: u64,
    /// What stays free on its filesystem (bytes).
    pub keep_free: u64,
}

/// A blob as the disk has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its digest.
    pub sha256: String,
    /// Its length (bytes).
    pub size: u64,
    /// When it was last used, as far as the disk knows.
    pub used: SystemTime,
}

/// Grows the space reserved in `data` from `have` to `want` bytes, evicting what is least recently used.
///
/// # Errors
/// The disk fails. Too little room is `Ok(Err(why))`: the caller goes on without the cache.
pub fn reserve(
    share: &Share,
    bounds: Bounds,
    data: &File,
    have: u64,
    want: u64,
) -> io::Result<Result<(), String>> {
    match reserve_locked(share, bounds, data, have, want) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Err(error.to_string())),
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
    share: &Share,
    bounds: Bounds,
    data: &File,
    have: u64,
    want: u64,
) -> io::Result<Result<(), String>> {
    let more = want.saturating_sub(have);
    if want > bounds.max_size {
        let (want, max) = (show_size(want), show_size(bounds.max_size));
        return Ok(Err(format!("{want} do not fit into {max} (--max-size)")));
    }
    let _lock = lock(share)?;
    let mut held = match read_counter(share) {
        Some(held) => held,
        None => count(share)?.1,
    };
    let fits = |held: u64| {
        let room = free(share)? >= bounds.keep_free.saturating_add(more);
        Ok::<_, io::Error>(held.saturating_add(more) <= bounds.max_size && room)
    };
    if !fits(held)? {
        held = evict(share, bounds, more)?;
        if !fits(held)? {
            // The counter may have been wrong, and is right now.
            write_counter(share, held)?;
            return Ok(Err(format!(
                "there is no room for {} more, and nothing more to evict",
                show_size(more)
            )));
        }
    }
    // Written before the space is taken: a crash in between leaves the counter too high, which the next eviction mends.
    write_counter(share, held + more)?;
    match allocate(data, have, more) {
        Err(error) if is_full(&error) => {
            write_counter(share, held)?;
            Ok(Err(format!("the disk has no {} left", show_size(more))))
        }
        other => other.map(Ok),
    }
}

/// Gives back `bytes` that were reserved, after their file is gone.
///
/// # Errors
/// The disk fails.
pub fn release(share: &Share, bytes: u64) -> io::Result<()> {
    let _lock = lock(share)?;
    match read_counter(share) {
        Some(held) => write_counter(share, held.saturating_sub(bytes)),
        None => Ok(()),
    }
}

/// Reads the whole share and writes down what it holds; what gc ends with.
///
/// # Errors
/// The disk fails.
pub fn recount(share: &Share) -> io::Result<u64> {
    let recount = || {
        let _lock = lock(share)?;
        let (_, held) = count(share)?;
        write_counter(share, held)?;
        Ok(held)
    };
    share.own_failures(recount())
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
fn free(share: &Share) -> io::Result<u64> {
    let found = fstatvfs(share.dir())?;
    Ok(found.blocks_available() as u64 * found.fragment_size() as u64)
}

fn lock(share: &Share) -> io::Result<Option<File>> {
    let dir = share.records("locks")?;
    let began = clock::since_boot();
    loop {
        if let Some(lock) = share.try_lock(&dir, "space")? {
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

fn read_counter(share: &Share) -> Option<u64> {
    let bytes = share.records("index").ok()?.read("held", 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

fn write_counter(share: &Share, held: u64) -> io::Result<()> {
    share.records("index")?.write_atomic(
        "held",
        format!("{held}\n").as_bytes(),
        0o644,
        Durability::Process,
    )
}

/// All blobs, and what they and partial downloads hold together (bytes).
fn count(share: &Share) -> io::Result<(Vec<Stored>, u64)> {
    // In this order: a download that becomes a blob meanwhile is counted twice, which the next count mends. Missed, it
    // would take the share above its bound.
    let partial = partial_bytes(share)?;
    let blobs = blobs(share)?;
    let held = partial + blobs.iter().map(|blob| blob.size).sum::<u64>();
    Ok((blobs, held))
}

/// What lies in the folder of partial downloads, reservations included (bytes).
///
/// # Errors
/// The disk fails.
pub fn partial_bytes(share: &Share) -> io::Result<u64> {
    let dir = share.records("partial")?;
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
pub fn blobs(share: &Share) -> io::Result<Vec<Stored>> {
    let root = share.dir().child("blobs")?;
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

fn stored(shelf: &Dir, sha256: &str) -> Option<Stored> {
    let dir = shelf.child(sha256).ok()?;
    let at = |seconds: i64, nanoseconds: i64| {
        let (seconds, nanoseconds) = (u64::try_from(seconds), u32::try_from(nanoseconds));
        SystemTime::UNIX_EPOCH + Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
    };
    let found = dir.metadata().ok()?;
    let mut used = at(found.st_mtime, found.st_mtime_nsec);
    let mut size = 0;
    for entry in dir.entries().ok()? {
        let file = dir.stat(&entry.ok()?.0).ok()?;
        // Links of one file: every name has the same length. Its atime knows of users who cannot mark the folder.
        size = u64::try_from(file.st_size).unwrap_or(0);
        used = used.max(at(file.st_atime, file.st_atime_nsec));
    }
    Some(Stored {
        sha256: sha256.to_owned(),
        size,
        used,
    })
}

/// Evicts until `more` bytes fit within the bounds, or nothing is left to evict. Returns what is held then (bytes).
fn evict(share: &Share, bounds: Bounds, more: u64) -> io::Result<u64> {
    remove_dead_partials(share, Duration::ZERO)?;
    let (mut blobs, mut held) = count(share)?;
    let slack = if blobs.len() > MANY {
        bounds.max_size / 16
    } else {
        0
    };
    blobs.sort_by_key(|blob| blob.used);
    for blob in blobs {
        if held.saturating_add(more).saturating_add(slack) <= bounds.max_size
            && free(share)? >= bounds.keep_free.saturating_add(more)
        {
            break;
        }
        let removed = match remove_blob(share, &blob.sha256) {
            // gc may be going on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            other => other?,
        };
        if removed {
            info!(sha256 = blob.sha256, bytes = blob.size, "evicted");
            held = held.saturating_sub(blob.size);
        }
    }
    Ok(held)
}

/// Removes a blob unless somebody holds a lease on it; says whether it is gone.
///
/// # Errors
/// As unlinkat(2); `NotFound` when it was gone before.
pub fn remove_blob(share: &Share, sha256: &str) -> io::Result<bool> {
    match unlink_blob(share, sha256) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        other => share.own_failures(other),
    }
}

fn unlink_blob(share: &Share, sha256: &str) -> io::Result<bool> {
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
            if !try_exclusive(&file)? {
                return Ok(false);
            }
            locks.push((inode, file));
        }
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

/// Removes partial downloads and quarantined blobs that no process works on and that are older than `age`; returns the
/// bytes freed.
///
/// # Errors
/// The disk fails.
pub fn remove_dead_partials(share: &Share, age: Duration) -> io::Result<u64> {
    let dir = share.records("partial")?;
    let mut freed = 0;
    for entry in dir.entries()? {
        let (name, _) = entry?;
        let name = name.to_string_lossy().into_owned();
        let Ok(found) = dir.stat(&name) else { continue };
        let written = SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(found.st_mtime).unwrap_or(0));
        // A time in the future means that the clock stepped; such a file is as dead as its lock says.
        if hostkit::clock::now()
            .duration_since(written)
            .is_ok_and(|since| since < age)
        {
            continue;
        }
        // <key>.<turn>.data and .record belong to whoever holds the lock <key>.<turn>.
        let mut words = name.split('.');
        let _lock = match (words.next(), words.next(), words.next()) {
            (Some(key), Some(turn), Some("data" | "record")) if key.len() == 64 => {
                let locked = share
                    .shelf("locks", key)
                    .and_then(|shelf| share.try_lock(&shelf, &format!("{key}.{turn}")));
                match locked {
                    Ok(Some(lock)) => lock,
                    // A lock that cannot be had because there is no place for one is nobody's.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    _ => continue,
                }
            }
            _ => None,
        };
        if dir.remove_file(&name).is_err() {
            // Somebody else was faster, or it is not a file.
            continue;
        }
        freed += u64::try_from(found.st_size).unwrap_or(0);
    }
    Ok(freed)
}
