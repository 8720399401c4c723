//! The bound of the cache: it is never exceeded, the least recently used entry is evicted first, entries in use stay,
//! and an object that does not fit bypasses the cache.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hostkit_tests::host::TmpfsMount;
use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::{bin, find_program, or_skip};
use nix::unistd::geteuid;

use super::single_flight::{FetchRun, assert_blobs, days_ahead, fetch};
use super::{CacheHost, CommandOutcome, HASH, bytes, every_file, sha256};

const MB: u64 = 1 << 20;

/// A file or folder of this user's part of the cache.
fn share(host: &CacheHost, path: &str) -> PathBuf {
    host.cache().join(geteuid().to_string()).join(path)
}

/// Bytes of blobs and partial downloads, as far as they stand still.
fn held_bytes(host: &CacheHost) -> u64 {
    let mut files = every_file(&share(host, "blobs"));
    files.extend(every_file(&share(host, "partial")));
    let lengths = files
        .iter()
        .filter_map(|path| Some(path.symlink_metadata().ok()?.len()));
    lengths.sum()
}

/// Publishes an artifact of a megabyte, a different one for each `n`.
fn publish(origin: &OriginServer, n: u64) -> String {
    let path = format!("/a-1.{n}");
    origin.put(&path, bytes(MB as usize, n));
    path
}

fn is_cached(host: &CacheHost, n: u64) -> bool {
    let digest = sha256(&bytes(MB as usize, n));
    share(host, &format!("blobs/{}/{digest}", &digest[..2])).exists()
}

#[test]
fn sixty_four_concurrent_fetches_keep_bound_of_four_entries() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let (bound, done) = (4 * MB, AtomicBool::new(false));
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(held_bytes(&host));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let runs: Vec<FetchRun> = (0..64)
            .map(|n| {
                let path = publish(&origin, n);
                fetch(
                    &host,
                    &origin.url(&path),
                    &format!("out{n}"),
                    &["--max-size=4M"],
                )
            })
            .collect();
        for run in runs {
            run.end().exits(0);
        }
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    for n in 0..64 {
        assert!(host.read(format!("out{n}")) == bytes(MB as usize, n), "{n}");
    }
    // A record is a line per part; a file that is moved during the count may be counted twice.
    assert!(most <= bound + MB + 64 * 1024, "{most} held");
    let kept = assert_blobs(&host);
    assert!((1..=4).contains(&kept), "{kept} kept");
    assert!(held_bytes(&host) <= bound + 64 * 1024);
}

#[test]
fn least_recently_used_is_evicted_first_and_hit_counts_as_use() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let get = |n: u64| {
        let path = publish(&origin, n);
        let url = origin.url(&path);
        host.s3cache([url.as_str(), "--copy-to=out", "--max-size=4M"])
            .exits(0);
    };
    for n in [0, 1, 2, 3, 0, 2] {
        get(n);
    }
    host.age_blobs();
    get(4);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|n| is_cached(&host, n)),
        [true, false, true, true, true]
    );
    get(5);
    assert!(!is_cached(&host, 3) && is_cached(&host, 0));
}

#[test]
fn entry_in_use_is_not_evicted() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let get = |n: u64, code: i32| {
        let path = publish(&origin, n);
        let outcome = host.s3cache([&origin.url(&path), "--max-size=2M"]);
        outcome.exits(code).stdout.trim().to_owned()
    };
    let leases: Vec<File> = [0, 1]
        .map(|n| File::open(get(n, 0)).unwrap())
        .into_iter()
        .collect();
    for lease in &leases {
        lease.lock_shared().unwrap();
    }
    get(2, 73);
    let copy = fetch(&host, &origin.url("/a-1.2"), "out", &["--max-size=2M"]);
    copy.end().exits(0).logs("nothing more to evict");
    assert!(host.read("out") == bytes(MB as usize, 2));
    assert!(is_cached(&host, 0) && is_cached(&host, 1) && !is_cached(&host, 2));
    host.s3cache(["rm", "a-1.0"]).exits(75);
    host.age_blobs();
    host.s3cache(["gc", "--max-size=1"]).exits(0);
    assert!(is_cached(&host, 0) && is_cached(&host, 1));
    drop(leases);
    get(2, 0);
    assert!(!is_cached(&host, 0));
}

#[test]
fn recently_used_blobs_are_evicted_only_when_fetch_needs_their_space() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let get = |n: u64, more: &[&str]| {
        let url = origin.url(&publish(&origin, n));
        let args = [&[url.as_str(), "--max-size=2M"], more].concat();
        host.s3cache(args).exits(0)
    };
    for n in [0, 1] {
        get(n, &[]);
    }
    get(2, &["--copy-to=out"]).logs("used within the last hour");
    assert!(host.read("out") == bytes(MB as usize, 2));
    host.s3cache(["gc", "--max-size=0"]).exits(0);
    assert_eq!([0, 1, 2].map(|n| is_cached(&host, n)), [true, true, false]);
    // Its caller requested a path in the cache: there is no other place for it.
    get(2, &[]);
    assert_eq!([0, 1, 2].map(|n| is_cached(&host, n)), [false, true, true]);
    // An explicit age applies without protection.
    host.s3cache(["gc", "--max-age=0"]).exits(0);
    assert_eq!([1, 2].map(|n| is_cached(&host, n)), [false, false]);
}

#[test]
fn object_larger_than_cache_bypasses_it() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let url = origin.url(&publish(&origin, 1));
    let outcome = host.s3cache([url.as_str(), "--copy-to=out", "--max-size=1000K"]);
    outcome.exits(0).logs("--max-size").logs("WARN");
    assert!(host.read("out") == bytes(MB as usize, 1));
    host.s3cache([url.as_str(), "--max-size=1000K"])
        .exits(73)
        .logs("make room in the cache");
    assert!(held_bytes(&host) < 10_000, "no partial file is left");
}

#[test]
fn object_that_leaves_too_little_free_space_bypasses_cache_and_evicts_nothing() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let urls = [0, 1].map(|n| origin.url(&publish(&origin, n)));
    host.s3cache([&urls[0]]).exits(0);
    host.age_blobs();
    let cache = format!("--cache-dir={}", host.cache().display());
    let why = "cannot keep 900.0 TiB free";
    for (args, code) in [
        (&[&urls[1], "--copy-to=out"][..], 0),
        (&[&urls[1]], 73),
        (&["gc", "--dry-run"], 0),
        (&["gc"], 0),
    ] {
        let mut command = host.program(bin("s3cache"));
        command.args(args).args(["--keep-free=900T", &cache]);
        let outcome = CommandOutcome::from(command.output().unwrap());
        outcome.exits(code).logs(why);
        assert!(is_cached(&host, 0) && !is_cached(&host, 1), "{args:?}");
    }
    assert!(host.read("out") == bytes(MB as usize, 1));
}

#[test]
fn full_cache_disk_is_bypassed_and_full_target_disk_is_error() {
    let Some(small) = or_skip("full disks", TmpfsMount::mount(MB)) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let run = |path: &str, to: PathBuf| -> CommandOutcome {
        let mut command = host.program(bin("s3cache"));
        command
            .arg(origin.url(path))
            .arg(format!("--copy-to={}", to.display()))
            .arg(format!("--cache-dir={}", small.path().join("c").display()))
            .arg("--keep-free=0");
        command.output().unwrap().into()
    };
    let path = publish(&origin, 1);
    run(&path, host.path("out")).exits(0).logs("WARN");
    assert!(host.read("out") == bytes(MB as usize, 1));
    let outcome = run(&path, small.path().join("out"));
    outcome.exits(73).logs("free some space");
    assert!(
        every_file(&small.path())
            .iter()
            .all(|path| !path.to_string_lossy().contains("/out")
                && !path.to_string_lossy().contains(".s3cache-")),
        "nothing half-written"
    );
    // No space is left for a lock or a counter.
    let filler = vec![0; 64 << 10];
    let mut file = File::create(small.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut file, &filler).is_ok() {}
    let other = publish(&origin, 2);
    run(&other, host.path("other")).exits(0).logs("WARN");
    assert!(host.read("other") == bytes(MB as usize, 2));
}

#[test]
fn object_of_unknown_length_keeps_cache_bound() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = publish(&origin, 1);
    origin.fault(&path, OriginFault::Chunked);
    let url = origin.url(&path);
    host.s3cache([url.as_str(), "--copy-to=out", "--max-size=100M"])
        .exits(0);
    assert!(host.read("out") == bytes(MB as usize, 1));
    assert!(held_bytes(&host) < 2 * MB, "excess reservation is released");
}

#[test]
fn object_of_unknown_length_that_does_not_fit_bypasses_cache() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let large = format!("/job-{HASH}.bin");
    origin.put(&large, bytes(80 << 20, 3));
    origin.fault(&large, OriginFault::Chunked);
    let url = origin.url(&large);
    let outcome = host.s3cache([url.as_str(), "--copy-to=out", "--max-size=70M"]);
    outcome.exits(0).logs("WARN");
    assert!(host.read("out") == bytes(80 << 20, 3));
    assert!(held_bytes(&host) <= 70 * MB);
}

#[test]
fn wrong_size_counter_is_corrected_and_missing_one_recounted() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let get = |n: u64| {
        let url = origin.url(&publish(&origin, n));
        let outcome = host.s3cache([url.as_str(), "--copy-to=out", "--max-size=3M"]);
        let outcome = outcome.exits(0);
        assert!(!outcome.stderr.contains("WARN"), "{}", outcome.stderr);
        assert!(is_cached(&host, n));
    };
    for n in 0..3 {
        get(n);
    }
    host.age_blobs();
    let counter = share(&host, "index/v1/held");
    assert!(counter.exists());
    for (n, text) in (3..).zip(["99999999999", "not a number", "", "-5", "\u{fffd}"]) {
        std::fs::write(&counter, text).unwrap();
        host.age_blobs();
        get(n);
        assert!(held_bytes(&host) <= 3 * MB, "after {text:?}");
    }
    std::fs::remove_file(&counter).unwrap();
    host.age_blobs();
    get(20);
    assert!(held_bytes(&host) <= 3 * MB);
    // Too low only until gc has recounted.
    std::fs::write(&counter, "0").unwrap();
    host.s3cache(["gc"]).exits(0);
    host.age_blobs();
    get(21);
    assert!(held_bytes(&host) <= 3 * MB);
}

/// A blob without an index entry would not be counted.
#[test]
fn blob_without_index_entry_is_removed() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = publish(&origin, 1);
    host.s3cache([origin.url(&path)]).exits(0);
    let index = every_file(&share(&host, "index"));
    let entry = index.iter().find(|path| !path.ends_with("held")).unwrap();
    host.s3cache(["rm", "a-1.1"]).exits(0);
    std::fs::create_dir_all(entry.join("in-the-way")).unwrap();
    let outcome = host.s3cache([&origin.url(&path), "--copy-to=out"]);
    outcome.exits(0).logs("cannot publish");
    assert!(host.read("out") == bytes(MB as usize, 1));
    assert_eq!(every_file(&share(&host, "blobs")).len(), 0);
}

#[test]
fn clock_step_loses_no_entry() {
    let Some(faketime) = or_skip("clock steps", find_program("faketime")) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let run = |step: &str, args: &[&str]| -> CommandOutcome {
        let mut command: Command = host.program(&faketime);
        command.args(["-f", step]).arg(bin("s3cache")).args(args);
        // Only the clock steps: times on disk stay.
        command.env("NO_FAKE_STAT", "1");
        command.args(host.own_flags()).output().unwrap().into()
    };
    let urls: Vec<String> = (0..8).map(|n| origin.url(&publish(&origin, n))).collect();
    let mut next = urls.iter();
    for step in ["+2d", "-2d", "+2d", "-30d"] {
        let url = next.next().unwrap();
        run(step, &[url, "--copy-to=out", "--max-size=3M"]).exits(0);
        origin.reset_counters();
        for again in ["-2d", "+2d", "+0d"] {
            run(again, &[url, "--copy-to=out"]).exits(0);
        }
        assert_eq!(origin.connections(), 0, "it is a hit at any time");
        assert!(held_bytes(&host) <= 3 * MB);
    }
    // Times in the future.
    let future = days_ahead(400);
    for blob in every_file(&share(&host, "blobs")) {
        let folder = File::open(blob.parent().unwrap()).unwrap();
        folder.set_modified(future).unwrap();
    }
    for url in next {
        run("+0d", &[url, "--copy-to=out", "--max-size=3M"]).exits(0);
        assert!(held_bytes(&host) <= 3 * MB);
    }
    run("-2d", &["gc"]).exits(0);
    assert!(assert_blobs(&host) > 0);
    run("+0d", &["gc", "--max-age=1h"]).exits(0);
    run("+500d", &["gc", "--max-age=1h"]).exits(0);
    assert_eq!(assert_blobs(&host), 0);
}

#[test]
fn hit_cost_does_not_depend_on_entry_count() {
    let Some(strace) = or_skip("system calls of a hit", find_program("strace")) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let calls = |n: u64, which: &str| -> usize {
        let url = origin.url(&publish(&origin, n));
        let mut command = host.program(&strace);
        let which = format!("trace={which}");
        command.args([
            "-f",
            "-qq",
            "-e",
            &which,
            "-e",
            "signal=none",
            "-o",
            "calls",
        ]);
        command.arg(bin("s3cache")).args([&url, "--copy-to=out"]);
        let outcome = CommandOutcome::from(command.args(host.own_flags()).output().unwrap());
        outcome.exits(0);
        String::from_utf8(host.read("calls"))
            .unwrap()
            .lines()
            .count()
    };
    host.s3cache([origin.url(&publish(&origin, 1))]).exits(0);
    // The system calls of a fetch vary with the network, except those that read directories.
    let few = [calls(1, "all"), calls(2, "getdents64,flock")];
    for n in 0..20_000_u32 {
        let digest = sha256(&n.to_le_bytes());
        let folder = share(&host, &format!("blobs/{}/{digest}", &digest[..2]));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a"), "").unwrap();
    }
    let many = [calls(1, "all"), calls(3, "getdents64,flock")];
    assert_eq!(few, many, "a hit, and a fetch into the cache");
}
