//! The load generator and the player of tasks: they judge others, so here each is judged by the other, by servers that
//! do one thing wrong, and with the real HAProxy between the two.

mod front;
mod haproxy;
mod kinds;
mod player;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hostkit_tests::load::{ConnectionReuse, LoadPlan};
use hostkit_tests::tasks::{TaskAnnouncement, TaskRegistry, TaskSerial};

/// A load that is over soon, and heavy enough to meet what is looked for.
fn plan(target: SocketAddr, connections: ConnectionReuse) -> LoadPlan {
    LoadPlan {
        clients: 4,
        rate: 100.0,
        ..LoadPlan::new(target, "eightball", connections)
    }
}

/// What a registry was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Announce,
    Leave,
    Abandon,
}

/// A registry that only remembers.
#[derive(Debug, Default)]
struct Ledger(Mutex<Vec<(Told, TaskSerial)>>);

impl Ledger {
    /// All that was told of a task, in order.
    fn of(&self, serial: TaskSerial) -> Vec<Told> {
        let ledger = self.0.lock().unwrap();
        let own = ledger.iter().filter(|(_, task)| *task == serial);
        own.map(|(told, _)| *told).collect()
    }

    fn note(&self, told: Told, task: &TaskAnnouncement) {
        self.0.lock().unwrap().push((told, task.serial));
    }
}

impl TaskRegistry for Ledger {
    fn announce(&self, task: &TaskAnnouncement) {
        self.note(Told::Announce, task);
    }

    fn leave(&self, task: &TaskAnnouncement) {
        self.note(Told::Leave, task);
    }

    fn abandon(&self, task: &TaskAnnouncement) {
        self.note(Told::Abandon, task);
    }
}

fn ledger() -> Arc<Ledger> {
    Arc::default()
}
