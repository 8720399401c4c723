//! An ACL file that is being edited: by one process at a time, as a whole or not at all.
//!
//! Owns the lock, what stays of the file, and that what comes out says what was meant. Which lines change is `edit`'s.

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

use super::edit::{self, Edit};
use crate::grant::{Grant, KeyHash};
use crate::permissions::file::{self, AclEntry};

/// How long another process may hold the lock: an edit takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// The mode of a file that was missing.
const MODE: u32 = 0o640;
/// Where Linux keeps a POSIX ACL (acl(5)).
const ACL: &str = "system.posix_acl_access";
/// The longest ACL that is kept: more entries than a file system takes.
const LONGEST_ACL: usize = 64 << 10;

/// An ACL file, locked for as long as this is there.
pub(super) struct KeyFile {
    pub(super) text: String,
    pub(super) entries: Vec<AclEntry>,
    /// Where it is, symlinks resolved: the file is replaced, not a link to it.
    path: PathBuf,
    /// What was in it; none if it is to be made.
    before: Option<String>,
    /// The directory, because the file itself is replaced.
    _lock: File,
}

impl KeyFile {
    /// Opens a file, or begins one where `create` allows it.
    ///
    /// # Errors
    /// It is missing, wrong, managed by Puppet, another user's, or being edited.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, Failure> {
        let is_new = create && is_missing(path);
        let path = resolved(path, is_new).map_err(|error| {
            let failure = Failure::new(Exit::CONFIG, format!("cannot read {}", path.display()));
            let failure = match error.kind() {
                io::ErrorKind::NotFound if path.is_symlink() => failure.remedy(
                    "it is a symlink to a file that is missing: make that one, or name another",
                ),
                io::ErrorKind::NotFound if is_new => failure.remedy("make its directory"),
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
        if create && says_nothing(&text) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str("keys: []\n");
        }
        if is_managed(&text) {
            let what = format!(
                "{} is managed by Puppet, which would undo the change",
                path.display()
            );
            return Err(Failure::new(Exit::DENIED, what).remedy(
                "change its source; `authproxy key new` without --into prints an entry for it",
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

    /// Its keys, in their order.
    pub(super) fn keys(&self) -> Vec<(KeyHash, Grant)> {
        let keys = self.entries.iter();
        keys.map(|entry| (entry.key, entry.grant.clone())).collect()
    }

    /// Writes the file with these edits; afterwards its keys are `expected`, or nothing has changed.
    ///
    /// # Errors
    /// The edits do not lead there, or the file cannot be replaced.
    pub(super) fn replace(
        self,
        edits: Vec<Edit>,
        expected: &[(KeyHash, Grant)],
    ) -> Result<(), Failure> {
        let text = edit::apply(&self.text, edits);
        let entries = file::read_entries(&self.path, &text);
        let found = entries
            .iter()
            .flatten()
            .map(|entry| (&entry.key, &entry.grant));
        if !found.eq(expected.iter().map(|(key, grant)| (key, grant))) {
            let what = format!("cannot edit {} by lines", self.path.display());
            return Err(Failure::new(Exit::CONFIG, what).remedy(
                "write every entry of `keys` on lines of its own, `- id: ..` and its other members below, or edit it by hand",
            ));
        }
        // Editors and Puppet know nothing of the lock.
        let now = match is_missing(&self.path) {
            true => None,
            false => Some(file::read_text(&self.path)?),
        };
        if now != self.before {
            let what = format!(
                "{} was changed by another program meanwhile",
                self.path.display()
            );
            return Err(Failure::new(Exit::TRY_AGAIN, what).remedy("try again"));
        }
        self.write(text.as_bytes()).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space there"
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "its file system is mounted read-only: edit it where it is written"
                }
                _ => "run this as the owner of the file and its directory, or as root",
            };
            let what = format!("cannot replace {}", self.path.display());
            Failure::new(Exit::CANNOT_CREATE, what)
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
            None => MODE,
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

/// Gives a file the owner, the group and the ACL of another. The mode it has; with an ACL its group bits are the mask.
fn copy_access(file: &File, other: &File) -> io::Result<()> {
    let metadata = other.metadata()?;
    fchown(file, Some(metadata.uid()), Some(metadata.gid()))?;
    let mut acl = vec![0; LONGEST_ACL];
    match fgetxattr(other, ACL, acl.as_mut_slice()) {
        Ok(length) => fsetxattr(file, ACL, &acl[..length], XattrFlags::empty())?,
        // The file has no ACL, or its filesystem keeps none.
        Err(Errno::NODATA | Errno::NOTSUP) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Whether nothing is at a path. A symlink to nothing is something: the file is elsewhere.
fn is_missing(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Whether a text has comments at most, like a file that `touch` has made for its owner and mode.
fn says_nothing(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#'))
}

/// Where a file is or is going to be, without symlinks.
fn resolved(path: &Path, is_new: bool) -> io::Result<PathBuf> {
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

/// The lock of everything in a directory that is edited like this.
fn lock(path: &Path) -> Result<File, Failure> {
    let cannot = |error: io::Error| {
        Failure::new(Exit::IO, format!("cannot lock {}", path.display())).because(error)
    };
    let directory = parts(path).map_err(cannot)?.0;
    let lock = File::open(directory).map_err(cannot)?;
    let start = clock::since_boot();
    while !try_lock_exclusive(&lock).map_err(cannot)? {
        if clock::since_boot().saturating_sub(start) > PATIENCE {
            let what = format!("{} is being edited by another process", path.display());
            return Err(Failure::new(Exit::TRY_AGAIN, what).remedy("try again"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(lock)
}

/// Whether a comment says that Puppet writes the file.
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
    fn file_that_another_program_changes_during_an_edit_keeps_that_change() {
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
            let file = KeyFile::open(&path, true).unwrap();
            std::fs::write(&path, "keys: [] # theirs\n").unwrap();
            let refused = file.replace(Vec::new(), &[]).unwrap_err();
            assert_eq!(refused.exit(), Exit::TRY_AGAIN, "{before:?}: {refused}");
            assert_eq!(
                std::fs::read_to_string(&path).unwrap(),
                "keys: [] # theirs\n"
            );
        }
        let gone = KeyFile::open(&path, true).unwrap();
        std::fs::remove_file(&path).unwrap();
        let refused = gone.replace(Vec::new(), &[]).unwrap_err();
        assert_eq!(refused.exit(), Exit::TRY_AGAIN, "{refused}");
        assert!(is_missing(&path));
    }
}
