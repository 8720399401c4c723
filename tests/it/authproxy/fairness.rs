//! Fair queueing: one key that takes all it can get, and the others beside it.

use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::thread;

use hostkit::runtime::raise_open_files;
use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::permissions;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::wait_until;

use super::wire::{WireConnection, request};

const GREEDY: &str = "greedy-key";
const OTHERS: [&str; 4] = ["alice-key", "bob-key", "carol-key", "dave-key"];
const BODY: &str = "0123456789";

/// The connections of the pool: the default, unless this process may not open a file for each end of every upload.
fn pool_size() -> usize {
    if raise_open_files(16_384) < 16_384 {
        128
    } else {
        1024
    }
}

/// An upload that starts and stalls.
fn begin_upload(proxy: &AuthproxyProcess) -> WireConnection {
    let mut client = WireConnection::connect(proxy.port());
    let head = request("POST /", &format!("Content-Length: {}\r\n", 2 * BODY.len()));
    client.send(head.replace(super::wire::KEY, GREEDY) + BODY);
    client
}

/// Whether any response bytes have arrived.
fn is_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Repeats a request of each other key, all at once.
fn serve_others(proxy: &AuthproxyProcess, rounds: usize) {
    thread::scope(|scope| {
        for key in OTHERS {
            scope.spawn(move || {
                let mut client = WireConnection::connect(proxy.port());
                let ask = request("GET /", "").replace(super::wire::KEY, key);
                for round in 0..rounds {
                    let answer = client.ask(&ask);
                    assert_eq!(answer.status(), 200, "{key}, {round}: {answer:?}");
                }
            });
        }
    });
}

#[test]
fn slow_uploads_of_one_key_do_not_block_other_keys() {
    let size = pool_size();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.yaml");
    let all = OTHERS.map(|key| (key, &["all"][..]));
    permissions::write_acl_file(&file, &[&[(GREEDY, &["all"][..])], &all[..]].concat());
    let (file, connections) = (
        format!("--acl-file={}", file.display()),
        format!("--server-connections={size}"),
    );
    let patient = ["--timeout=1h", "--client-timeout=1h", "--access-log=off"];
    let args = [&[file.as_str(), &connections], &patient[..]].concat();
    let proxy = AuthproxyProcess::start_for_upstream(backend.port(), &args);

    let (held, queued) = (size - size / 10, size / 2);
    // 2,100 of a pool of 1,024.
    let count = size * 2 + size / 20;
    let mut uploads: Vec<WireConnection> = (0..count).map(|_| begin_upload(&proxy)).collect();
    let refused = "authproxy_error_responses_total{reason=\"too_many_requests\"}";
    wait_until("all uploads are served, queued or denied", || {
        proxy.metric(refused) == Some((count - held - queued) as f64)
            && proxy.metric_sum("authproxy_requests_in_flight") == (held + queued) as f64
            && proxy.metric_sum("authproxy_upstream_queued_requests") == queued as f64
    });
    serve_others(&proxy, 50);

    // Denied requests have a response; queued ones are served as others end.
    let (mut refused, mut served) = (0, 0);
    uploads.retain_mut(|upload| {
        let answered = is_answered(&upload.stream);
        if answered {
            let answer = upload.message().unwrap();
            assert_eq!(
                (answer.status(), answer.reason().as_str()),
                (429, "too_many_requests")
            );
            assert_eq!(answer.header("retry-after"), Some("1"));
            refused += 1;
        }
        !answered
    });
    assert_eq!(refused, count - held - queued);
    for upload in &mut uploads {
        upload.stream.write_all(BODY.as_bytes()).unwrap();
    }
    for upload in &mut uploads {
        assert_eq!(upload.message().unwrap().status(), 200);
        served += 1;
    }
    assert_eq!(served, held + queued);
    serve_others(&proxy, 5);
    assert_eq!(proxy.metric_sum("authproxy_upstream_queued_requests"), 0.0);
}

#[test]
fn request_leaving_queue_releases_its_place() {
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let proxy = super::wire::proxy(backend.port(), &["--server-connections=1"]);
    let mut holder = WireConnection::connect(proxy.port());
    holder.send(request("POST /", "Content-Length: 10\r\n"));
    let waiting = |count: f64| {
        wait_until(&format!("{count} requests are queued"), || {
            proxy.metric_sum("authproxy_requests_in_flight") == 1.0 + count
                && proxy.metric_sum("authproxy_upstream_queued_requests") == count
        });
    };
    waiting(0.0);
    // There is one place, which each of them takes and leaves.
    for _ in 0..3 {
        let mut client = WireConnection::connect(proxy.port());
        client.send(request("GET /", ""));
        waiting(1.0);
        drop(client);
        waiting(0.0);
    }
    holder.send(BODY);
    assert_eq!(holder.message().unwrap().status(), 200);
    let answer = WireConnection::connect(proxy.port()).ask(request("GET /", ""));
    assert_eq!(answer.status(), 200);
}
