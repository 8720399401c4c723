//! Random histories, compared with a model that keeps every result.

use proptest::prelude::*;

use super::*;

const KEYS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    LookUp(usize),
    Advance(Duration),
    /// The backend responds to its oldest pending request about a key, if there is one.
    Respond(usize, BackendResult),
    Purge(PurgeTarget),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..KEYS;
    let response = |grant: Option<Arc<Grant>>| {
        prop::option::of(0..80_u64).prop_map(move |ttl| {
            let (grant, ttl) = (grant.clone(), ttl.map(seconds));
            Ok(BackendResponse { grant, ttl })
        })
    };
    let result = prop_oneof![
        prop_oneof![Just("alice"), Just("bob")].prop_flat_map(move |id| response(Some(grant(id)))),
        response(None),
        Just(failed()),
    ];
    let passes = prop::sample::select(vec![
        200, 900, 1_000, 4_000, 13_000, 48_000, 60_000, 599_000,
    ]);
    let target = prop_oneof![
        Just(PurgeTarget::All),
        number
            .clone()
            .prop_map(|number| PurgeTarget::Key(key(number))),
        Just(PurgeTarget::Id("alice".to_owned())),
    ];
    prop_oneof![
        8 => number.clone().prop_map(Step::LookUp),
        4 => passes.prop_map(|millis| Step::Advance(Duration::from_millis(millis))),
        6 => (number, result).prop_map(|(number, result)| Step::Respond(number, result)),
        1 => target.prop_map(Step::Purge),
    ]
}

struct PendingRequest {
    /// There was no purge since it started.
    is_current: bool,
    lookups: Vec<JoinHandle<KeyLookupResult>>,
}

/// All results for one key.
#[derive(Default)]
struct KeyHistory {
    results: Vec<(Instant, BackendResult)>,
    pending: Vec<PendingRequest>,
}

impl KeyHistory {
    /// The last result that was not a failure: its time, grant and TTL.
    fn last(&self) -> Option<(Instant, Option<&Grant>, Duration)> {
        self.results.iter().rev().find_map(|(at, result)| {
            let response = result.as_ref().ok()?;
            let longest = if response.grant.is_some() {
                SETTINGS.allowed
            } else {
                SETTINGS.denied
            };
            let ttl = response.ttl.unwrap_or(longest).min(longest);
            Some((*at, response.grant.as_deref(), ttl))
        })
    }

    /// When the backend last failed, if it has not responded since.
    fn failed(&self) -> Option<Instant> {
        let (at, result) = self.results.last()?;
        result.is_err().then_some(*at)
    }

    /// The cached grant, fresh or stale.
    fn cached(&self) -> Option<String> {
        let (at, grant, ttl) = self.last()?;
        let id = grant?.id.clone();
        if now() < at + ttl {
            Some(id)
        } else {
            (now() < at + ttl + SETTINGS.stale).then(|| format!("{id} (stale)"))
        }
    }

    /// The expected result of a lookup, and whether a backend request is pending after it.
    fn expect_lookup(&self) -> (String, bool) {
        let failed_within = |time| self.failed().is_some_and(|at| now() < at + time);
        if let Some(cached) = self.cached() {
            let (at, _, ttl) = self.last().unwrap();
            return if cached.ends_with("(stale)") && !failed_within(SETTINGS.allowed) {
                ("waits".to_owned(), true)
            } else {
                let is_due = now() >= at + ttl * 4 / 5;
                (cached, is_due && !failed_within(SETTINGS.error))
            };
        }
        match self.last() {
            Some((at, None, ttl)) if self.failed().is_none() && now() < at + ttl => {
                ("unknown".to_owned(), false)
            }
            _ if failed_within(SETTINGS.error) => ("error".to_owned(), false),
            _ => ("waits".to_owned(), true),
        }
    }

    fn has_pending(&self) -> bool {
        self.pending.iter().any(|pending| pending.is_current)
    }
}

/// Plays a history. A cache with room for all keys returns exactly target the model does; a smaller one may have evicted the
/// result, and may wait or fail instead.
async fn play(steps: Vec<Step>, entries: usize) {
    let fixture = CacheFixture::new(settings::CacheSettings {
        entries,
        ..SETTINGS
    });
    let evicts = entries < KEYS;
    let mut model: [KeyHistory; KEYS] = Default::default();
    for step in steps {
        match step {
            Step::Advance(time) => advance(time),
            Step::LookUp(number) => {
                let history = &mut model[number];
                let (expected, sends_request) = history.expect_lookup();
                let (requests, had_pending) =
                    (fixture.backend.request_count(), history.has_pending());
                let lookup = fixture.start_lookup(key(number));
                settle().await;
                let result = if lookup.is_finished() { "" } else { "waits" };
                let requests = fixture.backend.request_count() - requests;
                assert!(
                    requests <= usize::from(!had_pending),
                    "one request at a time"
                );
                if !evicts {
                    assert_eq!(requests > 0, sends_request && !had_pending, "{expected}");
                }
                if requests > 0 {
                    history.pending.push(PendingRequest {
                        is_current: true,
                        lookups: Vec::new(),
                    });
                }
                if result == "waits" {
                    assert!(evicts || expected == "waits", "not {expected}");
                    let pending = history.pending.last_mut().unwrap();
                    assert!(pending.is_current);
                    pending.lookups.push(lookup);
                } else {
                    let result = finish(lookup).await;
                    assert!(
                        result == expected || (evicts && result == "error"),
                        "{result}, not {expected}"
                    );
                }
            }
            Step::Respond(number, result) => {
                let history = &mut model[number];
                assert_eq!(fixture.backend.pending(key(number)), history.pending.len());
                if history.pending.is_empty() {
                    continue;
                }
                let pending = history.pending.remove(0);
                if pending.is_current {
                    history.results.push((now(), result.clone()));
                }
                let expected = match &result {
                    Ok(BackendResponse {
                        grant: Some(grant), ..
                    }) => grant.id.clone(),
                    Ok(_) => "unknown".to_owned(),
                    Err(_) if pending.is_current => history.cached().unwrap_or("error".to_owned()),
                    Err(_) => "error".to_owned(),
                };
                fixture.backend.respond(key(number), result).await;
                for lookup in pending.lookups {
                    let result = finish(lookup).await;
                    assert!(
                        result == expected || (evicts && result == "error"),
                        "{result}, not {expected}"
                    );
                }
            }
            Step::Purge(target) => {
                fixture.cache.purge(&target);
                for (number, history) in model.iter_mut().enumerate() {
                    let (all, result) = match &target {
                        PurgeTarget::All => (true, true),
                        PurgeTarget::Key(one) => (*one == key(number), *one == key(number)),
                        PurgeTarget::Id(id) => {
                            let cached = history.cached();
                            (true, cached.is_some_and(|cached| cached.starts_with(id)))
                        }
                    };
                    if all {
                        history
                            .pending
                            .iter_mut()
                            .for_each(|pending| pending.is_current = false);
                    }
                    if result {
                        history.results.clear();
                    }
                }
            }
        }
        let counts = fixture.cache.snapshot();
        assert!(counts.positive_entries <= entries && counts.negative_entries <= entries);
        let open: usize = model.iter().filter(|history| history.has_pending()).count();
        assert_eq!(counts.queries_in_flight, open);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn cache_returns_what_the_model_does(
        steps in prop::collection::vec(step(), 1..60),
        entries in prop::sample::select(vec![1, 2, KEYS, 100]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps, entries));
    }
}
