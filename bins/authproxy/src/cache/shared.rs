//! The cache that several hosts share in memcached.
//!
//! Owns which server holds a key, and which entries a purge has made invalid. The bytes of an entry are in `entry`.
//!
//! Rendezvous hashing assigns each key to one server: adding or removing a server moves only its own keys. Keys of a
//! failing server are looked up in the backend, not in the next server, whose entries would be from an earlier failure.

use std::sync::atomic::{AtomicU64, Ordering};

use hostkit::clock;
use sha2::{Digest as _, Sha256};

use super::entry::{EntrySigner, unix_millis};
use super::local::CachedResult;
use super::memcached::{MemcachedClient, MemcachedStatus};
use crate::grant::KeyHash;
use crate::settings;
use hostkit::metrics::Counter;

#[derive(Debug)]
pub struct SharedCache {
    servers: Vec<RendezvousNode>,
    signer: EntrySigner,
    /// Verifies entries of other hosts while the secret is rotated.
    previous_signer: Option<EntrySigner>,
    /// Entries issued until then are ignored: milliseconds since 1970 UTC.
    purged_until: AtomicU64,
    invalid_entries: Counter,
}

#[derive(Debug)]
struct RendezvousNode {
    /// The hash of its name, for rendezvous hashing.
    seed: u64,
    server: MemcachedClient,
}

impl SharedCache {
    /// Connections are opened on first use.
    ///
    /// # Errors
    /// The prefix is invalid.
    pub fn new(settings: &settings::MemcachedSettings) -> Result<Self, String> {
        let node = |name: &String| RendezvousNode {
            seed: first_eight(&Sha256::digest(name).into()),
            server: MemcachedClient::new(name.clone()),
        };
        let mut secrets = settings.secrets.iter();
        let mut signer = || {
            secrets
                .next()
                .map(|secret| EntrySigner::new(&settings.prefix, secret))
        };
        Ok(Self {
            servers: settings.servers.iter().map(node).collect(),
            signer: signer().ok_or("missing cache secret")??,
            previous_signer: signer().transpose()?,
            purged_until: AtomicU64::new(0),
            invalid_entries: Counter::default(),
        })
    }

    pub(super) async fn get(
        &self,
        key: &KeyHash,
        settings: &settings::CacheSettings,
    ) -> Option<CachedResult> {
        for signer in self.signers() {
            if let Some(cached) = self.get_signed(signer, key, settings).await {
                return Some(cached);
            }
        }
        None
    }

    async fn get_signed(
        &self,
        signer: &EntrySigner,
        key: &KeyHash,
        settings: &settings::CacheSettings,
    ) -> Option<CachedResult> {
        let (name, hash) = signer.name(key);
        let entry = self.server(hash)?.get(name).await?;
        let opened = signer.open(key, &entry, settings, clock::now());
        let Some((issued, cached)) = opened else {
            if self.invalid_entries.add(1) == 0 {
                tracing::warn!(
                    "memcached entry ignored: it has expired, or is not signed with the secret of --cache-secret-file; \
                     use the same secret on all hosts (further ones are only counted)"
                );
            }
            return None;
        };
        (issued > self.purged_until.load(Ordering::Relaxed)).then_some(cached)
    }

    /// Stores a result in the background.
    pub(super) fn put(&self, key: &KeyHash, cached: &CachedResult) {
        let (name, hash) = self.signer.name(key);
        if let Some(server) = self.server(hash)
            && let Some(entry) = self.signer.seal(key, cached, clock::now())
        {
            server.set(&name, &entry, cached.stale_for);
        }
    }

    /// Ignores all entries issued before now.
    pub(super) fn ignore_older_entries(&self) {
        self.purged_until
            .fetch_max(unix_millis(clock::now()), Ordering::Relaxed);
    }

    pub(super) async fn delete(&self, key: &KeyHash) {
        for signer in self.signers() {
            let (name, hash) = signer.name(key);
            if let Some(server) = self.server(hash) {
                server.delete(name).await;
            }
        }
    }

    fn signers(&self) -> impl Iterator<Item = &EntrySigner> {
        std::iter::once(&self.signer).chain(&self.previous_signer)
    }

    /// The server that holds a key with this hash.
    fn server(&self, hash: u64) -> Option<&MemcachedClient> {
        let weight = |node: &&RendezvousNode| mix(node.seed ^ hash);
        let node = self.servers.iter().max_by_key(weight)?;
        Some(&node.server)
    }

    /// The number of invalid entries, and the counters of each server.
    pub(super) fn snapshot(&self) -> (u64, Vec<MemcachedStatus>) {
        let servers = self.servers.iter().map(|node| node.server.status());
        (self.invalid_entries.get(), servers.collect())
    }
}

pub(super) fn first_eight(hash: &[u8; 32]) -> u64 {
    hash.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// A hash that is the same on all hosts (the finaliser of splitmix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom
/// Number Generators", 2014).
const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared_cache(servers: &[&str]) -> SharedCache {
        SharedCache::new(&settings::MemcachedSettings {
            servers: servers.iter().map(|&name| name.to_owned()).collect(),
            prefix: "test".to_owned(),
            secrets: vec![settings::SigningSecret(b"0123456789abcdef".to_vec())],
        })
        .unwrap()
    }

    /// The server of each of 3,000 keys.
    fn assignments(shared: &SharedCache) -> Vec<String> {
        let keys = (0..3_000_u32).map(|number| KeyHash::of(&number.to_be_bytes()));
        keys.map(|key| {
            let (_, hash) = shared.signer.name(&key);
            shared.server(hash).unwrap().status().name
        })
        .collect()
    }

    #[test]
    fn keys_spread_evenly_and_removed_server_moves_only_its_own_keys() {
        let all = assignments(&shared_cache(&["a:1", "b:1", "c:1"]));
        for name in ["a:1", "b:1", "c:1"] {
            let share = all.iter().filter(|server| *server == name).count();
            assert!((800..1_200).contains(&share), "{name}: {share}");
        }
        assert_eq!(
            all,
            assignments(&shared_cache(&["c:1", "a:1", "b:1"])),
            "the order of the servers does not matter"
        );
        let without = assignments(&shared_cache(&["a:1", "c:1"]));
        for (before, after) in all.iter().zip(&without) {
            assert!(before == after || before == "b:1", "{before} {after}");
        }
    }

    #[test]
    fn empty_server_list_has_no_server() {
        assert!(shared_cache(&[]).server(7).is_none());
    }
}
