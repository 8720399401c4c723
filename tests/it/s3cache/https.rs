//! https: which certificates s3cache trusts, which it sends, and that each failure names its remedy.

use std::net::TcpStream;
use std::process::Command;

use hostkit_tests::nginx::NginxServer;
use hostkit_tests::or_skip;
use hostkit_tests::origin::OriginServer;
use hostkit_tests::tls::CertificateAuthority;

use super::{CacheHost, CommandOutcome, bytes};

const PATH: &str = "/pex/job-1.2.bin";

/// Fetches [`PATH`] over TLS, trusting `authority`.
fn fetch(
    origin: &OriginServer,
    authority: &CertificateAuthority,
    more: &[String],
) -> (CacheHost, CommandOutcome) {
    let host = CacheHost::new();
    let ca = format!("--ca-file={}", authority.ca().display());
    let args = [origin.url(PATH), ca, "--copy-to=out".to_owned()];
    let outcome = host.s3cache(args.iter().chain(more));
    (host, outcome)
}

fn origin(authority: &CertificateAuthority) -> OriginServer {
    let origin = OriginServer::start_tls(authority);
    origin.put(PATH, "over TLS");
    origin
}

#[test]
fn only_authority_of_flag_is_trusted() {
    let authority = CertificateAuthority::new();
    let origin = origin(&authority);
    let (host, outcome) = fetch(&origin, &authority, &[]);
    outcome.exits(0);
    assert_eq!(host.read("out"), b"over TLS");
    let (_, outcome) = fetch(&origin, &CertificateAuthority::new(), &[]);
    // Two authorities of the same name: the signature is wrong for this one.
    outcome.exits(69).logs(&origin.url(PATH));
    assert_eq!(
        origin.requests().len(),
        2,
        "artifact and sidecar of the first fetch"
    );
}

#[test]
fn unknown_authority_error_names_flag() {
    let authority = CertificateAuthority::new();
    let origin = origin(&authority);
    let outcome = CacheHost::new().s3cache([origin.url(PATH)]).exits(69);
    outcome.logs("unknown authority").logs("--ca-file");
    assert!(
        origin.connections() <= 2,
        "permanent errors are not retried"
    );
}

#[test]
fn expired_or_misnamed_certificate_is_named_in_error() {
    let expired = CertificateAuthority::expired();
    let (_, outcome) = fetch(&origin(&expired), &expired, &[]);
    outcome.exits(69).logs("not valid now").logs("clock");
    let elsewhere = CertificateAuthority::wrong_name();
    let (_, outcome) = fetch(&origin(&elsewhere), &elsewhere, &[]);
    outcome.exits(69).logs("is not for 127.0.0.1");
}

#[test]
fn port_without_tls_is_named() {
    let plain = OriginServer::start();
    let url = plain.url(PATH).replace("http:", "https:");
    CacheHost::new()
        .s3cache([&url])
        .exits(69)
        .logs("TLS")
        .logs(&url);
}

#[test]
fn client_certificate_is_sent_and_missing_one_is_named() {
    let authority = CertificateAuthority::new();
    let origin = OriginServer::start_mutual_tls(&authority);
    origin.put(PATH, "for members");
    let pair = [
        format!("--client-cert={}", authority.client().display()),
        format!("--client-key={}", authority.client_key().display()),
    ];
    let (host, outcome) = fetch(&origin, &authority, &pair);
    outcome.exits(0);
    assert_eq!(host.read("out"), b"for members");
    let (_, outcome) = fetch(&origin, &authority, &[]);
    outcome
        .exits(69)
        .logs("requires a client certificate")
        .logs("--client-cert");
    let stranger = CertificateAuthority::new();
    let foreign = [
        format!("--client-cert={}", stranger.client().display()),
        format!("--client-key={}", stranger.client_key().display()),
    ];
    let (_, outcome) = fetch(&origin, &authority, &foreign);
    outcome.exits(69).logs("rejects the client certificate");
}

#[test]
fn invalid_certificate_files_are_config_errors() {
    let authority = CertificateAuthority::new();
    let host = CacheHost::new();
    std::fs::write(host.path("none.pem"), "nothing").unwrap();
    for flag in ["--ca-file=none.pem", "--ca-file=missing.pem"] {
        host.s3cache(["https://127.0.0.1:9/a-1.2", flag])
            .exits(78)
            .logs(&flag[10..]);
    }
    let cert = format!("--client-cert={}", authority.client().display());
    host.s3cache(["https://127.0.0.1:9/a-1.2", &cert, "--client-key=none.pem"])
        .exits(78)
        .logs("none.pem");
}

#[test]
fn self_signed_authority_certificate_is_explained() {
    let Some(openssl) = or_skip(
        "self-signed CA certificates",
        hostkit_tests::find_program("openssl"),
    ) else {
        return;
    };
    let host = CacheHost::new();
    let mut make = Command::new(&openssl);
    make.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=self",
    ])
    .args([
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
    ])
    .args(["-keyout", "key.pem", "-out", "cert.pem"])
    .current_dir(host.sandbox());
    assert!(make.output().unwrap().status.success());
    let port = hostkit_tests::free_port();
    let serve = Command::new(&openssl)
        .args([
            "s_server", "-quiet", "-www", "-cert", "cert.pem", "-key", "key.pem", "-accept",
        ])
        .arg(format!("127.0.0.1:{port}"))
        .current_dir(host.sandbox())
        .spawn();
    let _serving = hostkit_tests::ChildGuard(serve.unwrap());
    hostkit_tests::wait_until("openssl listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    host.s3cache([
        &format!("https://127.0.0.1:{port}/a-1.2"),
        "--ca-file=cert.pem",
    ])
    .exits(69)
    .logs("CA certificate as its own")
    .logs("CA:FALSE");
}

#[test]
fn nginx_serves_over_tls() {
    let (host, authority) = (CacheHost::new(), CertificateAuthority::new());
    let root = tempfile::tempdir().unwrap();
    let body = bytes(3 << 20, 1);
    std::fs::write(root.path().join("job-1.2.bin"), &body).unwrap();
    std::fs::write(root.path().join("static.bin"), "static").unwrap();
    let Some(nginx) = or_skip("nginx", NginxServer::start(&authority, root.path())) else {
        return;
    };
    let ca = format!("--ca-file={}", authority.ca().display());
    let get =
        |path: &str| host.s3cache([&nginx.tls_url(path), &ca, "--copy-to=out", "--part-size=1M"]);
    get("/job-1.2.bin").exits(0);
    assert!(host.read("out") == body);
    get("/static.bin").exits(0);
    get("/static.bin").exits(0);
    hostkit_tests::wait_until("nginx wrote its log", || nginx.requests().len() >= 7);
    let log = nginx.requests();
    let parts = log
        .iter()
        .filter(|line| line.starts_with("GET /job-1.2.bin 206 1048576 bytes="));
    assert_eq!(parts.count(), 3, "{log:?}");
    assert!(
        log.iter()
            .any(|line| line.starts_with("HEAD /static.bin 304 0")),
        "{log:?}"
    );
}
