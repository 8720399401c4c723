//! Copies a blob to its target: FICLONE, then copy_file_range, then read and write. Never a hard link: jobs `chmod 700`
//! their copy, which would change the blob for every user.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use hostkit::dir::{Dir, temporary_prefix, try_lock_exclusive};
use hostkit::{Exit, Failure};
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::stat::{Mode, SFlag, fchmod};

use crate::deadline::Deadline;

/// How many names are tried for a temporary file.
const ATTEMPTS: u32 = 16;
/// Bytes between two checks of the deadline.
const STEP: u64 = 64 << 20;

/// A file to be written: created beside its target, renamed when complete, removed when dropped before.
///
/// Without fsync: a sandbox does not outlive a power loss, and an fsync there stalls every neighbour.
#[derive(Debug)]
pub(crate) struct PendingFile {
    dir: Dir,
    temp: OsString,
    name: OsString,
    pub file: File,
    placed: bool,
}

impl PendingFile {
    /// Creates the temporary file for `target`, after removing those of killed processes.
    ///
    /// # Errors
    /// The target is a directory, a symlink or another special file, or its directory cannot be written (exit 73).
    pub(crate) fn new(target: &Path, mode: u32) -> Result<Self, Failure> {
        let shown = target.display();
        let refused = |why: &str, remedy: &str| {
            Failure::new(Exit::CANNOT_CREATE, format!("{shown}: {why}")).remedy(remedy)
        };
        let Some(name) = target.file_name().map(OsStr::to_owned) else {
            return Err(refused("not a file name", "name the file to write"));
        };
        let parent = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let dir = Dir::open(parent).map_err(|error| {
            refused("cannot open its directory", "create it first").because(error)
        })?;
        if let Ok(found) = dir.stat(&name) {
            match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFREG => {}
                SFlag::S_IFDIR => {
                    return Err(refused(
                        "it is a directory",
                        "name a file in it, or write a slash at its end to copy into it",
                    ));
                }
                SFlag::S_IFLNK => {
                    return Err(refused(
                        "it is a symlink, which is not replaced",
                        "remove it, or name its target",
                    ));
                }
                _ => {
                    return Err(refused("it is not a regular file", "remove it"));
                }
            }
        }
        let mut prefix = temporary_prefix(&name);
        prefix.push(".s3cache-");
        remove_leftovers(&dir, &prefix);
        let (temp, file) =
            make_locked(&dir, &prefix, mode).map_err(|error| write_failure(target, error))?;
        fchmod(&file, Mode::from_bits_truncate(mode))
            .map_err(|error| write_failure(target, error.into()))?;
        Ok(Self {
            dir,
            temp,
            name,
            file,
            placed: false,
        })
    }

    /// Renames the file to its target, replacing an existing file.
    ///
    /// # Errors
    /// As renameat(2) (exit 73).
    pub(crate) fn place(mut self) -> Result<(), Failure> {
        let target = self.dir.path().join(&self.name);
        self.dir
            .rename(&self.temp, &self.dir, &self.name)
            .map_err(|error| write_failure(&target, error))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.placed {
            let _ = self.dir.remove_file(&self.temp);
        }
    }
}

/// Creates a temporary file, locked until the rename: an unlocked one was left by a killed process. Where files cannot
/// be locked, it is created without a lock.
pub(crate) fn make_locked(dir: &Dir, prefix: &OsStr, mode: u32) -> io::Result<(OsString, File)> {
    for attempt in 0..ATTEMPTS {
        let mut temp = prefix.to_owned();
        temp.push(format!("{}-{attempt}", std::process::id()));
        let file = match dir.create_new(&temp, mode) {
            // It belongs to a live process with the same pid, in a container that shares the directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // Before it was locked, another process may have removed it as abandoned.
        if try_lock_exclusive(&file).unwrap_or(true) && dir.is_at(&file, &temp)? {
            return Ok((temp, file));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether [`make_locked`] of this or an earlier release creates such a name.
pub(crate) fn is_temporary(name: &str) -> bool {
    let marked = name
        .strip_prefix('.')
        .and_then(|name| name.rsplit_once(".s3cache-"));
    marked.is_some_and(|(_, numbers)| {
        let mut bytes = numbers.bytes();
        bytes.all(|byte| byte.is_ascii_digit() || byte == b'-')
    })
}

/// Removes unlocked temporary files whose names start with `prefix`.
pub(crate) fn remove_leftovers(dir: &Dir, prefix: &OsStr) {
    let Ok(entries) = dir.entries() else { return };
    for (name, _) in entries.flatten() {
        if name.as_bytes().starts_with(prefix.as_bytes())
            && is_temporary(&name.to_string_lossy())
            && let Ok(file) = dir.open_file(&name)
            && try_lock_exclusive(&file).unwrap_or(false)
        {
            let _ = dir.remove_file(&name);
        }
    }
}

/// The target of `--copy-to` for an artifact called `name`: the path itself or, if it ends in a slash, `name` in that
/// directory.
///
/// # Errors
/// The directory does not exist (exit 73).
pub(crate) fn resolve_target(path: &Path, name: &str) -> Result<PathBuf, Failure> {
    if !path.as_os_str().as_bytes().ends_with(b"/") {
        return Ok(path.to_owned());
    }
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(path.join(name)),
        found => {
            let failure = Failure::new(
                Exit::CANNOT_CREATE,
                format!("cannot copy into {shown}: no such directory"),
            )
            .remedy("create it first with `mkdir -p`, or leave out the slash to name a file");
            Err(match found {
                Ok(_) => failure,
                Err(error) => failure.because(error),
            })
        }
    }
}

/// Checks that a file could be written to `target`, by creating and removing its temporary file.
pub(crate) fn check_target(target: &Path) -> Result<(), Failure> {
    PendingFile::new(target, 0o600).map(drop)
}

#[must_use]
pub(crate) fn write_failure(target: &Path, error: io::Error) -> Failure {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => "free some space there",
        Some(Errno::EROFS) => "the filesystem is read-only; name another place",
        _ => "check that the directory exists and is writable",
    };
    Failure::new(
        Exit::CANNOT_CREATE,
        format!("cannot write {}", target.display()),
    )
    .remedy(remedy)
    .because(error)
}

/// Copies an open blob to `target`, through a temporary file and a rename; blocks are shared where the filesystem can.
///
/// # Errors
/// As [`PendingFile::new`]; the disk is full (exit 73), or the deadline is over (exit 75).
pub(crate) fn copy_file(
    blob: &File,
    length: u64,
    target: &Path,
    mode: u32,
    deadline: &Deadline,
) -> Result<(), Failure> {
    let placing = PendingFile::new(target, mode)?;
    if rustix::fs::ioctl_ficlone(&placing.file, blob).is_err() {
        for at in (0..length).step_by(STEP as usize) {
            deadline.check().map_err(|_| deadline.failure())?;
            copy_range(blob, &placing.file, at, STEP.min(length - at))
                .map_err(|error| write_failure(target, error))?;
        }
    }
    placing.place()
}

/// Copies a range to the same offset of another file.
///
/// # Errors
/// As pread(2) and pwrite(2); `UnexpectedEof` when `from` is shorter.
pub(crate) fn copy_range(from: &File, to: &File, start: u64, length: u64) -> io::Result<()> {
    let end = start + length;
    let mut at = start;
    while at < end {
        let (mut source, mut target) = (
            i64::try_from(at).unwrap_or(i64::MAX),
            i64::try_from(at).unwrap_or(i64::MAX),
        );
        // The kernel copies at most 2 GiB at once; smaller steps react to signals sooner.
        let step = usize::try_from((end - at).min(STEP)).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::EINTR) => {}
            Err(
                Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM,
            ) => {
                return copy_by_reading(from, to, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_reading(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut piece = vec![0; 256 << 10];
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        match from.read_at(&mut piece[..want], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                to.write_all_at(&piece[..got], at)?;
                at += got as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    fn copy_file(blob: &File, length: u64, target: &Path, mode: u32) -> Result<(), Failure> {
        let hour = Duration::from_secs(3600);
        super::copy_file(blob, length, target, mode, &Deadline::new("a", hour))
    }

    fn blob(temp: &Path, text: &str) -> File {
        std::fs::write(temp.join("blob"), text).unwrap();
        File::open(temp.join("blob")).unwrap()
    }

    #[test]
    fn copy_replaces_file_and_sets_mode() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("out");
        std::fs::write(&target, "something longer that was there").unwrap();
        copy_file(&blob(temp.path(), "bytes"), 5, &target, 0o640).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "bytes");
        assert_eq!(
            target.metadata().unwrap().permissions().mode() & 0o7777,
            0o640
        );
        assert_eq!(
            std::fs::read_dir(temp.path()).unwrap().count(),
            2,
            "nothing else is left"
        );
    }

    #[test]
    fn directory_or_symlink_as_target_is_rejected() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        std::fs::create_dir(temp.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("blob", temp.path().join("link")).unwrap();
        for name in ["dir", "link"] {
            let failure = copy_file(&file, 5, &temp.path().join(name), 0o644).unwrap_err();
            assert_eq!(failure.exit(), Exit::CANNOT_CREATE, "{name}");
        }
        assert!(temp.path().join("link").is_symlink());
    }

    #[test]
    fn temporary_files_of_dead_processes_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        std::fs::write(temp.path().join(".out.s3cache-1"), "dead").unwrap();
        let living = File::create(temp.path().join(".out.s3cache-2")).unwrap();
        living.lock().unwrap();
        copy_file(&file, 5, &temp.path().join("out"), 0o644).unwrap();
        assert!(!temp.path().join(".out.s3cache-1").exists());
        assert!(temp.path().join(".out.s3cache-2").exists());
    }

    #[test]
    fn copy_of_short_blob_fails() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        let short = File::create(temp.path().join("to")).unwrap();
        assert!(copy_range(&file, &short, 0, 6).is_err());
    }

    #[test]
    fn copy_past_deadline_fails_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        let over = Deadline::new("s3://b/a", Duration::ZERO);
        let failure = super::copy_file(&file, 5, &temp.path().join("out"), 0o644, &over);
        // A filesystem that shares blocks has copied it at once.
        if let Err(failure) = failure {
            assert_eq!(failure.exit(), Exit::TRY_AGAIN);
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        }
    }
}
