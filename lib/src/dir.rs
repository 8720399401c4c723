//! Directories by handle: every name below one is opened without following symlinks, so that no other user can redirect
//! an access. Also atomic files and `flock` locks. Owns single operations, not what a tool stores in which directory.

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

/// The buffer of a file that is written in pieces (bytes).
const WRITE_BUFFER: usize = 64 << 10;

/// The events that a published file survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: the file and its directory are fsynced.
    Crash,
    /// The end of this process. A sandbox does not outlive a power cut, and an fsync there stalls its neighbours.
    Process,
}

/// An open directory and the path by which it was opened, for messages.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens a trusted directory; symlinks in `path` are followed.
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

    /// Opens the directory `name` in this one; creates it with exactly `mode` if it is missing.
    ///
    /// # Errors
    /// As mkdirat(2) and openat(2).
    pub fn create_child(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = name.as_ref();
        match self.child(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Another process has just created it, or was killed right after.
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

    /// Makes our own directory `name` openable if the umask removed all bits of its mode. A path handle needs no
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

    /// Opens the directory `path`; creates it with exactly `mode` if it is missing, and missing parents with 0755.
    /// Symlinks in existing parts are followed.
    ///
    /// # Errors
    /// As open(2) and mkdirat(2).
    pub fn create_all(path: &Path, mode: u32) -> io::Result<Self> {
        let missing = match Self::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            other => return other,
        };
        // A dangling symlink has a name and a parent, and is not replaced.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(missing);
        };
        let parent = match parent.as_os_str().is_empty() {
            true => Path::new("."),
            false => parent,
        };
        Self::create_all(parent, 0o755)?.create_child(name, mode)
    }

    /// Sets the mode of this directory to exactly `mode`.
    ///
    /// # Errors
    /// As fchmod(2).
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.fd, Mode::from_bits_truncate(mode))?)
    }

    /// The path by which this directory was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owner, mode and other metadata of this directory itself.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn metadata(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.fd)?)
    }

    /// Metadata of `name` itself, not of a symlink's target.
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

    /// Opens the regular file `name` for reading and writing; creates it with exactly `mode` if it is missing.
    ///
    /// # Errors
    /// As [`Dir::open_file`].
    pub fn open_or_create(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let name = name.as_ref();
        // Not O_CREAT alone: that applies the umask, and only the creator may set the mode.
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

    /// Creates the file `name` with exactly `mode`.
    ///
    /// # Errors
    /// As openat(2); `AlreadyExists` if the name is taken.
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
    /// As [`Dir::open_file`], and `InvalidData` if it is longer.
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

    /// Replaces the contents of `name` atomically: at every moment either the old or the new file is there.
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

    /// Replaces the file `name` by what `write` writes, without holding all of it in memory.
    ///
    /// # Errors
    /// As [`Self::write_atomic`], `InvalidInput` if `name` is a device, and the error of `write`.
    pub fn write_atomic_with(
        &self,
        name: &str,
        mode: u32,
        durability: Durability,
        write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check_is_no_device(name)?;
        // The pid alone is ambiguous: two containers may share the directory.
        let (pid, now) = (std::process::id(), crate::clock::since_boot().as_nanos());
        let mut temp = temporary_prefix(OsStr::new(name));
        temp.push(format!(".{pid}-{now:x}.tmp"));
        let result = self.create_new(&temp, mode).and_then(|file| {
            let mut out = BufWriter::with_capacity(WRITE_BUFFER, &file);
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

    /// A setting may name /dev/null: root could rename a file over it, and every process of the host would lose it.
    /// Anything else, a FIFO too, is replaced, so that a cache repairs itself.
    fn check_is_no_device(&self, name: &str) -> io::Result<()> {
        let kind = match self.stat(name) {
            Ok(stat) => SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match kind {
            SFlag::S_IFCHR | SFlag::S_IFBLK => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "cannot replace a device by a file",
            )),
            _ => Ok(()),
        }
    }

    /// Removes the temporary files of processes that were killed while they replaced `name`. The caller must be the
    /// only one that replaces it.
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

    /// Renames `name` to `to_name` in `to`, replacing an existing file.
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

    /// Links the file `name` to the second name `second` in this directory.
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

    /// Links the file or symlink `name` to the second name `second` in `to`. A symlink is not followed.
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

    /// Creates the symlink `name` to `target`.
    ///
    /// # Errors
    /// As symlinkat(2).
    pub fn symlink(&self, target: impl AsRef<OsStr>, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(symlinkat(target.as_ref(), &self.fd, name.as_ref())?)
    }

    /// The target of the symlink `name`; `None` if `name` is not a symlink.
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

    /// The names in this directory, each with whether it is a directory. Without `.` and `..`.
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
                    // Some filesystems do not return the type.
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

    /// Takes the exclusive `flock` of the file `name` (created with `mode` if missing) without waiting. The lock lasts
    /// as long as the returned file is open; `None` if another process holds it.
    ///
    /// # Errors
    /// As open(2) and flock(2).
    pub fn try_lock(&self, name: &str, mode: u32) -> io::Result<Option<File>> {
        loop {
            let file = self.open_or_create(name, mode)?;
            if !try_lock_exclusive(&file)? {
                return Ok(None);
            }
            // Between open and flock the file may have been removed: a lock on it would exclude no other process.
            if self.is_at(&file, name)? {
                return Ok(Some(file));
            }
        }
    }

    /// Whether `name` still refers to the open `file`.
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

/// Takes the exclusive `flock` of an open file without waiting; `false` if another process holds a lock on it.
///
/// # Errors
/// As flock(2).
pub fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    granted(file.try_lock())
}

/// Takes a shared `flock` of an open file without waiting; `false` if another process holds it exclusively.
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
