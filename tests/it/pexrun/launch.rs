//! The lease that protects a running program from gc, and the errors that name why a program cannot start.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use hostkit_tests::host::{TmpfsMount, is_root};
use hostkit_tests::{ChildGuard, find_program, or_skip, skip};

use super::{CommandOutcome, HASH, PexrunHost, pex, pex_program, program, zip, zip_of};

/// A build that prints `runs` and ends with its stdin.
const WAITS: &str = "echo runs; read line";

/// Starts it and waits until it runs.
fn start(host: &PexrunHost) -> ChildGuard {
    let mut command = host.command(["job", HASH]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "runs\n");
    ChildGuard(child)
}

fn end(mut running: ChildGuard) {
    drop(running.0.stdin.take());
    running.0.wait().unwrap();
}

#[test]
fn running_build_is_not_removed() {
    let host = PexrunHost::new();
    let name = pex("job", HASH);
    host.publish(&name, program(WAITS));
    // From the first run, which fetches, and from the second.
    for _ in 0..2 {
        let running = start(&host);
        let path = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
        let path = std::path::Path::new(path.trim());
        host.s3cache(&["rm", &name]).exits(75).logs("in use");
        host.age_blobs();
        host.s3cache(&["gc", "--max-size", "0"]).exits(0);
        assert!(path.exists(), "gc keeps it");
        end(running);
    }
    host.s3cache(&["rm", &name]).exits(0);
    host.publish(&name, program("echo again"));
    host.pexrun(["job", HASH]).exits(0).prints("again\n");
    let path = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
    host.age_blobs();
    host.s3cache(&["gc", "--max-size", "0"]).exits(0);
    assert!(!std::path::Path::new(path.trim()).exists(), "gc removes it");
}

/// Libraries that daemonize a program close inherited files, including the lease.
#[test]
fn running_build_is_not_removed_after_it_closed_its_lease() {
    let Some(_python) = or_skip("python", find_program("python3")) else {
        return;
    };
    let host = PexrunHost::new();
    let name = pex("job", HASH);
    let closes = "import os; os.closerange(3, 256); print('runs', flush=True); input()";
    host.publish(
        &name,
        program(&format!("exec python3 -c \"{closes}\" \"$0\"")),
    );
    let running = start(&host);
    let path = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
    host.age_blobs();
    host.s3cache(&["gc", "--max-size", "0"]).exits(0);
    assert!(std::path::Path::new(path.trim()).exists(), "gc keeps it");
    host.s3cache(&["rm", &name]).exits(75).logs("in use");
    end(running);
    host.s3cache(&["rm", &name]).exits(0);
}

#[test]
fn pex_root_of_running_pex_is_not_pruned() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), pex_program(WAITS));
    let running = start(&host);
    let unpacked = host.pex_root().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    std::fs::write(unpacked.join("file"), vec![0; 4096]).unwrap();
    host.age_unpacked();
    host.s3cache(&["gc", "--max-size", "0"]).exits(0);
    assert!(unpacked.exists());
    end(running);
    host.s3cache(&["gc", "--max-size", "0"]).exits(0);
    assert!(!unpacked.exists());
}

#[test]
fn missing_interpreter_is_named() {
    let host = PexrunHost::new();
    for (version, line, named) in [
        (
            "a000001",
            "#!/usr/bin/env python-missing",
            "needs python-missing,",
        ),
        ("a000002", "#!/nowhere/python -u", "needs /nowhere/python,"),
        (
            "a000003",
            "#!/usr/bin/env python-missing -u",
            "needs python-missing -u,",
        ),
        ("a000004", "#!/bin/sh\r", r"needs /bin/sh\r,"),
    ] {
        let build = [line.as_bytes(), b"\n", &zip(b"PEX-INFO")].concat();
        host.publish(&pex("job", version), build);
        for flags in [&[][..], &["--warm"]] {
            let args = [flags, &["job", version]].concat();
            host.pexrun(args).exits(126).logs(named);
        }
    }
}

#[test]
fn zip_without_interpreter_line_is_not_run_by_shell() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), zip(b"a"));
    host.pexrun(["job", HASH])
        .exits(126)
        .logs("does not start with #!");
}

#[test]
fn noexec_filesystem_is_named() {
    if !is_root() {
        return skip("noexec", "needs root");
    }
    let Some(tmpfs) = or_skip("tmpfs", TmpfsMount::mount(8 << 20)) else {
        return;
    };
    let remount = Command::new("mount")
        .args(["-o", "remount,noexec"])
        .arg(tmpfs.path())
        .status();
    assert!(remount.unwrap().success());
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo ran"));
    let mut command = host.command(["--keep-free=0", "job", HASH]);
    command.env("HOSTKIT_PEXRUN_CACHE_DIR", tmpfs.path().join("cache"));
    super::CommandOutcome::from(command.output().unwrap())
        .exits(126)
        .logs("is on a filesystem mounted noexec")
        .logs("--cache-dir");
}

#[test]
fn warm_of_zipapp_runs_nothing() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("touch ran"));
    host.pexrun(["--warm", "job", HASH]).exits(0).prints("");
    assert!(!host.home().join("ran").exists());
}

#[test]
fn concurrent_runs_fetch_once_and_all_run() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo ran"));
    let started: Vec<_> = (0..16)
        .map(|_| {
            let mut command = host.command(["job", HASH]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for child in started {
        let outcome = super::CommandOutcome::from(child.wait_with_output().unwrap());
        outcome.exits(0).prints("ran\n");
    }
}

#[test]
fn run_waits_for_build_still_open_for_writing() {
    if !is_root() {
        return skip("a file that only root may write", "needs root");
    }
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo ran"));
    let path = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
    let open = std::fs::File::options().write(true).open(path.trim());
    let mut command = host.command(["--loglevel=info", "job", HASH]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let log = child.stderr.take().unwrap();
    BufReader::new(log).read_line(&mut line).unwrap();
    assert!(line.contains("open for writing; waiting"), "{line}");
    drop(open.unwrap());
    let outcome = super::CommandOutcome::from(child.wait_with_output().unwrap());
    outcome.exits(0).prints("ran\n");
}

#[test]
fn warm_start_cost_does_not_depend_on_file_count_of_pex() {
    let Some(strace) = or_skip("system calls of a start", find_program("strace")) else {
        return;
    };
    let host = PexrunHost::new();
    // System calls, and bytes read.
    let start = |job: &str| -> (usize, u64) {
        let trace = host.path("trace");
        let mut command = host.program(&strace);
        command.args(["-qq", "-e", "signal=none", "-o"]).arg(&trace);
        command.arg(hostkit_tests::bin("pexrun")).args([job, HASH]);
        let outcome = CommandOutcome::from(command.output().unwrap()).exits(0);
        outcome.prints(&format!("{}\n", host.pex_root().display()));
        let trace = std::fs::read_to_string(trace).unwrap();
        let read = |call: &&str| {
            ["read(", "pread64(", "readv("]
                .iter()
                .any(|name| call.starts_with(name))
        };
        let bytes = trace
            .lines()
            .filter(read)
            .map(|call| call.rsplit(" = ").next().unwrap().parse().unwrap_or(0));
        (trace.lines().count(), bytes.sum())
    };
    let [few, many] = [300, 30_000].map(|count| {
        let job = format!("job{count:05}");
        let names = (1..count).map(|n| format!("module_{n}.py"));
        let zip = zip_of(names.chain(["PEX-INFO".to_owned()]));
        let script = b"#!/bin/sh\necho $PEX_ROOT\nexit\n".to_vec();
        host.publish(&pex(&job, HASH), [script, zip].concat());
        host.pexrun(["--fetch-only", &job, HASH]).exits(0);
        // The first start unpacks the pex, and its lease records the hash.
        start(&job);
        let warm = start(&job);
        // An index entry of an earlier s3cache costs one look.
        let index = host.share().join("index/v1");
        for file in crate::s3cache::every_file(&index) {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.contains(&job) {
                assert!(text.contains("\"pex\":true,"), "{text}");
                std::fs::write(&file, text.replace("\"pex\":true,", "")).unwrap();
            }
        }
        let old = start(&job);
        assert!(old.1 > warm.1, "{old:?} {warm:?}");
        assert_eq!(start(&job), warm);
        warm
    });
    assert_eq!(few.0, many.0, "system calls");
    // The index entry has the length of the pex.
    assert!(many.1.abs_diff(few.1) < 20, "{few:?} {many:?}");
}
