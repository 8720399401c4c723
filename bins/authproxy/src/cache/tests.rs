//! The cache in front of a backend that responds on command, with a clock that stands still.

mod model;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::grant::BackendResponse;

const SETTINGS: settings::CacheSettings = settings::CacheSettings {
    entries: 10,
    allowed: seconds(60),
    denied: seconds(10),
    error: seconds(1),
    stale: seconds(600),
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

thread_local! {
    /// When the test started, and the time that has passed since.
    static CLOCK: (Instant, Cell<Duration>) = (Instant::now(), Cell::new(Duration::ZERO));
}

fn now() -> Instant {
    CLOCK.with(|(start, passed)| *start + passed.get())
}

fn advance(time: Duration) {
    CLOCK.with(|(_, passed)| passed.set(passed.get() + time));
}

type BackendResult = Result<BackendResponse, BackendUnavailable>;

/// A backend that responds when the test does.
#[derive(Debug, Clone, Default)]
struct ManualBackend(Arc<Mutex<PendingRequests>>);

#[derive(Debug, Default)]
struct PendingRequests {
    count: usize,
    by_key: HashMap<KeyHash, Vec<oneshot::Sender<BackendResult>>>,
}

impl PermissionsBackend for ManualBackend {
    async fn look_up(&self, key: KeyHash) -> BackendResult {
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.0.lock().unwrap();
            pending.count += 1;
            pending.by_key.entry(key).or_default().push(sender);
        }
        receiver
            .await
            .expect("the backend panics if the sender is dropped")
    }
}

impl ManualBackend {
    fn request_count(&self) -> usize {
        self.0.lock().unwrap().count
    }

    fn pending(&self, key: KeyHash) -> usize {
        self.0.lock().unwrap().by_key.get(&key).map_or(0, Vec::len)
    }

    fn take_oldest(&self, key: KeyHash) -> oneshot::Sender<BackendResult> {
        let mut pending = self.0.lock().unwrap();
        pending.by_key.get_mut(&key).unwrap().remove(0)
    }

    /// Responds to the oldest pending request.
    async fn respond(&self, key: KeyHash, result: BackendResult) {
        self.take_oldest(key).send(result).unwrap();
        settle().await;
    }

    /// Panics in the oldest pending request.
    async fn panic(&self, key: KeyHash) {
        drop(self.take_oldest(key));
        settle().await;
    }
}

/// Runs all tasks until they wait.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn key(number: usize) -> KeyHash {
    KeyHash::of(&number.to_be_bytes())
}

fn grant(id: &str) -> Arc<Grant> {
    Arc::new(Grant {
        id: id.to_owned(),
        rights: Vec::new(),
        hosts: Vec::new(),
        paths: Vec::new(),
        methods: Vec::new(),
        expires: None,
    })
}

fn granted(id: &str) -> BackendResult {
    Ok(BackendResponse {
        grant: Some(grant(id)),
        ttl: None,
    })
}

const UNKNOWN: BackendResult = Ok(BackendResponse {
    grant: None,
    ttl: None,
});

fn failed() -> BackendResult {
    Err(BackendUnavailable::failed("connection refused"))
}

struct CacheFixture {
    backend: ManualBackend,
    cache: PermissionsCache<ManualBackend>,
}

/// A lookup result: `id`, `id (stale)`, `unknown` or `error`.
fn show(answer: &KeyLookupResult) -> String {
    match answer {
        Ok(KeyLookup::Grant { grant, stale: true }) => format!("{} (stale)", grant.id),
        Ok(KeyLookup::Grant { grant, .. }) => grant.id.clone(),
        Ok(KeyLookup::UnknownKey) => "unknown".to_owned(),
        Err(_) => "error".to_owned(),
    }
}

/// The result of a lookup that must have finished.
async fn finish(lookup: JoinHandle<KeyLookupResult>) -> String {
    settle().await;
    assert!(lookup.is_finished(), "the lookup waits");
    show(&lookup.await.unwrap())
}

impl CacheFixture {
    fn new(settings: settings::CacheSettings) -> Self {
        let backend = ManualBackend::default();
        let cache = PermissionsCache::with_clock(backend.clone(), settings, None, now);
        Self { backend, cache }
    }

    fn start_lookup(&self, key: KeyHash) -> JoinHandle<KeyLookupResult> {
        let cache = self.cache.clone();
        tokio::spawn(async move { cache.look_up(key).await })
    }

    /// The immediate result of a lookup, or `waits`.
    async fn look_up(&self, key: KeyHash) -> String {
        let lookup = self.start_lookup(key);
        settle().await;
        if lookup.is_finished() {
            show(&lookup.await.unwrap())
        } else {
            lookup.abort();
            "waits".to_owned()
        }
    }

    /// Caches a result.
    async fn cache_result(&self, key: KeyHash, result: BackendResult) {
        assert_eq!(self.look_up(key).await, "waits");
        self.backend.respond(key, result).await;
    }
}

#[tokio::test]
async fn thousand_concurrent_lookups_make_one_backend_request() {
    let fixture = CacheFixture::new(SETTINGS);
    let lookups: Vec<_> = (0..1_000).map(|_| fixture.start_lookup(key(1))).collect();
    settle().await;
    assert_eq!(fixture.backend.request_count(), 1);
    fixture.backend.respond(key(1), granted("alice")).await;
    for lookup in lookups {
        assert_eq!(finish(lookup).await, "alice");
    }
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    assert_eq!(fixture.backend.request_count(), 1);
    let counts = fixture.cache.snapshot();
    let lookups = (counts.misses, counts.coalesced, counts.hits);
    assert_eq!((lookups, counts.backend_queries), ((1, 999, 1), 1));
}

#[tokio::test]
async fn lookup_survives_its_leader() {
    let fixture = CacheFixture::new(SETTINGS);
    let first = fixture.start_lookup(key(1));
    settle().await;
    let second = fixture.start_lookup(key(1));
    settle().await;
    first.abort();
    settle().await;
    fixture.backend.respond(key(1), granted("alice")).await;
    assert_eq!(finish(second).await, "alice");
    assert_eq!(fixture.backend.request_count(), 1);
}

#[tokio::test]
async fn key_in_use_is_refreshed_ahead_without_waiting() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    advance(seconds(47));
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    assert_eq!(fixture.backend.pending(key(1)), 0);
    // From 80 % of the TTL on it is refreshed, once, while the cached result is served.
    for _ in 0..3 {
        advance(seconds(2));
        assert_eq!(fixture.look_up(key(1)).await, "alice");
        assert_eq!(fixture.backend.request_count(), 2);
    }
    // The new result has a TTL of its own.
    fixture.backend.respond(key(1), granted("alice2")).await;
    advance(seconds(47));
    assert_eq!(fixture.look_up(key(1)).await, "alice2");
    assert_eq!(fixture.backend.request_count(), 2);
}

#[tokio::test]
async fn expired_grant_waits_for_new_result() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    advance(seconds(60));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), UNKNOWN).await;
    assert_eq!(fixture.look_up(key(1)).await, "unknown");
}

#[tokio::test]
async fn stale_grant_is_served_without_waiting_while_backend_fails() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    advance(seconds(61));
    let lookup = fixture.start_lookup(key(1));
    settle().await;
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(finish(lookup).await, "alice (stale)");
    // It is retried after the error TTL, once at a time, and no request waits for it.
    assert_eq!(fixture.look_up(key(1)).await, "alice (stale)");
    assert_eq!(fixture.backend.request_count(), 2);
    advance(seconds(1));
    for _ in 0..3 {
        assert_eq!(fixture.look_up(key(1)).await, "alice (stale)");
        assert_eq!(fixture.backend.request_count(), 3);
    }
    fixture.backend.respond(key(1), failed()).await;
    // After the positive TTL without a retry, a request waits for the backend again.
    advance(seconds(60));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), failed()).await;
    // Stale-if-error ends ten minutes after the expiry.
    advance(seconds(600 + 60 - 61 - 1 - 60 - 1));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(fixture.look_up(key(1)).await, "alice (stale)");
    advance(seconds(1));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(fixture.look_up(key(1)).await, "error");
}

#[tokio::test]
async fn failed_refresh_keeps_grant_until_expiry() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    advance(seconds(50));
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    assert_eq!(fixture.backend.request_count(), 2);
    advance(seconds(10));
    assert_eq!(
        fixture.look_up(key(1)).await,
        "alice (stale)",
        "without waiting"
    );
    fixture.backend.respond(key(1), granted("alice")).await;
    assert_eq!(fixture.look_up(key(1)).await, "alice");
}

#[tokio::test]
async fn negative_result_is_never_served_stale() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), UNKNOWN).await;
    advance(seconds(9));
    assert_eq!(fixture.look_up(key(1)).await, "unknown");
    assert_eq!(fixture.backend.request_count(), 1);
    advance(seconds(1));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(fixture.look_up(key(1)).await, "error");
}

#[tokio::test]
async fn error_is_cached_for_error_ttl() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), failed()).await;
    advance(Duration::from_millis(999));
    assert_eq!(fixture.look_up(key(1)).await, "error");
    assert_eq!(
        fixture.look_up(key(2)).await,
        "waits",
        "errors are cached per key"
    );
    advance(Duration::from_millis(1));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    assert_eq!(fixture.cache.snapshot().cached_errors, 1);
}

#[tokio::test]
async fn negative_result_of_refresh_replaces_grant() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    advance(seconds(50));
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    fixture.backend.respond(key(1), UNKNOWN).await;
    assert_eq!(fixture.look_up(key(1)).await, "unknown");
    // The replaced grant is not served when the backend fails later.
    advance(seconds(10));
    assert_eq!(fixture.look_up(key(1)).await, "waits");
    fixture.backend.respond(key(1), failed()).await;
    assert_eq!(fixture.look_up(key(1)).await, "error");
}

#[tokio::test]
async fn ttl_of_backend_shortens_but_never_extends_cache_ttl() {
    let fixture = CacheFixture::new(SETTINGS);
    for (number, (grant, ttl, lasts)) in [
        (Some(grant("a")), 5, 5),
        (Some(grant("a")), 3_600, 60),
        (None, 2, 2),
        (None, 3_600, 10),
        (Some(grant("a")), u64::MAX, 60),
    ]
    .into_iter()
    .enumerate()
    {
        let ttl = Some(seconds(ttl));
        fixture
            .cache_result(key(number), Ok(BackendResponse { grant, ttl }))
            .await;
        advance(seconds(lasts - 1));
        assert_ne!(fixture.look_up(key(number)).await, "waits", "{number}");
        advance(seconds(1));
        // The refresh is still in flight.
        assert_eq!(fixture.look_up(key(number)).await, "waits", "{number}");
    }
    let no_time = Some(Duration::ZERO);
    let lookup = fixture.start_lookup(key(9));
    settle().await;
    let found = BackendResponse {
        grant: Some(grant("a")),
        ttl: no_time,
    };
    fixture.backend.respond(key(9), Ok(found)).await;
    assert_eq!(finish(lookup).await, "a");
    assert_eq!(fixture.look_up(key(9)).await, "waits");
}

#[tokio::test]
async fn purge_removes_results_and_ignores_lookups_in_flight() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    fixture.cache_result(key(2), granted("bob")).await;
    fixture.cache_result(key(3), UNKNOWN).await;
    assert_eq!(fixture.cache.purge(&PurgeTarget::Id("bob".to_owned())), 1);
    assert_eq!(fixture.cache.purge(&PurgeTarget::Id("bob".to_owned())), 0);
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    assert_eq!(fixture.look_up(key(2)).await, "waits");

    // A lookup that started before the purge may return an older result.
    let lookup = fixture.start_lookup(key(2));
    settle().await;
    for what in [PurgeTarget::Key(key(2)), PurgeTarget::All] {
        fixture.cache.purge(&what);
        let before = fixture.backend.request_count();
        assert_eq!(fixture.look_up(key(2)).await, "waits");
        assert_eq!(fixture.backend.request_count(), before + 1, "{what:?}");
    }
    fixture.backend.respond(key(2), granted("old")).await;
    assert_eq!(
        finish(lookup).await,
        "old",
        "its own requests get the result"
    );
    fixture.backend.respond(key(2), failed()).await;
    assert_eq!(fixture.look_up(key(2)).await, "waits");
    fixture.backend.respond(key(2), granted("new")).await;
    assert_eq!(fixture.look_up(key(2)).await, "new");

    assert_eq!(fixture.cache.purge(&PurgeTarget::All), 1);
    for number in 1..=3 {
        assert_eq!(fixture.look_up(key(number)).await, "waits", "{number}");
    }
    assert_eq!(fixture.cache.snapshot().purges, 5);
}

#[tokio::test]
async fn unknown_keys_evict_no_grants() {
    let fixture = CacheFixture::new(SETTINGS);
    for number in 0..SETTINGS.entries {
        fixture.cache_result(key(number), granted("alice")).await;
    }
    for number in 100..200 {
        fixture
            .cache_result(
                key(number),
                if number % 2 == 0 { UNKNOWN } else { failed() },
            )
            .await;
    }
    for number in 0..SETTINGS.entries {
        assert_eq!(fixture.look_up(key(number)).await, "alice");
    }
    // One more grant evicts the least recently used one.
    fixture.cache_result(key(10), granted("alice")).await;
    assert_eq!(fixture.look_up(key(0)).await, "waits");
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    let counts = fixture.cache.snapshot();
    assert_eq!((counts.positive_entries, counts.negative_entries), (10, 10));
}

#[tokio::test]
async fn lookups_in_flight_are_bounded_and_refreshes_have_their_own_limit() {
    let fixture = CacheFixture::new(SETTINGS);
    fixture.cache_result(key(1), granted("alice")).await;
    fixture.cache_result(key(2), granted("bob")).await;
    for number in 0..MAX_LOOKUPS {
        drop(fixture.start_lookup(key(1_000 + number)));
    }
    settle().await;
    assert_eq!(fixture.cache.snapshot().queries_in_flight, MAX_LOOKUPS);
    assert_eq!(fixture.look_up(key(3)).await, "error");
    advance(seconds(50));
    assert_eq!(fixture.look_up(key(1)).await, "alice");
    assert_eq!(
        fixture.backend.pending(key(1)),
        1,
        "the refresh is in flight"
    );
    fixture.backend.respond(key(1_000), UNKNOWN).await;
    fixture.backend.respond(key(1_001), UNKNOWN).await;
    assert_eq!(fixture.look_up(key(3)).await, "waits");
    assert_eq!(fixture.cache.snapshot().rejected_queries, 1);
}

#[tokio::test]
async fn panic_of_backend_is_an_error() {
    let fixture = CacheFixture::new(SETTINGS);
    let lookup = fixture.start_lookup(key(1));
    settle().await;
    fixture.backend.panic(key(1)).await;
    assert_eq!(finish(lookup).await, "error");
    assert_eq!(fixture.cache.snapshot().queries_in_flight, 0);
    assert_eq!(fixture.look_up(key(1)).await, "waits");
}

#[test]
fn lookups_of_several_threads_are_coalesced() {
    let fixture = CacheFixture::new(SETTINGS);
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .unwrap();
                start.wait();
                let answer = runtime.block_on(async {
                    let lookup = fixture.start_lookup(key(1));
                    settle().await;
                    // Wait until one of the threads has started the lookup.
                    while fixture.backend.pending(key(1)) == 0 && !lookup.is_finished() {
                        tokio::task::yield_now().await;
                    }
                    if start.wait().is_leader() {
                        fixture.backend.respond(key(1), granted("alice")).await;
                    }
                    let result = tokio::time::timeout(seconds(30), lookup).await;
                    result.expect("the lookup ends").unwrap()
                });
                assert_eq!(show(&answer), "alice");
            });
        }
    });
    assert_eq!(fixture.backend.request_count(), 1);
}
