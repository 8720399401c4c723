//! Change signals for one watched file, sent by the inotify thread.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct ChangeSignals {
    /// A name on the way to the file was replaced, or the file was closed after writing.
    pub(super) settled: Notify,
    /// The file is being written.
    pub(super) writing: Notify,
    /// The relevant paths; events of others are ignored.
    entries: Mutex<Vec<PathBuf>>,
}

impl ChangeSignals {
    pub(super) fn set_entries(&self, entries: Vec<PathBuf>) {
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = entries;
    }

    pub(super) fn handle(&self, event: &notify::Result<notify::Event>) {
        let Ok(event) = event else {
            self.settled.notify_one();
            return;
        };
        if !event.paths.is_empty() {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if !event.paths.iter().any(|path| entries.contains(path)) {
                return;
            }
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.settled.notify_one(),
            // Reading is what the watcher does itself.
            EventKind::Access(_) => {}
            EventKind::Modify(ModifyKind::Data(_)) => self.writing.notify_one(),
            // A new file is written next; a new link or directory is complete.
            EventKind::Create(_) if event.paths.iter().any(|path| is_plain(path)) => {
                self.writing.notify_one();
            }
            _ => self.settled.notify_one(),
        }
    }
}

fn is_plain(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}
