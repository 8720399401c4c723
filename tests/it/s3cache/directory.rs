//! The cache directory itself: missing, replaced by a file, read-only, removed during use, and with files of another
//! version.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use hostkit_tests::host::{is_root, run_as};
use hostkit_tests::or_skip;
use hostkit_tests::origin::{OriginFault, OriginServer};
use nix::unistd::geteuid;

use super::single_flight::fetch;
use super::{CacheHost, CommandOutcome, HASH, bytes, every_file};

fn share(host: &CacheHost, path: &str) -> PathBuf {
    host.cache().join(geteuid().to_string()).join(path)
}

/// An origin with one artifact that never changes, and its URL.
fn publish_artifact() -> (OriginServer, String, Vec<u8>) {
    let (origin, path) = (OriginServer::start(), format!("/job-{HASH}.bin"));
    let body = bytes(100_000, 5);
    origin.put(&path, body.clone());
    let url = origin.url(&path);
    (origin, url, body)
}

#[test]
fn missing_cache_directory_is_created_with_parents() {
    let (host, (_origin, url, body)) = (CacheHost::new(), publish_artifact());
    let deep = host.path("var/cache/hostkit");
    let flag = format!("--cache-dir={}", deep.display());
    let mut command = host.program(hostkit_tests::bin("s3cache"));
    command.args([&url, "--copy-to=out", "--keep-free=0", &flag]);
    CommandOutcome::from(command.output().unwrap()).exits(0);
    assert!(host.read("out") == body);
    let mode = deep.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, if is_root() { 0o1777 } else { 0o755 });
}

#[test]
fn directories_have_fixed_modes_under_any_umask() {
    let (host, (_origin, url, body)) = (CacheHost::new(), publish_artifact());
    let uid = 20_003;
    let Some(_) = or_skip("another uid", run_as(uid, "true")) else {
        return;
    };
    let program = host.path("s3cache");
    let built = hostkit_tests::bin("s3cache");
    // A copy may still be open for writing in a child of another test's thread.
    std::fs::hard_link(&built, &program)
        .or_else(|_| std::fs::copy(&built, &program).map(drop))
        .unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    for (uid, umask) in [(uid, "0777"), (uid, "077"), (0, "0777"), (0, "000")] {
        let home = host.path(format!("{uid}-{umask}"));
        std::fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
        let mut command = run_as(uid, "/bin/sh").unwrap();
        host.set_clean_environment(&mut command);
        let script = format!("umask {umask}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(&program);
        command.args([&url, "--copy-to=out", "--cache-dir=above/cache"]);
        command.args(["--keep-free=0"]).current_dir(&home);
        let outcome = CommandOutcome::from(command.output().unwrap()).exits(0);
        assert!(
            !outcome.stderr.contains("WARN"),
            "{umask}: {}",
            outcome.stderr
        );
        assert!(std::fs::read(home.join("out")).unwrap() == body);
        assert_eq!(mode(&home.join("above")), 0o755, "{umask}");
        let top = if uid == 0 { 0o1777 } else { 0o755 };
        assert_eq!(mode(&home.join("above/cache")), top, "{umask}");
        let mine = home.join("above/cache").join(uid.to_string());
        for (folder, expected) in [
            ("", 0o755),
            ("blobs", 0o755),
            ("index/v1", 0o755),
            ("locks/v1", 0o755),
            ("partial/v1", 0o755),
            ("pex-root", 0o700),
        ] {
            assert_eq!(mode(&mine.join(folder)), expected, "{umask}: {folder}");
        }
        for shelf in std::fs::read_dir(mine.join("blobs")).unwrap() {
            assert_eq!(mode(&shelf.unwrap().path()), 0o755, "{umask}");
        }
    }
}

#[test]
fn file_in_place_of_cache_directory_is_bypassed() {
    let (host, (_origin, url, body)) = (CacheHost::new(), publish_artifact());
    std::fs::write(host.cache(), "a file").unwrap();
    let outcome = host.s3cache([&url, "--copy-to=out"]);
    outcome.exits(0).logs("cannot use the cache");
    assert!(host.read("out") == body);
    let outcome = host.s3cache([&url]).exits(73);
    let lines = outcome.stderr.matches("cannot use the cache").count();
    assert!(
        lines == 1 && !outcome.stderr.contains("pexrun"),
        "{}",
        outcome.stderr
    );
    assert_eq!(std::fs::read(host.cache()).unwrap(), b"a file");
}

#[test]
fn read_only_cache_directory_is_bypassed_and_its_entries_are_used() {
    let (host, (origin, url, body)) = (CacheHost::new(), publish_artifact());
    let uid = 20_003;
    let program = host.path("s3cache");
    let built = hostkit_tests::bin("s3cache");
    std::fs::hard_link(&built, &program)
        .or_else(|_| std::fs::copy(&built, &program).map(drop))
        .unwrap();
    let home = host.path("home");
    std::fs::create_dir(&home).unwrap();
    let Some(_) = or_skip("another uid", run_as(uid, "true")) else {
        return;
    };
    std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
    let run = |args: &[&str]| -> CommandOutcome {
        let mut command = run_as(uid, &program).unwrap();
        host.set_clean_environment(&mut command);
        command.args(args).args(host.own_flags()).current_dir(&home);
        command.output().unwrap().into()
    };
    let mode = |path: PathBuf, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    // The directory does not exist and cannot be created.
    std::fs::create_dir(host.cache()).unwrap();
    mode(host.cache(), 0o755);
    run(&[&url, "--copy-to=out"])
        .exits(0)
        .logs("cannot use the cache");
    assert!(std::fs::read(home.join("out")).unwrap() == body);
    // The user's own part exists, and nothing can be created in it.
    mode(host.cache(), 0o1777);
    run(&[&url]).exits(0);
    for folder in ["locks", "locks/v1", "partial/v1", "index/v1", "blobs"] {
        mode(host.cache().join(uid.to_string()).join(folder), 0o555);
    }
    origin.reset_counters();
    run(&[&url, "--copy-to=out"]).exits(0);
    assert_eq!(origin.connections(), 0);
    origin.put("/other-1.2", "other");
    for n in 0..40 {
        // Some of these have a lock folder already, most do not.
        let path = format!("/other-1.{n}");
        origin.put(&path, "other");
        let outcome = run(&[&origin.url(&path), "--copy-to=out"]).exits(0);
        assert!(outcome.stderr.contains("WARN"), "{}", outcome.stderr);
        assert_eq!(std::fs::read(home.join("out")).unwrap(), b"other");
    }
}

#[test]
fn cache_directory_removed_during_fetch_loses_no_output() {
    for what in ["blobs", "locks", "index"] {
        remove_during_fetch(what);
    }
}

#[test]
fn cache_directory_removed_with_partial_download_loses_no_output() {
    for what in ["", "partial"] {
        remove_during_fetch(what);
    }
}

/// Removes a folder of the cache, or all of it, during a fetch.
fn remove_during_fetch(what: &str) {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let body = bytes(1 << 20, 4);
    origin.put("/a-1.1", body.clone());
    let bytes_per_second = 1 << 20;
    origin.fault("/a-1.1", OriginFault::Slow { bytes_per_second });
    let run = fetch(&host, &origin.url("/a-1.1"), "out", &[]);
    origin.wait_requests("/a-1.1", 1);
    hostkit_tests::wait_until("the fetch has started", || origin.bytes("/a-1.1") > 100_000);
    std::fs::remove_dir_all(share(&host, what)).unwrap();
    run.end().exits(0);
    assert!(host.read("out") == body, "without {what:?}");
    // And the next one creates it again.
    let url = origin.url("/a-1.1");
    host.s3cache([url.as_str(), "--copy-to=out"]).exits(0);
    assert_eq!(every_file(&share(&host, "blobs")).len(), 1);
}

#[test]
fn files_of_newer_version_are_kept_and_counted() {
    let (host, (origin, url, body)) = (CacheHost::new(), publish_artifact());
    host.s3cache([&url]).exits(0);
    let blob = every_file(&share(&host, "blobs")).pop().unwrap();
    // A blob that only the newer version uses is still a blob, and takes space.
    let digest = super::sha256(b"theirs");
    let theirs = share(&host, &format!("blobs/{}/{digest}/theirs", &digest[..2]));
    std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    std::fs::write(&theirs, "theirs").unwrap();
    let mut kept = vec![theirs];
    for folder in ["index", "locks", "partial"] {
        let path = share(&host, &format!("{folder}/v2/ab/record"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "of the future").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(old).unwrap();
        kept.push(path);
    }
    for verb in ["gc", "ls", "stats", "verify"] {
        host.s3cache([verb]).exits(0);
    }
    let outcome = host.s3cache(["gc", "--json"]).exits(0);
    assert!(
        outcome.stdout.contains("\"used_bytes\":100006"),
        "{}",
        outcome.stdout
    );
    host.s3cache(["rm", &url]).exits(0);
    assert!(!blob.exists());
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    assert!(host.read("out") == body);
    for path in kept {
        assert!(path.exists(), "{}", path.display());
    }
    // Over the bound it is evicted like any other blob: it is the least recently used.
    origin.put("/new-1.2", "new");
    let new = origin.url("/new-1.2");
    host.s3cache([&new, "--max-size=100003"]).exits(0);
}

#[test]
fn invalid_index_entries_are_misses() {
    let (host, (origin, url, body)) = (CacheHost::new(), publish_artifact());
    host.s3cache([&url]).exits(0);
    let index = every_file(&share(&host, "index"));
    let entry = index.iter().find(|path| !path.ends_with("held")).unwrap();
    let true_entry = std::fs::read_to_string(entry).unwrap();
    let huge = format!("{true_entry}{}", " ".repeat(1 << 20));
    let digest = super::sha256(&body);
    let up = format!("\"name\":\"job-{HASH}.bin\"");
    for text in [
        "",
        "{",
        "[]",
        "null",
        &true_entry[..50],
        &huge,
        &true_entry.replace(&digest, "xx"),
        &true_entry.replace(&digest, &"\u{20ac}".repeat(22)),
        &true_entry.replace(&up, "\"name\":\"../../../../index/v1/held\""),
        &true_entry.replace(&up, "\"name\":\"..\""),
        &true_entry.replace("100000", "99999999999999999999"),
    ] {
        assert_ne!(text, true_entry);
        std::fs::write(entry, text).unwrap();
        let bytes = origin.bytes(&format!("/job-{HASH}.bin"));
        host.s3cache([&url, "--copy-to=out"]).exits(0);
        assert!(host.read("out") == body, "{text:.80}");
        assert!(
            origin.bytes(&format!("/job-{HASH}.bin")) > bytes,
            "{text:.80}"
        );
    }
    // The same for a download's record.
    let lock = every_file(&share(&host, "locks"))
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".0"))
        .unwrap();
    let record = format!("{}.record", lock.file_name().unwrap().to_str().unwrap());
    let etag = origin.put(&format!("/job-{HASH}.bin"), body.clone());
    let etag = etag.replace('"', "\\\"");
    for text in [
        "".to_owned(),
        "p 0 0\np 1 1\n".to_owned(),
        format!(
            "{{\"etag\":\"{etag}\",\"size\":100000,\"part_size\":0,\"crc\":\"crc64nvme\"}}\np 0 0\n"
        ),
        format!(
            "{{\"etag\":\"{etag}\",\"size\":100000,\"part_size\":8388608,\"crc\":\"crc64nvme\"}}\np 0 0\np 99999999999999999999 1\np 7 1\nb 18446744073709551615\n"
        ),
        format!(
            "{{\"etag\":\"{etag}\",\"size\":18446744073709551615,\"part_size\":1,\"crc\":\"crc64nvme\"}}\np 18446744073709551614 0\n"
        ),
    ] {
        host.s3cache(["rm", &url]).exits(0);
        std::fs::write(share(&host, "partial/v1").join(&record), &text).unwrap();
        let data = record.replace(".record", ".data");
        std::fs::write(share(&host, "partial/v1").join(data), vec![0; 100_000]).unwrap();
        host.s3cache([&url, "--copy-to=out"]).exits(0);
        assert!(host.read("out") == body, "{text}");
    }
}

#[test]
fn unpacked_pexes_are_evicted_only_when_unused() {
    let (host, (_origin, url, _)) = (CacheHost::new(), publish_artifact());
    host.s3cache([&url]).exits(0);
    let root = share(&host, "pex-root");
    let mode = root.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700);
    std::fs::create_dir_all(root.join("venvs/1/bin")).unwrap();
    std::fs::write(root.join("venvs/1/bin/python"), bytes(1 << 20, 1)).unwrap();
    host.s3cache(["gc"]).exits(0);
    assert!(root.join("venvs").exists(), "there is room for it");
    // As pexrun holds it across exec.
    let held = File::open(&root).unwrap();
    held.lock_shared().unwrap();
    host.s3cache(["gc", "--max-size=500K"]).exits(0);
    assert!(root.join("venvs").exists());
    drop(held);
    host.s3cache([&url]).exits(0);
    host.s3cache(["gc", "--max-size=500K"]).exits(0);
    assert!(root.exists() && !root.join("venvs").exists());
    assert_eq!(
        every_file(&share(&host, "blobs")).len(),
        1,
        "it is evicted before artifacts"
    );
}
