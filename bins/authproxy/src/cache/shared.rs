//! What several hosts know together, over memcached servers.
//!
//! Owns which server a key belongs to, and which entries are too old to be believed. Their bytes are `entry`'s.
//!
//! A key belongs to one server for as long as the list of servers is the same (rendezvous hashing: a server more or
//! less moves only the keys that it has). The keys of a dead one are asked of the engine, not of the next server: what
//! that has of them is from the last time that somebody died.

use std::sync::atomic::{AtomicU64, Ordering};

use hostkit::clock;
use sha2::{Digest as _, Sha256};

use super::entry::{Signer, millis};
use super::memcached::{Server, ServerSnapshot};
use super::table::Kept;
use crate::grant::KeyHash;
use crate::settings;
use hostkit::metrics::Counter;

/// The memcached servers.
#[derive(Debug)]
pub struct SharedCache {
    servers: Vec<Placed>,
    /// Signs entries.
    signer: Signer,
    /// Opens those that other hosts sign while the secret is changed.
    other: Option<Signer>,
    /// What was issued until then is not believed: milliseconds since 1970 UTC.
    purged: AtomicU64,
    /// Entries that are not ours, or over.
    refused: Counter,
}

#[derive(Debug)]
struct Placed {
    /// What its name weighs with.
    seed: u64,
    server: Server,
}

impl SharedCache {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The prefix cannot be a part of a name in memcached.
    pub fn new(settings: &settings::MemcachedSettings) -> Result<Self, String> {
        let place = |name: &String| Placed {
            seed: first_eight(&Sha256::digest(name).into()),
            server: Server::new(name.clone()),
        };
        let mut secrets = settings.secrets.iter();
        let mut signer = || {
            secrets
                .next()
                .map(|secret| Signer::new(&settings.prefix, secret))
        };
        Ok(Self {
            servers: settings.servers.iter().map(place).collect(),
            signer: signer().ok_or("there is no secret")??,
            other: signer().transpose()?,
            purged: AtomicU64::new(0),
            refused: Counter::default(),
        })
    }

    /// What the key's server has of it, if that can be believed.
    pub(super) async fn get(
        &self,
        key: &KeyHash,
        settings: &settings::CacheSettings,
    ) -> Option<Kept> {
        for signer in self.signers() {
            if let Some(kept) = self.get_signed(signer, key, settings).await {
                return Some(kept);
            }
        }
        None
    }

    async fn get_signed(
        &self,
        signer: &Signer,
        key: &KeyHash,
        settings: &settings::CacheSettings,
    ) -> Option<Kept> {
        let (name, place) = signer.name(key);
        let entry = self.server(place)?.get(name).await?;
        let opened = signer.open(key, &entry, settings, clock::now());
        let Some((issued, kept)) = opened else {
            if self.refused.add(1) == 0 {
                tracing::warn!(
                    "a memcached entry does not count: it is over, or not signed with the secret of --cache-secret-file; \
                     that has to be the same on all hosts (further ones are only counted)"
                );
            }
            return None;
        };
        (issued > self.purged.load(Ordering::Relaxed)).then_some(kept)
    }

    /// Stores an answer that has just come, in the background.
    pub(super) fn put(&self, key: &KeyHash, kept: &Kept) {
        let (name, place) = self.signer.name(key);
        if let Some(server) = self.server(place)
            && let Some(entry) = self.signer.seal(key, kept, clock::now())
        {
            server.set(&name, &entry, kept.stale);
        }
    }

    /// From now on believes nothing that is there.
    pub(super) fn disregard(&self) {
        self.purged
            .fetch_max(millis(clock::now()), Ordering::Relaxed);
    }

    /// Deletes what the key's server has of it.
    pub(super) async fn delete(&self, key: &KeyHash) {
        for signer in self.signers() {
            let (name, place) = signer.name(key);
            if let Some(server) = self.server(place) {
                server.delete(name).await;
            }
        }
    }

    fn signers(&self) -> impl Iterator<Item = &Signer> {
        std::iter::once(&self.signer).chain(&self.other)
    }

    /// The server that a key belongs to.
    fn server(&self, place: u64) -> Option<&Server> {
        let weight = |placed: &&Placed| mix(placed.seed ^ place);
        let placed = self.servers.iter().max_by_key(weight)?;
        Some(&placed.server)
    }

    /// Entries that did not count, and how each server does.
    pub(super) fn snapshot(&self) -> (u64, Vec<ServerSnapshot>) {
        let servers = self.servers.iter().map(|placed| placed.server.snapshot());
        (self.refused.get(), servers.collect())
    }
}

pub(super) fn first_eight(hash: &[u8; 32]) -> u64 {
    hash.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// Spreads the bits of a number over all of it, the same on all hosts (the finaliser of splitmix64: Steele, Lea, Flood,
/// "Fast Splittable Pseudorandom Number Generators", 2014).
const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(servers: &[&str]) -> SharedCache {
        SharedCache::new(&settings::MemcachedSettings {
            servers: servers.iter().map(|&name| name.to_owned()).collect(),
            prefix: "test".to_owned(),
            secrets: vec![settings::SigningSecret(b"0123456789abcdef".to_vec())],
        })
        .unwrap()
    }

    fn places(shared: &SharedCache) -> Vec<String> {
        let keys = (0..3_000_u32).map(|number| KeyHash::of(&number.to_be_bytes()));
        keys.map(|key| {
            let (_, place) = shared.signer.name(&key);
            shared.server(place).unwrap().snapshot().name
        })
        .collect()
    }

    #[test]
    fn keys_spread_and_a_lost_server_moves_only_its_own() {
        let all = places(&shared(&["a:1", "b:1", "c:1"]));
        for name in ["a:1", "b:1", "c:1"] {
            let share = all.iter().filter(|place| *place == name).count();
            assert!((800..1_200).contains(&share), "{name}: {share}");
        }
        assert_eq!(
            all,
            places(&shared(&["c:1", "a:1", "b:1"])),
            "the order is nothing"
        );
        let without = places(&shared(&["a:1", "c:1"]));
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || before == "b:1", "{before} {after}");
        }
    }

    #[test]
    fn without_a_server_there_is_nothing() {
        assert!(shared(&[]).server(7).is_none());
    }
}
