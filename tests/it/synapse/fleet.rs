//! Tasks that live and listen, announced in a rig's ZooKeeper, and what HAProxy should serve because of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostkit_tests::tasks::{TaskLaunch, TaskPlayer, TaskRegistry as _, TaskSerial};
use hostkit_tests::wait_until;
use hostkit_tests::zookeeper::AnnouncerSession;

use super::rig::{Members, Rig};

/// Tasks of any services, and who of them should get requests.
pub(super) struct Fleet {
    // First: it ends before its registry does.
    tasks: TaskPlayer,
    registry: Arc<Members>,
    pub(super) alive: BTreeMap<String, Vec<TaskSerial>>,
    shards: u32,
}

impl Fleet {
    /// No tasks yet, announced with a session of their own. Shards begin at `shards`, so that two fleets have others.
    pub(super) fn new(rig: &Rig, shards: u32) -> Self {
        let registry = rig.registry();
        Self {
            tasks: TaskPlayer::start(u64::from(shards) + 1, registry.clone()),
            registry,
            alive: BTreeMap::new(),
            shards,
        }
    }

    /// Starts `count` tasks of a service.
    pub(super) fn launch(&mut self, service: &str, count: usize) {
        for _ in 0..count {
            let serial = self.tasks.launch(TaskLaunch::new(service, self.shards));
            self.shards += 1;
            let of_service = self.alive.entry(service.to_owned()).or_default();
            of_service.push(serial);
        }
    }

    /// Stops the oldest task of a service: it leaves.
    pub(super) fn stop(&mut self, service: &str) {
        let serial = self.alive.get_mut(service).unwrap().remove(0);
        self.tasks.stop(serial);
    }

    /// Ends the oldest task of a service without leaving; returns where it was.
    pub(super) fn kill(&mut self, service: &str) -> String {
        let serial = self.alive.get_mut(service).unwrap().remove(0);
        self.tasks.kill(serial);
        self.endpoint(serial)
    }

    /// Takes the announcement of a task back; the task goes on.
    pub(super) fn remove_key(&self, serial: TaskSerial) {
        self.registry.leave(&self.tasks.announcement(serial));
    }

    /// Announces a task again.
    pub(super) fn announce(&self, serial: TaskSerial) {
        self.registry.announce(&self.tasks.announcement(serial));
    }

    /// The session that announces them.
    pub(super) fn announcer(&self) -> &AnnouncerSession {
        &self.registry.announcer
    }

    /// Where a task listens.
    pub(super) fn endpoint(&self, serial: TaskSerial) -> String {
        self.tasks.announcement(serial).address.to_string()
    }

    /// The endpoints of a service, sorted.
    pub(super) fn endpoints(&self, service: &str) -> Vec<String> {
        let serials = self.alive.get(service).into_iter().flatten();
        let mut endpoints: Vec<String> = serials.map(|serial| self.endpoint(*serial)).collect();
        endpoints.sort_unstable();
        endpoints
    }

    /// Whether HAProxy serves these tasks and no others.
    pub(super) fn is_served(&self, rig: &Rig) -> bool {
        self.alive
            .keys()
            .all(|service| rig.serving(service) == self.endpoints(service))
    }

    /// Returns when HAProxy serves these tasks and no others.
    pub(super) fn served(&self, rig: &Rig) {
        wait_until("HAProxy serves those who live", || self.is_served(rig));
    }

    /// Whether HAProxy's file has these tasks in its slots and no others; those who drain get nothing and do not count.
    pub(super) fn is_written(&self, rig: &Rig) -> bool {
        let mut found: Vec<String> = rig
            .file()
            .lines()
            .filter_map(|line| {
                let rest = line.trim_start().strip_prefix("server slot")?;
                let address = rest.split(' ').nth(1)?;
                let serves = !rest.contains(" disabled") && !rest.ends_with(" weight 0");
                serves.then(|| address.to_owned())
            })
            .collect();
        found.sort_unstable();
        let mut wanted: Vec<String> = self
            .alive
            .keys()
            .flat_map(|service| self.endpoints(service))
            .collect();
        wanted.sort_unstable();
        found == wanted
    }

    /// Returns when HAProxy's file has these tasks.
    pub(super) fn written(&self, rig: &Rig) {
        wait_until("HAProxy's file has those who live", || self.is_written(rig));
    }
}
