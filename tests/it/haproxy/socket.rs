//! The runtime API's client: many commands, and everything that can be wrong with a socket.

use std::time::Duration;

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode, send_signal};
use hostkit_tests::{free_port, or_skip, wait_until};
use nix::sys::signal::Signal;
use synapse::haproxy::info::environment;
use synapse::haproxy::{Processes, Reply, Socket, SocketError, Version, live};

use super::{block_on, info, proxies, socket, state};

const SLOTS: &str = "    server-template slot 1-600 127.0.0.1:1 disabled\n";

fn start(mode: HaproxyMode) -> Option<HaproxyInstance> {
    let proxies = proxies(free_port(), SLOTS);
    or_skip("haproxy", HaproxyInstance::start(mode, &proxies))
}

#[test]
fn a_batch_of_500_has_500_replies_in_order() {
    let Some(haproxy) = start(HaproxyMode::Daemon) else {
        return;
    };
    let mut commands: Vec<String> = (1..=500)
        .map(|n| format!("set server b/slot{n} weight {}", n % 257))
        .collect();
    commands[100] = "show env PATH".to_owned();
    commands[200] = "set server b/nobody state maint".to_owned();
    commands[300] = "del server b/slot600".to_owned();
    commands[301] = "show servers state b".to_owned();
    let replies = block_on(socket(&haproxy).batch(&commands)).unwrap();
    assert_eq!(replies.len(), 500);
    assert!(replies[100].starts_with("PATH="));
    assert_eq!(Reply::of(&replies[200]), Reply::Unknown);
    assert_eq!(replies[300], "Server deleted.");
    assert_eq!(live::servers(&replies[301]).unwrap().len(), 599);
    let silent = replies.iter().filter(|reply| reply.is_empty()).count();
    assert_eq!(silent, 496);
    assert_eq!(state(&haproxy, "slot500").weight, 500 - 257);
}

#[test]
fn a_batch_with_large_replies_does_not_stall() {
    let Some(haproxy) = start(HaproxyMode::Daemon) else {
        return;
    };
    let commands = vec!["show servers state".to_owned(); 300];
    let replies = block_on(socket(&haproxy).batch(&commands)).unwrap();
    assert!(
        replies
            .iter()
            .all(|reply| live::servers(reply).unwrap().len() == 600)
    );
    assert!(replies.iter().map(String::len).sum::<usize>() > 5 << 20);
}

#[test]
fn what_haproxy_says_of_itself_is_read() {
    let Some(haproxy) = start(HaproxyMode::Master) else {
        return;
    };
    let info = info(&haproxy);
    assert_eq!(info.pid, haproxy.worker());
    assert!(info.version >= Version(2, 4, 0));
    assert_eq!(info.maxconn, 1000);
    assert!(info.maxsock > 2000 && info.ulimit_n >= info.maxsock);
    let reply = block_on(socket(&haproxy).ask("show env NOWHERE")).unwrap();
    assert_eq!(environment("NOWHERE", &reply), None);

    let master = Socket::new(haproxy.master_socket());
    let found = Processes::parse(&block_on(master.ask("show proc")).unwrap()).unwrap();
    assert_eq!(found.master, haproxy.master());
    assert_eq!(found.workers, [info.pid]);
    assert_eq!((found.reloads, found.old_workers.len()), (0, 0));

    let reply = block_on(socket(&haproxy).ask("show servers conn b")).unwrap();
    assert_eq!(live::connections(&reply).unwrap().len(), 600);
    let server = state(&haproxy, "slot7");
    let command = format!("show stat {} 4 {}", server.backend_id, server.id);
    let reply = block_on(socket(&haproxy).ask(&command)).unwrap();
    assert_eq!(live::sessions(&reply), Ok(Some(0)));
}

#[test]
fn a_level_that_is_too_low_is_named() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let low = haproxy.directory().join("low.sock");
    let line = format!(
        "global\n    stats socket {} level operator\n",
        low.display()
    );
    let head = haproxy.head().replace("global\n", &line);
    haproxy.write(&format!("{head}{}", proxies(free_port(), SLOTS)));
    haproxy.run();
    let socket = Socket::new(&low);
    let command = "set server b/slot1 state ready".to_owned();
    let asked = block_on(socket.ask(&command)).unwrap_err();
    let batch = block_on(socket.batch(&["show info".to_owned(), command])).unwrap_err();
    for error in [asked, batch] {
        assert!(matches!(error, SocketError::Level { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("low.sock") && text.contains("`level admin`"),
            "{text}"
        );
    }
    assert!(block_on(socket.ask("show info")).is_ok());
}

#[test]
fn a_socket_that_is_gone_comes_back() {
    let Some(haproxy) = start(HaproxyMode::Daemon) else {
        return;
    };
    let socket = socket(&haproxy);
    let before = info(&haproxy).pid;
    haproxy.kill();
    wait_until("nobody listens", || {
        match block_on(socket.ask("show info")) {
            Err(SocketError::Refused { .. }) => true,
            // What connects while it dies is cut off, and that is no answer.
            Err(SocketError::Closed { .. }) => false,
            other => panic!("{other:?}"),
        }
    });
    std::fs::remove_file(haproxy.socket()).unwrap();
    let error = block_on(socket.batch(&["show info".to_owned()])).unwrap_err();
    assert!(matches!(error, SocketError::Missing { .. }), "{error}");
    haproxy.run();
    assert_ne!(info(&haproxy).pid, before);
}

#[test]
fn a_haproxy_that_hangs_hits_the_deadline() {
    let Some(haproxy) = start(HaproxyMode::Daemon) else {
        return;
    };
    let pid = haproxy.worker();
    send_signal(pid, Signal::SIGSTOP);
    let socket = socket(&haproxy).with_deadline(Duration::from_millis(200));
    let commands = vec!["show info".to_owned(); 3];
    for error in [
        block_on(socket.ask("show info")).unwrap_err(),
        block_on(socket.batch(&commands)).unwrap_err(),
    ] {
        assert!(matches!(error, SocketError::TimedOut { .. }), "{error}");
    }
    send_signal(pid, Signal::SIGCONT);
    assert!(block_on(super::socket(&haproxy).ask("show info")).is_ok());
}

#[test]
fn a_batch_that_is_cut_short_is_no_success() {
    let Some(haproxy) = start(HaproxyMode::Daemon) else {
        return;
    };
    let commands = ["show info", "quit", "show info"].map(str::to_owned);
    let error = block_on(socket(&haproxy).batch(&commands)).unwrap_err();
    assert!(
        matches!(error, SocketError::Closed { asked: 3, .. }),
        "{error}"
    );
}
