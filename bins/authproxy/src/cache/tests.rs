//! The cache before an engine that answers when it is told to, with a clock that stands still.

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
    /// When the test began, and how much time has passed since.
    static CLOCK: (Instant, Cell<Duration>) = (Instant::now(), Cell::new(Duration::ZERO));
}

fn now() -> Instant {
    CLOCK.with(|(start, passed)| *start + passed.get())
}

fn advance(time: Duration) {
    CLOCK.with(|(_, passed)| passed.set(passed.get() + time));
}

type Told = Result<BackendResponse, BackendUnavailable>;

/// An engine, and who waits for what it says.
#[derive(Debug, Clone, Default)]
struct Engine(Arc<Mutex<Questions>>);

#[derive(Debug, Default)]
struct Questions {
    count: usize,
    open: HashMap<KeyHash, Vec<oneshot::Sender<Told>>>,
}

impl PermissionsBackend for Engine {
    async fn look_up(&self, key: KeyHash) -> Told {
        let (sender, receiver) = oneshot::channel();
        {
            let mut questions = self.0.lock().unwrap();
            questions.count += 1;
            questions.open.entry(key).or_default().push(sender);
        }
        receiver
            .await
            .expect("the engine panics when it is told to")
    }
}

impl Engine {
    /// How often it was asked so far.
    fn asked(&self) -> usize {
        self.0.lock().unwrap().count
    }

    /// Questions about a key that wait.
    fn open(&self, key: KeyHash) -> usize {
        self.0.lock().unwrap().open.get(&key).map_or(0, Vec::len)
    }

    /// Answers the first of them.
    async fn tell(&self, key: KeyHash, told: Told) {
        let sender = self.0.lock().unwrap().open.get_mut(&key).unwrap().remove(0);
        sender.send(told).unwrap();
        settle().await;
    }

    /// Panics over the first of them.
    async fn panic(&self, key: KeyHash) {
        drop(self.0.lock().unwrap().open.get_mut(&key).unwrap().remove(0));
        settle().await;
    }
}

/// Lets all tasks do what they can.
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

fn granted(id: &str) -> Told {
    Ok(BackendResponse {
        grant: Some(grant(id)),
        ttl: None,
    })
}

const NOBODY: Told = Ok(BackendResponse {
    grant: None,
    ttl: None,
});

fn failed() -> Told {
    Err(BackendUnavailable::failed("told to"))
}

/// A cache before an engine.
struct Stand {
    engine: Engine,
    cache: PermissionsCache<Engine>,
}

/// What a look-up said: `id`, `id (stale)`, `nobody`, `error`.
fn show(answer: &KeyLookupResult) -> String {
    match answer {
        Ok(KeyLookup::Grant { grant, stale: true }) => format!("{} (stale)", grant.id),
        Ok(KeyLookup::Grant { grant, .. }) => grant.id.clone(),
        Ok(KeyLookup::UnknownKey) => "nobody".to_owned(),
        Err(_) => "error".to_owned(),
    }
}

/// What somebody was told by now.
async fn heard(asker: JoinHandle<KeyLookupResult>) -> String {
    settle().await;
    assert!(asker.is_finished(), "nothing, by now");
    show(&asker.await.unwrap())
}

impl Stand {
    fn new(settings: settings::CacheSettings) -> Self {
        let engine = Engine::default();
        let cache = PermissionsCache::timed(engine.clone(), settings, None, now);
        Self { engine, cache }
    }

    /// Somebody who looks a key up.
    fn asker(&self, key: KeyHash) -> JoinHandle<KeyLookupResult> {
        let cache = self.cache.clone();
        tokio::spawn(async move { cache.look_up(key).await })
    }

    /// What a look-up says at once; `waits` if it does not.
    async fn says(&self, key: KeyHash) -> String {
        let asker = self.asker(key);
        settle().await;
        if asker.is_finished() {
            show(&asker.await.unwrap())
        } else {
            asker.abort();
            "waits".to_owned()
        }
    }

    /// Makes a key known.
    async fn learn(&self, key: KeyHash, told: Told) {
        assert_eq!(self.says(key).await, "waits");
        self.engine.tell(key, told).await;
    }
}

#[tokio::test]
async fn a_thousand_ask_and_the_engine_is_asked_once() {
    let stand = Stand::new(SETTINGS);
    let askers: Vec<_> = (0..1_000).map(|_| stand.asker(key(1))).collect();
    settle().await;
    assert_eq!(stand.engine.asked(), 1);
    stand.engine.tell(key(1), granted("alice")).await;
    for asker in askers {
        assert_eq!(heard(asker).await, "alice");
    }
    assert_eq!(stand.says(key(1)).await, "alice");
    assert_eq!(stand.engine.asked(), 1);
    let counts = stand.cache.snapshot();
    let lookups = (counts.misses, counts.coalesced, counts.hits);
    assert_eq!((lookups, counts.questions), ((1, 999, 1), 1));
}

#[tokio::test]
async fn whoever_asked_first_may_go_away() {
    let stand = Stand::new(SETTINGS);
    let first = stand.asker(key(1));
    settle().await;
    let second = stand.asker(key(1));
    settle().await;
    first.abort();
    settle().await;
    stand.engine.tell(key(1), granted("alice")).await;
    assert_eq!(heard(second).await, "alice");
    assert_eq!(stand.engine.asked(), 1);
}

#[tokio::test]
async fn a_key_in_use_never_waits() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    advance(seconds(47));
    assert_eq!(stand.says(key(1)).await, "alice");
    assert_eq!(stand.engine.open(key(1)), 0);
    // From 80 % on it is asked anew, once, while the old answer is given.
    for _ in 0..3 {
        advance(seconds(2));
        assert_eq!(stand.says(key(1)).await, "alice");
        assert_eq!(stand.engine.asked(), 2);
    }
    // The new one counts when it comes, with a time of its own.
    stand.engine.tell(key(1), granted("alice2")).await;
    advance(seconds(47));
    assert_eq!(stand.says(key(1)).await, "alice2");
    assert_eq!(stand.engine.asked(), 2);
}

#[tokio::test]
async fn after_its_time_a_grant_is_waited_for() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    advance(seconds(60));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), NOBODY).await;
    assert_eq!(stand.says(key(1)).await, "nobody");
}

#[tokio::test]
async fn while_the_engine_fails_grants_are_believed_for_longer_and_nobody_waits() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    advance(seconds(61));
    let asker = stand.asker(key(1));
    settle().await;
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(heard(asker).await, "alice (stale)");
    // It is not asked again at once; then once at a time, and nobody waits for it.
    assert_eq!(stand.says(key(1)).await, "alice (stale)");
    assert_eq!(stand.engine.asked(), 2);
    advance(seconds(1));
    for _ in 0..3 {
        assert_eq!(stand.says(key(1)).await, "alice (stale)");
        assert_eq!(stand.engine.asked(), 3);
    }
    stand.engine.tell(key(1), failed()).await;
    // A failure of long ago says nothing about now.
    advance(seconds(60));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), failed()).await;
    // Ten minutes after its time it is over.
    advance(seconds(600 + 60 - 61 - 1 - 60 - 1));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(stand.says(key(1)).await, "alice (stale)");
    advance(seconds(1));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(stand.says(key(1)).await, "error");
}

#[tokio::test]
async fn a_refresh_that_fails_changes_nothing_until_the_time_is_over() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    advance(seconds(50));
    assert_eq!(stand.says(key(1)).await, "alice");
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(stand.says(key(1)).await, "alice");
    assert_eq!(stand.engine.asked(), 2);
    advance(seconds(10));
    assert_eq!(stand.says(key(1)).await, "alice (stale)", "without waiting");
    stand.engine.tell(key(1), granted("alice")).await;
    assert_eq!(stand.says(key(1)).await, "alice");
}

#[tokio::test]
async fn nobody_is_never_believed_for_longer() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), NOBODY).await;
    advance(seconds(9));
    assert_eq!(stand.says(key(1)).await, "nobody");
    assert_eq!(stand.engine.asked(), 1);
    advance(seconds(1));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(stand.says(key(1)).await, "error");
}

#[tokio::test]
async fn an_engine_that_failed_is_left_alone_for_a_moment() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), failed()).await;
    advance(Duration::from_millis(999));
    assert_eq!(stand.says(key(1)).await, "error");
    assert_eq!(stand.says(key(2)).await, "waits", "about this key");
    advance(Duration::from_millis(1));
    assert_eq!(stand.says(key(1)).await, "waits");
    assert_eq!(stand.cache.snapshot().resting, 1);
}

#[tokio::test]
async fn a_revoked_key_is_revoked_when_the_engine_says_so() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    advance(seconds(50));
    assert_eq!(stand.says(key(1)).await, "alice");
    stand.engine.tell(key(1), NOBODY).await;
    assert_eq!(stand.says(key(1)).await, "nobody");
    // And is not believed again because the engine fails later.
    advance(seconds(10));
    assert_eq!(stand.says(key(1)).await, "waits");
    stand.engine.tell(key(1), failed()).await;
    assert_eq!(stand.says(key(1)).await, "error");
}

#[tokio::test]
async fn the_engine_may_ask_for_less_time_and_not_for_more() {
    let stand = Stand::new(SETTINGS);
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
        stand
            .learn(key(number), Ok(BackendResponse { grant, ttl }))
            .await;
        advance(seconds(lasts - 1));
        assert_ne!(stand.says(key(number)).await, "waits", "{number}");
        advance(seconds(1));
        // What was asked anew before is still open.
        assert_eq!(stand.says(key(number)).await, "waits", "{number}");
    }
    let no_time = Some(Duration::ZERO);
    let asker = stand.asker(key(9));
    settle().await;
    let found = BackendResponse {
        grant: Some(grant("a")),
        ttl: no_time,
    };
    stand.engine.tell(key(9), Ok(found)).await;
    assert_eq!(heard(asker).await, "a");
    assert_eq!(stand.says(key(9)).await, "waits");
}

#[tokio::test]
async fn a_purge_takes_back_what_is_known_and_what_is_being_asked() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    stand.learn(key(2), granted("bob")).await;
    stand.learn(key(3), NOBODY).await;
    assert_eq!(stand.cache.purge(&PurgeTarget::Id("bob".to_owned())), 1);
    assert_eq!(stand.cache.purge(&PurgeTarget::Id("bob".to_owned())), 0);
    assert_eq!(stand.says(key(1)).await, "alice");
    assert_eq!(stand.says(key(2)).await, "waits");

    // The question was asked before the purge: what it brings may be older.
    let asker = stand.asker(key(2));
    settle().await;
    for what in [PurgeTarget::Key(key(2)), PurgeTarget::All] {
        stand.cache.purge(&what);
        let asked = stand.engine.asked();
        assert_eq!(stand.says(key(2)).await, "waits");
        assert_eq!(stand.engine.asked(), asked + 1, "{what:?}");
    }
    stand.engine.tell(key(2), granted("old")).await;
    assert_eq!(heard(asker).await, "old", "whoever asked before is told");
    stand.engine.tell(key(2), failed()).await;
    assert_eq!(stand.says(key(2)).await, "waits");
    stand.engine.tell(key(2), granted("new")).await;
    assert_eq!(stand.says(key(2)).await, "new");

    assert_eq!(stand.cache.purge(&PurgeTarget::All), 1);
    for number in 1..=3 {
        assert_eq!(stand.says(key(number)).await, "waits", "{number}");
    }
    assert_eq!(stand.cache.snapshot().purges, 5);
}

#[tokio::test]
async fn made_up_keys_push_out_nobody() {
    let stand = Stand::new(SETTINGS);
    for number in 0..SETTINGS.entries {
        stand.learn(key(number), granted("somebody")).await;
    }
    for number in 100..200 {
        stand
            .learn(key(number), if number % 2 == 0 { NOBODY } else { failed() })
            .await;
    }
    for number in 0..SETTINGS.entries {
        assert_eq!(stand.says(key(number)).await, "somebody");
    }
    // One more that is known makes room where it was longest not used.
    stand.learn(key(10), granted("somebody")).await;
    assert_eq!(stand.says(key(0)).await, "waits");
    assert_eq!(stand.says(key(1)).await, "somebody");
    let counts = stand.cache.snapshot();
    assert_eq!((counts.known, counts.unknown), (10, 10));
}

#[tokio::test]
async fn questions_are_bounded_and_known_keys_have_room_of_their_own() {
    let stand = Stand::new(SETTINGS);
    stand.learn(key(1), granted("alice")).await;
    stand.learn(key(2), granted("bob")).await;
    for number in 0..FLIGHTS {
        drop(stand.asker(key(1_000 + number)));
    }
    settle().await;
    assert_eq!(stand.cache.snapshot().flights, FLIGHTS);
    assert_eq!(stand.says(key(3)).await, "error");
    advance(seconds(50));
    assert_eq!(stand.says(key(1)).await, "alice");
    assert_eq!(stand.engine.open(key(1)), 1, "it is asked about");
    stand.engine.tell(key(1_000), NOBODY).await;
    stand.engine.tell(key(1_001), NOBODY).await;
    assert_eq!(stand.says(key(3)).await, "waits");
    assert_eq!(stand.cache.snapshot().crowded, 1);
}

#[tokio::test]
async fn an_engine_that_panics_has_failed() {
    let stand = Stand::new(SETTINGS);
    let asker = stand.asker(key(1));
    settle().await;
    stand.engine.panic(key(1)).await;
    assert_eq!(heard(asker).await, "error");
    assert_eq!(stand.cache.snapshot().flights, 0);
    assert_eq!(stand.says(key(1)).await, "waits");
}

#[test]
fn many_threads_share_one_question() {
    let stand = Stand::new(SETTINGS);
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
                    let asker = stand.asker(key(1));
                    settle().await;
                    // Whoever comes last finds the question.
                    while stand.engine.open(key(1)) == 0 && !asker.is_finished() {
                        tokio::task::yield_now().await;
                    }
                    if start.wait().is_leader() {
                        stand.engine.tell(key(1), granted("alice")).await;
                    }
                    let told = tokio::time::timeout(seconds(30), asker).await;
                    told.expect("nobody waits for another answer").unwrap()
                });
                assert_eq!(show(&answer), "alice");
            });
        }
    });
    assert_eq!(stand.engine.asked(), 1);
}
