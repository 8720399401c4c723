//! What a configuration asks for, against a real HAProxy: every way to find members, every choice among them, and what
//! is written of them.
//!
//! Here is the stage; what must be seen on it is in the modules.

mod kinds;
mod leaving;
mod members;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::{TaskAnnouncement, TaskLaunch, TaskPlayer, TaskRegistry};
use hostkit_tests::zookeeper::{self, AnnouncerSession};
use hostkit_tests::{free_port, wait_until};
use serde_json::{Value, json};

use super::rig::Rig;

/// Tasks that the tests announce themselves.
struct Mute;

impl TaskRegistry for Mute {
    fn announce(&self, _: &TaskAnnouncement) {}
    fn leave(&self, _: &TaskAnnouncement) {}
    fn abandon(&self, _: &TaskAnnouncement) {}
}

/// The rig, tasks that listen, and who announces them.
struct Stage {
    rig: Rig,
    tasks: TaskPlayer,
    announcer: AnnouncerSession,
}

impl Stage {
    fn new() -> Option<Self> {
        let rig = Rig::new(HaproxyMode::Master)?;
        let announcer = AnnouncerSession::connect(&rig.zookeeper);
        Some(Self {
            tasks: TaskPlayer::start(7, Arc::new(Mute)),
            announcer,
            rig,
        })
    }

    /// A task that listens, and answers with `name` and its number.
    fn task(&self, name: &str) -> SocketAddr {
        let serial = self.tasks.launch(TaskLaunch::new(name, 0));
        self.tasks.await_listening(serial);
        self.tasks.announcement(serial).address
    }

    /// The same on 127.0.0.1.
    fn local_task(&self, name: &str) -> SocketAddr {
        let serial = self.tasks.launch(TaskLaunch {
            address: Some(SocketAddr::from(([127, 0, 0, 1], free_port()))),
            ..TaskLaunch::new(name, 0)
        });
        self.tasks.await_listening(serial);
        self.tasks.announcement(serial).address
    }

    /// A task of a ServerSet with this one port.
    fn announce(&self, path: &str, shard: u32, address: SocketAddr) -> String {
        let host = address.ip().to_string();
        let ports = [("http", address.port())];
        self.announcer.announce(
            path,
            &zookeeper::ServerSetMember {
                host: &host,
                shard,
                ports: &ports,
            },
        )
    }

    /// Where ServerSets at this path are followed.
    fn serverset(&self, path: &str) -> Value {
        json!({"method": "zookeeper", "hosts": [self.rig.zookeeper.host()], "path": path,
            "decode": {"method": "serverset", "endpoint_name": "http"}})
    }

    fn add(&mut self, name: &str, service: Value) {
        self.rig.config["services"][name] = service;
    }

    fn serves(&self, backend: &str, expected: &[SocketAddr]) {
        let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        expected.sort_unstable();
        let mut found = Vec::new();
        wait_until(&format!("{backend} is served by {expected:?}"), || {
            found = self.rig.serving(backend);
            found == expected
        });
    }

    fn rejects(&self, service: &str) -> u64 {
        self.rig.of(service, "rejected")
    }
}

fn section(port: u16) -> Value {
    json!({"port": port})
}

/// Head and body of an answer.
fn exchange(
    mut stream: impl std::io::Read + std::io::Write,
    head: &str,
) -> Option<(String, String)> {
    // In one piece: two would wait for each other's acknowledgement.
    let request = format!("GET / HTTP/1.1\r\n{head}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.to_ascii_lowercase(), body.trim().to_owned()))
}

fn get_with(port: u16, head: &str) -> Option<(String, String)> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    exchange(stream, head)
}

/// The body of an answer with status 200.
fn get(port: u16) -> Option<String> {
    let (head, body) = get_with(port, "host: localhost\r\n")?;
    head.contains(" 200 ").then_some(body)
}

fn answers(port: u16, body: &str) {
    wait_until(&format!("{port} answers {body}"), || {
        get(port).is_some_and(|found| found.starts_with(body))
    });
}
