//! proxy-healthcheck as a process, over real sockets, in front of scripted servers.

mod contract;
mod end;
mod many;
mod once;
mod servers;
mod usage;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use hostkit_tests::{ChildGuard, bin, wait_limit, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A response of the checker.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HealthResponse {
    status: u16,
    body: String,
    head: String,
}

impl HealthResponse {
    /// Status and body, which is all that Aurora sees.
    fn status_and_body(&self) -> (u16, &str) {
        (self.status, &self.body)
    }
}

/// A running checker in a sandbox of its own.
struct CheckerProcess {
    child: ChildGuard,
    port: u16,
    log: Arc<Mutex<String>>,
    sandbox: TempDir,
}

impl CheckerProcess {
    /// On a free port, once it listens there.
    #[track_caller]
    fn start(args: &[&str]) -> Self {
        Self::start_by(&["env"], args)
    }

    /// The same, started by another program.
    #[track_caller]
    fn start_by(launcher: &[&str], args: &[&str]) -> Self {
        let sandbox = tempfile::tempdir().unwrap();
        let child = Command::new(launcher[0])
            .args(&launcher[1..])
            .arg(bin("proxy-healthcheck"))
            .arg("--port=0")
            .args(args)
            .current_dir(sandbox.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = ChildGuard(child);
        let log = follow(&mut child);
        let mut port = None;
        wait_until("the checker listens", || {
            let log = log.lock().unwrap();
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {log}");
            port = started_port(&log);
            port.is_some()
        });
        Self {
            child,
            port: port.unwrap(),
            log,
            sandbox,
        }
    }

    /// In front of a server of this host, with a deadline that a test can wait for.
    #[track_caller]
    fn before(port: u16, args: &[&str]) -> Self {
        let server = format!("--test_port={port}");
        let mut all = vec!["--url=/private/stats/", &server];
        if !args.iter().any(|arg| arg.starts_with("--timeout")) {
            all.push("--timeout=300ms");
        }
        all.extend(args);
        Self::start(&all)
    }

    fn ask(&self, method: &str, path: &str) -> HealthResponse {
        ask(LOCALHOST, self.port, method, path)
    }

    #[track_caller]
    fn health(&self) -> (u16, String) {
        let answer = self.ask("GET", "/health");
        (answer.status, answer.body)
    }

    /// The results, newest first.
    fn results(&self) -> Vec<Value> {
        let history: Value = serde_json::from_str(&self.ask("GET", "/history").body).unwrap();
        history["results"].as_array().unwrap().clone()
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    fn logs(&self, text: &str) {
        wait_until(&format!("{text:?} in {}", self.log()), || {
            self.log().contains(text)
        });
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.0.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code, once it has ended by itself.
    #[track_caller]
    fn wait_for_exit(mut self) -> i32 {
        let mut status = None;
        wait_until("the checker ends", || {
            status = self.child.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }
}

/// The port in `health=127.0.0.1:PORT`, plain or in JSON.
fn started_port(log: &str) -> Option<u16> {
    let line = log.lines().find(|line| line.contains("started"))?;
    let rest = line.split_once("health")?.1.split_once("127.0.0.1:")?.1;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn follow(child: &mut ChildGuard) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let (sink, stderr) = (Arc::clone(&log), child.0.stderr.take().unwrap());
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = sink.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}

#[track_caller]
fn ask(host: IpAddr, port: u16, method: &str, path: &str) -> HealthResponse {
    let mut stream = TcpStream::connect((host, port)).unwrap();
    stream.set_read_timeout(Some(wait_limit())).unwrap();
    let length = if method == "POST" {
        "Content-Length: 0\r\n"
    } else {
        ""
    };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n"
    )
    .unwrap();
    read(stream)
}

/// A response, which ends with its connection and has the length that it declares.
#[track_caller]
fn read(mut stream: TcpStream) -> HealthResponse {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a response");
    HealthResponse {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        body: body.to_owned(),
        head: head.to_ascii_lowercase(),
    }
}
