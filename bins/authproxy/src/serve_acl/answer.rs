//! What is answered: a question about a key, a health check, or that it was neither.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::Engine;
use crate::grant::KeyHash;
use crate::permissions::protocol;

/// The longest head of a question (bytes).
pub(super) const HEAD: usize = 16 << 10;
/// How long the body of a question may take.
const BODY: Duration = Duration::from_secs(5);
/// Where its health is asked for.
const HEALTH: &str = "/health";

type Answer = Response<Full<Bytes>>;

/// Questions are posted to any path: what a proxy in front calls it, this need not know.
pub(super) async fn answer(
    engine: Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let health = request.uri().path() == HEALTH;
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let answer = match (health, get, request.method() == Method::POST) {
        (true, true, _) => json_of(StatusCode::OK, r#"{"ok":true}"#.to_owned()),
        (true, false, _) => other_method("GET, HEAD"),
        (false, _, true) => match question(request).await {
            Ok(key) => known(&engine, &key),
            Err(refused) => refused,
        },
        (false, true, _) => error(
            StatusCode::NOT_FOUND,
            "there is nothing here: POST a question",
        ),
        (false, false, _) => other_method("POST"),
    };
    if answer.status() != StatusCode::OK {
        engine.refused.add(1);
    }
    Ok(answer)
}

fn known(engine: &Engine, key: &KeyHash) -> Answer {
    let grant = engine.acl.get(key);
    let count = match grant {
        Some(_) => &engine.known,
        None => &engine.unknown,
    };
    count.add(1);
    json_of(StatusCode::OK, protocol::encode_response(grant.as_deref()))
}

/// The key that a request asks about, or what is answered instead.
async fn question(request: Request<Incoming>) -> Result<KeyHash, Answer> {
    let body = Limited::new(request.into_body(), protocol::MAX_REQUEST_BYTES).collect();
    let body = match timeout(BODY, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(trouble)) if trouble.is::<LengthLimitError>() => {
            return Err(error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "no question is that long",
            ));
        }
        Ok(Err(_)) => return Err(error(StatusCode::BAD_REQUEST, "the question was cut off")),
        Err(_) => {
            return Err(error(
                StatusCode::REQUEST_TIMEOUT,
                "the question did not arrive",
            ));
        }
    };
    protocol::decode_request(&body).map_err(|why| error(StatusCode::BAD_REQUEST, &why))
}

fn error(status: StatusCode, why: &str) -> Answer {
    json_of(status, json!({ "error": why }).to_string())
}

fn other_method(allow: &'static str) -> Answer {
    let mut answer = error(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path has other methods",
    );
    let allow = HeaderValue::from_static(allow);
    answer.headers_mut().insert(header::ALLOW, allow);
    answer
}

fn json_of(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
