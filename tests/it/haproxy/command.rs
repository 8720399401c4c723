//! Runtime commands: what a slot's server does before, while and after its occupant changes. The reasons for the order
//! of commands and for waiting until a slot is quiet are asserted here, as facts of HAProxy.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode};
use hostkit_tests::{free_port, wait_until};
use synapse::haproxy::command::Quiet;
use synapse::haproxy::live::{CheckResult, Operation};
use synapse::haproxy::{Features, Reply, Server, live};
use synapse::membership::{Admin, Occupant};
use synapse::model::Backend;
use synapse::planner::{self, NOWHERE};

use super::server::{Client, Named};
use super::{block_on, info, socket, started, state};

fn occupant(port: u16, weight: Option<u16>, admin: Admin) -> Occupant {
    Occupant {
        backend: Arc::new(Backend::new("127.0.0.1", port, "test").unwrap()),
        address: "127.0.0.1".parse().unwrap(),
        weight,
        admin,
    }
}

fn slot(number: usize) -> Server {
    Server::new("b", &planner::slot(number - 1)).unwrap()
}

/// An occupant comes into a slot, as the planner has it: from maintenance, and made what it should be last.
fn fill(number: usize, port: u16, weight: Option<u16>, admin: Admin) -> Vec<String> {
    let slot = slot(number);
    let mut commands = vec![
        slot.state(Admin::Maint),
        slot.address(Ipv4Addr::LOCALHOST.into(), port),
        slot.weight(weight),
    ];
    commands.extend((admin != Admin::Maint).then(|| slot.state(admin)));
    commands
}

fn free(number: usize) -> Vec<String> {
    let slot = slot(number);
    vec![slot.state(Admin::Maint), slot.address(NOWHERE.0, NOWHERE.1)]
}

/// Sends the commands; all must be done.
#[track_caller]
fn done(haproxy: &HaproxyInstance, commands: &[String]) {
    for (command, reply) in commands.iter().zip(replies(haproxy, commands)) {
        assert_eq!(reply, Reply::Done, "{command}");
    }
}

fn replies(haproxy: &HaproxyInstance, commands: &[String]) -> Vec<Reply> {
    let replies = block_on(socket(haproxy).batch(commands)).unwrap();
    replies.iter().map(|reply| Reply::of(reply)).collect()
}

fn quiet(haproxy: &HaproxyInstance, name: &str) -> Quiet {
    let server = state(haproxy, name);
    let commands = [
        "show servers conn b".to_owned(),
        format!("show stat {} 4 {}", server.backend_id, server.id),
    ];
    let replies = block_on(socket(haproxy).batch(&commands)).unwrap();
    Quiet {
        connections: live::connections(&replies[0]).unwrap()[&server.name()],
        sessions: live::sessions(&replies[1]).unwrap().unwrap(),
    }
}

const CHECKED: &str =
    "    server-template slot 1-4 127.0.0.1:1 check inter 50ms weight 7 disabled\n";
const PLAIN: &str = "    server-template slot 1-4 127.0.0.1:1 disabled\n";

#[test]
fn a_slot_is_filled_drained_and_freed() {
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, CHECKED) else {
        return;
    };
    let server = Named::start("A");
    done(&haproxy, &fill(1, server.port(), Some(50), Admin::Ready));
    let found = state(&haproxy, "slot1");
    assert_eq!((found.port, found.weight), (server.port(), 50));
    assert!(found.serves(), "at once, before any check: {found:?}");
    assert_eq!(Client::connect(port).get("/"), "200 A");
    wait_until("its check passes", || {
        state(&haproxy, "slot1").check == CheckResult::Passed
    });

    done(&haproxy, &[slot(1).state(Admin::Drain)]);
    let found = state(&haproxy, "slot1");
    assert_eq!(found.admin.word(), Admin::Drain);
    assert_eq!(
        Client::connect(port).get("/").split(' ').next(),
        Some("503")
    );

    done(&haproxy, &free(1));
    let found = state(&haproxy, "slot1");
    assert_eq!((found.address, found.port), (Some(NOWHERE.0), NOWHERE.1));
    assert_eq!(found.admin.word(), Admin::Maint);
    assert_eq!(found.weight, 50, "it outlasts the occupant");
    done(&haproxy, &fill(1, server.port(), None, Admin::Drain));
    let found = state(&haproxy, "slot1");
    assert_eq!((found.weight, found.admin.word()), (7, Admin::Drain));
}

#[test]
fn a_new_occupant_does_not_inherit_down() {
    let Some((haproxy, _, _)) = started(HaproxyMode::Daemon, CHECKED) else {
        return;
    };
    done(&haproxy, &fill(1, free_port(), None, Admin::Ready));
    let down = || state(&haproxy, "slot1").operation == Operation::Stopped;
    wait_until("the first check that fails takes it down", down);
    let server = Named::start("A");
    done(&haproxy, &fill(1, server.port(), None, Admin::Ready));
    assert_eq!(state(&haproxy, "slot1").operation, Operation::Running);
}

#[test]
fn idle_connections_do_not_outlast_an_address() {
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, PLAIN) else {
        return;
    };
    let (a, b) = (Named::start("A"), Named::start("B"));
    done(&haproxy, &fill(1, a.port(), None, Admin::Ready));
    let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(port)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/"), "200 A");
    }
    let pooled = quiet(&haproxy, "slot1");
    assert!(
        pooled.connections.idle > 0 && pooled.is_quiet(),
        "{pooled:?}"
    );
    done(&haproxy, &fill(1, b.port(), None, Admin::Ready));
    for client in &mut clients {
        assert_eq!(client.get("/"), "200 B");
    }
}

#[test]
fn a_slot_in_use_is_not_quiet_and_would_mix_its_occupants() {
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, PLAIN) else {
        return;
    };
    let (a, b) = (Named::start("A"), Named::start("B"));
    done(&haproxy, &fill(1, a.port(), None, Admin::Ready));
    let mut client = Client::connect(port);
    client.ask("/hold");
    wait_until("the request is held", || a.held() == 1);
    assert!(!quiet(&haproxy, "slot1").is_quiet());

    // What must not be done, and why: the connection comes back to the pool of what is another server by then.
    done(&haproxy, &fill(1, b.port(), None, Admin::Ready));
    a.release();
    assert_eq!(client.answer(), "200 A");
    assert_eq!(
        client.get("/"),
        "200 A",
        "HAProxy closes it now: the wait could go"
    );

    // What must be done: wait, and only then fill.
    done(&haproxy, &fill(2, a.port(), None, Admin::Ready));
    done(&haproxy, &free(2));
    wait_until("it is quiet", || quiet(&haproxy, "slot2").is_quiet());
}

#[test]
fn freeing_lets_requests_end_and_shutting_down_does_not() {
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, PLAIN) else {
        return;
    };
    let a = Named::start("A");
    done(&haproxy, &fill(1, a.port(), None, Admin::Ready));
    let mut clients = [Client::connect(port), Client::connect(port)];
    clients[0].ask("/hold");
    wait_until("the request is held", || a.held() == 1);
    done(&haproxy, &free(1));
    a.release();
    assert_eq!(clients[0].answer(), "200 A");
    wait_until("it is quiet", || quiet(&haproxy, "slot1").is_quiet());

    let b = Named::start("B");
    done(&haproxy, &fill(1, b.port(), None, Admin::Ready));
    clients[1].ask("/hold");
    wait_until("the request is held", || b.held() == 1);
    done(&haproxy, &[slot(1).shutdown_sessions()]);
    assert_ne!(clients[1].answer(), "200 B");
    wait_until("it is quiet", || quiet(&haproxy, "slot1").is_quiet());
}

#[test]
fn sessions_count_where_connections_do_not() {
    let lines = format!("    http-reuse never\n{PLAIN}");
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, &lines) else {
        return;
    };
    let a = Named::start("A");
    done(&haproxy, &fill(1, a.port(), None, Admin::Ready));
    let mut client = Client::connect(port);
    client.ask("/hold");
    wait_until("the request is held", || a.held() == 1);
    let found = quiet(&haproxy, "slot1");
    assert_eq!((found.connections.used, found.sessions), (0, 1));
    assert!(!found.is_quiet());
    a.release();
}

#[test]
fn named_servers_come_and_go() {
    let Some((haproxy, port, _)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let features = Features::of(info(&haproxy).version);
    if !features.dynamic_servers {
        return;
    }
    let a = Named::start("A");
    let server = Server::new("b", "127.0.0.1:31000").unwrap();
    let ready = occupant(a.port(), Some(9), Admin::Ready);
    done(
        &haproxy,
        &server.add(&ready, "check inter 50ms", features).unwrap(),
    );
    assert_eq!(Client::connect(port).get("/"), "200 A");
    assert_eq!(state(&haproxy, server.name()).weight, 9);
    wait_until("it is checked", || {
        state(&haproxy, server.name()).check == CheckResult::Passed
    });
    let again = replies(&haproxy, &server.add(&ready, "", features).unwrap());
    assert!(again.contains(&Reply::Exists), "{again:?}");

    let mut client = Client::connect(port);
    client.ask("/hold");
    wait_until("the request is held", || a.held() == 1);
    assert_eq!(
        replies(&haproxy, &server.delete(features)).last(),
        Some(&Reply::Busy)
    );
    a.release();
    assert_eq!(client.answer(), "200 A");
    drop(client);
    wait_until("it is deleted", || {
        replies(&haproxy, &server.delete(features)).last() == Some(&Reply::Done)
    });
    assert_eq!(
        replies(&haproxy, &[server.state(Admin::Maint)])[0],
        Reply::Unknown
    );

    let six = Occupant {
        address: "::1".parse().unwrap(),
        ..occupant(81, None, Admin::Maint)
    };
    let server = Server::new("b", "six").unwrap();
    done(&haproxy, &server.add(&six, "", features).unwrap());
    assert_eq!(state(&haproxy, "six").address, Some(six.address));
    let nowhere = Server::new("nowhere", "s").unwrap();
    let refused = replies(&haproxy, &nowhere.add(&six, "", features).unwrap());
    assert_eq!(refused[0], Reply::Unknown);
    let odd = Server::new("b", "odd").unwrap();
    let refused = replies(&haproxy, &odd.add(&six, "cookie x", features).unwrap());
    assert!(matches!(refused[0], Reply::Refused(_)), "{refused:?}");
}
