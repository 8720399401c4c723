//! A share: one uid's part of the cache directory, its layout on disk, and single operations on it.
//!
//! ```text
//! <uid>/blobs/<ab>/<sha256>/<name>     content, by digest; the same in every format
//! <uid>/index/v1/<ab>/<key>            JSON: the index entry of a source (cache::index_entry)
//! <uid>/locks/v1/<ab>/<key>.<turn>     flock: held by the leader that fetches a source
//! <uid>/partial/v1/<key>.<turn>.*      partial downloads (cache::partial_download)
//! <uid>/pex-root                       unpacked pexes, for pexrun
//! <uid>/unpacking/v1/*                 paths of directories that are being filled (unpack::scratch)
//! ```
//!
//! An s3cache of another format uses other `v<n>` directories and the same blobs: neither can misread the other's
//! records, and a blob has the content that its digest says, whichever version wrote it.

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
/// The size limit of an index entry (bytes).
const ENTRY_LIMIT: u64 = 64 << 10;
/// The mode of a blob: readable and executable for all, writable for none.
const BLOB_MODE: u32 = 0o555;
/// The longest that a lease is waited for. An eviction holds the lock for less than a millisecond per blob, so a longer
/// hold is not an eviction.
const LEASE_TIMEOUT: Duration = Duration::from_secs(2);
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// An open blob with a lease: eviction takes its lock exclusively.
#[derive(Debug)]
pub struct CachedBlob {
    /// The index entry of the source that was looked up.
    pub entry: IndexEntry,
    /// The open file. Its shared `flock` is the lease.
    pub file: File,
    /// Its path in the cache.
    pub path: PathBuf,
}

impl CachedBlob {
    /// Whether it is a pex. If another user's entry does not record it, the blob is read.
    #[must_use]
    pub fn is_pex(&self) -> bool {
        self.entry.pex.unwrap_or_else(|| pex::is_pex(&self.file))
    }
}

/// The result of looking up a source.
#[derive(Debug)]
pub enum LookupResult {
    /// The blob exists and matches the entry.
    Hit(Box<CachedBlob>),
    /// No entry, or its blob was evicted.
    Miss,
    /// The blob did not match its digest; in the caller's own share it was quarantined.
    Corrupt(Box<IndexEntry>),
}

impl LookupResult {
    /// The blob of a hit.
    #[must_use]
    pub fn hit(self) -> Option<CachedBlob> {
        match self {
            Self::Hit(blob) => Some(*blob),
            Self::Miss | Self::Corrupt(_) => None,
        }
    }
}

/// One uid's part of the cache.
#[derive(Debug)]
pub struct CacheShare {
    /// Its owner.
    pub uid: u32,
    /// Whether the caller may write to it.
    pub own: bool,
    /// Whether missing directories are created: only in the caller's own share, because its owner could not use what
    /// root creates.
    creates: bool,
    dir: Dir,
}

impl CacheShare {
    /// Opens the share of `uid`. `own` is whether the caller may write to it; missing directories are created when the
    /// caller is `uid`.
    ///
    /// # Errors
    /// It does not exist, cannot be opened, or others can write to it.
    pub(crate) fn open(root: &Dir, uid: u32, own: bool) -> io::Result<Self> {
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
                    io::Error::new(error.kind(), format!("its directory {folder}: {error}"))
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

    /// Passes on the result of work on the caller's own share. In another user's share, where only root works, a
    /// failure may be the owner's doing: it is logged, and must not keep root from the other shares.
    pub(crate) fn tolerate_foreign<T: Default>(&self, result: io::Result<T>) -> io::Result<T> {
        result.or_else(|error| {
            if self.creates {
                return Err(error);
            }
            tracing::warn!(uid = self.uid, %error, "cannot process this user's share");
            Ok(T::default())
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Its path, for messages.
    #[must_use]
    pub(crate) fn display_path(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// The directory of this format in `index`, `locks` or `partial`.
    pub(crate) fn record_dir(&self, folder: &str) -> io::Result<Dir> {
        self.dir.child(folder)?.child(FORMAT)
    }

    /// The same, or `None` where it is missing: another user may have removed anything.
    pub(crate) fn existing_record_dir(&self, folder: &str) -> io::Result<Option<Dir>> {
        match existing_folder(&self.dir, folder)? {
            Some(folder) => existing_folder(&folder, FORMAT),
            None => Ok(None),
        }
    }

    /// The subdirectory of the records whose names start as `key` does, created in the caller's own share.
    pub(crate) fn prefix_dir(&self, folder: &str, key: &str) -> io::Result<Dir> {
        let records = self.record_dir(folder)?;
        // In another user's share the names are arbitrary.
        let start = key.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
        if self.creates {
            records.create_child(start, 0o755)
        } else {
            records.child(start)
        }
    }

    /// Takes a lock for as long as the file is open; `None` when another process holds it. In another user's share only
    /// an existing file can be locked. No process holds what is missing or not a file.
    pub(crate) fn try_lock(&self, dir: &Dir, name: &str) -> io::Result<Option<Option<File>>> {
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
    /// It is missing or invalid.
    pub(crate) fn entry(&self, key: &str) -> io::Result<IndexEntry> {
        let bytes = self.prefix_dir("index", key)?.read(key, ENTRY_LIMIT)?;
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

    /// Looks up a source. When the blob's stamp differs from the entry's, the whole blob is read and its digest
    /// compared.
    pub(crate) fn lookup(&self, key: &str) -> io::Result<LookupResult> {
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
            tracing::debug!(path = %path.display(), "file stamp changed, content did not");
            entry.stamp = stamp;
            changed = true;
        }
        if self.own && entry.pex.is_none() {
            entry.pex = Some(pex::is_pex(&file));
            changed = true;
        }
        if self.own && changed {
            // If this fails, the next run reads the blob again.
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

    /// Opens a blob without a lease: it may be evicted at any moment.
    pub(crate) fn open_blob(&self, sha256: &str, name: &str) -> io::Result<(File, PathBuf)> {
        let dir = self.blob_dir(sha256)?;
        Ok((dir.open_file(name)?, dir.path().join(name)))
    }

    /// Opens a blob and takes a lease on it. If an eviction holds the lock, this waits until the blob is left or gone.
    ///
    /// # Errors
    /// It does not exist, or was evicted.
    fn lease_blob(&self, sha256: &str, name: &str) -> io::Result<(File, PathBuf)> {
        let dir = self.blob_dir(sha256)?;
        let file = dir.open_file(name)?;
        let began = clock::since_boot();
        while !try_lock_shared(&file)? {
            if clock::since_boot().saturating_sub(began) > LEASE_TIMEOUT {
                // Any user can lock a file that it can read, and must not be able to block the cache for others.
                tracing::warn!(path = %dir.path().display(), "another process holds the lock of a blob; using it without a lease");
                break;
            }
            std::thread::sleep(LEASE_POLL_INTERVAL);
        }
        if !dir.is_at(&file, name)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((file, dir.path().join(name)))
    }

    fn blob_dir(&self, sha256: &str) -> io::Result<Dir> {
        self.dir.child("blobs")?.child(&sha256[..2])?.child(sha256)
    }

    /// Marks a blob as used now, for eviction: in the mtime of its directory, because the file's times are part of its
    /// stamp.
    fn touch(&self, sha256: &str) {
        let now = TimeSpec::UTIME_NOW;
        if let Ok(shelf) = self
            .dir
            .child("blobs")
            .and_then(|blobs| blobs.child(&sha256[..2]))
        {
            // A missed mark causes at most an early eviction.
            let _ = utimensat(&shelf, sha256, &now, &now, UtimensatFlags::NoFollowSymlink);
        }
    }

    pub(crate) fn write_entry(&self, key: &str, entry: &IndexEntry) -> io::Result<()> {
        self.prefix_dir("index", key)?.write_atomic(
            key,
            &serde_json::to_vec(entry)?,
            0o644,
            Durability::Crash,
        )
    }

    /// Moves the verified file `name` of `from` into `blobs` and writes the index entry. `file` is that file, open
    /// read-only: the kernel does not execute a file that is open for writing. Sets the entry's stamp, because the move
    /// changes it, and whether it is a pex. `file` holds the lease before the blob can be found.
    ///
    /// # Errors
    /// As fsync(2), renameat(2) and [`Dir::write_atomic`]. Unverified bytes are never visible under `blobs`.
    pub(crate) fn publish(
        &self,
        from: &Dir,
        name: &str,
        file: &File,
        key: &str,
        entry: &mut IndexEntry,
    ) -> io::Result<PathBuf> {
        // The open file was verified; the rename goes by name.
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
                // The directory was evicted between its creation and the rename.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && from.is_at(file, name)? => {}
                Err(error) => return Err(error),
            }
        };
        let entered = self.enter([&dir, &shelf, &blobs], file, key, entry);
        if entered.is_err() {
            // The caller releases the reserved space, so the blob must not stay.
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

    /// Writes the entry of a blob that was just moved in. `dirs` are its directory and those above it.
    fn enter(
        &self,
        dirs: [&Dir; 3],
        file: &File,
        key: &str,
        entry: &mut IndexEntry,
    ) -> io::Result<()> {
        let [dir, ..] = dirs;
        // The same content under another name becomes a link to the same file: one copy on disk, one lock for both.
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

    /// Moves a corrupt blob out of `blobs`, and removes the index entry. In another user's share nothing is done.
    pub(crate) fn quarantine(&self, key: &str, entry: &IndexEntry) -> io::Result<()> {
        if self.own {
            let dir = self.blob_dir(&entry.sha256)?;
            let corrupt = dir.stat(&entry.name)?.st_ino;
            dir.rename(
                &entry.name,
                &self.record_dir("partial")?,
                format!("{}.bad", entry.sha256),
            )?;
            // Other names of the same file are corrupt too. rename(2) between two links of one file does nothing, so
            // the other name would stay and count twice.
            for other in dir.entries()? {
                let (other, _) = other?;
                if (dir.stat(&other)).is_ok_and(|found| found.st_ino == corrupt) {
                    existing(dir.remove_file(&other))?;
                }
            }
            self.remove_entry(key)?;
        }
        Ok(())
    }

    pub(crate) fn remove_entry(&self, key: &str) -> io::Result<()> {
        self.prefix_dir("index", key)?.remove_file(key)
    }
}

#[cfg(test)]
mod tests;
