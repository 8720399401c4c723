//! Single-flight: one body for any number of processes, whatever happens to the leader.

use std::time::Duration;

use hostkit_tests::host::CpuLimit;
use hostkit_tests::origin::{OriginFault, OriginRequest, OriginServer};
use hostkit_tests::{or_skip, wait_until};
use nix::sys::signal::Signal;

use super::{CacheHost, HASH, bytes, every_file, sha256};

mod run;

pub(super) use run::{FetchRun, assert_blobs, days_ago, days_ahead, fetch, recorded_parts};

/// The requests for the object itself.
fn object_requests(origin: &OriginServer, path: &str) -> Vec<OriginRequest> {
    let all = origin.requests().into_iter();
    all.filter(|request| request.method == "GET" && request.path == path)
        .collect()
}

fn looks_at_sidecar(origin: &OriginServer) -> usize {
    let all = origin.requests().into_iter();
    all.filter(|request| request.path.ends_with(".sha256"))
        .count()
}

const PART: u64 = 256 << 10;
/// Sixteen parts over two connections, so that some are finished and others are not.
const PARTS: [&str; 2] = ["--part-size=256K", "--connections=2"];

/// An object of sixteen parts that takes some two seconds over two connections.
fn slow_object(origin: &OriginServer, path: &str) -> Vec<u8> {
    let body = bytes(16 * PART as usize, 3);
    origin.put(path, body.clone());
    let bytes_per_second = 1 << 20;
    origin.fault(path, OriginFault::Slow { bytes_per_second });
    body
}

#[test]
fn sixty_four_processes_fetch_one_body() {
    for (path, megabytes) in [(format!("/job-{HASH}.bin"), 16), ("/static.bin".into(), 4)] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        let body = bytes(megabytes << 20, 7);
        origin.put(&path, body.clone());
        let bytes_per_second = 8 << 20;
        origin.fault(&path, OriginFault::Slow { bytes_per_second });
        let runs: Vec<FetchRun> = (0..64)
            .map(|n| fetch(&host, &origin.url(&path), &format!("out{n}"), &[]))
            .collect();
        for run in runs {
            run.end().exits(0);
        }
        for n in 0..64 {
            assert!(host.read(format!("out{n}")) == body, "{path}: copy {n}");
        }
        assert_eq!(origin.bytes(&path), body.len() as u64, "{path}");
        assert_eq!(looks_at_sidecar(&origin), 1, "{path}");
        assert_eq!(assert_blobs(&host), 1);
    }
}

#[test]
fn killed_leader_is_replaced_by_one_that_resumes() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = slow_object(&origin, &path);
    let mut leader = fetch(&host, &origin.url(&path), "leader", &PARTS);
    wait_until("some parts are finished", || {
        recorded_parts(&host).len() >= 4
    });
    let follower = fetch(&host, &origin.url(&path), "follower", &PARTS);
    follower.wait_for("another process is fetching");
    leader.kill();
    let (finished, asked) = (recorded_parts(&host), object_requests(&origin, &path).len());
    assert!(
        finished.len() < 16,
        "killed too late for this test: {finished:?}"
    );
    follower.end().exits(0).logs("continuing an interrupted");
    assert!(host.read("follower") == body);
    assert!(!host.path("leader").exists());
    for request in object_requests(&origin, &path).split_off(asked) {
        let range = request.range.as_ref().unwrap();
        let start = range[6..].split('-').next().unwrap();
        let part = start.parse::<u64>().unwrap() / PART;
        assert!(!finished.contains(&part), "{range} was there: {finished:?}");
        assert!(request.if_match.is_some(), "{request:?}");
    }
    assert!(
        origin.bytes(&path) <= body.len() as u64 + 2 * PART,
        "no more than the parts in flight"
    );
    assert_eq!(assert_blobs(&host), 1);
}

#[test]
fn object_replaced_after_leader_died_is_fetched_from_start() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    slow_object(&origin, "/static.bin");
    let mut leader = fetch(&host, &origin.url("/static.bin"), "leader", &PARTS);
    wait_until("some parts are finished", || {
        recorded_parts(&host).len() >= 4
    });
    let follower = fetch(&host, &origin.url("/static.bin"), "follower", &PARTS);
    follower.wait_for("another process is fetching");
    // Stopped until the object has been replaced.
    follower.signal(Signal::SIGSTOP);
    leader.kill();
    let replaced = bytes(16 * PART as usize, 4);
    origin.put("/static.bin", replaced.clone());
    follower.signal(Signal::SIGCONT);
    let outcome = follower.end().exits(0);
    assert!(!outcome.stderr.contains("continuing"), "{}", outcome.stderr);
    assert!(host.read("follower") == replaced);
    assert_eq!(assert_blobs(&host), 1);
}

#[test]
fn object_replaced_during_leader_download_restarts() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    slow_object(&origin, "/static.bin");
    let leader = fetch(&host, &origin.url("/static.bin"), "leader", &PARTS);
    let follower = fetch(&host, &origin.url("/static.bin"), "follower", &PARTS);
    wait_until("some parts are finished", || {
        recorded_parts(&host).len() >= 4
    });
    let replaced = bytes(10 * PART as usize, 4);
    origin.put("/static.bin", replaced.clone());
    for run in [leader, follower] {
        run.end().exits(0);
    }
    assert!(host.read("leader") == replaced);
    assert!(host.read("follower") == replaced);
}

#[test]
fn stopped_leader_is_taken_over_and_does_no_later_damage() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = slow_object(&origin, &path);
    let flags = [PARTS[0], PARTS[1], "--stall-timeout=1"];
    let leader = fetch(&host, &origin.url(&path), "leader", &flags);
    wait_until("some parts are finished", || {
        recorded_parts(&host).len() >= 4
    });
    leader.signal(Signal::SIGSTOP);
    let follower = fetch(&host, &origin.url(&path), "follower", &flags);
    let third = fetch(&host, &origin.url(&path), "third", &flags);
    let outcome = follower.end().exits(0);
    let other = third.end().exits(0);
    assert!(
        (outcome.stderr + &other.stderr).contains("taking over"),
        "the leader was taken over"
    );
    leader.signal(Signal::SIGCONT);
    leader.end().exits(0);
    for copy in ["leader", "follower", "third"] {
        assert!(host.read(copy) == body, "{copy}");
    }
    assert_eq!(assert_blobs(&host), 1);
    host.s3cache(["verify"]).exits(0);
    origin.reset_counters();
    host.s3cache([&origin.url(&path), "--copy-to=warm"])
        .exits(0);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn slow_leader_is_taken_over_and_can_be_stopped() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = bytes(2 << 20, 3);
    origin.put(&path, body.clone());
    let slow = OriginFault::Slow {
        bytes_per_second: 20 << 10,
    };
    origin.fault_times(&path, slow, 1);
    let flags = ["--stall-timeout=1"];
    let leader = fetch(&host, &origin.url(&path), "leader", &flags);
    origin.wait_requests(&path, 1);
    let follower = fetch(&host, &origin.url(&path), "follower", &flags);
    follower.end().exits(0).logs("taking over");
    assert!(host.read("follower") == body);
    leader.signal(Signal::SIGTERM);
    leader.end().exits(-15);
    assert!(!host.path("leader").exists());
}

#[test]
fn throttled_leader_with_progress_stays_leader() {
    let Some(quarter) = or_skip("a throttled leader", CpuLimit::quarter()) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = slow_object(&origin, &path);
    let leader = fetch(&host, &origin.url(&path), "leader", &PARTS);
    quarter.add(leader.pid()).unwrap();
    origin.wait_requests(&path, 1);
    let others: Vec<FetchRun> = (0..15)
        .map(|n| fetch(&host, &origin.url(&path), &format!("out{n}"), &PARTS))
        .collect();
    for run in others.into_iter().chain([leader]) {
        run.end().exits(0);
    }
    for n in 0..15 {
        assert!(host.read(format!("out{n}")) == body, "copy {n}");
    }
    assert_eq!(origin.bytes(&path), body.len() as u64);
}

#[test]
fn leader_at_configured_rate_is_not_taken_over() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    origin.put(&path, bytes(192 << 10, 3));
    let flags = ["--max-rate=48K", "--part-size=64K", "--stall-timeout=1"];
    let leader = fetch(&host, &origin.url(&path), "leader", &flags);
    origin.wait_requests(&path, 1);
    let follower = fetch(&host, &origin.url(&path), "follower", &flags[2..]);
    let outcome = follower.end().exits(0);
    assert!(
        !outcome.stderr.contains("taking over"),
        "{}",
        outcome.stderr
    );
    leader.end().exits(0);
    assert_eq!(origin.bytes(&path), 192 << 10);
}

#[test]
fn leader_with_all_bytes_has_time_to_finish() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    origin.put(&path, bytes(100_000, 3));
    let sidecar = format!("{path}.sha256");
    origin.fault(&sidecar, OriginFault::Latency(Duration::from_secs(4)));
    let leader = fetch(&host, &origin.url(&path), "leader", &[]);
    origin.wait_requests(&sidecar, 1);
    // A deadline of 1.2 s for a leader that fetches, of 6 s for one that finishes.
    let flags = ["--stall-timeout=600ms"];
    let outcome = fetch(&host, &origin.url(&path), "follower", &flags)
        .end()
        .exits(0);
    assert!(
        !outcome.stderr.contains("taking over"),
        "{}",
        outcome.stderr
    );
    leader.end().exits(0);
}

#[test]
fn bytes_of_leader_killed_before_publishing_are_not_fetched_again() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = bytes(4 << 20, 3);
    origin.put(&path, body.clone());
    let sidecar = format!("{path}.sha256");
    origin.fault(&sidecar, OriginFault::Latency(Duration::from_secs(60)));
    let mut leader = fetch(&host, &origin.url(&path), "leader", &PARTS);
    origin.wait_requests(&sidecar, 1);
    let follower = fetch(&host, &origin.url(&path), "follower", &PARTS);
    follower.wait_for("another process is fetching");
    origin.clear_faults();
    let asked = object_requests(&origin, &path).len();
    leader.kill();
    follower.end().exits(0).logs("continuing an interrupted");
    assert!(host.read("follower") == body);
    assert_eq!(
        object_requests(&origin, &path).len(),
        asked + 1,
        "only the probe"
    );
}

#[test]
fn different_artifacts_never_wait_for_each_other() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/stuck-1.2", bytes(1 << 20, 1));
    origin.fault("/stuck-1.2", OriginFault::Stall(1000));
    let mut stuck = fetch(&host, &origin.url("/stuck-1.2"), "stuck", &[]);
    origin.wait_requests("/stuck-1.2", 1);
    for n in 0..4 {
        let path = format!("/other-1.{n}");
        origin.put(&path, bytes(1 << 20, n));
        let copy = format!("--copy-to=other{n}");
        host.s3cache([&origin.url(&path), &copy, "--timeout=20"])
            .exits(0);
        assert!(host.read(format!("other{n}")) == bytes(1 << 20, n));
    }
    assert!(!stuck.ended());
}

/// Eviction holds the lock of the counter; a process stopped there must not block others for ever.
#[test]
fn process_stopped_during_eviction_blocks_no_other() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for n in 1..4 {
        origin.put(&format!("/a-1.{n}"), "bytes");
    }
    host.s3cache([origin.url("/a-1.1")]).exits(0);
    let uid = nix::unistd::geteuid();
    let space = host.cache().join(format!("{uid}/locks/v1/space"));
    let held = std::fs::File::open(space).unwrap();
    held.lock().unwrap();
    let outcome = fetch(&host, &origin.url("/a-1.2"), "out", &[]).end();
    outcome.exits(0).logs("fetching straight to");
    assert_eq!(host.read("out"), b"bytes");
    let waiting = fetch(&host, &origin.url("/a-1.3"), "waiting", &[]);
    origin.wait_requests("/a-1.3", 1);
    // It keeps the folder of the lock open while it waits for the lock.
    wait_until("it waits for the lock", || waiting.has_open("locks/v1"));
    waiting.signal(Signal::SIGTERM);
    waiting.end().exits(-15);
}

#[test]
fn followers_share_failure_of_leader() {
    let slow = || OriginFault::Latency(Duration::from_secs(2));
    let busy = OriginFault::Status {
        code: 503,
        retry_after: None,
    };
    for (faults, code, most) in [(vec![slow()], 66, 4), (vec![slow(), busy], 69, 20)] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        let path = format!("/job-{HASH}.bin");
        origin.faults(&path, faults);
        let runs: Vec<FetchRun> = (0..64)
            .map(|n| fetch(&host, &origin.url(&path), &format!("out{n}"), &[]))
            .collect();
        for run in runs {
            run.end().exits(code);
        }
        let asked = object_requests(&origin, &path).len();
        assert!(asked <= most, "{code}: {asked} requests");
    }
}

#[test]
fn failure_recorded_before_boot_is_ignored() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = slow_object(&origin, &path);
    let mut leader = fetch(&host, &origin.url(&path), "leader", &PARTS);
    wait_until("some parts are finished", || {
        recorded_parts(&host).len() >= 2
    });
    // The name follows the leader's own files; the uptime is in the future of this boot.
    let record = every_file(&host.cache())
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".0.record"))
        .unwrap();
    let verdict = record.to_str().unwrap().replace(".0.record", ".failed");
    let text = r#"{"at":1000000000000000,"exit":66,"message":"it was not there"}"#;
    std::fs::write(verdict, text).unwrap();
    let follower = fetch(&host, &origin.url(&path), "follower", &PARTS);
    follower.wait_for("another process is fetching");
    leader.kill();
    follower.end().exits(0);
    assert!(host.read("follower") == body);
}

#[test]
fn timeout_bounds_wait_of_follower() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/stuck-1.2", bytes(1 << 20, 1));
    origin.fault("/stuck-1.2", OriginFault::Stall(1000));
    let _stuck = fetch(&host, &origin.url("/stuck-1.2"), "stuck", &[]);
    origin.wait_requests("/stuck-1.2", 1);
    let waiting = fetch(
        &host,
        &origin.url("/stuck-1.2"),
        "waiting",
        &["--timeout=1"],
    );
    waiting.end().exits(75).logs("not finished within 1s");
    assert!(!host.path("waiting").exists());
}

#[test]
fn cached_copy_with_other_digest_than_requested_is_fetched_again() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "old");
    host.s3cache([origin.url("/static.bin")]).exits(0);
    origin.put("/static.bin", "new");
    let digest = format!("--sha256={}", sha256(b"new"));
    host.s3cache([&origin.url("/static.bin"), "--copy-to=out", &digest])
        .exits(0);
    assert_eq!(host.read("out"), b"new");
}
