//! ZooKeeper killed, away, replaced, stopped, slow, cut off: nobody is removed by silence, and every change is followed
//! once it can be.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::wait_until;
use serde_json::json;

use super::fleet::Fleet;
use super::rig::Rig;

/// A rig with these services, three tasks each, all served.
fn stage(services: &[&str]) -> Option<(Rig, Fleet)> {
    let mut rig = Rig::new(HaproxyMode::Master)?;
    for service in services {
        rig.service(service);
    }
    let mut fleet = Fleet::new(&rig, 0);
    for service in services {
        fleet.launch(service, 3);
    }
    rig.start();
    fleet.served(&rig);
    Some((rig, fleet))
}

fn is_connected(rig: &Rig) -> bool {
    rig.status()["zookeeper"][0]["state"] == "connected"
}

fn lost(rig: &Rig) {
    wait_until("the connection is lost", || !is_connected(rig));
}

/// Announces one more task of `web` in a session of its own, because those before may not have survived, and waits until
/// it is served.
fn newcomer(rig: &Rig) -> (Fleet, String) {
    let mut others = Fleet::new(rig, 100);
    others.launch("web", 1);
    let endpoint = others.endpoints("web")[0].clone();
    wait_until("the newcomer is served", || {
        rig.serving("web").contains(&endpoint)
    });
    (others, endpoint)
}

#[test]
fn a_restarted_server_is_followed_again() {
    let Some((mut rig, mut fleet)) = stage(&["web"]) else {
        return;
    };
    let reloads = rig.reloads();
    for _ in 0..2 {
        rig.zookeeper.kill();
        lost(&rig);
        assert!(fleet.is_served(&rig));
        rig.zookeeper.restart();
        wait_until("the connection is back", || is_connected(&rig));
        let (mut others, endpoint) = newcomer(&rig);
        others.stop("web");
        wait_until("it has left", || !rig.serving("web").contains(&endpoint));
    }
    assert_eq!(rig.reloads(), reloads);
    fleet.alive.clear();
}

#[test]
fn an_outage_longer_than_the_session_removes_nobody() {
    let Some((mut rig, fleet)) = stage(&["web"]) else {
        return;
    };
    rig.zookeeper.kill();
    wait_until("the session is given up", || {
        rig.metric("synapse_zookeeper_expirations_total") > 0.0
    });
    assert!(fleet.is_served(&rig));
    assert!(rig.status()["services"]["web"]["trouble"].is_string());
    rig.zookeeper.restart();
    newcomer(&rig);
}

#[test]
fn of_an_empty_ensemble_only_additions_are_believed() {
    let services = ["a", "b", "c", "d"];
    let Some((mut rig, fleet)) = stage(&services) else {
        return;
    };
    rig.zookeeper.restart_empty();
    let mut others = Fleet::new(&rig, 100);
    others.launch("a", 1);
    let newcomer = &others.endpoints("a")[0];
    // As many as are missing are kept beside it.
    wait_until("the newcomer is served beside two of before", || {
        let serving = rig.serving("a");
        serving.contains(newcomer) && serving.len() == 3
    });
    for service in &services[1..] {
        assert_eq!(rig.serving(service), fleet.endpoints(service));
    }
    // Also when synapse is killed meanwhile.
    rig.kill();
    rig.run();
    wait_until("ZooKeeper has answered", || {
        rig.status()["services"]["a"]["age_seconds"].is_number()
    });
    wait_until("the members are held", || {
        rig.metric("synapse_held_removals") > 0.0
    });
    assert_eq!(rig.serving("a").len(), 3);
    for service in &services[1..] {
        assert_eq!(rig.serving(service), fleet.endpoints(service));
    }
}

#[test]
fn a_server_that_stopped_answering_is_as_good_as_away() {
    let Some((rig, mut fleet)) = stage(&["web"]) else {
        return;
    };
    rig.zookeeper.pause();
    lost(&rig);
    assert!(fleet.is_served(&rig));
    rig.zookeeper.resume();
    wait_until("the connection is back", || is_connected(&rig));
    newcomer(&rig);
    fleet.alive.clear();
}

/// Forwards connections, late or not at all.
struct Relay {
    port: u16,
    delay: Arc<AtomicU64>,
    cut: Arc<AtomicBool>,
}

impl Relay {
    fn start(target: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            delay: Arc::default(),
            cut: Arc::default(),
        };
        let (delay, cut) = (Arc::clone(&relay.delay), Arc::clone(&relay.cut));
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (delay, cut) = (Arc::clone(&delay), Arc::clone(&cut));
                    thread::spawn(move || forward(from, to, &delay, &cut));
                }
            }
        });
        relay
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, delay: &AtomicU64, cut: &AtomicBool) {
    let mut buffer = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        thread::sleep(Duration::from_millis(delay.load(Ordering::Relaxed)));
        // What is cut off is never told so.
        if !cut.load(Ordering::Relaxed) && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_slow_and_then_a_parted_network_delays_changes_and_loses_none() {
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    rig.service("web");
    let relay = Relay::start(rig.zookeeper.host());
    let host = format!("127.0.0.1:{}", relay.port);
    rig.config["services"]["web"]["discovery"]["hosts"] = json!([host]);
    relay.delay.store(100, Ordering::Relaxed);
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("web", 2);
    rig.start();
    fleet.served(&rig);
    fleet.launch("web", 1);
    fleet.served(&rig);

    relay.cut.store(true, Ordering::Relaxed);
    lost(&rig);
    let before = rig.serving("web");
    fleet.launch("web", 1);
    fleet.stop("web");
    assert_eq!(rig.serving("web").len(), before.len());
    relay.cut.store(false, Ordering::Relaxed);
    relay.delay.store(0, Ordering::Relaxed);
    fleet.served(&rig);
}
