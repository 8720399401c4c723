//! Publishing to a `file://` store: a file is copied beside its target, then linked or renamed. The temporary file is
//! removed however the `put` ends; after a kill, the next `put` of that name removes it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use hostkit::dir::{Dir, temporary_prefix};
use hostkit::file::open_regular;

use crate::copy::{make_locked, remove_leftovers};
use crate::store::{StoreError, StoreErrorKind};

/// How long removing a file may block.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// A file being published.
#[derive(Debug)]
pub(super) struct FileUpload {
    dir: Dir,
    name: String,
    temp: OsString,
    /// Locked while its process lives.
    file: File,
    is_removed: AtomicBool,
}

impl FileUpload {
    /// Creates the temporary file for a name in a directory.
    pub(super) fn begin((parent, name): (PathBuf, String)) -> Result<Self, StoreError> {
        let dir = Dir::create_all(&parent, 0o755)?;
        let mut prefix = temporary_prefix(OsStr::new(&name));
        prefix.push(".s3cache-");
        remove_leftovers(&dir, &prefix);
        let (temp, file) = make_locked(&dir, &prefix, 0o644)?;
        Ok(Self {
            dir,
            name,
            temp,
            file,
            is_removed: AtomicBool::new(false),
        })
    }

    /// Copies `from` and gives the copy its name.
    pub(super) fn finish(&self, from: &Path, replace: bool) -> Result<(), StoreError> {
        let (dir, name) = (&self.dir, &self.name);
        let placed = (|| {
            io::copy(&mut open_regular(from)?, &mut &self.file)?;
            self.file.sync_all()?;
            if replace {
                dir.rename(&self.temp, dir, name)?;
                // The temporary name is free again, and may be reused by another process.
                self.is_removed.store(true, Ordering::Relaxed);
                return Ok(());
            }
            // A link, unlike a rename, never replaces what another process published meanwhile.
            dir.link(&self.temp, name)
        })();
        self.remove();
        match placed {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StoreError::new(
                StoreErrorKind::AlreadyExists,
                "the object already exists",
            )),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(dir.sync()?),
        }
    }

    fn remove(&self) {
        if !self.is_removed.swap(true, Ordering::Relaxed) {
            let _ = self.dir.remove_file(&self.temp);
        }
    }
}

impl Drop for FileUpload {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes the temporary file when the `put` is cancelled: the copying thread may not get to it before the process
/// ends.
pub(super) struct UploadCleanup(pub(super) Arc<FileUpload>);

impl Drop for UploadCleanup {
    fn drop(&mut self) {
        if self.0.is_removed.load(Ordering::Relaxed) {
            return;
        }
        let (upload, (done, removed)) = (self.0.clone(), mpsc::sync_channel(1));
        let remover = std::thread::Builder::new().spawn(move || {
            upload.remove();
            let _ = done.send(());
        });
        if remover.is_ok() {
            let _ = removed.recv_timeout(REMOVAL_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_or_killed_upload_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let from = temp.path().join("from");
        std::fs::write(&from, "made").unwrap();
        let repo = temp.path().join("repo");
        let names = || -> Vec<OsString> {
            let entries = std::fs::read_dir(&repo).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        let begin = || Arc::new(FileUpload::begin((repo.clone(), "a.txt".to_owned())).unwrap());
        let given_up = begin();
        assert_eq!(names().len(), 1);
        // As when a signal or the deadline drops the future while the thread still copies.
        drop(UploadCleanup(given_up.clone()));
        assert_eq!(names(), [""; 0]);
        given_up.finish(&from, false).unwrap_err();
        assert_eq!(names(), [""; 0]);
        // A kill leaves the file without its lock; a living process keeps both.
        std::fs::write(repo.join(".a.txt.s3cache-4194304-0"), "half").unwrap();
        let living = begin();
        let other = begin();
        assert_eq!(names().len(), 2);
        living.finish(&from, false).unwrap();
        let exists = other.finish(&from, false).unwrap_err();
        assert_eq!(exists.kind, StoreErrorKind::AlreadyExists);
        other.finish(&from, true).unwrap_err();
        assert_eq!(names(), ["a.txt"]);
        begin().finish(&from, true).unwrap();
    }

    #[test]
    fn temporary_file_is_not_listed_and_similar_names_are_kept() {
        use crate::store::ObjectStore as _;
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join(".a.txt.s3cache-notes"), "kept").unwrap();
        let upload = FileUpload::begin((temp.path().to_owned(), "a.txt".to_owned())).unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 2);
        let mut names = Vec::new();
        let prefix = crate::ArtifactSource::File(temp.path().join(""));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let listed = runtime.block_on(super::super::FileStore.list(&prefix, &mut |found| {
            names.push(found.name);
            std::ops::ControlFlow::Continue(())
        }));
        listed.unwrap();
        assert_eq!(names, [".a.txt.s3cache-notes"]);
        drop(upload);
    }

    #[test]
    fn file_with_longest_name_is_published() {
        let temp = tempfile::tempdir().unwrap();
        let from = temp.path().join("from");
        std::fs::write(&from, "made").unwrap();
        let name = "n".repeat(hostkit::dir::NAME_MAX);
        let upload = FileUpload::begin((temp.path().to_owned(), name.clone())).unwrap();
        upload.finish(&from, false).unwrap();
        assert_eq!(std::fs::read(temp.path().join(name)).unwrap(), b"made");
    }
}
