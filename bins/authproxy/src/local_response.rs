//! Our own answers: refusals and the health path.
//!
//! Owns their bytes. Why a request is refused is `refusal`'s.

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::authorizer::DenyDecision;
use crate::headers::X_REQUEST_ID;
use crate::lifecycle::LifecyclePhase;
use crate::settings::SiteSettings;

/// Which ways of sending a key there are (RFC 9110 section 11.6.1).
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("ApiKey realm=\"api\", Bearer realm=\"api\"");
/// When to ask again, in seconds: the engine is asked again after `--ttl-error`, and the queue for the server is short.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The answer to a request that does not go on: `{"error": WORD, "message": SENTENCE, "request_id": ID}`. hyper leaves
/// the body out of answers to HEAD.
#[must_use]
pub fn error_response(
    refused: &DenyDecision,
    site: &SiteSettings,
    id: &HeaderValue,
) -> Response<Bytes> {
    let refusal = refused.refusal;
    let body = json!({
        "error": refusal.code(),
        "message": refused.message(),
        "request_id": id.to_str().unwrap_or_default(),
    });
    let status = refusal.status();
    let mut answer = answer(status, "application/json", format!("{body}\n"));
    let headers = answer.headers_mut();
    headers.insert(X_REQUEST_ID, id.clone());
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    if [
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
    ]
    .contains(&status)
    {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    if refusal.closes_connection() {
        close(headers);
    }
    headers.extend(site.cors.headers.iter().cloned());
    answer
}

/// The answer to a CORS preflight (Fetch standard, "CORS-preflight fetch"), from `cors` alone.
#[must_use]
pub fn preflight_response(
    site: &SiteSettings,
    request: &HeaderMap,
    id: &HeaderValue,
) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(X_REQUEST_ID, id.clone());
    headers.extend(site.cors.headers.iter().cloned());
    if let Some(origin) = site.cors.origin(request) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    answer
}

/// The answer of the health path: `200 ok`, or 503 and the phase.
#[must_use]
pub fn health_response(phase: LifecyclePhase) -> Response<Bytes> {
    let text = "text/plain; charset=utf-8";
    match phase {
        LifecyclePhase::Serving => answer(StatusCode::OK, text, "ok".to_owned()),
        LifecyclePhase::LameDuck | LifecyclePhase::Draining | LifecyclePhase::Aborting => {
            let body = phase.as_str().to_owned();
            let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, text, body);
            close(answer.headers_mut());
            answer
        }
    }
}

fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let length = body.len();
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_error::{PermissionsFailure, RequestError};
    use crate::settings::tests::site;

    fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
        answer.headers().get(name)?.to_str().ok()
    }

    #[test]
    fn a_refusal_says_why_to_machines_people_and_browsers() {
        let site = site("cors: {allow-origin: '*', allow-headers: x-api-key, max-age: 600}\n");
        let id = HeaderValue::from_static("id7");
        let answer = error_response(&RequestError::MissingKey.into(), &site, &id);
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(
            body,
            json!({"error": "no_key", "message": "an API key is needed", "request_id": "id7"})
        );
        let length = answer.body().len().to_string();
        for (name, value) in [
            ("content-type", Some("application/json")),
            ("content-length", Some(length.as_str())),
            ("cache-control", Some("no-store")),
            (
                "www-authenticate",
                Some("ApiKey realm=\"api\", Bearer realm=\"api\""),
            ),
            ("x-request-id", Some("id7")),
            ("access-control-allow-origin", Some("*")),
            ("access-control-allow-headers", Some("x-api-key")),
            ("access-control-max-age", Some("600")),
            ("retry-after", None),
            ("connection", None),
        ] {
            assert_eq!(header(&answer, name), value, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_judged_now_may_be_asked_again_and_what_cannot_be_read_ends() {
        let (site, id) = (site(""), HeaderValue::from_static("id7"));
        let failed = RequestError::PermissionsUnavailable(PermissionsFailure::Failed);
        let answer = error_response(&failed.into(), &site, &id);
        assert_eq!(answer.status(), 503);
        assert_eq!(header(&answer, "retry-after"), Some("1"));
        assert_eq!(header(&answer, "www-authenticate"), None);
        let answer = error_response(
            &RequestError::InvalidRequest("a \"bare\" line feed").into(),
            &site,
            &id,
        );
        assert_eq!(answer.status(), 400);
        assert_eq!(header(&answer, "connection"), Some("close"));
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(body["message"], "a \"bare\" line feed");
    }

    #[test]
    fn health_fails_from_the_lame_duck_on() {
        let answer = health_response(LifecyclePhase::Serving);
        assert_eq!(
            (answer.status().as_u16(), answer.body().as_ref()),
            (200, &b"ok"[..])
        );
        for phase in [LifecyclePhase::LameDuck, LifecyclePhase::Draining] {
            let answer = health_response(phase);
            assert_eq!(
                (answer.status().as_u16(), header(&answer, "connection")),
                (503, Some("close"))
            );
        }
    }
}
