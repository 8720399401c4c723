//! Aurora's true order: announced, listening later, leaving and quitting together, some dying without leaving.

use std::time::Duration;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::{RollingJob, TaskPlayer};
use serde_json::json;

use super::{Loads, Rig, alone, count, serving};

const SERVICES: [&str; 2] = ["eightball", "search"];
const INSTANCES: u32 = 12;

fn job(service: &str) -> RollingJob {
    RollingJob {
        service: service.to_owned(),
        instances: INSTANCES,
        // Half of them at once (`--batch-size=6`).
        batch: 6,
        // 1 to 20 s, twenty times as fast.
        listen_after: (Duration::from_millis(50), Duration::from_secs(1)),
        dies: 0.1,
        answer_after: Duration::from_millis(1),
    }
}

/// Rolling updates of two jobs under load, as many as it takes for so many lives.
fn updates(lives: usize, configure: impl Fn(&mut Rig)) {
    let _alone = alone();
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    let addresses = SERVICES.map(|service| rig.service(service));
    configure(&mut rig);
    rig.start();
    let tasks = TaskPlayer::start(1, rig.registry());
    let jobs = SERVICES.map(job);
    let mut running = jobs.each_ref().map(|job| tasks.deploy(job));
    for (service, serials) in SERVICES.iter().zip(&running) {
        serving(&rig, &tasks, service, serials);
    }
    let reloads = rig.reloads();
    let targets: Vec<_> = SERVICES.into_iter().zip(addresses).collect();
    let loads = Loads::start(&targets);
    while tasks.records().len() < lives {
        let pairs = jobs.iter().zip(&mut running);
        std::thread::scope(|scope| {
            for (job, serials) in pairs {
                let tasks = &tasks;
                // As Aurora's own health checks: a batch is done when its tasks listen, whoever sends them requests.
                scope.spawn(move || *serials = tasks.update(job, serials, |_| true));
            }
        });
    }
    for (service, serials) in SERVICES.iter().zip(&running) {
        serving(&rig, &tasks, service, serials);
    }
    let records = tasks.records();
    let died = records
        .iter()
        .filter(|record| record.died.is_some())
        .count();
    let what = format!(
        "{} lives, of which {died} died without leaving",
        records.len()
    );
    loads.clean(&rig, &what);
    assert!(died > 0);
    assert_eq!(rig.reloads(), reloads, "{}", rig.log());
}

#[test]
fn rolling_updates_lose_nothing_and_need_no_reload() {
    updates(count(100, 1000), |_| {});
}

#[test]
fn rolling_updates_of_named_servers_need_none_either() {
    updates(count(50, 500), |rig| {
        for service in SERVICES {
            rig.config["services"][service]["servers"] = json!("named");
        }
    });
}
