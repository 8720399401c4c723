//! No request is lost: every attempt of a paced load is judged while members, structure and configuration change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hostkit_tests::eventually;
use hostkit_tests::haproxy::Mode;
use hostkit_tests::load::{Connections, Load, Plan, Report};
use hostkit_tests::tasks::{Job, Task, Tasks};

use super::rig::Rig;

static ALONE: Mutex<()> = Mutex::new(());

/// Loads share the machine with what they judge: one test of these at a time.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn smoke() {
    let _alone = alone();
    for mode in [Mode::Master, Mode::Daemon] {
        let Some(mut rig) = Rig::new(mode) else {
            return;
        };
        let address = rig.service("eightball");
        let members = rig.registry();
        let tasks = Tasks::start(1, members.clone());
        rig.start();
        for shard in 0..3 {
            tasks.launch(Task::new("eightball", shard));
        }
        eventually("they serve", || rig.serving("eightball").len() == 3);
        let load = Load::start(Plan::new(address, "eightball", Connections::Fresh));
        load.more(200);
        let report = load.stop();
        assert!(report.clean(), "{report}");
        println!("{report}\n{}\nreloads {}", rig.file(), rig.reloads());
        println!("{}", rig.log());
    }
}
