//! Unambiguous requests pass, as they pass through nginx.

use hostkit_tests::nginx::NginxServer;
use hostkit_tests::or_skip;
use hostkit_tests::tls::CertificateAuthority;

use super::wire::{KEY, ScriptedUpstream, WireConnection, ok, proxy};

#[test]
fn unambiguous_requests_pass_authproxy_as_they_pass_nginx() {
    let many = |count: usize| -> String { (0..count).map(|at| format!("X-{at}: y\r\n")).collect() };
    let answers = [
        (
            "chunks of HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
        ),
        (
            "150 lines",
            format!(
                "HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok",
                many(150)
            ),
        ),
    ];
    let requests = [
        (
            "an empty port",
            "GET / HTTP/1.1\r\nHost: example.com:\r\n".to_owned(),
        ),
        (
            "an empty port of an address",
            "GET http://[::1]:/ HTTP/1.1\r\nHost: [::1]:\r\n".to_owned(),
        ),
        (
            "an empty line before",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n".to_owned(),
        ),
        (
            "90 lines",
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}", many(90)),
        ),
    ];
    let plain = ("GET", "GET / HTTP/1.1\r\nHost: a\r\n".to_owned());
    let sound = ("200", ok("ok"));
    let answered = answers.iter().map(|answer| (answer, &plain));
    let asked = requests.iter().map(|request| (&sound, request));
    let authority = CertificateAuthority::new();
    let root = tempfile::tempdir().unwrap();
    for ((answer, bytes), (request, head)) in answered.chain(asked) {
        let bytes = bytes.clone();
        let origin = ScriptedUpstream::start(move |wire, _| {
            wire.head();
            wire.send(&bytes);
        });
        let through = format!(
            "location / {{ proxy_pass http://127.0.0.1:{}; }}",
            origin.port()
        );
        let Some(nginx) = or_skip(
            "nginx",
            NginxServer::start_with(&authority, root.path(), &through),
        ) else {
            return;
        };
        let proxy = proxy(origin.port(), &[]);
        for (name, port) in [("nginx", nginx.port()), ("authproxy", proxy.port())] {
            let mut client = WireConnection::connect(port);
            let answered = client.ask(format!(
                "{head}X-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
            ));
            let named = format!("{name}: {answer}, {request}");
            assert_eq!(
                (answered.status(), answered.text().as_str()),
                (200, "ok"),
                "{named}"
            );
        }
    }
}
