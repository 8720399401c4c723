//! How a cached artifact reaches its target: shared blocks where the filesystem can, atomically, and without leftovers
//! of killed processes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use assert_fs::prelude::*;
use hostkit_tests::host::{LoopFs, TmpfsMount};
use hostkit_tests::or_skip;
use hostkit_tests::origin::{OriginFault, OriginServer};

use super::{CacheHost, CommandOutcome, bytes, every_file};

const SIZE: usize = 8 << 20;

/// Free bytes of the filesystem of a path, once all writes are allocated.
fn free_bytes(path: &Path) -> u64 {
    assert!(
        Command::new("sync")
            .arg("-f")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
    let asked = Command::new("stat")
        .args(["-f", "-c", "%f %S"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(asked.stdout).unwrap();
    let (blocks, size) = text.trim().split_once(' ').unwrap();
    blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
}

/// Fetches with a cache directory other than the host's own.
fn with_cache(host: &CacheHost, cache: &Path, args: &[&str]) -> CommandOutcome {
    let mut command = host.program(hostkit_tests::bin("s3cache"));
    command
        .args(args)
        .args(["--keep-free=0", "--cache-dir"])
        .arg(cache);
    command.output().unwrap().into()
}

#[test]
fn copy_shares_blocks_on_reflink_filesystem() {
    for kind in ["xfs", "btrfs"] {
        let Some(mounted) = or_skip(kind, LoopFs::mount(kind)) else {
            continue;
        };
        let (host, origin, root) = (CacheHost::new(), OriginServer::start(), mounted.path());
        origin.put("/job-1.2.bin", bytes(SIZE, 1));
        let (url, cache) = (origin.url("/job-1.2.bin"), root.join("cache"));
        with_cache(&host, &cache, &[&url]).exits(0);
        let before = free_bytes(&root);
        for copy in ["a", "b", "c"] {
            let target = root.join(copy);
            with_cache(
                &host,
                &cache,
                &[&url, &format!("--copy-to={}", target.display())],
            )
            .exits(0);
            assert!(std::fs::read(&target).unwrap() == bytes(SIZE, 1), "{kind}");
            let metadata = target.metadata().unwrap();
            assert_eq!(metadata.nlink(), 1, "{kind}: never a hard link");
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o644, "{kind}");
        }
        let taken = before.saturating_sub(free_bytes(&root));
        assert!(
            taken < SIZE as u64,
            "{kind}: three copies took {taken} bytes"
        );
        // The copy is independent: writing it does not change the cache.
        std::fs::write(root.join("a"), "changed").unwrap();
        let outcome = with_cache(&host, &cache, &["verify"]).exits(0);
        assert!(
            outcome.stdout.starts_with("1 ok, 0 corrupt"),
            "{}",
            outcome.stdout
        );
    }
}

#[test]
fn copy_is_independent_of_cached_blob() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/job-1.2.bin", "what a job runs");
    let url = origin.url("/job-1.2.bin");
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    assert_eq!(host.path("out").metadata().unwrap().nlink(), 1);
    std::fs::write(host.path("out"), "poison").unwrap();
    std::fs::set_permissions(host.path("out"), std::fs::Permissions::from_mode(0o700)).unwrap();
    host.s3cache([&url, "--copy-to=other"]).exits(0);
    assert_eq!(host.read("other"), b"what a job runs");
}

#[test]
fn copy_to_path_with_final_slash_goes_into_directory() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/job-1.2.bin", "what a job runs");
    let url = origin.url("/job-1.2.bin");
    host.s3cache([&url, "--copy-to=new/"])
        .exits(73)
        .logs("cannot copy into new/: no such directory: create it first with `mkdir -p`");
    assert!(!host.path("new").exists());
    assert!(origin.requests().is_empty(), "reported before any request");
    host.file("new").create_dir_all().unwrap();
    host.s3cache([&url, "--copy-to=new/"]).exits(0);
    host.file("new/job-1.2.bin").assert("what a job runs");
    // Without the slash it is not a file name, and s3cache does not guess.
    host.s3cache([&url, "--copy-to=new"])
        .exits(73)
        .logs("it is a directory: name a file in it, or write a slash at its end");
    host.file("file").write_str("x").unwrap();
    host.s3cache([&url, "--copy-to=file/"])
        .exits(73)
        .logs("cannot copy into file/");
}

#[test]
fn longest_file_name_is_cached_copied_and_replaced() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    // 381 bytes in the URL, 127 in the file system.
    let umlauts = format!("job-1.2-{}", "%C3%A4".repeat(120));
    origin.put(&format!("/{umlauts}"), "one");
    let decoded = format!("job-1.2-{}", "\u{e4}".repeat(120));
    let path = host
        .s3cache([origin.url(&format!("/{umlauts}"))])
        .exits(0)
        .stdout;
    assert!(path.trim_end().ends_with(&decoded), "{path}");
    let longest = format!("job-1.2-{}", "x".repeat(247));
    host.file(&longest).write_str("two").unwrap();
    let source = format!("file://{}", host.path(&longest).display());
    for _ in 0..2 {
        host.file("to").create_dir_all().unwrap();
        host.s3cache([&source, "--copy-to=to/"]).exits(0);
        host.file("to").child(&longest).assert("two");
    }
    assert_eq!(
        every_file(&host.path("to")).len(),
        1,
        "no temporary file is left"
    );
    host.s3cache([&format!("{source}x")])
        .exits(2)
        .logs("its name has 256 bytes");
}

#[test]
fn cache_file_is_synced_before_rename_and_copy_is_not() {
    let Some(strace) = or_skip(
        "system calls of a fetch",
        hostkit_tests::find_program("strace"),
    ) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/job-1.2.bin", bytes(100_000, 1));
    let traced = |out: &str| {
        let mut traced = host.program(&strace);
        traced
            .args(["-f", "-qq", "-y", "-e", "signal=none", "-o", "calls"])
            .args(["-e", "trace=fsync,fdatasync,/rename.*,linkat"])
            .arg(hostkit_tests::bin("s3cache"))
            .args([&origin.url("/job-1.2.bin"), &format!("--copy-to={out}")])
            .args(host.own_flags());
        assert!(traced.output().unwrap().status.success());
        String::from_utf8(host.read("calls")).unwrap()
    };
    let cold = traced("out");
    let lines: Vec<&str> = cold.lines().collect();
    let at = |what: &dyn Fn(&str) -> bool| {
        lines
            .iter()
            .position(|line| what(line))
            .unwrap_or_else(|| panic!("{cold}"))
    };
    let synced = at(&|line| line.contains("sync(") && line.contains("/partial/"));
    let renamed = at(&|line| line.contains("rename") && line.contains("/blobs/"));
    let folder = at(&|line| line.contains("sync(") && line.contains("/blobs/"));
    // The entry of the artifact, on its shelf; records of the whole share stand beside the shelves.
    let indexed = at(&|line| line.contains("rename") && line.contains("/index/v1/"));
    assert!(
        synced < renamed && renamed < folder && folder < indexed,
        "{cold}"
    );
    for calls in [cold, traced("again")] {
        let copy: Vec<&str> = calls
            .lines()
            .filter(|line| line.contains("/sandbox>"))
            .collect();
        assert_eq!(copy.len(), 1, "one rename, no sync: {calls}");
    }
}

#[test]
fn concurrent_copies_to_one_path_succeed() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let [tar, ..] = pack_archives(&host);
    origin.put("/p-1.2.tar", tar.clone());
    let url = origin.url("/p-1.2.tar");
    host.s3cache([&url]).exits(0);
    for flag in ["--copy-to=out", "--unpack-to=dir"] {
        let run = || {
            let mut command = host.command([&url, flag]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        };
        for running in std::iter::repeat_with(run).take(24).collect::<Vec<_>>() {
            CommandOutcome::from(running.wait_with_output().unwrap()).exits(0);
        }
    }
    assert!(host.read("out") == tar);
    assert_eq!(host.read("dir/lib/a.txt"), b"text\n");
}

#[test]
fn leftovers_of_killed_copy_are_removed_by_next_one() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/job-1.2.bin", bytes(SIZE, 1));
    origin.fault("/job-1.2.bin", OriginFault::Stall(100_000));
    // A cache that cannot hold it: the download goes straight to a file beside the target.
    let args = ["--copy-to=out", "--max-size=1M", "--stall-timeout=60"].map(str::to_owned);
    let mut running = host.start([origin.url("/job-1.2.bin")].into_iter().chain(args));
    hostkit_tests::wait_until("the copy has begun", || {
        every_file(&host.sandbox())
            .iter()
            .any(|file| file.metadata().is_ok_and(|found| found.len() > 0))
    });
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    let left = every_file(&host.sandbox());
    assert!(left.len() == 1 && !host.path("out").exists(), "{left:?}");
    origin.clear_faults();
    host.s3cache([&origin.url("/job-1.2.bin"), "--copy-to=out"])
        .exits(0);
    assert_eq!(every_file(&host.sandbox()), [host.path("out")]);
    assert!(host.read("out") == bytes(SIZE, 1));
}

#[test]
fn full_disk_leaves_no_partial_file() {
    let Some(small) = or_skip("a small tmpfs", TmpfsMount::mount(1 << 20)) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/job-1.2.bin", bytes(SIZE, 1));
    let target = small.path().join("out");
    std::fs::write(&target, "old").unwrap();
    let url = origin.url("/job-1.2.bin");
    let copy = format!("--copy-to={}", target.display());
    for run in ["cold", "warm"] {
        let outcome = host
            .s3cache([&url, &copy])
            .exits(73)
            .logs(target.to_str().unwrap());
        outcome.logs("free some space").logs("No space left");
        assert_eq!(
            every_file(&small.path()),
            std::slice::from_ref(&target),
            "{run}"
        );
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old", "{run}");
    }
    assert_eq!(
        origin.bodies("/job-1.2.bin"),
        1,
        "it is cached all the same"
    );
}

/// A tree of a file, a program and a symlink, packed by tar(1) and gzip(1).
fn pack_archives(host: &CacheHost) -> [Vec<u8>; 3] {
    let script = "mkdir -p in/lib && echo text >in/lib/a.txt && printf '#!/bin/sh\necho runs\n' >in/run && chmod 755 in/run \
        && ln -s lib/a.txt in/link && tar -C in -cf p.tar . && gzip -k p.tar && gzip -c in/lib/a.txt >a.gz && rm -r in";
    assert!(
        host.program("bash")
            .args(["-c", script])
            .status()
            .unwrap()
            .success()
    );
    ["p.tar", "p.tar.gz", "a.gz"].map(|name| host.read(name))
}

#[test]
fn archives_are_unpacked_into_directory() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let [tar, tgz, gz] = pack_archives(&host);
    for (name, body) in [
        ("/p-1.2.tar", &tar),
        ("/p-1.2.tar.gz", &tgz),
        ("/p-1.2.tgz", &tgz),
    ] {
        origin.put(name, body.clone());
        let out = format!("out{}", name.replace('/', "-"));
        let outcome = host
            .s3cache([&origin.url(name), &format!("--unpack-to={out}")])
            .exits(0);
        assert_eq!(outcome.stdout, "");
        assert_eq!(host.read(format!("{out}/link")), b"text\n", "{name}");
        let ran = host
            .program(host.path(format!("{out}/run")))
            .output()
            .unwrap();
        assert_eq!(ran.stdout, b"runs\n", "{name}");
    }
    origin.put("/words-1.2.txt.gz", gz);
    host.s3cache([&origin.url("/words-1.2.txt.gz"), "--unpack-to=words"])
        .exits(0);
    assert_eq!(host.read("words/words-1.2.txt"), b"text\n");
}

#[test]
fn unpacking_replaces_only_its_own_directory_atomically() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let [tar, tgz, _] = pack_archives(&host);
    origin.put("/p-1.2.tar", tar);
    origin.put("/q-1.2.tgz", tgz[..tgz.len() / 2].to_vec());
    let unpack =
        |name: &str, to: &str| host.s3cache([&origin.url(name), &format!("--unpack-to={to}")]);
    unpack("/p-1.2.tar", "out").exits(0);
    unpack("/p-1.2.tar", "out").exits(0);
    unpack("/q-1.2.tgz", "out").exits(65).logs("q-1.2.tgz");
    assert_eq!(host.read("out/lib/a.txt"), b"text\n", "the old one stays");
    std::fs::create_dir(host.path("mine")).unwrap();
    std::fs::write(host.path("mine/file"), "mine").unwrap();
    unpack("/p-1.2.tar", "mine").exits(73).logs("not empty");
    std::fs::write(host.path("file"), "mine").unwrap();
    unpack("/p-1.2.tar", "file").exits(73);
    assert_eq!(
        (host.read("mine/file"), host.read("file")),
        (b"mine".to_vec(), b"mine".to_vec())
    );
    let names = std::fs::read_dir(host.sandbox())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let hidden: Vec<_> = names
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn directory_of_killed_unpacking_is_removed_by_next_one() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let [tar, ..] = pack_archives(&host);
    origin.put("/p-1.2.tar", tar);
    // The leftover of a process with this number, which cannot exist.
    let left = host.path(".out.s3cache-4194304-0");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("half"), "half").unwrap();
    host.s3cache([&origin.url("/p-1.2.tar"), "--unpack-to=out"])
        .exits(0);
    assert!(!left.exists());
}
