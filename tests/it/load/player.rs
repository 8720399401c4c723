//! The player of tasks, seen by plain clients and by the load generator.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hostkit_tests::load::{ConnectionReuse, FailureKind, LoadGenerator};
use hostkit_tests::tasks::{RollingJob, TaskLaunch, TaskPlayer};
use hostkit_tests::wait_until;

use super::{Told, ledger, plan};

const MS: Duration = Duration::from_millis(1);

fn ask(stream: &mut TcpStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: eightball\r\n\r\n").unwrap();
}

/// Reads until the other side closes; an error is one.
fn rest(stream: &mut TcpStream) -> std::io::Result<String> {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

fn refused(address: SocketAddr) -> bool {
    TcpStream::connect(address)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_task_is_announced_before_it_listens_and_then_serves() {
    let ledger = ledger();
    let tasks = TaskPlayer::start(1, ledger.clone());
    let serial = tasks.launch(TaskLaunch {
        listen_after: 300 * MS,
        ..TaskLaunch::new("eightball", 7)
    });
    let announced = tasks.announcement(serial);
    assert_eq!(
        (announced.shard, announced.service.as_str()),
        (7, "eightball")
    );
    wait_until("it is announced", || ledger.of(serial) == [Told::Announce]);
    assert!(refused(announced.address), "it does not listen yet");
    tasks.await_listening(serial);
    let record = tasks.record(serial);
    assert!(record.listening.unwrap() - record.announced.unwrap() >= 300 * MS);

    for connections in [ConnectionReuse::Fresh, ConnectionReuse::KeepAlive] {
        let load = LoadGenerator::start(plan(announced.address, connections));
        load.await_attempts(100);
        let report = load.stop();
        assert!(report.clean(), "{report}");
    }
    let record = tasks.record(serial);
    assert!(record.served >= 200);
    assert_eq!(record.after_leaving, 0);
    assert!(record.listen_to_first().is_some());
}

#[test]
fn health_is_answered_and_is_not_a_request() {
    let tasks = TaskPlayer::start(1, ledger());
    let serial = tasks.launch(TaskLaunch::new("eightball", 0));
    tasks.await_listening(serial);
    let mut stream = TcpStream::connect(tasks.announcement(serial).address).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let text = rest(&mut stream).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\neightball 0\n"), "{text}");
    assert_eq!(tasks.record(serial).served, 0);
}

#[test]
fn a_task_that_stops_answers_what_was_asked_and_closes_what_is_idle() {
    let ledger = ledger();
    let tasks = TaskPlayer::start(1, ledger.clone());
    let serial = tasks.launch(TaskLaunch {
        answer_after: 300 * MS,
        ..TaskLaunch::new("eightball", 0)
    });
    tasks.await_listening(serial);
    let address = tasks.announcement(serial).address;
    let mut idle = TcpStream::connect(address).unwrap();
    let mut asked = TcpStream::connect(address).unwrap();
    ask(&mut asked, "/");
    // A third connection that was accepted shows that the two before it were.
    let mut last = TcpStream::connect(address).unwrap();
    ask(&mut last, "/health");
    assert!(last.read(&mut [0; 100]).unwrap() > 0);
    tasks.stop(serial);
    assert_eq!(rest(&mut idle).unwrap(), "");
    wait_until("the port is closed", || refused(address));
    let text = rest(&mut asked).unwrap();
    assert!(text.contains("Connection: close\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\neightball 0\n"), "{text}");
    tasks.await_end(serial);
    assert_eq!(ledger.of(serial), [Told::Announce, Told::Leave]);
    let record = tasks.record(serial);
    assert_eq!((record.served, record.after_leaving), (1, 1));
    assert!(record.stopped.is_some() && record.died.is_none());
}

#[test]
fn a_task_that_dies_takes_its_connections_along_and_leaves_its_entry() {
    let ledger = ledger();
    let tasks = TaskPlayer::start(1, ledger.clone());
    let serial = tasks.launch(TaskLaunch {
        answer_after: Duration::from_secs(60),
        ..TaskLaunch::new("eightball", 0)
    });
    tasks.await_listening(serial);
    let address = tasks.announcement(serial).address;
    let mut streams: Vec<_> = (0..32)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for stream in &mut streams {
        ask(stream, "/");
    }
    let mut last = TcpStream::connect(address).unwrap();
    ask(&mut last, "/health");
    assert!(last.read(&mut [0; 100]).unwrap() > 0);
    tasks.kill(serial);
    let ends: Vec<_> = streams.iter_mut().map(rest).collect();
    let closed = ends
        .iter()
        .filter(|end| end.as_ref().is_ok_and(String::is_empty));
    let reset = ends.iter().filter(|end| end.is_err());
    let (closed, reset) = (closed.count(), reset.count());
    assert_eq!(closed + reset, 32, "{ends:?}");
    assert!(closed > 4 && reset > 4, "{closed} closed, {reset} reset");
    tasks.await_end(serial);
    assert!(refused(address));
    assert_eq!(ledger.of(serial), [Told::Announce, Told::Abandon]);
}

#[test]
fn a_task_that_is_stopped_before_it_listens_never_does() {
    let ledger = ledger();
    let tasks = TaskPlayer::start(1, ledger.clone());
    let serial = tasks.launch(TaskLaunch {
        listen_after: Duration::from_secs(3600),
        ..TaskLaunch::new("eightball", 0)
    });
    wait_until("it is announced", || ledger.of(serial) == [Told::Announce]);
    tasks.stop(serial);
    tasks.await_end(serial);
    assert_eq!(tasks.record(serial).listening, None);
    assert_eq!(ledger.of(serial), [Told::Announce, Told::Leave]);
}

#[test]
fn leaving_and_quitting_come_in_either_order_and_no_endpoint_comes_back() {
    let tasks = TaskPlayer::start(3, ledger());
    let serials: Vec<_> = (0..40)
        .map(|shard| tasks.launch(TaskLaunch::new("eightball", shard)))
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    for &serial in &serials {
        tasks.await_listening(serial);
        tasks.stop(serial);
        assert!(addresses.insert(tasks.announcement(serial).address.ip()));
    }
    for &serial in &serials {
        tasks.await_end(serial);
    }
    let records = tasks.records();
    let early = records
        .iter()
        .filter(|record| record.left < record.closed)
        .count();
    assert!((10..=30).contains(&early), "{early} of 40 left first");
}

#[test]
fn a_given_port_can_be_taken_again_by_the_next_life() {
    let tasks = TaskPlayer::start(1, ledger());
    let address = SocketAddr::from(([127, 0, 0, 1], hostkit_tests::free_port()));
    let load = LoadGenerator::start(plan(address, ConnectionReuse::KeepAlive));
    for shard in 0..5 {
        let serial = tasks.launch(TaskLaunch {
            address: Some(address),
            ..TaskLaunch::new("eightball", shard)
        });
        tasks.await_listening(serial);
        let before = tasks.record(serial).served;
        wait_until("it serves", || tasks.record(serial).served > before + 20);
        tasks.stop(serial);
        tasks.await_end(serial);
    }
    let report = load.stop();
    // Each life closes the idle connections of all clients, and is away for a moment.
    assert!(report.count(FailureKind::EofReused) > 0, "{report}");
    assert!(report.count(FailureKind::Refused) > 0, "{report}");
    let known = [
        FailureKind::EofReused,
        FailureKind::ResetReused,
        FailureKind::Refused,
    ]
    .map(|kind| report.count(kind));
    assert_eq!(known.iter().sum::<u64>(), report.failed(), "{report}");
}

#[test]
fn an_update_replaces_every_instance_batch_by_batch() {
    let ledger = ledger();
    let tasks = TaskPlayer::start(5, ledger.clone());
    let job = RollingJob {
        service: "eightball".to_owned(),
        instances: 5,
        batch: 2,
        listen_after: (10 * MS, 50 * MS),
        dies: 0.4,
        answer_after: Duration::ZERO,
    };
    let old = tasks.deploy(&job);
    let mut batches = Vec::new();
    let new = tasks.update(&job, &old, |batch| {
        for &serial in batch {
            assert!(tasks.record(serial).listening.is_some());
        }
        batches.push(batch.to_vec());
        true
    });
    assert_eq!(batches, [vec![5, 6], vec![7, 8], vec![9]]);
    assert_eq!(new, [5, 6, 7, 8, 9]);
    let shards: Vec<_> = new
        .iter()
        .map(|&serial| tasks.announcement(serial).shard)
        .collect();
    assert_eq!(shards, [0, 1, 2, 3, 4]);
    let died = old
        .iter()
        .filter(|&&serial| ledger.of(serial).contains(&Told::Abandon))
        .count();
    assert!((1..5).contains(&died), "{died} of 5 died");
    // The next batch begins when the one before it listens.
    let stopped = |serial| {
        let record = tasks.record(serial);
        record.stopped.or(record.died)
    };
    for (before, after) in [(5, 2), (6, 2), (7, 4), (8, 4)] {
        assert!(tasks.record(before).listening < stopped(after));
    }
}
