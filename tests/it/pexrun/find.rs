//! Where a build is searched for, in which order, and the error when it is missing.

use std::process::Stdio;

use hostkit_tests::eightball::build_jar;
use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;
use hostkit_tests::{find_program, or_skip, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ALIKE, CommandOutcome, HASH, OTHER, PexrunHost, pex, program, unreachable_url, zip};

#[test]
fn pex_runs_from_each_kind_of_repository() {
    let build = program("echo $1 ran");
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), &build);
    host.pexrun(["job", HASH, "it"]).exits(0).prints("it ran\n");

    let (host, origin) = (PexrunHost::bare(), OriginServer::start());
    origin.put(&format!("/pex/{}", pex("job", HASH)), build.clone());
    host.repositories(&[&origin.url("/pex/")]);
    host.pexrun(["job", HASH, "it"]).exits(0).prints("it ran\n");

    let (host, s3) = (PexrunHost::bare(), S3Server::start());
    s3.create_bucket("builds");
    host.upload(
        &s3,
        "b.pex",
        &build,
        &format!("s3://builds/pex/{}", pex("job", HASH)),
    );
    host.repositories(&["s3://builds/pex"]);
    let mut command = host.command(["job", HASH, "it"]);
    CommandOutcome::from(command.envs(s3.env()).output().unwrap())
        .exits(0)
        .prints("it ran\n");
}

#[test]
fn jar_runs_when_pex_is_missing() {
    if let Err(why) = find_program("java") {
        return skip("java", &why);
    }
    let host = PexrunHost::new();
    host.configure(&format!(
        "repository: {}\njava-flags: [-Dprobe=seen, -Xmx64m]\n",
        host.repository()
    ));
    let jar = host.path("repo").join("hello-1.4.2.jar");
    let Some(()) = or_skip("a jar", build_jar(&jar)) else {
        return;
    };
    host.pexrun(["hello", "1.4.2", "--help", "-x", "--", "", "a b", "--"])
        .exits(0)
        .prints("--help\n-x\n--\n\na b\n--\nprobe=seen\n");
}

#[test]
fn missing_java_is_named() {
    let host = PexrunHost::new();
    host.publish("job-1.2.jar", zip(b"a"));
    host.configure(&format!(
        "repository: {}\njava: java-missing\n",
        host.repository()
    ));
    host.pexrun(["job", "1.2"])
        .exits(126)
        .logs("java-missing is not installed");
}

#[test]
fn static_build_is_revalidated_on_each_run() {
    // `kafka-0.8` looks like a version, which never changes.
    for (job, name) in [
        ("job", format!("job-{}.pex", super::ARCH)),
        ("kafka-0.8", "kafka-0.8.pex".to_owned()),
    ] {
        let (host, origin) = (PexrunHost::bare(), OriginServer::start());
        let path = format!("/{name}");
        host.repositories(&[&origin.url("")]);
        origin.put(&path, program("echo one"));
        host.pexrun([job, "static"]).exits(0).prints("one\n");
        host.pexrun([job, "static"]).exits(0).prints("one\n");
        assert_eq!(origin.bodies(&path), 1, "the second run only revalidates");
        let asked = origin.requests().iter().filter(|r| r.path == path).count();
        assert!(asked >= 2, "{asked} requests");
        origin.put(&path, program("echo two"));
        host.pexrun([job, "static"]).exits(0).prints("two\n");
        // The origin is gone: the cached copy may be outdated, which is logged.
        drop(origin);
        let last = host.pexrun([job, "static"]).exits(0).logs("outdated");
        assert_eq!(last.stdout, "two\n");
    }
}

#[test]
fn next_repository_is_searched_when_build_is_missing() {
    let (first, second) = (OriginServer::start(), OriginServer::start());
    let path = format!("/{}", pex("job", HASH));
    second.put(&path, program("echo second"));
    let host = PexrunHost::bare();
    host.repositories(&[&first.url(""), &second.url("")]);
    host.pexrun(["job", HASH]).exits(0).prints("second\n");
    assert_eq!(first.bodies(&path), 0);
}

#[test]
fn next_repository_is_searched_when_first_fails() {
    let path = format!("/{}", pex("job", HASH));
    let (failing, second) = (OriginServer::start(), OriginServer::start());
    failing.fault(
        &path,
        OriginFault::Status {
            code: 503,
            retry_after: None,
        },
    );
    second.put(&path, program("echo second"));
    for first in [failing.url(""), unreachable_url()] {
        let host = PexrunHost::bare();
        host.repositories(&[&first, &second.url("")]);
        let outcome = host.pexrun(["job", HASH]).exits(0).logs(&first);
        assert_eq!(outcome.stdout, "second\n");
        // Once it is cached no repository is queried, so there is no failure to log.
        host.pexrun(["job", HASH]).exits(0).prints("second\n");
    }
}

#[test]
fn missing_build_is_127_and_unknown_state_is_125() {
    let host = PexrunHost::new();
    let origin = OriginServer::start();
    let nothing = host.repository();
    host.repositories(&[&origin.url("/pex"), &nothing]);
    host.pexrun(["job", HASH])
        .exits(127)
        .logs(&format!("no build {HASH} of job: "))
        .logs(&format!(
            "searched for {} and job-{HASH}.jar in {}, {nothing}",
            pex("job", HASH),
            origin.url("/pex")
        ));
    let dead = unreachable_url();
    host.repositories(&[&dead, &nothing]);
    let outcome = host
        .pexrun(["job", HASH])
        .exits(125)
        .logs("cannot fetch build")
        .logs(&dead);
    assert_eq!(outcome.stderr.matches(&dead).count(), 1, "logged once");
    host.repositories(&["s3cache-missing"]);
    host.command(["job", HASH])
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .output()
        .map(CommandOutcome::from)
        .unwrap()
        .exits(125)
        .logs("s3://s3cache-missing/job-");
}

#[test]
fn cached_immutable_build_runs_without_socket() {
    let Some(strace) = or_skip("strace", find_program("strace")) else {
        return;
    };
    let origin = OriginServer::start();
    let path = format!("/{}", pex("job", HASH));
    origin.put(&path, program("echo ran"));
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url("")]);
    let trace = host.path("trace");
    let run = || {
        let mut command = host.program(&strace);
        command.args(["-f", "-e", "trace=socket,connect,execve", "-o"]);
        command.arg(&trace).arg(hostkit_tests::bin("pexrun"));
        let outcome = CommandOutcome::from(command.args(["job", HASH]).output().unwrap());
        outcome.exits(0).prints("ran\n");
        std::fs::read_to_string(&trace).unwrap()
    };
    assert!(run().contains("connect("), "the first run fetches");
    origin.reset_counters();
    let second = run();
    assert!(!second.contains("socket("), "{second}");
    assert!(second.contains("execve("), "{second}");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn short_hash_is_resolved_in_listable_repository() {
    let s3 = S3Server::start();
    s3.create_bucket("builds");
    let host = PexrunHost::new();
    for (hash, says) in [(HASH, "one"), (ALIKE, "two"), (OTHER, "three")] {
        let build = program(&format!("echo {says}"));
        host.publish(&pex("job", hash), &build);
        let to = format!("s3://builds/pex/{}", pex("job", hash));
        host.upload(&s3, "b.pex", &build, &to);
    }
    host.publish(&pex("job-two", "60a43ef0000"), program("echo wrong"));
    for repository in [host.repository(), "s3://builds/pex".to_owned()] {
        let run = |hash: &str| {
            let mut command = host.command(["--repository", &repository, "job", hash]);
            CommandOutcome::from(command.envs(s3.env()).output().unwrap())
        };
        run(&HASH[..8]).exits(0).prints("one\n");
        run("f00d").exits(0).prints("three\n");
        run("60a43ef")
            .exits(125)
            .logs("60a43ef is ambiguous: 2 builds of job start with it")
            .logs(HASH)
            .logs(ALIKE);
        // As git accepts it, in capitals too.
        run(&HASH[..8].to_uppercase()).exits(0).prints("one\n");
        run(&OTHER.to_uppercase()).exits(0).prints("three\n");
        run("60A43EF")
            .exits(125)
            .logs("60A43EF is ambiguous: 2 builds of job start with it");
        run("60a").exits(127).logs("at least 4 digits");
        run("beef").exits(127).logs("`pexrun --list job`");
    }
}

#[test]
fn web_server_repository_needs_whole_hash() {
    let origin = OriginServer::start();
    origin.put(&format!("/{}", pex("job", HASH)), program("echo ran"));
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url("")]);
    host.pexrun(["job", &HASH[..8]])
        .exits(127)
        .logs("give the whole git hash");
    host.pexrun(["job", HASH]).exits(0).prints("ran\n");
    // The cache does not help: it cannot rule out other builds with this prefix.
    host.pexrun(["job", &HASH[..8]]).exits(127);
}

#[test]
fn failed_listing_is_not_missing_build() {
    let host = PexrunHost::bare();
    host.repositories(&["s3://builds/pex"]);
    let s3 = S3Server::start();
    s3.create_bucket("builds");
    let mut command = host.command(["job", "60a43ef"]);
    command
        .envs(s3.env())
        .env("AWS_SECRET_ACCESS_KEY", "not-the-secret");
    CommandOutcome::from(command.output().unwrap())
        .exits(125)
        .logs("cannot fetch build");
}

#[test]
fn corrupt_build_does_not_run() {
    let host = PexrunHost::new();
    let whole = program("echo ran");
    host.publish(&pex("job", HASH), &whole[..whole.len() - 30]);
    host.pexrun(["job", HASH])
        .exits(125)
        .logs("cannot fetch build")
        .logs("is not a readable .pex");
    // Nothing of it was kept: the corrected build runs.
    host.publish(&pex("job", HASH), &whole);
    host.pexrun(["job", HASH]).exits(0).prints("ran\n");
}

#[test]
fn corrupt_cached_copy_is_fetched_again() {
    let host = PexrunHost::new();
    host.publish(&pex("job", HASH), program("echo right"));
    let path = host.pexrun(["--which", "job", HASH]).exits(0).stdout;
    let path = std::path::Path::new(path.trim());
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, program("echo wrong")).unwrap();
    super::open_to_all(path);
    let outcome = host.pexrun(["job", HASH]).exits(0).logs("corrupt");
    assert_eq!(outcome.stdout, "right\n");
}

#[test]
fn signal_during_fetch_ends_pexrun_by_that_signal() {
    let origin = OriginServer::start();
    let path = format!("/{}", pex("job", HASH));
    origin.put(&path, program("echo ran"));
    origin.fault(&path, OriginFault::Stall(10));
    let host = PexrunHost::bare();
    host.repositories(&[&origin.url("")]);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        origin.reset_counters();
        let mut command = host.command(["job", HASH]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        origin.wait_requests(&path, 1);
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let outcome = CommandOutcome::from(child.wait_with_output().unwrap());
        outcome.exits(-(signal as i32)).prints("");
    }
}
