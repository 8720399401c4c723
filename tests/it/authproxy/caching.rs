//! Cache entries shared over real memcached servers: signed, with bounded lifetimes, and ignored unless written by a
//! host with the secret.

mod hosts;
mod secrets;

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use authproxy::testing::{
    BackendResponse, BackendUnavailable, CacheSettings, Grant, KeyHash, KeyLookup,
    MemcachedSettings, PermissionsBackend, PermissionsCache, PurgeTarget, SharedCache,
    SigningSecret,
};
use hostkit_tests::memcached::MemcachedServer;
use hostkit_tests::{or_skip, wait_until};
use tokio::runtime::Runtime;

const SECRET: &[u8] = b"secret of these hosts";

/// Lifetimes that do not end within a test, unless it shortens them.
const SETTINGS: CacheSettings = CacheSettings {
    entries: 10_000,
    allowed: Duration::from_secs(600),
    denied: Duration::from_secs(600),
    error: Duration::from_secs(1),
    stale: Duration::from_secs(600),
};

/// A permissions backend with a set of keys that counts its queries. Clones share their state.
#[derive(Debug, Clone, Default)]
struct CountingBackend {
    known: Arc<Mutex<HashSet<KeyHash>>>,
    fails: Arc<Mutex<bool>>,
    asked: Arc<AtomicUsize>,
}

impl PermissionsBackend for CountingBackend {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // Lets concurrent lookups arrive.
        tokio::task::yield_now().await;
        if *self.fails.lock().unwrap() {
            return Err(BackendUnavailable::failed("it fails"));
        }
        let grant = self.known.lock().unwrap().contains(&key).then(|| {
            Arc::new(Grant {
                id: key.to_string(),
                rights: vec!["all".to_owned()],
                hosts: Vec::new(),
                paths: Vec::new(),
                methods: Vec::new(),
                expires: None,
            })
        });
        Ok(BackendResponse { grant, ttl: None })
    }
}

impl CountingBackend {
    fn request_count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn add_key(&self, key: KeyHash) {
        self.known.lock().unwrap().insert(key);
    }
}

/// Some memcached servers, a backend, and the runtime of the hosts in front of them.
struct CacheFixture {
    runtime: Runtime,
    engine: CountingBackend,
    servers: Vec<MemcachedServer>,
}

impl CacheFixture {
    /// `None` without memcached.
    fn new(servers: usize) -> Option<Self> {
        let servers = or_skip("memcached", MemcachedServer::start_several(servers))?;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Some(Self {
            runtime: runtime.enable_all().build().unwrap(),
            engine: CountingBackend::default(),
            servers,
        })
    }

    /// A newly started host with other settings or another secret.
    fn host_with(
        &self,
        settings: CacheSettings,
        secret: &[u8],
    ) -> PermissionsCache<CountingBackend> {
        self.host_with_secrets(settings, &[secret])
    }

    fn host_with_secrets(
        &self,
        settings: CacheSettings,
        secrets: &[&[u8]],
    ) -> PermissionsCache<CountingBackend> {
        let secrets = secrets.iter().map(|secret| SigningSecret(secret.to_vec()));
        let shared = MemcachedSettings {
            servers: self.servers.iter().map(MemcachedServer::address).collect(),
            prefix: "eightball".to_owned(),
            secrets: secrets.collect(),
        };
        let shared = SharedCache::new(&shared).unwrap();
        PermissionsCache::new(self.engine.clone(), settings, Some(shared))
    }

    fn host(&self) -> PermissionsCache<CountingBackend> {
        self.host_with(SETTINGS, SECRET)
    }

    /// The result of a host for a key: whether it exists, or `None` on failure.
    fn lookup(&self, host: &PermissionsCache<CountingBackend>, key: KeyHash) -> Option<bool> {
        let answer = self.runtime.block_on(host.look_up(key)).ok()?;
        Some(matches!(answer, KeyLookup::Grant { .. }))
    }

    /// Makes a host query a key until memcached has its entry. A memcached that takes longer than 10 ms here may be
    /// skipped for a moment, and then gets no entry.
    fn store_in_memcached(
        &self,
        host: &PermissionsCache<CountingBackend>,
        key: KeyHash,
        known: bool,
    ) {
        let before = self.entry_names().len();
        wait_until("the entry is written", || {
            self.purge(host, &PurgeTarget::Key(key));
            assert_eq!(self.lookup(host, key), Some(known));
            self.yield_to_background();
            self.entry_names().len() > before
        });
    }

    /// The names of all entries.
    fn entry_names(&self) -> Vec<String> {
        self.servers
            .iter()
            .flat_map(MemcachedServer::keys)
            .collect()
    }

    fn purge(&self, host: &PermissionsCache<CountingBackend>, what: &PurgeTarget) -> usize {
        let _inside = self.runtime.enter();
        host.purge(what)
    }

    /// Lets background tasks run.
    fn yield_to_background(&self) {
        let moment = async { tokio::time::sleep(Duration::from_millis(1)).await };
        self.runtime.block_on(moment);
    }

    /// Waits for a newly started host that gives this result after so many backend queries. A memcached that takes
    /// longer than 10 ms here counts as a miss, which costs a query more.
    fn expect_from_new_host(&self, key: KeyHash, known: bool, questions: u64) {
        wait_until("a new host needs that many queries", || {
            let host = self.host();
            assert_eq!(self.lookup(&host, key), Some(known));
            host.snapshot().backend_queries == questions
        });
    }
}

fn key(number: usize) -> KeyHash {
    KeyHash::of(&number.to_be_bytes())
}

#[test]
fn host_uses_entries_of_other_hosts() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    world.engine.add_key(key(1));
    let host = world.host();
    world.store_in_memcached(&host, key(1), true);
    world.store_in_memcached(&host, key(2), false);
    world.expect_from_new_host(key(1), true, 0);
    world.expect_from_new_host(key(2), false, 0);
    for name in world.entry_names() {
        assert!(name.starts_with("eightball:1:"), "{name}");
        for number in [1, 2] {
            let hash = key(number).to_string();
            assert!(!name.contains(&hash), "a query contains only the hash");
        }
    }
}

#[test]
fn entries_signed_with_other_secret_are_ignored() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    let stranger = world.host_with(SETTINGS, b"secret of other hosts");
    world.engine.add_key(key(1));
    world.store_in_memcached(&stranger, key(1), true);
    world.engine.known.lock().unwrap().clear();
    world.expect_from_new_host(key(1), false, 1);
}

#[test]
fn forged_entry_in_memcached_admits_no_key() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    let (known, made_up) = (key(1), key(2));
    world.engine.add_key(known);
    let [server] = &world.servers[..] else {
        panic!("one")
    };
    let host = world.host();
    world.store_in_memcached(&host, known, true);
    let [name_of_known] = &world.entry_names()[..] else {
        panic!("one")
    };
    let entry = server.get(name_of_known).unwrap();
    world.store_in_memcached(&host, made_up, false);
    let names = world.entry_names();
    let name_of_made_up = names.iter().find(|name| *name != name_of_known).unwrap();
    let denial = server.get(name_of_made_up).unwrap();

    let mut flipped = entry.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let truncated = &entry[..entry.len() / 2];
    for forged in [&entry[..], &flipped, truncated, b"", b"1", &[b'1'; 1000]] {
        server.set(name_of_made_up, forged);
        wait_until("the entry was read", || {
            let host = world.host();
            assert_eq!(world.lookup(&host, made_up), Some(false));
            host.snapshot().invalid_entries == 1
        });
    }
    // Nor does it deny a key.
    server.set(name_of_known, &denial);
    world.expect_from_new_host(known, true, 1);
}

#[test]
fn dead_memcached_server_does_not_affect_keys_of_others() {
    const KEYS: usize = 60;
    let Some(world) = CacheFixture::new(3) else {
        return;
    };
    let host = world.host();
    for number in 0..KEYS {
        world.engine.add_key(key(number));
        world.store_in_memcached(&host, key(number), true);
    }
    let [lost, ..] = &world.servers[..] else {
        panic!("three")
    };
    let of_lost = lost.keys().len();
    assert!(
        (1..KEYS).contains(&of_lost),
        "each has its share: {of_lost}"
    );
    lost.kill();
    wait_until("only its entries are missed", || {
        let host = world.host();
        for number in 0..KEYS {
            assert_eq!(world.lookup(&host, key(number)), Some(true));
        }
        let counts = host.snapshot();
        let down = counts.servers.iter().filter(|server| !server.up).count();
        counts.backend_queries == of_lost as u64 && down == 1
    });
}

#[test]
fn without_memcached_servers_backend_is_queried() {
    let Some(world) = CacheFixture::new(2) else {
        return;
    };
    let host = world.host();
    world.engine.add_key(key(0));
    assert_eq!(world.lookup(&host, key(0)), Some(true));
    world.servers.iter().for_each(MemcachedServer::kill);
    for number in 1..50 {
        world.engine.add_key(key(number));
        assert_eq!(world.lookup(&host, key(number)), Some(true));
    }
    assert_eq!(world.engine.request_count(), 50);
    assert!(host.snapshot().servers.iter().all(|server| !server.up));
    // They come back empty, and are used again.
    world.servers.iter().for_each(MemcachedServer::restart);
    let mut number = 50;
    wait_until("both servers have entries", || {
        number += 1;
        world.lookup(&host, key(number));
        world.yield_to_background();
        world.servers.iter().all(|server| !server.keys().is_empty())
    });
}

#[test]
fn silent_memcached_server_is_skipped_until_it_answers() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    let [server] = &world.servers[..] else {
        panic!("one")
    };
    let host = world.host();
    world.store_in_memcached(&host, key(0), false);
    server.stall();
    for number in 1..200 {
        assert_eq!(world.lookup(&host, key(number)), Some(false));
    }
    let [counts] = &host.snapshot().servers[..] else {
        panic!("one")
    };
    assert!(!counts.up);
    assert!(
        (3..10).contains(&counts.failures),
        "waited for once in a while: {counts:?}"
    );
    server.resume();
    let mut number = 200;
    wait_until("the server is queried again", || {
        number += 1;
        world.lookup(&host, key(number));
        world.yield_to_background();
        host.snapshot().servers[0].up
    });
}

#[test]
fn memcached_server_with_wrong_replies_admits_no_key() {
    let Some(mut world) = CacheFixture::new(1) else {
        return;
    };
    let [truth] = &world.servers[..] else {
        panic!("one")
    };
    world.engine.add_key(key(1));
    let host = world.host();
    world.store_in_memcached(&host, key(1), true);
    let entry = truth.get(&world.entry_names()[0]).unwrap();

    // Answers every get with this entry, or with something worse.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (entry, stream) = (entry.clone(), stream.unwrap());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut writer) = (String::new(), stream);
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    let name = line.strip_prefix("get ").map_or("", str::trim_end);
                    let length =
                        [entry.len(), 1 << 40, entry.len() + 1, entry.len() - 1][number % 4];
                    let head = format!("VALUE {name} 0 {length}\r\n");
                    let lie = [head.as_bytes(), &entry, b"\r\nEND\r\n"].concat();
                    if writer.write_all(&lie).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
    world.engine.known.lock().unwrap().clear();
    let shared = MemcachedSettings {
        servers: vec![address],
        prefix: "eightball".to_owned(),
        secrets: vec![SigningSecret(SECRET.to_vec())],
    };
    world.servers.clear();
    let shared = SharedCache::new(&shared).unwrap();
    let host = PermissionsCache::new(world.engine.clone(), SETTINGS, Some(shared));
    for number in 2..100 {
        assert_eq!(world.lookup(&host, key(number)), Some(false));
    }
    assert!(host.snapshot().invalid_entries > 0 || host.snapshot().servers[0].failures > 0);
}

#[test]
fn thousand_concurrent_lookups_query_backend_once() {
    let Some(world) = CacheFixture::new(2) else {
        return;
    };
    world.engine.add_key(key(1));
    let host = world.host();
    let askers = (0..1_000).map(|_| {
        let host = host.clone();
        world
            .runtime
            .spawn(async move { host.look_up(key(1)).await.is_ok() })
    });
    let askers: Vec<_> = askers.collect();
    for asker in askers {
        assert!(world.runtime.block_on(asker).unwrap());
    }
    assert_eq!(world.engine.request_count(), 1);
    world.expect_from_new_host(key(1), true, 0);
}

#[test]
fn host_started_during_backend_failure_uses_entries_of_others() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    let short = CacheSettings {
        allowed: Duration::from_secs(1),
        denied: Duration::from_secs(1),
        ..SETTINGS
    };
    world.engine.add_key(key(1));
    let host = world.host_with(short, SECRET);
    world.store_in_memcached(&host, key(1), true);
    world.store_in_memcached(&host, key(2), false);
    *world.engine.fails.lock().unwrap() = true;
    wait_until("an expired grant is served stale", || {
        let host = world.host_with(short, SECRET);
        let answer = world.runtime.block_on(host.look_up(key(1)));
        // A slow memcached counts as a miss.
        matches!(answer, Ok(KeyLookup::Grant { stale: true, .. }))
    });
    // A denial is not served stale.
    let host = world.host_with(short, SECRET);
    assert_eq!(world.lookup(&host, key(2)), None);
    // Nor is a grant, on a host with a shorter lifetime.
    let strict = CacheSettings {
        stale: Duration::ZERO,
        ..short
    };
    let host = world.host_with(strict, SECRET);
    assert_eq!(world.lookup(&host, key(1)), None);
}

#[test]
fn purge_removes_memcached_entry() {
    let Some(world) = CacheFixture::new(2) else {
        return;
    };
    let host = world.host();
    for number in 0..20 {
        world.engine.add_key(key(number));
        world.store_in_memcached(&host, key(number), true);
    }
    // Also for a key of which the purging host has no entry. It may be slow here, and need a second purge.
    wait_until("the entry is deleted", || {
        world.purge(&world.host(), &PurgeTarget::Key(key(19)));
        world.yield_to_background();
        world.entry_names().len() == 19
    });
    world.engine.known.lock().unwrap().clear();
    // An entry that this host has not seen is not used either: it is older than the purge.
    let before = world.host();
    world.purge(&before, &PurgeTarget::All);
    assert_eq!(world.lookup(&before, key(0)), Some(false));

    assert_eq!(world.purge(&host, &PurgeTarget::Id(key(1).to_string())), 1);
    assert_eq!(world.lookup(&host, key(1)), Some(false));
    assert_eq!(world.purge(&host, &PurgeTarget::Key(key(2))), 1);
    assert_eq!(world.lookup(&host, key(2)), Some(false));
    assert_eq!(world.lookup(&host, key(3)), Some(true));
    world.purge(&host, &PurgeTarget::All);
    for number in 0..20 {
        assert_eq!(world.lookup(&host, key(number)), Some(false));
    }
    // Nor does a newly started host find a grant.
    let asked = world.engine.request_count();
    wait_until("all grants are deleted", || {
        world.yield_to_background();
        let host = world.host();
        (0..20).all(|number| world.lookup(&host, key(number)) == Some(false))
    });
    assert!(world.engine.request_count() >= asked);
}
