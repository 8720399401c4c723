//! Addresses of members that are registered by name: a cache that is refreshed in the background.
//!
//! Asking it never waits. A name keeps its last good address for as long as DNS has nothing better to say, and keeps
//! the same one of several for as long as that is among them. The host's own resolver configuration counts,
//! /etc/hosts included; it is read again for every batch of questions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hostkit::backoff::Backoff;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::lookup::{self, Answer};
use crate::model::safe_host;

/// Questions on the way at once.
const IN_FLIGHT: usize = 64;

/// Names that are remembered; beyond it the one that was asked for longest ago is forgotten.
const NAMES: usize = 16_384;

/// The least and the greatest time an address is believed, whatever its TTL.
const POSITIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How soon a name that did not resolve is asked again: at first, and at last.
const NEGATIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A name nobody has asked for in this time is not refreshed until somebody does.
const IDLE: Duration = Duration::from_secs(600);

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Its address.
    Known(IpAddr),
    /// It is being asked for; [`Hosts::changed`] tells when there is an answer.
    Pending,
    /// It has never had an address, and why; it is asked for again.
    Failed(String),
}

/// The cache. Dropping it stops the refreshing.
#[derive(Debug)]
pub struct Hosts {
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    cache: Mutex<Cache>,
    /// Something is due earlier than it was.
    wake: Notify,
    /// Grows whenever what a name resolves to changes.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Cache {
    names: BTreeMap<Arc<str>, Name>,
    /// When names are asked next; those being asked are not in it.
    due: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug)]
struct Name {
    resolution: Resolution,
    /// When it is asked next; `None` while it is being asked, or rests.
    due: Option<Instant>,
    asking: bool,
    wanted: Instant,
    backoff: Backoff,
}

impl Hosts {
    /// An empty cache that asks `nameserver`, or whom the host is configured to ask. Needs a runtime.
    #[must_use]
    pub fn new(nameserver: Option<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            cache: Mutex::default(),
            wake: Notify::new(),
            version: watch::Sender::new(0),
        });
        let mut task = JoinSet::new();
        task.spawn(refresh(Arc::clone(&shared), nameserver));
        Self {
            shared,
            _task: task,
        }
    }

    /// What is known of `host`, a literal address or a DNS name; asks for it if that is nothing.
    pub fn resolve(&mut self, host: &str) -> Resolution {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Resolution::Known(address);
        }
        if !safe_host(host) {
            return Resolution::Failed("not a host name".to_owned());
        }
        let (resolution, earlier) = self.shared.lock().want(host, Instant::now());
        if earlier {
            self.shared.wake.notify_one();
        }
        resolution
    }

    /// Tells that something resolves to something else than before.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// What is known of `host`, and whether it has to be asked for sooner than anybody expects.
    fn want(&mut self, host: &str, now: Instant) -> (Resolution, bool) {
        let key: Arc<str> = host.to_ascii_lowercase().into();
        if let Some(name) = self.names.get_mut(&key) {
            name.wanted = now;
            let resting = name.due.is_none() && !name.asking;
            if resting {
                name.due = Some(now);
                self.due.insert((now, key));
            }
            return (name.resolution.clone(), resting);
        }
        if self.names.len() >= NAMES {
            self.forget_one();
        }
        self.names.insert(
            Arc::clone(&key),
            Name {
                resolution: Resolution::Pending,
                due: Some(now),
                asking: false,
                wanted: now,
                backoff: Backoff::new(NEGATIVE.0, NEGATIVE.1),
            },
        );
        self.due.insert((now, key));
        (Resolution::Pending, true)
    }

    fn forget_one(&mut self) {
        let oldest = self.names.iter().min_by_key(|(_, name)| name.wanted);
        let Some(key) = oldest.map(|(key, _)| Arc::clone(key)) else {
            return;
        };
        if let Some(due) = self.names.remove(&key).and_then(|name| name.due) {
            self.due.remove(&(due, key));
        }
    }

    /// The next name to ask, if one is due. One that nobody wants any more rests instead.
    fn next(&mut self, now: Instant) -> Option<Arc<str>> {
        while self.due.first().is_some_and(|(due, _)| *due <= now) {
            let (_, key) = self.due.pop_first()?;
            let Some(name) = self.names.get_mut(&key) else {
                continue;
            };
            name.due = None;
            if now.saturating_duration_since(name.wanted) < IDLE {
                name.asking = true;
                return Some(key);
            }
        }
        None
    }

    /// Takes over an answer; true when the name resolves to something else than before.
    fn learn(
        &mut self,
        key: Arc<str>,
        answer: Result<Answer<IpAddr>, String>,
        now: Instant,
    ) -> bool {
        // It may have been forgotten meanwhile.
        let Some(name) = self.names.get_mut(&key) else {
            return false;
        };
        let before = name.resolution.clone();
        let wait = match answer {
            Ok(Answer { records, valid }) if !records.is_empty() => {
                name.resolution = Resolution::Known(pick(&before, &records));
                name.backoff = Backoff::new(NEGATIVE.0, NEGATIVE.1);
                valid.clamp(POSITIVE.0, POSITIVE.1)
            }
            nothing => {
                if !matches!(before, Resolution::Known(_)) {
                    let why = nothing.err();
                    let why = why.unwrap_or_else(|| format!("{key}: no address"));
                    name.resolution = Resolution::Failed(why);
                }
                name.backoff.next_delay()
            }
        };
        let changed = name.resolution != before;
        name.asking = false;
        // One that was forgotten and wanted again while it was asked is due already.
        if let Some(due) = name.due.replace(now + wait) {
            self.due.remove(&(due, Arc::clone(&key)));
        }
        self.due.insert((now + wait, key));
        changed
    }
}

/// The address to use: the one in use if it still is one, or the smallest, so that every host picks the same.
fn pick(before: &Resolution, addresses: &[IpAddr]) -> IpAddr {
    match before {
        Resolution::Known(address) if addresses.contains(address) => *address,
        _ => addresses.iter().copied().min().unwrap_or(addresses[0]),
    }
}

async fn refresh(shared: Arc<Shared>, nameserver: Option<SocketAddr>) {
    let mut asked = JoinSet::new();
    loop {
        let now = Instant::now();
        // The configuration of the host is read again for every batch.
        let mut resolver = None;
        while asked.len() < IN_FLIGHT {
            let Some(key) = shared.lock().next(now) else {
                break;
            };
            let resolver = resolver
                .get_or_insert_with(|| lookup::resolver(nameserver))
                .clone();
            asked.spawn(async move {
                let answer = match resolver {
                    Ok(resolver) => lookup::addresses(&resolver, &key).await,
                    Err(why) => Err(why),
                };
                (key, answer)
            });
        }
        // With all places taken, what is due waits for one.
        let room = asked.len() < IN_FLIGHT;
        let due = shared.lock().due.first().map(|(due, _)| *due);
        tokio::select! {
            Some(ended) = asked.join_next() => {
                if let Ok((key, answer)) = ended
                    && shared.lock().learn(key, answer, Instant::now())
                {
                    shared.version.send_modify(|version| *version += 1);
                }
            }
            () = sleep_until(due.unwrap_or(now + IDLE)), if room => {}
            () = shared.wake.notified(), if room => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn addresses(texts: &[&str]) -> Result<Answer<IpAddr>, String> {
        Ok(Answer {
            records: texts.iter().map(|text| text.parse().unwrap()).collect(),
            valid: TTL,
        })
    }

    fn known(text: &str) -> Resolution {
        Resolution::Known(text.parse().unwrap())
    }

    /// A cache in which `host` was asked for and is being asked.
    fn asking(host: &str, now: Instant) -> (Cache, Arc<str>) {
        let mut cache = Cache::default();
        assert_eq!(cache.want(host, now), (Resolution::Pending, true));
        let key = cache.next(now).unwrap();
        (cache, key)
    }

    #[test]
    fn the_address_in_use_stays_while_it_is_one() {
        let now = Instant::now();
        let (mut cache, key) = asking("web", now);
        assert!(cache.learn(Arc::clone(&key), addresses(&["10.0.0.3", "10.0.0.2"]), now));
        assert_eq!(cache.want("WEB", now).0, known("10.0.0.2"));
        let rotated = addresses(&["10.0.0.1", "10.0.0.2"]);
        assert!(!cache.learn(Arc::clone(&key), rotated, now));
        assert!(cache.learn(Arc::clone(&key), addresses(&["10.0.0.9"]), now));
        assert_eq!(cache.want("web", now).0, known("10.0.0.9"));
    }

    #[test]
    fn the_last_good_address_outlives_failures_and_empty_answers() {
        let now = Instant::now();
        let (mut cache, key) = asking("web", now);
        assert!(cache.learn(Arc::clone(&key), Err("web: timed out".into()), now));
        let failed = Resolution::Failed("web: timed out".into());
        assert_eq!(cache.want("web", now).0, failed);
        assert!(cache.learn(Arc::clone(&key), addresses(&["10.0.0.1"]), now));
        assert!(!cache.learn(Arc::clone(&key), Err("web: timed out".into()), now));
        assert!(!cache.learn(Arc::clone(&key), addresses(&[]), now));
        assert_eq!(cache.want("web", now).0, known("10.0.0.1"));
    }

    #[test]
    fn a_name_is_asked_again_when_its_ttl_is_over() {
        let now = Instant::now();
        let (mut cache, key) = asking("web", now);
        cache.learn(Arc::clone(&key), addresses(&["10.0.0.1"]), now);
        assert_eq!(cache.next(now + TTL - Duration::from_millis(1)), None);
        assert_eq!(cache.next(now + TTL), Some(key));
        assert_eq!(cache.next(now + TTL), None, "it is being asked");
    }

    #[test]
    fn a_name_that_nobody_wants_rests_until_somebody_does() {
        let now = Instant::now();
        let (mut cache, key) = asking("web", now);
        cache.learn(Arc::clone(&key), addresses(&["10.0.0.1"]), now);
        let later = now + IDLE + TTL;
        assert_eq!(cache.next(later), None);
        assert!(cache.due.is_empty());
        assert_eq!(cache.want("web", later), (known("10.0.0.1"), true));
        assert_eq!(cache.next(later), Some(key));
    }

    #[test]
    fn the_cache_is_bounded() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for index in 0..NAMES + 10 {
            cache.want(
                &format!("host{index}"),
                now + Duration::from_millis(index as u64),
            );
        }
        assert_eq!(cache.names.len(), NAMES);
        assert_eq!(cache.due.len(), NAMES);
        assert!(!cache.names.contains_key("host9"), "the oldest goes first");
        assert!(cache.names.contains_key("host10"));
    }
}
