//! A HAProxy with a fixed configuration, in master-worker mode, and the few things these tests do to it.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hostkit_tests::{ChildGuard, find_program, free_port, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A running HAProxy. Dropping it stops it.
pub(super) struct Front {
    process: Option<ChildGuard>,
    directory: TempDir,
    address: SocketAddr,
}

impl Front {
    /// Starts it in front of these server lines. `extra` are lines of its `defaults`.
    pub(super) fn start(extra: &[&str], servers: &[String]) -> Result<Self, String> {
        find_program("haproxy")?;
        let directory = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let lines = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| format!("\t{line}\n"))
                .collect::<String>()
        };
        let servers: Vec<_> = servers.iter().map(String::as_str).collect();
        let text = format!(
            "global\n\tmaxconn 1000\n\tstats socket {socket} mode 600 level admin expose-fd listeners\n\
             \thard-stop-after 20s\n\
             defaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 30s\n\ttimeout server 30s\n\
             \toption redispatch\n{extra}\
             frontend eightball\n\tbind {address}\n\tdefault_backend eightball\n\
             backend eightball\n\tbalance roundrobin\n{servers}",
            socket = directory.path().join("stats.sock").display(),
            extra = lines(extra),
            servers = lines(&servers),
        );
        std::fs::write(directory.path().join("haproxy.cfg"), text).unwrap();
        let mut front = Self {
            process: None,
            directory,
            address,
        };
        front.launch();
        Ok(front)
    }

    /// Where its frontend listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn launch(&mut self) {
        let child = Command::new(find_program("haproxy").unwrap())
            .args(["-W", "-db", "-f"])
            .arg(self.path("haproxy.cfg"))
            .arg("-S")
            .arg(format!("{},mode,600", self.path("master.sock").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(ChildGuard(child));
        wait_until("haproxy accepts connections", || {
            std::net::TcpStream::connect(self.address).is_ok()
        });
    }

    /// Stops it at once and starts another: what hitless is not.
    pub(super) fn restart(&mut self) {
        self.end();
        self.launch();
    }

    /// Makes it read its configuration again, and waits for the new worker.
    pub(super) fn reload(&self) {
        let before = self.worker();
        kill(self.pid(), Signal::SIGUSR2).unwrap();
        wait_until("a new worker runs", || {
            // The master is away for a moment while it executes itself.
            self.worker().is_some_and(|worker| Some(worker) != before)
        });
    }

    fn pid(&self) -> Pid {
        let id = self.process.as_ref().expect("it runs").0.id();
        Pid::from_raw(id.try_into().unwrap())
    }

    /// The process id of the worker that accepts connections, by `show proc` of the master.
    fn worker(&self) -> Option<u32> {
        let said = say(&self.path("master.sock"), "show proc").ok()?;
        let mut lines = said
            .lines()
            .skip_while(|line| !line.starts_with("# workers"));
        let fields: Vec<_> = lines.nth(1)?.split_whitespace().collect();
        fields.first()?.parse().ok()
    }

    /// What the runtime API answers to a command.
    pub(super) fn runtime(&self, command: &str) -> String {
        say(&self.path("stats.sock"), command).unwrap()
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The master ends its workers with itself, but not when it is killed.
            let id = process.0.id().try_into().unwrap();
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            let _ = process.0.wait();
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends a command to one of HAProxy's sockets.
pub(super) fn say(socket: &Path, command: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    writeln!(stream, "{command}")?;
    // The master's socket of 2.6 stays open after its answer until it is told that no command follows.
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
