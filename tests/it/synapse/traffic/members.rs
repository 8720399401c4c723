//! Members come and go by the runtime API alone.

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::TaskRegistry as _;

use super::{Loads, alone, count, populate, serving, stage};

/// How many requests may be on their way to a member while it is asked how many it has had: one of each client.
const UNDER_WAY: u64 = 12;
const SERVICES: [&str; 3] = ["eightball", "search", "pings"];

/// Members that listen all the time leave and come back, several at a time, now at once and now later; what follows the
/// registry too slowly, too fast or in the wrong order loses requests or members.
#[test]
fn a_thousand_changes_lose_nothing() {
    let _alone = alone();
    let Some((rig, members, tasks, addresses)) = stage(HaproxyMode::Master, &SERVICES) else {
        return;
    };
    let all: Vec<Vec<_>> = SERVICES
        .iter()
        .map(|service| populate(&rig, &tasks, service, 5))
        .collect();
    let reloads = rig.reloads();
    let targets: Vec<_> = SERVICES.into_iter().zip(addresses).collect();
    let loads = Loads::start(&targets);
    let changes = count(150, 1000);
    let mut made = 0;
    let mut round = 0;
    while made < changes {
        let serials = &all[round % SERVICES.len()];
        // One, two or three of five.
        let away = &serials[round % 3..=round % 3 + round / 3 % 3];
        for &serial in away {
            members.leave(&tasks.announcement(serial));
        }
        // Back at once, while they drain, or when they are gone.
        match round % 4 {
            0 => {}
            1 => loads.await_attempts(3),
            _ => loads.await_attempts(20),
        }
        for &serial in away {
            members.announce(&tasks.announcement(serial));
        }
        made += 2 * away.len();
        round += 1;
    }
    for (service, serials) in SERVICES.iter().zip(&all) {
        serving(&rig, &tasks, service, serials);
    }
    // Whoever has left gets nothing new, although it would answer.
    let gone = all[0][0];
    members.leave(&tasks.announcement(gone));
    serving(&rig, &tasks, SERVICES[0], &all[0][1..]);
    let served = tasks.record(gone).served;
    loads.await_attempts(20);
    assert!(tasks.record(gone).served <= served + UNDER_WAY);
    loads.clean(&rig, &format!("{made} changes of membership"));
    assert_eq!(rig.reloads(), reloads, "{}", rig.log());
}

/// Killed (SIGKILL) while members come and go, and started again: nobody notices but the members that wait.
#[test]
fn a_killed_synapse_loses_nothing() {
    let _alone = alone();
    let Some((mut rig, members, tasks, addresses)) = stage(HaproxyMode::Master, &["eightball"])
    else {
        return;
    };
    let serials = populate(&rig, &tasks, "eightball", 4);
    let reloads = rig.reloads();
    let loads = Loads::start(&[("eightball", addresses[0])]);
    for round in 0..count(4, 50) {
        let gone = serials[round % serials.len()];
        members.leave(&tasks.announcement(gone));
        // At another moment each time.
        loads.await_attempts(round as u64 % 4);
        rig.kill();
        loads.await_attempts(4);
        members.announce(&tasks.announcement(gone));
        rig.run();
        serving(&rig, &tasks, "eightball", &serials);
    }
    loads.clean(&rig, "a synapse that is killed");
    assert_eq!(rig.reloads(), reloads, "{}", rig.log());
}
