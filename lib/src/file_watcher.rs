//! Following a file: noticing that it may have changed, and reading it where blocking is allowed.
//!
//! The directories on the way to it are watched, not the file, so that renaming over it, swapping a symlink on the way
//! to it, and removing and recreating it are noticed; a slow re-read is the net below that (a network file system says
//! nothing, inotify may be used up, and directories further up are not watched: everything opens files below them).
//! Owns when it is read; what it says, and what of it is kept, is its reader's.

mod change_signals;
mod inotify;
mod path_chain;
mod read_text;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use change_signals::ChangeSignals;
use inotify::PathWatch;

pub use inotify::SharedInotify;
pub use read_text::read_text;

/// How often the file is read although nothing was noticed.
const REREAD: Duration = Duration::from_secs(60);

/// How long somebody who writes the file in place has to be quiet: the first half of a list is often a list too.
const WRITING: Duration = Duration::from_secs(1);

/// A file that is followed.
#[derive(Debug)]
pub struct FileWatcher {
    path: PathBuf,
    reread: Duration,
    signals: Arc<ChangeSignals>,
    /// Away while a read is under way.
    watch: Option<PathWatch>,
}

impl FileWatcher {
    /// Follows the file `path`, which need not exist. Nothing is watched before the first [`FileWatcher::read`].
    #[must_use]
    pub fn new(path: PathBuf, inotify: SharedInotify) -> Self {
        let signals = Arc::new(ChangeSignals::default());
        Self {
            path,
            reread: REREAD,
            watch: Some(PathWatch::new(inotify, Arc::clone(&signals))),
            signals,
        }
    }

    /// What `read` makes of the file, on a thread that may block. None when that was given up: the runtime is shutting
    /// down, `read` panicked, or an earlier call was dropped before it ended.
    pub async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Option<T> {
        let path = self.path.clone();
        let mut watch = self.watch.take()?;
        let looked = spawn_blocking(move || {
            // First watched, then read: what changes in between is read again.
            watch.watch_path(&path);
            let read = read(&path);
            (watch, read)
        });
        let (watch, read) = looked.await.ok()?;
        self.watch = Some(watch);
        Some(read)
    }

    /// Returns when the file may have changed since the last [`FileWatcher::read`]. Cancel safe.
    pub async fn changed(&mut self) {
        let last = Instant::now() + self.reread;
        let mut next = last;
        loop {
            tokio::select! {
                () = self.signals.settled.notified() => return,
                () = self.signals.writing.notified() => next = last.min(Instant::now() + WRITING),
                () = sleep_until(next) => return,
            }
        }
    }
}
