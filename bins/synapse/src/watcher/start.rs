//! Starting watchers: the right one for each kind of discovery, as a task that ends with its [`Watch`].

use std::sync::Arc;

use hostkit::file_watcher::SharedInotify;
use hostkit::zookeeper::{SessionOptions, SessionPool};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::base::Base;
use super::dns::Dns;
use super::file::File;
use super::multi::Multi;
use super::zookeeper::Zookeeper;
use super::{Found, Watcher};
use crate::settings::{Cluster, Decode, Discovery};

/// What watchers share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The sessions with ZooKeeper: one per ensemble, whoever follows it.
    pub sessions: SessionPool<Decode>,
    /// The names of clusters, and what their ensembles need beside hosts.
    pub clusters: Vec<Cluster>,
    /// What tells that files have changed.
    pub inotify: SharedInotify,
}

impl Default for Context {
    /// New sessions, and no clusters.
    fn default() -> Self {
        Self {
            sessions: SessionPool::new(SessionOptions::default()),
            clusters: Vec::new(),
            inotify: SharedInotify::default(),
        }
    }
}

/// A running watcher. Dropping it stops it.
#[derive(Debug)]
pub struct Watch {
    /// What it knows; empty until it knows anything.
    pub found: watch::Receiver<Arc<Found>>,
    _task: JoinSet<()>,
}

/// Starts following `discovery`, on the runtime of the caller.
#[must_use]
pub fn start(discovery: &Discovery, context: &Context) -> Watch {
    let watcher: Box<dyn Watcher> = match discovery {
        Discovery::Base => Box::new(Base),
        Discovery::Zookeeper(zookeeper) => Box::new(Zookeeper::new(zookeeper.clone(), context)),
        Discovery::File(path) => Box::new(File::new(path.clone(), context.inotify.clone())),
        Discovery::Dns(dns) => Box::new(Dns::new(dns.clone())),
        Discovery::Multi(children, resolver) => {
            let children = children
                .iter()
                .map(|(name, discovery)| (name.clone(), start(discovery, context)))
                .collect();
            Box::new(Multi::new(children, resolver.clone()))
        }
    };
    let (out, found) = watch::channel(Arc::default());
    let mut task = JoinSet::new();
    task.spawn(watcher.watch(out));
    Watch { found, _task: task }
}
