//! One artifact from a source to a path: requests, output, rejected arguments, and the exit code of each failure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::s3::S3Server;
use hostkit_tests::tls::CertificateAuthority;

use super::{CacheHost, HASH, bytes, every_file};

/// The path of an artifact that never changes.
fn immutable_path() -> String {
    format!("/pex/job-{HASH}.bin")
}

#[test]
fn cold_fetch_sends_one_request_and_warm_fetch_none() {
    let (host, origin, path) = (CacheHost::new(), OriginServer::start(), immutable_path());
    let body = bytes(100_000, 1);
    origin.put(&path, body.clone());
    host.s3cache([&origin.url(&path), "--copy-to=cold"])
        .exits(0);
    assert_eq!(origin.bodies(&path), 1);
    assert_eq!(origin.bytes(&path), 100_000);
    let asked: Vec<String> = origin.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(asked, [path.clone(), format!("{path}.sha256")]);
    origin.reset_counters();
    host.s3cache([&origin.url(&path), "--copy-to=warm"])
        .exits(0);
    assert_eq!(origin.connections(), 0);
    assert_eq!(host.read("cold"), body);
    assert_eq!(host.read("warm"), body);
}

#[test]
fn prefetch_prints_path_and_copy_prints_nothing() {
    let (host, origin, path) = (CacheHost::new(), OriginServer::start(), immutable_path());
    origin.put(&path, "what a job runs");
    let prefetch = host.s3cache([origin.url(&path)]).exits(0);
    let cached = prefetch.stdout.strip_suffix('\n').unwrap();
    assert_eq!(std::fs::read_to_string(cached).unwrap(), "what a job runs");
    assert!(
        cached.starts_with(host.cache().to_str().unwrap()),
        "{cached}"
    );
    assert!(cached.ends_with(&path[5..]), "{cached}: keeps its name");
    let copy = host.s3cache([&origin.url(&path), "--copy-to=out"]).exits(0);
    assert_eq!(copy.stdout, "");
}

#[test]
fn copy_replaces_file_and_has_requested_mode() {
    let (host, origin, path) = (CacheHost::new(), OriginServer::start(), immutable_path());
    origin.put(&path, "new");
    let mode = || host.path("out").metadata().unwrap().permissions().mode() & 0o7777;
    std::fs::write(host.path("out"), "something longer and older").unwrap();
    host.s3cache([&origin.url(&path), "--copy-to=out"]).exits(0);
    assert_eq!((host.read("out"), mode()), (b"new".to_vec(), 0o644));
    host.s3cache([&origin.url(&path), "--copy-to=out", "--mode=0750"])
        .exits(0);
    assert_eq!(mode(), 0o750);
    assert_eq!(
        every_file(&host.sandbox()).len(),
        1,
        "no other file is left"
    );
}

#[test]
fn copy_target_may_be_non_utf8() {
    let (host, origin, path) = (CacheHost::new(), OriginServer::start(), immutable_path());
    origin.put(&path, "new");
    let name = OsStr::from_bytes(b"out-\xff");
    let mut target = OsStr::new("--copy-to=").to_owned();
    target.push(name);
    host.s3cache([OsStr::new(&origin.url(&path)), &target])
        .exits(0);
    assert_eq!(host.read(name), b"new");
}

#[test]
fn directory_and_symlink_targets_are_rejected_before_any_request() {
    let (host, origin, path) = (CacheHost::new(), OriginServer::start(), immutable_path());
    origin.put(&path, "new");
    std::fs::create_dir(host.path("dir")).unwrap();
    std::fs::write(host.path("file"), "old").unwrap();
    std::os::unix::fs::symlink("file", host.path("link")).unwrap();
    for target in ["dir", "link", "missing/out"] {
        let outcome = host.s3cache([&origin.url(&path), &format!("--copy-to={target}")]);
        outcome.exits(73).logs(target);
    }
    assert_eq!(origin.connections(), 0);
    assert_eq!(host.read("file"), b"old");
}

#[test]
fn every_form_of_source_is_fetched() {
    let (host, s3, authority) = (
        CacheHost::new(),
        S3Server::start(),
        CertificateAuthority::new(),
    );
    let (plain, tls) = (OriginServer::start(), OriginServer::start_tls(&authority));
    let name = format!("job-{HASH}.bin");
    std::fs::write(host.path("source"), "the bytes").unwrap();
    std::fs::write(host.path(&name), "the bytes").unwrap();
    s3.create_bucket("builds");
    let put = ["put", "source", &format!("builds/pex/{name}")].map(str::to_owned);
    host.s3cache_env(put, &s3.env()).exits(0);
    plain.put(&immutable_path(), "the bytes");
    tls.put(&immutable_path(), "the bytes");
    let ca = format!("--ca-file={}", authority.ca().display());
    for source in [
        plain.url(&immutable_path()),
        tls.url(&immutable_path()),
        format!("file://{}", host.path(&name).display()),
        format!("s3://builds/pex/{name}"),
        format!("builds/pex/{name}"),
    ] {
        let host = CacheHost::new();
        let args = [source.as_str(), "--copy-to=out"];
        let outcome = if source.starts_with("http") {
            host.s3cache(args.iter().chain([&ca.as_str()]))
        } else {
            host.s3cache_env(args, &s3.env())
        };
        outcome.exits(0);
        assert_eq!(host.read("out"), b"the bytes", "{source}");
    }
}

#[test]
fn redirects_are_followed_up_to_limit_and_never_to_plain_http() {
    let (host, authority) = (CacheHost::new(), CertificateAuthority::new());
    let (plain, tls) = (OriginServer::start(), OriginServer::start_tls(&authority));
    let ca = format!("--ca-file={}", authority.ca().display());
    plain.put("/real-1.2", "there");
    plain.fault("/moved-1.2", OriginFault::Redirect("/real-1.2".into()));
    host.s3cache([&plain.url("/moved-1.2"), "--copy-to=out"])
        .exits(0);
    assert_eq!(host.read("out"), b"there");
    plain.fault("/loop-1.2", OriginFault::Redirect("/loop-1.2".into()));
    host.s3cache([plain.url("/loop-1.2")])
        .exits(69)
        .logs("in a loop");
    assert!(plain.requests().len() < 15, "{}", plain.requests().len());
    tls.fault("/down-1.2", OriginFault::Redirect(plain.url("/real-1.2")));
    host.s3cache([tls.url("/down-1.2"), ca])
        .exits(69)
        .logs("redirects to http");
}

#[test]
fn password_comes_from_netrc_and_missing_one_is_named() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.2", "for members");
    origin.require_basic("deploy", "hunter2");
    host.s3cache([origin.url("/a-1.2")])
        .exits(77)
        .logs("machine 127.0.0.1 login");
    let netrc = "machine 127.0.0.1 login deploy password hunter2\n";
    std::fs::write(host.path(".netrc"), netrc).unwrap();
    let outcome = host.s3cache([&origin.url("/a-1.2"), "--copy-to=out", "--loglevel=debug"]);
    assert!(!outcome.exits(0).stderr.contains("hunter2"));
    assert_eq!(host.read("out"), b"for members");
}

#[test]
fn each_status_has_its_exit_code() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for (code, exit) in [
        (403, 77),
        (404, 66),
        (410, 66),
        (401, 77),
        (400, 69),
        (500, 69),
    ] {
        let path = format!("/a-1.{code}");
        origin.fault(
            &path,
            OriginFault::Status {
                code,
                retry_after: None,
            },
        );
        let outcome = host
            .s3cache([&origin.url(&path), "--copy-to=out"])
            .exits(exit);
        let outcome = outcome.logs(&origin.url(&path)).stderr;
        assert!(
            outcome.lines().last().unwrap().starts_with("s3cache: "),
            "{outcome}"
        );
        assert!(!host.path("out").exists());
    }
    let asked = |path| origin.requests().iter().filter(|r| r.path == path).count();
    assert_eq!(asked("/a-1.404"), 1, "a 404 is final");
    assert!(
        (3..10).contains(&asked("/a-1.500")),
        "tried again, not for ever"
    );
}

#[test]
fn retry_after_delays_next_attempt() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.2", "at last");
    let busy = OriginFault::Status {
        code: 503,
        retry_after: Some(1),
    };
    origin.fault_times("/a-1.2", busy, 2);
    let began = Instant::now();
    host.s3cache([&origin.url("/a-1.2"), "--copy-to=out"])
        .exits(0);
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(host.read("out"), b"at last");
    assert_eq!(origin.bodies("/a-1.2"), 1);
}

#[test]
fn refused_connection_is_69_and_names_url() {
    let host = CacheHost::new();
    let url = format!("http://127.0.0.1:{}/a-1.2", hostkit_tests::free_port());
    let outcome = host.s3cache([&url, "--copy-to=out"]).exits(69).logs(&url);
    assert!(outcome.stderr.contains("because:"), "{}", outcome.stderr);
}

#[test]
fn timeout_bounds_whole_fetch() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.2", bytes(1000, 1));
    origin.fault("/a-1.2", OriginFault::Stall(10));
    host.s3cache([&origin.url("/a-1.2"), "--copy-to=out", "--timeout=300ms"])
        .exits(75)
        .logs("--timeout");
    assert!(!host.path("out").exists());
}

#[test]
fn secrets_in_url_are_masked_everywhere() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/a-1.2", "presigned");
    let url =
        origin.url("/a-1.2?X-Amz-Credential=AKIDSECRET&X-Amz-Signature=hunter2&token=hunter3");
    let gone = origin.url("/b-1.2?X-Amz-Signature=hunter2");
    let outcome = host
        .s3cache([&url, "--copy-to=out", "--loglevel=debug"])
        .exits(0);
    let failed = host.s3cache([&gone, "--loglevel=debug"]).exits(66);
    let refused = host.s3cache(["http://me:hunter2@127.0.0.1/a-1.2"]).exits(2);
    let logs = [outcome.stderr, failed.stderr, refused.stderr].concat();
    let listed = host.s3cache(["ls", "--json"]).exits(0).stdout;
    let kept: Vec<u8> = every_file(&host.cache())
        .iter()
        .flat_map(|file| std::fs::read(file).unwrap())
        .collect();
    let kept = String::from_utf8_lossy(&kept).into_owned();
    for secret in ["hunter2", "hunter3", "AKIDSECRET"] {
        for text in [&logs, &listed, &kept] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    assert_eq!(
        origin.requests()[0]
            .query
            .as_deref()
            .unwrap()
            .split('&')
            .count(),
        3
    );
}

#[test]
fn invalid_arguments_are_usage_errors() {
    let host = CacheHost::new();
    for args in [
        &[][..],
        &["./a.pex"],
        &["ftp://h/a"],
        &["b/k", "--sha256=abc"],
        &["b/k", "--mode=99"],
        &["b/k", "--no-such-flag"],
        &["b/k", "--offline", "--revalidate"],
        &["b/k.txt", "--unpack-to=dir"],
        &["b/k", "--client-cert=x"],
        &["https://h/dir/"],
        &["put", "k", "https://h/k"],
    ] {
        let outcome = host.s3cache(args).exits(2);
        assert!(!outcome.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn invalid_config_names_file_line_and_key() {
    let host = CacheHost::new();
    std::fs::write(host.path("c.yaml"), "max-size: 1G\ntime-out: 3\n").unwrap();
    host.s3cache(["b/k", "--config=c.yaml"])
        .exits(78)
        .logs("c.yaml:2:")
        .logs("`time-out`")
        .logs("`timeout`");
    std::fs::write(host.path("c.yaml"), "max-size: lots\n").unwrap();
    host.s3cache(["b/k", "--config=c.yaml"])
        .exits(78)
        .logs("`max-size`: invalid value `lots`");
    host.s3cache(["b/k", "--config=none.yaml"])
        .exits(78)
        .logs("none.yaml");
}

#[test]
fn environment_and_config_act_as_flags_do() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "one");
    let url = origin.url("/static.bin");
    host.s3cache([&url]).exits(0);
    origin.reset_counters();
    let env = [("HOSTKIT_S3CACHE_OFFLINE".to_owned(), "1".to_owned())];
    host.s3cache_env([&url], &env).exits(0);
    assert_eq!(origin.connections(), 0);
    // A flag beats the environment.
    host.s3cache_env([url.as_str(), "--offline=False"], &env)
        .exits(0);
    assert_eq!(origin.requests().len(), 1);
}
