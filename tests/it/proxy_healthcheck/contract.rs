//! The contract with Aurora: the port, the responses, the log, the history, grace and snoozing.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::process::Command;

use hostkit_tests::misbehavior::{ConnectionBehavior, MisbehavingServer, format_response};
use hostkit_tests::{free_port, or_skip, skip, wait_until};
use serde_json::Value;

use super::{CheckerProcess, LOCALHOST, ask};

fn healthy() -> MisbehavingServer {
    MisbehavingServer::start(ConnectionBehavior::Answer(format_response("200 OK", "ok")))
}

#[test]
fn health_response_has_a_length_and_closes_the_connection() {
    let server = healthy();
    let checker = CheckerProcess::before(server.port(), &[]);
    for (path, status, body) in [("/health", 200, "ok"), ("/health?x=1", 200, "ok")] {
        let answer = checker.ask("GET", path);
        assert_eq!(answer.status_and_body(), (status, body));
        for header in [
            "content-length: 2",
            "connection: close",
            "cache-control: no-store",
        ] {
            assert!(answer.head.contains(header), "{}", answer.head);
        }
    }
    let head = checker.ask("HEAD", "/health");
    assert_eq!(head.status_and_body(), (200, ""));
    assert!(head.head.contains("content-length: 2"), "{}", head.head);
    assert_eq!(checker.ask("GET", "/").status, 404);
    assert_eq!(checker.ask("GET", "/quitquitquit").status, 405);
    assert_eq!(checker.ask("POST", "/health").status, 405);
    drop(server);
    let answer = checker.ask("GET", "/health");
    assert_eq!(answer.status_and_body(), (503, "refused"));
    assert!(answer.head.contains("content-length: 7"), "{}", answer.head);
}

#[test]
fn both_address_families_are_served_on_one_port() {
    let server = healthy();
    let checker = CheckerProcess::before(server.port(), &[]);
    checker.logs(&format!(
        "health=127.0.0.1:{} [::1]:{}",
        checker.port, checker.port
    ));
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let here = TcpListener::bind((v6, 0)).map_err(|error| error.to_string());
    if or_skip("IPv6", here).is_some() {
        assert_eq!(
            ask(v6, checker.port, "GET", "/health").status_and_body(),
            (200, "ok")
        );
    }
}

#[test]
fn host_without_ipv6_is_served_on_ipv4() {
    // In a network namespace of its own, where loopback has no IPv6 address.
    let script =
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up && exec \"$@\"";
    let launcher = ["unshare", "--net", "sh", "-c", script, "sh"];
    let can = Command::new(launcher[0])
        .args(&launcher[1..])
        .arg("true")
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        return skip(
            "a host without IPv6",
            "no namespaces for this user, or no ip(8)",
        );
    }
    let checker = CheckerProcess::start_by(&launcher, &["--tcp", "--test-port=1"]);
    checker.logs("IPv6 is not available");
    assert!(!checker.log().contains("[::1]"), "{}", checker.log());
}

#[test]
fn unhealthy_status_200_returns_the_reason_for_auroras_page() {
    let checker = CheckerProcess::before(free_port(), &["--unhealthy-status=200"]);
    assert_eq!(checker.health(), (200, "refused".to_owned()));
    assert_eq!(checker.results()[0]["ok"], false);
}

#[test]
fn unhealthy_status_keeps_its_old_name_as_flag_and_variable() {
    let port = free_port();
    for name in ["--unhealthy-status", "--sick-status", "--sick_status"] {
        let checker = CheckerProcess::before(port, &[&format!("{name}=200")]);
        assert_eq!(checker.health(), (200, "refused".to_owned()), "{name}");
    }
    let test_port = format!("--test-port={port}");
    for name in ["UNHEALTHY_STATUS", "SICK_STATUS"] {
        let variable = format!("HOSTKIT_PROXY_HEALTHCHECK_{name}=200");
        let checker = CheckerProcess::start_by(&["env", &variable], &["--url=/", &test_port]);
        assert_eq!(checker.health(), (200, "refused".to_owned()), "{name}");
    }
}

#[test]
fn grace_returns_ok_until_the_first_success() {
    let port = free_port();
    let checker = CheckerProcess::before(port, &["--grace=1h"]);
    assert_eq!(checker.health(), (200, "ok".to_owned()));
    checker.logs("unhealthy within the grace period reason=refused");
    let server = MisbehavingServer::on(
        (LOCALHOST, port).into(),
        ConnectionBehavior::Answer(format_response("200 OK", "")),
    );
    assert_eq!(checker.health(), (200, "ok".to_owned()));
    drop(server);
    assert_eq!(checker.health(), (503, "refused".to_owned()));
    assert_eq!(checker.results()[2]["reason"], "refused");
    assert_eq!(checker.results()[2]["ok"], true);
    // And it has an end.
    let checker = CheckerProcess::before(port, &["--grace=1ms"]);
    wait_until("the grace ends", || {
        checker.health() == (503, "refused".to_owned())
    });
}

#[test]
fn snoozed_task_is_not_checked() {
    let server = MisbehavingServer::start(ConnectionBehavior::Close);
    let checker = CheckerProcess::before(server.port(), &[]);
    let file = checker.sandbox.path().join(".healthchecksnooze");
    fs::write(&file, "").unwrap();
    assert_eq!(checker.health(), (200, "ok".to_owned()));
    assert_eq!(server.connections(), 0);
    checker.logs("checks snoozed reason=snoozed");
    fs::remove_file(file).unwrap();
    assert_eq!(checker.health(), (503, "closed".to_owned()));
}

#[test]
fn change_of_result_is_logged_once() {
    let server = healthy();
    let checker = CheckerProcess::before(server.port(), &[]);
    for _ in 0..5 {
        checker.health();
    }
    server.set_behavior(ConnectionBehavior::Close);
    for _ in 0..5 {
        checker.health();
    }
    checker.logs("WARNING proxy-healthcheck: unhealthy reason=closed");
    let log = checker.log();
    let results: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" reason="))
        .collect();
    assert_eq!(results.len(), 2, "{log}");
    assert!(
        results[0].contains("healthy reason=ok latency_ms="),
        "{log}"
    );
    assert!(results[1].contains("previous=ok"), "{log}");
}

#[test]
fn logstash_line_has_reason_and_latency() {
    let checker = CheckerProcess::before(
        free_port(),
        &["--logstash_format=True", "--logstash_tags=eight_ball"],
    );
    checker.health();
    checker.logs("\"reason\":\"refused\"");
    let log = checker.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let unhealthy = lines
        .iter()
        .find(|line| line["message"] == "unhealthy")
        .unwrap();
    assert_eq!(unhealthy["level"], "WARNING");
    assert_eq!(unhealthy["logger_name"], "proxy-healthcheck");
    assert!(unhealthy["latency_ms"].is_f64(), "{unhealthy}");
    assert_eq!(unhealthy["tags"][0], "eight_ball");
}

#[test]
fn history_has_the_last_results_newest_first() {
    let server = healthy();
    let checker = CheckerProcess::before(server.port(), &[]);
    let history = || serde_json::from_str::<Value>(&checker.ask("GET", "/history").body).unwrap();
    assert_eq!(history()["ok"], Value::Null, "nothing was checked yet");
    for _ in 0..70 {
        checker.health();
    }
    drop(server);
    checker.health();
    let history = history();
    assert_eq!(
        (&history["ok"], &history["reason"]),
        (&false.into(), &"refused".into())
    );
    assert_eq!(history["since"], history["results"][0]["time"]);
    let results = history["results"].as_array().unwrap();
    assert_eq!(results.len(), 64);
    assert_eq!(results[0]["reason"], "refused");
    for result in &results[1..] {
        assert_eq!(result["reason"], "ok");
        assert!(result["latency_ms"].as_f64().unwrap() > 0.0, "{result}");
        assert!(
            result["detail"]
                .as_str()
                .unwrap()
                .ends_with("/private/stats/ returned 200"),
            "{result}"
        );
    }
}

#[test]
fn probe_is_finished_after_aurora_has_given_up() {
    let server = MisbehavingServer::start(ConnectionBehavior::Stall(Vec::new()));
    let checker = CheckerProcess::before(server.port(), &[]);
    let mut aurora = TcpStream::connect((LOCALHOST, checker.port)).unwrap();
    aurora
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    wait_until("the server is probed", || server.connections() == 1);
    drop(aurora);
    checker.logs("unhealthy reason=timeout");
}

#[test]
fn server_response_cannot_forge_a_log_line() {
    let location = "HTTP/1.1 302 Found\r\nLocation: /\x1b[2J\tx\r\nContent-Length: 0\r\n\r\n";
    let server = MisbehavingServer::start(ConnectionBehavior::Answer(location.into()));
    let checker = CheckerProcess::before(server.port(), &["--expect-body=ok"]);
    checker.health();
    server.set_behavior(ConnectionBehavior::Answer(format_response(
        "200 OK",
        "x\r\n2020 INFO proxy-healthcheck: fine\x07",
    )));
    checker.health();
    checker.logs("badbody");
    let log = checker.log();
    assert!(!log.contains(['\x1b', '\x07', '\t']), "{log:?}");
    assert!(!log.contains("\n2020 INFO"), "{log}");
}

#[test]
fn admin_listener_serves_status_and_metrics() {
    let server = healthy();
    let admin = free_port();
    let checker = CheckerProcess::before(server.port(), &[&format!("--admin=127.0.0.1:{admin}")]);
    checker.logs(&format!("admin=127.0.0.1:{admin}"));
    let metrics = || ask(LOCALHOST, admin, "GET", "/metrics").body;
    assert!(
        !metrics().contains("\nhealthcheck_ok "),
        "there is no result yet"
    );
    checker.health();
    server.set_behavior(ConnectionBehavior::Close);
    checker.health();
    for line in [
        "healthcheck_ok 0",
        "healthcheck_checks_total 2",
        "healthcheck_probes_total{result=\"healthy\"} 1",
        "healthcheck_probes_total{result=\"unhealthy\"} 1",
        "healthcheck_probe_seconds_count 2",
        "# TYPE healthcheck_checks_total counter",
    ] {
        assert!(
            metrics().lines().any(|found| found == line),
            "{line} in {}",
            metrics()
        );
    }
    let status: Value =
        serde_json::from_str(&ask(LOCALHOST, admin, "GET", "/status").body).unwrap();
    assert_eq!(status["last"]["reason"], "closed");
    assert_eq!(
        (&status["checks"], &status["probes"]),
        (&2.into(), &2.into())
    );
    assert!(status["last_success_age_seconds"].is_f64(), "{status}");
}
