//! The contents of the cache as `stats` and `gc` report them: every byte is of one kind, counted once, and expires.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hostkit_tests::cache::unpack_pex;
use hostkit_tests::origin::OriginServer;
use serde_json::Value;

use super::{CacheHost, bytes};

const MB: u64 = 1 << 20;

fn share(host: &CacheHost, path: &str) -> PathBuf {
    host.cache()
        .join(nix::unistd::geteuid().to_string())
        .join(path)
}

/// The object of `--json` output.
fn json(host: &CacheHost, args: &[&str]) -> Value {
    serde_json::from_str(&host.s3cache(args).exits(0).stdout).unwrap()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

/// The bytes that `du` counts for this user's part of the cache.
fn du(host: &CacheHost) -> u64 {
    let out = Command::new("du").arg("-sb").arg(share(host, "")).output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// Everything below the cache directory, with its length.
fn listing(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        found.push((entry.path(), metadata.len()));
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

fn age(path: &Path, by: Duration) {
    let file = File::options().read(true).open(path).unwrap();
    let times = FileTimes::new().set_modified(hostkit::clock::now() - by);
    file.set_times(times).unwrap();
}

/// The only file of the folder of partial downloads with this suffix.
fn find_partial(host: &CacheHost, end: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(share(host, "partial/v1")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    paths.find(|path| path.to_string_lossy().ends_with(end))
}

/// A host with one of every kind: two artifacts and a corrupt one, of a megabyte each, a failed fetch, a partial
/// download of a killed process, and unpacked files of 30,000 bytes with links.
fn host_with_one_of_each() -> (CacheHost, OriginServer) {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for n in 0..3 {
        let path = format!("/a-1.{n}");
        origin.put(&path, bytes(MB as usize, n));
        let blob = host.s3cache([&origin.url(&path)]).exits(0).stdout;
        if n == 2 {
            fs::set_permissions(blob.trim(), PermissionsExt::from_mode(0o755)).unwrap();
            fs::write(blob.trim(), bytes(MB as usize, 7)).unwrap();
            host.s3cache(["verify", "a-1.2"]).exits(65);
        }
    }
    host.s3cache([&origin.url("/absent-1.2")]).exits(66);
    let name = format!("partial/v1/{}.0.data", "ab".repeat(32));
    fs::write(share(&host, &name), [0; 5000]).unwrap();
    let unpacked = share(&host, "pex-root/unpacked/below");
    fs::create_dir_all(&unpacked).unwrap();
    fs::write(unpacked.join("file"), [0; 30_000]).unwrap();
    fs::hard_link(unpacked.join("file"), unpacked.join("link")).unwrap();
    symlink("file", unpacked.join("symlink")).unwrap();
    (host, origin)
}

#[test]
fn stats_of_every_kind_add_up_to_du() {
    let (host, _origin) = host_with_one_of_each();
    let stats = json(&host, &["stats", "--json"]);
    let failure = find_partial(&host, ".failed")
        .unwrap()
        .metadata()
        .unwrap()
        .len();
    for (key, expected) in [
        ("blobs", 2),
        ("bytes", 2 * MB),
        ("partial_bytes", 5000),
        ("quarantined", 1),
        ("quarantined_bytes", MB),
        ("failures", 1),
        ("failure_bytes", failure),
        ("pex_root_bytes", 30_004),
        ("used_bytes", 3 * MB + 5000 + failure + 30_004),
        ("total_bytes", du(&host)),
    ] {
        assert_eq!(number(&stats, key), expected, "{key}");
    }
    let sum = number(&stats, "used_bytes") + number(&stats, "other_bytes");
    assert_eq!(sum, number(&stats, "total_bytes"));
    let table = host.s3cache(["stats"]).exits(0).stdout;
    for line in [
        "2 artifacts (2 sources)",
        "1 quarantined blob\n",
        "1 failure record\n",
        "total (du -sb)",
    ] {
        assert!(table.contains(line), "{line} in {table}");
    }
}

#[test]
fn gc_dry_run_changes_nothing_and_predicts_gc() {
    let (host, _origin) = host_with_one_of_each();
    host.age_blobs();
    let before = number(&json(&host, &["stats", "--json"]), "used_bytes");
    for max in [
        "--max-size=100G",
        "--max-size=2M",
        "--max-size=1M",
        "--max-size=0",
    ] {
        let there = listing(&host.cache());
        let mut outcome = json(&host, &["gc", "--json", "--dry-run", max]);
        assert_eq!(listing(&host.cache()), there, "{max}");
        assert_eq!(outcome["dry_run"], true);
        outcome["dry_run"] = false.into();
        let held = number(&json(&host, &["stats", "--json"]), "used_bytes");
        let done = json(&host, &["gc", "--json", max]);
        // The number of dangling entries is known only when their blobs are gone.
        outcome["entries"] = done["entries"].clone();
        assert_eq!(outcome, done, "{max}");
        assert_eq!(
            held - number(&done, "freed_bytes"),
            number(&done, "used_bytes"),
            "{max}"
        );
        let left = number(&json(&host, &["stats", "--json"]), "used_bytes");
        assert_eq!(left, number(&done, "used_bytes"), "{max}");
    }
    assert!(before > 3 * MB);
    assert_eq!(number(&json(&host, &["stats", "--json"]), "used_bytes"), 0);
}

#[test]
fn quarantined_blobs_and_failure_records_expire() {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    for (aged, args, left) in [
        (hours(0), &[][..], (true, true)),
        (hours(2), &[], (true, false)),
        (hours(25), &[], (false, false)),
        (hours(0), &["--max-size=1K"], (false, false)),
        (hours(2), &["--max-age=1h"], (false, false)),
    ] {
        let (host, _origin) = host_with_one_of_each();
        for end in [".bad", ".failed"] {
            age(&find_partial(&host, end).unwrap(), aged);
        }
        host.s3cache([&["gc"], args].concat()).exits(0);
        let found = [".bad", ".failed"].map(|end| find_partial(&host, end).is_some());
        assert_eq!(found, [left.0, left.1], "{aged:?} {args:?}");
    }
}

#[test]
fn unpacked_pexes_count_toward_bound_and_are_evicted_before_artifacts() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.1", bytes(MB as usize, 1));
    origin.put("/a-1.2", bytes(MB as usize, 2));
    host.s3cache([&origin.url("/a-1.1")]).exits(0);
    let unpacked = share(&host, "pex-root/unpacked");
    fs::write(&unpacked, bytes(2 * MB as usize, 3)).unwrap();
    // A fetch reads a counter; gc recounts.
    host.s3cache(["gc"]).exits(0);
    assert!(unpacked.exists());
    host.age_blobs();
    let outcome = host.s3cache([&origin.url("/a-1.2"), "--copy-to=out", "--max-size=3M"]);
    assert!(!outcome.exits(0).stderr.contains("WARN"));
    assert!(!unpacked.exists());
    assert_eq!(number(&json(&host, &["stats", "--json"]), "bytes"), 2 * MB);
}

/// Two hours ago is long ago, now is recently used.
#[test]
fn recently_used_files_are_evicted_last_and_only_when_fetch_would_fail() {
    const LONG_AGO: bool = true;
    const NOW: bool = false;
    let hash = "ab".repeat(20);
    for (pex, artifact, args, pex_stays, artifact_stays, cached) in [
        (
            LONG_AGO,
            LONG_AGO,
            &["--copy-to=out"][..],
            false,
            true,
            true,
        ),
        (NOW, LONG_AGO, &["--copy-to=out"], true, false, true),
        (NOW, NOW, &["--copy-to=out"], true, true, false),
        (LONG_AGO, NOW, &["--copy-to=out"], false, true, true),
        (NOW, LONG_AGO, &[], true, false, true),
        (NOW, NOW, &[], false, true, true),
    ] {
        let case = format!("{pex} {artifact} {args:?}");
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        for n in 1..3 {
            origin.put(&format!("/a-1.{n}"), bytes(MB as usize, n));
        }
        let (old, new) = (origin.url("/a-1.1"), origin.url("/a-1.2"));
        let old = host.s3cache([&old]).exits(0).stdout;
        let unpacked = unpack_pex(&share(&host, "pex-root"), &hash, MB as usize);
        host.s3cache(["gc"]).exits(0);
        if pex == LONG_AGO {
            host.age_unpacked();
        }
        if artifact == LONG_AGO {
            host.age_blobs();
        }
        host.s3cache([&[&*new, "--max-size=2200K"], args].concat())
            .exits(0);
        assert_eq!(unpacked.exists(), pex_stays, "{case}");
        assert_eq!(Path::new(old.trim()).exists(), artifact_stays, "{case}");
        host.s3cache([&*new, "--offline", "--copy-to=out"])
            .exits(if cached { 0 } else { 69 });
    }
}

#[test]
fn gc_removes_unpacked_pex_not_started_for_hour_or_max_age() {
    let hash = "ab".repeat(20);
    let minutes = |n: u64| Duration::from_secs(n * 60);
    for (started, args, left) in [
        (minutes(1), &["--max-size=1K"][..], true),
        (minutes(70), &["--max-size=1K"], false),
        (minutes(1), &["--max-size=1K", "--max-age=0"], false),
        (minutes(20), &["--max-size=1K", "--max-age=30m"], true),
        (minutes(40), &["--max-size=1K", "--max-age=30m"], false),
        (minutes(70), &["--max-size=1K", "--max-age=2h"], false),
        // Its age alone is not enough.
        (minutes(70), &["--max-age=0"], true),
    ] {
        let host = CacheHost::new();
        host.s3cache(["gc"]).exits(66);
        let origin = OriginServer::start();
        origin.put("/a-1.1", "a");
        host.s3cache([&origin.url("/a-1.1")]).exits(0);
        let unpacked = unpack_pex(&share(&host, "pex-root"), &hash, 5000);
        hostkit_tests::cache::age_unpacked(&share(&host, "pex-root"), started);
        let outcome = json(&host, &[&["gc", "--json", "--dry-run"], args].concat());
        let done = json(&host, &[&["gc", "--json"], args].concat());
        for outcome in [outcome, done] {
            assert_eq!(
                number(&outcome, "unpacked_pexes"),
                u64::from(!left),
                "{args:?}"
            );
        }
        assert_eq!(unpacked.exists(), left, "{started:?} {args:?}");
    }
}

#[test]
fn recently_unpacked_pexes_are_counted_before_artifact_is_evicted() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for n in 1..4 {
        origin.put(&format!("/a-1.{n}"), bytes(MB as usize, n));
    }
    let get = |n: u64, max: &str| {
        let max = format!("--max-size={max}");
        host.s3cache([&*origin.url(&format!("/a-1.{n}")), "--copy-to=out", &max])
            .exits(0);
        host.age_blobs();
    };
    get(1, "10M");
    get(2, "10M");
    // Now the counter claims that nothing is unpacked, and the blobs alone exceed the bound of the next fetch.
    host.s3cache(["gc"]).exits(0);
    let unpacked = ["ab", "cd"]
        .map(|hash| unpack_pex(&share(&host, "pex-root"), &hash.repeat(20), 2 * MB as usize));
    host.age_unpacked();
    get(3, "2500K");
    assert_eq!(unpacked.map(|path| path.exists()), [false; 2]);
    let stats = json(&host, &["stats", "--json"]);
    assert_eq!(number(&stats, "blobs"), 2, "{stats}");
    assert!(number(&stats, "used_bytes") <= 2500 << 10, "{stats}");
}

#[test]
fn every_field_of_json_output_is_in_readme() {
    let (host, origin) = host_with_one_of_each();
    let readme = hostkit_tests::workspace().join("bins/s3cache/README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let url = origin.url("/a-1.1");
    for args in [
        &["ls", "--json", "a-1.1"][..],
        &["stats", "--json"],
        &["gc", "--json"],
        &["verify", "--json", "a-1.1"],
        &["exists", "--json", &url],
    ] {
        let row = format!("| `{}` | ", args[0]);
        let row = readme.lines().find(|line| line.starts_with(&row)).unwrap();
        for field in json(&host, args).as_object().unwrap().keys() {
            assert!(row.contains(&format!("`{field}`")), "{field} in {row}");
        }
    }
}
