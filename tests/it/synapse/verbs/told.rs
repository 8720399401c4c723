//! What is told of a running system, with HAProxy and ZooKeeper: by the verbs, the listener and StatsD.

use std::fs;
use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::tasks::{TaskLaunch, TaskPlayer};
use hostkit_tests::zookeeper::AnnouncerSession;
use hostkit_tests::{free_port, wait_until};
use serde_json::{Value, json};

use super::super::rig::{Members, Rig, job};
use super::{Said, ask};

/// Two services, of which one has two members, and who is told of them.
struct Stage {
    rig: Rig,
    members: Arc<Members>,
    tasks: TaskPlayer,
    receiver: UdpSocket,
}

impl Stage {
    fn ask(&self, arguments: &[&str]) -> Said {
        let config = self.rig.config_file();
        ask(
            &[&["-c", config.to_str().unwrap()], arguments].concat(),
            &[],
        )
    }
}

#[test]
fn everything_is_explained_counted_and_told() {
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let port = rig.service("eightball").port();
    rig.service("answers");
    rig.config["statsd"] =
        json!({"host": "127.0.0.1", "port": receiver.local_addr().unwrap().port()});
    let members = rig.registry();
    let tasks = TaskPlayer::start(1, members.clone());
    rig.start();
    tasks.launch(TaskLaunch::new("eightball", 0));
    tasks.launch(TaskLaunch::new("eightball", 1));
    wait_until("they serve", || rig.serving("eightball").len() == 2);
    let mut stage = Stage {
        rig,
        members,
        tasks,
        receiver,
    };
    every_registration_is_explained(&stage);
    a_plan_says_what_would_change(&stage);
    what_is_declared_is_counted(&stage);
    old_workers_are_counted_until_they_end(&mut stage, port);
    last_known_good_stands_in_for_the_registry(&mut stage);
    statsd_was_told(&stage);
    stage.rig.stop();
}

fn every_registration_is_explained(stage: &Stage) {
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
        stage
            .members
            .announcer
            .register(&path, "member_", payload.as_bytes());
    }
    let address = stage.tasks.announcement(0).address;
    let again = format!(
        r#"{{"status":"ALIVE","shard":0,"additionalEndpoints":{{"http":{{"host":"{}","port":{}}}}}}}"#,
        address.ip(),
        address.port()
    );
    let newer = stage
        .members
        .announcer
        .register(&path, "member_", again.as_bytes());
    wait_until("all are refused", || {
        stage.rig.of("eightball", "rejected") == 6
    });
    let explained = stage.ask(&["explain", "eightball", "--json"]).json();
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
    let explained = stage.ask(&["explain", "eightball"]);
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
        stage
            .rig
            .metric_of("synapse_rejects_total", "reason=\"status\""),
        1.0
    );
}

fn a_plan_says_what_would_change(stage: &Stage) {
    wait_until("the plan is empty", || {
        stage
            .ask(&["plan"])
            .out
            .contains("reload: no; HAProxy has this structure\nruntime: nothing to tell HAProxy\n")
    });
    // What somebody else told HAProxy is seen, and what a new line in the configuration would take.
    let mut changed = stage.rig.config.clone();
    changed["services"]["answers"]["haproxy"]["server_options"] = json!("check inter 3s cookie x");
    let file = stage.rig.path("changed.yaml");
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
    stage
        .rig
        .haproxy
        .ask("set server eightball/slot1 state maint");
    let plan = stage.ask(&["plan", "--json"]).json();
    let runtime = plan["runtime"].as_array().unwrap();
    // The audit may have been faster.
    assert!(
        runtime.is_empty() || runtime[0]["change"] == "ready",
        "{plan}"
    );
    wait_until("the audit repairs it", || {
        stage.rig.serving("eightball").len() == 2
    });
    assert!(stage.rig.metric("synapse_drift_repaired_total") >= 1.0);
}

fn what_is_declared_is_counted(stage: &Stage) {
    assert_eq!(stage.rig.metric("synapse_zookeeper_connected"), 1.0);
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
        assert!(stage.rig.metric(name) >= 1.0, "{name}");
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
        assert!(stage.rig.metric_of(name, label) >= 1.0, "{name} {label}");
    }
    let status = stage.rig.status();
    assert_eq!(status["zookeeper"][0]["state"], "connected");
    assert!(status["config"]["hash"].as_str().unwrap().len() == 64);
    assert!(
        status["services"]["eightball"]["age_seconds"]
            .as_f64()
            .is_some()
    );
}

fn old_workers_are_counted_until_they_end(stage: &mut Stage, port: u16) {
    let rig = &mut stage.rig;
    let section = |rig: &mut Rig, section: Value| {
        rig.config["services"]["eightball"]["haproxy"] = section;
        rig.reconfigure();
    };
    let before = rig.reloads();
    section(rig, json!({"port": port, "listen": ["mode tcp"]}));
    wait_until("it is reloaded", || rig.reloads() == before + 1);
    wait_until("they serve", || rig.serving("eightball").len() == 2);
    let mut held = TcpStream::connect(("127.0.0.1", port)).unwrap();
    held.write_all(b"GET /").unwrap();
    section(
        rig,
        json!({"port": port, "listen": ["mode tcp", "timeout connect 1s"]}),
    );
    wait_until("the old worker is counted", || {
        rig.metric("synapse_leftover_workers") == 1.0
    });
    drop(held);
    wait_until("it has ended and is no longer", || {
        rig.metric("synapse_leftover_workers") == 0.0
    });
}

fn last_known_good_stands_in_for_the_registry(stage: &mut Stage) {
    let health = stage.ask(&["doctor"]);
    assert_eq!(health.code, 0, "{}", health.out);

    stage.rig.zookeeper.kill();
    wait_until("the session is gone", || {
        stage.rig.metric("synapse_zookeeper_connected") == 0.0
    });
    let plan = stage.ask(&["plan", "--wait", "300ms"]);
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
    let explained = stage.ask(&["explain", "--wait", "300ms", "eightball"]);
    assert!(
        explained.out.contains("what was last known good is shown"),
        "{}",
        explained.out
    );
    let health = stage.ask(&["doctor"]);
    assert_eq!(health.code, 1);
    assert!(
        health.line("failed").contains("registries"),
        "{}",
        health.out
    );
}

fn statsd_was_told(stage: &Stage) {
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
        wait_until(&format!("StatsD gets {name}"), || {
            while let Ok(length) = stage.receiver.recv(&mut bytes) {
                packets.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
                packets.push('\n');
            }
            packets.contains(name)
        });
    }
}

#[test]
fn the_doctor_finds_what_is_not_permitted() {
    let Some(mut rig) = Rig::new(HaproxyMode::Master) else {
        return;
    };
    rig.service("eightball");
    let head = rig.haproxy.head().replace("level admin", "level operator");
    rig.haproxy.write(&format!(
        "{head}frontend f\n    bind 127.0.0.1:{}\n",
        free_port()
    ));
    rig.haproxy.run();
    let private = AnnouncerSession::connect_as(&rig.zookeeper, Some("them:secret"));
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
        registries.contains("eightball") && registries.contains("permission denied"),
        "{registries}"
    );
}
