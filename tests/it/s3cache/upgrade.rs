//! An old release and this one share a host: one cache directory, one configuration, in turn and concurrently. The old
//! programs are those of the last commit before the cache key, unpacking and eviction changed; `tests/run` builds them.

use std::path::PathBuf;
use std::process::Command;

use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;
use hostkit_tests::{old_bin, or_skip, wait_until};

use super::single_flight::{FetchRun, assert_blobs, recorded_parts};
use super::{CacheHost, CommandOutcome, HASH, bytes};
use crate::pexrun::program;

/// The s3cache and the pexrun of one release.
struct ToolRelease {
    label: &'static str,
    s3cache: PathBuf,
    pexrun: PathBuf,
}

/// Both releases in both orders.
fn release_pairs() -> Option<[(ToolRelease, ToolRelease); 2]> {
    let old = || -> Result<ToolRelease, String> {
        Ok(ToolRelease {
            label: "old",
            s3cache: old_bin("s3cache")?,
            pexrun: old_bin("pexrun")?,
        })
    };
    let new = || ToolRelease {
        label: "new",
        s3cache: hostkit_tests::bin("s3cache"),
        pexrun: hostkit_tests::bin("pexrun"),
    };
    or_skip(
        "an old and a new release on one host",
        old().and_then(|first| Ok([(first, new()), (new(), old()?)])),
    )
}

impl ToolRelease {
    fn command(&self, host: &CacheHost, args: &[&str]) -> Command {
        let mut command = host.program(&self.s3cache);
        command
            .args(args)
            .arg(format!("--config={}", configuration(host).display()));
        command
    }

    fn run(&self, host: &CacheHost, args: &[&str]) -> CommandOutcome {
        self.command(host, args).output().unwrap().into()
    }

    fn pexrun(&self, host: &CacheHost, repository: &str, args: &[&str]) -> Command {
        let mut command = host.program(&self.pexrun);
        command
            .arg(format!("--cache-dir={}", host.cache().display()))
            .arg(format!("--repository={repository}"))
            .arg("--arch=here_x86_64")
            .args(args);
        command
    }
}

/// One file with settings of both releases, written by the first process that reads it.
fn configuration(host: &CacheHost) -> PathBuf {
    let file = host.path("s3cache.yaml");
    if file.exists() {
        return file;
    }
    let cache = host.cache();
    let text = format!(
        "cache-dir: {}\nmax-size: 1G\nkeep-free: 0\npart-size: 256K\nconnections: 2\nstall-timeout: 10s\n",
        cache.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn cached_artifacts_are_hits_across_releases() {
    for (first, second) in release_pairs().into_iter().flatten() {
        let label = format!("{} then {}", first.label, second.label);
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        // The contents of a production cache: names that never change, names that do, a version in the query, a local
        // file.
        let immutable = format!("/pex/job-{HASH}.bin");
        let (mutable, versioned) = ("/pex/static.bin", "/pex/tool.bin");
        for path in [immutable.as_str(), mutable, versioned] {
            origin.put(path, bytes(100_000, 5));
        }
        std::fs::write(host.path(format!("local-{HASH}.bin")), b"local").unwrap();
        let local = format!(
            "file://{}",
            host.path(format!("local-{HASH}.bin")).display()
        );
        let urls = [
            origin.url(&immutable),
            origin.url(mutable),
            format!("{}?versionId=3", origin.url(versioned)),
            local,
        ];
        for url in &urls {
            first.run(&host, &[url, "--copy-to=first"]).exits(0);
        }
        origin.reset_counters();
        for (n, url) in urls.iter().enumerate() {
            let copy = format!("--copy-to=second{n}");
            let outcome = second.run(&host, &[url, &copy, "--loglevel=info"]);
            let result = match (second.label, n) {
                ("old", 0 | 3) => "how=hit",
                ("old", _) => "how=current",
                (_, 0 | 3) => "result=hit",
                _ => "result=revalidated",
            };
            outcome.exits(0).logs(result);
        }
        assert_eq!(origin.bodies(&immutable), 0, "{label}");
        assert_eq!(origin.bodies(mutable), 0, "{label}");
        assert_eq!(origin.bodies(versioned), 0, "{label}");
        assert_eq!(host.read("second0"), bytes(100_000, 5), "{label}");
        // Garbage collection of either release removes no file of the other.
        for release in [&second, &first] {
            release.run(&host, &["gc"]).exits(0);
            release.run(&host, &["verify"]).exits(0);
        }
        assert_eq!(assert_blobs(&host), urls.len(), "{label}");
        let listed = second.run(&host, &["ls", "--json"]).exits(0).stdout;
        assert_eq!(listed.lines().count(), urls.len(), "{label}: {listed}");
    }
}

#[test]
fn object_of_profile_endpoint_is_not_served_as_aws_object() {
    let Some([(old, new), _]) = release_pairs() else {
        return;
    };
    let (host, s3) = (CacheHost::new(), S3Server::start());
    s3.create_bucket("builds");
    let name = format!("job-{HASH}.bin");
    std::fs::write(s3.dir().join("builds").join(&name), "of the endpoint").unwrap();
    let uri = format!("s3://builds/{name}");
    std::fs::create_dir(host.path(".aws")).unwrap();
    let profile = format!("[default]\nendpoint_url = {}\n", s3.endpoint());
    std::fs::write(host.path(".aws/config"), profile).unwrap();
    let run = |release: &ToolRelease, args: &[&str], more: &[(&str, &str)]| -> CommandOutcome {
        let mut command = release.command(&host, args);
        command.envs(s3.env()).env_remove("AWS_ENDPOINT_URL");
        command.envs(more.iter().copied());
        command.output().unwrap().into()
    };
    run(&old, &[&uri, "--path-style"], &[]).exits(0);
    let aws = [("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")];
    run(&new, &[&uri, "--offline"], &aws).exits(69);
    run(&new, &[&uri], &[]).exits(0);
    run(&new, &[&uri, "--offline"], &[]).exits(0);
    run(&new, &[&uri, "--offline"], &aws).exits(69);
}

#[test]
fn partial_download_of_killed_release_is_resumed_by_other_release() {
    for (first, second) in release_pairs().into_iter().flatten() {
        let label = format!("{} then {}", first.label, second.label);
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        let path = format!("/job-{HASH}.bin");
        let body = bytes(4 << 20, 3);
        origin.put(&path, body.clone());
        origin.fault(
            &path,
            OriginFault::Slow {
                bytes_per_second: 1 << 20,
            },
        );
        let url = origin.url(&path);
        let args = [url.as_str(), "--copy-to=first", "--loglevel=debug"];
        let mut leader = FetchRun::start(&host, "first", first.command(&host, &args));
        wait_until("some parts are finished", || {
            recorded_parts(&host).len() >= 4
        });
        let args = [url.as_str(), "--copy-to=second", "--loglevel=debug"];
        let follower = FetchRun::start(&host, "second", second.command(&host, &args));
        follower.wait_for("another process is fetching");
        leader.kill();
        follower.end().exits(0).logs("continuing an interrupted");
        assert!(host.read("second") == body, "{label}");
        assert_eq!(assert_blobs(&host), 1, "{label}");
    }
}

#[test]
fn concurrent_processes_of_both_releases_fetch_one_body() {
    let Some([(old, new), _]) = release_pairs() else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    let body = bytes(4 << 20, 9);
    origin.put(&path, body.clone());
    origin.fault(
        &path,
        OriginFault::Slow {
            bytes_per_second: 4 << 20,
        },
    );
    let url = origin.url(&path);
    let runs: Vec<FetchRun> = (0..24)
        .map(|n| {
            let release = if n % 2 == 0 { &old } else { &new };
            let copy = format!("--copy-to=out{n}");
            FetchRun::start(
                &host,
                &format!("out{n}"),
                release.command(&host, &[&url, &copy]),
            )
        })
        .collect();
    for run in runs {
        run.end().exits(0);
    }
    for n in 0..24 {
        assert!(host.read(format!("out{n}")) == body, "copy {n}");
    }
    assert_eq!(origin.bytes(&path), body.len() as u64);
    assert_eq!(assert_blobs(&host), 1);
}

#[test]
fn unpacked_tree_of_old_release_is_recognised_and_replaced() {
    let Some([(old, new), _]) = release_pairs() else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for (name, content) in [("one", "1"), ("two", "2")] {
        std::fs::create_dir(host.path(name)).unwrap();
        std::fs::write(host.path(name).join("file"), content).unwrap();
        let tar = host
            .program("tar")
            .args(["-czf", &format!("{name}.tgz"), "-C", name, "file"])
            .status();
        assert!(tar.unwrap().success());
        origin.put(
            &format!("/{name}-{HASH}.tgz"),
            host.read(format!("{name}.tgz")),
        );
    }
    let (one, two) = (
        origin.url(&format!("/one-{HASH}.tgz")),
        origin.url(&format!("/two-{HASH}.tgz")),
    );
    old.run(&host, &[&one, "--unpack-to=app"]).exits(0);
    std::fs::write(host.path("app/kept"), "by the job").unwrap();
    new.run(&host, &[&one, "--unpack-to=app"]).exits(0);
    assert_eq!(
        host.read("app/kept"),
        b"by the job",
        "the same digest changes nothing"
    );
    new.run(&host, &[&two, "--unpack-to=app"]).exits(0);
    assert_eq!(host.read("app/file"), b"2");
    assert!(!host.path("app/kept").exists());
}

#[test]
fn corrupt_archive_cached_by_old_release_is_fetched_again_once() {
    let Some([(old, new), _]) = release_pairs() else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let made = "seq 1000 >a && tar czf good.tgz a";
    let made = host.program("bash").args(["-c", made]).status();
    assert!(made.unwrap().success());
    let good = host.read("good.tgz");
    let path = "/cut-1.2.tgz";
    origin.put(path, good[..good.len() - 4].to_vec());
    let url = origin.url(path);
    old.run(&host, &[&url]).exits(0);
    let unpack = || new.run(&host, &[&url, "--unpack-to=out"]);
    unpack().exits(65).logs("fetching it again");
    assert_eq!(origin.bodies(path), 2, "fetched once only");
    // Published again under a name that never changes.
    origin.put(path, good);
    unpack().exits(0);
    unpack().exits(0);
    assert_eq!(origin.bodies(path), 3);
}

#[test]
fn running_program_of_one_release_survives_gc_of_other() {
    for (first, second) in release_pairs().into_iter().flatten() {
        let label = format!("{} runs, {} collects", first.label, second.label);
        let host = CacheHost::new();
        std::fs::create_dir(host.path("repo")).unwrap();
        let repository = format!("file://{}", host.path("repo").display());
        let build = host.path(format!("repo/job-{HASH}-here_x86_64.pex"));
        std::fs::write(build, program("echo started > \"$1\"; read line")).unwrap();
        let mut command = first.pexrun(&host, &repository, &["job", HASH, "mark"]);
        command.stdin(std::process::Stdio::piped());
        let running = FetchRun::start(&host, "running", command);
        wait_until("the program runs", || host.path("mark").exists());
        // The newer release would keep it because it was used within the hour.
        host.age_blobs();
        second.run(&host, &["gc", "--max-size=0"]).exits(0);
        assert_eq!(assert_blobs(&host), 1, "{label}");
        let again = second
            .pexrun(&host, &repository, &["--which", "job", HASH])
            .output()
            .unwrap();
        CommandOutcome::from(again).exits(0);
        drop(running);
    }
}
