//! What a person asks of synapse, and what it says of itself: the verbs, `/status` and `/metrics`, StatsD, systemd.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hostkit_tests::haproxy::{Mode, send};
use hostkit_tests::tasks::{Task, Tasks};
use hostkit_tests::zookeeper::Announcer;
use hostkit_tests::{Running, bin, eventually, free_port};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rig::{Rig, job};

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
    let mut child = Running(child.unwrap());
    let mut ended = None;
    eventually(&format!("synapse {arguments:?} ends"), || {
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

    fn start(&self, more: &[&str], variables: &[(&str, &str)]) -> Running {
        let config = self.path("synapse.yaml");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let arguments = [&["-c", config.to_str().unwrap()], more].concat();
        Running(command(&arguments, variables).stderr(log).spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

#[test]
fn every_verb_says_what_it_is_for() {
    let help = ask(&["--help"], &[]);
    assert_eq!(help.code, 0);
    for verb in [
        "plan", "explain", "render", "status", "journal", "doctor", "reload",
    ] {
        let line = help
            .out
            .lines()
            .find(|line| line.trim_start().starts_with(verb));
        let line = line.unwrap_or_else(|| panic!("{verb} is not in\n{}", help.out));
        assert!(line.split_whitespace().count() > 4, "{line}");
        let own = ask(&[verb, "--help"], &[]);
        assert_eq!(own.code, 0);
        assert!(own.out.contains("--json"), "{verb}:\n{}", own.out);
        // What its own flags do is said, each on a line that is no flag.
        let lines: Vec<&str> = own.out.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let is_flag = line.starts_with('-') && !line.starts_with("- ");
            if is_flag && !line.contains("  ") {
                let next = lines.get(number + 1).copied().unwrap_or_default();
                assert!(
                    !next.is_empty() && !next.starts_with('-'),
                    "{line}:\n{}",
                    own.out
                );
            }
        }
    }
    let wrong = ask(&["pla"], &[]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("'plan'"), "{}", wrong.err);
}

#[test]
fn the_configuration_is_found_by_flag_and_by_variable() {
    let desk = Desk::new();
    let file = desk.path("synapse.yaml");
    let file = file.to_str().unwrap();
    let (ours, synapses) = ("HOSTKIT_SYNAPSE_CONFIG", "SYNAPSE_CONFIG");
    for variables in [
        [(ours, file), (synapses, "/nowhere")],
        [(synapses, file), ("A", "b")],
    ] {
        let said = ask(&["--check"], &variables);
        assert_eq!(said.code, 0, "{variables:?}: {}", said.err);
        assert!(said.out.contains("eightball"), "{}", said.out);
    }
    let said = ask(&["--check", "-c", "/nowhere/synapse.yaml"], &[(ours, file)]);
    assert_eq!(said.code, 78, "the flag counts: {}", said.out);
    assert!(said.err.contains("/nowhere/synapse.yaml"), "{}", said.err);
}

#[test]
fn a_check_touches_nothing() {
    let desk = Desk::new();
    let before = fs::read_dir(desk.directory.path()).unwrap().count();
    for verb in [
        &["--check"][..],
        &["plan"],
        &["explain", "eightball"],
        &["doctor"],
        &["journal"],
    ] {
        desk.ask(verb);
    }
    assert_eq!(fs::read_dir(desk.directory.path()).unwrap().count(), before);
}

#[test]
fn without_haproxy_a_plan_and_an_explanation_say_so() {
    let desk = Desk::new();
    let plan = desk.ask(&["plan"]);
    assert_eq!(plan.code, 0, "{}", plan.err);
    assert!(
        plan.out.contains("! HAProxy cannot be asked: "),
        "{}",
        plan.out
    );
    assert!(
        plan.out.contains("reload: yes; there is no file yet"),
        "{}",
        plan.out
    );
    assert!(
        plan.out.contains("defaults: option redispatch"),
        "{}",
        plan.out
    );
    let row: Vec<&str> = plan.line("eightball").split_whitespace().collect();
    assert_eq!(row, ["eightball", "2", "0", "8", "slots", "runtime", "API"]);
    let plan = desk.ask(&["plan", "--json"]).json();
    assert_eq!(plan["reload"], true);
    assert_eq!(plan["services"]["eightball"]["members"], 2);
    assert!(
        plan["haproxy"].as_str().unwrap().contains("no such socket"),
        "{plan}"
    );
    let explained = desk.ask(&["explain", "eightball"]);
    assert!(
        explained.out.contains("! HAProxy cannot be asked: "),
        "{}",
        explained.out
    );
    assert_eq!(
        explained.line("127.0.0.1:31001").split_whitespace().nth(1),
        Some("probing")
    );
}

#[test]
fn a_service_that_is_not_there_has_neighbours() {
    let mut desk = Desk::new();
    for name in ["answers", "history"] {
        desk.config["services"][name] = json!({"discovery": {"method": "base"}, "haproxy": {},
            "default_servers": [{"host": "127.0.0.1", "port": 1}]});
    }
    desk.write();
    let said = desk.ask(&["explain", "eightbal"]);
    assert_eq!((said.code, said.out.as_str()), (66, ""));
    assert_eq!(
        said.err,
        "synapse: there is no service eightbal: did you mean eightball?\n"
    );
    let said = desk.ask(&["explain", "zzz\n"]);
    assert_eq!(said.code, 66);
    assert!(
        said.err.contains("zzz\\n: the nearest of 3 services are "),
        "{}",
        said.err
    );
}

#[test]
fn a_snapshot_is_rendered_without_asking_anybody() {
    let desk = Desk::new();
    let file = desk.path("snapshot.json");
    let snapshot = |text: &str| {
        fs::write(&file, text).unwrap();
        desk.ask(&["render", "--from", file.to_str().unwrap()])
    };
    let said = snapshot(
        r#"{"services": {"eightball": [{"host": "10.0.0.1", "port": 80}, {"host": "::1", "port": 81}]}}"#,
    );
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let slots = [
        "server slot1 10.0.0.1:80 check inter 1s",
        "server slot2 [::1]:81 check inter 1s",
    ];
    for slot in slots {
        assert!(said.out.contains(slot), "{slot}\n{}", said.out);
    }
    let as_json = desk
        .ask(&["render", "--json", "--from", file.to_str().unwrap()])
        .json();
    assert_eq!(as_json["config"], said.out);
    for (text, code, expected) in [
        ("", 65, "is no snapshot"),
        ("{}", 65, "missing field `services`"),
        (
            r#"{"services": {"eightball": [{"host": "a b", "port": 1}]}}"#,
            65,
            "a b",
        ),
        (
            r#"{"services": {"eightball": [{"host": "1.2.3.4", "port": 0}]}}"#,
            65,
            "port 0",
        ),
        (
            r#"{"services": {"eightball": [{"host": "1.2.3.4", "port": 70000}]}}"#,
            65,
            "70000",
        ),
        (
            r#"{"services": {"eightball": [{"host": "name", "port": 1}]}}"#,
            65,
            "give one",
        ),
        (
            r#"{"services": {"eightbal": []}}"#,
            65,
            "did you mean eightball?",
        ),
        (r#"{"version": 99, "services": {}}"#, 65, "format 99"),
    ] {
        let said = snapshot(text);
        assert_eq!(
            (said.code, said.out.as_str()),
            (code, ""),
            "{text}: {}",
            said.err
        );
        assert!(said.err.contains(expected), "{text}: {}", said.err);
    }
    let said = desk.ask(&["render", "--from", "/nowhere"]);
    assert_eq!(said.code, 66);
    assert!(
        said.err
            .starts_with("synapse: cannot read the snapshot /nowhere: "),
        "{}",
        said.err
    );
}

#[test]
fn nothing_runs_and_nothing_ran() {
    let desk = Desk::new();
    let status = desk.ask(&["status"]);
    assert_eq!(status.code, 66);
    assert!(
        status
            .err
            .contains("has synapse run with this configuration?"),
        "{}",
        status.err
    );
    let reload = desk.ask(&["reload"]);
    assert_eq!(reload.code, 69);
    assert!(reload.err.contains("no synapse runs"), "{}", reload.err);
    let journal = desk.ask(&["journal"]);
    assert_eq!((journal.code, journal.out.as_str()), (0, ""));
    let doctor = desk.ask(&["doctor"]);
    assert_eq!(doctor.code, 1, "{}", doctor.out);
    assert!(
        doctor
            .out
            .contains("synapse has not run with this configuration"),
        "{}",
        doctor.out
    );
    let words = |name: &str| desk.ask(&["doctor", "--json"]).out.contains(name);
    assert!(words(r#""health":"failed""#) && words(r#""name":"registries""#));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut desk = Desk::new();
    let services: serde_json::Map<String, Value> = (0..2000)
        .map(|number| {
            let service = json!({"discovery": {"method": "base"}, "haproxy": {},
                "default_servers": [{"host": "127.0.0.1", "port": 1}]});
            (format!("service-{number}"), service)
        })
        .collect();
    desk.config["services"] = Value::Object(services);
    desk.write();
    for verb in ["plan", "--check"] {
        let config = desk.path("synapse.yaml");
        let err = desk.path("err");
        let child = command(&["-c", config.to_str().unwrap(), verb], &[])
            .stdout(Stdio::piped())
            .stderr(File::create(&err).unwrap())
            .spawn();
        let mut child = Running(child.unwrap());
        drop(child.0.stdout.take());
        let mut ended = None;
        eventually("it ends", || {
            ended = child.0.try_wait().unwrap();
            ended.is_some()
        });
        assert_eq!(ended.unwrap().code(), Some(0));
        assert_eq!(fs::read_to_string(&err).unwrap(), "");
    }
}

#[test]
fn the_running_one_is_shown_and_told_to_read_again() {
    let mut desk = Desk::new();
    for number in 0..8 {
        desk.config["services"][format!("s{number}")] = json!({"discovery": {"method": "base"},
            "default_servers": [{"host": "127.0.0.1", "port": 1}], "haproxy": {}});
    }
    desk.write();
    let mut synapse = desk.start(&[], &[]);
    eventually("there is a status", || desk.ask(&["status"]).code == 0);
    let pid = synapse.0.id();
    let status = desk.ask(&["status"]);
    assert!(
        status.out.contains(&format!("runs as pid {pid}; ")),
        "{}",
        status.out
    );
    assert_eq!(desk.ask(&["status", "--json"]).json()["running"], pid);

    desk.config["services"]
        .as_object_mut()
        .unwrap()
        .remove("s0");
    desk.write();
    let reload = desk.ask(&["reload"]);
    assert_eq!(
        (reload.code, reload.err.as_str()),
        (0, ""),
        "{}",
        desk.log()
    );
    assert_eq!(
        reload.out,
        format!("synapse (pid {pid}) follows this configuration\n")
    );

    // Many at once only when that is meant.
    for number in 1..6 {
        desk.config["services"]
            .as_object_mut()
            .unwrap()
            .remove(&format!("s{number}"));
    }
    desk.write();
    let reload = desk.ask(&["reload"]);
    assert_eq!(reload.code, 78, "{}", reload.out);
    assert!(
        reload.err.contains("it removes 5 of 8 services"),
        "{}",
        reload.err
    );
    assert!(
        desk.ask(&["status"]).out.contains("synapse reload --force"),
        "and status says so"
    );
    let reload = desk.ask(&["reload", "--force", "--json"]).json();
    assert_eq!(reload["pid"], pid);

    // A file that is wrong is not even sent.
    let good = fs::read(desk.path("synapse.yaml")).unwrap();
    fs::write(desk.path("synapse.yaml"), "servces: {}\n").unwrap();
    let reload = desk.ask(&["reload"]);
    assert_eq!(reload.code, 78);
    assert!(
        reload.err.contains("did you mean `services`?"),
        "{}",
        reload.err
    );
    fs::write(desk.path("synapse.yaml"), good).unwrap();

    let journal = desk.ask(&["journal"]);
    assert!(journal.out.contains("refused"), "{}", journal.out);
    let journal: Vec<Value> = desk
        .ask(&["journal", "--json", "-n", "2"])
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(journal.len(), 2);
    assert_eq!(journal[1]["cause"], "loaded", "{journal:?}");

    send(pid.try_into().unwrap(), Signal::SIGTERM);
    eventually("it ends", || synapse.0.try_wait().unwrap().is_some());
    let status = desk.ask(&["status"]);
    assert!(
        status.out.starts_with("synapse does not run; "),
        "{}",
        status.out
    );
    assert_eq!(
        desk.ask(&["status", "--json"]).json()["running"],
        Value::Null
    );
}

#[test]
fn the_journal_is_filtered_and_followed() {
    let desk = Desk::new();
    let mut synapse = desk.start(&[], &[]);
    let journal = |more: &[&str]| desk.ask(&[&["journal"], more].concat()).out;
    eventually("members are noted", || {
        journal(&["--service", "eightball"]).lines().count() >= 2
    });
    let own = journal(&["--service", "eightball"]);
    assert!(own.lines().all(|line| line.contains("eightball")), "{own}");
    assert!(own.contains("127.0.0.1:31001 slot1"), "{own}");
    assert_eq!(journal(&["--service", "other"]), "");
    assert_eq!(journal(&["--since", "0s"]), "");
    assert!(journal(&["--since", "1h"]).lines().count() >= 3);

    let out = desk.path("followed");
    let config = desk.path("synapse.yaml");
    let arguments = [
        "-c",
        config.to_str().unwrap(),
        "journal",
        "--follow",
        "--service",
        "eightball",
    ];
    let follower = command(&arguments, &[])
        .stdout(File::create(&out).unwrap())
        .spawn();
    let _follower = Running(follower.unwrap());
    let followed = || fs::read_to_string(&out).unwrap();
    eventually("what was is shown", || followed() == own);
    desk.members(
        &json!([{"host": "127.0.0.1", "port": 31001}, {"host": "127.0.0.3", "port": 31003}]),
    );
    eventually("what comes is shown", || {
        followed().contains("127.0.0.3:31003")
    });
    send(synapse.0.id().try_into().unwrap(), Signal::SIGTERM);
    eventually("it ends", || synapse.0.try_wait().unwrap().is_some());
}

#[test]
fn what_goes_wrong_at_the_start_has_its_exit_code() {
    let mut desk = Desk::new();
    let mut first = desk.start(&[], &[]);
    eventually("it runs", || desk.ask(&["status"]).code == 0);
    let second = desk.ask(&[]);
    assert_eq!(second.code, 75, "{}", second.err);
    assert!(
        second.err.contains(&format!("{}", first.0.id())),
        "{}",
        second.err
    );
    send(first.0.id().try_into().unwrap(), Signal::SIGTERM);
    eventually("it ends", || first.0.try_wait().unwrap().is_some());
    desk.config["haproxy"]["state_file_path"] = json!("/proc/nowhere/state.json");
    desk.write();
    let said = desk.ask(&[]);
    assert_eq!(said.code, 73, "{}", said.err);
    assert!(said.err.contains("/proc/nowhere"), "{}", said.err);
}

#[test]
fn systemd_is_told() {
    let desk = Desk::new();
    let path = desk.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut synapse = desk.start(&[], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    let pid = synapse.0.id().try_into().unwrap();
    let mut heard = Vec::new();
    let mut await_message = |wanted: &str| {
        eventually(&format!("systemd hears {wanted}"), || {
            let mut bytes = [0; 512];
            if let Ok(length) = socket.recv(&mut bytes) {
                heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
            let at = heard.iter().position(|message| message.contains(wanted));
            at.map(|at| heard.drain(..=at).next_back().unwrap())
                .is_some_and(|message| {
                    assert!(
                        !message.contains("RELOADING=1") || message.contains("MONOTONIC_USEC="),
                        "{message}"
                    );
                    true
                })
        });
    };
    await_message("READY=1");
    await_message("WATCHDOG=1");
    send(pid, Signal::SIGHUP);
    await_message("RELOADING=1");
    await_message("READY=1");
    send(pid, Signal::SIGTERM);
    await_message("STOPPING=1");
    eventually("it ends", || synapse.0.try_wait().unwrap().is_some());
}

/// What is told of a running system: by the verbs, the listener and StatsD.
#[test]
fn everything_is_explained_counted_and_told() {
    let Some(mut rig) = Rig::new(Mode::Master) else {
        return;
    };
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    rig.service("eightball");
    rig.service("answers");
    rig.config["statsd"] =
        json!({"host": "127.0.0.1", "port": receiver.local_addr().unwrap().port()});
    let members = rig.registry();
    let tasks = Tasks::start(1, members.clone());
    rig.start();
    tasks.launch(Task::new("eightball", 0));
    tasks.launch(Task::new("eightball", 1));
    eventually("they serve", || rig.serving("eightball").len() == 2);

    // Every registration, used or not.
    let path = job("eightball");
    let hostile = [
        (
            r#"{"status":"ALIVE","shard":2,"serviceEndpoint":{"host":"127.0.0.1","port":0},"additionalEndpoints":{"http":{"host":"127.0.0.1","port":0}}}"#,
            "port",
        ),
        (
            r#"{"status":"ALIVE","shard":3,"additionalEndpoints":{"http":{"host":"10.0.0.1\n server evil","port":80}}}"#,
            "host",
        ),
        (
            r#"{"status":"DEAD","shard":4,"additionalEndpoints":{"http":{"host":"10.0.0.1","port":80}}}"#,
            "status",
        ),
        ("{not json", "malformed"),
        (
            r#"{"status":"ALIVE","shard":5,"serviceEndpoint":{"host":"10.0.0.1","port":80},"additionalEndpoints":{}}"#,
            "endpoint",
        ),
    ];
    for (payload, _) in hostile {
        members
            .announcer
            .register(&path, "member_", payload.as_bytes());
    }
    let address = tasks.announcement(0).address;
    let again = format!(
        r#"{{"status":"ALIVE","shard":0,"additionalEndpoints":{{"http":{{"host":"{}","port":{}}}}}}}"#,
        address.ip(),
        address.port()
    );
    let newer = members
        .announcer
        .register(&path, "member_", again.as_bytes());
    eventually("all are refused", || rig.of("eightball", "rejected") == 6);
    let config = rig.config_file();
    let config = config.to_str().unwrap();
    let verb = |arguments: &[&str]| ask(&[&["-c", config], arguments].concat(), &[]);
    let explained = verb(&["explain", "eightball", "--json"]).json();
    for (_, reason) in hostile {
        let rejects = explained["rejects"].as_array().unwrap();
        assert!(
            rejects.iter().any(|reject| reject["reason"] == reason),
            "{reason}: {explained:#}"
        );
    }
    let rejects = explained["rejects"].as_array().unwrap();
    let duplicate = rejects
        .iter()
        .find(|reject| reject["reason"] == "duplicate")
        .unwrap();
    assert!(
        duplicate["detail"].as_str().unwrap().contains(&newer),
        "the winner is named: {duplicate}"
    );
    assert_eq!(explained["members"].as_array().unwrap().len(), 2);
    assert_eq!(explained["members"][0]["haproxy"], "up");
    assert_eq!(explained["members"][0]["phase"], "ready");
    let explained = verb(&["explain", "eightball"]);
    assert!(
        explained
            .out
            .lines()
            .all(|line| !line.starts_with(" server evil")),
        "{}",
        explained.out
    );
    assert!(
        explained.out.contains("10.0.0.1\\n server evil"),
        "{}",
        explained.out
    );
    assert_eq!(
        rig.metric_of("synapse_rejects_total", "reason=\"status\""),
        1.0
    );

    // Nothing to do, and why each service would take what.
    eventually("the plan is empty", || {
        verb(&["plan"])
            .out
            .contains("reload: no; HAProxy has this structure\nruntime: nothing to tell HAProxy\n")
    });
    // What somebody else told HAProxy is seen, and what a new line in the configuration would take.
    let mut changed = rig.config.clone();
    changed["services"]["answers"]["haproxy"]["server_options"] = json!("check inter 3s cookie x");
    let file = rig.path("changed.yaml");
    fs::write(&file, changed.to_string()).unwrap();
    let plan = ask(&["-c", file.to_str().unwrap(), "plan"], &[]);
    assert!(
        plan.out
            .contains("reload: yes; HAProxy has another structure"),
        "{}",
        plan.out
    );
    assert!(plan.out.contains("  backend answers\n"), "{}", plan.out);
    let line = plan.line("answers");
    assert!(
        line.contains("named: cookie: `check inter 3s cookie x`"),
        "{line}"
    );
    rig.haproxy.ask("set server eightball/slot1 state maint");
    let plan = verb(&["plan", "--json"]).json();
    let runtime = plan["runtime"].as_array().unwrap();
    // The audit may have been faster.
    assert!(
        runtime.is_empty() || runtime[0]["change"] == "ready",
        "{plan}"
    );
    eventually("the audit repairs it", || {
        rig.serving("eightball").len() == 2
    });
    assert!(rig.metric("synapse_drift_repaired_total") >= 1.0);

    // What is declared is counted.
    assert_eq!(rig.metric("synapse_zookeeper_connected"), 1.0);
    for name in [
        "synapse_zookeeper_sessions_total",
        "synapse_zookeeper_reads_total",
        "synapse_zookeeper_lists_total",
        "synapse_change_to_live_seconds_count",
        "synapse_listen_to_live_seconds_count",
        "synapse_reload_duration_seconds_count",
        "synapse_runtime_batches_total",
        "synapse_runtime_commands_total",
        "synapse_members",
    ] {
        assert!(rig.metric(name) >= 1.0, "{name}");
    }
    for (name, label) in [
        ("synapse_reloads_total", "result=\"ok\""),
        ("synapse_config_checks_total", "result=\"ok\""),
        ("synapse_probes_total", "result=\"answered\""),
        (
            "synapse_file_writes_total",
            "file=\"haproxy\",result=\"ok\"",
        ),
        ("synapse_file_writes_total", "file=\"state\",result=\"ok\""),
        ("synapse_members", "phase=\"ready\""),
    ] {
        assert!(rig.metric_of(name, label) >= 1.0, "{name} {label}");
    }
    let status = rig.status();
    assert_eq!(status["zookeeper"][0]["state"], "connected");
    assert!(status["config"]["hash"].as_str().unwrap().len() == 64);
    assert!(
        status["services"]["eightball"]["age_seconds"]
            .as_f64()
            .is_some()
    );

    // An old worker that cannot end is counted, and counted no longer when it has.
    let idle = std::net::TcpStream::connect(
        rig.config["services"]["eightball"]["haproxy"]["port"]
            .as_u64()
            .map(|port| ("127.0.0.1", u16::try_from(port).unwrap()))
            .unwrap(),
    )
    .unwrap();
    rig.config["services"]["eightball"]["haproxy"]["frontend"] = json!(["timeout client 60s"]);
    rig.config["services"]["eightball"]["haproxy"]["listen"] = json!(["mode tcp"]);
    rig.reconfigure();
    eventually("a second reload", || rig.reloads() == 2);
    drop(idle);
    eventually("no old worker is counted", || {
        rig.metric("synapse_leftover_workers") == 0.0
    });

    // The file that stands is bad for HAProxy: refused, counted, the old one stays.
    let health = verb(&["doctor"]);
    assert_eq!(health.code, 0, "{}", health.out);

    rig.zookeeper.kill();
    eventually("the session is gone", || {
        rig.metric("synapse_zookeeper_connected") == 0.0
    });
    let plan = verb(&["plan", "--wait", "300ms"]);
    assert_eq!(plan.code, 0);
    assert!(
        plan.out.contains("what was last known good is used"),
        "{}",
        plan.out
    );
    assert_eq!(
        plan.line("eightball").split_whitespace().nth(2),
        Some("2"),
        "{}",
        plan.out
    );
    let explained = verb(&["explain", "--wait", "300ms", "eightball"]);
    assert!(
        explained.out.contains("what was last known good is shown"),
        "{}",
        explained.out
    );
    let health = verb(&["doctor"]);
    assert_eq!(health.code, 1);
    assert!(
        health.line("failed").contains("registries"),
        "{}",
        health.out
    );

    let mut packets = String::new();
    let mut bytes = [0; 2048];
    for name in [
        "synapse.config.update:",
        "synapse.haproxy.check_config:1|c|#success:true",
        "synapse.haproxy.reload:1|c|#cause:",
        "synapse.change_to_live:",
        "synapse.watcher.zk.discovery:1|c|#zk_cluster:",
        "synapse.watcher.zk.parse_child_failed:1|c|#service_name:eightball",
    ] {
        eventually(&format!("StatsD gets {name}"), || {
            while let Ok(length) = receiver.recv(&mut bytes) {
                packets.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
                packets.push('\n');
            }
            packets.contains(name)
        });
    }
    rig.stop();
}

#[test]
fn the_doctor_finds_what_is_not_permitted() {
    let Some(mut rig) = Rig::new(Mode::Master) else {
        return;
    };
    rig.service("eightball");
    let head = rig.haproxy.head().replace("level admin", "level operator");
    rig.haproxy.write(&format!(
        "{head}frontend f\n    bind 127.0.0.1:{}\n",
        free_port()
    ));
    rig.haproxy.run();
    let private = Announcer::connect_as(&rig.zookeeper, Some("them:secret"));
    private.make("/aurora/www/prod");
    private.make_private(&job("eightball"));
    fs::write(rig.config_file(), rig.config.to_string()).unwrap();
    let config = rig.config_file();
    let said = ask(&["-c", config.to_str().unwrap(), "doctor", "--json"], &[]);
    assert_eq!(said.code, 1);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    let check = |name: &str| {
        let checks = found["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("{name}: {found:#}"))
            .clone()
    };
    let socket = check("stats socket");
    assert_eq!(socket["health"], "failed", "{socket}");
    assert!(socket.to_string().contains("level admin"), "{socket}");
    let registries = check("registries").to_string();
    assert!(
        registries.contains("eightball") && registries.contains("may not read it"),
        "{registries}"
    );
}
