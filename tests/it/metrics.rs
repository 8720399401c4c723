//! `/metrics` of every daemon: names in golden files, and checked by promtool.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use hostkit_tests::authproxy::send_request;
use hostkit_tests::memcached::MemcachedServer;
use hostkit_tests::permissions::{PermissionsServer, write_acl_file};
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{
    ChildGuard, CommandOutcome, bin, find_program, free_port, or_skip, wait_until,
};
use serde_json::json;

/// Runs `promtool check metrics` on a page: no output and exit code 0 if it is valid and follows the conventions.
fn promtool(program: &Path, page: &str) -> CommandOutcome {
    let mut child = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

/// Name, type and label names of each metric of a page in Prometheus' text format, a line each.
fn metric_names(page: &str) -> String {
    let described = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut lines: Vec<String> = described
        .map(|(name, metric_type)| {
            let samples = page.lines().filter_map(|line| line.strip_prefix(name));
            let labels = samples.filter_map(|line| {
                let (suffix, labels) = line.split_once('{')?;
                matches!(suffix, "" | "_bucket").then(|| labels.rsplit_once('}'))?
            });
            let labels = labels.flat_map(|(labels, _)| labels.split("\","));
            let labels: BTreeSet<&str> =
                labels.filter_map(|label| label.split('=').next()).collect();
            let labels: Vec<&str> = labels.into_iter().collect();
            format!("{name} {metric_type} {{{}}}\n", labels.join(","))
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// Compares the names of a page with the golden file of its daemon, which `HOSTKIT_BLESS=1` renews.
fn check_names(daemon: &str, page: &str) {
    let file = format!("{}/golden/metrics/{daemon}.txt", env!("CARGO_MANIFEST_DIR"));
    let names = metric_names(page);
    if std::env::var("HOSTKIT_BLESS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, &names).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(names, expected, "{file}: HOSTKIT_BLESS=1 renews it");
}

#[test]
fn metrics_of_every_daemon_pass_promtool_and_come_in_both_formats() {
    let Some(program) = or_skip("promtool", find_program("promtool")) else {
        return;
    };
    let Some(memcached) = or_skip("memcached", MemcachedServer::start()) else {
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).display().to_string();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let acl = PermissionsServer::start();
    acl.add_key("key", json!({"rights": ["read"]}));
    write_acl_file(&temp.path().join("keys.yaml"), &[("key", &["read"])]);
    std::fs::write(path("secret"), [7; 32]).unwrap();
    std::fs::write(path("app.log"), "{\"a\": 1}\n").unwrap();
    std::fs::create_dir_all(path(".logs/app/0")).unwrap();
    std::fs::write(path(".logs/app/0/stderr"), "{\"a\": 1}\n").unwrap();
    let synapse = json!({
        "services": {},
        "haproxy": {
            "global": ["maxconn 10"], "defaults": ["timeout connect 1s"], "do_reloads": false,
            "config_file_path": path("haproxy.cfg"), "socket_file_path": path("haproxy.sock"),
            "state_file_path": path("state.json"),
        },
    });
    std::fs::write(path("synapse.yaml"), synapse.to_string()).unwrap();
    let port = free_port();
    let key = "X-API-Key: key";
    for (tool, args, requests) in [
        (
            "authproxy",
            vec![
                format!("--server={}", backend.url()),
                "--right=read".to_owned(),
                format!("--acl-server={}", acl.url()),
                "--cache=1".to_owned(),
                format!("--memcache-servers={}", memcached.address()),
                format!("--cache-secret-file={}", path("secret")),
                format!("--port={port}"),
            ],
            &[
                ("/", &[key][..], 200),
                ("/", &[], 401),
                ("/", &["X-API-Key: other"], 403),
            ][..],
        ),
        (
            "authproxy",
            vec![
                "serve-acl".to_owned(),
                format!("--listen=127.0.0.1:{port}"),
                format!("--acl-file={}", path("keys.yaml")),
            ],
            &[("/health", &[], 200), ("/", &[], 404)],
        ),
        (
            "proxy-healthcheck",
            vec![
                format!("--port={port}"),
                "--url=/".to_owned(),
                format!("--test_port={}", backend.port()),
            ],
            &[("/health", &[], 200)],
        ),
        (
            "log-healthcheck",
            [
                "--app-directory",
                "app",
                "--line-pattern",
                "{",
                "--freshness",
                "100",
            ]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("--port={port}")])
            .collect(),
            &[("/health", &[], 200)],
        ),
        ("synapse", vec!["-c".to_owned(), path("synapse.yaml")], &[]),
    ] {
        let admin = free_port();
        let child = Command::new(bin(tool))
            .args(&args)
            .arg(format!("--admin=127.0.0.1:{admin}"))
            .current_dir(temp.path())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let mut process = ChildGuard(child);
        let wanted = if requests.is_empty() {
            vec![admin]
        } else {
            vec![admin, port]
        };
        wait_until("the daemon listens", || {
            let ended = process.0.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{tool}: {}",
                std::fs::read_to_string(path("log")).unwrap()
            );
            wanted
                .iter()
                .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        for (path, headers, status) in requests {
            let answer = send_request(port, "GET", path, headers);
            assert_eq!(answer.status, *status, "{tool} {args:?}: {answer:?}");
        }
        let plain = send_request(admin, "GET", "/metrics", &[]);
        assert_eq!(
            plain.header("content-type"),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        let checked = promtool(&program, &plain.body);
        assert_eq!(
            (
                checked.code,
                checked.stdout.as_str(),
                checked.stderr.as_str()
            ),
            (0, "", ""),
            "{tool} {args:?}: {}",
            plain.body
        );
        match args[0].as_str() {
            "serve-acl" => check_names("authproxy-serve-acl", &plain.body),
            // Its metrics are declared in a table with a test of its own.
            _ if tool == "synapse" => {}
            _ => check_names(tool, &plain.body),
        }
        let open = send_request(
            admin,
            "GET",
            "/metrics",
            &["Accept: application/openmetrics-text; version=1.0.0"],
        );
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(open.header("content-type"), Some(content_type));
        assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
        // The samples are the same; those of the second page may be more.
        let samples = |body: &str| -> BTreeSet<String> {
            let lines = body.lines().filter(|line| !line.starts_with('#'));
            lines
                .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
                .collect()
        };
        let (plain, open) = (samples(&plain.body), samples(&open.body));
        assert!(
            plain.len() > 3 && plain.is_subset(&open),
            "{tool}: {plain:?} {open:?}"
        );
    }
}
