//! Reloads: when one is due, what comes of it, and services that HAProxy refuses.

mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hostkit::clock;
use serde_json::{Value, json};

use super::{Done, Engine, Tracked};
use crate::haproxy::reload::Way;
use crate::journal::{Entry, Kind};
use crate::membership::Roster;
use crate::settings::Service;
use crate::state::Loaded;
use crate::statsd::name;
pub(crate) use reload::Outcome;
use reload::Reload;

/// Changes of structure that come together are one reload.
const SETTLE: Duration = Duration::from_millis(20);
/// A structure that was refused, and a service whose port is taken, is tried again after this long.
const RETRY: Duration = Duration::from_secs(30);

/// What HAProxy runs with, and what it should.
#[derive(Debug, Default)]
pub(super) struct Structure {
    /// What the last good reload loaded.
    loaded: Option<Loaded>,
    /// The structure that was refused last.
    refused: Option<Refused>,
    /// Services that HAProxy refuses.
    quarantine: BTreeMap<String, Quarantine>,
    /// Services as they were last accepted.
    good: BTreeMap<String, Arc<Service>>,
    /// Since when a reload may be needed; the renderer knows whether it is.
    suspected: Option<Duration>,
    causes: BTreeSet<&'static str>,
    /// No reload before this.
    not_before: Duration,
    /// Nor before this, unless something else happens: what is to be loaded was refused.
    parked: Option<Duration>,
    running: bool,
    count: u64,
}

/// A structure that was refused.
#[derive(Debug)]
struct Refused {
    structure: String,
    why: String,
    /// When it is tried again.
    until: Duration,
    /// Whether no HAProxy answered then: it is tried again when one does.
    away: bool,
}

/// A service that HAProxy refuses.
#[derive(Debug)]
struct Quarantine {
    why: String,
    /// What was refused; another one gets another chance.
    service: Arc<Service>,
    /// Whether it is left out; else it stays as it was last accepted, without what members say of their own.
    out: bool,
    /// When it gets another chance as it is: a port that is taken may become free.
    until: Option<Duration>,
}

impl Structure {
    pub(super) fn restore(&mut self, loaded: Option<Loaded>) {
        self.loaded = loaded;
    }

    /// Something happened that may need a reload.
    pub(super) fn suspect(&mut self, cause: &'static str) {
        self.suspected.get_or_insert_with(clock::since_boot);
        self.parked = None;
        self.causes.insert(cause);
    }

    /// Whether this is the process that was told all there was to tell.
    pub(super) fn drives(&self, pid: Option<u32>) -> bool {
        let loaded = self.loaded.as_ref().and_then(|loaded| loaded.pid);
        loaded.is_some() && loaded == pid
    }

    /// HAProxy was away, and answers.
    pub(super) fn back(&mut self) {
        self.refused.take_if(|refused| refused.away);
    }

    /// Whatever was refused may be tried again at once: somebody has read the reason.
    pub(super) fn try_again(&mut self) {
        self.refused = None;
        for quarantine in self.quarantine.values_mut() {
            quarantine.until = quarantine.until.map(|_| Duration::ZERO);
        }
    }

    /// When a service in quarantine gets another chance.
    pub(super) fn chance_due(&self) -> Option<Duration> {
        let due = self
            .quarantine
            .values()
            .filter_map(|quarantine| quarantine.until);
        due.min().filter(|_| !self.running)
    }

    pub(super) const fn running(&self) -> bool {
        self.running
    }

    /// The structure that HAProxy's file may have.
    pub(super) fn accepted(&self) -> Option<&str> {
        self.loaded.as_ref().map(|loaded| loaded.structure.as_str())
    }

    pub(super) fn loaded(&self) -> Option<Loaded> {
        self.loaded.clone()
    }

    /// How many services are not as they are configured.
    pub(super) fn quarantined(&self) -> usize {
        self.quarantine.len()
    }

    pub(super) fn status(&self) -> Value {
        let quarantine: BTreeMap<&String, &String> = self
            .quarantine
            .iter()
            .map(|(name, quarantine)| (name, &quarantine.why))
            .collect();
        json!({
            "loaded": self.accepted(),
            "reloads": self.count,
            "refused": self.refused.as_ref().map(|refused| &refused.why),
            "quarantine": quarantine,
        })
    }

    /// What of a service is written: as it is, or as HAProxy takes it; `None` leaves it out.
    pub(super) fn written(&self, tracked: &Tracked) -> Option<(Arc<Service>, Arc<Roster>)> {
        let as_it_is = || Some((Arc::clone(&tracked.service), Arc::clone(&tracked.roster)));
        let Some(quarantine) = self.quarantine.get(&tracked.service.name) else {
            return as_it_is();
        };
        if quarantine.service != tracked.service {
            return as_it_is();
        }
        if quarantine.out {
            return None;
        }
        let service = self
            .good
            .get(&tracked.service.name)
            .unwrap_or(&tracked.service);
        let mut roster = (*tracked.roster).clone();
        for occupant in roster.servers.iter_mut().flatten() {
            if occupant.backend.rare.options.is_some() {
                let backend = Arc::make_mut(&mut occupant.backend);
                backend.rare.edit(|rare| rare.options = None);
            }
        }
        Some((Arc::clone(service), Arc::new(roster)))
    }
}

impl Engine {
    pub(super) fn reload_due(&self) -> Option<Duration> {
        let since = self
            .structure
            .suspected
            .filter(|_| !self.structure.running)?;
        let settled = (since + SETTLE).max(self.structure.not_before);
        Some(settled.max(self.structure.parked.unwrap_or_default()))
    }

    /// Reloads HAProxy beside the loop if its structure is not what it should be.
    pub(super) fn reload_if_due(&mut self, now: Duration) {
        if self.reload_due().is_none_or(|at| at > now) {
            return;
        }
        if !self.may_write(now) {
            self.structure.not_before = now + Duration::from_millis(100);
            return;
        }
        // A process that has not been asked yet may have this structure already.
        let unasked = self
            .links
            .iter()
            .any(|link| link.info.is_none() && link.trouble.is_none());
        if unasked {
            return;
        }
        let rendered = self.render();
        if let Some(refused) = &self.structure.refused
            && refused.structure != rendered.structure
        {
            self.structure.refused = None;
        }
        if self.has(&rendered.structure) {
            self.structure.suspected = None;
            self.structure.causes.clear();
            self.structure.loaded = Some(self.loaded_now(&rendered.structure));
            self.files.mark(now);
            return;
        }
        if let Some(refused) = &self.structure.refused
            && now < refused.until
        {
            self.structure.parked = Some(refused.until);
            return;
        }
        let haproxy = &self.settings.haproxy;
        self.structure.suspected = None;
        let causes = std::mem::take(&mut self.structure.causes);
        if !haproxy.do_writes || haproxy.config_file.is_none() {
            // Somebody else writes it; the members are ours.
            self.structure.loaded = Some(self.loaded_now(&rendered.structure));
            return;
        }
        let Some(way) = Way::of(haproxy).filter(|_| haproxy.do_reloads) else {
            // Whoever reloads HAProxy finds the file as it should be.
            self.structure.loaded = Some(self.loaded_now(&rendered.structure));
            self.files.mark(now);
            return;
        };
        self.structure.running = true;
        let written: Vec<(Arc<Service>, Arc<Roster>)> = self
            .tracked
            .values()
            .filter_map(|tracked| self.structure.written(tracked))
            .collect();
        let ours = self
            .tracked
            .values()
            .map(|tracked| tracked.backend().to_owned())
            .collect();
        let job = Reload {
            haproxy: haproxy.clone(),
            way,
            rendered,
            written,
            ours,
            causes,
        };
        self.jobs
            .spawn(async move { Done::Reloaded(job.run().await) });
    }

    /// Whether every process has this structure.
    fn has(&self, structure: &str) -> bool {
        let kept = self
            .structure
            .loaded
            .as_ref()
            .filter(|loaded| loaded.structure == structure);
        if self.links.is_empty() {
            return kept.is_some();
        }
        self.links
            .iter()
            .all(|link| match (&link.structure, &link.info) {
                (Some(has), _) => has == structure,
                // It does not say: then it has what was loaded into this process.
                (None, Some(info)) => {
                    kept.is_some_and(|loaded| loaded.pid == u32::try_from(info.pid).ok())
                }
                // It does not run: whoever starts it finds the file.
                (None, None) => kept.is_some(),
            })
    }

    fn loaded_now(&self, structure: &str) -> Loaded {
        let info = self.links.first().and_then(|link| link.info.as_ref());
        Loaded {
            structure: structure.to_owned(),
            pid: info.and_then(|info| u32::try_from(info.pid).ok()),
        }
    }

    /// Takes up what a reload came to.
    pub(super) fn reloaded(&mut self, outcome: Outcome) {
        let now = clock::since_boot();
        let haproxy = &self.settings.haproxy;
        self.structure.running = false;
        self.structure.count += 1;
        let jitter = haproxy
            .restart_interval
            .mul_f64(haproxy.restart_jitter.max(0.0));
        self.structure.not_before =
            now + haproxy.restart_interval + hostkit::backoff::random_delay(jitter);
        let cause = outcome
            .causes
            .iter()
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        let number = self.structure.count;
        let took = u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX);
        self.metrics
            .reload_duration
            .observe(outcome.took.as_secs_f64());
        let away = self.links.iter().all(|link| link.info.is_none());
        for link in &mut self.links {
            link.doubt();
        }
        for name in self.tracked.keys().cloned().collect::<Vec<_>>() {
            self.mark_runtime(&name);
        }
        self.files.mark(now);
        let result = if outcome.result.is_ok() {
            "ok"
        } else {
            "failed"
        };
        let word = first(&outcome.causes);
        self.metrics.reloads.with(&[word, result]).inc();
        if let Some(statsd) = &self.statsd {
            statsd.count(name::RELOAD, 1, &[("cause", word), ("result", result)]);
            if outcome.result.is_err() {
                statsd.count(name::RELOAD_FAILED, 1, &[]);
            }
        }
        if let Some(passed) = outcome.checked {
            let word = if passed { "ok" } else { "refused" };
            self.metrics.config_checks.with(&[word]).inc();
            if let Some(statsd) = &self.statsd {
                let success = if passed { "true" } else { "false" };
                statsd.count(name::CHECK_CONFIG, 1, &[("success", success)]);
            }
        }
        match outcome.result {
            Ok(applied) => {
                let pid = applied
                    .info
                    .as_ref()
                    .and_then(|info| u32::try_from(info.pid).ok());
                self.structure.loaded = Some(Loaded {
                    structure: outcome.rendered.structure.clone(),
                    pid,
                });
                self.structure.refused = None;
                self.structure.good = outcome
                    .services
                    .into_iter()
                    .map(|service| (service.name.clone(), service))
                    .collect();
                self.files.ours = true;
                let leftover = i64::try_from(applied.leftover).unwrap_or(i64::MAX);
                self.metrics.leftover_workers.set(leftover);
                self.told.leftover_looked = Some(now);
                tracing::info!(
                    reload = number,
                    cause,
                    pid,
                    milliseconds = took,
                    leftover,
                    "HAProxy reloaded"
                );
                self.note(Kind::Reload, |entry| Entry {
                    cause: Some(cause),
                    reload: Some(number),
                    duration_ms: Some(took),
                    ..entry
                });
            }
            Err(error) => {
                let why = format!("{error}: {}", error.cause);
                self.note(Kind::ReloadFailed, |entry| Entry {
                    cause: Some(cause),
                    detail: Some(why.clone()),
                    reload: Some(number),
                    duration_ms: Some(took),
                    ..entry
                });
                self.trouble(why.clone());
                self.structure.suspect("retry");
                if outcome.blamed.is_empty() {
                    self.structure.refused = Some(Refused {
                        structure: outcome.rendered.structure.clone(),
                        why,
                        until: now + RETRY,
                        away,
                    });
                } else {
                    let until = outcome.passing.then_some(now + RETRY);
                    self.quarantine(outcome.blamed, until);
                    // Nothing was reloaded, so nothing has to be waited for.
                    self.structure.not_before = now;
                }
            }
        }
    }

    /// Leaves these services as they were last accepted, or out where that is refused too.
    fn quarantine(&mut self, blamed: BTreeMap<String, String>, until: Option<Duration>) {
        for (name, why) in blamed {
            let Some(tracked) = self.tracked.get_mut(&name) else {
                continue;
            };
            tracked.revision += 1;
            let service = Arc::clone(&tracked.service);
            let again = self
                .structure
                .quarantine
                .get(&name)
                .is_some_and(|known| known.service == service);
            let out = again || (!self.structure.good.contains_key(&name) && !tracked.has_options());
            self.trouble(format!(
                "{name} is {}: {why}",
                if out { "left out" } else { "left as it was" }
            ));
            self.note(Kind::Quarantine, |entry| Entry {
                service: Some(name.clone()),
                cause: Some(if out { "left out" } else { "left as it was" }.to_owned()),
                detail: Some(why.clone()),
                ..entry
            });
            let quarantine = Quarantine {
                why,
                service,
                out,
                until,
            };
            self.structure.quarantine.insert(name, quarantine);
        }
    }

    /// Gives services another chance whose quarantine was for a time.
    pub(super) fn give_chances(&mut self, now: Duration) {
        if self.structure.chance_due().is_none_or(|at| at > now) {
            return;
        }
        let over = |quarantine: &mut Quarantine| quarantine.until.is_some_and(|at| at <= now);
        let free = self.structure.quarantine.extract_if(.., |_, it| over(it));
        for (name, _) in free {
            if let Some(tracked) = self.tracked.get_mut(&name) {
                tracked.revision += 1;
            }
        }
        self.structure.suspect("retry");
    }

    /// Forgets quarantines of services that are configured otherwise now, or no more.
    pub(super) fn review_quarantine(&mut self) {
        let tracked = &self.tracked;
        self.structure.quarantine.retain(|name, quarantine| {
            tracked
                .get(name)
                .is_some_and(|tracked| tracked.service == quarantine.service)
        });
    }
}

fn first(causes: &BTreeSet<&'static str>) -> &'static str {
    causes.first().copied().unwrap_or("unknown")
}
