//! Watching directories: one inotify instance and one thread for all files, of which a user may have 128 (proc(5),
//! `max_user_instances`).
//!
//! Owns which directories are watched and for whom. What an event means for a file is decided where it is heard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::change_signals::ChangeSignals;
use super::path_chain::{DirectoryId, PathChain, resolve_chain};

/// How often the way to a file is followed again when it changes meanwhile.
const SETTLING: u8 = 5;

/// What all files share. Nothing is started before the first one.
#[derive(Debug, Clone, Default)]
pub struct SharedInotify(Arc<InotifyState>);

#[derive(Debug, Default)]
struct InotifyState {
    /// The thread that hears of changes takes the lock of `listeners`, and whoever holds that of `watched` waits for
    /// this thread: nobody may hold both.
    listeners: Arc<Mutex<Vec<Weak<ChangeSignals>>>>,
    watched: Mutex<DirectoryWatches>,
}

#[derive(Debug, Default)]
struct DirectoryWatches {
    /// `None` before the first file, and when the system has no more.
    watcher: Option<RecommendedWatcher>,
    /// Each with the number of files that need it.
    directories: BTreeMap<PathBuf, (DirectoryId, usize)>,
}

impl SharedInotify {
    fn listen(&self, signals: &Arc<ChangeSignals>) {
        let mut listeners = lock(&self.0.listeners);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(signals));
    }

    fn claim(&self, directory: &Path, identity: DirectoryId) {
        let mut watched = lock(&self.0.watched);
        if watched.watcher.is_none() {
            let listeners = Arc::clone(&self.0.listeners);
            let handle = move |event: notify::Result<notify::Event>| {
                for signals in lock(&listeners).iter().filter_map(Weak::upgrade) {
                    signals.handle(&event);
                }
            };
            watched.watcher = notify::recommended_watcher(handle).ok();
        }
        let DirectoryWatches {
            watcher,
            directories,
        } = &mut *watched;
        let known = directories
            .entry(directory.to_owned())
            .or_insert((identity, 0));
        let another = known.0 != identity;
        let first = known.1 == 0;
        *known = (identity, known.1 + 1);
        let Some(watcher) = watcher else { return };
        if another && !first {
            // It may be gone already, and its watch with it.
            let _ = watcher.unwatch(directory);
        }
        if another || first {
            // What cannot be watched is still read again now and then.
            let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
        }
    }

    fn release(&self, directory: &Path) {
        let mut watched = lock(&self.0.watched);
        let Some(known) = watched.directories.get_mut(directory) else {
            return;
        };
        known.1 -= 1;
        if known.1 == 0 {
            watched.directories.remove(directory);
            if let Some(watcher) = &mut watched.watcher {
                let _ = watcher.unwatch(directory);
            }
        }
    }
}

/// The directories that one file needs.
#[derive(Debug)]
pub(super) struct PathWatch {
    inotify: SharedInotify,
    directories: BTreeMap<PathBuf, DirectoryId>,
    signals: Arc<ChangeSignals>,
}

impl PathWatch {
    pub(super) fn new(inotify: SharedInotify, signals: Arc<ChangeSignals>) -> Self {
        inotify.listen(&signals);
        Self {
            inotify,
            directories: BTreeMap::new(),
            signals,
        }
    }

    /// Watches everything on the way to `path`, until that is what was just watched.
    pub(super) fn watch_path(&mut self, path: &Path) {
        for _ in 0..SETTLING {
            let PathChain {
                directories,
                mut entries,
            } = resolve_chain(path);
            // A directory that is itself removed or renamed is told under its own path.
            entries.extend(directories.keys().cloned());
            self.signals.set_entries(entries);
            if directories == self.directories {
                return;
            }
            self.watch(directories);
        }
    }

    fn watch(&mut self, directories: BTreeMap<PathBuf, DirectoryId>) {
        let before = std::mem::replace(&mut self.directories, directories);
        for (directory, identity) in &self.directories {
            if before.get(directory) != Some(identity) {
                self.inotify.claim(directory, *identity);
            }
        }
        for (directory, identity) in &before {
            if self.directories.get(directory) != Some(identity) {
                self.inotify.release(directory);
            }
        }
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        for directory in self.directories.keys() {
            self.inotify.release(directory);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_watched_for_as_long_as_a_file_needs_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let inotify = SharedInotify::default();
        let eyes = |name: &str| {
            let mut eyes = PathWatch::new(inotify.clone(), Arc::default());
            eyes.watch_path(&root.join(name));
            eyes
        };
        let needed = || {
            let watched = lock(&inotify.0.watched);
            watched.directories.get(&root).map(|known| known.1)
        };
        let (one, mut other) = (eyes("one"), eyes("other"));
        assert_eq!(needed(), Some(2));
        other.watch_path(&root.join("other"));
        assert_eq!(needed(), Some(2));
        drop(one);
        assert_eq!(needed(), Some(1));
        drop(other);
        assert_eq!(needed(), None);
    }
}
