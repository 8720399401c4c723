//! Copying a blob to where it is wanted: FICLONE, then copy_file_range, then read and write. Never a hard link: the
//! next thing a job does is `chmod 700` its copy, which would change everybody's.

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

/// So often another name is tried for a temporary file.
const ATTEMPTS: u32 = 16;
/// What is copied between two looks at the clock (bytes).
const STEP: u64 = 64 << 20;

/// A file on its way to its place: made beside it, renamed when complete. Dropped before that, it leaves nothing.
///
/// There is no fsync: a sandbox does not outlive a power cut, and an fsync there stalls every neighbour.
#[derive(Debug)]
pub(crate) struct PendingFile {
    dir: Dir,
    temp: OsString,
    name: OsString,
    /// The file to write.
    pub file: File,
    placed: bool,
}

impl PendingFile {
    /// Makes the temporary file for `target`, after removing what killed processes left of earlier ones.
    ///
    /// # Errors
    /// The target is a directory, a symlink or another thing that is not replaced, or its directory cannot be written
    /// (exit 73).
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
            refused("its directory cannot be opened", "make it first").because(error)
        })?;
        if let Ok(found) = dir.stat(&name) {
            match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFREG => {}
                SFlag::S_IFDIR => {
                    return Err(refused(
                        "a directory is there",
                        "name a file in it, or write a slash at its end to copy into it",
                    ));
                }
                SFlag::S_IFLNK => {
                    return Err(refused(
                        "a symlink is there, and is not replaced",
                        "remove it, or name its target",
                    ));
                }
                _ => {
                    return Err(refused(
                        "something is there that is not a regular file",
                        "remove it",
                    ));
                }
            }
        }
        let mut prefix = temporary_prefix(&name);
        prefix.push(".s3cache-");
        remove_leftovers(&dir, &prefix);
        let (temp, file) =
            make_locked(&dir, &prefix, mode).map_err(|error| cannot_write(target, error))?;
        fchmod(&file, Mode::from_bits_truncate(mode))
            .map_err(|error| cannot_write(target, error.into()))?;
        Ok(Self {
            dir,
            temp,
            name,
            file,
            placed: false,
        })
    }

    /// Puts the file into its place, over what is there.
    ///
    /// # Errors
    /// As renameat(2) (exit 73).
    pub(crate) fn place(mut self) -> Result<(), Failure> {
        let target = self.dir.path().join(&self.name);
        self.dir
            .rename(&self.temp, &self.dir, &self.name)
            .map_err(|error| cannot_write(&target, error))?;
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

/// Makes a temporary file and locks it until the rename: one of this kind without a lock is left from a killed process.
/// Where files cannot be locked, it is made all the same.
pub(crate) fn make_locked(dir: &Dir, prefix: &OsStr, mode: u32) -> io::Result<(OsString, File)> {
    for attempt in 0..ATTEMPTS {
        let mut temp = prefix.to_owned();
        temp.push(format!("{}-{attempt}", std::process::id()));
        let file = match dir.create_new(&temp, mode) {
            // Of a living process with our number, in a container that shares the directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        // Before it was locked it looked like a dead one's, and somebody may have removed it.
        if try_lock_exclusive(&file).unwrap_or(true) && dir.is_at(&file, &temp)? {
            return Ok((temp, file));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether a name is one that [`make_locked`] gives, now or in earlier releases.
pub(crate) fn is_temporary(name: &str) -> bool {
    let marked = name
        .strip_prefix('.')
        .and_then(|name| name.rsplit_once(".s3cache-"));
    marked.is_some_and(|(_, numbers)| {
        let mut bytes = numbers.bytes();
        bytes.all(|byte| byte.is_ascii_digit() || byte == b'-')
    })
}

/// Removes temporary files whose names begin so and that no process has locked.
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

/// The file that `--copy-to` means for an artifact called `name`: the path as it is or, when that ends in a slash, `name`
/// in this directory.
///
/// # Errors
/// There is no such directory (exit 73).
pub(crate) fn target(path: &Path, name: &str) -> Result<PathBuf, Failure> {
    if !path.as_os_str().as_bytes().ends_with(b"/") {
        return Ok(path.to_owned());
    }
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(path.join(name)),
        found => {
            let failure = Failure::new(
                Exit::CANNOT_CREATE,
                format!("cannot copy into {shown}: there is no such directory"),
            )
            .remedy("make it first with `mkdir -p`, or leave out the slash to name a file");
            Err(match found {
                Ok(_) => failure,
                Err(error) => failure.because(error),
            })
        }
    }
}

/// Whether a copy could be placed at `target`, found out by making and removing its temporary file.
///
/// # Errors
/// As [`PendingFile::new`].
pub(crate) fn check(target: &Path) -> Result<(), Failure> {
    PendingFile::new(target, 0o600).map(drop)
}

/// The failure of writing an output (exit 73).
#[must_use]
pub(crate) fn cannot_write(target: &Path, error: io::Error) -> Failure {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => "free some space there",
        Some(Errno::EROFS) => "the filesystem is read-only; name another place",
        _ => "check that the directory is there and may be written",
    };
    Failure::new(
        Exit::CANNOT_CREATE,
        format!("cannot write {}", target.display()),
    )
    .remedy(remedy)
    .because(error)
}

/// Copies all of an open blob to `target`, by a temporary file and a rename, sharing the blocks where the filesystem can.
///
/// # Errors
/// As [`PendingFile::new`], when the copy does not fit (exit 73), or the deadline is over (exit 75).
pub(crate) fn to_path(
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
            range(blob, &placing.file, at, STEP.min(length - at))
                .map_err(|error| cannot_write(target, error))?;
        }
    }
    placing.place()
}

/// Copies a range to the same place of another file.
///
/// # Errors
/// As pread(2) and pwrite(2); `UnexpectedEof` when `from` is shorter.
pub(crate) fn range(from: &File, to: &File, start: u64, length: u64) -> io::Result<()> {
    let end = start + length;
    let mut at = start;
    while at < end {
        let (mut source, mut target) = (
            i64::try_from(at).unwrap_or(i64::MAX),
            i64::try_from(at).unwrap_or(i64::MAX),
        );
        // The kernel copies at most 2 GiB at once; a smaller step keeps a signal from waiting long.
        let step = usize::try_from((end - at).min(STEP)).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(Errno::EINTR) => {}
            Err(
                Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM,
            ) => {
                return by_hand(from, to, at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
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

    fn to_path(blob: &File, length: u64, target: &Path, mode: u32) -> Result<(), Failure> {
        let hour = Duration::from_secs(3600);
        super::to_path(blob, length, target, mode, &Deadline::new("a", hour))
    }

    fn blob(temp: &Path, text: &str) -> File {
        std::fs::write(temp.join("blob"), text).unwrap();
        File::open(temp.join("blob")).unwrap()
    }

    #[test]
    fn a_copy_replaces_a_file_and_has_its_mode() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("out");
        std::fs::write(&target, "something longer that was there").unwrap();
        to_path(&blob(temp.path(), "bytes"), 5, &target, 0o640).unwrap();
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
    fn directories_and_symlinks_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        std::fs::create_dir(temp.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("blob", temp.path().join("link")).unwrap();
        for name in ["dir", "link"] {
            let failure = to_path(&file, 5, &temp.path().join(name), 0o644).unwrap_err();
            assert_eq!(failure.exit(), Exit::CANNOT_CREATE, "{name}");
        }
        assert!(temp.path().join("link").is_symlink());
    }

    #[test]
    fn leftovers_of_the_dead_are_removed_and_those_of_the_living_kept() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        std::fs::write(temp.path().join(".out.s3cache-1"), "dead").unwrap();
        let living = File::create(temp.path().join(".out.s3cache-2")).unwrap();
        living.lock().unwrap();
        to_path(&file, 5, &temp.path().join("out"), 0o644).unwrap();
        assert!(!temp.path().join(".out.s3cache-1").exists());
        assert!(temp.path().join(".out.s3cache-2").exists());
    }

    #[test]
    fn a_blob_shorter_than_said_places_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        let short = File::create(temp.path().join("to")).unwrap();
        assert!(range(&file, &short, 0, 6).is_err());
    }

    #[test]
    fn copy_ends_at_the_deadline_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = blob(temp.path(), "bytes");
        let over = Deadline::new("s3://b/a", Duration::ZERO);
        let failure = super::to_path(&file, 5, &temp.path().join("out"), 0o644, &over);
        // A file system that shares blocks has copied it at once.
        if let Err(failure) = failure {
            assert_eq!(failure.exit(), Exit::TRY_AGAIN);
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
        }
    }
}
