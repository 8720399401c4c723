//! What the thread that hears of changes passes on to one file.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use tokio::sync::Notify;

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct ChangeSignals {
    /// Something on the way to the file was replaced, or somebody finished writing.
    pub(super) settled: Notify,
    /// Somebody began to write.
    pub(super) writing: Notify,
    /// The paths that matter; nothing else is passed on.
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
            // Reading it is what we do ourselves.
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
