//! The admin listener and the signals of daemons, over real sockets and in a real process.

use std::io::{ErrorKind, Read as _, Write as _};

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hostkit::Exit;
use hostkit::admin::{self, AdminAddress, AdminListener};
use hostkit::http::{RouteResponse, Router};
use hostkit::shutdown::{DaemonSignal, DaemonSignals};
use hostkit_tests::{wait_limit, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

/// A daemon with one more route, on its own thread until it is dropped.
struct Daemon {
    address: AdminAddress,
    purges: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Daemon {
    fn start(address: &str) -> Self {
        let address: AdminAddress = address.parse().unwrap();
        let purges = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel::<()>();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let counter = Arc::clone(&purges);
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let listener = AdminListener::bind(&address).await.unwrap();
                sender.send(listener.address().clone()).unwrap();
                tokio::select! {
                    _ = listener.serve(routes(counter)) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = receiver.recv_timeout(wait_limit()).unwrap();
        Self {
            address,
            purges,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn tcp(&self) -> TcpStream {
        let AdminAddress::Tcp(address) = &self.address else {
            panic!("not TCP");
        };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(wait_limit())).unwrap();
        stream
    }

    /// What comes back for these bytes, until the connection ends.
    fn send(&self, request: &[u8]) -> String {
        let mut stream = self.tcp();
        // A server that has seen enough may have closed already.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(&self, path: &str) -> Result<String, hostkit::Failure> {
        runtime().block_on(admin::get(&self.address, path))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn routes(purges: Arc<AtomicUsize>) -> Router {
    let status = || Map::from_iter([("config_hash".to_owned(), json!("abc"))]);
    let metrics = || "# TYPE up gauge\nup 1\n# EOF\n".to_owned();
    admin::build_router(status, metrics)
        .route("POST", "/purge", move |call| {
            purges.fetch_add(1, Ordering::SeqCst);
            RouteResponse::json(202, &json!({"query": call.query, "bytes": call.body.len()}))
        })
        .route("GET", "/panic", |_| panic!("on purpose"))
}

#[test]
fn status_and_metrics_are_served() {
    let daemon = Daemon::start("127.0.0.1:0");
    let status: Value = serde_json::from_str(&daemon.get("/status").unwrap()).unwrap();
    assert_eq!(status["config_hash"], "abc");
    assert_eq!(status["version"], hostkit::VERSION);
    assert!(status["uptime_seconds"].is_u64());
    for (accept, content_type, body) in [
        ("", "text/plain; version=0.0.4; charset=utf-8", "up 1\n"),
        (
            "Accept: */*\r\n",
            "text/plain; version=0.0.4; charset=utf-8",
            "up 1\n",
        ),
        (
            "Accept: text/plain;q=0.5\r\naccept: application/openmetrics-text; version=1.0.0\r\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "up 1\n# EOF\n",
        ),
    ] {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{accept}\r\n");
        let answer = daemon.send(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let line = format!("\r\ncontent-type: {content_type}\r\n");
        assert!(answer.contains(&line), "{answer}");
        let end = format!("\r\n\r\n# TYPE up gauge\n{body}");
        assert!(answer.ends_with(&end), "{answer}");
    }
}

#[test]
fn head_has_no_body_and_unknown_paths_and_methods_are_json_errors() {
    let daemon = Daemon::start("127.0.0.1:0");
    let answer = daemon.send(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-length: 21"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = daemon.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("{\"error\":"),
        "{answer}"
    );
    let answer = daemon.send(b"DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
        "{answer}"
    );
    let failure = daemon.get("/nothing").unwrap_err();
    assert_eq!(failure.exit(), Exit::NOT_FOUND);
}

#[test]
fn route_gets_query_and_bounded_body() {
    let daemon = Daemon::start("127.0.0.1:0");
    let answer =
        daemon.send(b"POST /purge?key=a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert!(
        answer.ends_with("{\"bytes\":3,\"query\":\"key=a\"}\n"),
        "{answer}"
    );
    let head = b"POST /purge HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n";
    let answer = daemon.send(&[&head[..], &[b'x'; 70_000]].concat());
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(daemon.purges.load(Ordering::SeqCst), 1);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(60_000));
    assert!(!daemon.send(long.as_bytes()).starts_with("HTTP/1.1 2"));
}

#[test]
fn silent_and_slow_clients_are_disconnected_and_do_not_block_others() {
    let daemon = Daemon::start("127.0.0.1:0");
    let silent: Vec<TcpStream> = (0..64).map(|_| daemon.tcp()).collect();
    let mut slow = daemon.tcp();
    slow.write_all(b"POST /purge HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        .unwrap();
    // The 64 take all places until their heads are overdue.
    let answer = daemon.send(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let ended = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0]).err().map(|error| error.kind());
        stream.set_nonblocking(false).unwrap();
        error != Some(ErrorKind::WouldBlock)
    };
    assert!(silent.iter().any(ended), "a 66th connection was served");
    for mut stream in silent {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(!rest.starts_with(b"HTTP/1.1 2"));
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(daemon.purges.load(Ordering::SeqCst), 0);
}

#[test]
fn handler_panic_closes_only_its_connection() {
    let daemon = Daemon::start("127.0.0.1:0");
    assert_eq!(daemon.get("/panic").unwrap_err().exit(), Exit::UNAVAILABLE);
    assert!(daemon.get("/status").is_ok());
}

fn bind_error(path: &Path) -> hostkit::Failure {
    let address = AdminAddress::Unix(path.to_owned());
    runtime()
        .block_on(AdminListener::bind(&address))
        .unwrap_err()
}

#[test]
fn socket_file_has_its_mode_and_replaces_only_an_unused_one() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("admin.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(UnixStream::connect(&path).is_err(), "it is stale");
    let daemon = Daemon::start(&format!("unix:{}", path.display()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    assert!(daemon.get("/status").is_ok());

    let failure = bind_error(&path);
    assert_eq!(failure.exit(), Exit::CANNOT_CREATE);
    assert!(
        failure
            .to_string()
            .contains("stop the process that listens there"),
        "{failure}"
    );
    assert!(daemon.get("/status").is_ok(), "the live one was left alone");

    let file = temp.path().join("precious");
    std::fs::write(&file, "x").unwrap();
    bind_error(&file);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}

#[test]
fn port_in_use_and_ended_daemon_are_named() {
    let daemon = Daemon::start("127.0.0.1:0");
    let failure = runtime()
        .block_on(AdminListener::bind(&daemon.address))
        .unwrap_err();
    assert!(
        failure.to_string().contains(&daemon.address.to_string()),
        "{failure}"
    );
    let address = daemon.address.clone();
    drop(daemon);
    let failure = runtime()
        .block_on(admin::get(&address, "/status"))
        .unwrap_err();
    assert_eq!(failure.exit(), Exit::UNAVAILABLE);
    assert!(
        failure.to_string().contains("check that the daemon runs"),
        "{failure}"
    );
}

/// The process of the test below: a test of its own only because that is how this program can be started again.
#[test]
fn signal_printing_daemon() {
    if std::env::var_os("HOSTKIT_TEST_SIGNALS").is_none() {
        return;
    }
    runtime().block_on(async {
        let mut signals = DaemonSignals::new().unwrap();
        let mut err = std::io::stderr();
        writeln!(err, "ready").unwrap();
        while signals.next().await == DaemonSignal::Hangup {
            writeln!(err, "hangup").unwrap();
        }
        writeln!(err, "terminate").unwrap();
    });
    // A drain that hangs: no task waits for signals.
    thread::sleep(wait_limit());
}

#[test]
fn hangup_is_delivered_and_second_termination_ends_a_hanging_daemon() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "admin::signal_printing_daemon", "--nocapture"])
        .env("HOSTKIT_TEST_SIGNALS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let mut next_line = || lines.next().unwrap().unwrap();
    assert_eq!(next_line(), "ready");
    for _ in 0..2 {
        kill(pid, Signal::SIGHUP).unwrap();
        assert_eq!(next_line(), "hangup");
    }
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(next_line(), "terminate");
    assert!(child.try_wait().unwrap().is_none(), "it drains");
    kill(pid, Signal::SIGTERM).unwrap();
    let mut ended = None;
    wait_until("the second signal ends it", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().signal(), Some(Signal::SIGTERM as i32));
}
