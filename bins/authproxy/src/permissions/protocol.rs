//! The ACL protocol, version 1: a request about one key and its response, both JSON. `ACL.md` describes it.
//!
//! Owns the bodies of both, for the client (`server`) and the server (`serve_acl`).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::grant::{BackendResponse, Grant, KeyHash};

pub(crate) const MAX_RESPONSE_BYTES: usize = 64 << 10;
pub(crate) const MAX_REQUEST_BYTES: usize = 4 << 10;
/// A longer `ttl` of a response is cut to this.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
struct AclRequest {
    v: u32,
    key_sha256: KeyHash,
}

/// The common members of all responses. A response with `known: true` is also a [`Grant`]; unknown members are ignored.
#[derive(Deserialize)]
struct AclResponseHeader {
    known: bool,
    ttl: Option<f64>,
}

#[derive(Serialize)]
struct GrantResponse<'a> {
    known: bool,
    #[serde(flatten)]
    grant: &'a Grant,
}

pub(crate) fn encode_request(key: &KeyHash) -> String {
    format!(r#"{{"v":1,"key_sha256":"{key}"}}"#)
}

pub(crate) fn decode_request(body: &[u8]) -> Result<KeyHash, String> {
    let request: AclRequest = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    match request.v {
        1 => Ok(request.key_sha256),
        other => Err(format!("unsupported version {other}: send \"v\":1")),
    }
}

pub(crate) fn encode_response(grant: Option<&Grant>) -> Vec<u8> {
    let response = grant.map(|grant| GrantResponse { known: true, grant });
    response
        .and_then(|response| serde_json::to_vec(&response).ok())
        .unwrap_or_else(|| br#"{"known":false}"#.to_vec())
}

pub(crate) fn decode_response(body: &[u8]) -> Result<BackendResponse, String> {
    let header: AclResponseHeader =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let ttl = match header.ttl {
        Some(seconds) => Some(
            Duration::try_from_secs_f64(seconds.min(MAX_TTL.as_secs_f64()))
                .map_err(|_| format!("invalid ttl {seconds}"))?,
        ),
        None => None,
    };
    let grant = match header.known {
        true => Some(serde_json::from_slice(body).map_err(|error| error.to_string())?),
        false => None,
    };
    Ok(BackendResponse {
        grant: grant.map(Arc::new),
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<BackendResponse, String> {
        decode_response(body.as_bytes())
    }

    #[test]
    fn request_has_version_1_and_one_hash() {
        let key = KeyHash::of(b"some key");
        assert_eq!(decode_request(encode_request(&key).as_bytes()), Ok(key));
        let digits = key.to_string();
        for body in [
            String::new(),
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"v":2,"key_sha256":"{digits}"}}"#),
            format!(r#"{{"v":"1","key_sha256":"{digits}"}}"#),
            format!(r#"{{"key_sha256":"{digits}"}}"#),
            format!(r#"{{"v":1,"key_sha256":"{}"}}"#, &digits[1..]),
            format!(r#"{{"v":1,"key_sha256":"{digits}"}}{{}}"#),
            r#"{"v":1,"key":"some key"}"#.to_owned(),
        ] {
            assert!(decode_request(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn response_has_grant_or_known_false() {
        let unknown_key = BackendResponse {
            grant: None,
            ttl: None,
        };
        assert_eq!(read(r#"{"known":false}"#), Ok(unknown_key.clone()));
        assert_eq!(
            read(r#" {"known":false,"why":"not registered","id":7} "#),
            Ok(unknown_key)
        );
        let found =
            read(r#"{"known":true,"id":"a","rights":["all"],"paths":["/x/"],"ttl":1.5,"more":{}}"#)
                .unwrap();
        assert_eq!(found.ttl, Some(Duration::from_millis(1500)));
        let grant = found.grant.unwrap();
        assert_eq!(
            (&*grant.id, &grant.paths[..]),
            ("a", &["/x".to_owned()][..])
        );
        let again = encode_response(Some(&grant));
        assert_eq!(decode_response(&again).unwrap().grant.unwrap(), grant);
        assert_eq!(encode_response(None), br#"{"known":false}"#);
    }

    #[test]
    fn ttl_of_response_is_bounded() {
        for (ttl, expected) in [("0", 0), ("60", 60), ("1e300", 86_400), ("86401", 86_400)] {
            let found = read(&format!(r#"{{"known":false,"ttl":{ttl}}}"#)).unwrap();
            assert_eq!(found.ttl, Some(Duration::from_secs(expected)), "{ttl}");
        }
        for ttl in ["-1", "\"60\"", "[]", "true", "-1e300"] {
            assert!(
                read(&format!(r#"{{"known":false,"ttl":{ttl}}}"#)).is_err(),
                "{ttl}"
            );
        }
    }

    #[test]
    fn invalid_response_is_neither_grant_nor_denial() {
        for body in [
            "",
            "null",
            "true",
            "{}",
            "[]",
            "known",
            r#"{"known":null}"#,
            r#"{"known":"yes"}"#,
            r#"{"known":"false"}"#,
            r#"{"known":0}"#,
            r#"{"known":1,"id":"a","rights":[]}"#,
            r#"{"known":true}"#,
            r#"{"known":true,"id":"a"}"#,
            r#"{"known":true,"id":"a b","rights":[]}"#,
            r#"{"known":true,"id":"a","rights":"all"}"#,
            r#"{"known":true,"id":"a","rights":[],"hosts":"x"}"#,
            r#"{"known":true,"id":"a","rights":[],"expires":12}"#,
            r#"{"known":true,"known":false}"#,
            r#"{"known":false,"known":true}"#,
            r#"{"known":false"#,
            r#"{"known":false}x"#,
            r#"{"Known":false}"#,
            "<html>{\"known\":false}</html>",
        ] {
            assert!(read(body).is_err(), "{body}");
        }
        let deep = format!(
            r#"{{"known":false,"x":{}1{}}}"#,
            "[".repeat(9999),
            "]".repeat(9999)
        );
        assert!(
            read(&deep).is_ok(),
            "unknown members are skipped, however deep"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_an_error(bytes: Vec<u8>, text in "[{}\\[\\]\":,a-z0-9]{0,40}") {
            let _ = (decode_response(&bytes), decode_request(&bytes), read(&text));
        }
    }
}
