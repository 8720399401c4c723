//! The scratch directory that is filled beside its target. It is removed with its process; after a kill, by the next
//! run with the same target, or by `gc`, which finds it by a record in the cache.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use hostkit::clock;
use hostkit::dir::{Dir, try_lock_exclusive};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use tracing::{info, warn};

use super::ATTEMPTS;
use crate::cache::CacheShare;

/// The directory of the records in a share.
const RECORDS: [&str; 2] = ["unpacking", "v1"];
/// The size limit of a record (bytes).
const RECORD_LIMIT: u64 = 4096;
/// Part of the names of all scratch directories.
const INFIX: &str = ".s3cache-";
/// How much of the target's name is used (bytes), so that the whole name fits.
const BASE: usize = 200;

/// A directory being filled, removed when dropped. After the exchange it is the one that was replaced.
pub(super) struct ScratchDirectory<'a> {
    parent: &'a Dir,
    pub name: OsString,
    /// Locked while its process lives.
    pub root: Dir,
    record: Option<ScratchRecord>,
}

impl<'a> ScratchDirectory<'a> {
    /// Creates a directory beside the target, after removing those of killed runs.
    pub(super) fn make(
        parent: &'a Dir,
        base: &OsStr,
        share: Option<&CacheShare>,
    ) -> io::Result<Self> {
        let mut prefix = OsString::from(".");
        prefix.push(OsStr::from_bytes(&base.as_bytes()[..base.len().min(BASE)]));
        prefix.push(INFIX);
        for (name, is_dir) in parent.entries()?.flatten() {
            if is_dir
                && name.as_bytes().starts_with(prefix.as_bytes())
                && is_ours(&name)
                && (parent.stat(&name)).is_ok_and(|found| found.st_uid == geteuid().as_raw())
                && let Ok(Some(_lock)) = lock(parent, &name)
            {
                let _ = parent.remove_all(&name);
            }
        }
        for _ in 0..ATTEMPTS {
            // Two containers that share the directory may have processes of the same pid.
            let (pid, now) = (std::process::id(), clock::since_boot().as_nanos());
            let mut name = prefix.clone();
            name.push(format!("{pid}-{now:x}"));
            // Recorded before there is anything to find.
            let record = share.and_then(|share| ScratchRecord::write(share, parent, &name));
            let made = mkdirat(parent, name.as_os_str(), Mode::S_IRWXU)
                .map_err(io::Error::from)
                .map(|()| lock(parent, &name));
            let failure = match made {
                Ok(Ok(Some(root))) => {
                    return Ok(Self {
                        parent,
                        name,
                        root,
                        record,
                    });
                }
                // Before it was locked, another run may have removed it as abandoned.
                Ok(Ok(None)) => None,
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
                Ok(Err(error)) => {
                    let _ = parent.remove_dir(&name);
                    Some(error)
                }
                Err(error) => Some(error),
            };
            record.into_iter().for_each(ScratchRecord::remove);
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for ScratchDirectory<'_> {
    fn drop(&mut self) {
        match self.parent.remove_all(&self.name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = self.parent.path().join(&self.name);
                warn!(path = %path.display(), %error, "cannot remove a scratch directory");
            }
            _ => self
                .record
                .take()
                .into_iter()
                .for_each(ScratchRecord::remove),
        }
    }
}

/// Whether a name is that of a scratch directory: it ends in a pid and a number.
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let end = name
        .rsplit_once(INFIX)
        .and_then(|(_, end)| end.split_once('-'));
    name.starts_with('.')
        && end.is_some_and(|(pid, number)| {
            !(pid.is_empty() || number.is_empty())
                && pid.bytes().all(|byte| byte.is_ascii_digit())
                && hostkit::hex::is_hex(number)
        })
}

/// Opens and locks a directory; `None` when another process holds the lock, or another directory has the name now.
fn lock(parent: &Dir, name: &OsStr) -> io::Result<Option<Dir>> {
    let dir = parent.open_child_for_removal(name)?;
    // The lock belongs to the open directory, not to this copy of its descriptor.
    let file = File::from(dir.as_fd().try_clone_to_owned()?);
    Ok((try_lock_exclusive(&file)? && parent.is_at(&file, name)?).then_some(dir))
}

/// Records in the cache where a directory is being filled. Locked while its process lives.
struct ScratchRecord {
    records: Dir,
    name: String,
    _lock: File,
}

impl ScratchRecord {
    /// Without a record unpacking continues: it only helps `gc`.
    fn write(share: &CacheShare, parent: &Dir, name: &OsStr) -> Option<Self> {
        let write = || -> io::Result<Option<Self>> {
            let path = std::fs::canonicalize(parent.path())?.join(name);
            let [folder, format] = RECORDS;
            // Paths of sandboxes are private to their owners.
            let records = share.dir().create_child(folder, 0o700)?;
            let records = records.create_child(format, 0o700)?;
            let name = name.to_string_lossy();
            let name = name.rsplit(INFIX).next().unwrap_or_default().to_owned();
            let Some(mut lock) = records.try_lock(&name, 0o600)? else {
                return Ok(None);
            };
            lock.write_all(path.as_os_str().as_bytes())?;
            Ok(Some(Self {
                records,
                name,
                _lock: lock,
            }))
        };
        write().unwrap_or_else(|error| {
            warn!(%error, "cannot record the scratch directory in the cache");
            None
        })
    }

    fn remove(self) {
        let _ = self.records.remove_file(&self.name);
    }
}

/// Removes the directories that killed runs of a share's owner were filling, wherever they are. Returns how many.
///
/// # Errors
/// The records cannot be read. What cannot be removed is logged, and retried the next time.
pub(crate) fn remove_abandoned(share: &CacheShare) -> io::Result<u64> {
    let mut removed = 0;
    let found = RECORDS
        .iter()
        .try_fold(share.dir().child(".")?, |dir, name| dir.child(name));
    let records = match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    for entry in records.entries()? {
        let name = entry?.0.to_string_lossy().into_owned();
        // Locked while its directory is being filled.
        let Ok(Some(_lock)) = share.try_lock(&records, &name) else {
            continue;
        };
        let path = records.read(&name, RECORD_LIMIT).unwrap_or_default();
        let path = PathBuf::from(OsString::from_vec(path));
        match remove_recorded(&path, share) {
            Ok(found) => {
                removed += u64::from(found);
                let _ = records.remove_file(&name);
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot remove the scratch directory of a killed run");
            }
        }
    }
    Ok(removed)
}

/// Removes the scratch directory that a record of this share names. The owner can write any record, so nothing is
/// removed that the owner could not remove.
fn remove_recorded(path: &Path, share: &CacheShare) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    if !path.is_absolute() || !is_ours(name) {
        return Ok(false);
    }
    let _owner = FilesystemUid::become_owner_of(share)?;
    let removed = || -> io::Result<bool> {
        let parent = Dir::open(parent)?;
        if parent.stat(name)?.st_uid != share.uid {
            return Ok(false);
        }
        let Some(_lock) = lock(&parent, name)? else {
            return Ok(false);
        };
        parent.remove_all(name)?;
        info!(path = %path.display(), "scratch directory of a killed run removed");
        Ok(true)
    };
    match removed() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other,
    }
}

/// Gives this thread a user's file permissions instead of root's, until dropped.
struct FilesystemUid;

impl FilesystemUid {
    fn become_owner_of(share: &CacheShare) -> io::Result<Option<Self>> {
        if !geteuid().is_root() || share.uid == 0 {
            return Ok(None);
        }
        let (uid, gid) = (share.uid, share.dir().metadata()?.st_gid);
        let owner = Self;
        setfsgid(Gid::from_raw(gid));
        setfsuid(Uid::from_raw(uid));
        // They report no failure; a second call returns the uid in force.
        if setfsuid(Uid::from_raw(uid)).as_raw() != uid {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Some(owner))
    }
}

impl Drop for FilesystemUid {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
    }
}
