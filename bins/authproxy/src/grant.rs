//! The hash of a key, and the grant that a permissions backend has for it.
//!
//! Owns these types and their JSON, which is that of the ACL protocol. `scope` checks a request against a grant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hostkit::hex;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

mod expiry;
#[cfg(test)]
mod tests;
pub(crate) mod validation;

#[cfg(test)]
use expiry::parse_expiry;
pub(crate) use expiry::{MAX_EXPIRY, format_expiry};

/// The SHA-256 of a key: the only form in which a key is looked up, stored, cached, sent or logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key as the client sent it, percent-decoded if it was in a query.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The first 8 hex digits.
    pub fn short(&self) -> String {
        format!("{:.8}", self.to_string())
    }

    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for KeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = hex::decode(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            let text = shorten(text);
            format!("invalid SHA-256 {text:?}: expected 64 hex digits")
        })
    }
}

/// A text in the place of a hash may be a key, which must not be shown.
fn shorten(text: &str) -> String {
    let start: String = text.chars().take(4).collect();
    if start.len() == text.len() {
        start
    } else {
        format!("{start}...")
    }
}

/// The owner of a key, and the requests that it allows. An empty list of hosts, paths or methods restricts nothing. All
/// members are valid and in the normalized form in which `scope` compares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Sent to the upstream as `X-Auth-Id`, and the name of the key in logs and metrics.
    #[serde(deserialize_with = "validation::deserialize_id")]
    pub id: String,
    #[serde(deserialize_with = "validation::deserialize_rights")]
    pub rights: Vec<String>,
    /// `example.com`, or `*.example.com` for all its subdomains.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "validation::deserialize_hosts"
    )]
    pub hosts: Vec<String>,
    /// Path prefixes of whole segments.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "validation::deserialize_paths"
    )]
    pub paths: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "validation::deserialize_methods"
    )]
    pub methods: Vec<String>,
    /// Seconds since 1970 UTC; in JSON and YAML an RFC 3339 time.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expiry::serialize",
        deserialize_with = "validation::deserialize_expires"
    )]
    pub expires: Option<u64>,
}

/// The response of a permissions backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendResponse {
    /// `None` for an unknown key.
    pub grant: Option<Arc<Grant>>,
    /// How long the response may be cached, if the backend limits it.
    pub ttl: Option<Duration>,
}
