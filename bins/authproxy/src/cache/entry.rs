//! The name and the bytes of a memcached entry, and their verification: anyone on the network can write to memcached.
//!
//! An entry is a version byte, an HMAC-SHA256, and JSON (issue time, TTL, and the grant unless the key is unknown). The
//! HMAC also covers the prefix and the key's hash, so that an entry is valid only under its own name. An attacker on the
//! network can still read grants, delete entries, and restore an entry before it expires, which undoes a revocation until
//! then (with stale-if-error, while the backend fails). The name is an HMAC too, because a key's hash is enough to query
//! a permissions backend about it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use hostkit::hex;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::local::CachedResult;
use super::shared::first_eight;
use crate::grant::{Grant, KeyHash};
use crate::settings;

/// The first byte of every entry, and a part of its name.
const VERSION: u8 = b'1';

/// The length of an HMAC-SHA256.
const TAG_LENGTH: usize = 32;

/// How far the clocks of two hosts may differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Keeps names below the 250 bytes that memcached allows.
const MAX_PREFIX_LENGTH: usize = 128;

#[derive(Serialize, Deserialize)]
struct EntryPayload<'a> {
    /// Milliseconds since 1970 UTC.
    issued: u64,
    /// Milliseconds.
    ttl: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<Cow<'a, Grant>>,
}

/// Signs and verifies entries.
#[derive(Clone)]
pub(super) struct EntrySigner {
    prefix: String,
    entries: Hmac<Sha256>,
    names: Hmac<Sha256>,
}

impl std::fmt::Debug for EntrySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntrySigner")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl EntrySigner {
    pub(super) fn new(prefix: &str, secret: &settings::SigningSecret) -> Result<Self, String> {
        if prefix.len() > MAX_PREFIX_LENGTH || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "invalid cache prefix {prefix:?}: use at most {MAX_PREFIX_LENGTH} visible ASCII characters"
            ));
        }
        let keyed = |purpose: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0)
                .map_err(|_| "invalid cache secret".to_owned())?;
            mac.update(purpose);
            // With its length, so that a prefix and a key cannot be read as another prefix and key.
            mac.update(&(prefix.len() as u64).to_be_bytes());
            mac.update(prefix.as_bytes());
            Ok::<_, String>(mac)
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            entries: keyed(b"hostkit authproxy entry 1\0")?,
            names: keyed(b"hostkit authproxy name 1\0")?,
        })
    }

    /// The name of a key's entry, and the number that selects its server.
    pub(super) fn name(&self, key: &KeyHash) -> (String, u64) {
        let mut mac = self.names.clone();
        mac.update(key.bytes());
        let hash: [u8; TAG_LENGTH] = mac.finalize().into_bytes().into();
        let (version, digits) = (char::from(VERSION), hex::encode(&hash));
        let name = format!("{}:{version}:{digits}", self.prefix);
        (name, first_eight(&hash))
    }

    pub(super) fn seal(
        &self,
        key: &KeyHash,
        cached: &CachedResult,
        now: SystemTime,
    ) -> Option<Vec<u8>> {
        let payload = EntryPayload {
            issued: unix_millis(now),
            ttl: to_millis(cached.expires_in),
            grant: cached.grant.as_deref().map(Cow::Borrowed),
        };
        let payload = serde_json::to_vec(&payload).ok()?;
        let tag = self.tag(key, &payload).finalize().into_bytes();
        Some([&[VERSION][..], &tag, &payload].concat())
    }

    /// The content of an entry, and its issue time in milliseconds since 1970 UTC. `None`: the signature is invalid, the
    /// entry belongs to another key, was issued in the future, or has expired.
    pub(super) fn open(
        &self,
        key: &KeyHash,
        entry: &[u8],
        settings: &settings::CacheSettings,
        now: SystemTime,
    ) -> Option<(u64, CachedResult)> {
        let (version, rest) = entry.split_first()?;
        let (tag, payload) = rest.split_at_checked(TAG_LENGTH)?;
        if *version != VERSION || self.tag(key, payload).verify_slice(tag).is_err() {
            return None;
        }
        let payload: EntryPayload<'_> = serde_json::from_slice(payload).ok()?;
        let now = unix_millis(now);
        if payload.issued > now.saturating_add(to_millis(MAX_CLOCK_SKEW)) {
            return None;
        }
        let age = Duration::from_millis(now.saturating_sub(payload.issued));
        let grant = payload.grant.map(|grant| Arc::new(grant.into_owned()));
        // The host that wrote it may have longer TTLs.
        let longest = if grant.is_some() {
            settings.allowed
        } else {
            settings.denied
        };
        let ttl = Duration::from_millis(payload.ttl).min(longest);
        let cached = CachedResult::with_age(grant, ttl, age, settings);
        (!cached.stale_for.is_zero()).then_some((payload.issued, cached))
    }

    fn tag(&self, key: &KeyHash, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.entries.clone();
        mac.update(key.bytes());
        mac.update(payload);
        mac
    }
}

/// Milliseconds since 1970 UTC.
pub(super) fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, to_millis)
}

fn to_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
