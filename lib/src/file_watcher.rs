//! Watching a file for changes, and reading it where blocking is allowed.
//!
//! The directories on the way to it are watched, not the file, so that renaming over it, replacing a symlink on the way
//! to it, and removing and recreating it are noticed. It is also read at an interval, because a network file system
//! sends no events, inotify may be exhausted, and directories further up are not watched (every open file below them
//! would cause events).

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

/// The interval between reads without events.
const REREAD_INTERVAL: Duration = Duration::from_secs(60);

/// The quiet period after which a file written in place is read: the first half of a list is often a valid list.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// A watched file.
#[derive(Debug)]
pub struct FileWatcher {
    path: PathBuf,
    reread_interval: Duration,
    signals: Arc<ChangeSignals>,
    /// `None` while a read is under way.
    watch: Option<PathWatch>,
}

impl FileWatcher {
    /// Prepares to watch the file `path`, which need not exist. Watching begins with the first [`FileWatcher::read`].
    #[must_use]
    pub fn new(path: PathBuf, inotify: SharedInotify) -> Self {
        let signals = Arc::new(ChangeSignals::default());
        Self {
            path,
            reread_interval: REREAD_INTERVAL,
            watch: Some(PathWatch::new(inotify, Arc::clone(&signals))),
            signals,
        }
    }

    /// Runs `read` on a thread that may block, and returns its result; `None` if the runtime is shutting down, `read`
    /// panicked, or an earlier call was dropped before it ended.
    pub async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Option<T> {
        let path = self.path.clone();
        let mut watch = self.watch.take()?;
        let blocking = spawn_blocking(move || {
            // Watching first: a change during the read causes another read.
            watch.watch_path(&path);
            let read = read(&path);
            (watch, read)
        });
        let (watch, read) = blocking.await.ok()?;
        self.watch = Some(watch);
        Some(read)
    }

    /// Returns when the file may have changed since the last [`FileWatcher::read`]. Cancel safe.
    pub async fn changed(&mut self) {
        let last = Instant::now() + self.reread_interval;
        let mut next = last;
        loop {
            tokio::select! {
                () = self.signals.settled.notified() => return,
                () = self.signals.writing.notified() => next = last.min(Instant::now() + QUIET_PERIOD),
                () = sleep_until(next) => return,
            }
        }
    }
}
