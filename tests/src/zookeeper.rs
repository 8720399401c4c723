//! Real ZooKeeper servers: Debian's 3.8, and a 3.4 that `tests/run` fetches.
//!
//! Owns the server process, its port and its data. [`announcer`] owns what tasks write into it, `relay` injects faults
//! on the connection.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{ChildGuard, find_program, free_port, tools, wait_until};

pub mod announcer;
mod relay;

pub use announcer::{AnnouncerSession, ServerSetMember};
pub use relay::ZookeeperRelay;

const DEBIAN_JARS: &str = "/usr/share/java";

/// How often another port is tried when another process took it meanwhile.
const ATTEMPTS: u32 = 5;

/// ZooKeeper's `tickTime` in milliseconds. Session timeouts are between 2 and 20 ticks.
const TICK: u32 = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZookeeperRelease {
    /// Debian's.
    Current,
    /// 3.4: no persistent watches, no removal of watches.
    Old,
}

/// A ZooKeeper server on loopback. Dropping it stops it and removes its data.
#[derive(Debug)]
pub struct ZookeeperServer {
    process: Option<ChildGuard>,
    home: TempDir,
    port: u16,
    release: ZookeeperRelease,
    classpath: String,
}

impl ZookeeperServer {
    /// Starts Debian's server and waits until it answers.
    ///
    /// # Errors
    /// zookeeper or java is not installed.
    pub fn start() -> Result<Self, String> {
        let jars = [
            format!("{DEBIAN_JARS}/zookeeper.jar"),
            format!("{DEBIAN_JARS}/slf4j-simple.jar"),
        ];
        Self::launch(ZookeeperRelease::Current, &jars.map(PathBuf::from))
    }

    /// Starts a 3.4 server and waits until it answers.
    ///
    /// # Errors
    /// Its jars were not fetched, or java is not installed.
    pub fn start_old() -> Result<Self, String> {
        let directory = tools().join("zookeeper-3.4");
        let listing = std::fs::read_dir(&directory)
            .map_err(|_| format!("{} is not there: tests/run fetches it", directory.display()))?;
        let mut jars: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).collect();
        jars.sort();
        Self::launch(ZookeeperRelease::Old, &jars)
    }

    fn launch(release: ZookeeperRelease, jars: &[PathBuf]) -> Result<Self, String> {
        find_program("java")?;
        for jar in jars {
            if !jar.is_file() {
                return Err(format!("{} is not there", jar.display()));
            }
        }
        let home = tempfile::tempdir().unwrap();
        let mut classpath = home.path().display().to_string();
        for jar in jars {
            classpath.push(':');
            classpath.push_str(&jar.display().to_string());
        }
        let mut server = Self {
            process: None,
            home,
            port: 0,
            release,
            classpath,
        };
        for _ in 0..ATTEMPTS {
            server.port = free_port();
            if server.run() {
                return Ok(server);
            }
        }
        panic!("ZooKeeper does not start: {}", server.log());
    }

    /// Runs the server on its port and returns whether it answers; it does not when another process has the port.
    fn run(&mut self) -> bool {
        let home = self.home.path();
        let data = home.join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(home.join("zoo.cfg"), configuration(&data, self.port)).unwrap();
        std::fs::write(home.join("log4j.properties"), LOG4J).unwrap();
        let log = std::fs::File::create(self.log_file()).unwrap();
        let child = Command::new(find_program("java").unwrap())
            .args(["-Xmx128m", "-Xss256k", "-XX:+UseSerialGC"])
            .args(["-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"])
            .args([
                "-Dzookeeper.forceSync=no",
                "-Dzookeeper.jmx.log4j.disable=true",
            ])
            .args([
                "-Dzookeeper.4lw.commands.whitelist=*",
                "-cp",
                &self.classpath,
            ])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(home.join("zoo.cfg"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut process = ChildGuard(child);
        let mut ended = false;
        wait_until("ZooKeeper answers", || {
            ended = process.0.try_wait().unwrap().is_some();
            // `ruok` is answered before sessions are accepted: `srvr` names a mode only afterwards.
            ended
                || self
                    .ask("srvr")
                    .is_some_and(|answer| answer.contains("Mode: "))
        });
        self.process = (!ended).then_some(process);
        self.process.is_some()
    }

    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    #[must_use]
    pub fn release(&self) -> ZookeeperRelease {
        self.release
    }

    /// Kills it (SIGKILL). Acknowledged writes are on its disk.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port with the same data.
    ///
    /// # Panics
    /// Another process has taken the port.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "ZooKeeper does not start again: {}", self.log());
    }

    /// Starts it again on the same port without data, like a wrong or rebuilt ensemble.
    ///
    /// # Panics
    /// Another process has taken the port.
    pub fn restart_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.home.path().join("data")).unwrap();
        self.restart();
    }

    /// Pauses it (SIGSTOP): connections stay open without replies.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("a server that runs");
        let pid = Pid::from_raw(i32::try_from(process.0.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// The reply to a four-letter word, if any.
    #[must_use]
    pub fn ask(&self, word: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let deadline = Some(Duration::from_secs(2));
        stream.set_read_timeout(deadline).ok()?;
        stream.set_write_timeout(deadline).ok()?;
        stream.write_all(word.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Its counters by name (`mntr`).
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, String> {
        let answer = self.ask("mntr").unwrap_or_default();
        let pairs = answer.lines().filter_map(|line| line.split_once('\t'));
        pairs
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    }

    /// A counter that is a whole number; 0 when the server does not answer.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.counters();
        let value = counters.get(name).map(String::as_str).unwrap_or_default();
        value.split('.').next().unwrap().parse().unwrap_or(0)
    }

    /// Packets received from clients since it started: requests, pings, four-letter words.
    #[must_use]
    pub fn packets_received(&self) -> u64 {
        self.counter("zk_packets_received")
    }

    /// How many watches its clients have set (`wchs`).
    #[must_use]
    pub fn watches(&self) -> u64 {
        let answer = self.ask("wchs").unwrap_or_default();
        let total = answer
            .lines()
            .find_map(|line| line.strip_prefix("Total watches:"));
        total
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    /// Its log since it was last started.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

/// Without it, log4j of 3.4 writes only a warning.
const LOG4J: &str = "\
log4j.rootLogger=INFO, console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d %-5p %c{1}: %m%n
";

fn configuration(data: &Path, port: u16) -> String {
    format!(
        "tickTime={TICK}\ninitLimit=5\nsyncLimit=2\ndataDir={data}\nclientPort={port}\n\
         clientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\n",
        data = data.display(),
    )
}
