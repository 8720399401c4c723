//! Whole transactions: every way to reload, and every way that fails.

use std::net::TcpListener;

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode, send_signal};
use hostkit_tests::{free_port, or_skip, wait_until};
use nix::sys::signal::Signal;

use synapse::haproxy::reload::ReloadError;
use synapse::haproxy::{Cause, Outcome, Step, Way};

use super::server::{Client, Named};
use super::{block_on, change, changed, head, proxies, settings, started};

fn file(haproxy: &HaproxyInstance) -> String {
    std::fs::read_to_string(haproxy.config()).unwrap()
}

#[test]
fn a_new_structure_is_applied() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        let (old, worker, second) = (file(&haproxy), haproxy.worker(), free_port());
        let text = format!(
            "{}{}frontend new\n    bind 127.0.0.1:{second}\n    default_backend b\n",
            head(&haproxy, "two"),
            proxies(port, &line)
        );
        let mut steps = Vec::new();
        let applied = change(&settings, &text, "two", &mut |step| steps.push(step)).unwrap();
        assert_eq!(
            steps,
            [
                Step::Candidate,
                Step::Check,
                Step::Binds,
                Step::Keep,
                Step::Swap,
                Step::Reload,
                Step::Verify
            ]
        );
        let phases: Vec<Step> = applied.phases.iter().map(|(step, _)| *step).collect();
        assert_eq!(phases, steps);
        assert_ne!(haproxy.worker(), worker);
        assert_eq!(applied.info.unwrap().pid, haproxy.worker());
        assert_eq!(haproxy.reloads(), 1);
        if mode == HaproxyMode::Daemon {
            let handed = format!("-x {} -sf {worker}", haproxy.socket().display());
            assert!(haproxy.runs().last().unwrap().ends_with(&handed));
        }
        assert_eq!(file(&haproxy), text);
        assert_eq!(
            std::fs::read_to_string(haproxy.directory().join("haproxy.cfg.old")).unwrap(),
            old
        );
        assert!(!haproxy.directory().join("haproxy.cfg.tmp").exists());
        for port in [port, second] {
            assert_eq!(Client::connect(port).get("/"), "200 A");
        }
    }
}

#[test]
fn the_operators_command_reloads_too() {
    let Some((haproxy, port, mut settings)) = started(HaproxyMode::Master, "") else {
        return;
    };
    settings.master_socket = None;
    settings.reload_command = Some(format!("kill -USR2 {}", haproxy.master()));
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    changed(&settings, &text, "two").unwrap();
    wait_until("the reload is counted", || haproxy.reloads() == 1);

    settings.reload_command = Some("echo no such unit; exit 5".to_owned());
    let text = format!("{}{}", head(&haproxy, "three"), proxies(port, ""));
    let error = changed(&settings, &text, "three").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Reload, &Outcome::PutBack)
    );
    assert!(
        error.cause.to_string().contains("no such unit"),
        "{}",
        error.cause
    );
    assert!(file(&haproxy).contains("HOSTKIT_STRUCTURE two"));

    settings.reload_command = Some("true".to_owned());
    let error = changed(&settings, &text, "three").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Verify, &Outcome::PutBack)
    );
    assert!(
        error.cause.to_string().contains("still serves"),
        "{}",
        error.cause
    );
}

#[test]
fn a_canary_that_does_not_answer_is_rolled_back() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, mut settings)) = started(mode, &line) else {
            return;
        };
        settings.canary_url = Some(format!("http://127.0.0.1:{port}/canary"));
        let (old, worker) = (file(&haproxy), haproxy.worker());
        let broken = format!("    retries 0\n    server s 127.0.0.1:{}\n", free_port());
        let text = format!("{}{}", head(&haproxy, "two"), proxies(port, &broken));
        let error = changed(&settings, &text, "two").unwrap_err();
        assert_eq!(
            (error.step, &error.outcome),
            (Step::Verify, &Outcome::Reloaded)
        );
        assert!(
            error.cause.to_string().contains("answered 503"),
            "{}",
            error.cause
        );
        assert!(error.phases.iter().any(|(step, _)| *step == Step::RollBack));
        assert_eq!(file(&haproxy), old);
        assert_ne!(haproxy.worker(), worker);
        assert_eq!(haproxy.reloads(), 2);
        assert_eq!(Client::connect(port).get("/"), "200 A");

        let good = format!("{}{}", head(&haproxy, "three"), proxies(port, &line));
        changed(&settings, &good, "three").unwrap();
    }
}

#[test]
fn another_structure_than_was_written_is_rolled_back() {
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    let error = changed(&settings, &text, "three").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Verify, &Outcome::Reloaded)
    );
    assert!(error.cause.to_string().contains("two"), "{}", error.cause);
    assert!(file(&haproxy).contains("HOSTKIT_STRUCTURE one"));
}

/// What preflight cannot see happens all the same: somebody takes the port between the probe and the reload.
#[test]
fn a_port_that_is_taken_at_the_last_moment_is_rolled_back() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        let (old, worker, wanted) = (file(&haproxy), haproxy.worker(), free_port());
        let text = format!(
            "{}{}listen other\n    bind 127.0.0.1:{wanted}\n",
            head(&haproxy, "two"),
            proxies(port, &line)
        );
        // Twice: a master counts its failures.
        for _ in 0..2 {
            let mut holder = None;
            let error = change(&settings, &text, "two", &mut |step| {
                if step == Step::Reload {
                    holder = Some(TcpListener::bind(("127.0.0.1", wanted)).unwrap());
                }
            })
            .unwrap_err();
            assert_eq!(error.outcome, Outcome::PutBack, "{error}");
            let refused = matches!(*error.cause, Cause::Reload(ReloadError::Refused(_)));
            assert!(refused, "{}", error.cause);
            assert_eq!(file(&haproxy), old);
            assert_eq!(haproxy.worker(), worker);
            assert_eq!(Client::connect(port).get("/"), "200 A");
        }
        changed(&settings, &text, "two").unwrap();
    }
}

#[test]
fn a_haproxy_that_does_not_run_is_started() {
    let Some(haproxy) = or_skip("haproxy", HaproxyInstance::prepare(HaproxyMode::Daemon)) else {
        return;
    };
    let settings = settings(&haproxy, HaproxyMode::Daemon);
    let (port, a) = (free_port(), Named::start("A"));
    let line = format!("    server s 127.0.0.1:{}\n", a.port());
    let text = format!("{}{}", head(&haproxy, "one"), proxies(port, &line));
    changed(&settings, &text, "one").unwrap();
    assert_eq!(Client::connect(port).get("/"), "200 A");
    // Its pid file and socket are left, and name nobody.
    haproxy.kill();
    let text = text.replace("HOSTKIT_STRUCTURE one", "HOSTKIT_STRUCTURE two");
    changed(&settings, &text, "two").unwrap();
    assert_eq!(Client::connect(port).get("/"), "200 A");
    let runs = haproxy.runs();
    assert!(
        runs.iter()
            .all(|run| !run.contains("-sf") && !run.contains("-x")),
        "{runs:?}"
    );
}

#[test]
fn a_pid_that_was_used_again_is_left_alone() {
    let Some((haproxy, port, settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    let stranger = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let mut stranger = hostkit_tests::ChildGuard(stranger);
    let worker = haproxy.worker();
    std::fs::write(haproxy.pid_file(), format!("{}\n", stranger.0.id())).unwrap();
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    changed(&settings, &text, "two").unwrap();
    assert!(stranger.0.try_wait().unwrap().is_none());
    wait_until("the old worker ends, whatever the pid file says", || {
        haproxy.processes() == [haproxy.worker()]
    });
    assert_ne!(haproxy.worker(), worker);
}

#[test]
fn leftover_workers_are_counted_until_they_end() {
    for mode in [HaproxyMode::Daemon, HaproxyMode::Master] {
        let a = Named::start("A");
        let line = format!("    server s 127.0.0.1:{}\n", a.port());
        let Some((haproxy, port, settings)) = started(mode, &line) else {
            return;
        };
        let way = Way::of(&settings).unwrap();
        let leftover = || block_on(way.leftover(&haproxy.config(), haproxy.worker()));
        assert!(leftover().is_empty());
        let mut client = Client::connect(port);
        client.ask("/hold");
        wait_until("the request is held", || a.held() == 1);
        let old = haproxy.worker();
        let text = format!("{}{}", head(&haproxy, "two"), proxies(port, &line));
        changed(&settings, &text, "two").unwrap();
        assert_eq!(leftover().into_iter().collect::<Vec<_>>(), [old]);
        a.release();
        assert_eq!(client.answer(), "200 A");
        drop(client);
        wait_until("it ends", || leftover().is_empty());
    }
}

#[test]
fn a_master_that_is_gone_is_an_error_and_the_old_file_stays() {
    let Some((haproxy, port, settings)) = started(HaproxyMode::Master, "") else {
        return;
    };
    let old = file(&haproxy);
    send_signal(haproxy.master(), Signal::SIGSTOP);
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    let error = changed(&settings, &text, "two").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Reload, &Outcome::PutBack)
    );
    assert!(matches!(*error.cause, Cause::Reload(_)), "{}", error.cause);
    assert_eq!(file(&haproxy), old);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let Some((haproxy, port, mut settings)) = started(HaproxyMode::Daemon, "") else {
        return;
    };
    settings.candidate_file = Some("/nowhere/haproxy.cfg.tmp".into());
    let text = format!("{}{}", head(&haproxy, "two"), proxies(port, ""));
    let error = changed(&settings, &text, "two").unwrap_err();
    assert_eq!(
        (error.step, &error.outcome),
        (Step::Candidate, &Outcome::Untouched)
    );
    assert!(
        error
            .cause
            .to_string()
            .contains("cannot write /nowhere/haproxy.cfg.tmp"),
        "{}",
        error.cause
    );
}
