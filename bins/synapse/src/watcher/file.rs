//! `method: file`: a list of servers in a YAML or JSON file, read again whenever it is replaced.
//!
//! Owns what is kept of it. Noticing changes is `hostkit::file_watcher`'s, what a file says is `list`'s.

mod list;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use hostkit::clock;
use hostkit::file_watcher::{FileWatcher, SharedInotify};
use tokio::sync::watch;

use self::list::List;
use super::{Found, Watcher, publish, single};
use crate::model::Discovered;

/// Follows a file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    inotify: SharedInotify,
}

impl File {
    /// Follows the file `path`.
    #[must_use]
    pub const fn new(path: PathBuf, inotify: SharedInotify) -> Self {
        Self { path, inotify }
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let mut follow = FileWatcher::new(self.path, self.inotify);
        let mut known = Discovered::default();
        // Only a runtime that is shutting down reads no more.
        while let Some(read) = follow.read(list::read).await {
            learn(&mut known, read);
            publish(&out, single(known.clone()));
            tokio::select! {
                () = follow.changed() => {}
                () = out.closed() => return,
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
