//! `method: file`: a list of servers in a YAML or JSON file, read again whenever it is replaced.
//!
//! Owns noticing changes. The directories are watched, not the file, so that renaming over it, swapping a symlink on
//! the way to it, and removing and recreating it are noticed; a slow re-read is the net below that (a network file
//! system says nothing, inotify may be used up, and directories further up are not watched: everything opens files
//! below them). What a file says is `list`'s.

mod chain;
mod list;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hostkit::clock;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use self::chain::{Chain, Identity, chain};
use self::list::List;
use super::{Found, Watcher, publish, single};
use crate::model::Discovered;

/// How often the file is read although nothing was noticed.
const REREAD: Duration = Duration::from_secs(60);

/// How long somebody who writes the file in place is waited for: the first half of a list is often a list too.
const WRITING: Duration = Duration::from_secs(1);

/// How often the way to the file is followed again when it changes meanwhile.
const SETTLING: u8 = 5;

/// Follows a file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    reread: Duration,
}

/// What the thread that hears of changes passes on.
#[derive(Debug, Default)]
struct Signals {
    /// Something on the way to the file was replaced, or somebody finished writing.
    settled: Notify,
    /// Somebody began to write.
    writing: Notify,
    /// The paths that matter; nothing else is passed on.
    entries: Mutex<Vec<PathBuf>>,
}

/// The watched directories.
#[derive(Debug)]
struct Eyes {
    /// `None` when the system has no more.
    watcher: Option<RecommendedWatcher>,
    directories: BTreeMap<PathBuf, Identity>,
    signals: Arc<Signals>,
}

impl File {
    /// Follows the file `path`.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self {
            path,
            reread: REREAD,
        }
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let signals = Arc::new(Signals::default());
        let mut eyes = Eyes::new(Arc::clone(&signals));
        let mut known = Discovered::default();
        loop {
            let path = self.path.clone();
            let looked = spawn_blocking(move || {
                // First watched, then read: what changes in between is read again.
                eyes.look_along(&path);
                (eyes, list::read(&path))
            });
            let Ok((back, read)) = looked.await else {
                // Only a runtime that is shutting down drops it.
                return;
            };
            eyes = back;
            learn(&mut known, read);
            publish(&out, single(known.clone()));
            let mut next = Instant::now() + self.reread;
            loop {
                tokio::select! {
                    () = signals.settled.notified() => break,
                    () = signals.writing.notified() => {
                        next = next.min(Instant::now() + WRITING);
                    }
                    () = sleep_until(next) => break,
                    () = out.closed() => return,
                }
            }
        }
    }
}

impl Watcher for File {
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.run(out))
    }
}

fn learn(known: &mut Discovered, read: Result<List, String>) {
    match read {
        Ok(List { backends, rejects }) => {
            let before = std::mem::replace(
                known,
                Discovered {
                    backends,
                    ..Discovered::default()
                },
            );
            known.share(&before);
            known.rejects = rejects;
            known.synced = Some(clock::since_boot());
            known.trouble = None;
        }
        Err(why) => known.trouble = Some(why),
    }
}

impl Signals {
    fn hear(&self, event: notify::Result<notify::Event>) {
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

impl Eyes {
    fn new(signals: Arc<Signals>) -> Self {
        let heard = Arc::clone(&signals);
        let handler = move |event| heard.hear(event);
        Self {
            watcher: notify::recommended_watcher(handler).ok(),
            directories: BTreeMap::new(),
            signals,
        }
    }

    /// Watches everything on the way to `path`, until that is what was just watched.
    fn look_along(&mut self, path: &Path) {
        for _ in 0..SETTLING {
            let Chain {
                directories,
                mut entries,
            } = chain(path);
            // A directory that is itself removed or renamed is told under its own path.
            entries.extend(directories.keys().cloned());
            *self
                .signals
                .entries
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = entries;
            if directories == self.directories {
                return;
            }
            self.watch(directories);
        }
    }

    fn watch(&mut self, directories: BTreeMap<PathBuf, Identity>) {
        let Some(watcher) = &mut self.watcher else {
            self.directories = directories;
            return;
        };
        for (directory, identity) in &self.directories {
            if directories.get(directory) != Some(identity) {
                // It may be gone already, and its watch with it.
                let _ = watcher.unwatch(directory);
            }
        }
        for (directory, identity) in &directories {
            if self.directories.get(directory) != Some(identity) {
                // What cannot be watched is still read again now and then.
                let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
            }
        }
        self.directories = directories;
    }
}
