//! What is known of a key: its hash, and the grant that the permissions engine has for it.
//!
//! Owns these values and their JSON, which is that of the ACL protocol. What a grant allows is `scope`'s.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

mod expiry;
pub(crate) mod read;
#[cfg(test)]
mod tests;

pub use expiry::parse as expiry;
pub(crate) use expiry::{LAST_SECOND, show as show_expiry};

/// The SHA-256 of a key: all of a key that is looked up, stored, cached, sent or logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key as the caller sent it, percent-decoded where it stood in a query.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// As much of it as shows which one it is.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{:.8}", self.to_string())
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
        let wrong = || format!("{:?} is no SHA-256: it has 64 hex digits", shorten(text));
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            // from_str_radix takes a sign.
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// What stands where a hash should may be a key: no more of it than shows which one it is.
fn shorten(text: &str) -> String {
    let start: String = text.chars().take(4).collect();
    if start.len() == text.len() {
        start
    } else {
        format!("{start}...")
    }
}

/// Who a key belongs to and what it may be used for. A list of scopes that is empty restricts nothing. Whatever it was
/// read from, its members are valid and in the form in which `scope` compares them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who: sent to the server as `X-Auth-Id`, and what logs and metrics call the key. 1 to 128 visible ASCII
    /// characters.
    #[serde(deserialize_with = "read::id")]
    pub id: String,
    /// The names of what it may do.
    #[serde(deserialize_with = "read::rights")]
    pub rights: Vec<String>,
    /// The hosts it may be used for: `example.com`, or `*.example.com` for all below it.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "read::hosts"
    )]
    pub hosts: Vec<String>,
    /// The beginnings of paths it may be used for, at the borders of segments.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "read::paths"
    )]
    pub paths: Vec<String>,
    /// The methods it may be used with.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "read::methods"
    )]
    pub methods: Vec<String>,
    /// From when on it is nothing worth: seconds since 1970 UTC. In JSON and YAML an RFC 3339 time.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "expiry::serialize",
        deserialize_with = "read::expires"
    )]
    pub expires: Option<u64>,
}

/// What a permissions engine says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendResponse {
    /// Its grant; none for a key that nobody has.
    pub grant: Option<Arc<Grant>>,
    /// How long that may be believed, if the engine says so.
    pub ttl: Option<Duration>,
}
