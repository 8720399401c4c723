//! Nothing runs: neither HAProxy nor synapse.

use std::fs::{self, File};
use std::process::Stdio;

use hostkit_tests::{ChildGuard, wait_until};
use serde_json::{Value, json};

use super::{Desk, ask, command};

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
fn clusters_are_checked_without_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clusters.yaml");
    let path = file.to_str().unwrap();
    let elsewhere = [("HOSTKIT_SYNAPSE_CONFIG", "/nowhere")];
    fs::write(
        &file,
        "clusters:\n- {name: east, hosts: ['zk1:2181', zk2]}\n",
    )
    .unwrap();
    let said = ask(&["--check-clusters", path], &elsewhere);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(said.out, "cluster  east is /aurora of zk1:2181,zk2:2181\n");
    for (wrong, says) in [
        (
            "- {name: east, hosts: []}",
            ":2:3: `clusters`: cluster `east` has an invalid ensemble",
        ),
        (
            "- {name: east, hosts: [zk], rot: /a}",
            ":2:29: unknown key `rot`: did you mean `root`?",
        ),
        ("- name: east\n  hosts: zk1", ":3:10: `hosts`: "),
        (
            "- {name: a, hosts: [x]}\n- {name: b, hosts: [x]}",
            ":2:3: `clusters`: cluster `b` has the ensemble",
        ),
    ] {
        fs::write(&file, format!("clusters:\n{wrong}\n")).unwrap();
        let said = ask(&["--check-clusters", path], &elsewhere);
        assert_eq!(said.code, 78, "{}", said.out);
        assert!(said.err.contains(&format!("{path}{says}")), "{}", said.err);
    }
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
    let services: serde_json::Map<String, Value> = (0..300)
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
        let mut child = ChildGuard(child.unwrap());
        drop(child.0.stdout.take());
        let mut ended = None;
        wait_until("it ends", || {
            ended = child.0.try_wait().unwrap();
            ended.is_some()
        });
        assert_eq!(ended.unwrap().code(), Some(0));
        assert_eq!(fs::read_to_string(&err).unwrap(), "");
    }
}
