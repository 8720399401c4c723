//! `--acl-file`: all keys in one YAML file, in memory, followed as it changes.
//!
//! Owns which text is in force. What a text says is `table`'s, noticing changes is `hostkit::follow`'s.

mod table;
#[cfg(test)]
mod tests;

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use hostkit::follow::{Follow, Inotify};
use hostkit::{Failure, clock};

use super::{FileStatus, Permissions, Unavailable};
use crate::grant::{Found, Grant, KeyHash};
use table::Table;

/// The keys of a file. There are always some in force: those of the last valid text.
#[derive(Debug)]
pub struct AclFile {
    path: PathBuf,
    table: RwLock<Table>,
    news: Mutex<News>,
}

#[derive(Debug)]
struct News {
    /// Since when the text is in force, as time since boot.
    since: Duration,
    loaded: u64,
    refused: u64,
    trouble: Option<String>,
}

impl AclFile {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read or is not valid (exit 78); the message names line, column and the nearest valid key.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self {
            path: path.to_owned(),
            table: RwLock::new(table::read(path, None)?.unwrap_or_default()),
            news: Mutex::new(News {
                since: clock::since_boot(),
                loaded: 1,
                refused: 0,
                trouble: None,
            }),
        })
    }

    /// The grant of a key. Cheap: never waits for a file that is being read.
    #[must_use]
    pub fn get(&self, key: &KeyHash) -> Option<Arc<Grant>> {
        self.table().grants.get(key).cloned()
    }

    /// Reads the file again whenever it changes, for ever.
    pub async fn follow(self: Arc<Self>) {
        let mut follow = Follow::new(self.path.clone(), Inotify::default());
        loop {
            let file = Arc::clone(&self);
            if follow.read(move |path| file.reread(path)).await.is_none() {
                return;
            }
            follow.changed().await;
        }
    }

    /// May take seconds: a million keys are parsed, and as many are dropped.
    fn reread(&self, path: &Path) {
        let known = self.table().sha256.clone();
        let read = table::read(path, Some(&known));
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let path = path.display();
        match read {
            Ok(Some(table)) => {
                tracing::info!(keys = table.grants.len(), "{path} is in force");
                let mut table = table;
                {
                    let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
                    std::mem::swap(&mut *current, &mut table);
                }
                news.since = clock::since_boot();
                news.loaded += 1;
                news.trouble = None;
            }
            Ok(None) => {
                if news.trouble.take().is_some() {
                    tracing::info!("{path} is again what is in force");
                }
            }
            Err(failure) => {
                let trouble = failure.to_string();
                if news.trouble.as_ref() != Some(&trouble) {
                    tracing::error!("{trouble}; the keys read before stay in force");
                    news.refused += 1;
                    news.trouble = Some(trouble);
                }
            }
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    #[must_use]
    pub fn status(&self) -> FileStatus {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        FileStatus {
            path: self.path.display().to_string(),
            entries: table.grants.len(),
            sha256: Some(table.sha256.clone()),
            age: Some(clock::since_boot().saturating_sub(news.since)),
            loaded: news.loaded,
            refused: news.refused,
            trouble: news.trouble.clone(),
        }
    }
}

impl Permissions for Arc<AclFile> {
    fn find(&self, key: KeyHash) -> impl Future<Output = Result<Found, Unavailable>> + Send {
        let grant = self.get(&key);
        ready(Ok(Found { grant, ttl: None }))
    }
}
