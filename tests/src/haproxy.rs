//! Debian's HAProxy, in both modes that synapse reloads: a daemon with a pid file, and a master with workers.
//!
//! It talks to the sockets with code of its own, independent of the code under test.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{find_program, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaproxyMode {
    /// `-D -p PIDFILE`: reloaded by a new process with `-x SOCKET -sf PIDS`.
    Daemon,
    /// `-W -S MASTER-SOCKET`: reloaded by its master.
    Master,
}

/// An HAProxy in a directory of its own. Dropping it kills every process that was started on its configuration file.
pub struct HaproxyInstance {
    directory: PathBuf,
    /// `None` in a process that only looks at an instance of another one.
    owned: Option<TempDir>,
    mode: HaproxyMode,
    real: PathBuf,
}

impl fmt::Debug for HaproxyInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Haproxy")
            .field("directory", &self.directory)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl HaproxyInstance {
    /// Starts HAProxy with these proxies below [`HaproxyInstance::head`].
    ///
    /// # Errors
    /// haproxy is not installed.
    pub fn start(mode: HaproxyMode, proxies: &str) -> Result<Self, String> {
        let haproxy = Self::prepare(mode)?;
        haproxy.write(&format!("{}{proxies}", haproxy.head()));
        haproxy.run();
        Ok(haproxy)
    }

    /// Creates the directory without a configuration, for a test that writes the whole file.
    ///
    /// # Errors
    /// haproxy is not installed.
    pub fn prepare(mode: HaproxyMode) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let haproxy = Self {
            directory: directory.path().to_owned(),
            owned: Some(directory),
            mode,
            real: find_program("haproxy")?,
        };
        // Records every start with its arguments.
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$*\" >> '{}'\nexec '{}' \"$@\"\n",
            haproxy.log().display(),
            haproxy.real.display()
        );
        let source = haproxy.directory().join("haproxy.sh");
        fs::write(&source, script).unwrap();
        // Copied by another process: a fork of this one while the file is open for writing would make its exec fail
        // (ETXTBSY).
        let status = Command::new("install")
            .args(["-m", "755"])
            .arg(&source)
            .arg(haproxy.binary())
            .status()
            .unwrap();
        assert!(status.success(), "install: {status}");
        Ok(haproxy)
    }

    /// Opens the instance that another process of the test prepared in `directory`; it is not stopped on drop.
    ///
    /// # Panics
    /// haproxy is not installed.
    #[must_use]
    pub fn at(directory: &Path, mode: HaproxyMode) -> Self {
        Self {
            directory: directory.to_owned(),
            owned: None,
            mode,
            real: find_program("haproxy").unwrap(),
        }
    }

    /// A `global` section with an admin socket that passes listeners on, and `defaults` for http with short timeouts.
    #[must_use]
    pub fn head(&self) -> String {
        format!(
            "global\n    maxconn 1000\n    hard-stop-after 10s\n    stats socket {} mode 600 level admin expose-fd listeners\n\
             defaults\n    mode http\n    timeout connect 2s\n    timeout client 10s\n    timeout server 10s\n    \
             option idle-close-on-response\n",
            self.socket().display()
        )
    }

    /// Its directory; a test may keep other files there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory().join("haproxy.cfg")
    }

    /// The stats socket of [`HaproxyInstance::head`]; a configuration without it must declare the same one.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory().join("stats.sock")
    }

    /// The master's socket, in [`HaproxyMode::Master`].
    #[must_use]
    pub fn master_socket(&self) -> PathBuf {
        self.directory().join("master.sock")
    }

    /// The pid file, in [`HaproxyMode::Daemon`].
    #[must_use]
    pub fn pid_file(&self) -> PathBuf {
        self.directory().join("haproxy.pid")
    }

    /// A wrapper of haproxy that records every run.
    #[must_use]
    pub fn binary(&self) -> PathBuf {
        self.directory().join("haproxy")
    }

    fn log(&self) -> PathBuf {
        self.directory().join("runs")
    }

    /// The arguments of every run of [`HaproxyInstance::binary`] so far, including `-c`. A re-exec of the master does
    /// not count.
    #[must_use]
    pub fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn write(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    /// Starts HAProxy on the current file and waits until it answers.
    pub fn run(&self) {
        let mut command = Command::new(self.binary());
        command.arg("-f").arg(self.config());
        match self.mode {
            HaproxyMode::Daemon => command.arg("-D").arg("-p").arg(self.pid_file()),
            HaproxyMode::Master => command
                .args(["-W", "-D", "-S"])
                .arg(format!("{},mode,600", self.master_socket().display())),
        };
        // A file, because a daemon keeps a pipe open and reading it would not end.
        let output = self.directory().join("stderr");
        let stderr = fs::File::create(&output).unwrap();
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .status()
            .unwrap();
        let output = || fs::read_to_string(&output).unwrap_or_default();
        assert!(status.success(), "haproxy does not start: {}", output());
        // The master re-executes itself once its worker runs, and answers reliably only then.
        wait_until("haproxy answers", || {
            self.ask("show info").is_some()
                && (self.mode == HaproxyMode::Daemon || self.ask_master("show proc").is_some())
        });
    }

    /// The reply of the stats socket to one command; `None` when the connection is refused.
    pub fn ask(&self, command: &str) -> Option<String> {
        ask(&self.socket(), command)
    }

    /// The same for the master's socket.
    #[must_use]
    pub fn ask_master(&self, command: &str) -> Option<String> {
        ask(&self.master_socket(), command)
    }

    /// The pid of the serving process; 0 when it does not answer.
    #[must_use]
    pub fn worker(&self) -> i32 {
        let info = self.ask("show info").unwrap_or_default();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "));
        pid.and_then(|pid| pid.parse().ok()).unwrap_or_default()
    }

    /// The pid of the master.
    ///
    /// # Panics
    /// No master runs.
    #[must_use]
    pub fn master(&self) -> i32 {
        self.proc_line("master").0
    }

    /// The number of reloads since the start.
    ///
    /// # Panics
    /// The master does not answer.
    #[must_use]
    pub fn reloads(&self) -> usize {
        match self.mode {
            HaproxyMode::Master => self.proc_line("master").1,
            HaproxyMode::Daemon => {
                let runs = self.runs();
                runs.iter().filter(|run| run.contains(" -sf ")).count()
            }
        }
    }

    /// Pid and reloads of the first process of this type in `show proc`.
    fn proc_line(&self, kind: &str) -> (i32, usize) {
        let mut text = String::new();
        // Commands are lost while the master re-executes itself.
        wait_until("the master answers", || {
            text = self.ask_master("show proc").unwrap_or_default();
            text.contains(kind)
        });
        let fields = text.lines().map(|line| line.split_whitespace());
        let mut found = fields
            .map(Iterator::collect::<Vec<_>>)
            .filter(|fields| fields.get(1) == Some(&kind));
        let fields = found.next().unwrap_or_else(|| panic!("no {kind}: {text}"));
        (fields[0].parse().unwrap(), fields[2].parse().unwrap())
    }

    /// All processes that were started on its file and still run: masters, workers and leftovers.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let config = self.config();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let path = PathBuf::from(format!("/proc/{pid}"));
                // A zombie has no command line.
                let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
                let program = fs::read_link(path.join("exe")).unwrap_or_default();
                program == self.real
                    && arguments
                        .split(|byte| *byte == 0)
                        .any(|argument| argument == config.as_os_str().as_encoded_bytes())
            })
            .collect()
    }

    /// Sends a signal to the serving process.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.worker(), signal);
    }

    /// Kills all processes with SIGKILL and waits for their end; sockets and files stay.
    pub fn kill(&self) {
        let mut killed = Vec::new();
        wait_until("haproxy has ended", || {
            let processes = self.processes();
            for pid in &processes {
                send_signal(*pid, Signal::SIGKILL);
            }
            killed.extend(&processes);
            processes.is_empty() && killed.iter().all(|pid| ended(*pid))
        });
    }

    pub fn restart(&self) {
        self.kill();
        self.run();
    }
}

impl Drop for HaproxyInstance {
    fn drop(&mut self) {
        if self.owned.is_none() {
            return;
        }
        // The master may be starting another worker at this moment.
        for _ in 0..50 {
            let processes = self.processes();
            if processes.is_empty() {
                return;
            }
            for pid in processes {
                send_signal(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Sends a signal to a process that may have ended. Pids of 0 and below would address process groups.
pub fn send_signal(pid: i32, signal: Signal) {
    if pid > 1 {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Whether a process has released its resources. A dying process has no command line, but still listens.
fn ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    matches!(state, None | Some("Z" | "X"))
}

fn ask(socket: &Path, command: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(format!("{command}\n").as_bytes()).ok()?;
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}
