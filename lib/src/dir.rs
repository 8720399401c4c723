//! Directories by handle: every name below one is opened without following a symlink, so that nobody who can write
//! there leads us elsewhere. Also atomic files and `flock` locks, which live in directories.
//!
//! Owns single operations; what a tool keeps in which directory is the tool's.

mod name;
mod remove;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions, TryLockError};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat};

pub use name::{NAME_MAX, temporary_prefix};

/// What is written at once of a file that is written piece by piece (bytes).
const BUFFER: usize = 64 << 10;

/// What a published file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: the file and its directory are fsynced.
    Crash,
    /// Only the end of this process. A sandbox does not outlive a power cut, and an fsync there stalls its neighbours.
    Process,
}

/// An open directory and the path it was opened by, which serves messages only.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens a directory that the caller vouches for; symlinks in `path` are followed.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = nix::fcntl::open(
            path,
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens the directory `name` in this one.
    ///
    /// # Errors
    /// As openat(2); a symlink is `ELOOP` or `ENOTDIR`.
    pub fn child(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty())?;
        Ok(Self {
            fd,
            path: self.path.join(name),
        })
    }

    /// Opens the directory `name` in this one, made with exactly `mode` when it is missing.
    ///
    /// # Errors
    /// As mkdirat(2) and openat(2).
    pub fn create_child(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = name.as_ref();
        match self.child(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Another process has just made it, or was killed when it had.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if self.stat(name)?.st_mode & 0o777 != 0 {
                    return Err(error);
                }
                self.open_to_owner(name, mode)?;
                return self.child(name);
            }
            other => return other,
        }
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => self.open_to_owner(name, mode)?,
            Err(Errno::EEXIST) => return self.create_child(name, mode),
            Err(error) => return Err(error.into()),
        }
        let child = self.child(name)?;
        fchmod(&child.fd, Mode::from_bits_truncate(mode))?;
        Ok(child)
    }

    /// Makes the directory `name` of ours openable when the umask left no bit of its mode. A path handle needs no
    /// permission, but cannot be changed itself; its link in /proc can.
    fn open_to_owner(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        if self.stat(name)?.st_mode & 0o500 == 0o500 {
            return Ok(());
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = openat(&self.fd, name, flags, Mode::empty())?;
        if fstat(&handle)?.st_uid != nix::unistd::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        std::fs::set_permissions(link, Permissions::from_mode(mode))
    }

    /// Opens the directory `path`, made when it is missing with exactly `mode`, and with 0755 what is missing above it.
    /// Symlinks in what is there are followed.
    ///
    /// # Errors
    /// As open(2) and mkdirat(2).
    pub fn create_all(path: &Path, mode: u32) -> io::Result<Self> {
        let missing = match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            other => return other,
        };
        // A symlink that leads nowhere has a name and a parent, and is not replaced.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(missing);
        };
        let parent = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        Self::create_all(parent, 0o755)?.create_child(name, mode)
    }

    /// Gives this directory exactly `mode`.
    ///
    /// # Errors
    /// As fchmod(2).
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.fd, Mode::from_bits_truncate(mode))?)
    }

    /// The path this directory was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner, mode and the rest of this directory itself.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn metadata(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.fd)?)
    }

    /// What `name` is, itself and not what a symlink points to.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<FileStat> {
        Ok(fstatat(
            &self.fd,
            name.as_ref(),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?)
    }

    /// Opens the regular file `name` for reading.
    ///
    /// # Errors
    /// As openat(2), and `InvalidInput` when it is not a regular file (a FIFO is not waited for).
    pub fn open_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_regular(name.as_ref(), OFlag::O_RDONLY, Mode::empty())
    }

    /// Opens the regular file `name` for reading and writing, made with exactly `mode` when it is missing.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn open_or_create(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let name = name.as_ref();
        // Not O_CREAT alone: that leaves the mode to the umask, and only who made the file may set it.
        loop {
            match self.open_regular(name, OFlag::O_RDWR, Mode::empty()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            match self.create_new(name, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
    }

    /// Makes the file `name` with exactly `mode`.
    ///
    /// # Errors
    /// As openat(2); `AlreadyExists` whatever stands there.
    pub fn create_new(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = self.open_regular(name.as_ref(), flags, Mode::from_bits_truncate(mode))?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        Ok(file)
    }

    fn open_regular(&self, name: &OsStr, flags: OFlag, mode: Mode) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.fd, name, flags, mode)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(file)
    }

    /// Reads the file `name` of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Dir::open_file`], and `InvalidData` when it is longer.
    pub fn read(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?
            .take(limit + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("longer than {limit} bytes"),
            ));
        }
        Ok(bytes)
    }

    /// Replaces the file `name` by one with these bytes: at every moment either the old or the new one is there.
    ///
    /// # Errors
    /// As open(2), write(2), fsync(2) and rename(2); then nothing has changed.
    pub fn write_atomic(
        &self,
        name: &str,
        bytes: &[u8],
        mode: u32,
        durability: Durability,
    ) -> io::Result<()> {
        self.write_atomic_with(name, mode, durability, |file| file.write_all(bytes))
    }

    /// Replaces the file `name` by what `write` writes, without ever having all of it in memory.
    ///
    /// # Errors
    /// As [`Self::write_atomic`], `InvalidInput` when a device has that name, and what `write` returns.
    pub fn write_atomic_with(
        &self,
        name: &str,
        mode: u32,
        durability: Durability,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check_is_no_device(name)?;
        // A pid alone may be two processes, in two containers that share the directory.
        let (pid, now) = (std::process::id(), crate::clock::since_boot().as_nanos());
        let mut temp = temporary_prefix(OsStr::new(name));
        temp.push(format!(".{pid}-{now:x}.tmp"));
        let result = self.create_new(&temp, mode).and_then(|file| {
            let mut out = BufWriter::with_capacity(BUFFER, &file);
            write(&mut out)?;
            out.flush()?;
            if durability == Durability::Crash {
                file.sync_all()?;
            }
            self.rename(&temp, self, name)
        });
        if result.is_err() {
            let _ = self.remove_file(&temp);
        } else if durability == Durability::Crash {
            self.sync()?;
        }
        result
    }

    /// A setting may name /dev/null: root could rename a file over it, and every process of the host would lose it. What
    /// else is there, a FIFO too, is replaced: so a cache repairs itself.
    fn check_is_no_device(&self, name: &str) -> io::Result<()> {
        let kind = match self.stat(name) {
            Ok(stat) => SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match kind {
            SFlag::S_IFCHR | SFlag::S_IFBLK => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a device is not replaced by a file",
            )),
            _ => Ok(()),
        }
    }

    /// Removes what processes that were killed while they replaced `name` have left. To be called by whoever is alone in
    /// replacing it.
    ///
    /// # Errors
    /// As getdents(2) and unlinkat(2).
    pub fn sweep(&self, name: &str) -> io::Result<()> {
        let start = format!(".{name}.");
        for entry in self.entries()? {
            let (entry, is_dir) = entry?;
            let left = entry.to_str().is_some_and(|entry| {
                let unique = entry.strip_prefix(&start);
                let unique = unique.and_then(|rest| rest.strip_suffix(".tmp"));
                unique.is_some_and(|unique| {
                    unique
                        .bytes()
                        .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
                })
            });
            if left && !is_dir {
                self.remove_file(&entry)?;
            }
        }
        Ok(())
    }

    /// Makes renames and removals in this directory survive a power cut.
    ///
    /// # Errors
    /// As fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        Ok(nix::unistd::fsync(&self.fd)?)
    }

    /// Renames `name` to `to_name` in `to`, replacing what is there.
    ///
    /// # Errors
    /// As renameat(2).
    pub fn rename(
        &self,
        name: impl AsRef<OsStr>,
        to: &Self,
        to_name: impl AsRef<OsStr>,
    ) -> io::Result<()> {
        Ok(renameat(&self.fd, name.as_ref(), &to.fd, to_name.as_ref())?)
    }

    /// Gives the file `name` the second name `second` in this directory.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link(&self, name: impl AsRef<OsStr>, second: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(linkat(
            &self.fd,
            name.as_ref(),
            &self.fd,
            second.as_ref(),
            LinkatFlags::empty(),
        )?)
    }

    /// Gives the file or symlink `name` the second name `second` in `to`. A symlink is not followed.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link_to(
        &self,
        name: impl AsRef<OsStr>,
        to: &Self,
        second: impl AsRef<OsStr>,
    ) -> io::Result<()> {
        let (name, second) = (name.as_ref(), second.as_ref());
        Ok(linkat(
            &self.fd,
            name,
            &to.fd,
            second,
            LinkatFlags::empty(),
        )?)
    }

    /// Makes the symlink `name` to `target`.
    ///
    /// # Errors
    /// As symlinkat(2).
    pub fn symlink(&self, target: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(symlinkat(target.as_ref(), &self.fd, name.as_ref())?)
    }

    /// The target of the symlink `name`, or `None` when `name` is something else.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn read_link(&self, name: impl AsRef<OsStr>) -> io::Result<Option<OsString>> {
        match readlinkat(&self.fd, name.as_ref()) {
            Err(Errno::EINVAL) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Removes the file `name`.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(
            &self.fd,
            name.as_ref(),
            UnlinkatFlags::NoRemoveDir,
        )?)
    }

    /// Removes the empty directory `name`.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_ref(), UnlinkatFlags::RemoveDir)?)
    }

    /// The names in this directory, each with whether it is a directory. `.` and `..` are left out.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn entries(
        &self,
    ) -> io::Result<impl Iterator<Item = io::Result<(OsString, bool)>> + use<>> {
        use std::os::unix::ffi::OsStrExt as _;
        // A handle of its own: the position of a directory stream belongs to the open file.
        let fd = openat(
            &self.fd,
            ".",
            OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let handle = self.fd.try_clone()?;
        Ok(nix::dir::Dir::from_fd(fd)?
            .into_iter()
            .filter_map(move |entry| {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => return Some(Err(error.into())),
                };
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." {
                    return None;
                }
                let is_dir = match entry.file_type() {
                    Some(kind) => kind == Type::Directory,
                    // Some filesystems do not say.
                    None => {
                        fstatat(&handle, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| {
                            SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
                                == SFlag::S_IFDIR
                        })
                    }
                };
                Some(Ok((name.to_owned(), is_dir)))
            }))
    }

    /// Takes the exclusive `flock` of the file `name` (made with `mode` when missing) without waiting. It is held as
    /// long as the file returned is open; `None` means somebody else holds it.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_lock(&self, name: &str, mode: u32) -> io::Result<Option<File>> {
        loop {
            let file = self.open_or_create(name, mode)?;
            if !try_lock_exclusive(&file)? {
                return Ok(None);
            }
            // Between open and flock the file may have been removed: a lock on it would exclude nobody.
            if self.is_at(&file, name)? {
                return Ok(Some(file));
            }
        }
    }

    /// Whether the open `file` is what stands at `name` now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn is_at(&self, file: &File, name: impl AsRef<OsStr>) -> io::Result<bool> {
        let held = file.metadata()?;
        Ok(self
            .stat(name)
            .is_ok_and(|found| found.st_ino == held.ino() && found.st_dev == held.dev()))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes the exclusive `flock` of an open file without waiting; `false` when somebody else holds a lock on it.
///
/// # Errors
/// As flock(2).
pub fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    granted(file.try_lock())
}

/// Takes a shared `flock` of an open file without waiting; `false` when somebody else holds it exclusively.
///
/// # Errors
/// As flock(2).
pub fn try_lock_shared(file: &File) -> io::Result<bool> {
    granted(file.try_lock_shared())
}

fn granted(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
