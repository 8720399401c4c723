//! Kills at any moment: no wrong byte at any published path, and only garbage that the next run or `gc` collects.

use std::fs::File;
use std::time::{Duration, Instant};

use hostkit_tests::host::TmpfsMount;
use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::wait_until;
use hostkit_tests::{find_program, or_skip};
use nix::sys::signal::Signal;

use super::single_flight::{FetchRun, assert_blobs, days_ago, fetch, recorded_parts};
use super::{CacheHost, HASH, bytes, every_file, mix};

/// How many leaders are killed.
fn rounds() -> u64 {
    let long = hostkit_tests::is_long_run();
    if long { 1000 } else { 60 }
}

/// Garbage: everything in the cache but blobs, index entries, the counter and locks.
fn list_leftovers(host: &CacheHost) -> Vec<String> {
    let files = every_file(&host.cache()).into_iter();
    let names = files.map(|path| path.to_string_lossy().into_owned());
    names
        .filter(|name| name.contains("/partial/") || name.ends_with(".tmp"))
        .collect()
}

/// Makes everything in the cache three days old, so that `gc` considers its owners dead.
fn age_cache(host: &CacheHost) {
    let old = days_ago(3);
    for path in every_file(&host.cache()) {
        if !path.to_string_lossy().contains("/blobs/") {
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(old).unwrap();
        }
    }
}

#[test]
fn killed_leaders_leave_no_wrong_byte_and_no_garbage() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let body = bytes(2 << 20, 11);
    let bytes_per_second = 2 << 20;
    let flags = ["--part-size=128K", "--connections=4"];
    let artifact = |n: u64| {
        let path = format!("/job-1.{n}");
        origin.put(&path, body.clone());
        origin.fault(&path, OriginFault::Slow { bytes_per_second });
        path
    };
    // Built before it is timed.
    let _ = hostkit_tests::bin("s3cache");
    let durations = (1000..1003).map(|n| {
        let (url, began) = (origin.url(&artifact(n)), Instant::now());
        fetch(&host, &url, "out", &flags).end().exits(0);
        began.elapsed().as_micros() as u64
    });
    let whole = durations.min().unwrap();
    let (mut killed, mut absent) = (0, 0);
    let mut path = artifact(0);
    for n in 0..rounds() {
        let target = host.path("out");
        let _ = std::fs::remove_file(&target);
        let mut leader = fetch(&host, &origin.url(&path), "out", &flags);
        std::thread::sleep(Duration::from_micros(mix(n) % whole));
        killed += u64::from(!leader.ended());
        leader.kill();
        match std::fs::read(&target) {
            Ok(found) => assert!(found == body, "round {n}: wrong bytes"),
            Err(_) => absent += 1,
        }
        assert_blobs(&host);
        assert!(
            list_leftovers(&host).len() <= 8,
            "round {n}: {:?}",
            list_leftovers(&host)
        );
        // Several kills for each artifact, so that some hit a process that resumes.
        if n % 5 == 4 {
            fetch(&host, &origin.url(&path), "out", &flags)
                .end()
                .exits(0);
            assert!(host.read("out") == body, "round {n}: after the kills");
            path = artifact(n + 1);
        }
    }
    assert!(killed >= rounds() / 3, "too few struck: {killed}");
    assert!(absent >= rounds() / 4, "too few struck early: {absent}");
    let names: Vec<_> = std::fs::read_dir(host.sandbox()).unwrap().collect();
    assert_eq!(names.len(), 2, "the copy and the log: {names:?}");
    age_cache(&host);
    host.s3cache(["gc"]).exits(0);
    assert_eq!(list_leftovers(&host), Vec::<String>::new());
    host.s3cache(["verify"]).exits(0);
}

#[test]
fn temporary_files_of_index_writes_are_collected() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.1", "bytes");
    host.s3cache([origin.url("/a-1.1")]).exits(0);
    let entry = every_file(&host.cache())
        .into_iter()
        .find(|path| path.to_string_lossy().contains("/index/v1/") && !path.ends_with("held"))
        .unwrap();
    let shelf = entry.parent().unwrap();
    let key = entry.file_name().unwrap().to_str().unwrap();
    // Names of write_atomic, at both levels; and the folder of a blob that was never published.
    std::fs::write(shelf.join(format!(".{key}.123-abc.tmp")), "torn").unwrap();
    let above = shelf.parent().unwrap();
    std::fs::write(above.join(".held.123-abc.tmp"), "torn").unwrap();
    let uid = nix::unistd::geteuid();
    let blobs = host.cache().join(format!("{uid}/blobs"));
    let empty = blobs.join("ab").join("ab".repeat(32));
    std::fs::create_dir_all(&empty).unwrap();
    host.s3cache(["gc"]).exits(0);
    assert_eq!(list_leftovers(&host).len(), 2, "their writers may be alive");
    age_cache(&host);
    host.s3cache(["gc"]).exits(0);
    assert_eq!(list_leftovers(&host), Vec::<String>::new());
    assert!(!empty.exists());
    assert!(entry.exists());
}

#[test]
fn killed_copy_keeps_old_file_and_next_copy_cleans_up() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let body = bytes(48 << 20, 2);
    let path = format!("/job-{HASH}.bin");
    origin.put(&path, body.clone());
    host.s3cache([origin.url(&path)]).exits(0);
    // Another filesystem, so that the copy takes time; without one it is only faster.
    let tmpfs = or_skip("a copy that takes time", TmpfsMount::mount(128 << 20));
    let sandbox = tmpfs
        .as_ref()
        .map_or_else(|| host.sandbox(), |tmpfs| tmpfs.path());
    let target = sandbox.join("target");
    let copy = |name: &str| {
        let copy_to = format!("--copy-to={}", target.display());
        let command = host.command([&origin.url(&path), copy_to.as_str()]);
        FetchRun::start(&host, name, command)
    };
    for n in 0..rounds() / 3 {
        std::fs::write(&target, "what was there").unwrap();
        let mut run = copy("copying");
        std::thread::sleep(Duration::from_micros(mix(n) % 120_000));
        run.kill();
        let found = std::fs::read(&target).unwrap();
        assert!(found == b"what was there" || found == body, "round {n}");
    }
    copy("last").end().exits(0);
    assert!(std::fs::read(&target).unwrap() == body);
    let left = every_file(&sandbox)
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(".s3cache-"));
    assert_eq!(left.count(), 0);
    assert_blobs(&host);
}

#[test]
fn signal_during_fetch_ends_process_and_leaves_no_file_in_sandbox() {
    for (signal, code) in [(Signal::SIGTERM, -15), (Signal::SIGINT, -2)] {
        // Into the cache, and straight to the sandbox because the cache is too small.
        for flag in ["--max-size=1G", "--max-size=1K"] {
            let (host, origin) = (CacheHost::new(), OriginServer::start());
            origin.put("/a-1.1", bytes(1 << 20, 1));
            origin.fault("/a-1.1", OriginFault::Stall(500_000));
            let run = fetch(&host, &origin.url("/a-1.1"), "out", &[flag]);
            wait_until("the fetch has started", || {
                origin.bytes("/a-1.1") >= 500_000
            });
            run.signal(signal);
            run.end().exits(code);
            let names: Vec<_> = std::fs::read_dir(host.sandbox()).unwrap().collect();
            assert_eq!(names.len(), 1, "the log: {names:?}");
        }
    }
}

/// A tracer delays the copy.
#[test]
fn signal_during_copy_ends_process() {
    let Some(strace) = or_skip("a copy that takes time", find_program("strace")) else {
        return;
    };
    for warm in [false, true] {
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        let url = origin.url("/a-1.1");
        origin.put("/a-1.1", bytes(1 << 20, 1));
        if warm {
            host.s3cache([&url]).exits(0);
        }
        let mut command = host.program(&strace);
        let inject = "inject=copy_file_range:delay_enter=4000000";
        command.args(["-f", "-qq", "-e", "trace=copy_file_range", "-e", inject]);
        command
            .args(["-o", "calls"])
            .arg(hostkit_tests::bin("s3cache"));
        command.args([&url, "--copy-to=out"]).args(host.own_flags());
        let run = FetchRun::start(&host, "traced", command);
        wait_until("the copy has started", || {
            let calls = std::fs::read_to_string(host.path("calls"));
            calls.is_ok_and(|calls| calls.contains("copy_file_range"))
        });
        run.signal_children(Signal::SIGTERM);
        run.end().exits(-15);
        assert!(!host.path("out").exists());
    }
}

#[test]
fn signal_to_waiting_follower_ends_it_and_leader_continues() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let body = bytes(2 << 20, 1);
    origin.put("/a-1.1", body.clone());
    let bytes_per_second = 1 << 20;
    origin.fault("/a-1.1", OriginFault::Slow { bytes_per_second });
    let flags = ["--part-size=128K"];
    let leader = fetch(&host, &origin.url("/a-1.1"), "leader", &flags);
    wait_until("the fetch has started", || {
        !recorded_parts(&host).is_empty()
    });
    let follower = fetch(&host, &origin.url("/a-1.1"), "follower", &flags);
    follower.wait_for("another process is fetching");
    follower.signal(Signal::SIGTERM);
    follower.end().exits(-15);
    leader.end().exits(0);
    assert!(host.read("leader") == body);
    assert_eq!(origin.bytes("/a-1.1"), body.len() as u64);
}
