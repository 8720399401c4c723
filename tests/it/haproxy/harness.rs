//! The harness itself: it starts, counts reloads, and leaves nothing running.

use hostkit_tests::haproxy::{HaproxyInstance, HaproxyMode, send_signal};
use hostkit_tests::{free_port, or_skip, wait_until};
use nix::sys::signal::Signal;

fn proxies() -> String {
    format!(
        "frontend f\n    bind 127.0.0.1:{}\n    default_backend b\nbackend b\n    server s 127.0.0.1:1\n",
        free_port()
    )
}

#[test]
fn a_daemon_is_found_restarted_and_stopped() {
    let Some(haproxy) = or_skip(
        "haproxy",
        HaproxyInstance::start(HaproxyMode::Daemon, &proxies()),
    ) else {
        return;
    };
    let first = haproxy.worker();
    assert_eq!(haproxy.processes(), [first]);
    assert_eq!(haproxy.reloads(), 0);
    haproxy.restart();
    let second = haproxy.worker();
    assert_ne!(first, second);
    assert_eq!(haproxy.runs().len(), 2);
    drop(haproxy);
    wait_until("it is gone", || {
        !std::path::Path::new(&format!("/proc/{second}/fd/0")).exists()
    });
}

#[test]
fn a_master_counts_its_reloads() {
    let Some(haproxy) = or_skip(
        "haproxy",
        HaproxyInstance::start(HaproxyMode::Master, &proxies()),
    ) else {
        return;
    };
    let (master, first) = (haproxy.master(), haproxy.worker());
    assert_ne!(master, first);
    send_signal(master, Signal::SIGUSR2);
    wait_until("another worker serves", || {
        ![0, first].contains(&haproxy.worker())
    });
    wait_until("the reload is counted", || haproxy.reloads() == 1);
    assert_eq!(haproxy.master(), master);
}
