//! The access log, `/status`, `/metrics`, purge and reload.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use hostkit_tests::authproxy::{AuthproxyProcess, exchange_bytes, send_request};
use hostkit_tests::permissions::{self, PermissionsServer};
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{ChildGuard, CommandOutcome, bin, free_port, wait_limit, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const KEY: &str = "some-key";

/// Writes a key file with one key, with the right `all`, and returns its flag.
fn keys(directory: &Path) -> String {
    let path = directory.join("keys.yaml");
    permissions::write_acl_file(&path, &[(KEY, &["all"])]);
    format!("--acl-file={}", path.display())
}

/// The access log lines of a JSON log.
fn requests(log: &str) -> Vec<Value> {
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["logger_name"] == "authproxy.access")
        .collect()
}

#[test]
fn every_request_is_logged_with_key_target_and_result() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let args = [
        &*keys(scratch.path()),
        "--logstash_format=True",
        "--logstash-tags=a,b",
    ];
    let proxy = AuthproxyProcess::start_for_upstream(backend.port(), &args);
    let chain = "X-Forwarded-For: 192.0.2.7, 10.0.0.1";
    let id = "X-Request-Id: from-the-balancer";
    let answer = proxy.get("/a?x=1&apikey=some-key", &[chain, id]);
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.contains("x-request-id: from-the-balancer"),
        "{}",
        answer.head
    );
    assert_eq!(proxy.get("/b", &[]).status, 401);
    assert_eq!(proxy.get_with_key("/c", "made-up").status, 403);
    let mut lines = Vec::new();
    wait_until("three lines are logged", || {
        lines = requests(&proxy.log());
        lines.len() == 3
    });
    for (name, value) in [
        ("client", "192.0.2.7"),
        ("method", "GET"),
        ("path", "/a"),
        ("query", "x=1&apikey=***"),
        ("key_id", "some-key"),
        ("request_id", "from-the-balancer"),
        ("message", "GET /a 200"),
    ] {
        assert_eq!(lines[0][name], value, "{name}: {}", lines[0]);
    }
    assert_eq!(lines[0]["bytes_out"], 2, "{}", lines[0]);
    assert_eq!(lines[0]["tags"], serde_json::json!(["a", "b"]));
    let (took, server) = (&lines[0]["duration_ms"], &lines[0]["upstream_ms"]);
    assert!(
        took.as_f64().unwrap() >= server.as_f64().unwrap(),
        "{}",
        lines[0]
    );
    assert_eq!(
        (&lines[1]["reason"], &lines[1]["status"]),
        (&"missing_key".into(), &401.into())
    );
    assert_eq!(lines[2]["reason"], "unknown_key");
    assert_eq!(
        lines[2]["key_sha256"],
        permissions::hash_key("made-up")[..8]
    );
    assert!(!proxy.log().contains("made-up"), "{}", proxy.log());
}

#[test]
fn last_access_log_lines_are_written_before_exit() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let log = scratch.path().join("log");
    let port = free_port();
    let child = Command::new(bin("authproxy"))
        .arg(format!("--port={port}"))
        .arg(format!("--server={}", backend.url()))
        .args(["--right=all", "--lame-duck=0", &keys(scratch.path())])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut process = ChildGuard(child);
    wait_until("authproxy listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    assert_eq!(send_request(port, "GET", "/last", &[]).status, 401);
    hostkit_tests::haproxy::send_signal(process.0.id().try_into().unwrap(), Signal::SIGTERM);
    let ended = process.0.wait().unwrap();
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(
        ended.success() && log.contains("GET /last 401"),
        "{ended}: {log}"
    );
}

#[test]
fn blocked_access_log_reader_does_not_block_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let (port, admin) = (free_port(), free_port());
    let child = Command::new(bin("authproxy"))
        .arg(format!("--port={port}"))
        .arg(format!("--admin=127.0.0.1:{admin}"))
        .args([
            "--server=unix:/nowhere",
            "--right=all",
            &keys(scratch.path()),
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _process = ChildGuard(child);
    wait_until("authproxy listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    // Lines of 4 KiB: a pipe holds 64 KiB, the log 256 KiB.
    let request = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(4000));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(wait_limit())).unwrap();
    let dropped = || {
        let page = send_request(admin, "GET", "/metrics", &[]).body;
        let name = "authproxy_access_log_dropped_lines_total ";
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse::<u64>().unwrap()
    };
    for _ in 0..500 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).unwrap();
        assert!(
            answer[..read].starts_with(b"HTTP/1.1 401"),
            "requests are served"
        );
    }
    assert!(dropped() > 0);
}

#[test]
fn access_log_off_writes_no_lines() {
    let scratch = tempfile::tempdir().unwrap();
    let args = [
        "--server=unix:/nowhere",
        "--right=all",
        "--access-log=off",
        &*keys(scratch.path()),
    ];
    let proxy = AuthproxyProcess::start(&args);
    assert_eq!(proxy.get_with_key("/", KEY).status, 502);
    proxy.signal(Signal::SIGHUP);
    proxy.logs("configuration reload finished");
    assert!(!proxy.log().contains("authproxy.access"), "{}", proxy.log());
}

#[test]
fn status_and_metrics_report_current_values() {
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let acl = PermissionsServer::start();
    acl.add_keys([KEY]);
    let proxy = AuthproxyProcess::start_for_upstream(
        backend.port(),
        &[&format!("--acl-server={}", acl.url())],
    );
    assert_eq!(proxy.get_with_key("/", KEY).status, 200);
    assert_eq!(proxy.get_with_key("/", KEY).status, 200);
    assert_eq!(proxy.get("/", &[]).status, 401);
    let status = proxy.status();
    for (pointer, value) in [
        ("/phase", Value::from("serving")),
        ("/config/error", Value::Null),
        ("/fail_open", false.into()),
        ("/permissions/servers/0/answered", 1.into()),
        ("/permissions/servers/0/breaker", "closed".into()),
        ("/cache/positive_entries", 1.into()),
        ("/cache/hits", 1.into()),
        ("/cache/memcached", serde_json::json!([])),
    ] {
        assert_eq!(
            status.pointer(pointer),
            Some(&value),
            "{pointer} of {status}"
        );
    }
    assert!(
        status["version"].is_string() && status["config"]["sha256"].is_string(),
        "{status}"
    );
    assert!(
        status
            .pointer("/permissions/servers/0/last_success_age_seconds")
            .is_some(),
        "{status}"
    );
    for (name, value) in [
        ("authproxy_requests_total{route=\"none\",code=\"2xx\"}", 2.0),
        ("authproxy_requests_total{route=\"none\",code=\"4xx\"}", 1.0),
        (
            "authproxy_error_responses_total{reason=\"missing_key\"}",
            1.0,
        ),
        (
            "authproxy_key_requests_total{id=\"some-key\",result=\"allowed\"}",
            2.0,
        ),
        ("authproxy_request_duration_seconds_count", 3.0),
        ("authproxy_upstream_response_duration_seconds_count", 2.0),
        ("authproxy_requests_in_flight", 0.0),
        ("authproxy_cache_lookups_total{result=\"hit\"}", 1.0),
        ("authproxy_cache_queries_total{result=\"backend\"}", 1.0),
        ("authproxy_draining", 0.0),
    ] {
        assert_eq!(proxy.metric(name), Some(value), "{name}");
    }
    assert_eq!(proxy.metric_sum("authproxy_permissions_backend_up"), 1.0);
    assert_eq!(proxy.request_admin("GET", "/health").body, "ok");
    assert_eq!(proxy.request_admin("POST", "/drain").status, 202);
    assert_eq!(proxy.request_admin("GET", "/health").status, 503);
    assert_eq!(proxy.status()["phase"], "lame duck");
    assert_eq!(proxy.metric("authproxy_draining"), Some(1.0));
}

#[test]
fn purged_key_is_looked_up_again() {
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let acl = PermissionsServer::start();
    acl.add_keys([KEY, "second-key"]);
    let proxy = AuthproxyProcess::start_for_upstream(
        backend.port(),
        &[&format!("--acl-server={}", acl.url())],
    );
    let hash = permissions::hash_key(KEY);
    let mut asked = 1;
    assert_eq!(proxy.get_with_key("/", KEY).status, 200);
    assert_eq!(proxy.get_with_key("/", "second-key").status, 200);
    for query in [
        format!("key_sha256={hash}"),
        format!("id={}", permissions::key_id(KEY)),
        "all".to_owned(),
    ] {
        assert_eq!(proxy.get_with_key("/", KEY).status, 200);
        assert_eq!(acl.request_count_for(KEY), asked, "remembered");
        let answer = proxy.request_admin("POST", &format!("/purge?{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let all = if query == "all" { 2 } else { 1 };
        assert_eq!(
            answer.body.trim(),
            format!("{{\"purged\":{all}}}"),
            "{query}"
        );
        assert_eq!(proxy.get_with_key("/", KEY).status, 200);
        asked += 1;
        assert_eq!(acl.request_count_for(KEY), asked, "{query}");
    }
    for query in [
        "",
        "?",
        "?id=",
        "?key_sha256=some-key",
        "?all&id=x",
        "?other",
    ] {
        let answer = proxy.request_admin("POST", &format!("/purge{query}"));
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(!answer.body.contains(KEY), "{answer:?}");
    }
    assert_eq!(proxy.request_admin("GET", "/purge").status, 405);
}

#[test]
fn valid_configuration_applies_on_reload_and_invalid_one_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let file = scratch.path().join("authproxy.yaml");
    let always = format!(
        "server: {}\n{}\n",
        backend.url(),
        keys(scratch.path())[2..].replace('=', ": ")
    );
    let write = |rest: &str| std::fs::write(&file, format!("{always}{rest}")).unwrap();
    write("right: all\n");
    let proxy = AuthproxyProcess::start(&["--config", file.to_str().unwrap()]);
    let before = proxy.status();
    // An existing connection follows, too.
    let mut kept = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    kept.set_read_timeout(Some(wait_limit())).unwrap();
    let mut over = || {
        let request = format!("GET /open HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\n\r\n");
        kept.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![0; 4096];
        let read = kept.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..read.min(12)]).into_owned()
    };
    assert_eq!(over(), "200");
    assert_eq!(proxy.get("/open", &[]).status, 401);

    write(
        "right: other\nopen: /open/below\ncors: {allow-origin: 'https://a.example'}\nserver-connections: 7\nthreads: 1\nlame-duck: 1\n",
    );
    proxy.signal(Signal::SIGHUP);
    proxy.logs("configuration reload finished");
    proxy.logs("setting=lame-duck");
    assert_eq!(over(), "403");
    let answer = proxy.get_with_key("/", KEY);
    assert_eq!(answer.status, 403);
    assert!(
        answer
            .head
            .contains("access-control-allow-origin: https://a.example"),
        "{}",
        answer.head
    );
    assert_eq!(proxy.get("/open/below/x", &[]).status, 200);
    let after = proxy.status();
    assert_ne!(before["config"]["sha256"], after["config"]["sha256"]);

    for wrong in [
        "right: [all\n",
        "rihgt: all\n",
        "timeout: 0\n",
        "key-header: host\n",
    ] {
        let refused = proxy
            .metric("authproxy_config_reloads_total{result=\"failure\"}")
            .unwrap();
        write(wrong);
        proxy.signal(Signal::SIGHUP);
        wait_until("the configuration is refused", || {
            let now = proxy.metric("authproxy_config_reloads_total{result=\"failure\"}");
            now == Some(refused + 1.0)
        });
        assert_eq!(
            proxy.get("/open/below/x", &[]).status,
            200,
            "the one before: {wrong}"
        );
        let status = proxy.status();
        assert!(status["config"]["error"].is_string(), "{wrong}: {status}");
        assert_eq!(
            status["config"]["sha256"], after["config"]["sha256"],
            "{wrong}"
        );
    }
    proxy.logs("did you mean `right`?");
    write("right: all\n");
    proxy.signal(Signal::SIGHUP);
    wait_until("the backend is healthy again", || {
        proxy.status()["config"]["error"].is_null()
    });
    assert_eq!(over(), "200");
    assert_eq!(
        proxy.status()["config"]["sha256"],
        before["config"]["sha256"]
    );
}

fn check(directory: &Path, line: &str) -> CommandOutcome {
    Command::new(bin("authproxy"))
        .current_dir(directory)
        .arg("--check")
        .args(line.split_whitespace())
        .output()
        .unwrap()
        .into()
}

#[test]
fn check_reads_all_files_and_binds_no_port() {
    let scratch = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = format!(
        "--listen=127.0.0.1:{port} --server=http://localhost:1 --right=all {}",
        keys(scratch.path())
    );
    let good = check(scratch.path(), &line).exits(0);
    for message in [
        &*port.to_string(),
        "http://localhost:1",
        "right                   all (--right)",
        "keys: 1",
    ] {
        assert!(good.stdout.contains(message), "{message}: {}", good.stdout);
    }
    assert_eq!(good.stderr, "");
    check(
        scratch.path(),
        "--port=1 --server=http://localhost:2 --right=all",
    )
    .exits(78)
    .logs("missing permissions backend");
    check(scratch.path(), "--config=missing.yaml")
        .exits(78)
        .logs("missing.yaml");
    check(scratch.path(), "--no-such-flag").exits(2);
    std::fs::write(scratch.path().join("keys.yaml"), "keys: [{id: a}]\n").unwrap();
    check(scratch.path(), &line).exits(78).logs("keys.yaml");
    check(scratch.path(), &line.replace("keys.yaml", "nowhere.yaml"))
        .exits(78)
        .logs("nowhere.yaml");
}

#[test]
fn second_process_cannot_bind_same_port() {
    let scratch = tempfile::tempdir().unwrap();
    let proxy = AuthproxyProcess::start(&[
        "--server=unix:/nowhere",
        "--right=all",
        &*keys(scratch.path()),
    ]);
    let second: CommandOutcome = Command::new(bin("authproxy"))
        .arg(format!("--port={}", proxy.port()))
        .args([
            "--server=unix:/nowhere",
            "--right=all",
            &keys(scratch.path()),
        ])
        .output()
        .unwrap()
        .into();
    second.exits(73).logs("stop the process that listens there");
}

#[test]
fn own_responses_suit_machines_people_and_browsers() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("authproxy.yaml");
    let mut text = "server: unix:/nowhere\nright: all\nhealth-path: /here\n".to_owned();
    writeln!(
        text,
        "cors: {{allow-origin: '*', allow-headers: x-api-key}}"
    )
    .unwrap();
    std::fs::write(&file, text).unwrap();
    let proxy =
        AuthproxyProcess::start(&["--config", file.to_str().unwrap(), &keys(scratch.path())]);
    let answer = proxy.get("/", &["X-Request-Id: mine"]);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&body["error"], &body["request_id"]),
        (&"missing_key".into(), &"mine".into())
    );
    for line in [
        "content-type: application/json",
        "cache-control: no-store",
        "www-authenticate: ApiKey realm=\"api\", Bearer realm=\"api\"",
        "access-control-allow-origin: *",
        "access-control-allow-headers: x-api-key",
        "x-request-id: mine",
    ] {
        assert!(answer.head.contains(line), "{line}: {}", answer.head);
    }
    let head = send_request(proxy.port(), "HEAD", "/", &[]);
    assert_eq!((head.status, head.body.as_str()), (401, ""));
    assert!(
        head.head
            .contains(&format!("content-length: {}", answer.body.len() + 28)),
        "{}",
        head.head
    );
    let answer = proxy.get_with_key("/", KEY);
    assert_eq!(answer.status, 502, "the server is away: {answer:?}");
    let bytes = exchange_bytes(
        proxy.port(),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    );
    let text = String::from_utf8_lossy(&bytes);
    assert!(
        text.starts_with("HTTP/1.1 400") && text.contains("invalid_request"),
        "{text}"
    );
    assert!(text.to_lowercase().contains("connection: close"), "{text}");
    let health = proxy.get("/here", &[]);
    assert_eq!((health.status, health.body.as_str()), (200, "ok"));
}
