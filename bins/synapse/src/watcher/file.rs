//! `method: file`: a list of servers in a YAML or JSON file, read again whenever it is replaced.
//!
//! Owns noticing changes. The directories are watched, not the file, so that renaming over it, swapping a symlink on
//! the way to it, and removing and recreating it are noticed; a slow re-read is the net below that (a network file
//! system says nothing, inotify may be used up, and directories further up are not watched: everything opens files
//! below them). What a file says is `list`'s.

mod chain;
mod eyes;
mod list;
mod signals;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hostkit::clock;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

pub use self::eyes::Inotify;

use self::eyes::Eyes;
use self::list::List;
use self::signals::Signals;
use super::{Found, Watcher, publish, single};
use crate::model::Discovered;

/// How often the file is read although nothing was noticed.
const REREAD: Duration = Duration::from_secs(60);

/// How long somebody who writes the file in place is waited for: the first half of a list is often a list too.
const WRITING: Duration = Duration::from_secs(1);

/// Follows a file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    reread: Duration,
    inotify: Inotify,
}

impl File {
    /// Follows the file `path`.
    #[must_use]
    pub const fn new(path: PathBuf, inotify: Inotify) -> Self {
        Self {
            path,
            reread: REREAD,
            inotify,
        }
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let signals = Arc::new(Signals::default());
        let mut eyes = Eyes::new(self.inotify.clone(), Arc::clone(&signals));
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
