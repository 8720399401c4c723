//! What a person asks of synapse, and what it says of itself: the verbs, `/status` and `/metrics`, StatsD, systemd.
//!
//! Here is how they are asked, and a configuration to ask about; what they must say is in the modules.

mod offline;
mod running;
mod told;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostkit_tests::{ChildGuard, bin, free_port, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a command said.
pub(super) struct Said {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// The line that begins with this word.
    fn line(&self, word: &str) -> &str {
        let found = self
            .out
            .lines()
            .find(|line| line.split_whitespace().next() == Some(word));
        found.unwrap_or_else(|| panic!("no line of {word}:\n{}", self.out))
    }
}

/// Runs synapse to its end.
pub(super) fn ask(arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let directory = tempfile::tempdir().unwrap();
    let (out, err) = (directory.path().join("out"), directory.path().join("err"));
    let child = command(arguments, variables)
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn();
    let mut child = ChildGuard(child.unwrap());
    let mut ended = None;
    wait_until(&format!("synapse {arguments:?} ends"), || {
        ended = child.0.try_wait().unwrap();
        ended.is_some()
    });
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    Said {
        code: ended.unwrap().code().expect("no signal"),
        out: text(&out),
        err: text(&err),
    }
}

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(bin("synapse"));
    command
        .args(arguments)
        .env_remove("SYNAPSE_CONFIG")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command
}

/// A configuration that needs nothing running.
struct Desk {
    directory: TempDir,
    config: Value,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = json!({
            "services": {"eightball": {
                "discovery": {"method": "file", "path": path("members.json")},
                "haproxy": {"port": free_port(), "server_options": "check inter 1s"},
            }},
            "haproxy": {
                "global": ["maxconn 100"],
                "defaults": ["mode http", "timeout connect 1s", "timeout client 1s", "timeout server 1s"],
                "bind_address": "127.0.0.1",
                "config_file_path": path("haproxy.cfg"),
                "socket_file_path": path("haproxy.sock"),
                "reload_command": "true",
                "state_file_path": path("state.json"),
            },
        });
        let desk = Self { directory, config };
        desk.write();
        desk.members(
            &json!([{"host": "127.0.0.1", "port": 31001}, {"host": "127.0.0.2", "port": 31002}]),
        );
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self) {
        fs::write(self.path("synapse.yaml"), self.config.to_string()).unwrap();
    }

    fn members(&self, list: &Value) {
        fs::write(self.path("members.json"), list.to_string()).unwrap();
    }

    fn ask(&self, arguments: &[&str]) -> Said {
        let config = self.path("synapse.yaml");
        ask(
            &[&["-c", config.to_str().unwrap()], arguments].concat(),
            &[],
        )
    }

    fn start(&self, more: &[&str], variables: &[(&str, &str)]) -> ChildGuard {
        let config = self.path("synapse.yaml");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let arguments = [&["-c", config.to_str().unwrap()], more].concat();
        ChildGuard(command(&arguments, variables).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}
