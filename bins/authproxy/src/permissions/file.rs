//! `--acl-file`: all keys in one YAML file, held in memory and reloaded on change.
//!
//! Owns which text is in force. `document` parses a text, `hostkit::file_watcher` notices changes.

mod document;
#[cfg(test)]
mod tests;

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use hostkit::Failure;
use hostkit::file_watcher::{FileWatcher, SharedInotify};

use super::load_tracker::LoadTracker;
use super::{BackendUnavailable, FileStatus, PermissionsBackend};
use crate::grant::{BackendResponse, Grant, KeyHash};
use document::AclDocument;
pub(crate) use document::{AclEntry, REMEDY_MISSING, read_entries, read_text};

/// The keys of the last valid text of a file.
#[derive(Debug)]
pub struct AclFile {
    path: PathBuf,
    document: RwLock<AclDocument>,
    loads: Mutex<LoadTracker>,
    /// Held during a reload, so that the text that was read last stays in force.
    reload: Mutex<()>,
}

impl AclFile {
    /// # Errors
    /// The file cannot be read or is invalid (exit 78); the message names line, column and the nearest valid key.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let document = document::read(path, None)?.unwrap_or_default();
        let mut loads = LoadTracker::default();
        loads.record_loaded();
        Ok(Self {
            path: path.to_owned(),
            document: RwLock::new(document),
            loads: Mutex::new(loads),
            reload: Mutex::default(),
        })
    }

    /// The grant of a key. Never waits for a reload.
    pub fn get(&self, key: &KeyHash) -> Option<Arc<Grant>> {
        self.document().grants.get(key).cloned()
    }

    /// Reloads the file whenever it changes.
    pub async fn follow(self: Arc<Self>) {
        let mut follow = FileWatcher::new(self.path.clone(), SharedInotify::default());
        loop {
            let file = Arc::clone(&self);
            if follow.read(move |_| file.reread()).await.is_none() {
                return;
            }
            follow.changed().await;
        }
    }

    /// Reloads the file. Takes seconds for a million keys.
    pub fn reread(&self) {
        let _reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let sha256 = self.document().sha256.clone();
        let read = document::read(&self.path, Some(&sha256));
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Some(document)) => {
                tracing::info!(
                    path = %self.path.display(),
                    keys = document.grants.len(),
                    "ACL file loaded"
                );
                // Dropping a million grants takes a while: after the lock.
                let _previous = self.replace(document);
                loads.record_loaded();
            }
            Ok(None) => loads.record_unchanged(&self.path),
            Err(failure) => loads.record_rejected(&failure),
        }
    }

    fn replace(&self, document: AclDocument) -> AclDocument {
        let current = self.document.write();
        let mut current = current.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, document)
    }

    fn document(&self) -> RwLockReadGuard<'_, AclDocument> {
        self.document.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn status(&self) -> FileStatus {
        let loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let document = self.document();
        let sha256 = Some(document.sha256.clone());
        loads.status(&self.path, document.grants.len(), sha256)
    }
}

impl PermissionsBackend for AclFile {
    fn look_up(
        &self,
        key: KeyHash,
    ) -> impl Future<Output = Result<BackendResponse, BackendUnavailable>> + Send {
        let grant = self.get(&key);
        ready(Ok(BackendResponse { grant, ttl: None }))
    }
}
