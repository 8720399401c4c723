//! The real authproxy as a process, and a client that sends it exactly the bytes it is given.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::haproxy::send_signal;
use crate::{ChildGuard, bin, free_port, wait_limit, wait_until};

/// How often another pair of ports is tried when another process took one meanwhile.
const ATTEMPTS: u32 = 5;

/// A running authproxy, killed on drop.
#[derive(Debug)]
pub struct AuthproxyProcess {
    process: ChildGuard,
    args: Vec<String>,
    port: u16,
    admin: u16,
    log: Arc<Mutex<String>>,
    directory: TempDir,
}

/// A response as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawResponse {
    pub status: u16,
    pub head: String,
    /// What follows the head, chunk framing included.
    pub body: String,
}

impl AuthproxyProcess {
    /// Starts authproxy with these flags, an admin listener and free ports of 127.0.0.1, and waits until it accepts
    /// connections.
    #[must_use]
    #[track_caller]
    pub fn start(args: &[&str]) -> Self {
        Self::start_with_launcher(&["env"], args)
    }

    /// Starts authproxy in front of a server of this host, with the right `all`.
    #[must_use]
    #[track_caller]
    pub fn start_for_upstream(server: u16, args: &[&str]) -> Self {
        let server = format!("--server=http://localhost:{server}");
        let mut all = vec![server.as_str(), "--right=all"];
        all.extend(args);
        Self::start(&all)
    }

    /// Starts authproxy through a launcher that execs it.
    #[must_use]
    #[track_caller]
    pub fn start_with_launcher(launcher: &[&str], args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut output = String::new();
        for _ in 0..ATTEMPTS {
            let (port, admin) = (free_port(), free_port());
            let directory = tempfile::tempdir().unwrap();
            match launch(launcher, &args, port, admin, directory.path()) {
                Ok((process, log)) => {
                    return Self {
                        process,
                        args,
                        port,
                        admin,
                        log,
                        directory,
                    };
                }
                Err(log) => output = log,
            }
            if !output.contains("in use") {
                break;
            }
        }
        panic!("authproxy ended: {output}");
    }

    /// Kills and restarts it with the same ports and flags; the log is cleared.
    pub fn restart(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        let (port, admin) = (self.port, self.admin);
        let started = launch(&["env"], &self.args, port, admin, self.directory.path());
        let (process, log) = started.unwrap_or_else(|log| panic!("authproxy ended: {log}"));
        (self.process, self.log) = (process, log);
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub const fn admin(&self) -> u16 {
        self.admin
    }

    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.0.id().try_into().unwrap()
    }

    /// The working directory, where a test may put files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All of stderr so far: the log and the access log.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log contains `text`.
    #[track_caller]
    pub fn logs(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || {
            self.log().contains(text)
        });
    }

    /// Sends `GET path` with these header lines (without CR LF) on a new connection.
    #[must_use]
    #[track_caller]
    pub fn get(&self, path: &str, headers: &[&str]) -> RawResponse {
        send_request(self.port, "GET", path, headers)
    }

    #[must_use]
    #[track_caller]
    pub fn get_with_key(&self, path: &str, key: &str) -> RawResponse {
        self.get(path, &[&format!("X-API-Key: {key}")])
    }

    /// The value of a metric; `name` includes the labels.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = send_request(self.admin, "GET", "/metrics", &[]).body;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        values.find_map(|value| value.strip_prefix(' ')?.parse().ok())
    }

    /// The sum of a metric over all label values.
    #[must_use]
    pub fn metric_sum(&self, name: &str) -> f64 {
        let text = send_request(self.admin, "GET", "/metrics", &[]).body;
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let values = lines.filter(|rest| rest.starts_with([' ', '{']));
        values
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        let answer = send_request(self.admin, "GET", "/status", &[]);
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    #[must_use]
    #[track_caller]
    pub fn request_admin(&self, method: &str, path: &str) -> RawResponse {
        send_request(self.admin, method, path, &["Content-Length: 0"])
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the exit code; the negative signal number when a signal ended it.
    #[track_caller]
    pub fn wait_exit(mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let mut status = None;
        wait_until("authproxy ends", || {
            status = self.process.0.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        status.code().unwrap_or(-status.signal().unwrap_or(0))
    }
}

/// Starts the process and waits until it accepts connections; the error is the log of one that exited.
fn launch(
    launcher: &[&str],
    args: &[String],
    port: u16,
    admin: u16,
    directory: &Path,
) -> Result<(ChildGuard, Arc<Mutex<String>>), String> {
    let child = Command::new(launcher[0])
        .args(&launcher[1..])
        .arg(bin("authproxy"))
        .arg(format!("--port={port}"))
        .arg(format!("--admin=127.0.0.1:{admin}"))
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = ChildGuard(child);
    let log = Arc::new(Mutex::new(String::new()));
    let reader = follow(&mut process, &log);
    let mut ended = false;
    wait_until("authproxy accepts connections", || {
        ended = process.0.try_wait().unwrap().is_some();
        ended || [port, admin].iter().all(|port| connect(*port).is_ok())
    });
    if ended {
        // The last lines may still be in the pipe.
        reader.join().unwrap();
        return Err(log.lock().unwrap().clone());
    }
    Ok((process, log))
}

fn follow(process: &mut ChildGuard, log: &Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    let stderr = process.0.stderr.take().unwrap();
    let log = log.clone();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while lines
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            log.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    })
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(wait_limit()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends one request with these header lines (without CR LF) on a new connection.
///
/// # Panics
/// The response is missing or is not HTTP.
#[must_use]
#[track_caller]
pub fn send_request(port: u16, method: &str, path: &str, headers: &[&str]) -> RawResponse {
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|line| line.starts_with("Host:")) {
        request.push_str("Host: localhost\r\n");
    }
    for line in headers {
        request.push_str(line);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let bytes = exchange_bytes(port, request.as_bytes());
    RawResponse::parse(&bytes).unwrap_or_else(|| panic!("no answer to {request:?}: {bytes:?}"))
}

/// Sends bytes and reads until the peer closes or resets.
///
/// # Panics
/// The peer does not close in time.
#[must_use]
#[track_caller]
pub fn exchange_bytes(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(port).unwrap();
    // A server that answers early may close before all bytes are sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {answer:?}");
    }
    answer
}

impl RawResponse {
    /// Parses the first response; the rest of the bytes is its body.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some(Self {
            status: head.split(' ').nth(1)?.parse().ok()?,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// The value of the first header with this name (case-insensitive).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        Some(found.1.trim())
    }

    /// The `error` field of a response that authproxy itself wrote.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let body: Value = serde_json::from_str(&self.body).ok()?;
        Some(body["error"].as_str()?.to_owned())
    }
}
