//! The right that a key lacks is named in the response, in the log, and by `key check`, which decides as the daemon
//! does.

use std::io::Write as _;
use std::process::{Command, Stdio};

use hostkit_tests::authproxy::{AuthproxyProcess, send_request};
use hostkit_tests::permissions;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{CommandOutcome, bin, wait_until};
use serde_json::{Value, json};

const RULES: &str = "\
right: read
health-path: /health
open: /static
routes:
- {path: /admin, methods: [POST, PUT], rights: [admin, write], name: admin}
- {path: /stats, rights: stats}
";

/// Runs `key check` for a request with a key.
fn key_check(args: &[&str], key: &str) -> CommandOutcome {
    let mut child = Command::new(bin("authproxy"))
        .args(["key", "check"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(key.as_bytes());
    child.wait_with_output().unwrap().into()
}

#[test]
fn missing_right_is_named_in_response_log_and_key_check() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let file = scratch.path().join("keys.yaml");
    permissions::write_acl_file(
        &file,
        &[("all-key", &["all"]), ("reader", &["read", "admin"])],
    );
    let config = scratch.path().join("authproxy.yaml");
    let text = format!(
        "server: {}\nacl-file: {}\n{RULES}",
        backend.url(),
        file.display()
    );
    std::fs::write(&config, text).unwrap();
    let config = format!("--config={}", config.display());
    let proxy = AuthproxyProcess::start(&[&config]);
    for (key, method, path, needed, has, missing) in [
        // `all` is a right like any other.
        ("all-key", "GET", "/", "read", "all", "read"),
        ("all-key", "GET", "/stats/x", "stats", "all", "stats"),
        (
            "reader",
            "POST",
            "/admin",
            "admin,write",
            "read,admin",
            "write",
        ),
    ] {
        let answer = send_request(proxy.port(), method, path, &[&format!("X-API-Key: {key}")]);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (answer.status, &body["error"]),
            (403, &json!("missing_right"))
        );
        let message = body["message"].as_str().unwrap();
        assert!(message.ends_with(&format!(": {missing}")), "{message}");
        proxy.logs(&format!(
            " reason=missing_right required_rights={needed} key_rights={has} key_id="
        ));
        let outcome = key_check(&[&config, "--method", method, "--path", path], key).exits(77);
        let end =
            format!(": {missing} (403, missing_right) required_rights={needed} key_rights={has}\n");
        assert!(outcome.stdout.ends_with(&end), "{}", outcome.stdout);
    }
}

#[test]
fn missing_right_is_a_field_of_the_json_log() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let file = scratch.path().join("keys.yaml");
    permissions::write_acl_file(&file, &[("key", &["all", "x"])]);
    let server = format!("--server={}", backend.url());
    let file = format!("--acl-file={}", file.display());
    let proxy = AuthproxyProcess::start(&[&server, "--right=read", &file, "--logstash-format"]);
    assert_eq!(proxy.get_with_key("/", "key").status, 403);
    wait_until("the line is logged", || {
        let log = proxy.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let rights =
            |line: &Value| (line["required_rights"] == "read") && (line["key_rights"] == "all,x");
        lines
            .filter(|line| line["reason"] == "missing_right")
            .any(|line| rights(&line))
    });
}

#[test]
fn key_check_with_configuration_agrees_with_daemon() {
    let scratch = tempfile::tempdir().unwrap();
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let keys = json!({"keys": [
        {"id": "reader", "sha256": permissions::hash_key("reader"), "rights": ["read", "stats"]},
        {"id": "bound", "sha256": permissions::hash_key("bound"), "rights": ["read"], "paths": ["/a"], "methods": ["GET"],
         "hosts": ["api.example.com"]},
        {"id": "over", "sha256": permissions::hash_key("over"), "rights": ["read"], "expires": "2001-01-01"},
    ]});
    let file = scratch.path().join("keys.yaml");
    std::fs::write(&file, keys.to_string()).unwrap();
    for (name, more) in [("host", ""), ("parameter", "host-param: site\n")] {
        let config = scratch.path().join(format!("{name}.yaml"));
        let text = format!(
            "server: {}\nacl-file: {}\n{RULES}{more}",
            backend.url(),
            file.display()
        );
        std::fs::write(&config, text).unwrap();
        let config = format!("--config={}", config.display());
        let proxy = AuthproxyProcess::start(&[&config]);
        let mut refused = 0;
        for key in ["reader", "bound", "over", "unknown"] {
            for (method, path) in [
                ("GET", "/a/b"),
                ("HEAD", "/a"),
                ("POST", "/a"),
                ("GET", "/b"),
                ("GET", "/a/../b"),
                ("GET", "/static/x"),
                ("GET", "/health"),
                ("GET", "/stats"),
                ("PUT", "/admin/x?y=1"),
                ("GET", "/admin"),
                ("CONNECT", "/a"),
                ("post", "/admin"),
                ("POST", "/ADMIN/x"),
                ("POST", "/%61dmin"),
            ] {
                for host in ["api.example.com", "example.com:80"] {
                    let headers = [format!("X-API-Key: {key}"), format!("Host: {host}")];
                    let target = match (more.is_empty(), path.contains('?')) {
                        (true, _) => path.to_owned(),
                        (false, true) => format!("{path}&site={host}"),
                        (false, false) => format!("{path}?site={host}"),
                    };
                    let answer =
                        send_request(proxy.port(), method, &target, &[&headers[0], &headers[1]]);
                    let args = [
                        &*config, "--json", "--method", method, "--path", path, "--host", host,
                    ];
                    let outcome = key_check(&args, key);
                    let outcome: Value = serde_json::from_str(&outcome.stdout).unwrap();
                    let word = match method {
                        // The response to HEAD has no body.
                        "HEAD" if answer.status >= 400 => {
                            outcome["error"].as_str().map(str::to_owned)
                        }
                        _ => answer.reason(),
                    };
                    let what = format!("{key} {method} {path} {host}: {answer:?} {outcome}");
                    assert_eq!(outcome["error"].as_str(), word.as_deref(), "{what}");
                    assert_eq!(outcome["allowed"], json!(answer.status < 400), "{what}");
                    refused += usize::from(word.is_some());
                }
            }
        }
        assert!(refused > 20, "{refused}");
    }
}

#[test]
fn key_check_with_configuration_needs_path_and_rules() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("keys.yaml");
    permissions::write_acl_file(&file, &[("key", &["read"])]);
    let config = scratch.path().join("authproxy.yaml");
    std::fs::write(&config, format!("acl-file: {}\n", file.display())).unwrap();
    let config = format!("--config={}", config.display());
    key_check(&[&config], "key").exits(2).logs("--path");
    // Where the daemon's command line has --right, this one has, too.
    key_check(&[&config, "--path=/"], "key")
        .exits(78)
        .logs("missing --right");
    key_check(&[&config, "--path=/", "--right=read"], "key").exits(0);
    key_check(&[&config, "--path=/", "--right=write"], "key").exits(77);
    // The backend of the command line replaces that of the file.
    let other = scratch.path().join("other.yaml");
    permissions::write_acl_file(&other, &[]);
    let other = format!("--acl-file={}", other.display());
    key_check(&[&config, &other, "--path=/", "--right=read"], "key").exits(77);
}
