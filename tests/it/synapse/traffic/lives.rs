//! Aurora's true order: announced, listening later, leaving and quitting together, some dying without leaving.

use std::time::Duration;

use hostkit_tests::haproxy::Mode;
use hostkit_tests::tasks::Job;

use super::{Loads, alone, count, serving, stage};

const SERVICES: [&str; 2] = ["eightball", "search"];
const INSTANCES: u32 = 12;

fn job(service: &str) -> Job {
    Job {
        service: service.to_owned(),
        instances: INSTANCES,
        batch: 3,
        // 1 to 20 s, twenty times as fast.
        listen_after: (Duration::from_millis(50), Duration::from_secs(1)),
        dies: 0.1,
        answer_after: Duration::from_millis(1),
    }
}

#[test]
fn rolling_updates_lose_nothing_and_need_no_reload() {
    let _alone = alone();
    let Some((tasks, _members, rig, addresses)) = stage(Mode::Master, &SERVICES) else {
        return;
    };
    let jobs = SERVICES.map(job);
    let mut running: Vec<_> = jobs.iter().map(|job| tasks.deploy(job)).collect();
    for (service, serials) in SERVICES.iter().zip(&running) {
        serving(&rig, &tasks, service, serials);
    }
    let reloads = rig.reloads();
    let targets: Vec<_> = SERVICES.into_iter().zip(addresses).collect();
    let loads = Loads::start(&targets);
    let lives = count(100, 1000);
    let rounds = lives / (INSTANCES as usize * SERVICES.len());
    for round in 0..=rounds {
        for (job, serials) in jobs.iter().zip(&mut running) {
            // As Aurora's own health checks: the batch is done when its tasks listen, whoever sends them requests.
            *serials = tasks.update(job, serials, |_| true);
        }
        println!("round {round} of {rounds}");
    }
    for (service, serials) in SERVICES.iter().zip(&running) {
        serving(&rig, &tasks, service, serials);
    }
    loads.clean(&rig, &format!("{} lives", tasks.records().len()));
    assert_eq!(rig.reloads(), reloads, "{}", rig.log());
}
