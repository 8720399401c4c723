//! The order of the checks, with every result of a key lookup.

mod overrides;

use std::time::Duration;

use hyper::Request;
use hyper::header::{HeaderName, HeaderValue};

use super::*;
use crate::permissions::BackendUnavailable;
use crate::request_error::PermissionsFailure;
use crate::settings::{CorsPolicy, KeySources, RequestLimits, RequestTimeouts, RouteRule};

fn site() -> SiteSettings {
    let second = Duration::from_secs(1);
    let route = |name: &str, prefix: &str, methods: &[&str], rights: Option<&str>| RouteRule {
        name: name.into(),
        prefix: prefix.to_owned(),
        methods: methods.iter().map(|&one| one.to_owned()).collect(),
        rights: rights.map(|right| vec![right.to_owned()]),
        preflight: PreflightPolicy::Off,
    };
    SiteSettings {
        credentials: KeySources {
            header: HeaderName::from_static("x-api-key"),
            parameter: "apikey".to_owned(),
            hide: false,
        },
        rules: AccessRules {
            rights: vec!["all".to_owned()],
            routes: vec![
                route("ping", "/ping", &[], None),
                route("change", "/", &["POST"], Some("write")),
            ],
            preflight: PreflightPolicy::Off,
            host_parameter: None,
        },
        trusted: Vec::new(),
        protected: Vec::new(),
        cors: CorsPolicy::default(),
        health_path: None,
        fail_open: false,
        stream_all: false,
        timeouts: RequestTimeouts {
            server: second,
            client: second,
            idle: second,
            stream: second,
        },
        limits: RequestLimits {
            head: 16_384,
            body: None,
            rate: 0,
            server_connections: 1,
        },
    }
}

fn parts(request: hyper::http::request::Builder) -> Parts {
    request.body(()).unwrap().into_parts().0
}

/// A grant of the right `all`.
fn grant(hosts: &[&str]) -> Arc<Grant> {
    Arc::new(Grant {
        id: "alice".to_owned(),
        rights: vec!["all".to_owned()],
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        paths: Vec::new(),
        methods: Vec::new(),
        expires: None,
    })
}

fn granted(stale: bool) -> KeyLookupResult {
    let grant = grant(&[]);
    Ok(KeyLookup::Grant { grant, stale })
}

fn unavailable() -> KeyLookupResult {
    Err(BackendUnavailable::failed("connection denied"))
}

/// The decision for a trusted peer with this lookup result of the key `k`; `None`: no lookup is expected.
async fn decide_trusted(
    site: &SiteSettings,
    parts: &Parts,
    lookup: Option<KeyLookupResult>,
) -> Result<AllowDecision, DenyDecision> {
    decide_for_peer(true, site, parts, lookup).await
}

async fn decide_for_peer(
    trusted: bool,
    site: &SiteSettings,
    parts: &Parts,
    lookup: Option<KeyLookupResult>,
) -> Result<AllowDecision, DenyDecision> {
    decide(site, parts, trusted, async |key| {
        assert_eq!(key, KeyHash::of(b"k"));
        lookup.expect("no lookup is expected")
    })
    .await
}

fn with_key(method: &str, target: &str) -> Parts {
    parts(
        Request::builder()
            .method(method)
            .uri(target)
            .header("x-api-key", "k"),
    )
}

#[tokio::test]
async fn key_lookup_allows_or_denies_request() {
    let site = site();
    let request = with_key("GET", "/data");
    let allowed = decide_trusted(&site, &request, Some(granted(false)))
        .await
        .unwrap();
    assert_eq!(
        (allowed.reason, allowed.route),
        (AllowReason::ValidKey, None)
    );
    assert_eq!(allowed.grant.unwrap().id, "alice");
    let allowed = decide_trusted(&site, &request, Some(granted(true)))
        .await
        .unwrap();
    assert_eq!(
        (allowed.reason, allowed.grant.unwrap().id.as_str()),
        (AllowReason::StaleGrant, "alice")
    );

    let denied = decide_trusted(&site, &request, Some(Ok(KeyLookup::UnknownKey)))
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::UnknownKey);
    assert_eq!(denied.key, Some(KeyHash::of(b"k")), "for the log");
    let denied = decide_trusted(&site, &request, Some(unavailable()))
        .await
        .unwrap_err();
    assert_eq!(
        denied.error,
        RequestError::PermissionsUnavailable(PermissionsFailure::Failed)
    );
    let without = parts(Request::get("/data"));
    let denied = decide_trusted(&site, &without, None).await.unwrap_err();
    assert_eq!(denied.error, RequestError::MissingKey);
    let two = parts(Request::get("/data?apikey=j").header("x-api-key", "k"));
    let denied = decide_trusted(&site, &two, None).await.unwrap_err();
    assert_eq!(denied.error, RequestError::AmbiguousKey);
}

#[tokio::test]
async fn denial_names_grant_and_route() {
    let denied = decide_trusted(&site(), &with_key("POST", "/data"), Some(granted(false)))
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::MissingRight);
    assert_eq!(denied.grant.unwrap().id, "alice");
    assert_eq!(denied.route.as_deref(), Some("change"));
    let denied = decide_trusted(&site(), &with_key("GET", "/a/../ping"), None)
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::AmbiguousPath);
}

#[tokio::test]
async fn open_path_needs_no_lookup() {
    let two_keys = parts(Request::get("/ping/x?apikey=j&apikey=k").header("x-api-key", "k"));
    for request in [
        parts(Request::post("/ping")),
        with_key("GET", "/ping"),
        two_keys,
    ] {
        let allowed = decide_trusted(&site(), &request, None).await.unwrap();
        assert_eq!(
            (allowed.reason, allowed.route.as_deref()),
            (AllowReason::OpenPath, Some("ping"))
        );
        assert_eq!(allowed.grant, None);
    }
}

#[tokio::test]
async fn only_valid_preflight_needs_no_key_and_only_as_configured() {
    const ORIGIN: &str = "origin: https://example.com";
    const METHOD: &str = "access-control-request-method: POST";
    let request = |method: &str, path: &str, lines: &[&str]| {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        parts(request)
    };
    let mut site = site();
    for (mode, mark) in [
        (PreflightPolicy::Off, None),
        (
            PreflightPolicy::Answer,
            Some(AllowReason::AnsweredPreflight),
        ),
        (PreflightPolicy::Pass, Some(AllowReason::ForwardedPreflight)),
    ] {
        // The route of the requested method applies, not that of OPTIONS.
        site.rules.routes[1].preflight = mode;
        for more in [
            &[][..],
            &["content-length: 0"],
            &["access-control-request-headers: x-api-key, content-type"],
        ] {
            let lines = [&[ORIGIN, METHOD], more].concat();
            let decision = decide_trusted(&site, &request("OPTIONS", "/data", &lines), None).await;
            match (decision, mark) {
                (Ok(allowed), Some(mark)) => {
                    assert_eq!((allowed.reason, allowed.grant), (mark, None));
                    assert_eq!(allowed.route.as_deref(), Some("change"));
                }
                (Err(denied), None) => assert_eq!(denied.error, RequestError::MissingKey),
                (decision, _) => panic!("{mode:?} {more:?}: {decision:?}"),
            }
        }
    }
    for (method, path, lines) in [
        ("GET", "/data", &[ORIGIN, METHOD][..]),
        ("OPTIONS", "*", &[ORIGIN, METHOD]),
        ("OPTIONS", "/data", &[ORIGIN]),
        ("OPTIONS", "/data", &[METHOD]),
        ("OPTIONS", "/data", &[ORIGIN, ORIGIN, METHOD]),
        ("OPTIONS", "/data", &[ORIGIN, METHOD, METHOD]),
        ("OPTIONS", "/data", &["origin: example.com", METHOD]),
        (
            "OPTIONS",
            "/data",
            &["origin: https://a, https://b", METHOD],
        ),
        ("OPTIONS", "/data", &["origin: https://a/path", METHOD]),
        (
            "OPTIONS",
            "/data",
            &[ORIGIN, "access-control-request-method: PO ST"],
        ),
        (
            "OPTIONS",
            "/data",
            &[ORIGIN, METHOD, "access-control-request-headers: a b"],
        ),
        ("OPTIONS", "/data", &[ORIGIN, METHOD, "content-length: 1"]),
        (
            "OPTIONS",
            "/data",
            &[ORIGIN, METHOD, "transfer-encoding: chunked"],
        ),
        ("OPTIONS", "/data", &[ORIGIN, METHOD, "upgrade: websocket"]),
        (
            "OPTIONS",
            "/data",
            &[ORIGIN, METHOD, "expect: 100-continue"],
        ),
    ] {
        let denied = decide_trusted(&site, &request(method, path, lines), None).await;
        assert_eq!(
            denied.unwrap_err().error,
            RequestError::MissingKey,
            "{lines:?}"
        );
    }
    let open = request("OPTIONS", "/ping", &[ORIGIN, METHOD]);
    let allowed = decide_trusted(&site, &open, None).await.unwrap();
    assert_eq!(
        allowed.reason,
        AllowReason::OpenPath,
        "the upstream answers it"
    );
}

#[tokio::test]
async fn fail_open_applies_only_while_backend_is_unavailable() {
    let mut site = site();
    site.fail_open = true;
    let request = with_key("POST", "/data");
    let allowed = decide_trusted(&site, &request, Some(unavailable()))
        .await
        .unwrap();
    assert_eq!(
        (allowed.reason, allowed.route.as_deref()),
        (AllowReason::FailOpen, Some("change"))
    );
    assert_eq!(allowed.grant, None);
    let denied = decide_trusted(&site, &request, Some(Ok(KeyLookup::UnknownKey)))
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::UnknownKey);
    let denied = decide_trusted(&site, &parts(Request::get("/")), None)
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::MissingKey);
    let expired = Grant {
        expires: Some(1_000_000_000),
        ..(*grant(&[])).clone()
    };
    let answer = Ok(KeyLookup::Grant {
        grant: Arc::new(expired),
        stale: true,
    });
    let denied = decide_trusted(&site, &request, Some(answer))
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::ExpiredKey);
}

#[tokio::test]
async fn host_is_read_from_header_or_parameter() {
    let mut site = site();
    let get = |target: &str| {
        let request = Request::get(target).header("x-api-key", "k");
        parts(request.header("host", "Example.com:8080"))
    };
    let answer = |hosts: &[&str]| {
        let grant = grant(hosts);
        Some(Ok(KeyLookup::Grant {
            grant,
            stale: false,
        }))
    };
    let allowed = || answer(&["example.com"]);
    decide_trusted(&site, &get("/?host=other.com"), allowed())
        .await
        .unwrap();
    let denied = decide_trusted(&site, &get("/"), answer(&["other.com"]))
        .await
        .unwrap_err();
    assert_eq!(denied.error, RequestError::HostNotAllowed);

    site.rules.host_parameter = Some("host".to_owned());
    for target in ["/?host=example.com", "/?a&h%6Fst=example%2Ecom&host2=x"] {
        decide_trusted(&site, &get(target), allowed())
            .await
            .unwrap();
    }
    for (target, error) in [
        ("/?host=other.com", RequestError::HostNotAllowed),
        ("/?host=", RequestError::HostNotAllowed),
        ("/", RequestError::HostNotAllowed),
        ("/?host=%ffexample.com", RequestError::HostNotAllowed),
        ("/?host=example%252Ecom", RequestError::HostNotAllowed),
        (
            "/?host=example.com&host=example.com",
            RequestError::AmbiguousHost,
        ),
        (
            "/?host=example.com&%68ost=other.com",
            RequestError::AmbiguousHost,
        ),
        ("/?host=example.com;a=b", RequestError::AmbiguousHost),
        ("/?a=b;host=example.com", RequestError::AmbiguousHost),
    ] {
        let denied = decide_trusted(&site, &get(target), allowed())
            .await
            .unwrap_err();
        assert_eq!(denied.error, error, "{target}");
    }
    // A key without a restriction of hosts does not depend on it.
    decide_trusted(&site, &get("/?host=a&host=b"), answer(&[]))
        .await
        .unwrap();
}
