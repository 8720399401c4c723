//! `serve-acl`, and the page that documents its protocol.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostkit_tests::permissions::{
    PermissionsBehavior, PermissionsServer, hash_key, write_acl_file,
};
use hostkit_tests::{ChildGuard, bin, free_port, wait_limit, wait_until, workspace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{authproxy, check, run};

/// A running `serve-acl`.
struct ServeAclProcess {
    process: ChildGuard,
    port: u16,
    log: Arc<Mutex<String>>,
}

impl ServeAclProcess {
    #[track_caller]
    fn start(file: &Path, args: &[&str]) -> Self {
        Self::spawn(authproxy(&[]), file, args)
    }

    #[track_caller]
    fn spawn(mut authproxy: Command, file: &Path, args: &[&str]) -> Self {
        let mut child = authproxy
            .args(["serve-acl", "--listen=127.0.0.1:0", "--acl-file"])
            .arg(file)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (
            BufReader::new(child.stderr.take().unwrap()),
            Arc::clone(&log),
        );
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let process = ChildGuard(child);
        let mut port = None;
        wait_until("serve-acl listens", || {
            let log = log.lock().unwrap();
            port = log.split_once("listen=127.0.0.1:").map(|(_, rest)| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().unwrap()
            });
            port.is_some()
        });
        Self {
            process,
            port: port.unwrap(),
            log,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/any/path", self.port)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(wait_limit())).unwrap();
        stream
    }

    /// Status line and body of one exchange.
    fn exchange(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        // It may have answered before all of it is there.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{method} {path}: {answer:?}"));
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn knows(&self, key: &str) -> bool {
        let (status, body) = self.exchange("POST", "/", &question(key));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["known"] == true
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.0.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }
}

fn question(key: &str) -> String {
    json!({"v": 1, "key_sha256": hash_key(key)}).to_string()
}

fn acl(keys: &[(&str, &[&str])]) -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("acl.yaml");
    write_acl_file(&file, keys);
    (temp, file)
}

#[test]
fn serve_acl_answers_only_key_queries() {
    let (_temp, file) = acl(&[("key", &["all", "write"])]);
    let admin = free_port();
    let engine = ServeAclProcess::start(&file, &[&format!("--admin=127.0.0.1:{admin}")]);
    let known = engine.exchange("POST", "/acl", &question("key"));
    assert_eq!(
        known,
        (
            200,
            r#"{"known":true,"id":"key","rights":["all","write"]}"#.to_owned()
        )
    );
    assert_eq!(
        engine.exchange("POST", "/", &question("x")),
        (200, r#"{"known":false}"#.to_owned())
    );
    for (method, path, body, status) in [
        ("GET", "/health", String::new(), 200),
        ("HEAD", "/health", String::new(), 200),
        ("POST", "/health", question("key"), 405),
        ("GET", "/", String::new(), 404),
        ("PUT", "/", question("key"), 405),
        ("POST", "/", String::new(), 400),
        ("POST", "/", "{}".to_owned(), 400),
        (
            "POST",
            "/",
            question("key").replace("\"v\":1", "\"v\":2"),
            400,
        ),
        ("POST", "/", json!({"v": 1, "key": "key"}).to_string(), 400),
        (
            "POST",
            "/",
            format!("{}{}", question("key"), " ".repeat(8192)),
            413,
        ),
    ] {
        let (found, output) = engine.exchange(method, path, &body);
        assert_eq!(found, status, "{method} {path} {body}: {output}");
    }
    let server = format!("--acl-server={}", engine.url());
    check(&[&server], &["--right=write"], "key").exits(0);
    check(&[&server], &["--right=admin"], "key").exits(77);

    let address = format!("127.0.0.1:{admin}").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let get = |path| {
        runtime
            .block_on(hostkit::admin::get(&address, path))
            .unwrap()
    };
    let status: Value = serde_json::from_str(&get("/status")).unwrap();
    assert_eq!(status["file"]["entries"], 1);
    assert_eq!(
        status["queries"],
        json!({"known": 3, "unknown": 1, "invalid": 8})
    );
    let metrics = get("/metrics");
    assert!(
        metrics.contains("authproxy_acl_queries_total{result=\"known\"} 3\n"),
        "{metrics}"
    );
}

#[test]
fn serve_acl_keeps_connection_open_between_queries() {
    let (_temp, file) = acl(&[("key", &["all"])]);
    let engine = ServeAclProcess::start(&file, &[]);
    let mut stream = engine.connect();
    let body = question("other");
    let length = body.len();
    let query = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    for _ in 0..3 {
        stream.write_all(query.as_bytes()).unwrap();
        let mut response = Vec::new();
        while !response.ends_with(br#"{"known":false}"#) {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            response.push(byte[0]);
        }
    }
}

#[test]
fn serve_acl_reloads_changed_file() {
    let (_temp, file) = acl(&[("one", &["all"])]);
    let engine = ServeAclProcess::start(&file, &[]);
    assert!(engine.knows("one"));
    write_acl_file(&file, &[("two", &["all"])]);
    wait_until("the new file is loaded", || engine.knows("two"));
    assert!(!engine.knows("one"));
    std::fs::write(&file, "keys:\n- {idd: x}\n").unwrap();
    wait_until("the invalid file is logged", || {
        engine
            .log
            .lock()
            .unwrap()
            .contains("acl.yaml:2:4: unknown key `idd`: did you mean `id`?")
    });
    assert!(engine.knows("two"));
}

#[test]
fn serve_acl_reloads_changed_file_while_it_has_all_connections() {
    let (_temp, file) = acl(&[("one", &["all"])]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 128; exec \"$@\"", "sh"]);
    limited.arg(bin("authproxy"));
    let engine = ServeAclProcess::spawn(limited, &file, &[]);
    let mut first = engine.connect();
    let idle: Vec<_> = (0..192).map(|_| engine.connect()).collect();
    // More than there are descriptors for.
    std::thread::sleep(Duration::from_millis(200));
    write_acl_file(&file, &[("two", &["all"])]);
    let body = question("one");
    let length = body.len();
    let query = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    wait_until("the removed key is unknown", || {
        first.write_all(query.as_bytes()).unwrap();
        let mut response = String::new();
        while !response.ends_with('}') {
            let mut bytes = [0; 512];
            let read = first.read(&mut bytes).unwrap();
            response.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        response.ends_with(r#"{"known":false}"#)
    });
    drop(idle);
}

#[test]
fn serve_acl_drains_requests_under_way() {
    let (_temp, file) = acl(&[("key", &["all"])]);
    let mut engine = ServeAclProcess::start(&file, &[]);
    let (idle, mut begun) = (engine.connect(), engine.connect());
    let body = question("key");
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    begun.write_all(head.as_bytes()).unwrap();
    begun.write_all(&body.as_bytes()[..10]).unwrap();
    // Another query after it: the earlier ones were accepted by then.
    assert!(engine.knows("key"));
    engine.signal(Signal::SIGTERM);
    wait_until("the port is closed", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, engine.port)).is_err()
    });
    begun.write_all(&body.as_bytes()[10..]).unwrap();
    let mut answer = String::new();
    begun.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(r#""known":true"#),
        "{answer}"
    );
    let ended = engine.process.0.wait().unwrap();
    assert!(ended.success(), "{ended}");
    drop(idle);
}

#[test]
fn serve_acl_refuses_to_start_with_invalid_file() {
    let (temp, file) = acl(&[("one", &["all"])]);
    let serve = |file: &Path, more: &str| {
        run(
            authproxy(&["serve-acl", "--acl-file", file.to_str().unwrap(), more]),
            "",
        )
    };
    let checked = serve(&file, "--check").exits(0);
    assert!(checked.stdout.contains("1 keys"), "{}", checked.stdout);
    serve(&temp.path().join("none"), "--check")
        .exits(78)
        .logs("none");
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    serve(&file, &listen)
        .exits(73)
        .logs("choose another --listen");
}

#[test]
fn examples_of_acl_page_are_valid() {
    let page = std::fs::read_to_string(workspace().join("bins/authproxy/ACL.md")).unwrap();
    let example = |language: &str, number: usize| {
        let start = format!("```{language}\n");
        let block = page.split(&start).nth(number + 1).unwrap();
        block.split("```").next().unwrap().to_owned()
    };
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("acl.yaml");
    std::fs::write(&file, example("yaml", 0)).unwrap();
    let engine = ServeAclProcess::start(&file, &[]);
    let (status, known) = engine.exchange("POST", "/", &example("json", 0));
    assert_eq!(
        (status, known.contains(r#""id":"alice""#)),
        (200, true),
        "{known}"
    );

    let live = example("yaml", 1);
    let live_file = temp.path().join("liveconf.yaml");
    std::fs::write(&live_file, live).unwrap();
    let liveconf = authproxy::testing::LiveconfBackend::open(&live_file);
    assert_eq!(liveconf.status().servers.len(), 2);

    let acl = PermissionsServer::start();
    let engine = format!("--acl-server={}", acl.url());
    for (number, code) in [(1, 0), (2, 77)] {
        acl.set_behavior(PermissionsBehavior::Status(200, example("json", number)));
        check(&[&engine], &["--path=/stats/x", "--right=read"], "key").exits(code);
    }
}
