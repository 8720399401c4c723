//! Random histories before a model that remembers everything and looks all of it through each time.

use proptest::prelude::*;

use super::*;

const KEYS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Find(usize),
    Pass(Duration),
    /// The engine answers its oldest question about a key, if there is one.
    Tell(usize, Told),
    PurgeTarget(PurgeTarget),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..KEYS;
    let found = |grant: Option<Arc<Grant>>| {
        prop::option::of(0..80_u64).prop_map(move |ttl| {
            let (grant, ttl) = (grant.clone(), ttl.map(seconds));
            Ok(BackendResponse { grant, ttl })
        })
    };
    let told = prop_oneof![
        prop_oneof![Just("alice"), Just("bob")].prop_flat_map(move |id| found(Some(grant(id)))),
        found(None),
        Just(failed()),
    ];
    let passes = prop::sample::select(vec![
        200, 900, 1_000, 4_000, 13_000, 48_000, 60_000, 599_000,
    ]);
    let what = prop_oneof![
        Just(PurgeTarget::All),
        number
            .clone()
            .prop_map(|number| PurgeTarget::Key(key(number))),
        Just(PurgeTarget::Id("alice".to_owned())),
    ];
    prop_oneof![
        8 => number.clone().prop_map(Step::Find),
        4 => passes.prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
        6 => (number, told).prop_map(|(number, told)| Step::Tell(number, told)),
        1 => what.prop_map(Step::PurgeTarget),
    ]
}

/// A question to the engine that is open.
struct Question {
    /// No purge has come since.
    counts: bool,
    waiting: Vec<JoinHandle<KeyLookupResult>>,
}

/// All that has ever been said of one key, and when.
#[derive(Default)]
struct History {
    told: Vec<(Instant, Told)>,
    questions: Vec<Question>,
}

impl History {
    /// The last answer that was not a failure, when it was given, and for how long it holds.
    fn last(&self) -> Option<(Instant, Option<&Grant>, Duration)> {
        self.told.iter().rev().find_map(|(at, told)| {
            let found = told.as_ref().ok()?;
            let longest = if found.grant.is_some() {
                SETTINGS.allowed
            } else {
                SETTINGS.denied
            };
            let ttl = found.ttl.unwrap_or(longest).min(longest);
            Some((*at, found.grant.as_deref(), ttl))
        })
    }

    /// When the engine failed, if it has since it last answered.
    fn failed(&self) -> Option<Instant> {
        let (at, told) = self.told.last()?;
        told.is_err().then_some(*at)
    }

    /// The grant that is believed now, fresh or not.
    fn believed(&self) -> Option<String> {
        let (at, grant, ttl) = self.last()?;
        let id = grant?.id.clone();
        if now() < at + ttl {
            Some(id)
        } else {
            (now() < at + ttl + SETTINGS.stale).then(|| format!("{id} (stale)"))
        }
    }

    /// What a look-up has to say, and whether a question has to be open afterwards.
    fn look(&self) -> (String, bool) {
        let failed_within = |time| self.failed().is_some_and(|at| now() < at + time);
        if let Some(believed) = self.believed() {
            let (at, _, ttl) = self.last().unwrap();
            return if believed.ends_with("(stale)") && !failed_within(SETTINGS.allowed) {
                ("waits".to_owned(), true)
            } else {
                let is_due = now() >= at + ttl * 4 / 5;
                (believed, is_due && !failed_within(SETTINGS.error))
            };
        }
        match self.last() {
            Some((at, None, ttl)) if self.failed().is_none() && now() < at + ttl => {
                ("nobody".to_owned(), false)
            }
            _ if failed_within(SETTINGS.error) => ("error".to_owned(), false),
            _ => ("waits".to_owned(), true),
        }
    }

    fn has_open(&self) -> bool {
        self.questions.iter().any(|question| question.counts)
    }
}

/// Plays a history. A cache with room for all keys has to say exactly what the model says; a smaller one may have
/// forgotten it, and may wait or fail instead.
async fn play(steps: Vec<Step>, entries: usize) {
    let stand = Stand::new(settings::CacheSettings {
        entries,
        ..SETTINGS
    });
    let forgets = entries < KEYS;
    let mut model: [History; KEYS] = Default::default();
    for step in steps {
        match step {
            Step::Pass(time) => advance(time),
            Step::Find(number) => {
                let history = &mut model[number];
                let (expected, asks) = history.look();
                let (asked, had_open) = (stand.engine.asked(), history.has_open());
                let asker = stand.asker(key(number));
                settle().await;
                let said = if asker.is_finished() { "" } else { "waits" };
                let asked = stand.engine.asked() - asked;
                assert!(asked <= usize::from(!had_open), "one question at a time");
                if !forgets {
                    assert_eq!(asked > 0, asks && !had_open, "{expected}");
                }
                if asked > 0 {
                    history.questions.push(Question {
                        counts: true,
                        waiting: Vec::new(),
                    });
                }
                if said == "waits" {
                    assert!(forgets || expected == "waits", "not {expected}");
                    let question = history.questions.last_mut().unwrap();
                    assert!(question.counts);
                    question.waiting.push(asker);
                } else {
                    let said = heard(asker).await;
                    assert!(
                        said == expected || (forgets && said == "error"),
                        "{said}, not {expected}"
                    );
                }
            }
            Step::Tell(number, told) => {
                let history = &mut model[number];
                assert_eq!(stand.engine.open(key(number)), history.questions.len());
                if history.questions.is_empty() {
                    continue;
                }
                let question = history.questions.remove(0);
                if question.counts {
                    history.told.push((now(), told.clone()));
                }
                let expected = match &told {
                    Ok(BackendResponse {
                        grant: Some(grant), ..
                    }) => grant.id.clone(),
                    Ok(_) => "nobody".to_owned(),
                    Err(_) if question.counts => history.believed().unwrap_or("error".to_owned()),
                    Err(_) => "error".to_owned(),
                };
                stand.engine.tell(key(number), told).await;
                for asker in question.waiting {
                    let said = heard(asker).await;
                    assert!(
                        said == expected || (forgets && said == "error"),
                        "{said}, not {expected}"
                    );
                }
            }
            Step::PurgeTarget(what) => {
                stand.cache.purge(&what);
                for (number, history) in model.iter_mut().enumerate() {
                    let (all, told) = match &what {
                        PurgeTarget::All => (true, true),
                        PurgeTarget::Key(one) => (*one == key(number), *one == key(number)),
                        PurgeTarget::Id(id) => {
                            let believed = history.believed();
                            (
                                true,
                                believed.is_some_and(|believed| believed.starts_with(id)),
                            )
                        }
                    };
                    if all {
                        history
                            .questions
                            .iter_mut()
                            .for_each(|question| question.counts = false);
                    }
                    if told {
                        history.told.clear();
                    }
                }
            }
        }
        let counts = stand.cache.snapshot();
        assert!(counts.known <= entries && counts.unknown <= entries);
        let open: usize = model.iter().filter(|history| history.has_open()).count();
        assert_eq!(counts.flights, open);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn the_cache_says_what_the_model_says(
        steps in prop::collection::vec(step(), 1..60),
        entries in prop::sample::select(vec![1, 2, KEYS, 100]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps, entries));
    }
}
