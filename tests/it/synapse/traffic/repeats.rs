//! What HAProxy asks again when a member closes a kept connection instead of answering: what is safe, and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::zookeeper::ServerSetMember as Member;
use hostkit_tests::{wait_limit, wait_until};

use super::super::rig::job;
use super::stage;

/// The methods of the requests that a member saw.
type Seen = Arc<Mutex<Vec<String>>>;

/// A member that answers the first request of each connection and closes it at the second. It serves to the end of the
/// test process.
fn member(seen: Seen) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let note = |head: &str| {
                    let method = head.split(' ').next().unwrap_or_default();
                    if !method.is_empty() {
                        seen.lock().unwrap().push(method.to_owned());
                    }
                };
                note(&head(&mut stream));
                let _ = stream.write_all(OK);
                note(&head(&mut stream));
            });
        }
    });
    address
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The head of a message; what there is of it when the connection ends.
fn head(stream: &mut TcpStream) -> String {
    let (mut bytes, mut one) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut one).is_ok_and(|read| read == 1) {
        bytes.push(one[0]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn only_safe_requests_are_repeated() {
    let Some((rig, members, _tasks, addresses)) = stage(HaproxyMode::Master, &["eightball"]) else {
        return;
    };
    let seen = Seen::default();
    let task = Member {
        host: "127.0.0.1",
        shard: 0,
        ports: &[("http", member(Arc::clone(&seen)).port())],
    };
    members.announcer.announce(&job("eightball"), &task);
    wait_until("it serves", || rig.serving("eightball").len() == 1);
    for (method, repeated) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("POST", false),
        ("PUT", false),
        ("DELETE", false),
        ("PATCH", false),
    ] {
        seen.lock().unwrap().clear();
        let mut stream = TcpStream::connect(addresses[0]).unwrap();
        stream.set_read_timeout(Some(wait_limit())).unwrap();
        let request = format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let answers = [(); 2].map(|()| {
            stream.write_all(request.as_bytes()).unwrap();
            head(&mut stream)
        });
        assert!(
            answers[0].starts_with("HTTP/1.1 200 "),
            "{method}: {answers:?}"
        );
        // Where it is not repeated, the client learns by the end of the connection that it may do so itself.
        assert_eq!(
            answers[1].starts_with("HTTP/1.1 200 "),
            repeated,
            "{method}: {answers:?}"
        );
        assert_eq!(answers[1].is_empty(), !repeated, "{method}: {answers:?}");
        let times = seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| *seen == method)
            .count();
        // More than once where it was repeated over a connection that was left from before.
        assert!(
            if repeated { times > 2 } else { times == 2 },
            "{method}: {times}"
        );
    }
}
