//! What stands in memcached, where everybody can read and write.
//!
//! Owns the name and the bytes of an entry, and which bytes are believed. Who stores them is `memcached`'s.
//!
//! An entry is a version byte, an HMAC-SHA256, and JSON: when the answer was given, for how long it was to be believed,
//! and the grant unless nobody has the key. The HMAC also covers the prefix and the key's hash, so that an entry counts
//! only where it was put. What is left to somebody on the network: to read grants, to delete, and to put back an entry
//! that is not over yet, which undoes a revocation no longer than its time lasts (and, while the engine fails, as long
//! as grants are believed then). The name is an HMAC too, since a key's hash is all that it takes to ask a permissions
//! engine about it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::shared::first_eight;
use super::table::Kept;
use crate::grant::{Grant, KeyHash};
use crate::settings;

/// The first byte of every entry, and a part of its name: what another version means is not guessed at.
const VERSION: u8 = b'1';

/// The length of an HMAC-SHA256.
const TAG: usize = 32;

/// How far the clocks of two hosts may be apart.
const SKEW: Duration = Duration::from_secs(60);

/// The longest prefix: with it names stay below the 250 bytes that memcached takes.
const LONGEST_PREFIX: usize = 128;

/// What an entry says.
#[derive(Serialize, Deserialize)]
struct Payload<'a> {
    /// Milliseconds since 1970 UTC.
    issued: u64,
    /// Milliseconds.
    ttl: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<Cow<'a, Grant>>,
}

/// Signs entries, and tells which are signed.
#[derive(Clone)]
pub(super) struct Signer {
    prefix: String,
    entries: Hmac<Sha256>,
    names: Hmac<Sha256>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// # Errors
    /// The prefix cannot be a part of a name in memcached.
    pub(super) fn new(prefix: &str, secret: &settings::SigningSecret) -> Result<Self, String> {
        if prefix.len() > LONGEST_PREFIX || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{prefix:?} cannot begin a memcached key: take at most {LONGEST_PREFIX} visible ASCII characters"
            ));
        }
        let keyed = |purpose: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0)
                .map_err(|_| "the cache secret cannot be used".to_owned())?;
            mac.update(purpose);
            // With its length, so that no prefix and key read as another prefix and key.
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

    /// The name of a key's entry, and a number for its place.
    pub(super) fn name(&self, key: &KeyHash) -> (String, u64) {
        let mut mac = self.names.clone();
        mac.update(key.bytes());
        let hash: [u8; TAG] = mac.finalize().into_bytes().into();
        let mut name = format!("{}:{}:", self.prefix, char::from(VERSION));
        for byte in hash {
            // A String takes whatever is written to it.
            let _ = write!(name, "{byte:02x}");
        }
        (name, first_eight(&hash))
    }

    /// The bytes of an entry for an answer that has just come.
    pub(super) fn seal(&self, key: &KeyHash, kept: &Kept, now: SystemTime) -> Option<Vec<u8>> {
        let payload = Payload {
            issued: millis(now),
            ttl: whole(kept.fresh),
            grant: kept.grant.as_deref().map(Cow::Borrowed),
        };
        let payload = serde_json::to_vec(&payload).ok()?;
        let tag = self.tag(key, &payload).finalize().into_bytes();
        Some([&[VERSION][..], &tag, &payload].concat())
    }

    /// What an entry says, and when it was issued, in milliseconds since 1970 UTC. None: it is not ours, not for this
    /// key, from the future, or over.
    pub(super) fn open(
        &self,
        key: &KeyHash,
        entry: &[u8],
        settings: &settings::CacheSettings,
        now: SystemTime,
    ) -> Option<(u64, Kept)> {
        let (version, rest) = entry.split_first()?;
        let (tag, payload) = rest.split_at_checked(TAG)?;
        if *version != VERSION || self.tag(key, payload).verify_slice(tag).is_err() {
            return None;
        }
        let payload: Payload<'_> = serde_json::from_slice(payload).ok()?;
        let now = millis(now);
        if payload.issued > now.saturating_add(whole(SKEW)) {
            return None;
        }
        let age = Duration::from_millis(now.saturating_sub(payload.issued));
        let grant = payload.grant.map(|grant| Arc::new(grant.into_owned()));
        // Whoever wrote it may have been told to believe things for longer.
        let longest = if grant.is_some() {
            settings.allowed
        } else {
            settings.denied
        };
        let ttl = Duration::from_millis(payload.ttl).min(longest);
        let kept = Kept::of(grant, ttl, age, settings);
        (!kept.stale.is_zero()).then_some((payload.issued, kept))
    }

    fn tag(&self, key: &KeyHash, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.entries.clone();
        mac.update(key.bytes());
        mac.update(payload);
        mac
    }
}

/// Milliseconds since 1970 UTC.
pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, whole)
}

/// Milliseconds.
fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
