//! Responses of authproxy itself: errors, preflights and the health path.

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

use crate::authorizer::DenyDecision;
use crate::headers::X_REQUEST_ID;
use crate::lifecycle::LifecyclePhase;
use crate::settings::SiteSettings;

/// The supported authentication schemes (RFC 9110 section 11.6.1).
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("ApiKey realm=\"api\", Bearer realm=\"api\"");
/// In seconds: the permissions backend is queried again after `--ttl-error`, and the queue for upstream is short.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// `{"error": CODE, "message": TEXT, "request_id": ID}`. hyper omits the body in response to HEAD.
pub(crate) fn error_response(
    denied: &DenyDecision,
    site: &SiteSettings,
    id: &HeaderValue,
) -> Response<Bytes> {
    let error = denied.error;
    let body = json!({
        "error": error.code(),
        "message": denied.message(),
        "request_id": id.to_str().unwrap_or_default(),
    });
    let status = error.status();
    let mut response = build(status, "application/json", format!("{body}\n"));
    let headers = response.headers_mut();
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
    if error.closes_connection() {
        close(headers);
    }
    headers.extend(site.cors.headers.iter().cloned());
    response
}

/// The response to a CORS preflight (Fetch standard, "CORS-preflight fetch"), from `cors` alone.
pub(crate) fn preflight_response(
    site: &SiteSettings,
    request: &HeaderMap,
    id: &HeaderValue,
) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, id.clone());
    headers.extend(site.cors.headers.iter().cloned());
    if let Some(origin) = site.cors.origin(request) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

/// The response of the health path: `200 ok`, or 503 and the phase.
pub(crate) fn health_response(phase: LifecyclePhase) -> Response<Bytes> {
    let text = "text/plain; charset=utf-8";
    match phase {
        LifecyclePhase::Serving => build(StatusCode::OK, text, "ok".to_owned()),
        LifecyclePhase::LameDuck | LifecyclePhase::Draining | LifecyclePhase::Aborting => {
            let body = phase.as_str().to_owned();
            let mut response = build(StatusCode::SERVICE_UNAVAILABLE, text, body);
            close(response.headers_mut());
            response
        }
    }
}

fn close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn build(status: StatusCode, content_type: &'static str, body: String) -> Response<Bytes> {
    let length = body.len();
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_error::{PermissionsFailure, RequestError};
    use crate::settings::tests::site;

    fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
        response.headers().get(name)?.to_str().ok()
    }

    #[test]
    fn error_response_has_code_message_and_cors_headers() {
        let site = site("cors: {allow-origin: '*', allow-headers: x-api-key, max-age: 600}\n");
        let id = HeaderValue::from_static("id7");
        let response = error_response(&RequestError::MissingKey.into(), &site, &id);
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(
            body,
            json!({"error": "missing_key", "message": "missing API key", "request_id": "id7"})
        );
        let length = response.body().len().to_string();
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
            assert_eq!(header(&response, name), value, "{name}");
        }
    }

    #[test]
    fn unavailable_backend_sends_retry_after_and_invalid_request_closes() {
        let (site, id) = (site(""), HeaderValue::from_static("id7"));
        let unavailable = RequestError::PermissionsUnavailable(PermissionsFailure::Failed);
        let response = error_response(&unavailable.into(), &site, &id);
        assert_eq!(response.status(), 503);
        assert_eq!(header(&response, "retry-after"), Some("1"));
        assert_eq!(header(&response, "www-authenticate"), None);
        let response = error_response(
            &RequestError::InvalidRequest("a \"bare\" line feed").into(),
            &site,
            &id,
        );
        assert_eq!(response.status(), 400);
        assert_eq!(header(&response, "connection"), Some("close"));
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["message"], "a \"bare\" line feed");
    }

    #[test]
    fn health_fails_from_lame_duck_on() {
        let response = health_response(LifecyclePhase::Serving);
        assert_eq!(
            (response.status().as_u16(), response.body().as_ref()),
            (200, &b"ok"[..])
        );
        for phase in [LifecyclePhase::LameDuck, LifecyclePhase::Draining] {
            let response = health_response(phase);
            assert_eq!(
                (response.status().as_u16(), header(&response, "connection")),
                (503, Some("close"))
            );
        }
    }
}
