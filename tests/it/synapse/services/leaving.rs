//! Members that leave while they serve, and those that nobody can prove.

use std::net::SocketAddr;

use ::synapse::membership::table::PATIENCE;
use hostkit_tests::{free_port, is_long_run, wait_limit, wait_until, wait_within};
use serde_json::json;

use super::{Stage, section};
use crate::haproxy::server::{Client, Named};

const JOB: &str = "/aurora/www/prod/web";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn who_leaves_gets_nothing_new_and_finishes_what_it_has() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let port = free_port();
    stage.add(
        "web",
        json!({"discovery": stage.serverset(JOB), "haproxy": section(port)}),
    );
    let servers = ["A", "B"].map(|name| (name, Named::start(name)));
    let paths = [0, 1].map(|at| stage.announce(JOB, at as u32, local(servers[at].1.port())));
    stage.rig.start();
    stage.serves("web", &[0, 1].map(|at: usize| local(servers[at].1.port())));

    let mut client = Client::connect(port);
    client.ask("/hold");
    let mut holds = None;
    wait_until("a request is held", || {
        holds = servers.iter().position(|(_, server)| server.held() == 1);
        holds.is_some()
    });
    let leaver = holds.unwrap();
    let (stays, goes) = (&servers[1 - leaver], &servers[leaver]);
    stage.announcer.remove(&paths[leaver]);
    stage.serves("web", &[local(stays.1.port())]);
    for _ in 0..20 {
        assert_eq!(Client::connect(port).get("/"), format!("200 {}", stays.0));
    }
    // A newcomer gets another slot: this one still serves.
    let newcomer = stage.task("web");
    stage.announce(JOB, 2, newcomer);
    stage.serves("web", &[local(stays.1.port()), newcomer]);
    let endpoint = local(goes.1.port()).to_string();
    let has = |stage: &Stage| {
        let mut servers = stage.rig.servers().remove("web").unwrap().into_iter();
        servers.any(|server| server.endpoint == endpoint)
    };
    assert!(has(&stage));
    goes.1.release();
    assert_eq!(client.answer(), format!("200 {}", goes.0));
    drop(client);
    wait_until("its slot is free", || !has(&stage));
}

/// It may be this host that reaches nobody: half a minute of patience cannot be had faster.
#[test]
fn after_half_a_minute_members_take_part_unproven() {
    if !is_long_run() {
        return;
    }
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.add(
        "web",
        json!({"discovery": stage.serverset(JOB), "haproxy": section(free_port())}),
    );
    let silent = [free_port(), free_port(), free_port()].map(local);
    for (shard, address) in (0..).zip(silent) {
        stage.announce(JOB, shard, address);
    }
    stage.rig.start();
    wait_until("they are waited for", || {
        stage.rig.of("web", "probing") == 3
    });
    assert!(stage.rig.serving("web").is_empty());
    // As many as `panic_threshold` (50 %) of three needs.
    let longest = PATIENCE + wait_limit();
    assert!(
        wait_within(longest, || stage.rig.serving("web").len() == 2),
        "nobody takes part"
    );
}
