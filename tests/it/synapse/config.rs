//! Configurations that are wrong, that remove too much, that are meant: while synapse runs and when it starts.

use std::fs;

use hostkit_tests::haproxy::HaproxyMode;
use hostkit_tests::wait_until;
use serde_json::json;

use super::fleet::Fleet;
use super::rig::Rig;

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Five services, the first with a task.
fn stage() -> Option<(Rig, Fleet)> {
    let mut rig = Rig::new(HaproxyMode::Master)?;
    for service in SERVICES {
        rig.service(service);
    }
    let mut fleet = Fleet::new(&rig, 0);
    fleet.launch("a", 1);
    rig.start();
    fleet.served(&rig);
    Some((rig, fleet))
}

/// Whether the last configuration was refused, and why.
fn refusal(rig: &Rig) -> String {
    let mut why = String::new();
    wait_until("it is refused", || {
        why = rig.status()["troubles"].to_string();
        why.contains("the old one stays in force")
    });
    why
}

#[test]
fn a_bad_configuration_is_refused_and_the_old_one_stays_in_force() {
    let Some((mut rig, mut fleet)) = stage() else {
        return;
    };
    let good = rig.config.clone();
    let reloads = rig.reloads();
    rig.config["services"]["a"]["haproxy"]["prot"] = json!(1);
    rig.hangup();
    let why = refusal(&rig);
    assert!(
        why.contains("synapse.yaml") && why.contains("port"),
        "{why}"
    );
    assert!((rig.metric_of("synapse_config_reloads_total", "refused") - 1.0).abs() < 0.1);
    // And one that is no YAML at all.
    fs::write(rig.config_file(), "services: [").unwrap();
    hostkit_tests::haproxy::send_signal(rig.pid(), nix::sys::signal::Signal::SIGHUP);
    wait_until("it is refused, too", || {
        rig.metric_of("synapse_config_reloads_total", "refused") > 1.5
    });
    fleet.launch("a", 1);
    fleet.stop("a");
    fleet.served(&rig);
    rig.config = good;
    rig.hangup();
    assert!((rig.metric_of("synapse_config_reloads_total", "ok") - 1.0).abs() < 0.1);
    fleet.served(&rig);
    assert_eq!(rig.reloads(), reloads);
}

#[test]
fn one_that_removes_too_much_takes_force() {
    let Some((mut rig, fleet)) = stage() else {
        return;
    };
    let reloads = rig.reloads();
    for service in ["c", "d", "e"] {
        rig.without(service);
    }
    rig.hangup();
    let why = refusal(&rig);
    assert!(
        why.contains("3 of 5") && why.contains("synapse reload --force"),
        "{why}"
    );
    assert_eq!(rig.servers().len(), 5);
    assert_eq!(rig.reloads(), reloads);

    let refused = rig.once(&["reload"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("3 of 5"), "{said}");
    assert_eq!(rig.servers().len(), 5);

    // A word for another configuration does not count.
    fs::write(rig.path("accept"), "0123\n").unwrap();
    rig.hangup();
    assert_eq!(rig.servers().len(), 5);

    let forced = rig.once(&["reload", "--force"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    rig.in_force();
    fleet.served(&rig);
    assert!(!rig.path("accept").exists(), "it counts once");
    // Everything may come back, and one may always go.
    for service in ["c", "d", "e"] {
        rig.service(service);
    }
    rig.reconfigure();
    rig.without("e");
    rig.reconfigure();
    fleet.served(&rig);
}

#[test]
fn it_does_not_start_with_one_that_removes_too_much() {
    let Some((mut rig, fleet)) = stage() else {
        return;
    };
    rig.stop();
    let file = rig.file();
    for service in ["c", "d", "e"] {
        rig.without(service);
    }
    for _ in 0..2 {
        let refused = rig.once(&[]);
        assert_eq!(refused.status.code(), Some(78), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            said.contains("3 of 5") && said.contains("--force"),
            "{said}"
        );
        assert_eq!(rig.file(), file);
        fleet.served(&rig);
    }
    rig.run_with(&["--force"]);
    rig.in_force();
    fleet.served(&rig);
    wait_until("it is accepted for good", || {
        let state = fs::read_to_string(rig.path("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        state["accepted"] == json!(["a", "b"])
    });
    rig.stop();
    rig.run();
    rig.in_force();
}

#[test]
fn it_does_not_start_with_a_bad_one_nor_beside_another() {
    let Some((mut rig, fleet)) = stage() else {
        return;
    };
    let second = rig.once(&[]);
    assert_eq!(second.status.code(), Some(75), "{second:?}");
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("pid {}", rig.pid())), "{said}");
    fleet.served(&rig);
    rig.stop();
    rig.config["haproxy"]["do_reloads"] = json!("perhaps");
    let bad = rig.once(&[]);
    assert_eq!(bad.status.code(), Some(78), "{bad:?}");
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.contains("do_reloads"), "{said}");
    fleet.served(&rig);
}
