//! Servers' states over a reload: DOWN stays DOWN, and the file decides everything else.

use std::collections::BTreeSet;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::{free_port, wait_until};
use synapse::haproxy::live::Operation;
use synapse::haproxy::{Server, keep_in_step};
use synapse::membership::Admin;

use super::server::{Client, Named};
use super::{block_on, changed, head, proxies, socket, started, state};

/// A check that says nothing new during the test.
const SLOW: &str = "check inter 60s";

/// Takes a server down, as its check would.
fn down(haproxy: &hostkit_tests::haproxy::HaproxyInstance, name: &str) {
    haproxy.ask(&format!("set server b/{name} health down"));
    assert_eq!(state(haproxy, name).operation, Operation::Stopped);
}

#[test]
fn what_is_down_stays_down_and_what_is_new_is_not() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let (a, b) = (Named::start("A"), Named::start("B"));
        let lines = |second: u16| {
            format!(
                "    server slot1 127.0.0.1:{} id 1 {SLOW}\n    server slot2 127.0.0.1:{second} id 2 {SLOW}\n",
                a.port()
            )
        };
        let Some((haproxy, port, settings)) = started(mode, &lines(free_port())) else {
            return;
        };
        down(&haproxy, "slot1");
        down(&haproxy, "slot2");
        let text = format!(
            "{}{}",
            head(&haproxy, "two"),
            proxies(port, &lines(b.port()))
        );
        changed(&settings, &text, "two").unwrap();
        assert_eq!(state(&haproxy, "slot1").operation, Operation::Stopped);
        let second = state(&haproxy, "slot2");
        assert_eq!(
            (second.port, second.operation),
            (b.port(), Operation::Running)
        );
        assert_eq!(Client::connect(port).get("/"), "200 B");
    }
}

/// 2.6 takes the port from the state and the address from the file: an endpoint that nobody announced.
#[test]
fn a_file_that_says_otherwise_wins() {
    let lines = "    server-template slot 1-3 127.0.0.1:1 disabled\n";
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, lines) else {
        return;
    };
    let now = "set server b/slot1 addr 127.0.0.7 port 31007;set server b/slot1 state ready;\
               set server b/slot2 addr 127.0.0.8 port 31008;set server b/slot2 state ready;set server b/slot2 weight 3";
    haproxy.ask(now);
    let next = "    server slot1 127.0.0.9:31009 id 1\n    server slot2 127.0.0.8:31008 id 2 weight 77\n    \
                server slot3 127.0.0.1:1 id 3 disabled\n";
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, next));
    changed(&settings, &text, "two").unwrap();
    let first = state(&haproxy, "slot1");
    assert_eq!(first.address.unwrap().to_string(), "127.0.0.9");
    assert_eq!((first.port, first.operation), (31009, Operation::Running));
    assert_eq!(
        (
            state(&haproxy, "slot2").port,
            state(&haproxy, "slot2").weight
        ),
        (31008, 77)
    );
    assert_eq!(state(&haproxy, "slot3").admin.word(), Admin::Maint);
}

#[test]
fn what_was_set_at_run_time_survives_a_restart_when_the_file_is_kept_in_step() {
    let a = Named::start("A");
    let free =
        "    server slot1 127.0.0.1:1 id 1 disabled\n    server slot2 127.0.0.1:1 id 2 disabled\n";
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, free) else {
        return;
    };
    // A state of long ago, which nobody kept in step.
    let slot = Server::new("b", "slot1").unwrap();
    haproxy.ask(&format!(
        "set server {slot} addr 127.0.0.1 port 31000;set server {slot} state ready"
    ));
    let stale = block_on(socket(&haproxy).ask("show servers state")).unwrap();
    std::fs::write(&settings.server_state_file, format!("{stale}\n")).unwrap();

    haproxy.ask(&format!(
        "set server {slot} addr 127.0.0.1 port {}",
        a.port()
    ));
    let filled = free.replacen(
        "127.0.0.1:1 id 1 disabled",
        &format!("127.0.0.1:{} id 1", a.port()),
        1,
    );
    let text = format!("{}{}", head(&haproxy, "one"), proxies(port, &filled));
    let servers = block_on(socket(&haproxy).ask("show servers state")).unwrap();
    let ours = BTreeSet::from(["b".to_owned()]);
    block_on(keep_in_step(&settings, &text, &servers, &ours)).unwrap();
    haproxy.restart();
    assert_eq!(state(&haproxy, "slot1").port, a.port());
    wait_until("it serves", || Client::connect(port).get("/") == "200 A");
}

#[test]
fn foreign_servers_keep_what_was_set_at_run_time() {
    let Some((haproxy, port, settings)) =
        started(HaproxyMode::Daemon, "    server s 127.0.0.1:1\n")
    else {
        return;
    };
    let foreign = "backend manual\n    server m1 127.0.0.1:1\n    server m2 127.0.0.1:2\n";
    let text = |structure| {
        format!(
            "{}{}{foreign}",
            head(&haproxy, structure),
            proxies(port, "")
        )
    };
    changed(&settings, &text("two"), "two").unwrap();
    haproxy.ask("set server manual/m1 state maint;set server manual/m2 weight 0");
    changed(&settings, &text("three"), "three").unwrap();
    let text = haproxy.ask("show servers state manual").unwrap();
    let servers = synapse::haproxy::live::servers(&text).unwrap();
    assert!(servers[0].admin.forced_maint(), "{text}");
}
