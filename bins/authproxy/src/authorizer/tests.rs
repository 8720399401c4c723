//! The order of the questions, before everything that can be known of a key.

mod named;

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

fn known(stale: bool) -> KeyLookupResult {
    let grant = grant(&[]);
    Ok(KeyLookup::Grant { grant, stale })
}

fn unavailable() -> KeyLookupResult {
    Err(BackendUnavailable::failed("it is away"))
}

/// What is decided when this is known of the key `k`, of a trusted peer; nothing may be asked about when it is none.
async fn decide_trusted(
    site: &SiteSettings,
    parts: &Parts,
    answer: Option<KeyLookupResult>,
) -> Result<AllowDecision, DenyDecision> {
    decide_for_peer(true, site, parts, answer).await
}

async fn decide_for_peer(
    trusted: bool,
    site: &SiteSettings,
    parts: &Parts,
    answer: Option<KeyLookupResult>,
) -> Result<AllowDecision, DenyDecision> {
    decide(site, parts, trusted, async |key| {
        assert_eq!(key, KeyHash::of(b"k"));
        answer.expect("nobody has to be asked")
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
async fn a_key_decides() {
    let site = site();
    let request = with_key("GET", "/data");
    let pass = decide_trusted(&site, &request, Some(known(false)))
        .await
        .unwrap();
    assert_eq!((pass.reason, pass.route), (AllowReason::ValidKey, None));
    assert_eq!(pass.grant.unwrap().id, "alice");
    let pass = decide_trusted(&site, &request, Some(known(true)))
        .await
        .unwrap();
    assert_eq!(
        (pass.reason, pass.grant.unwrap().id.as_str()),
        (AllowReason::StaleGrant, "alice")
    );

    let refused = decide_trusted(&site, &request, Some(Ok(KeyLookup::UnknownKey)))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::UnknownKey);
    assert_eq!(refused.key, Some(KeyHash::of(b"k")), "for the log");
    let refused = decide_trusted(&site, &request, Some(unavailable()))
        .await
        .unwrap_err();
    assert_eq!(
        refused.refusal,
        RequestError::PermissionsUnavailable(PermissionsFailure::Failed)
    );
    let without = parts(Request::get("/data"));
    let refused = decide_trusted(&site, &without, None).await.unwrap_err();
    assert_eq!(refused.refusal, RequestError::MissingKey);
    let two = parts(Request::get("/data?apikey=j").header("x-api-key", "k"));
    let refused = decide_trusted(&site, &two, None).await.unwrap_err();
    assert_eq!(refused.refusal, RequestError::AmbiguousKey);
}

#[tokio::test]
async fn a_refusal_says_whose_key_it_was_and_which_route_decided() {
    let refused = decide_trusted(&site(), &with_key("POST", "/data"), Some(known(false)))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::MissingRight);
    assert_eq!(refused.grant.unwrap().id, "alice");
    assert_eq!(refused.route.as_deref(), Some("change"));
    let refused = decide_trusted(&site(), &with_key("GET", "/a/../ping"), None)
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::AmbiguousPath);
}

#[tokio::test]
async fn open_paths_depend_on_nobody() {
    let two_keys = parts(Request::get("/ping/x?apikey=j&apikey=k").header("x-api-key", "k"));
    for request in [
        parts(Request::post("/ping")),
        with_key("GET", "/ping"),
        two_keys,
    ] {
        let pass = decide_trusted(&site(), &request, None).await.unwrap();
        assert_eq!(
            (pass.reason, pass.route.as_deref()),
            (AllowReason::OpenPath, Some("ping"))
        );
        assert_eq!(pass.grant, None);
    }
}

#[tokio::test]
async fn only_a_well_formed_preflight_passes_without_a_key_and_only_as_configured() {
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
        // The route of what is asked about decides, and not that of OPTIONS.
        site.rules.routes[1].preflight = mode;
        for more in [
            &[][..],
            &["content-length: 0"],
            &["access-control-request-headers: x-api-key, content-type"],
        ] {
            let lines = [&[ORIGIN, METHOD], more].concat();
            let decided = decide_trusted(&site, &request("OPTIONS", "/data", &lines), None).await;
            match (decided, mark) {
                (Ok(pass), Some(mark)) => {
                    assert_eq!((pass.reason, pass.grant), (mark, None));
                    assert_eq!(pass.route.as_deref(), Some("change"));
                }
                (Err(refused), None) => assert_eq!(refused.refusal, RequestError::MissingKey),
                (decided, _) => panic!("{mode:?} {more:?}: {decided:?}"),
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
        let refused = decide_trusted(&site, &request(method, path, lines), None).await;
        assert_eq!(
            refused.unwrap_err().refusal,
            RequestError::MissingKey,
            "{lines:?}"
        );
    }
    let open = request("OPTIONS", "/ping", &[ORIGIN, METHOD]);
    let pass = decide_trusted(&site, &open, None).await.unwrap();
    assert_eq!(
        pass.reason,
        AllowReason::OpenPath,
        "its server answers for itself"
    );
}

#[tokio::test]
async fn fail_open_is_for_an_engine_that_cannot_be_asked_and_nothing_else() {
    let mut site = site();
    site.fail_open = true;
    let request = with_key("POST", "/data");
    let pass = decide_trusted(&site, &request, Some(unavailable()))
        .await
        .unwrap();
    assert_eq!(
        (pass.reason, pass.route.as_deref()),
        (AllowReason::FailOpen, Some("change"))
    );
    assert_eq!(pass.grant, None);
    let refused = decide_trusted(&site, &request, Some(Ok(KeyLookup::UnknownKey)))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::UnknownKey);
    let refused = decide_trusted(&site, &parts(Request::get("/")), None)
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::MissingKey);
    let expired = Grant {
        expires: Some(1_000_000_000),
        ..(*grant(&[])).clone()
    };
    let answer = Ok(KeyLookup::Grant {
        grant: Arc::new(expired),
        stale: true,
    });
    let refused = decide_trusted(&site, &request, Some(answer))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::ExpiredKey);
}

#[tokio::test]
async fn the_host_is_that_of_the_header_or_of_the_parameter() {
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
    let ours = || answer(&["example.com"]);
    decide_trusted(&site, &get("/?host=other.com"), ours())
        .await
        .unwrap();
    let refused = decide_trusted(&site, &get("/"), answer(&["other.com"]))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal, RequestError::HostNotAllowed);

    site.rules.host_parameter = Some("host".to_owned());
    for target in ["/?host=example.com", "/?a&h%6Fst=example%2Ecom&host2=x"] {
        decide_trusted(&site, &get(target), ours()).await.unwrap();
    }
    for (target, refusal) in [
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
        let refused = decide_trusted(&site, &get(target), ours())
            .await
            .unwrap_err();
        assert_eq!(refused.refusal, refusal, "{target}");
    }
    // A key for all hosts does not depend on it.
    decide_trusted(&site, &get("/?host=a&host=b"), answer(&[]))
        .await
        .unwrap();
}
