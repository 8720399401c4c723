//! HAProxy killed, cut off, told otherwise, reloaded by somebody else: it is found out and put right, and what is not
//! synapse's is left alone.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::{free_port, is_long_run, wait_until};
use serde_json::json;

use super::fleet::Fleet;
use super::rig::{Rig, Server, job};

/// One service with three tasks, served and in the file.
fn stage(configure: impl FnOnce(&mut Rig)) -> Option<(Rig, Fleet, SocketAddr)> {
    let mut rig = Rig::new(HaproxyMode::Master)?;
    let address = rig.service("web");
    configure(&mut rig);
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 3);
    rig.start();
    fleet.served(&rig);
    fleet.written(&rig);
    Some((rig, fleet, address))
}

/// The server of a backend that has this endpoint.
fn server_at(rig: &Rig, backend: &str, endpoint: &str) -> Server {
    let servers = rig.servers().remove(backend).unwrap();
    let mut found = servers.into_iter();
    found.find(|server| server.endpoint == endpoint).unwrap()
}

fn set(rig: &Rig, server: &str, what: &str) {
    rig.haproxy
        .ask(&format!("set server {server} {what}"))
        .unwrap();
}

#[test]
fn a_restarted_haproxy_is_brought_up_to_date() {
    let Some((rig, mut fleet, _)) = stage(|_| {}) else {
        return;
    };
    rig.haproxy.kill();
    wait_until("it is missed", || {
        rig.status()["haproxy"][0]["trouble"].is_string()
    });
    fleet.stop("web");
    fleet.launch("web", 2);
    fleet.written(&rig);
    rig.haproxy.run();
    fleet.served(&rig);
    assert_eq!(rig.reloads(), 0, "the file was right");

    // With an older file, and then with states that are older still.
    let file = rig.file();
    let states = rig.path("haproxy-servers.state");
    let dump = rig.haproxy.ask("show servers state").unwrap();
    fleet.stop("web");
    fleet.launch("web", 1);
    fleet.served(&rig);
    rig.haproxy.kill();
    fs::write(&states, dump).unwrap();
    rig.haproxy.write(&file);
    rig.haproxy.run();
    fleet.served(&rig);
    rig.haproxy.kill();
    fs::write(&states, "").unwrap();
    rig.haproxy.run();
    fleet.served(&rig);
    fleet.written(&rig);
    assert_eq!(rig.reloads(), 0);
}

#[test]
fn without_its_socket_haproxy_serves_on_and_is_found_again() {
    let Some((rig, mut fleet, _)) = stage(|_| {}) else {
        return;
    };
    fs::remove_file(rig.haproxy.socket()).unwrap();
    wait_until("it is missed", || {
        rig.metric_of("synapse_socket_errors_total", "missing") > 0.0
    });
    fleet.launch("web", 1);
    fleet.stop("web");
    fleet.written(&rig);
    wait_until("whoever drains is not waited for for ever", || {
        rig.of("web", "draining") == 0 && rig.of("web", "ready") == 3
    });
    rig.haproxy.restart();
    fleet.served(&rig);
    assert_eq!(rig.reloads(), 0);
    wait_until("nothing is wrong", || {
        rig.status()["haproxy"][0]["trouble"].is_null()
    });
}

#[test]
fn what_somebody_tells_haproxy_is_put_right_and_what_is_not_ours_is_left() {
    let by_hand = free_port();
    let Some((rig, fleet, _)) = stage(|rig| {
        rig.config["haproxy"]["extra_sections"] = json!({
            "backend manual": [format!("server m1 127.0.0.1:{by_hand} weight 10")],
        });
        // HAProxy's name for it is another one.
        rig.config["services"]["web"]["haproxy"]["backend_name"] = json!("pool");
    }) else {
        return;
    };
    let reloads = rig.reloads();
    let endpoints = fleet.endpoints("web");
    let [one, two, three] = &endpoints[..] else {
        panic!("{endpoints:?}")
    };
    set(&rig, "manual/m1", "weight 3");
    set(&rig, "manual/m1", "state drain");
    let servers = [one, two, three].map(|endpoint| server_at(&rig, "pool", endpoint));
    let names = servers.map(|server| format!("pool/{}", server.name));
    set(&rig, &names[0], "state maint");
    set(&rig, &names[1], "addr 127.0.0.9 port 9");
    set(&rig, &names[2], "weight 7");
    // A free one, too.
    set(&rig, "pool/slot8", "addr 127.0.0.9 port 9");
    set(&rig, "pool/slot8", "state ready");
    wait_until("all is put right", || {
        let servers = rig.servers().remove("pool").unwrap();
        let serving: Vec<&Server> = servers.iter().filter(|server| server.serves()).collect();
        rig.serving("pool") == endpoints
            && serving.iter().all(|server| server.weight == 1)
            && servers
                .iter()
                .all(|server| server.endpoint != "127.0.0.9:9")
    });
    assert!(rig.metric("synapse_drift_repaired_total") >= 1.0);
    let manual = server_at(&rig, "manual", &format!("127.0.0.1:{by_hand}"));
    assert_eq!((manual.weight, manual.admin), (3, 8));
    assert_eq!(rig.reloads(), reloads);
}

#[test]
fn a_reload_by_somebody_else_changes_nothing_and_asks_for_none() {
    let Some((rig, mut fleet, _)) = stage(|_| {}) else {
        return;
    };
    let reloads = rig.reloads();
    let before = rig.metric("synapse_reloads_total");
    let worker = rig.haproxy.worker();
    let _ = rig.haproxy.ask_master("reload");
    wait_until("another worker serves", || {
        rig.reloads() == reloads + 1 && rig.haproxy.worker() != worker
    });
    let pid = rig.haproxy.worker();
    wait_until("synapse has seen it", || {
        rig.status()["haproxy"][0]["pid"] == pid
    });
    fleet.served(&rig);
    fleet.stop("web");
    fleet.launch("web", 1);
    fleet.served(&rig);
    fleet.written(&rig);
    assert_eq!(rig.reloads(), reloads + 1);
    assert!((rig.metric("synapse_reloads_total") - before).abs() < 0.5);
}

#[test]
fn without_the_runtime_api_members_come_by_reload() {
    let Some((rig, mut fleet, _)) = stage(|rig| {
        rig.config["haproxy"]["do_socket"] = json!(false);
    }) else {
        return;
    };
    let reloads = rig.reloads();
    fleet.launch("web", 1);
    fleet.served(&rig);
    assert!(rig.reloads() > reloads);
    fleet.stop("web");
    fleet.served(&rig);
    fleet.written(&rig);
}

#[test]
fn a_file_that_somebody_else_writes_is_left_to_them() {
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    rig.service("web");
    rig.config["haproxy"]["do_writes"] = json!(false);
    rig.config["haproxy"]["do_reloads"] = json!(false);
    let file = format!(
        "{}backend web\n    server-template slot 1-8 127.0.0.1:1 disabled\n",
        rig.haproxy.head()
    );
    rig.haproxy.write(&file);
    rig.haproxy.run();
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 3);
    rig.run();
    fleet.served(&rig);
    fleet.stop("web");
    fleet.launch("web", 1);
    fleet.served(&rig);
    // Somebody reloads it: the file knows nobody.
    let _ = rig.haproxy.ask_master("reload");
    fleet.served(&rig);
    rig.haproxy.restart();
    fleet.served(&rig);
    assert_eq!(rig.file(), file);
    assert_eq!(rig.reloads(), 0);
}

#[test]
fn two_sockets_are_both_kept_in_step() {
    let Some(other) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    let socket = other.haproxy.socket();
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    rig.service("web");
    rig.config["haproxy"]["socket_file_path"] = json!([rig.haproxy.socket(), socket]);
    rig.config["haproxy"]["do_writes"] = json!(false);
    rig.config["haproxy"]["do_reloads"] = json!(false);
    for haproxy in [&rig.haproxy, &other.haproxy] {
        haproxy.write(&format!(
            "{}backend web\n    server-template slot 1-8 127.0.0.1:1 disabled\n",
            haproxy.head()
        ));
        haproxy.run();
    }
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 2);
    rig.run();
    for changed in [false, true] {
        if changed {
            fleet.stop("web");
            fleet.launch("web", 1);
        }
        fleet.served(&rig);
        fleet.served(&other);
    }
    // One of them away does not hold up the other.
    other.haproxy.kill();
    fleet.launch("web", 1);
    fleet.served(&rig);
    other.haproxy.run();
    fleet.served(&other);
}

#[test]
fn a_storm_of_changes_is_told_in_few_batches() {
    let Some((rig, fleet, _)) = stage(|rig| {
        // Nobody listens: what is told is what counts.
        rig.config["services"]["web"]["probe"] = json!("none");
        rig.config["services"]["web"]["slots"] = json!(512);
        let proxy = rig.config["services"]["web"]["haproxy"].as_object_mut();
        proxy.unwrap().remove("server_options");
    }) else {
        return;
    };
    let reloads = rig.reloads();
    let before = rig.metric("synapse_runtime_batches_total");
    let announcer = &fleet.announcer();
    let payload = |port: u16| {
        json!({
            "status": "ALIVE", "shard": port, "additionalEndpoints": {"http": {"host": "127.9.9.9", "port": port}},
            "serviceEndpoint": {"host": "127.9.9.9", "port": port},
        })
    };
    let path = job("web");
    let length = Duration::from_secs(if is_long_run() { 60 } else { 5 });
    let start = Instant::now();
    let mut changes = 0u32;
    let mut there = std::collections::VecDeque::new();
    while start.elapsed() < length {
        // Ten go and ten come, fifty times in two seconds.
        let gone: Vec<String> = there.drain(..there.len().min(10)).collect();
        for member in &gone {
            announcer.remove(member);
        }
        let fresh = (0..10u32)
            .map(|n| {
                let port = 10_000 + u16::try_from((changes + n) % 50_000).unwrap();
                (
                    path.clone(),
                    "member_".to_owned(),
                    payload(port).to_string().into_bytes(),
                )
            })
            .collect();
        there.extend(announcer.register_all(fresh));
        changes += 20;
        let due = Duration::from_secs_f64(f64::from(changes) / 500.0);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    for member in there {
        announcer.remove(&member);
    }
    fleet.served(&rig);
    let batches = rig.metric("synapse_runtime_batches_total") - before;
    let seconds = start.elapsed().as_secs_f64();
    println!("{changes} changes, {batches} batches, {seconds:.1} s in all");
    // They come in bursts of twenty, 25 a second: more often than that nobody is told.
    assert!(
        batches * 20.0 <= f64::from(changes),
        "{batches} in {seconds} s"
    );
    wait_until("no slot is left over", || rig.of("web", "draining") == 0);
    assert_eq!(rig.reloads(), reloads);
}
