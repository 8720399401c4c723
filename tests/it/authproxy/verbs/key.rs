//! `key new`, `key hash`, `key check`.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use hostkit_tests::permissions::{PermissionsBehavior, PermissionsServer, hash_key};
use hostkit_tests::tls::CertificateAuthority;
use hostkit_tests::{ChildGuard, bin, free_port};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::{authproxy, check, parsed, run};

/// The key that `key new` shows on stderr.
pub(super) fn secret_of(stderr: &str) -> &str {
    let mut lines = stderr.lines().filter(|line| line.starts_with("hk_"));
    let found = (lines.next(), lines.next());
    let (Some(key), None) = found else {
        panic!("no key, or two: {stderr}");
    };
    key
}

#[test]
fn new_key_is_shown_once_and_its_entry_admits_it() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("acl.yaml");
    let scopes = [
        "--host=*.example.com",
        "--path=/a,/b/",
        "--method=GET",
        "--expires=2999-01-31",
    ];
    let new = [
        &["key", "new", "--id=alice", "--right=all,write"],
        &scopes[..],
    ]
    .concat();
    let plain = run(authproxy(&new), "").exits(0);
    let (entry, key) = (plain.stdout, secret_of(&plain.stderr));
    let random = key.strip_prefix("hk_").unwrap();
    assert!(
        random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{key}"
    );
    let other = run(authproxy(&["key", "new", "--json"]), "").exits(0);
    // No redirection of stdout may put a key into a file.
    assert!(!entry.contains("hk_") && !other.stdout.contains("hk_"));
    let other_entry = &parsed(&other)["entry"];
    std::fs::write(&file, format!("keys:\n{entry}- {other_entry}\n")).unwrap();

    let engine = ["--acl-file", file.to_str().unwrap()];
    let outcome = check(&engine, &["--json"], &format!("{key}\n")).exits(0);
    let expected = json!({
        "known": true, "allowed": true, "error": null, "required_rights": null, "route": null, "sha256": hash_key(key),
        "grant": {
            "id": "alice", "rights": ["all", "write"], "hosts": ["*.example.com"], "paths": ["/a", "/b"],
            "methods": ["GET"], "expires": "2999-01-31T00:00:00Z",
        },
    });
    assert_eq!(parsed(&outcome), expected);
    let other = check(&engine, &[], secret_of(&other.stderr)).exits(0);
    assert!(other.stdout.starts_with("id: key-"), "{}", other.stdout);
    assert!(other.stdout.ends_with(
        "rights: read\nhosts: any\npaths: any\nmethods: any\nexpires: never\nallowed\n"
    ));
}

#[test]
fn key_new_rejects_invalid_restrictions() {
    for wrong in [
        "--id=two words",
        "--right=",
        "--host=http://x",
        "--path=a",
        "--method=get",
        "--expires=soon",
        "--expires=2001-01-01",
    ] {
        let refused = run(authproxy(&["key", "new", wrong]), "").exits(2);
        assert!(refused.stdout.is_empty(), "{wrong}");
    }
}

#[test]
fn key_hash_is_hash_of_typed_key() {
    let expected = "5b11618c2e44027877d0cd0921ed166b9f176f50587fc91e7534dd2946db77d6";
    for stdin in ["secret1\n", "secret1", " secret1 \r\nmore\n"] {
        assert_eq!(
            run(authproxy(&["key", "hash"]), stdin).exits(0).stdout,
            format!("{expected}\n")
        );
    }
    let json = run(authproxy(&["key", "hash", "--json"]), "secret1").exits(0);
    assert_eq!(parsed(&json), json!({"sha256": hash_key("secret1")}));
    run(authproxy(&["key", "hash"]), "\n")
        .exits(2)
        .logs("missing key");
    run(authproxy(&["key", "hash"]), "").exits(2);
    run(authproxy(&["key", "hash"]), &"x".repeat(20_000))
        .exits(2)
        .logs("16 KiB");
}

#[test]
fn key_on_command_line_is_rejected_and_not_repeated() {
    for verb in [
        &["key", "hash", "hk_secret"][..],
        &["key", "check", "hk_secret", "--acl-file=/x"],
    ] {
        let refused = run(authproxy(verb), "").exits(2).logs("history");
        assert!(!refused.stderr.contains("hk_secret"), "{}", refused.stderr);
    }
}

#[test]
fn typed_key_is_not_echoed() {
    let mut child = Command::new("script")
        .args([
            "-qec",
            &format!("{} key hash", bin("authproxy").display()),
            "/dev/null",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let _child = ChildGuard(child);
    let mut shown = Vec::new();
    while !shown.ends_with(b"Key: ") {
        let mut byte = [0];
        assert_eq!(
            stdout.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&shown)
        );
        shown.extend(byte);
    }
    stdin.write_all(b"hk_secret\n").unwrap();
    stdout.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(
        shown.contains(&hash_key("hk_secret")) && !shown.contains("hk_secret"),
        "{shown}"
    );
}

#[test]
fn key_check_prints_reason_that_request_would_get() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("acl.yaml");
    let entry = json!({
        "id": "alice", "sha256": hash_key("key"), "rights": ["all"], "hosts": ["example.com"], "paths": ["/a"],
        "methods": ["GET"],
    });
    let old =
        json!({"id": "bob", "sha256": hash_key("old"), "rights": ["all"], "expires": "2001-01-01"});
    std::fs::write(&file, json!({"keys": [entry, old]}).to_string()).unwrap();
    let engine = ["--acl-file", file.to_str().unwrap()];
    for (key, asked, word) in [
        ("key", &[][..], None),
        (
            "key",
            &[
                "--right=all",
                "--method=GET",
                "--path=/a/b",
                "--host=Example.com:80",
            ],
            None,
        ),
        ("key", &["--right=all,write"], Some("missing_right")),
        ("key", &["--method=POST"], Some("method_not_allowed")),
        ("key", &["--path=/ab"], Some("path_not_allowed")),
        ("key", &["--path=/a/../b"], Some("ambiguous_path")),
        ("key", &["--host=example.org"], Some("host_not_allowed")),
        ("old", &[], Some("expired_key")),
        ("unknown", &[], Some("unknown_key")),
    ] {
        let code = if word.is_some() { 77 } else { 0 };
        let plain = check(&engine, asked, key).exits(code);
        let last = plain.stdout.lines().last().unwrap();
        let is_expected = match word {
            Some(word) => last.contains(&format!(", {word})")),
            None => last == "allowed",
        };
        assert!(is_expected, "{last}");
        let json = parsed(&check(&engine, &[asked, &["--json"]].concat(), key).exits(code));
        assert_eq!(
            (json["error"].as_str(), &json["allowed"]),
            (word, &json!(word.is_none()))
        );
    }
    let missing = temp.path().join("other.yaml");
    check(&["--acl-file", missing.to_str().unwrap()], &[], "key")
        .exits(78)
        .logs("other.yaml");
    check(&[], &[], "key").exits(2);
}

#[test]
fn key_check_queries_servers_as_daemon_does() {
    let acl = PermissionsServer::start();
    acl.add_key("key", json!({"id": "alice"}));
    let dead = format!("http://me:secret@127.0.0.1:{}/", free_port());
    let engine = format!("--acl-server={dead},{}", acl.url());
    check(&[&engine], &[], "key").exits(0);
    check(&[&engine], &[], "other").exits(77);
    acl.set_behavior(PermissionsBehavior::Status(
        403,
        r#"{"known":false}"#.to_owned(),
    ));
    let failed = check(&[&engine], &[], "other").exits(69).logs("status 403");
    assert!(!failed.stderr.contains("secret"), "{}", failed.stderr);
    check(&["--acl-server=ftp://x"], &[], "key")
        .exits(78)
        .logs("invalid permissions server");
}

/// Terminates TLS with the certificate of `authority` in front of a port, until the test process ends.
fn tls(authority: &CertificateAuthority, port: u16) -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let here = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let acceptor = TlsAcceptor::from(authority.server_config());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut near = acceptor.accept(near).await?;
                    let mut far =
                        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
    });
    here
}

#[test]
fn permissions_server_needs_trusted_certificate() {
    let acl = PermissionsServer::start();
    acl.add_key("key", json!({"id": "alice"}));
    let ask = |port: u16, host: &str, ca: &Path| {
        let server = format!("--acl-server=https://{host}:{port}/");
        let mut command = authproxy(&["key", "check", &server]);
        command.env("SSL_CERT_FILE", ca).env_remove("SSL_CERT_DIR");
        run(command, "key")
    };
    let authority = CertificateAuthority::new();
    let port = tls(&authority, acl.port());
    ask(port, "localhost", &authority.ca()).exits(0);
    ask(port, "127.0.0.1", &authority.ca()).exits(0);
    ask(port, "localhost", &CertificateAuthority::new().ca())
        .exits(69)
        .logs("certificate");
    for authority in [
        CertificateAuthority::expired(),
        CertificateAuthority::wrong_name(),
    ] {
        let port = tls(&authority, acl.port());
        ask(port, "localhost", &authority.ca())
            .exits(69)
            .logs("certificate");
    }
    ask(port, "localhost", Path::new("/dev/null"))
        .exits(78)
        .logs("SSL_CERT_FILE");
    ask(acl.port(), "localhost", &authority.ca()).exits(69);
}
