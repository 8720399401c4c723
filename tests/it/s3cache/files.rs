//! `file://`: only regular files are artifacts, and a file system that does not answer does not block a process.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use hostkit_tests::host::SilentFs;
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::{bin, or_skip, wait_until};
use nix::sys::stat::Mode;

use super::{CacheHost, CommandOutcome};

/// Runs s3cache with a time limit: 124 means that it did not end by itself.
fn run_bounded(host: &CacheHost, args: &[&str]) -> CommandOutcome {
    let mut command = host.program("timeout");
    command.arg("60").arg(bin("s3cache")).args(args);
    command.args(host.own_flags()).output().unwrap().into()
}

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

#[test]
fn only_regular_file_is_artifact() {
    let host = CacheHost::new();
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
            run_bounded(&host, args)
                .exits(code)
                .logs("not a regular file");
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
        run_bounded(&host, &["put", "made.txt", &url]).exits(73);
    }
    // A sidecar that is a FIFO does not block either.
    nix::unistd::mkfifo(
        &host.path("made.txt.sha256"),
        Mode::from_bits_truncate(0o644),
    )
    .unwrap();
    run_bounded(&host, &[&url(&host.path("made.txt"))])
        .exits(69)
        .logs("not a regular file");
    assert!(File::open(host.path("out")).is_err());
}

#[test]
fn file_without_length_is_rejected_and_never_empty_artifact() {
    let host = CacheHost::new();
    let repo = url(&host.path("repo/version-1.2"));
    for (args, code) in [
        (&["file:///proc/version", "--copy-to=out"][..], 69),
        (&["exists", "file:///proc/version"], 69),
        (&["put", "/proc/version", &repo], 66),
    ] {
        host.s3cache(args)
            .exits(code)
            .logs("it has content, but states a length of 0");
    }
    assert!(!host.path("out").exists() && !host.path("repo").exists());
    std::fs::write(host.path("empty.txt"), "").unwrap();
    host.s3cache([&url(&host.path("empty.txt")), "--copy-to=out"])
        .exits(0);
    assert_eq!(host.read("out"), b"");
}

#[test]
fn put_ended_by_signal_leaves_no_temporary_file() {
    let host = CacheHost::new();
    let made = File::create(host.path("made.txt")).unwrap();
    made.set_len(256 << 20).unwrap();
    let repo = host.path("repo");
    let mut running = host.start(["put", "made.txt", &url(&repo.join("made.txt"))]);
    wait_until("the copy has begun", || {
        std::fs::read_dir(&repo).is_ok_and(|mut found| found.next().is_some())
    });
    let pid = nix::unistd::Pid::from_raw(running.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    running.0.wait().unwrap();
    let left = std::fs::read_dir(&repo).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    // It may have finished before the signal came.
    let hidden = |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(b".");
    assert!(!left.iter().any(hidden), "{left:?}");
}

/// The same with these variables.
fn run_bounded_with_env(host: &CacheHost, args: &[&str], env: &[(&str, &str)]) -> CommandOutcome {
    let mut command = host.program("timeout");
    command.arg("60").arg(bin("s3cache")).args(args);
    command.args(host.own_flags());
    command.envs(env.iter().copied()).output().unwrap().into()
}

#[test]
fn file_named_by_setting_is_bounded_regular_and_named_in_error() {
    const HTTPS: &str = "https://127.0.0.1:9/a-1.2.bin";
    const S3: &str = "s3://b/a-1.2.bin";
    let host = CacheHost::new();
    nix::unistd::mkfifo(&host.path("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
    std::os::unix::fs::symlink("/dev/zero", host.path("device")).unwrap();
    std::fs::write(host.path("long"), vec![b' '; (1 << 20) + 1]).unwrap();
    let authority = CertificateAuthority::new();
    let cert = format!("--client-cert={}", authority.client().display());
    let key = format!("--client-key={}", authority.client_key().display());
    std::fs::write(
        host.path("profiles"),
        "[profile ca]\nca_bundle = BAD\n[profile token]\nrole_arn = r\nweb_identity_token_file = BAD\n",
    )
    .unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s")];
    for bad in ["fifo", "device", "long"] {
        let profiles = std::fs::read_to_string(host.path("profiles")).unwrap();
        std::fs::write(host.path("config"), profiles.replace("BAD", bad)).unwrap();
        std::fs::write(host.path("own.yaml"), format!("# Ours.\nca-file: {bad}\n")).unwrap();
        let ca = format!("--ca-file={bad}");
        let bad_cert = format!("--client-cert={bad}");
        let bad_key = format!("--client-key={bad}");
        let config = format!("--config={bad}");
        let role = ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/fetch");
        // Arguments, variables, the exit code, and the setting as the error names it.
        for (args, env, code, setting) in [
            (vec![HTTPS, &ca], vec![], 78, "--ca-file"),
            (vec![S3, &ca], keys.to_vec(), 78, "--ca-file"),
            (
                vec![HTTPS, "--config=own.yaml"],
                vec![],
                78,
                "own.yaml:2: `ca-file`",
            ),
            (
                vec![S3],
                [&keys[..], &[("AWS_CA_BUNDLE", bad)]].concat(),
                78,
                "AWS_CA_BUNDLE",
            ),
            (
                vec![S3, "--profile=ca"],
                [&keys[..], &[("AWS_CONFIG_FILE", "config")]].concat(),
                78,
                "ca_bundle of the AWS profile \"ca\"",
            ),
            (vec![HTTPS, &cert, &bad_key], vec![], 78, "--client-key"),
            (vec![HTTPS, &bad_cert, &key], vec![], 78, "--client-cert"),
            (
                vec![HTTPS],
                vec![("SSL_CERT_FILE", bad)],
                78,
                "SSL_CERT_FILE",
            ),
            (
                vec![S3],
                vec![("AWS_WEB_IDENTITY_TOKEN_FILE", bad), role],
                78,
                "AWS_WEB_IDENTITY_TOKEN_FILE",
            ),
            (
                vec![S3],
                vec![("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", bad)],
                78,
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            ),
            (
                vec![S3, "--profile=token"],
                vec![("AWS_CONFIG_FILE", "config")],
                78,
                "web_identity_token_file of the AWS profile \"token\"",
            ),
            (
                vec![S3],
                vec![("AWS_CONFIG_FILE", bad)],
                78,
                "name another with AWS_CONFIG_FILE",
            ),
            (
                vec![S3],
                vec![("AWS_SHARED_CREDENTIALS_FILE", bad)],
                78,
                "name another with AWS_SHARED_CREDENTIALS_FILE",
            ),
            (vec![HTTPS], vec![("NETRC", bad)], 77, "NETRC"),
            (vec![HTTPS, &config], vec![], 78, "configuration file"),
        ] {
            let outcome = run_bounded_with_env(&host, &args, &env)
                .exits(code)
                .logs(setting);
            outcome.logs(bad).logs(match bad {
                "long" => "longer than 1048576 bytes",
                _ => "not a regular file",
            });
        }
    }
    // A missing file is left to the AWS libraries, and /dev/null is an empty one.
    let env = [&keys[..], &[("AWS_CONFIG_FILE", "/dev/null")]].concat();
    let dead = [S3, "--endpoint-url=http://127.0.0.1:9", "--timeout=20"];
    run_bounded_with_env(&host, &dead, &env).exits(69);
    // A bundle that is not PEM is an error for S3 as it is for https.
    for source in [S3, HTTPS] {
        for text in [
            "no certificate",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(host.path("bundle"), text).unwrap();
            run_bounded_with_env(&host, &[source, "--ca-file=bundle"], &keys)
                .exits(78)
                .logs("--ca-file: cannot use bundle: name a file of certificates");
        }
    }
}

/// Whether a thread of a process is in uninterruptible sleep.
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
fn hanging_file_system_is_ended_by_deadline_and_signals() {
    let Some(silent) = or_skip("a silent FUSE file system", SilentFs::mount()) else {
        return;
    };
    let host = CacheHost::new();
    std::fs::write(host.path("made.txt"), "text").unwrap();
    let source = url(&silent.path("a.bin"));
    let local = silent.path("a.bin").display().to_string();
    for args in [
        &[source.as_str()] as &[&str],
        &["exists", &source],
        &["put", "made.txt", &source],
        &["put", &local, &url(&host.path("repo/"))],
    ] {
        run_bounded(&host, &[args, &["--timeout=1s"]].concat())
            .exits(75)
            .logs("not finished within 1s");
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
    CommandOutcome::from(list.output().unwrap())
        .exits(125)
        .logs("not finished within 1s");

    let mut running = host.start([&source]);
    wait_until("s3cache waits for the file system", || {
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

/// As left by a killed publisher, and as seen by a concurrent one.
#[test]
fn put_compares_object_without_sidecar_by_content_and_adds_one() {
    let host = CacheHost::new();
    let (published, sidecar) = (host.path("repo/a.txt"), host.path("repo/a.txt.sha256"));
    std::fs::create_dir(host.path("repo")).unwrap();
    std::fs::write(&published, "made").unwrap();
    let put = |content: &str| {
        std::fs::write(host.path("made.txt"), content).unwrap();
        host.s3cache(["put", "--json", "made.txt", &url(&published)])
    };
    put("late").exits(73).logs("exists with different content");
    assert!(!sidecar.exists());
    let outcome = put("made").exits(0);
    assert!(
        outcome.stdout.contains(r#""published":false"#),
        "{}",
        outcome.stdout
    );
    assert!(sidecar.exists());
}
