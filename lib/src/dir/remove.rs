//! Removing whole trees, whatever modes their directories have.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::Dir;

/// The deepest nesting that is removed: each level takes a handle and a piece of the stack.
const MAX_DEPTH: usize = 256;

impl Dir {
    /// Opens the directory `name` in this one and grants its owner all permissions, so that its contents can be removed
    /// whatever its mode.
    ///
    /// # Errors
    /// As openat(2), and fchmod(2) if the directory is another user's.
    pub fn open_child_for_removal(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        let child = match self.child(name) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let flags =
                    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let place = openat(&self.fd, name, flags, Mode::empty())?;
                // Through the handle: chmod(2) of the name would follow a symlink that replaced the directory.
                let handle = format!("/proc/self/fd/{}", place.as_raw_fd());
                std::fs::set_permissions(handle, Permissions::from_mode(0o700))?;
                self.child(name)?
            }
            other => other?,
        };
        if child.metadata()?.st_mode & 0o700 != 0o700 {
            child.set_mode(0o700)?;
        }
        Ok(child)
    }

    /// Removes `name`, and everything below it if it is a directory, whatever the modes. Symlinks are not followed.
    ///
    /// # Errors
    /// As unlinkat(2), and `InvalidInput` if directories are nested too deep; what was removed before stays removed.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match self.remove_file(&name) {
            Err(error) if error.raw_os_error() == Some(Errno::EISDIR as i32) => {
                self.remove_tree(name.as_ref(), 0)
            }
            other => other,
        }
    }

    fn remove_tree(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "directories are nested too deep",
            ));
        }
        // Another process may be removing the same tree.
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let child = match self.open_child_for_removal(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut directories = Vec::new();
        for entry in child.entries()? {
            let (entry, is_dir) = entry?;
            if is_dir {
                directories.push(entry);
            } else {
                gone(child.remove_file(&entry))?;
            }
        }
        // After the listing is closed: one descriptor per level, not three.
        for entry in directories {
            child.remove_tree(&entry, depth + 1)?;
        }
        gone(self.remove_dir(name))
    }
}
