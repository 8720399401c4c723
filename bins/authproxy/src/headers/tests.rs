//! The headers that upstream and the client get.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::Request;
use proptest::prelude::*;

use super::*;
use crate::grant::Grant;
use crate::settings::tests::site;

const INSIDE: &str = "10.0.0.9:4711";
const OUTSIDE: &str = "192.0.2.7:4711";

fn allowed(key_id: Option<&str>) -> AllowDecision {
    let grant = |id: &str| Grant {
        id: id.to_owned(),
        rights: Vec::new(),
        hosts: Vec::new(),
        paths: Vec::new(),
        methods: Vec::new(),
        expires: None,
    };
    AllowDecision {
        grant: key_id.map(|id| Arc::new(grant(id))),
        route: None,
        reason: AllowReason::ValidKey,
    }
}

/// The headers that upstream gets, as `name: value` lines, and the target.
fn forward_with(
    site: &SiteSettings,
    peer: &str,
    uri: &str,
    lines: &[(&str, &str)],
) -> (Vec<String>, String) {
    let mut request = Request::builder().uri(uri).header("host", "api.example");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let client = PeerAddress::new(peer.parse().unwrap(), site);
    let id = request_id(&parts.headers, &client);
    rewrite_request(&mut parts, &allowed(Some("alice")), &client, &id, site);
    let mut received: Vec<String> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    received.sort();
    (received, parts.uri.to_string())
}

fn forward(peer: &str, lines: &[(&str, &str)]) -> Vec<String> {
    let (mut received, _) = forward_with(&site(""), peer, "/", lines);
    received.retain(|line| !line.starts_with("x-request-id: ") || line.len() < 40);
    received
}

#[test]
fn identity_headers_of_untrusted_peer_are_replaced() {
    let received = forward(
        OUTSIDE,
        &[
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "admin.example"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=127.0.0.1"),
            ("x-real-ip", "127.0.0.1"),
            ("x-host", "admin.example"),
            ("x-original-host", "admin.example"),
            ("x-http_host-override", "admin.example"),
            ("x-request-id", "mine"),
            ("x-auth-id", "root"),
            ("x_auth_id", "root"),
            ("x-auth_id", "root"),
            ("X.Auth!Id", "root"),
            ("x_forwarded_for", "127.0.0.1"),
            ("x-auth-user", "root"),
            ("x-original-url", "/admin"),
            ("traceparent", "00-1-2-01"),
            ("cookie", "a=b"),
        ],
    );
    assert_eq!(
        received,
        [
            "cookie: a=b",
            "host: api.example",
            "traceparent: 00-1-2-01",
            "x-auth-id: alice",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: api.example",
            "x-forwarded-proto: http",
        ]
    );
}

#[test]
fn identity_headers_of_trusted_peer_are_kept_and_extended() {
    let received = forward(
        INSIDE,
        &[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-for", "10.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "api.public"),
            ("x-forwarded-port", "443"),
            ("forwarded", "for=192.0.2.7"),
            ("x-real-ip", "192.0.2.7"),
            ("x-host", "api.public"),
            ("x-original-host", "api.public"),
            ("x_original_host", "admin.example"),
            ("x-request-id", "from-the-balancer"),
            ("x-auth-id", "root"),
            ("x_forwarded_for", "127.0.0.1"),
        ],
    );
    assert_eq!(
        received,
        [
            "forwarded: for=10.0.0.9",
            "forwarded: for=192.0.2.7",
            "host: api.example",
            "x-auth-id: alice",
            "x-forwarded-for: 192.0.2.7, 10.1.1.1, 10.0.0.9",
            "x-forwarded-host: api.public",
            "x-forwarded-port: 443",
            "x-forwarded-proto: https",
            "x-host: api.public",
            "x-original-host: api.public",
            "x-real-ip: 192.0.2.7",
            "x-request-id: from-the-balancer",
        ]
    );
}

#[test]
fn request_id_is_that_of_a_trusted_peer_or_new() {
    let site = site("");
    let id = |peer: &str, sent: &str| {
        let headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_str(sent).unwrap())]);
        let client = PeerAddress::new(peer.parse().unwrap(), &site);
        request_id(&headers, &client).to_str().unwrap().to_owned()
    };
    assert_eq!(id(INSIDE, "a-b.c:7"), "a-b.c:7");
    for sent in ["", "two words", "a\"b", "a,b", &"x".repeat(129)] {
        let fresh = id(INSIDE, sent);
        assert!(
            fresh.len() == 32 && hostkit::hex::is_hex(&fresh),
            "{sent}: {fresh}"
        );
    }
    let many: BTreeSet<String> = (0..10_000).map(|_| id(OUTSIDE, "mine")).collect();
    assert_eq!(many.len(), 10_000);
}

#[test]
fn hop_by_hop_headers_are_removed_from_requests() {
    let received = forward(
        INSIDE,
        &[
            (
                "connection",
                "close, X-Hop, content-length, x-forwarded-for, host, cookie",
            ),
            ("connection", "other"),
            ("x-hop", "1"),
            ("other", "1"),
            ("content-length", "0"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "192.0.2.7"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("proxy", "http://evil"),
            ("te", "gzip, trailers;q=0.5"),
            ("trailer", "x-sum"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAM"),
            ("expect", "100-continue"),
        ],
    );
    assert_eq!(
        received,
        [
            "content-length: 0",
            "cookie: a=b",
            "host: api.example",
            "te: trailers",
            "trailer: x-sum",
            "x-auth-id: alice",
            "x-forwarded-for: 192.0.2.7, 10.0.0.9",
            "x-forwarded-host: api.example",
            "x-forwarded-proto: http",
        ]
    );
}

#[test]
fn connection_that_names_a_header_set_by_proxies_is_invalid() {
    let site = site("protected-headers: [X-Tenant, 'X-Zone-*']\n");
    let check = |values: &[&str]| {
        let values = values
            .iter()
            .map(|value| HeaderValue::from_str(value).unwrap());
        let headers = values.map(|value| (header::CONNECTION, value)).collect();
        check_connection(&headers, &site)
    };
    for values in [
        &["X-SSL-Client-CN"][..],
        &["close, x-forwarded-for"],
        &["X-Forwarded-Client-Cert"],
        &["close", "x-real-ip"],
        &["X_Real_IP"],
        &["x-request-id"],
        &["forwarded"],
        &["x-host"],
        &["x-tenant"],
        &["X_Tenant"],
        &["X-ZONE-A"],
    ] {
        assert!(check(values).is_err(), "{values:?}");
    }
    let valid = ["close, x-hop", "upgrade, x-tenants, x-zone, x-ssl, te"];
    assert_eq!(check(&valid), Ok(()));
}

#[test]
fn other_spelling_of_a_protected_header_is_removed() {
    let site = site("protected-headers: [X-Tenant, X_Zone]\n");
    let lines = [
        "x-ssl-client-cn",
        "x_ssl_client_cn",
        "x-ssl_client-cn",
        "x-tenant",
        "x.tenant",
        "x_zone",
        "x_other",
    ];
    let mut request = Request::builder().uri("/").header("host", "api.example");
    for name in lines {
        request = request.header(name, "a");
    }
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    let client = PeerAddress::new(INSIDE.parse().unwrap(), &site);
    let id = request_id(&parts.headers, &client);
    rewrite_request(&mut parts, &allowed(None), &client, &id, &site);
    let left: Vec<&str> = lines
        .into_iter()
        .filter(|name| parts.headers.contains_key(*name))
        .collect();
    assert_eq!(left, ["x-ssl-client-cn", "x-tenant", "x_zone", "x_other"]);
}

#[test]
fn only_websocket_upgrades_are_forwarded() {
    let upgrades = |lines: &[(&str, &str)]| {
        let received = forward(OUTSIDE, lines);
        let has = |line: &str| received.iter().any(|received| received == line);
        let both = has("connection: upgrade") && has("upgrade: websocket");
        let none = !received
            .iter()
            .any(|line| line.starts_with("upgrade:") || line.starts_with("connection:"));
        assert!(both || none, "{received:?}");
        both
    };
    assert!(upgrades(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket")
    ]));
    for lines in [
        &[("connection", "upgrade"), ("upgrade", "h2c")][..],
        &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
        &[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("upgrade", "h2c"),
        ],
        &[("connection", "keep-alive"), ("upgrade", "websocket")],
        &[("upgrade", "websocket")],
        &[("connection", "upgrade")],
    ] {
        assert!(!upgrades(lines), "{lines:?}");
    }
}

#[test]
fn hide_credentials_removes_keys() {
    let uri = "/a?x=1&apikey=secret&y=%20";
    let lines = [("x-api-key", "secret"), ("authorization", "Bearer secret")];
    let (received, target) = forward_with(&site(""), OUTSIDE, uri, &lines);
    assert!(
        target.contains("secret")
            && received
                .iter()
                .filter(|line| line.contains("secret"))
                .count()
                == 2
    );
    let hiding = site("hide-credentials: true\n");
    let (received, target) = forward_with(&hiding, OUTSIDE, uri, &lines);
    assert_eq!(target, "/a?x=1&y=%20");
    assert!(
        !received.iter().any(|line| line.contains("secret")),
        "{received:?}"
    );
    let (received, target) = forward_with(
        &hiding,
        OUTSIDE,
        "/a?apikey=k",
        &[("authorization", "Basic eDp5")],
    );
    assert_eq!(target, "/a");
    assert!(
        received.contains(&"authorization: Basic eDp5".to_owned()),
        "not a key: {received:?}"
    );
}

#[test]
fn response_loses_hop_by_hop_headers_and_gets_the_allow_reason() {
    let rewrite = |status: u16, reason: AllowReason, lines: &[(&str, &str)]| {
        let mut builder = hyper::Response::builder().status(status);
        for (name, value) in lines {
            builder = builder.header(*name, *value);
        }
        let (mut head, ()) = builder.body(()).unwrap().into_parts();
        rewrite_response(&mut head, &HeaderValue::from_static("id7"), reason);
        let mut received: Vec<String> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        received.sort();
        received
    };
    let lines = [
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("x-auth-fail-open", "1"),
        ("x-request-id", "theirs"),
        ("content-length", "3"),
        ("trailer", "x-sum"),
    ];
    assert_eq!(
        rewrite(200, AllowReason::ValidKey, &lines),
        ["content-length: 3", "trailer: x-sum", "x-request-id: id7"]
    );
    assert_eq!(
        rewrite(200, AllowReason::StaleGrant, &[]),
        ["x-auth-stale: 1", "x-request-id: id7"]
    );
    assert_eq!(
        rewrite(500, AllowReason::FailOpen, &[]),
        ["x-auth-fail-open: 1", "x-request-id: id7"]
    );
    assert_eq!(
        rewrite(
            101,
            AllowReason::ValidKey,
            &[("connection", "Upgrade"), ("upgrade", "websocket")]
        ),
        [
            "connection: upgrade",
            "upgrade: websocket",
            "x-request-id: id7"
        ]
    );
}

#[test]
fn trailers_about_identity_framing_and_method_are_removed() {
    let mut map: HeaderMap = [
        ("x-sum", "1"),
        ("x-auth-id", "root"),
        ("x_forwarded-for", "1"),
        ("x-http-method-override", "DELETE"),
        ("content-length", "1"),
        ("transfer-encoding", "chunked"),
        ("host", "h"),
        ("authorization", "Bearer k"),
        ("connection", "close"),
    ]
    .into_iter()
    .map(|(name, value)| {
        (
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_static(value),
        )
    })
    .collect();
    filter_trailers(&mut map);
    assert_eq!(
        map.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
        ["x-sum"]
    );
}

/// Identity headers and similar names: every separator, any case, with and without suffixes.
fn header_name() -> impl Strategy<Value = String> {
    let identity = prop::sample::select(vec![
        "x-auth-id",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-request-id",
        "x-real-ip",
        "forwarded",
        "connection",
    ]);
    prop_oneof![
        identity.prop_map(str::to_owned),
        "[xX][-_.!~+][aA]uth([-_.!][iI]d|[-_.]user)?",
        "[xX][-_.]forwarded[-_.]?(for|proto|host)?",
        "x[-_]re(al|quest)[-_](ip|id)",
        "[a-z][a-z_-]{0,12}",
    ]
}

/// The variable of a header in CGI.
fn cgi_variable(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

proptest! {
    #[test]
    fn upstream_gets_only_our_identity_headers(
        lines in proptest::collection::vec((header_name(), "[a-zA-Z0-9, _-]{0,24}"), 0..12),
        trusted: bool,
        known: bool,
    ) {
        let site = site("");
        let peer = if trusted { INSIDE } else { OUTSIDE };
        let mut request = Request::builder().uri("/").header("host", "api.example");
        for (name, value) in lines.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            request = request.header(name.as_str(), value.as_str());
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let client = PeerAddress::new(peer.parse().unwrap(), &site);
        let id = request_id(&parts.headers, &client);
        rewrite_request(&mut parts, &allowed(known.then_some("alice")), &client, &id, &site);
        let mut identity: Vec<(String, String)> = parts
            .headers
            .iter()
            .map(|(name, value)| (cgi_variable(name.as_str()), value.to_str().unwrap().to_owned()))
            .filter(|(name, _)| name.starts_with("X_AUTH"))
            .collect();
        let expected = known.then(|| ("X_AUTH_ID".to_owned(), "alice".to_owned()));
        prop_assert_eq!(identity.pop(), expected);
        prop_assert!(identity.is_empty(), "{:?}", identity);
        for (name, value) in &parts.headers {
            let variable = cgi_variable(name.as_str());
            let chain = ["X_FORWARDED_FOR", "X_REQUEST_ID", "X_FORWARDED_PROTO", "X_FORWARDED_HOST", "FORWARDED", "X_REAL_IP"];
            if chain.contains(&variable.as_str()) {
                prop_assert!(!name.as_str().contains(['_', '.', '!']), "{}", name);
                if variable == "X_FORWARDED_FOR" {
                    let value = value.to_str().unwrap();
                    let is_correct = if trusted { value.ends_with("10.0.0.9") } else { value == "192.0.2.7" };
                    prop_assert!(is_correct, "{}", value);
                }
            }
            prop_assert!(name != header::CONNECTION || value == "upgrade");
        }
    }
}

#[test]
fn event_stream_is_recognised_by_its_media_type() {
    for (content_type, is_stream) in [
        (Some("text/event-stream"), true),
        (Some("Text/Event-Stream ; charset=utf-8"), true),
        (Some("text/event-stream-ish"), false),
        (Some("text/html; x=text/event-stream"), false),
        (None, false),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
        }
        assert_eq!(is_event_stream(&headers), is_stream, "{content_type:?}");
    }
}
