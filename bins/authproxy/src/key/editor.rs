//! Edits an ACL file: one process at a time, atomically.
//!
//! Owns the lock, the owner, mode and ACL of the file, and the check of the result. `line_edit` changes the lines.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hostkit::dir::{Dir, Durability, try_lock_exclusive};
use hostkit::{Exit, Failure, clock};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::line_edit::{self, LineEdit};
use crate::grant::{Grant, KeyHash};
use crate::permissions::file::{self, AclEntry};

/// An edit takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The mode of a new file.
const NEW_FILE_MODE: u32 = 0o640;
/// The extended attribute of a POSIX ACL (acl(5)).
const ACL_ATTRIBUTE: &str = "system.posix_acl_access";
/// The kernel's limit of an extended attribute (xattr(7)).
const MAX_ACL_BYTES: usize = 64 << 10;

/// An ACL file, locked until this is dropped.
pub(super) struct AclFileEditor {
    pub(super) text: String,
    pub(super) entries: Vec<AclEntry>,
    /// Symlinks resolved: the edit replaces the file, not a link to it.
    path: PathBuf,
    /// The text on disk; `None` for a new file.
    before: Option<String>,
    /// Of the directory, because the edit replaces the file.
    _lock: File,
}

impl AclFileEditor {
    /// Opens a file, or starts a new one if `create` is set.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, Failure> {
        let is_new = create && is_missing(path);
        let path = resolve(path, is_new).map_err(|error| {
            let failure = Failure::new(Exit::CONFIG, format!("cannot read {}", path.display()));
            let failure = match error.kind() {
                io::ErrorKind::NotFound if path.is_symlink() => failure.remedy(
                    "the target of this symlink is missing: mount or create it, or name another file",
                ),
                io::ErrorKind::NotFound if is_new => failure.remedy("create its directory"),
                io::ErrorKind::NotFound => failure.remedy(file::REMEDY_MISSING),
                _ => failure,
            };
            failure.because(error)
        })?;
        let lock = lock(&path)?;
        let before = match is_new && is_missing(&path) {
            true => None,
            false => Some(file::read_text(&path)?),
        };
        let mut text = before.clone().unwrap_or_default();
        if create && has_only_comments(&text) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str("keys: []\n");
        }
        if is_managed(&text) {
            let message = format!(
                "cannot edit {}: it is managed by Puppet, which would undo the change",
                path.display()
            );
            return Err(Failure::new(Exit::DENIED, message).remedy(
                "change it in Puppet; `authproxy key new` without --into prints an entry for it",
            ));
        }
        let entries = file::read_entries(&path, &text)?;
        Ok(Self {
            text,
            entries,
            path,
            before,
            _lock: lock,
        })
    }

    pub(super) fn keys(&self) -> Vec<(KeyHash, Grant)> {
        let keys = self.entries.iter();
        keys.map(|entry| (entry.key, entry.grant.clone())).collect()
    }

    /// Applies edits and replaces the file, unless the result does not have exactly the `expected` keys.
    pub(super) fn replace(
        self,
        edits: Vec<LineEdit>,
        expected: &[(KeyHash, Grant)],
    ) -> Result<(), Failure> {
        let text = line_edit::apply(&self.text, edits);
        let entries = file::read_entries(&self.path, &text);
        let found = entries
            .iter()
            .flatten()
            .map(|entry| (&entry.key, &entry.grant));
        if !found.eq(expected.iter().map(|(key, grant)| (key, grant))) {
            let message = format!(
                "cannot edit {}: its entries are not on lines of their own",
                self.path.display()
            );
            return Err(Failure::new(Exit::CONFIG, message).remedy(
                "write every entry of `keys` as a block (`- id: ..` and its other members below), or edit the file by hand",
            ));
        }
        // Text editors and Puppet do not take the lock.
        let now = match is_missing(&self.path) {
            true => None,
            false => Some(file::read_text(&self.path)?),
        };
        if now != self.before {
            let message = format!(
                "{} was changed by another program during the edit",
                self.path.display()
            );
            return Err(Failure::new(Exit::TRY_AGAIN, message).remedy("try again"));
        }
        self.write(text.as_bytes()).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space there"
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "its file system is mounted read-only: edit it on the host that writes it"
                }
                _ => "run this as the owner of the file and its directory, or as root",
            };
            let message = format!("cannot replace {}", self.path.display());
            Failure::new(Exit::CANNOT_CREATE, message)
                .remedy(remedy)
                .because(error)
        })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let (directory, name) = parts(&self.path)?;
        let before = match File::open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if self.before.is_none() && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mode = match &before {
            Some(file) => file.metadata()?.permissions().mode() & 0o7777,
            None => NEW_FILE_MODE,
        };
        let name = name.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        let directory = Dir::open(directory)?;
        directory.sweep(name)?;
        directory.write_atomic_with(name, mode, Durability::Crash, |out| {
            if let Some(before) = &before {
                copy_access(out.get_ref(), before)?;
            }
            out.write_all(bytes)
        })
    }
}

/// Copies owner, group and ACL. The caller has set the mode, whose group bits are the mask of an ACL.
fn copy_access(file: &File, other: &File) -> io::Result<()> {
    let metadata = other.metadata()?;
    fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
    let mut acl = vec![0; MAX_ACL_BYTES];
    match fgetxattr(other, ACL_ATTRIBUTE, acl.as_mut_slice()) {
        Ok(length) => fsetxattr(file, ACL_ATTRIBUTE, &acl[..length], XattrFlags::empty())?,
        // The file has no ACL, or its file system does not support ACLs.
        Err(Errno::NODATA | Errno::NOTSUP) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// A dangling symlink is not missing: its target may be on a disk that is not mounted.
fn is_missing(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Such a file was created with `touch` for its owner and mode.
fn has_only_comments(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#'))
}

/// The path of an existing or new file, symlinks resolved.
fn resolve(path: &Path, is_new: bool) -> io::Result<PathBuf> {
    if !is_new {
        return path.canonicalize();
    }
    let (directory, name) = parts(path)?;
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    Ok(directory.canonicalize()?.join(name))
}

fn parts(path: &Path) -> io::Result<(&Path, OsString)> {
    match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => Ok((directory, name.to_owned())),
        _ => Err(io::ErrorKind::IsADirectory.into()),
    }
}

/// Locks the directory of a file.
fn lock(path: &Path) -> Result<File, Failure> {
    let cannot = |error: io::Error| {
        Failure::new(Exit::IO, format!("cannot lock {}", path.display())).because(error)
    };
    let directory = parts(path).map_err(cannot)?.0;
    let lock = File::open(directory).map_err(cannot)?;
    let start = clock::since_boot();
    while !try_lock_exclusive(&lock).map_err(cannot)? {
        if clock::since_boot().saturating_sub(start) > LOCK_TIMEOUT {
            let message = format!("{} is locked by another edit", path.display());
            return Err(Failure::new(Exit::TRY_AGAIN, message).remedy("try again"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(lock)
}

/// Whether a comment names Puppet as the owner of the file.
fn is_managed(text: &str) -> bool {
    let mut comments = text
        .lines()
        .filter(|line| line.trim_start().starts_with('#'));
    comments.any(|line| {
        let line = line.to_ascii_lowercase();
        line.contains("managed") && line.contains("puppet")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_of_another_program_during_edit_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.yaml");
        for before in [
            None,
            Some(""),
            Some("keys: []\n"),
            Some("# Ours.\nkeys: []\n"),
        ] {
            match before {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => assert!(is_missing(&path)),
            }
            let file = AclFileEditor::open(&path, true).unwrap();
            std::fs::write(&path, "keys: [] # other\n").unwrap();
            let error = file.replace(Vec::new(), &[]).unwrap_err();
            assert_eq!(error.exit(), Exit::TRY_AGAIN, "{before:?}: {error}");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                "keys: [] # other\n"
            );
        }
        let gone = AclFileEditor::open(&path, true).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = gone.replace(Vec::new(), &[]).unwrap_err();
        assert_eq!(error.exit(), Exit::TRY_AGAIN, "{error}");
        assert!(is_missing(&path));
    }
}
