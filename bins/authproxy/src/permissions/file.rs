//! `--acl-file`: all keys in one YAML file, in memory, followed as it changes.
//!
//! Owns which text is in force. What a text says is `table`'s, noticing changes is `hostkit::file_watcher`'s.

mod table;
#[cfg(test)]
mod tests;

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use hostkit::Failure;
use hostkit::file_watcher::{FileWatcher, SharedInotify};

use super::news::News;
use super::{BackendUnavailable, FileStatus, PermissionsBackend};
use crate::grant::{BackendResponse, Grant, KeyHash};
use table::Table;
pub(crate) use table::{AclEntry, REMEDY_MISSING, read_entries, read_text};

/// The keys of a file. There are always some in force: those of the last valid text.
#[derive(Debug)]
pub struct AclFile {
    path: PathBuf,
    table: RwLock<Table>,
    news: Mutex<News>,
    /// Held while it is read: what was read last is to be what stays.
    reading: Mutex<()>,
}

impl AclFile {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read or is not valid (exit 78); the message names line, column and the nearest valid key.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let table = table::read(path, None)?.unwrap_or_default();
        let mut news = News::default();
        news.taken();
        Ok(Self {
            path: path.to_owned(),
            table: RwLock::new(table),
            news: Mutex::new(news),
            reading: Mutex::default(),
        })
    }

    /// The grant of a key. Cheap: never waits for a file that is being read.
    #[must_use]
    pub fn get(&self, key: &KeyHash) -> Option<Arc<Grant>> {
        self.table().grants.get(key).cloned()
    }

    /// Reads the file again whenever it changes, for ever.
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

    /// Reads the file again. May take seconds, where a million keys are parsed and as many dropped.
    pub fn reread(&self) {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.table().sha256.clone();
        let read = table::read(&self.path, Some(&known));
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(Some(table)) => {
                tracing::info!(
                    keys = table.grants.len(),
                    "{} is in force",
                    self.path.display()
                );
                // The one before is dropped after the lock.
                let _before = self.replace(table);
                news.taken();
            }
            Ok(None) => news.unchanged(&self.path),
            Err(failure) => news.refused(&failure),
        }
    }

    fn replace(&self, table: Table) -> Table {
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, table)
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    #[must_use]
    pub fn status(&self) -> FileStatus {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        news.status(&self.path, table.grants.len(), Some(table.sha256.clone()))
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
