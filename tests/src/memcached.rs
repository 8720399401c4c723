//! Debian's memcached: any number of servers, each of which can be killed, come back empty on the same port, or stall
//! without closing connections.
//!
//! It talks the text protocol with code of its own, independent of the code under test.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::haproxy::send_signal;
use crate::{ChildGuard, find_program, free_port, wait_until};

/// How often another port is tried when another process took it meanwhile.
const ATTEMPTS: u32 = 5;

/// The reply to a command that is already running.
const BUSY: &str = "BUSY";

/// A running memcached with 16 MiB, stopped on drop.
#[derive(Debug)]
pub struct MemcachedServer {
    port: u16,
    process: Mutex<Option<ChildGuard>>,
}

impl MemcachedServer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// memcached is not installed.
    pub fn start() -> Result<Self, String> {
        find_program("memcached")?;
        for _ in 0..ATTEMPTS {
            let port = free_port();
            if let Some(process) = launch(port) {
                let process = Mutex::new(Some(process));
                return Ok(Self { port, process });
            }
        }
        panic!("memcached does not start");
    }

    /// Starts several servers.
    ///
    /// # Errors
    /// memcached is not installed.
    pub fn start_several(count: usize) -> Result<Vec<Self>, String> {
        (0..count).map(|_| Self::start()).collect()
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as in `--memcache-servers`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        let process = self.process.lock().unwrap();
        let process = process.as_ref().expect("it runs");
        process.0.id().try_into().unwrap()
    }

    /// Kills it; its entries are lost.
    pub fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    /// Starts it again on the same port, empty.
    ///
    /// # Panics
    /// Another process has the port now.
    pub fn restart(&self) {
        self.kill();
        let process = launch(self.port).expect("the port is still free");
        *self.process.lock().unwrap() = Some(process);
    }

    /// Stops the process (SIGSTOP): the kernel accepts connections, but no reply comes.
    pub fn stall(&self) {
        send_signal(self.pid(), Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        send_signal(self.pid(), Signal::SIGCONT);
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut stream = self.connect();
        write!(stream, "get {key}\r\n").unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let length = line.trim_end().strip_prefix("VALUE ")?.rsplit(' ').next()?;
        let mut value = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut value).unwrap();
        Some(value)
    }

    /// Stores any bytes under a key, as any host of the network can.
    pub fn set(&self, key: &str, value: &[u8]) {
        let mut stream = self.connect();
        write!(stream, "set {key} 0 0 {}\r\n", value.len()).unwrap();
        stream.write_all(value).unwrap();
        stream.write_all(b"\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line, "STORED\r\n");
    }

    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let mut lines = Vec::new();
        // One crawler runs at a time.
        wait_until("the crawler is free", || {
            lines = self.ask("lru_crawler metadump all");
            !lines.iter().any(|line| line.starts_with(BUSY))
        });
        let names = lines.iter().filter_map(|line| {
            let name = line.split(' ').next()?.strip_prefix("key=")?;
            // memcached prints keys percent-encoded.
            Some(name.replace("%3A", ":"))
        });
        names.collect()
    }

    /// A counter, such as `cmd_get`.
    #[must_use]
    pub fn stat(&self, name: &str) -> u64 {
        let lines = self.ask("stats");
        let start = format!("STAT {name} ");
        let value = lines.iter().find_map(|line| line.strip_prefix(&start));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {lines:?}"))
    }

    /// Sends a command and returns the reply up to its end line, or up to `BUSY`.
    fn ask(&self, command: &str) -> Vec<String> {
        let mut stream = self.connect();
        write!(stream, "{command}\r\n").unwrap();
        let mut lines = Vec::new();
        for line in BufReader::new(stream).lines() {
            match line.unwrap() {
                line if line == "END" => break,
                line => lines.push(line),
            }
            if lines.last().is_some_and(|line| line.starts_with(BUSY)) {
                break;
            }
        }
        lines
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let limit = Some(Duration::from_secs(5));
        stream.set_read_timeout(limit).unwrap();
        stream
    }
}

/// The value of `--memcache-servers` for these servers.
#[must_use]
pub fn join_addresses(servers: &[MemcachedServer]) -> String {
    let addresses: Vec<String> = servers.iter().map(MemcachedServer::address).collect();
    addresses.join(",")
}

/// Starts memcached; `None` when it exited because the port is taken.
fn launch(port: u16) -> Option<ChildGuard> {
    let child = Command::new(find_program("memcached").unwrap())
        .args(["-l", "127.0.0.1", "-U", "0", "-m", "16", "-t", "1", "-p"])
        .arg(port.to_string())
        // As root, memcached refuses to run without `-u`; other users ignore it.
        .args(["-u", "root"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut process = ChildGuard(child);
    let mut ended = false;
    wait_until("memcached accepts connections", || {
        ended = process.0.try_wait().unwrap().is_some();
        ended || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
    (!ended).then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::or_skip;

    #[test]
    fn server_keeps_values_until_killed() {
        let Some(servers) = or_skip("memcached", MemcachedServer::start_several(2)) else {
            return;
        };
        let [one, other] = &servers[..] else {
            panic!("two");
        };
        one.set("k", b"a\r\nb");
        assert_eq!(one.get("k").unwrap(), b"a\r\nb");
        assert_eq!(other.get("k"), None);
        assert_eq!(one.keys(), ["k"]);
        assert_eq!(one.stat("cmd_get"), 1);
        one.kill();
        assert!(TcpStream::connect(("127.0.0.1", one.port())).is_err());
        one.restart();
        assert_eq!(one.get("k"), None);
    }

    #[test]
    fn stalled_server_accepts_connections_and_sends_nothing() {
        let Some(server) = or_skip("memcached", MemcachedServer::start()) else {
            return;
        };
        server.stall();
        let mut stream = server.connect();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        stream.write_all(b"version\r\n").unwrap();
        assert!(stream.read(&mut [0; 16]).is_err());
        server.resume();
        assert_eq!(server.get("k"), None);
    }
}
