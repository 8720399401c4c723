//! synapse killed at any moment, started without ZooKeeper, without its state, without room on a disk: HAProxy serves all
//! the while, and its file and the state are right again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::host::TmpfsMount;
use hostkit_tests::load::{ConnectionReuse, LoadGenerator, LoadPlan};
use hostkit_tests::{is_long_run, or_skip, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

use super::fleet::Fleet;
use super::rig::{Rig, Server};

/// One service with this many tasks, served and in the file.
fn stage(tasks: usize) -> Option<(Rig, Fleet, std::net::SocketAddr)> {
    let mut rig = Rig::new(HaproxyMode::Master)?;
    let address = rig.service("web");
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", tasks);
    rig.start();
    fleet.served(&rig);
    fleet.written(&rig);
    Some((rig, fleet, address))
}

/// Which server serves which endpoint.
fn placement(rig: &Rig) -> BTreeMap<String, String> {
    let servers = rig.servers().remove("web").unwrap();
    let serving = servers.into_iter().filter(Server::serves);
    serving
        .map(|server| (server.endpoint, server.name))
        .collect()
}

/// The files in the rig's directory that writes leave when they are cut off.
fn leftovers(rig: &Rig) -> Vec<String> {
    let names = fs::read_dir(rig.haproxy.directory()).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

#[test]
fn killed_at_any_moment_it_comes_back_right_and_reloads_nothing() {
    let Some((mut rig, mut fleet, _)) = stage(4) else {
        return;
    };
    let reloads = rig.reloads();
    let mut chance: u64 = 0x2545_f491_4f6c_dd1d;
    for round in 0..if is_long_run() { 200 } else { 20 } {
        fleet.stop("web");
        fleet.launch("web", 1);
        // A xorshift: what matters is that the moments are others every time.
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        // From before it hears of the change to after everything is written.
        std::thread::sleep(Duration::from_millis(chance % 400));
        rig.kill();
        let before = placement(&rig);
        rig.run();
        fleet.served(&rig);
        assert_eq!(rig.reloads(), reloads, "round {round}");
        // What was saved may be old; nobody is moved because of that.
        let after = placement(&rig);
        for (endpoint, server) in &before {
            let now = after.get(endpoint);
            assert!(
                now.is_none_or(|now| now == server),
                "round {round}: {before:?} {after:?}"
            );
        }
    }
    fleet.written(&rig);
    rig.stop();
    assert!(leftovers(&rig).is_empty(), "{:?}", leftovers(&rig));
    // The file alone is right, too.
    rig.haproxy.restart();
    fleet.served(&rig);
}

#[test]
fn without_zookeeper_the_file_is_made_from_the_state() {
    let Some((mut rig, fleet, _)) = stage(3) else {
        return;
    };
    let reloads = rig.reloads();
    rig.stop();
    rig.zookeeper.kill();
    fs::remove_file(rig.haproxy.config()).unwrap();
    for _ in 0..2 {
        rig.run();
        fleet.written(&rig);
        fleet.served(&rig);
        assert_eq!(rig.reloads(), reloads);
        rig.kill();
    }
    // What HAProxy comes up with is what was known.
    rig.haproxy.restart();
    fleet.served(&rig);
}

#[test]
fn without_its_state_nothing_that_haproxy_serves_is_touched() {
    let Some((mut rig, mut fleet, address)) = stage(3) else {
        return;
    };
    let reloads = rig.reloads();
    let load = LoadGenerator::start(LoadPlan::new(address, "web", ConnectionReuse::Fresh));
    for bytes in [Some(&b"{\"services\": {\"web"[..]), None] {
        rig.stop();
        match bytes {
            Some(bytes) => fs::write(rig.path("state.json"), bytes).unwrap(),
            None => fs::remove_file(rig.path("state.json")).unwrap(),
        }
        // At first ZooKeeper does not answer either.
        rig.zookeeper.pause();
        let file = rig.file();
        rig.run();
        assert_eq!(rig.of("web", "ready"), 0);
        load.await_attempts(50);
        assert_eq!(rig.file(), file);
        fleet.served(&rig);
        rig.zookeeper.resume();
        wait_until("they are known", || rig.of("web", "ready") == 3);
        fleet.served(&rig);
        assert_eq!(rig.reloads(), reloads);
    }
    assert!(rig.path("state.json.corrupt").is_file());
    let report = load.stop();
    assert!(report.clean(), "{report}");
    fleet.launch("web", 1);
    fleet.stop("web");
    fleet.served(&rig);
}

#[test]
fn a_full_disk_stops_no_change() {
    let (Some(mut rig), Some(disk)) = (
        Rig::new(HaproxyMode::Master),
        or_skip("a full disk", TmpfsMount::mount(256 << 10)),
    ) else {
        return;
    };
    rig.service("web");
    rig.config["haproxy"]["state_file_path"] = json!(disk.path().join("state.json"));
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 3);
    rig.start();
    fleet.served(&rig);
    fleet.written(&rig);
    let reloads = rig.reloads();

    let ballast = disk.path().join("ballast");
    fill(&ballast);
    fleet.launch("web", 1);
    fleet.stop("web");
    fleet.served(&rig);
    wait_until("it says so", || {
        let troubles = rig.status()["troubles"].to_string();
        troubles.contains("disk full") && rig.metric_of("synapse_file_writes_total", "failed") > 0.0
    });
    // HAProxy's file is elsewhere.
    fleet.written(&rig);

    fs::remove_file(&ballast).unwrap();
    let newest = fleet.endpoints("web");
    wait_until("the state is written", || {
        let state = fs::read_to_string(disk.path().join("state.json")).unwrap();
        newest.iter().all(|endpoint| {
            let port = endpoint.rsplit_once(':').unwrap().1;
            state.contains(port)
        })
    });
    assert_eq!(rig.reloads(), reloads);
}

#[test]
fn no_room_for_haproxys_file_stops_no_change() {
    let (Some(mut rig), Some(disk)) = (
        Rig::new(HaproxyMode::Master),
        or_skip("a full disk", TmpfsMount::mount(256 << 10)),
    ) else {
        return;
    };
    let config = disk.path().join("haproxy.cfg");
    std::os::unix::fs::symlink(&config, rig.haproxy.config()).unwrap();
    rig.service("web");
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 3);
    rig.start();
    fleet.served(&rig);
    fleet.written(&rig);
    assert!(rig.haproxy.config().is_symlink());

    let ballast = disk.path().join("ballast");
    fill(&ballast);
    let before = rig.file();
    fleet.launch("web", 1);
    fleet.stop("web");
    fleet.served(&rig);
    wait_until("it says so", || {
        rig.metric_of("synapse_file_writes_total", "failed") > 0.0
    });
    assert_eq!(rig.file(), before, "a whole file is in place");
    fs::remove_file(&ballast).unwrap();
    fleet.written(&rig);
    assert!(rig.haproxy.config().is_symlink());
}

/// Takes all that is left of a filesystem.
fn fill(ballast: &std::path::Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(ballast).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn told_to_stop_it_saves_its_state_and_leaves_haproxy_alone() {
    let Some((mut rig, mut fleet, _)) = stage(2) else {
        return;
    };
    fleet.launch("web", 1);
    fleet.served(&rig);
    let status = rig.end(&[Signal::SIGTERM]);
    assert_eq!(status.code(), Some(0));
    let state = fs::read_to_string(rig.path("state.json")).unwrap();
    for endpoint in fleet.endpoints("web") {
        assert!(
            state.contains(endpoint.rsplit_once(':').unwrap().1),
            "{state}"
        );
    }
    assert!(fleet.is_written(&rig));
    fleet.served(&rig);
}

#[test]
fn told_to_stop_twice_it_stops_at_once() {
    let Some((mut rig, _, _)) = stage(1) else {
        return;
    };
    let status = rig.end(&[Signal::SIGTERM, Signal::SIGINT]);
    assert!(status.signal().is_some(), "{status}");
}
