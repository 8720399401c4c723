//! Uids that trust each other by configuration: one body for all of them.

use std::path::PathBuf;

use hostkit_tests::host::run_as;
use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::wait_until;

use super::super::single_flight::{FetchRun, recorded_parts};
use super::{ANN, BOB, HASH, HostUsers, bytes};

/// A configuration in which they trust each other.
fn config(users: &HostUsers) -> String {
    let path: PathBuf = users.host.path("trust.yaml");
    std::fs::write(&path, format!("trusted-uids: [{ANN}, {BOB}]\n")).unwrap();
    format!("--config={}", path.display())
}

fn start(users: &HostUsers, uid: u32, url: &str, to: &str, flags: &[&str]) -> FetchRun {
    let copy_to = format!("--copy-to={to}");
    let mut args = vec![url, &copy_to, "--loglevel=debug"];
    args.extend(flags);
    FetchRun::start(&users.host, to, users.command(uid, &args))
}

fn slow_object(origin: &OriginServer, path: &str) -> Vec<u8> {
    let body = bytes(4 << 20, 8);
    origin.put(path, body.clone());
    let bytes_per_second = 1 << 20;
    origin.fault(path, OriginFault::Slow { bytes_per_second });
    body
}

#[test]
fn two_trusting_uids_fetch_one_body() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, config) = (OriginServer::start(), config(&users));
    // Repeatedly from nothing: their parts of the cache are created at the same time.
    for round in 0..5 {
        let path = format!("/job-1.{round}");
        let body = bytes(1 << 20, round);
        origin.put(&path, body.clone());
        let bytes_per_second = 4 << 20;
        origin.fault(&path, OriginFault::Slow { bytes_per_second });
        let runs: Vec<(u32, String, FetchRun)> = (0..32)
            .map(|n| {
                let (uid, to) = ([ANN, BOB][n % 2], format!("out{round}-{n}"));
                let run = start(&users, uid, &origin.url(&path), &to, &[&config]);
                (uid, to, run)
            })
            .collect();
        for (uid, to, run) in runs {
            run.end().exits(0);
            assert!(std::fs::read(users.home(uid).join(&to)).unwrap() == body);
        }
        assert_eq!(origin.bytes(&path), body.len() as u64, "round {round}");
        for uid in [ANN, BOB] {
            std::fs::remove_dir_all(users.share(uid, "")).unwrap();
        }
    }
}

#[test]
fn dead_leader_of_other_uid_is_taken_over() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, config) = (OriginServer::start(), config(&users));
    let path = format!("/job-{HASH}.bin");
    let body = slow_object(&origin, &path);
    let flags = [&config, "--part-size=256K", "--connections=2"];
    let mut leader = start(&users, ANN, &origin.url(&path), "leader", &flags);
    wait_until("some parts are finished", || {
        recorded_parts(&users.host).len() >= 4
    });
    let follower = start(&users, BOB, &origin.url(&path), "follower", &flags);
    follower.wait_for("another process is fetching");
    leader.kill();
    follower.end().exits(0).logs("continuing an interrupted");
    assert!(std::fs::read(users.home(BOB).join("follower")).unwrap() == body);
    assert!(origin.bytes(&path) <= body.len() as u64 + 3 * (256 << 10));
    origin.reset_counters();
    users
        .run(ANN, &[&origin.url(&path), "--copy-to=warm", &config])
        .exits(0);
    assert_eq!(origin.connections(), 0);
}

/// A lock that the other cannot open excludes only its owner.
#[test]
fn narrow_umask_and_older_lock_do_not_make_two_leaders() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, config) = (OriginServer::start(), config(&users));
    let path = format!("/job-{HASH}.bin");
    // Locks from before the configuration are accessible to their owners only.
    for uid in [ANN, BOB] {
        users.run(uid, &[&origin.url(&path)]).exits(66);
    }
    let body = slow_object(&origin, &path);
    let command = |uid: u32| {
        let mut command = run_as(uid, "sh").unwrap();
        users.host.set_clean_environment(&mut command);
        let shell = r#"umask 077; exec "$0" "$@""#;
        command.args(["-c", shell]).arg(users.program());
        command.args([&origin.url(&path), "--copy-to=out", &config]);
        command
            .args(users.host.own_flags())
            .current_dir(users.home(uid));
        command
    };
    origin.reset_counters();
    let leader = FetchRun::start(&users.host, "leader", command(BOB));
    origin.wait_requests(&path, 1);
    let follower = FetchRun::start(&users.host, "follower", command(ANN));
    for run in [leader, follower] {
        run.end().exits(0);
    }
    for uid in [ANN, BOB] {
        assert!(std::fs::read(users.home(uid).join("out")).unwrap() == body);
    }
    assert_eq!(origin.bytes(&path), body.len() as u64);
}
