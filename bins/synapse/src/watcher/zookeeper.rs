//! `method: zookeeper`: registrations below a path, or below every path that matches a pattern.
//!
//! Owns which ensemble that is, and publishing what [`hostkit::zookeeper`] knows of it; sessions, watches and payloads
//! are that module's, and what a registration becomes is `members`'.

mod members;

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hostkit::Failure;
use hostkit::zookeeper::{self, Ensemble, PathPattern, SessionPool};
use tokio::sync::watch;

use super::{Context, Found, Watcher, publish, single};
use crate::model::Discovered;
use crate::settings::{Cluster, Decode, ZookeeperDiscovery};

/// For how long a path whose members did not change is passed on as it was, with the time it was confirmed then: of a
/// thousand paths, a change of one must cost one.
const FRESH: Duration = Duration::from_secs(30);

/// Follows registrations.
#[derive(Debug)]
pub struct Zookeeper {
    discovery: ZookeeperDiscovery,
    sessions: SessionPool<Decode>,
    clusters: Vec<Cluster>,
}

type Kept = <Decode as zookeeper::MemberDecoder>::Output;
type Follow = zookeeper::SnapshotReceiver<Kept>;
type Tree = zookeeper::DiscoverySnapshot<Kept>;
type Node = zookeeper::PathNode<Kept>;

/// What a path was when it was last looked at, and what that became.
type Seen = BTreeMap<Arc<str>, (Arc<Node>, Arc<Discovered>)>;

impl Zookeeper {
    /// Follows `discovery`, with the session that the others of its ensemble have.
    #[must_use]
    pub fn new(discovery: ZookeeperDiscovery, context: &Context) -> Self {
        let of_ensemble = |cluster: &&Cluster| cluster.hosts == discovery.hosts;
        Self {
            sessions: context.sessions.clone(),
            clusters: context
                .clusters
                .iter()
                .filter(of_ensemble)
                .cloned()
                .collect(),
            discovery,
        }
    }

    /// Starts following the members and, where it stands elsewhere, the generator configuration.
    fn follow(&self) -> Result<(Follow, Option<Follow>), Failure> {
        // Two clusters of one ensemble may live below different chroots: that of the path's own cluster counts.
        let path = self.discovery.path.as_str();
        let own = self
            .clusters
            .iter()
            .find(|cluster| members::below(&cluster.root, path).is_some())
            .or_else(|| self.clusters.first());
        let ensemble = Ensemble::new(
            &self.discovery.hosts,
            own.and_then(|cluster| cluster.chroot.as_deref()),
            own.and_then(|cluster| cluster.digest.as_deref()),
        )?;
        let follow =
            self.sessions
                .follow(&ensemble, &PathPattern::new(path)?, &self.discovery.decode);
        let elsewhere = match &self.discovery.generator_config_path {
            // Its children are nobody's members: of a ServerSet most are not even read.
            Some(other) if other != path => Some(self.sessions.follow(
                &ensemble,
                &PathPattern::new(other)?,
                &Decode::ServerSet(None),
            )),
            _ => None,
        };
        Ok((follow, elsewhere))
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let (mut follow, mut elsewhere) = match self.follow() {
            Ok(follows) => follows,
            Err(failure) => {
                publish(
                    &out,
                    single(Discovered {
                        trouble: Some(failure.to_string()),
                        ..Discovered::default()
                    }),
                );
                return out.closed().await;
            }
        };
        let mut seen = Seen::new();
        loop {
            let tree = Arc::clone(&follow.borrow_and_update());
            let config = elsewhere
                .as_mut()
                .map(|follow| Arc::clone(&follow.borrow_and_update()));
            publish(&out, self.found(&tree, config.as_deref(), &mut seen));
            tokio::select! {
                () = changed(Some(&mut follow)) => {}
                () = changed(elsewhere.as_mut()) => {}
                () = out.closed() => return,
            }
        }
    }

    fn found(&self, tree: &Tree, elsewhere: Option<&Tree>, seen: &mut Seen) -> Found {
        let asking = |tree: &Tree| tree.synced_at.is_none() && tree.problem.is_none();
        // Members without their configuration would be a service that is about to change.
        if asking(tree) || elsewhere.is_some_and(asking) {
            return Found::new();
        }
        let trouble = tree
            .problem
            .as_ref()
            .or(elsewhere.and_then(|tree| tree.problem.as_ref()));
        if tree.synced_at.is_none() || tree.paths.is_empty() {
            seen.clear();
            return single(Discovered {
                synced: tree.synced_at,
                trouble: trouble.cloned(),
                ..Discovered::default()
            });
        }
        let config = elsewhere.map(|tree| {
            let node = tree.paths.values().next();
            node.and_then(|node| members::generator_config(&node.data))
        });
        let mut now = Seen::new();
        let mut found = Found::new();
        for (path, node) in &tree.paths {
            let before = seen.remove(path);
            let discovered = match &before {
                Some((before, known))
                    if Arc::ptr_eq(before, node)
                        && known.trouble.as_ref() == trouble
                        && is_fresh(known.synced, tree.synced_at)
                        && config
                            .as_ref()
                            .is_none_or(|config| known.generator_config == *config) =>
                {
                    Arc::clone(known)
                }
                _ => {
                    let mut discovered = self.discovered(path, node);
                    discovered.synced = tree.synced_at;
                    discovered.trouble = trouble.cloned().or(discovered.trouble);
                    if let Some(config) = &config {
                        discovered.generator_config.clone_from(config);
                    }
                    Arc::new(discovered)
                }
            };
            found.insert(path.to_string(), Arc::clone(&discovered));
            now.insert(Arc::clone(path), (Arc::clone(node), discovered));
        }
        *seen = now;
        found
    }

    /// What a path says of itself.
    fn discovered(&self, path: &Arc<str>, node: &Node) -> Discovered {
        let mut discovered = members::discovered(node);
        discovered.job = members::job(&self.clusters, &self.discovery.decode, path);
        if self.discovery.generator_config_path.as_deref() == Some(self.discovery.path.as_str()) {
            discovered.generator_config = members::generator_config(&node.data);
        }
        if !node.exists {
            discovered.trouble = Some(format!(
                "{path} does not exist: nothing has registered yet, or the path is wrong"
            ));
        }
        discovered
    }
}

impl Watcher for Zookeeper {
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.run(out))
    }
}

/// Whether what was confirmed at `then` may stand for what is confirmed `now`.
fn is_fresh(then: Option<Duration>, now: Option<Duration>) -> bool {
    then.zip(now)
        .is_some_and(|(then, now)| now.saturating_sub(then) < FRESH)
}

/// Waits until there is something new; for ever, where nothing is followed.
async fn changed(follow: Option<&mut Follow>) {
    if let Some(follow) = follow
        && follow.changed().await.is_ok()
    {
        return;
    }
    pending().await
}
