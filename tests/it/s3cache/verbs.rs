//! The verbs for people: what is cached and in use, removing it, and output that scripts can read.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hostkit_tests::ChildGuard;
use hostkit_tests::origin::{OriginFault, OriginServer};
use serde_json::Value;

use super::{CacheHost, HASH, bytes, every_file, sha256};

/// A host with two cached artifacts, `job` of 100,000 bytes and then `static.bin`, and their URLs.
fn start() -> (CacheHost, OriginServer, [String; 2]) {
    start_with("static")
}

/// With these bytes as `static.bin`. A test that names their digest in a command needs its own bytes, because for
/// concurrent tests that command is a process that uses their artifact.
fn start_with(content: &'static str) -> (CacheHost, OriginServer, [String; 2]) {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let paths = [format!("/pex/job-{HASH}.bin"), "/static.bin".to_owned()];
    origin.put(&paths[0], bytes(100_000, 1));
    origin.put(&paths[1], content);
    let urls = paths.map(|path| origin.url(&path));
    for url in &urls {
        host.s3cache([url]).exits(0);
    }
    (host, origin, urls)
}

/// The objects of `--json` output, one per line.
fn json<const N: usize>(host: &CacheHost, args: [&str; N]) -> Vec<Value> {
    let outcome = host.s3cache(args).exits(0);
    outcome
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A program that holds a cached file as pexrun's programs do: open, with a shared lock.
fn hold_file(host: &CacheHost, blob: &PathBuf) -> ChildGuard {
    let file = std::fs::File::open(blob).unwrap();
    file.lock_shared().unwrap();
    let mut holder: Command = host.program("sleep");
    holder
        .arg("600")
        .stdin(Stdio::from(file.as_fd().try_clone_to_owned().unwrap()));
    ChildGuard(holder.spawn().unwrap())
}

fn blob(host: &CacheHost, name: &str) -> PathBuf {
    let found = every_file(&host.cache()).into_iter();
    let mut found =
        found.filter(|file| file.to_string_lossy().contains("/blobs/") && file.ends_with(name));
    found.next().unwrap()
}

#[test]
fn ls_shows_size_digest_age_and_use() {
    let (host, _origin, urls) = start();
    let rows = json(&host, ["ls", "--json"]);
    assert_eq!(rows.len(), 2);
    let job = rows.iter().find(|row| row["source"] == urls[0]).unwrap();
    assert_eq!(job["size"], 100_000);
    assert_eq!(job["sha256"], sha256(&bytes(100_000, 1)));
    assert_eq!(job["name"], format!("job-{HASH}.bin"));
    std::fs::write(host.path("now"), "").unwrap();
    let now = host.path("now").metadata().unwrap().mtime();
    for time in ["fetched", "used"] {
        let age = now.abs_diff(job[time].as_i64().unwrap());
        assert!(age < 60, "{time}: {age}");
    }
    let table = host.s3cache(["ls"]).exits(0).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[0].contains("SIZE") && lines[0].contains("LEASE"),
        "{table}"
    );
    assert!(
        table.contains("97.7 KiB") && table.contains(&urls[0]),
        "{table}"
    );
    let one = host
        .s3cache(["ls", &sha256(b"static")[..8]])
        .exits(0)
        .stdout;
    assert!(
        one.contains("/static.bin") && one.lines().count() == 2,
        "{one}"
    );
}

#[test]
fn ls_shows_processes_using_artifact_and_rm_keeps_it() {
    let (host, _origin, urls) = start();
    let holder = hold_file(&host, &blob(&host, "static.bin"));
    // The lock belongs to an open file that this process and its child share: the kernel names the one that took it.
    let holders = [std::process::id(), holder.0.id()];
    let rows = json(&host, ["ls", "--json", "static.bin"]);
    let leases: Vec<u64> = rows[0]["leases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pid| pid.as_u64().unwrap())
        .collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert!(
        holders.iter().any(|pid| leases == [u64::from(*pid)]),
        "{leases:?}"
    );
    let rows = json(&host, ["ls", "--json", &urls[0]]);
    assert_eq!(rows[0]["leases"], serde_json::json!([]));
    host.s3cache(["rm", "static.bin"]).exits(75).logs("in use");
    host.s3cache(["ls", "static.bin"]).exits(0);
    host.age_blobs();
    host.s3cache(["gc", "--max-size=1"]).exits(0);
    assert!(
        blob(&host, "static.bin").exists(),
        "what is held is not collected"
    );
    drop(holder);
    host.s3cache(["rm", "static.bin"]).exits(0);
    assert_eq!(json(&host, ["ls", "--json"]).len(), 0);
}

#[test]
fn rm_takes_source_name_or_digest_and_names_missing_one() {
    let (host, origin, urls) = start();
    host.s3cache(["rm", "nothing.bin"])
        .exits(66)
        .logs("nothing.bin");
    let outcome = host.s3cache(["rm", &urls[0]]).exits(0);
    assert_eq!(outcome.stdout, format!("removed {}\n", urls[0]));
    host.s3cache(["rm", &sha256(b"static")[..12]]).exits(0);
    assert_eq!(json(&host, ["ls", "--json"]).len(), 0);
    assert_eq!(json(&host, ["stats", "--json"])[0]["bytes"], 0);
    origin.reset_counters();
    host.s3cache([&urls[0]]).exits(0);
    assert_eq!(
        origin.bodies(&format!("/pex/job-{HASH}.bin")),
        1,
        "it is fetched again"
    );
}

#[test]
fn each_verb_takes_printed_names_and_names_missing_one() {
    let (host, _origin, urls) = start_with("named by commands");
    let digest = sha256(b"named by commands");
    let path = blob(&host, "static.bin").display().to_string();
    let (short, elsewhere) = (&digest[..7], path.replace("/blobs/", "/other/"));
    for verb in ["ls", "verify", "rm"] {
        for word in ["nothing.bin", short, &elsewhere, "https://repo/no-1.2"] {
            let outcome = host.s3cache([verb, word]).exits(66);
            outcome.logs(&format!("{word} is not in the cache"));
        }
    }
    for verb in ["ls", "verify"] {
        host.s3cache([verb, &urls[0], "no", "nor"])
            .exits(66)
            .logs("no, nor are not in the cache");
        for word in [&path, &digest, &digest[..8], &urls[1], "static.bin"] {
            let rows = json(&host, [verb, "--json", word]);
            assert_eq!(rows.len(), 1, "{verb} {word}");
            assert_eq!(rows[0]["source"], urls[1], "{verb} {word}");
        }
    }
    let outcome = host.s3cache(["rm", &path]).exits(0);
    assert_eq!(outcome.stdout, format!("removed {}\n", urls[1]));
    host.s3cache(["rm", &urls[0]]).exits(0);
    for verb in ["ls", "verify"] {
        host.s3cache([verb]).exits(0);
        host.s3cache([verb, &urls[0]]).exits(66);
    }
}

#[test]
fn stats_and_verify_count_entries() {
    let (host, _origin, urls) = start();
    let stats = &json(&host, ["stats", "--json"])[0];
    assert_eq!(stats["sources"], 2);
    assert_eq!(stats["blobs"], 2);
    assert_eq!(stats["bytes"], 100_006);
    assert_eq!(stats["partial_bytes"], 0);
    assert!(
        host.s3cache(["stats"])
            .exits(0)
            .stdout
            .contains("2 artifacts")
    );
    let rows = json(&host, ["verify", "--json"]);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["state"] == "ok"), "{rows:?}");
    assert_eq!(json(&host, ["verify", "--json", &urls[0]]).len(), 1);
}

#[test]
fn gc_keeps_bound_and_most_recently_used() {
    let (host, origin, urls) = start();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_440_000_000);
    // The time of a blob's folder is its last use, or that of the last read, whichever is later.
    let file = blob(&host, "static.bin");
    let folder = std::fs::File::open(file.parent().unwrap()).unwrap();
    folder.set_modified(old).unwrap();
    let read = std::fs::FileTimes::new().set_accessed(old);
    std::fs::File::open(&file).unwrap().set_times(read).unwrap();
    let freed = &json(&host, ["gc", "--json", "--max-size=100001"])[0];
    assert_eq!(
        (&freed["blobs"], &freed["used_bytes"]),
        (&Value::from(1), &Value::from(100_000))
    );
    let left = json(&host, ["ls", "--json"]);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["source"], urls[0]);
    origin.reset_counters();
    host.s3cache([&urls[0]]).exits(0);
    assert_eq!(origin.connections(), 0);
    json(&host, ["gc", "--json", "--max-age=0"]);
    assert_eq!(json(&host, ["ls", "--json"]).len(), 0);
}

#[test]
fn gc_removes_leftovers_of_killed_fetch() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/big-1.2.bin", bytes(1 << 20, 1));
    origin.fault("/big-1.2.bin", OriginFault::Stall(100_000));
    let mut running = host.start([origin.url("/big-1.2.bin"), "--part-size=256K".to_owned()]);
    let partial = || {
        json(&host, ["stats", "--json"])[0]["partial_bytes"]
            .as_u64()
            .unwrap()
    };
    hostkit_tests::wait_until("bytes arrive", || host.cache().exists() && partial() > 0);
    json(&host, ["gc", "--json"]);
    assert!(partial() > 0, "a running download is kept");
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    json(&host, ["gc", "--json"]);
    // A resumable download may stay a while; nothing of it is counted as an artifact.
    assert_eq!(json(&host, ["stats", "--json"])[0]["blobs"], 0);
    origin.clear_faults();
    host.s3cache([
        &origin.url("/big-1.2.bin"),
        "--copy-to=out",
        "--part-size=256K",
    ])
    .exits(0);
    assert!(host.read("out") == bytes(1 << 20, 1));
}

#[test]
fn closed_pipe_is_not_an_error() {
    let (host, _origin, urls) = start();
    for args in [
        &["ls"][..],
        &["ls", "--json"],
        &["stats"],
        &["verify"],
        &["--help"],
        &[&urls[0]],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let outcome = host
            .command(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(0), "{args:?}: {message}");
        assert!(
            !message.contains("panicked") && !message.contains("pipe"),
            "{args:?}: {message}"
        );
    }
}

#[test]
fn each_verb_names_missing_cache_directory() {
    let host = CacheHost::new();
    for verb in ["ls", "stats", "verify", "gc"] {
        let outcome = host.s3cache([verb]).exits(66);
        outcome
            .logs(host.cache().to_str().unwrap())
            .logs("--cache-dir");
    }
}

#[test]
fn exists_works_over_http() {
    let (host, origin, urls) = start();
    host.s3cache(["exists", &urls[0]]).exits(0);
    host.s3cache(["exists", &origin.url("/none")]).exits(66);
    origin.fault("/static.bin", OriginFault::RefuseHead);
    assert_eq!(json(&host, ["exists", "--json", &urls[1]])[0]["size"], 6);
    origin.fault(
        "/static.bin",
        OriginFault::Status {
            code: 403,
            retry_after: None,
        },
    );
    host.s3cache(["exists", &urls[1]]).exits(77);
    origin.fault(
        "/static.bin",
        OriginFault::Status {
            code: 500,
            retry_after: None,
        },
    );
    host.s3cache(["exists", &urls[1]]).exits(69);
    drop(origin);
    host.s3cache(["exists", &urls[0]]).exits(69);
}

#[test]
fn check_prints_effective_settings_and_writes_nothing() {
    let host = CacheHost::new();
    let config = host.path("s3cache.yaml");
    let config = config.to_str().unwrap();
    std::fs::write(
        config,
        "max-size: 50G\nendpoint-url: http://S3.example.org:80/\n\
         require-sidecar: true\ntrusted-uids: [1001, 1002]\n",
    )
    .unwrap();
    let shown = host
        .s3cache(["--check", "--config", config, "--region=r"])
        .exits(0)
        .stdout;
    for row in [
        format!(
            "cache-dir        {} (--cache-dir)\n",
            host.cache().display()
        ),
        format!("max-size         50.0 GiB ({config}:1)\n"),
        format!("endpoint-url     http://s3.example.org ({config}:2)\n"),
        "region           r (--region)\n".to_owned(),
        "profile          default (default)\n".to_owned(),
        "total-max-size   unset (default)\n".to_owned(),
        format!("require-sidecar  true ({config}:3)\n"),
        format!("trusted-uids     1001, 1002 ({config}:4)\n"),
        "timeout          1h (default)\n".to_owned(),
    ] {
        assert!(shown.contains(&row), "{row} in {shown}");
    }
    let off = ["HOSTKIT_S3CACHE_REQUIRE_SIDECAR", "no"].map(str::to_owned);
    let shown = host.s3cache_env(["--check", "--config", config], &[off.into()]);
    let shown = shown.exits(0).stdout;
    for row in [
        "region           us-east-1 (implied by the endpoint)\n",
        "require-sidecar  false (HOSTKIT_S3CACHE_REQUIRE_SIDECAR)\n",
    ] {
        assert!(shown.contains(row), "{row} in {shown}");
    }
    for line in [&["--check", "b/k"][..], &["--check", "stats"]] {
        host.s3cache(line).exits(2).logs("--check");
    }
    for (line, says) in [
        (
            "max-size: lots",
            "s3cache.yaml:1:11: `max-size`: invalid value `lots`",
        ),
        (
            "ca-file: /nowhere.pem",
            "s3cache.yaml:1: `ca-file`: cannot use /nowhere.pem",
        ),
        (
            "client-cert: /nowhere.pem\nclient-key: /nowhere.key",
            "s3cache.yaml:2: `client-key`: cannot use /nowhere.key",
        ),
        (
            "profile: none",
            "s3cache.yaml:1: `profile`: there is no AWS profile",
        ),
        ("max-sise: 1", "did you mean `max-size`?"),
    ] {
        std::fs::write(config, format!("{line}\n")).unwrap();
        host.s3cache(["--check", "--config", config])
            .exits(78)
            .logs(says);
    }
    // Settings of the environment are checked too, as far as possible without network.
    for (variables, says) in [
        (
            &[("AWS_CA_BUNDLE", "/nope.pem")][..],
            "AWS_CA_BUNDLE: cannot use /nope.pem",
        ),
        (
            &[("ALL_PROXY", "socks5://127.0.0.1:1080")],
            "ALL_PROXY is not an http or https proxy",
        ),
        (
            &[("https_proxy", "socks5h://p"), ("NO_PROXY", "example.org")],
            "https_proxy is not an http or https proxy",
        ),
        (&[("NETRC", "/dev/zero")], "NETRC: cannot read /dev/zero"),
        (
            &[("SSL_CERT_FILE", "/dev/zero")],
            "SSL_CERT_FILE: cannot use",
        ),
        (&[("ALL_PROXY", "socks5://p"), ("NO_PROXY", "*")], ""),
        (&[("ALL_PROXY", "http://p:3128")], ""),
    ] {
        let env = variables.iter().copied();
        let env: Vec<_> = env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let code = if says.is_empty() { 0 } else { 78 };
        host.s3cache_env(["--check"], &env).exits(code).logs(says);
    }
    assert!(!host.cache().exists());
}
