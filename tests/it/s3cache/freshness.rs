//! When a cached copy is used without a request, when it is revalidated, and what happens when the origin fails.

use std::process::Command;

use hostkit_tests::origin::{OriginFault, OriginServer};
use hostkit_tests::{bin, find_program, or_skip};

use super::{CacheHost, HASH};

#[test]
fn hit_of_immutable_name_opens_no_socket() {
    let Some(strace) = or_skip("system calls of a hit", find_program("strace")) else {
        return;
    };
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    for name in [format!("/job-{HASH}.bin"), "/static.bin".to_owned()] {
        origin.put(&name, "bytes");
        host.s3cache([origin.url(&name)]).exits(0);
    }
    let calls = |path: &str| {
        let mut traced: Command = host.program(&strace);
        traced
            .args([
                "-f",
                "-qq",
                "-e",
                "trace=%network",
                "-e",
                "signal=none",
                "-o",
                "calls",
            ])
            .arg(bin("s3cache"))
            .args([&origin.url(path), "--copy-to=out"])
            .args(host.own_flags());
        let outcome = traced.output().unwrap();
        assert!(outcome.status.success(), "{outcome:?}");
        String::from_utf8(host.read("calls")).unwrap()
    };
    assert_eq!(calls(&format!("/job-{HASH}.bin")), "");
    assert!(
        calls("/static.bin").contains("socket("),
        "the trace shows one when there is one"
    );
}

#[test]
fn mutable_name_is_revalidated_each_time_and_fetched_when_changed() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let etag = origin.put("/static.bin", "first");
    let url = origin.url("/static.bin");
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    for _ in 0..2 {
        origin.reset_counters();
        host.s3cache([&url, "--copy-to=out"]).exits(0);
        let asked = origin.requests();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(asked[0].if_none_match.as_ref(), Some(&etag));
        assert_eq!(origin.bodies("/static.bin"), 0);
    }
    origin.put("/static.bin", "second");
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    assert_eq!(host.read("out"), b"second");
    assert_eq!(origin.bodies("/static.bin"), 1);
}

#[test]
fn unreachable_origin_serves_cached_copy_with_warning() {
    let host = CacheHost::new();
    let origin = OriginServer::start();
    origin.put("/static.bin", "kept");
    let (url, other) = (origin.url("/static.bin"), origin.url("/other.bin"));
    host.s3cache([&url]).exits(0);
    drop(origin);
    let outcome = host.s3cache([&url, "--copy-to=out"]).exits(0);
    assert!(
        outcome.stderr.contains("WARN") || outcome.stderr.contains("warning"),
        "{}",
        outcome.stderr
    );
    outcome.logs("may be outdated").logs(&url);
    assert_eq!(host.read("out"), b"kept");
    host.s3cache([&other, "--copy-to=none"]).exits(69);
    assert!(!host.path("none").exists());
}

#[test]
fn failing_or_silent_origin_serves_cached_copy() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "kept");
    let url = origin.url("/static.bin");
    host.s3cache([&url]).exits(0);
    for fault in [
        OriginFault::Status {
            code: 503,
            retry_after: Some(60),
        },
        OriginFault::Latency(std::time::Duration::from_secs(60)),
    ] {
        origin.fault("/static.bin", fault);
        let args = [url.as_str(), "--copy-to=out", "--stall-timeout=200ms"];
        host.s3cache(args).exits(0).logs("may be outdated");
        assert_eq!(host.read("out"), b"kept");
    }
}

#[test]
fn removed_or_forbidden_object_is_not_served_from_cache() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "kept");
    let url = origin.url("/static.bin");
    host.s3cache([&url]).exits(0);
    origin.fault(
        "/static.bin",
        OriginFault::Status {
            code: 403,
            retry_after: None,
        },
    );
    host.s3cache([&url, "--copy-to=out"]).exits(77);
    origin.clear_faults();
    origin.remove("/static.bin");
    host.s3cache([&url, "--copy-to=out"]).exits(66);
    assert!(!host.path("out").exists());
}

#[test]
fn offline_and_immutable_send_no_request_and_revalidate_always_does() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let hashed = format!("/job-{HASH}.bin");
    for path in ["/static.bin", &hashed] {
        origin.put(path, "bytes");
        host.s3cache(["--offline", &origin.url(path)])
            .exits(69)
            .logs("without --offline");
        host.s3cache(["--immutable", &origin.url(path)]).exits(0);
    }
    origin.reset_counters();
    for flag in ["--offline", "--immutable"] {
        host.s3cache([flag, &origin.url("/static.bin")]).exits(0);
    }
    assert_eq!(origin.connections(), 0);
    host.s3cache(["--revalidate", &origin.url(&hashed)])
        .exits(0);
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(origin.bodies(&hashed), 0);
}

#[test]
fn server_that_rejects_head_is_queried_by_get() {
    const QUERY: &str = "?X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=";
    for (code, redirected) in [401, 403, 405, 501]
        .into_iter()
        .flat_map(|code| [(code, false), (code, true)])
    {
        let what = format!("{code}, redirected: {redirected}");
        let (host, origin) = (CacheHost::new(), OriginServer::start());
        let path = "/bucket/static.bin";
        let url = |signature: &str| match redirected {
            true => origin.url("/repo/static.bin"),
            false => origin.url(&format!("{path}{QUERY}{signature}")),
        };
        let publish = |text: &'static str, signature: &str| {
            origin.put(path, text);
            origin.fault(path, OriginFault::HeadStatus(code));
            let signed = OriginFault::Redirect(format!("{path}{QUERY}{signature}"));
            origin.fault("/repo/static.bin", signed);
        };
        publish("first", "1");
        host.s3cache([&url("1"), "--copy-to=out"]).exits(0);
        // Another signature is not another object.
        origin.reset_counters();
        host.s3cache([&url("2"), "--copy-to=out"]).exits(0);
        assert_eq!(origin.bodies(path), 0, "{what}: it is not fetched again");
        let asked = origin.requests();
        let last = asked.last().unwrap();
        assert!(last.if_none_match.is_some(), "{what}: {asked:?}");
        publish("second", "3");
        host.s3cache([&url("3"), "--copy-to=out"]).exits(0);
        assert_eq!(host.read("out"), b"second", "{what}");
        let outcome = host.s3cache(["exists", "--json", &url("4")]).exits(0);
        assert!(
            outcome.stdout.contains("\"size\":6"),
            "{what}: {}",
            outcome.stdout
        );
        publish("", "5");
        host.s3cache(["exists", &url("5")]).exits(0);
        let closed = OriginFault::Status {
            code: 403,
            retry_after: None,
        };
        origin.fault(path, closed);
        host.s3cache([&url("6"), "--copy-to=out"]).exits(77);
        host.s3cache(["exists", &url("6")]).exits(77);
    }
}

#[test]
fn server_without_etags_is_fetched_from_again() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    origin.put("/static.bin", "first");
    origin.fault("/static.bin", OriginFault::NoEtag);
    let url = origin.url("/static.bin");
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    origin.put("/static.bin", "second");
    host.s3cache([&url, "--copy-to=out"]).exits(0);
    assert_eq!(host.read("out"), b"second");
}

#[test]
fn changed_object_under_immutable_name_is_fetched_when_digest_differs() {
    let (host, origin) = (CacheHost::new(), OriginServer::start());
    let path = format!("/job-{HASH}.bin");
    origin.put(&path, "first");
    host.s3cache([origin.url(&path)]).exits(0);
    origin.put(&path, "other");
    let wanted = format!("--sha256={}", super::sha256(b"other"));
    host.s3cache([&origin.url(&path), &wanted, "--copy-to=out"])
        .exits(0);
    assert_eq!(host.read("out"), b"other");
}
