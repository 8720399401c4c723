//! One uid's part of the cache directory: its layout on disk, and single operations on it.
//!
//! ```text
//! <uid>/blobs/<ab>/<sha256>/<name>     content, by digest; the same in every format
//! <uid>/index/v1/<ab>/<key>            JSON: what a source is (cache::entry)
//! <uid>/locks/v1/<ab>/<key>.<turn>     flock: who fetches a source
//! <uid>/partial/v1/<key>.<turn>.*      bytes on their way in (cache::partial)
//! <uid>/pex-root                       unpacked pexes, for pexrun
//! <uid>/unpacking/v1/*                 paths of directories that are being filled (unpack::scratch)
//! ```
//!
//! An s3cache of another format uses other `v<n>` folders and the same blobs: neither can misread the other's records,
//! and a blob is what its digest says whoever wrote it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hostkit::clock;
use hostkit::dir::{Dir, Durability, try_lock_exclusive, try_lock_shared};
use nix::sys::stat::{SFlag, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::eviction::EvictionMode;
use super::index_entry::{FileStamp, IndexEntry};
use super::process_references::ProcessReferences;
use super::repair::{existing, existing_file, existing_folder, is_impostor};
use crate::{digest, pex};

/// The version of the index, lock and partial formats.
pub(super) const FORMAT: &str = "v1";
/// An index entry larger than this is not one (bytes).
const ENTRY_LIMIT: u64 = 64 << 10;
/// The mode of a blob: for everybody to read and run, for nobody to write.
const BLOB_MODE: u32 = 0o555;
/// The longest that a lease is waited for. An eviction holds the lock for less than a millisecond per blob; who holds it
/// for longer is not evicting.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried until then.
const LEASE_POLL: Duration = Duration::from_millis(2);

/// A blob that is open, with a lease on it when nobody is evicting it: eviction takes the lock exclusively.
#[derive(Debug)]
pub struct CachedBlob {
    /// The index entry that led to it.
    pub entry: IndexEntry,
    /// The open file. Its shared `flock` is the lease.
    pub file: File,
    /// Where it stands.
    pub path: PathBuf,
}

impl CachedBlob {
    /// Whether it is a pex. Another user's entry that does not say is not changed, and the blob looked at.
    #[must_use]
    pub fn is_pex(&self) -> bool {
        self.entry.pex.unwrap_or_else(|| pex::is_pex(&self.file))
    }
}

/// What an index entry turned out to be worth.
#[derive(Debug)]
pub enum LookupResult {
    /// The blob is there and is what the entry says.
    Hit(Box<CachedBlob>),
    /// There is no such entry, or its blob is gone.
    Miss,
    /// The blob had changed; it was put aside.
    Corrupt(Box<IndexEntry>),
}

impl LookupResult {
    /// The blob that can be used.
    #[must_use]
    pub fn hit(self) -> Option<CachedBlob> {
        match self {
            Self::Hit(blob) => Some(*blob),
            Self::Miss | Self::Corrupt(_) => None,
        }
    }
}

/// A uid's part of the cache.
#[derive(Debug)]
pub struct CacheShare {
    /// Whose it is.
    pub uid: u32,
    /// Whether the caller may write to it.
    pub own: bool,
    /// Whether what is missing is made: only in one's own, as its owner could not use what root makes there.
    creates: bool,
    dir: Dir,
}

impl CacheShare {
    /// Opens the part of `uid` below the cache directory. `own` is whether the caller may write to it; what is missing
    /// is made when the caller is `uid`.
    ///
    /// # Errors
    /// It does not exist, cannot be opened, or is not `uid`'s alone to write.
    pub fn open(root: &Dir, uid: u32, own: bool) -> io::Result<Self> {
        let name = uid.to_string();
        let creates = own && nix::unistd::geteuid().as_raw() == uid;
        let dir = if creates {
            root.create_child(&name, 0o755)?
        } else {
            root.child(&name)?
        };
        let found = dir.metadata()?;
        if found.st_uid != uid {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it belongs to uid {}", found.st_uid),
            ));
        }
        if found.st_mode & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others can write to it",
            ));
        }
        if creates {
            for (folder, mode) in [
                ("blobs", 0o755),
                ("index", 0o755),
                ("locks", 0o755),
                ("partial", 0o755),
                ("pex-root", 0o700),
            ] {
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("its folder {folder}: {error}"))
                };
                let made = dir.create_child(folder, mode).map_err(named)?;
                if mode == 0o755 && folder != "blobs" {
                    made.create_child(FORMAT, mode).map_err(named)?;
                }
            }
        }
        Ok(Self {
            uid,
            own,
            creates,
            dir,
        })
    }

    /// What came of work on this share. In somebody else's part, where only root works, a failure may be its owner's
    /// doing: it is logged, and must not keep root from the parts of others.
    ///
    /// # Errors
    /// In one's own part as given.
    pub fn own_failures<T: Default>(&self, result: io::Result<T>) -> io::Result<T> {
        result.or_else(|error| {
            if self.creates {
                return Err(error);
            }
            tracing::warn!(uid = self.uid, %error, "cannot work on this user's part of the cache");
            Ok(T::default())
        })
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Its path, for messages.
    #[must_use]
    pub fn display_path(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// One of `index`, `locks` and `partial`, in this format.
    ///
    /// # Errors
    /// As openat(2).
    pub fn records(&self, folder: &str) -> io::Result<Dir> {
        self.dir.child(folder)?.child(FORMAT)
    }

    /// The same, or `None` where it is missing: another user may have removed anything of its own.
    ///
    /// # Errors
    /// As openat(2).
    pub fn existing_records(&self, folder: &str) -> io::Result<Option<Dir>> {
        match existing_folder(&self.dir, folder)? {
            Some(folder) => existing_folder(&folder, FORMAT),
            None => Ok(None),
        }
    }

    /// The folder of records that begin as `key` does.
    ///
    /// # Errors
    /// As openat(2); in one's own part it is made when missing.
    pub fn shelf(&self, folder: &str, key: &str) -> io::Result<Dir> {
        let records = self.records(folder)?;
        // Names in somebody else's part are whatever they like.
        let start = key.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
        if self.creates {
            records.create_child(start, 0o755)
        } else {
            records.child(start)
        }
    }

    /// Takes a lock that is held for as long as the file is open; `None` when another process holds it. In another
    /// user's part only a file that is there can be locked. What is missing, or not a file, no process holds.
    ///
    /// # Errors
    /// As openat(2) and flock(2).
    pub fn try_lock(&self, dir: &Dir, name: &str) -> io::Result<Option<Option<File>>> {
        if self.creates {
            return match dir.try_lock(name, 0o600) {
                Err(_) if is_impostor(dir, name, SFlag::S_IFREG) => Ok(Some(None)),
                taken => Ok(taken?.map(Some)),
            };
        }
        match existing_file(dir, name)? {
            Some(file) => Ok(try_lock_exclusive(&file)?.then_some(Some(file))),
            None => Ok(Some(None)),
        }
    }

    /// Reads the index entry of a source.
    ///
    /// # Errors
    /// There is none, or it is not an index entry.
    pub fn entry(&self, key: &str) -> io::Result<IndexEntry> {
        let bytes = self.shelf("index", key)?.read(key, ENTRY_LIMIT)?;
        let entry: IndexEntry = serde_json::from_slice(&bytes)?;
        let plain = !entry.name.is_empty()
            && !entry.name.contains('/')
            && entry.name != "."
            && entry.name != "..";
        if digest::parse(&entry.sha256).is_err() || !plain {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not an index entry",
            ));
        }
        Ok(entry)
    }

    /// Looks a source up, compares the blob's stamp, and reads the whole blob again when the stamp changed.
    ///
    /// # Errors
    /// The blob cannot be read.
    pub fn lookup(&self, key: &str) -> io::Result<LookupResult> {
        let Ok(mut entry) = self.entry(key) else {
            return Ok(LookupResult::Miss);
        };
        let Ok((file, path)) = self.lease_blob(&entry.sha256, &entry.name) else {
            return Ok(LookupResult::Miss);
        };
        let stamp = FileStamp::of(&file.metadata()?);
        let mut changed = false;
        if stamp != entry.stamp {
            let length = file.metadata()?.len();
            if length != entry.size || digest::of_file(&file, length)? != entry.sha256 {
                self.quarantine(key, &entry)?;
                return Ok(LookupResult::Corrupt(Box::new(entry)));
            }
            tracing::debug!(path = %path.display(), "the file's stamp changed, its bytes did not");
            entry.stamp = stamp;
            changed = true;
        }
        if self.own && entry.pex.is_none() {
            entry.pex = Some(pex::is_pex(&file));
            changed = true;
        }
        if self.own && changed {
            // Without it the next run reads the blob again, and that is all.
            let _ = self.write_entry(key, &entry);
        }
        if self.own {
            self.touch(&entry.sha256);
        }
        Ok(LookupResult::Hit(Box::new(CachedBlob {
            entry,
            file,
            path,
        })))
    }

    /// Opens a blob only to look at it: it may be evicted at any moment.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_blob(&self, sha256: &str, name: &str) -> io::Result<(File, PathBuf)> {
        let dir = self.blob_dir(sha256)?;
        Ok((dir.open_file(name)?, dir.path().join(name)))
    }

    /// Opens a blob and takes a lease on it. An eviction that has its lock is waited for, and it turns out whether the
    /// blob was left.
    ///
    /// # Errors
    /// It is not there, or was evicted.
    fn lease_blob(&self, sha256: &str, name: &str) -> io::Result<(File, PathBuf)> {
        let dir = self.blob_dir(sha256)?;
        let file = dir.open_file(name)?;
        let began = clock::since_boot();
        while !try_lock_shared(&file)? {
            if clock::since_boot().saturating_sub(began) > LEASE_PATIENCE {
                // Every user can lock what every user can read, and must not be able to take the cache from others.
                tracing::warn!(path = %dir.path().display(), "a process keeps its lock: used without a lease");
                break;
            }
            std::thread::sleep(LEASE_POLL);
        }
        if !dir.is_at(&file, name)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file, dir.path().join(name)))
    }

    fn blob_dir(&self, sha256: &str) -> io::Result<Dir> {
        self.dir.child("blobs")?.child(&sha256[..2])?.child(sha256)
    }

    /// Marks a blob as used now: what eviction goes by. The mark is the time of its folder, because the times of the
    /// file are its stamp.
    fn touch(&self, sha256: &str) {
        let now = TimeSpec::UTIME_NOW;
        if let Ok(shelf) = self
            .dir
            .child("blobs")
            .and_then(|blobs| blobs.child(&sha256[..2]))
        {
            // A missed mark costs at most an early eviction.
            let _ = utimensat(&shelf, sha256, &now, &now, UtimensatFlags::NoFollowSymlink);
        }
    }

    /// Writes the index entry of a source.
    ///
    /// # Errors
    /// As [`Dir::write_atomic`].
    pub fn write_entry(&self, key: &str, entry: &IndexEntry) -> io::Result<()> {
        self.shelf("index", key)?.write_atomic(
            key,
            &serde_json::to_vec(entry)?,
            0o644,
            Durability::Crash,
        )
    }

    /// Moves the verified file `name` of `from` in as a blob and enters it in the index. `file` is that file, open for
    /// reading only, as nobody may have it open for writing any more: the kernel does not execute such a file.
    /// The entry's stamp is set here, because moving changes it, and whether it is a pex. `file` holds the lease from
    /// before anything can find the blob.
    ///
    /// # Errors
    /// As fsync(2), renameat(2) and [`Dir::write_atomic`]. Nothing unverified becomes visible at any moment.
    pub fn publish(
        &self,
        from: &Dir,
        name: &str,
        file: &File,
        key: &str,
        entry: &mut IndexEntry,
    ) -> io::Result<PathBuf> {
        // What was verified is the open file; what is moved goes by its name.
        if !from.is_at(file, name)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        nix::sys::stat::fchmod(file, nix::sys::stat::Mode::from_bits_truncate(BLOB_MODE))?;
        file.sync_all()?;
        try_lock_shared(file)?;
        let blobs = self.dir.child("blobs")?;
        let shelf = blobs.create_child(&entry.sha256[..2], 0o755)?;
        let dir = loop {
            let dir = shelf.create_child(&entry.sha256, 0o755)?;
            match from.rename(name, &dir, &entry.name) {
                Ok(()) => break dir,
                // The folder was evicted between its making and the rename.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && from.is_at(file, name)? => {}
                Err(error) => return Err(error),
            }
        };
        let entered = self.enter([&dir, &shelf, &blobs], file, key, entry);
        if entered.is_err() {
            // Its caller gives the space back that it has, so that it must not stay.
            file.unlock()?;
            let _ = super::eviction::remove_blob(
                self,
                &entry.sha256,
                &ProcessReferences::default(),
                EvictionMode::Remove,
            );
        }
        entered.map(|()| dir.path().join(&entry.name))
    }

    /// Enters a blob that has just been moved in. The directories are its own and those above it.
    fn enter(
        &self,
        dirs: [&Dir; 3],
        file: &File,
        key: &str,
        entry: &mut IndexEntry,
    ) -> io::Result<()> {
        let [dir, ..] = dirs;
        // The same content under another name becomes the same file: one copy on disk, one lock for both.
        for other in dir.entries()? {
            let (other, _) = other?;
            if other != OsStr::new(&entry.name) {
                let temp = format!(".{}.tmp", std::process::id());
                let _ = dir.remove_file(&temp);
                dir.link(&entry.name, &temp)?;
                dir.rename(&temp, dir, &other)?;
            }
        }
        for made in dirs {
            made.sync()?;
        }
        entry.pex = Some(pex::is_pex(file));
        entry.stamp = FileStamp::of(&file.metadata()?);
        self.write_entry(key, entry)
    }

    /// Puts a blob that is not what its name says where nobody uses it, and forgets its source.
    ///
    /// # Errors
    /// As renameat(2). In somebody else's part nothing is done.
    pub fn quarantine(&self, key: &str, entry: &IndexEntry) -> io::Result<()> {
        if self.own {
            let dir = self.blob_dir(&entry.sha256)?;
            let corrupt = dir.stat(&entry.name)?.st_ino;
            dir.rename(
                &entry.name,
                &self.records("partial")?,
                format!("{}.bad", entry.sha256),
            )?;
            // The other names of the same file are as corrupt. rename(2) between two names of one file leaves both, so
            // that they would stay, and count twice.
            for other in dir.entries()? {
                let (other, _) = other?;
                if (dir.stat(&other)).is_ok_and(|found| found.st_ino == corrupt) {
                    existing(dir.remove_file(&other))?;
                }
            }
            self.forget(key)?;
        }
        Ok(())
    }

    /// Removes the index entry of a source.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn forget(&self, key: &str) -> io::Result<()> {
        self.shelf("index", key)?.remove_file(key)
    }
}

#[cfg(test)]
mod tests;
