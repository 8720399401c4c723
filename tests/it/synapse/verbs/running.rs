//! A running synapse is shown, told to read its configuration again, and stopped; its service manager is told.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use hostkit_tests::ChildGuard;
use hostkit_tests::haproxy::send_signal;
use hostkit_tests::wait_until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Desk, command};

#[test]
fn the_running_one_is_shown_and_told_to_read_again() {
    let mut desk = Desk::new();
    for number in 0..8 {
        desk.config["services"][format!("s{number}")] = json!({"discovery": {"method": "base"},
            "default_servers": [{"host": "127.0.0.1", "port": 1}], "haproxy": {}});
    }
    desk.write();
    let mut synapse = desk.start(&[], &[]);
    wait_until("there is a status", || desk.ask(&["status"]).code == 0);
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

    send_signal(pid.try_into().unwrap(), Signal::SIGTERM);
    wait_until("it ends", || synapse.0.try_wait().unwrap().is_some());
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
    wait_until("members are noted", || {
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
    let _follower = ChildGuard(follower.unwrap());
    let followed = || fs::read_to_string(&out).unwrap();
    wait_until("what was is shown", || followed() == own);
    desk.members(
        &json!([{"host": "127.0.0.1", "port": 31001}, {"host": "127.0.0.3", "port": 31003}]),
    );
    wait_until("what comes is shown", || {
        followed().contains("127.0.0.3:31003")
    });
    send_signal(synapse.0.id().try_into().unwrap(), Signal::SIGTERM);
    wait_until("it ends", || synapse.0.try_wait().unwrap().is_some());
}

#[test]
fn what_goes_wrong_at_the_start_has_its_exit_code() {
    let mut desk = Desk::new();
    let mut first = desk.start(&[], &[]);
    wait_until("it runs", || desk.ask(&["status"]).code == 0);
    let second = desk.ask(&[]);
    assert_eq!(second.code, 75, "{}", second.err);
    assert!(
        second.err.contains(&format!("{}", first.0.id())),
        "{}",
        second.err
    );
    send_signal(first.0.id().try_into().unwrap(), Signal::SIGTERM);
    wait_until("it ends", || first.0.try_wait().unwrap().is_some());
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
        wait_until(&format!("systemd hears {wanted}"), || {
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
    send_signal(pid, Signal::SIGHUP);
    await_message("RELOADING=1");
    await_message("READY=1");
    send_signal(pid, Signal::SIGTERM);
    await_message("STOPPING=1");
    wait_until("it ends", || synapse.0.try_wait().unwrap().is_some());
}
