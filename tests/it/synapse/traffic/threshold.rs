//! Who is kept although nobody announces it: the panic threshold, the last member, and a host that reaches nobody.

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::{TaskLaunch, TaskRegistry as _};
use hostkit_tests::wait_until;
use hostkit_tests::zookeeper::ServerSetMember as Member;

use super::super::rig::{Members, job};
use super::{Loads, alone, populate, serving, stage};

/// Members that nobody can connect to (RFC 5737 section 3): what a host sees whose network is broken.
fn unreachable(members: &Members, service: &str, count: u32) -> Vec<String> {
    let shards = 100..100 + count;
    let paths = shards.map(|shard| {
        let host = format!("192.0.2.{shard}");
        let member = Member {
            host: &host,
            shard,
            ports: &[("http", 80)],
        };
        members.announcer.announce(&job(service), &member)
    });
    paths.collect()
}

#[test]
fn members_that_left_serve_until_enough_of_the_new_ones_do() {
    let _alone = alone();
    let Some((rig, members, tasks, addresses)) = stage(HaproxyMode::Master, &["eightball"]) else {
        return;
    };
    let old = populate(&rig, &tasks, "eightball", 4);
    let loads = Loads::start(&[("eightball", addresses[0])]);
    let broken = unreachable(&members, "eightball", 4);
    wait_until("the new ones are probed", || {
        rig.of("eightball", "probing") == 4
    });
    for &serial in &old {
        members.leave(&tasks.announcement(serial));
    }
    // Half of the four that are announced.
    wait_until("two of the old are kept", || {
        rig.of("eightball", "held") == 2
    });
    wait_until("they serve", || rig.serving("eightball").len() == 2);
    loads.await_attempts(20);
    // One of them is gone: it is no longer kept.
    let dead = old.iter().find(|&&serial| {
        rig.serving("eightball")
            .contains(&tasks.announcement(serial).address.to_string())
    });
    tasks.stop(*dead.unwrap());
    wait_until("one is left", || rig.serving("eightball").len() == 1);
    loads.await_attempts(20);

    // Half of the eight that are announced.
    let new = populate_beside(&tasks, 4);
    serving(&rig, &tasks, "eightball", &new);
    wait_until("nobody is kept", || rig.of("eightball", "held") == 0);
    for path in broken {
        members.announcer.remove(&path);
    }
    loads.clean(&rig, "members that are kept");
}

/// Launches tasks of the service beside those there are.
fn populate_beside(tasks: &hostkit_tests::tasks::TaskPlayer, count: u32) -> Vec<u64> {
    (0..count)
        .map(|shard| tasks.launch(TaskLaunch::new("eightball", 50 + shard)))
        .collect()
}

#[test]
fn the_last_member_is_never_drained() {
    let _alone = alone();
    let Some((rig, members, tasks, addresses)) = stage(HaproxyMode::Master, &["eightball"]) else {
        return;
    };
    let old = populate(&rig, &tasks, "eightball", 2);
    let loads = Loads::start(&[("eightball", addresses[0])]);
    members.leave(&tasks.announcement(old[0]));
    serving(&rig, &tasks, "eightball", &old[1..]);
    // An empty list changes nothing.
    members.leave(&tasks.announcement(old[1]));
    loads.await_attempts(20);
    serving(&rig, &tasks, "eightball", &old[1..]);
    // One that cannot be reached takes nobody's place.
    let broken = unreachable(&members, "eightball", 1);
    wait_until("it is probed", || rig.of("eightball", "probing") == 1);
    loads.await_attempts(20);
    assert_eq!(rig.serving("eightball").len(), 1);
    members.announcer.remove(&broken[0]);
    let new = populate_beside(&tasks, 1);
    serving(&rig, &tasks, "eightball", &new);
    loads.clean(&rig, "the last member");
}
