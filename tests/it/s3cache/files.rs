//! `file://`: only regular files are artifacts, and a file system that does not answer does not keep a process.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use hostkit_tests::host::SilentFs;
use hostkit_tests::{bin, eventually, or_skip};
use nix::sys::stat::Mode;

use super::{Host, Outcome};

/// Runs s3cache, but not for ever: 124 says that it did not end by itself.
fn bounded(host: &Host, args: &[&str]) -> Outcome {
    let mut command = host.program("timeout");
    command.arg("60").arg(bin("s3cache")).args(args);
    command.args(host.own_flags()).output().unwrap().into()
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

#[test]
fn only_a_regular_file_is_an_artifact() {
    let host = Host::new();
    let fifo = host.path("fifo.bin");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o644)).unwrap();
    let _listener = UnixListener::bind(host.path("socket.bin")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", host.path("device.bin")).unwrap();
    std::os::unix::fs::symlink("fifo.bin", host.path("link.bin")).unwrap();
    std::fs::create_dir(host.path("directory.bin")).unwrap();
    std::fs::write(host.path("made.txt"), "text").unwrap();
    for name in [
        "fifo.bin",
        "socket.bin",
        "device.bin",
        "link.bin",
        "directory.bin",
    ] {
        let path = host.path(name);
        let url = url(&path);
        let says = |args: &[&str], code| {
            bounded(&host, args).exits(code).says("not a regular file");
        };
        says(&[&url, "--copy-to=out"], 69);
        says(&["exists", &url], 69);
        says(
            &[
                "put",
                path.to_str().unwrap(),
                &self::url(&host.path("repo/")),
            ],
            66,
        );
        bounded(&host, &["put", "made.txt", &url]).exits(73);
    }
    // A sidecar that is a FIFO is not waited for either.
    nix::unistd::mkfifo(
        &host.path("made.txt.sha256"),
        Mode::from_bits_truncate(0o644),
    )
    .unwrap();
    bounded(&host, &[&url(&host.path("made.txt"))])
        .exits(69)
        .says("not a regular file");
    assert!(File::open(host.path("out")).is_err());
}

#[test]
fn a_certificate_file_that_never_comes_is_ended_by_the_deadline() {
    let host = Host::new();
    let fifo = host.path("ca.pem");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o644)).unwrap();
    for source in ["https://127.0.0.1:9/a-1.2.bin", "s3://b/a-1.2.bin"] {
        let args = [source, "--ca-file=ca.pem", "--timeout=1s"];
        bounded(&host, &args)
            .exits(75)
            .says("not finished within 1s");
    }
}

/// Whether a thread of a process waits in the kernel for what cannot be interrupted.
fn is_stuck(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let stats: Vec<PathBuf> = tasks
        .flatten()
        .map(|task| task.path().join("stat"))
        .collect();
    stats.iter().any(|stat| {
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" D"))
    })
}

#[test]
fn a_file_system_that_does_not_answer_is_ended_by_the_deadline_and_by_signals() {
    let Some(silent) = or_skip("a silent FUSE file system", SilentFs::mount()) else {
        return;
    };
    let host = Host::new();
    std::fs::write(host.path("made.txt"), "text").unwrap();
    let source = url(&silent.path("a.bin"));
    let local = silent.path("a.bin").display().to_string();
    for args in [
        &[source.as_str()] as &[&str],
        &["exists", &source],
        &["put", "made.txt", &source],
        &["put", &local, &url(&host.path("repo/"))],
    ] {
        bounded(&host, &[args, &["--timeout=1s"]].concat())
            .exits(75)
            .says("not finished within 1s");
    }
    let repository = format!("--repository={}", url(&silent.path("repo")));
    let mut list = host.program("timeout");
    list.arg("60").arg(bin("pexrun")).args([
        "--list",
        "job",
        "--arch=x",
        "--timeout=1s",
        &repository,
    ]);
    list.arg(format!("--cache-dir={}", host.cache().display()));
    Outcome::from(list.output().unwrap())
        .exits(125)
        .says("not finished within 1s");

    let mut running = host.start([&source]);
    eventually("s3cache waits for the file system", || {
        is_stuck(running.0.id())
    });
    let pid = nix::unistd::Pid::from_raw(running.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = running.0.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(15)
    );
}
