//! Discovery against real ZooKeeper servers. `follow` is what happens while all is well, `outage` what happens when a
//! server is away or another one, `old` a server without persistent watches, `load` many paths at once; `servers` tests
//! the harness.

mod follow;
mod load;
mod old;
mod outage;
mod servers;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use hostkit::zookeeper::{
    DiscoverySnapshot, Ensemble, EnsembleStats, MemberFormat, PathPattern, SessionOptions,
    SessionPool, SnapshotReceiver,
};
use hostkit_tests::wait_until;
use hostkit_tests::zookeeper::{AnnouncerSession, ServerSetMember, ZookeeperServer};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

const JOB: &str = "/aurora/www/prod/eightball";

/// A program that follows, in a thread of its own, on the runtime the tools have.
struct Program {
    sessions: SessionPool,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    fn start(options: SessionOptions) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (give, take) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            give.send(runtime.handle().clone()).unwrap();
            let _ = runtime.block_on(stopped);
        });
        Self {
            sessions: SessionPool::new(options),
            handle: take.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn follow(&self, ensemble: &Ensemble, pattern: &str, format: MemberFormat) -> SnapshotReceiver {
        let _inside = self.handle.enter();
        let pattern = PathPattern::new(pattern).unwrap();
        self.sessions.follow(ensemble, &pattern, &format)
    }

    /// Follows ServerSets of a server, and returns when all has been read.
    fn follow_now(&self, server: &ZookeeperServer, pattern: &str) -> SnapshotReceiver {
        let follow = self.follow(&ensemble(server), pattern, MemberFormat::ServerSet);
        wait_until("all is read", || tree(&follow).synced_at.is_some());
        follow
    }

    fn stats(&self) -> EnsembleStats {
        self.sessions.stats().remove(0)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sessions as short as the server grants, and no audit that could hide a lost event.
fn options() -> SessionOptions {
    SessionOptions {
        session_timeout: Duration::from_secs(5),
        audit: Duration::from_secs(3600),
        backoff_max: Duration::from_secs(1),
        ..SessionOptions::default()
    }
}

fn ensemble(server: &ZookeeperServer) -> Ensemble {
    Ensemble::new([server.host()], None, None).unwrap()
}

fn tree(follow: &SnapshotReceiver) -> Arc<DiscoverySnapshot> {
    Arc::clone(&follow.borrow())
}

/// The shards of a job that are registered, sorted, with repetitions.
fn shards(follow: &SnapshotReceiver, path: &str) -> Vec<u32> {
    let tree = tree(follow);
    let Some(node) = tree.paths.get(path) else {
        return Vec::new();
    };
    let members = node.members.values().filter_map(|child| child.member());
    let mut shards: Vec<u32> = members.filter_map(|member| member.shard).collect();
    shards.sort_unstable();
    shards
}

fn see(follow: &SnapshotReceiver, path: &str, expected: &[u32]) {
    wait_until(&format!("{path} has {expected:?}"), || {
        shards(follow, path) == expected
    });
}

fn announce(announcer: &AnnouncerSession, job: &str, shard: u32) -> String {
    let port = 31000 + u16::try_from(shard).unwrap();
    let ports = [("http", port), ("health", port + 500)];
    let task = ServerSetMember {
        host: "agent1.example.com",
        shard,
        ports: &ports,
    };
    announcer.announce(job, &task)
}
