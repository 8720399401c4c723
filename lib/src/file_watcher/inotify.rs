//! Watching directories: one inotify instance and one thread for all files, because a user may have only 128 instances
//! (proc(5), `max_user_instances`). What an event means for a file is decided by its `ChangeSignals`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::change_signals::ChangeSignals;
use super::path_chain::{DirectoryId, PathChain, resolve_chain};

/// Attempts to watch a path whose directories change meanwhile.
const MAX_ATTEMPTS: u8 = 5;

/// The inotify instance of all watched files, created for the first one.
#[derive(Debug, Clone, Default)]
pub struct SharedInotify(Arc<InotifyState>);

#[derive(Debug, Default)]
struct InotifyState {
    /// The inotify thread takes the lock of `listeners`, and a holder of `watched` waits for this thread: both must
    /// never be held together.
    listeners: Arc<Mutex<Vec<Weak<ChangeSignals>>>>,
    watched: Mutex<DirectoryWatches>,
}

#[derive(Debug, Default)]
struct DirectoryWatches {
    /// `None` before the first file, and if the system refuses an instance.
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
        let entry = directories
            .entry(directory.to_owned())
            .or_insert((identity, 0));
        let another = entry.0 != identity;
        let first = entry.1 == 0;
        *entry = (identity, entry.1 + 1);
        let Some(watcher) = watcher else { return };
        if another && !first {
            // The directory may be removed already, and its watch with it.
            let _ = watcher.unwatch(directory);
        }
        if another || first {
            // On failure the interval of reads still applies.
            let _ = watcher.watch(directory, RecursiveMode::NonRecursive);
        }
    }

    fn release(&self, directory: &Path) {
        let mut watched = lock(&self.0.watched);
        let Some(entry) = watched.directories.get_mut(directory) else {
            return;
        };
        entry.1 -= 1;
        if entry.1 == 0 {
            watched.directories.remove(directory);
            if let Some(watcher) = &mut watched.watcher {
                let _ = watcher.unwatch(directory);
            }
        }
    }
}

/// The watched directories of one file.
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

    /// Watches every directory on the way to `path`, until a second look finds the same ones.
    pub(super) fn watch_path(&mut self, path: &Path) {
        for _ in 0..MAX_ATTEMPTS {
            let PathChain {
                directories,
                mut entries,
            } = resolve_chain(path);
            // Removal or renaming of a directory is reported under its own path.
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
    fn directory_is_watched_as_long_as_a_file_needs_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let inotify = SharedInotify::default();
        let watch = |name: &str| {
            let mut watch = PathWatch::new(inotify.clone(), Arc::default());
            watch.watch_path(&root.join(name));
            watch
        };
        let needed = || {
            let watched = lock(&inotify.0.watched);
            watched.directories.get(&root).map(|entry| entry.1)
        };
        let (one, mut other) = (watch("one"), watch("other"));
        assert_eq!(needed(), Some(2));
        other.watch_path(&root.join("other"));
        assert_eq!(needed(), Some(2));
        drop(one);
        assert_eq!(needed(), Some(1));
        drop(other);
        assert_eq!(needed(), None);
    }
}
