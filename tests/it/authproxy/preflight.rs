//! CORS preflights in each configuration.

use hostkit_tests::authproxy::{AuthproxyProcess, RawResponse, send_request};
use hostkit_tests::or_skip;
use hostkit_tests::web::{WebServer, WebServerKind};

use super::wire::{ScriptedUpstream, ok, proxy};

const PREFLIGHT: &[&str] = &[
    "Origin: https://a.example",
    "Access-Control-Request-Method: DELETE",
    "Access-Control-Request-Headers: x-api-key",
];

/// Headers that could give a preflight more effect than that of a preflight.
const MORE: &[&str] = &[
    "X-HTTP-Method-Override: DELETE",
    "X-Method-Override: DELETE",
    "Authorization: Bearer wire-key",
    "X-API-Key: wire-key",
    "Cookie: session=1",
    "X-Auth-Id: root",
    "X-Custom: 1",
];

fn send_preflight(proxy: &AuthproxyProcess, path: &str, more: &[&str]) -> RawResponse {
    send_request(proxy.port(), "OPTIONS", path, &[PREFLIGHT, more].concat())
}

/// authproxy in front of an upstream, with this configuration file.
fn start_configured(server: u16, text: &str) -> AuthproxyProcess {
    let directory = tempfile::tempdir().unwrap().keep();
    let file = directory.join("authproxy.yaml");
    std::fs::write(&file, text).unwrap();
    proxy(server, &["--config", file.to_str().unwrap()])
}

#[test]
fn preflights_need_key_by_default_and_log_names_setting_once() {
    let (origin, requests) = ScriptedUpstream::start_answering(ok("data"));
    let proxy = proxy(origin.port(), &[]);
    for _ in 0..3 {
        let answer = send_preflight(&proxy, "/secret", &[]);
        assert_eq!(
            (answer.status, answer.reason().as_deref()),
            (401, Some("missing_key"))
        );
    }
    assert!(requests.lock().unwrap().is_empty());
    let answer = send_preflight(&proxy, "/", &["X-API-Key: wire-key"]);
    assert_eq!(answer.body, "data", "with a key it is a request");
    proxy.logs("--cors-preflight");
    assert_eq!(
        proxy.log().matches("--cors-preflight").count(),
        1,
        "{}",
        proxy.log()
    );
}

#[test]
fn preflights_are_answered_from_cors_without_upstream() {
    let (origin, requests) = ScriptedUpstream::start_answering(ok("data"));
    let proxy = start_configured(
        origin.port(),
        "cors: {allow-origin: [https://a.example, https://b.example], allow-methods: [GET, DELETE], max-age: 600, \
         allow-headers: X-API-Key}\n",
    );
    let answer = send_preflight(&proxy, "/secret", MORE);
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (204, ""),
        "{answer:?}"
    );
    for (name, value) in [
        ("access-control-allow-origin", Some("https://a.example")),
        ("access-control-allow-methods", Some("GET, DELETE")),
        ("access-control-allow-headers", Some("X-API-Key")),
        ("access-control-max-age", Some("600")),
        ("vary", Some("origin")),
        ("content-length", None),
    ] {
        assert_eq!(answer.header(name), value, "{name}: {answer:?}");
    }
    let refused = send_request(proxy.port(), "GET", "/", &["Origin: https://b.example"]);
    let origin_of = |answer: &RawResponse| {
        let found = answer.header("access-control-allow-origin");
        found.map(str::to_owned)
    };
    assert_eq!(
        (refused.status, origin_of(&refused).as_deref()),
        (401, Some("https://b.example"))
    );
    let other = send_request(proxy.port(), "GET", "/", &["Origin: https://c.example"]);
    assert_eq!((other.status, origin_of(&other)), (401, None));
    assert!(requests.lock().unwrap().is_empty());
}

#[test]
fn forwarded_preflight_has_only_preflight_headers() {
    let (origin, requests) = ScriptedUpstream::start_answering(
        "HTTP/1.1 204 Fine\r\nAccess-Control-Allow-Origin: *\r\n\r\n",
    );
    let proxy = start_configured(
        origin.port(),
        "routes:\n- {path: /a, rights: all, cors-preflight: pass}\n- {path: /, rights: all}\n",
    );
    let answer = send_preflight(&proxy, "/a/x?apikey=wire-key&_method=DELETE", MORE);
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (204, Some("*"))
    );
    let seen = requests.lock().unwrap()[0].head.to_lowercase();
    assert!(seen.starts_with("options /a/x http/1.1\r\n"), "{seen}");
    for line in PREFLIGHT {
        assert!(seen.contains(&line.to_lowercase()), "{line}: {seen}");
    }
    for word in ["wire-key", "override", "cookie", "root", "x-custom"] {
        assert!(!seen.contains(word), "{word}: {seen}");
    }
    // Another path, and a request that is not a preflight.
    for (path, more) in [("/b", &[][..]), ("/a", &["Content-Length: 1", "", "x"])] {
        assert_eq!(
            send_preflight(&proxy, path, more).status,
            401,
            "{path} {more:?}"
        );
    }
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[test]
fn method_override_header_is_not_forwarded_with_preflight() {
    let Some(web) = or_skip("Express", WebServer::start(WebServerKind::Express)) else {
        return;
    };
    let proxy = proxy(web.port(), &["--cors-preflight=pass"]);
    let direct = send_request(web.port(), "OPTIONS", "/x", &[PREFLIGHT, MORE].concat());
    assert!(direct.body.contains("DELETE other"), "{direct:?}");
    let answer = send_preflight(&proxy, "/x", MORE);
    assert!(answer.body.contains("OPTIONS other"), "{answer:?}");
}
