//! A kill -9 between any two steps of a transaction: what is in place must be a file that HAProxy starts with.

use std::process::Command;

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode, send_signal};
use hostkit_tests::{free_port, wait_until};
use nix::sys::signal::Signal;
use synapse::haproxy::Step;

use super::server::{Client, Named};
use super::{change, changed, head, proxies, settings, started};

/// What the victim is told: the directory of the HAProxy, the step before which it dies, and the file to apply.
const VICTIM: &str = "HOSTKIT_TEST_VICTIM";

const STEPS: [Step; 7] = [
    Step::Candidate,
    Step::Check,
    Step::Binds,
    Step::Keep,
    Step::Swap,
    Step::Reload,
    Step::Verify,
];

#[test]
fn a_kill_between_any_two_steps_leaves_a_file_to_start_with() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        for step in STEPS {
            let extra = format!("listen extra\n    bind 127.0.0.1:{}\n", free_port());
            let text = format!("{}{}{extra}", head(&haproxy, "two"), proxies(port, &line));
            let before = std::fs::read_to_string(haproxy.config()).unwrap();
            die_before(&haproxy, mode, step, &text);
            let now = std::fs::read_to_string(haproxy.config()).unwrap();
            let expected = if step > Step::Swap { &text } else { &before };
            assert_eq!(&now, expected, "killed before {step:?}");
            haproxy.restart();
            assert_eq!(
                Client::connect(port).get("/"),
                "200 A",
                "killed before {step:?}"
            );
            // And the next transaction is not in the way of what was left.
            let text = format!("{}{}", head(&haproxy, "next"), proxies(port, &line));
            changed(&settings, &text, "next").unwrap();
        }
    }
}

/// Runs [`victim`] in a process of its own, and waits until it has killed itself.
fn die_before(haproxy: &HaproxyInstance, mode: HaproxyMode, step: Step, text: &str) {
    let file = haproxy.directory().join("wanted");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "haproxy::kills::victim",
            "--ignored",
            "--nocapture",
        ])
        .env(
            VICTIM,
            format!("{} {} {mode:?}", haproxy.directory().display(), step.word()),
        )
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    let killed = output.status.signal();
    assert_eq!(
        killed,
        Some(9),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
#[ignore = "a part of the test above, which runs it in another process"]
fn victim() {
    let told = std::env::var(VICTIM).expect("it is run by the test above");
    let words: Vec<&str> = told.split(' ').collect();
    let mode = if words[2] == "Master" {
        HaproxyMode::Master
    } else {
        HaproxyMode::Daemon
    };
    let haproxy = HaproxyInstance::at(words[0].as_ref(), mode);
    let text = std::fs::read_to_string(haproxy.directory().join("wanted")).unwrap();
    let settings = settings(&haproxy, mode);
    let _ = change(&settings, &text, "two", &mut |step| {
        if step.word() == words[1] {
            send_signal(std::process::id().cast_signed(), Signal::SIGKILL);
        }
    });
    wait_until("it is dead", || false);
}
