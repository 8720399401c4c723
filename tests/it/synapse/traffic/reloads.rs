//! Structure changes by reload, in both ways in which HAProxy can be run; what would not come up is not tried.

use std::net::TcpListener;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::TaskPlayer;
use hostkit_tests::{free_port, wait_until};
use serde_json::json;

use super::{Loads, Rig, alone, count, populate, stage};

/// Services come and go and slots are added; how often in each way.
fn reloads(mode: HaproxyMode) {
    let _alone = alone();
    let Some((mut rig, _members, tasks, addresses)) = stage(mode, &["eightball", "search"]) else {
        return;
    };
    let all = [
        populate(&rig, &tasks, "eightball", 3),
        populate(&rig, &tasks, "search", 3),
    ];
    let before = rig.reloads();
    let loads = Loads::start(&[("eightball", addresses[0]), ("search", addresses[1])]);
    let times = count(4, 25);
    for round in 0..times {
        let reloads = rig.reloads();
        match round % 4 {
            0 => drop(rig.service("pings")),
            1 => rig.without("pings"),
            2 => rig.config["services"]["search"]["slots"] = json!(16 + round),
            // Nobody says so here: there are too many for the slots there are.
            _ => more_than_fit(&rig, &tasks),
        }
        rig.reconfigure();
        wait_until("HAProxy is reloaded", || rig.reloads() > reloads);
        loads.await_attempts(10);
    }
    let way = format!("{} reloads, {mode:?}", rig.reloads() - before);
    loads.clean(&rig, &way);
    assert!(rig.reloads() >= before + times, "{}", rig.log());
    assert!(
        all.iter()
            .flatten()
            .all(|&serial| tasks.record(serial).served > 0)
    );
    let processes = match mode {
        HaproxyMode::Master => 2,
        HaproxyMode::Daemon => 1,
    };
    wait_until("workers of before have ended", || {
        rig.haproxy.processes().len() == processes
    });
}

/// Launches as many tasks as make slots grow.
fn more_than_fit(rig: &Rig, tasks: &TaskPlayer) {
    // HAProxy is asked: what synapse says of itself may be a second old.
    let slots = rig.servers()["eightball"].len() as u64;
    for shard in rig.serving("eightball").len() as u64..slots {
        tasks.launch(hostkit_tests::tasks::TaskLaunch::new(
            "eightball",
            shard.try_into().unwrap(),
        ));
    }
    wait_until("there are more slots", || {
        rig.of("eightball", "slots") > slots
    });
    wait_until("all serve", || {
        rig.serving("eightball").len() as u64 == slots
    });
}

#[test]
fn reloads_through_a_master_lose_nothing() {
    reloads(HaproxyMode::Master);
}

#[test]
fn reloads_by_a_new_process_lose_nothing() {
    reloads(HaproxyMode::Daemon);
}

/// `haproxy -c` does not see that a port is taken, and a reload would be an outage of seconds.
fn conflict(mode: HaproxyMode) {
    let _alone = alone();
    let Some((mut rig, _members, tasks, addresses)) = stage(mode, &["eightball"]) else {
        return;
    };
    populate(&rig, &tasks, "eightball", 3);
    let owner = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = owner.local_addr().unwrap().port();
    // It is written at most once a second.
    wait_until("the file has the members", || {
        rig.file().contains("slot 4-8 ")
    });
    let (file, reloads) = (rig.file(), rig.reloads());
    let loads = Loads::start(&[("eightball", addresses[0])]);

    rig.service("blocked");
    rig.config["services"]["blocked"]["haproxy"]["port"] = json!(port);
    rig.hangup();
    let holds = format!("process {} (", std::process::id());
    wait_until("the port's owner is named", || {
        why(&rig, "blocked").contains(&holds)
    });
    loads.await_attempts(20);
    let bind = format!(":{port}");
    assert_eq!(rig.reloads(), reloads, "{}", rig.log());
    assert_eq!(rig.file(), file, "the old file is in place");

    // It is in nobody else's way.
    rig.service("pings");
    rig.hangup();
    wait_until("the other new service is there", || {
        rig.backends().contains(&"pings".to_owned())
    });
    assert!(!rig.backends().contains(&"blocked".to_owned()) && !rig.file().contains(&bind));

    drop(owner);
    rig.reconfigure();
    assert!(rig.file().contains(&bind));
    wait_until("nothing is kept back", || why(&rig, "blocked").is_empty());
    loads.clean(&rig, &format!("a port that is taken, {mode:?}"));
}

/// Why a service is in quarantine; empty when it is not.
fn why(rig: &Rig, service: &str) -> String {
    let status = rig.status();
    let why = status["structure"]["quarantine"][service].as_str();
    why.unwrap_or_default().to_owned()
}

#[test]
fn a_port_that_is_taken_is_refused_before_a_master_reloads() {
    conflict(HaproxyMode::Master);
}

#[test]
fn a_port_that_is_taken_is_refused_before_a_new_process_starts() {
    conflict(HaproxyMode::Daemon);
}

#[test]
fn a_bad_line_keeps_its_own_service_back_and_no_other() {
    let _alone = alone();
    let Some((mut rig, _members, tasks, addresses)) =
        stage(HaproxyMode::Master, &["eightball", "search"])
    else {
        return;
    };
    populate(&rig, &tasks, "eightball", 3);
    populate(&rig, &tasks, "search", 3);
    let loads = Loads::start(&[("eightball", addresses[0]), ("search", addresses[1])]);

    rig.service("bad");
    rig.service("pings");
    for service in ["bad", "search"] {
        rig.config["services"][service]["haproxy"]["backend"] =
            json!(["balance no-such-algorithm"]);
    }
    rig.hangup();
    wait_until("the good service is there", || {
        rig.backends().contains(&"pings".to_owned())
    });
    for service in ["bad", "search"] {
        wait_until("the line is named", || {
            why(&rig, service).contains("no-such-algorithm")
        });
    }
    assert!(!rig.backends().contains(&"bad".to_owned()));
    assert_eq!(rig.serving("search").len(), 3, "it is as it was");
    populate(&rig, &tasks, "pings", 1);
    // What is kept back goes on to follow its members.
    let more = tasks.launch(hostkit_tests::tasks::TaskLaunch::new("search", 3));
    wait_until("a new member serves", || tasks.record(more).served > 0);

    for service in ["bad", "search"] {
        rig.config["services"][service]["haproxy"]["backend"] = json!(["balance leastconn"]);
    }
    rig.reconfigure();
    wait_until("nothing is kept back", || {
        ["bad", "search"]
            .iter()
            .all(|service| why(&rig, service).is_empty())
    });
    assert_eq!(rig.file().matches("balance leastconn").count(), 2);
    loads.clean(&rig, "a bad line");
}

/// What moves to another port is not refused for being there already.
#[test]
fn a_frontend_moves_to_another_port() {
    let _alone = alone();
    let Some((mut rig, _members, tasks, addresses)) =
        stage(HaproxyMode::Master, &["eightball", "search"])
    else {
        return;
    };
    populate(&rig, &tasks, "eightball", 2);
    populate(&rig, &tasks, "search", 2);
    let loads = Loads::start(&[("eightball", addresses[0])]);
    let port = free_port();
    rig.config["services"]["search"]["haproxy"]["port"] = json!(port);
    rig.hangup();
    wait_until("it listens there", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    wait_until("and no longer where it was", || {
        std::net::TcpStream::connect(addresses[1]).is_err()
    });
    loads.clean(&rig, "a frontend that moves");
}
