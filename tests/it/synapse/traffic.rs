//! No request is lost: every attempt of a paced load is judged while members, structure and configuration change.

mod lives;
mod members;
mod reloads;
mod repeats;
mod threshold;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::load::{ConnectionReuse, LoadGenerator, LoadPlan};
use hostkit_tests::tasks::{TaskLaunch, TaskPlayer, TaskSerial};
use hostkit_tests::{is_long_run, wait_until};

use super::rig::{Members, Rig};

static ALONE: Mutex<()> = Mutex::new(());

/// Loads share the machine with what they judge: one test of these at a time.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of something there are, in a normal and in a long run.
fn count(normal: usize, many: usize) -> usize {
    if is_long_run() { many } else { normal }
}

/// A rig with these services and where their frontends are, synapse running, and a player of tasks. In this order, so
/// that the player ends before ZooKeeper does.
fn stage(
    mode: HaproxyMode,
    services: &[&str],
) -> Option<(Rig, Arc<Members>, TaskPlayer, Vec<SocketAddr>)> {
    let mut rig = Rig::new(mode)?;
    let addresses = services.iter().map(|name| rig.service(name)).collect();
    rig.start();
    let members = rig.registry();
    let tasks = TaskPlayer::start(1, members.clone());
    Some((rig, members, tasks, addresses))
}

/// Launches tasks that listen at once, and returns when HAProxy sends them requests.
fn populate(rig: &Rig, tasks: &TaskPlayer, service: &str, count: u32) -> Vec<TaskSerial> {
    let serials: Vec<TaskSerial> = (0..count)
        .map(|shard| tasks.launch(TaskLaunch::new(service, shard)))
        .collect();
    serving(rig, tasks, service, &serials);
    serials
}

/// Returns when these tasks get requests, and nobody else.
fn serving(rig: &Rig, tasks: &TaskPlayer, service: &str, serials: &[TaskSerial]) {
    let mut wanted: Vec<String> = serials
        .iter()
        .map(|&serial| tasks.announcement(serial).address.to_string())
        .collect();
    wanted.sort_unstable();
    let mut found = Vec::new();
    wait_until(&format!("{service}: {wanted:?} serve"), || {
        found = rig.serving(service);
        found == wanted
    });
}

/// Requests to services, over fresh and over kept connections.
struct Loads(Vec<(String, LoadGenerator)>);

impl Loads {
    fn start(services: &[(&str, SocketAddr)]) -> Self {
        let both = [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive];
        let loads = services.iter().flat_map(|&(service, target)| {
            both.map(|connections| {
                let plan = LoadPlan {
                    clients: 6,
                    rate: 40.0,
                    ..LoadPlan::new(target, service, connections)
                };
                (
                    format!("{service} {connections:?}"),
                    LoadGenerator::start(plan),
                )
            })
        });
        let loads = Self(loads.collect());
        loads.await_attempts(50);
        loads
    }

    /// Returns when each has made `count` more attempts.
    fn await_attempts(&self, count: u64) {
        for (_, load) in &self.0 {
            load.await_attempts(count);
        }
    }

    /// Ends them all.
    ///
    /// # Panics
    /// Any attempt failed.
    #[track_caller]
    #[expect(clippy::print_stdout, reason = "the numbers of a run that is good")]
    fn clean(self, rig: &Rig, what: &str) {
        self.await_attempts(50);
        let mut failed = String::new();
        let mut attempts = 0;
        for (name, load) in self.0 {
            let report = load.stop();
            attempts += report.attempts;
            if !report.clean() {
                failed.push_str(&format!("{name}: {report}"));
            }
        }
        assert!(failed.is_empty(), "{what}:\n{failed}\n{}", rig.log());
        println!("{what}: 0 of {attempts} attempts failed");
    }
}
