//! The state machine of one service's servers: who has which slot, who is proven, who leaves. Pure: time, probes and
//! sessions come in as arguments, and what HAProxy should hold comes out as a [`Roster`].
//!
//! Aurora announces a task before it listens and stops it while it leaves. So a new member is *probing* until a
//! connection to it succeeds; and one that is no longer announced is *drained*, unless that would leave the service
//! with too few that are ready: then it is *held*, for as long as it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::membership::{Admin, Occupant, Roster};
use crate::model::{Backend, Reason, Reject};

/// How long a new member is given to listen. After that it is asked less often, and takes part unproven when too few
/// others are ready: then it may be this host that cannot reach anybody.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a leaving member still serves after this long is cut.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(600);

/// For how many members room is made at once.
const ROOM: usize = 16;

/// Where a member is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Announced, and no connection to it has succeeded yet.
    Probing,
    /// Gets requests; HAProxy's own checks rule.
    Ready,
    /// No longer announced, but it would leave too few: gets requests while it answers.
    Held,
    /// No longer announced; what it has may end.
    Draining,
}

impl Phase {
    /// The word that metrics, the journal and JSON have.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Probing => "probing",
            Self::Ready => "ready",
            Self::Held => "held",
            Self::Draining => "draining",
        }
    }

    const fn admin(self) -> Admin {
        match self {
            Self::Probing => Admin::Maint,
            Self::Ready | Self::Held => Admin::Ready,
            Self::Draining => Admin::Drain,
        }
    }
}

/// A member and its state. Times are since boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// The member.
    pub backend: Arc<Backend>,
    /// Where it is.
    pub address: IpAddr,
    /// Where it is in its life.
    pub phase: Phase,
    /// When it entered this phase.
    pub since: Duration,
    /// When it was first seen.
    pub announced: Duration,
    /// Whether the last probe of it failed.
    pub refused: bool,
}

/// One thing that happened to a member, for the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it is now; `None` is gone.
    pub phase: Option<Phase>,
    /// What it was; `None` is new.
    pub before: Option<Phase>,
    /// Its slot, from 1.
    pub slot: usize,
    /// The member.
    pub backend: Arc<Backend>,
    /// Why, in a few words.
    pub cause: &'static str,
    /// When it was first seen, since boot.
    pub announced: Duration,
}

/// How members of a service are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whether new members are probed.
    pub probe: bool,
    /// Below this share of announced members, in percent, nobody is drained for not being announced.
    pub panic_threshold: u8,
}

/// The servers of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Up to the last one that was ever taken.
    slots: Vec<Option<Resident>>,
    capacity: usize,
    events: Vec<Event>,
}

impl Table {
    /// A table with room for `capacity` members.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            capacity,
            events: Vec::new(),
        }
    }

    /// The table that a roster was taken from: who was ready is ready, who was drained is draining, and who was not yet
    /// proven is probed again.
    #[must_use]
    pub fn restore(roster: &Roster, now: Duration) -> Self {
        let resident = |occupant: &Occupant| Resident {
            backend: Arc::clone(&occupant.backend),
            address: occupant.address,
            phase: match occupant.admin {
                Admin::Ready => Phase::Ready,
                Admin::Drain => Phase::Draining,
                Admin::Maint => Phase::Probing,
            },
            since: now,
            announced: now,
            refused: false,
        };
        Self {
            slots: roster
                .servers
                .iter()
                .map(|server| server.as_ref().map(resident))
                .collect(),
            capacity: roster.servers.len() + roster.free,
            events: Vec::new(),
        }
    }

    /// How many slots there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Adds slots at the end; there are never fewer than before.
    pub fn grow(&mut self, capacity: usize) {
        self.capacity = self.capacity.max(capacity);
    }

    /// Moves everybody to the front: for servers that have no fixed place.
    pub fn compact(&mut self) {
        self.slots.retain(Option::is_some);
    }

    /// The members with their slots, from 1.
    pub fn residents(&self) -> impl Iterator<Item = (usize, &Resident)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| Some((index + 1, slot.as_ref()?)))
    }

    /// How many are in each phase.
    #[must_use]
    pub fn count(&self, phase: Phase) -> usize {
        self.residents()
            .filter(|(_, resident)| resident.phase == phase)
            .count()
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What HAProxy should hold.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let occupant = |resident: &Resident| Occupant {
            backend: Arc::clone(&resident.backend),
            address: resident.address,
            weight: resident.backend.weight.or_else(|| {
                let options = resident.backend.rare.options.as_deref()?;
                crate::render::split_weight(options).0
            }),
            admin: resident.phase.admin(),
        };
        let last = self.slots.iter().rposition(Option::is_some);
        let taken = &self.slots[..last.map_or(0, |last| last + 1)];
        Roster {
            servers: taken
                .iter()
                .map(|slot| slot.as_ref().map(occupant))
                .collect(),
            free: self.capacity - taken.len(),
        }
    }

    /// Takes over what is announced: newcomers get a slot, those that are gone begin to leave (see [`Table::settle`]).
    /// `members` holds each endpoint once. Returns those that found no slot.
    pub fn follow(
        &mut self,
        members: &[(Arc<Backend>, IpAddr)],
        policy: Policy,
        now: Duration,
    ) -> Vec<Reject> {
        let announced: BTreeMap<String, &(Arc<Backend>, IpAddr)> = members
            .iter()
            .map(|member| (member.0.endpoint(), member))
            .collect();
        let mut known = BTreeMap::new();
        for index in 0..self.slots.len() {
            let Some(resident) = &mut self.slots[index] else {
                continue;
            };
            let endpoint = resident.backend.endpoint();
            match announced.get(&endpoint) {
                Some((backend, address)) => {
                    known.insert(endpoint, ());
                    resident.backend = Arc::clone(backend);
                    resident.address = *address;
                    match resident.phase {
                        Phase::Held => self.enter(index, Phase::Ready, "announced again", now),
                        Phase::Draining if policy.probe => {
                            self.enter(index, Phase::Probing, "announced again", now);
                        }
                        Phase::Draining => self.enter(index, Phase::Ready, "announced again", now),
                        Phase::Probing | Phase::Ready => {}
                    }
                }
                None if resident.phase == Phase::Probing => {
                    self.free(index, "left before it listened")
                }
                // Whether it is drained or held is decided over all of them, by `settle`, which also says so.
                None if resident.phase == Phase::Ready => {
                    resident.phase = Phase::Held;
                    resident.since = now;
                }
                None => {}
            }
        }
        let mut full = Vec::new();
        for (backend, address) in members {
            if known.contains_key(&backend.endpoint()) {
                continue;
            }
            let free = self.slots.iter().position(Option::is_none);
            let index = free.unwrap_or(self.slots.len());
            match index < self.capacity {
                true => self.settle_in(index, backend, *address, policy, now),
                false => full.push(Reject::new(
                    backend.source.clone(),
                    Reason::Full,
                    format!("all {} slots are taken", self.capacity),
                )),
            }
        }
        full
    }

    fn settle_in(
        &mut self,
        index: usize,
        backend: &Arc<Backend>,
        address: IpAddr,
        policy: Policy,
        now: Duration,
    ) {
        let phase = if policy.probe {
            Phase::Probing
        } else {
            Phase::Ready
        };
        let resident = Resident {
            backend: Arc::clone(backend),
            address,
            phase,
            since: now,
            announced: now,
            refused: false,
        };
        match self.slots.get_mut(index) {
            Some(slot) => *slot = Some(resident),
            None => {
                // Members come by the dozen, and a service is one of a thousand: room is made in small steps.
                self.slots.reserve_exact(ROOM.min(self.capacity - index));
                self.slots.push(Some(resident));
            }
        }
        self.events.push(Event {
            phase: Some(phase),
            before: None,
            slot: index + 1,
            backend: Arc::clone(backend),
            cause: "announced",
            announced: now,
        });
    }

    /// Takes the result of a probe of `endpoint`.
    pub fn probed(&mut self, endpoint: &str, answered: bool, now: Duration) {
        let found = self.slots.iter().position(|slot| {
            slot.as_ref()
                .is_some_and(|resident| resident.backend.endpoint() == endpoint)
        });
        let Some(index) = found else { return };
        let Some(resident) = &mut self.slots[index] else {
            return;
        };
        resident.refused = !answered;
        if answered && resident.phase == Phase::Probing {
            self.enter(index, Phase::Ready, "answers", now);
        }
    }

    /// Decides who may go, and who takes part unproven. To be called after [`Table::follow`] and [`Table::probed`], and
    /// when [`Table::next_decision`] has come.
    pub fn settle(&mut self, policy: Policy, now: Duration) {
        let announced = self.count(Phase::Ready) + self.count(Phase::Probing);
        let needed = (announced * usize::from(policy.panic_threshold)).div_ceil(100);
        let needed = if announced == 0 { 0 } else { needed.max(1) };

        let mut ready = self.count(Phase::Ready);
        if ready < needed {
            for index in self.ordered(Phase::Probing) {
                let waited = self.slots[index]
                    .as_ref()
                    .map_or(Duration::ZERO, |r| now.saturating_sub(r.announced));
                if ready < needed && waited >= PATIENCE {
                    self.enter(
                        index,
                        Phase::Ready,
                        "unproven: too few others are ready",
                        now,
                    );
                    ready += 1;
                }
            }
        }
        // Those that still answer are the last to go, and among them those that left last.
        let mut leaving = self.ordered(Phase::Held);
        leaving.sort_by_key(|&index| {
            self.slots[index]
                .as_ref()
                .map(|resident| (!resident.refused, resident.since))
        });
        let mut remaining = leaving.len();
        for index in leaving {
            let Some(resident) = &self.slots[index] else {
                continue;
            };
            let fresh = resident.since == now;
            let before = if fresh { Phase::Ready } else { Phase::Held };
            let spare = ready + remaining > needed;
            let last = ready + remaining <= 1 && needed > 0;
            if spare || (resident.refused && !last) {
                if let Some(resident) = &mut self.slots[index] {
                    resident.phase = Phase::Draining;
                    resident.since = now;
                }
                self.tell(index, before, "no longer announced");
                remaining -= 1;
            } else if fresh {
                self.tell(
                    index,
                    before,
                    "no longer announced, but too few others are ready",
                );
            }
        }
    }

    /// The slots of a phase, those that entered it first in front.
    fn ordered(&self, phase: Phase) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.slots.len())
            .filter(|&index| self.slots[index].as_ref().is_some_and(|r| r.phase == phase))
            .collect();
        indices.sort_by_key(|&index| self.slots[index].as_ref().map(|resident| resident.since));
        indices
    }

    /// Frees the slots of drained members whose server is quiet: no session, no connection in use. `quiet` says so of a
    /// slot (from 1). Nobody else may have the slot before: HAProxy would go on to use connections to the old occupant.
    pub fn release(&mut self, quiet: &dyn Fn(usize) -> bool) {
        for index in self.ordered(Phase::Draining) {
            if quiet(index + 1) {
                self.free(index, "drained");
            }
        }
    }

    /// When [`Table::settle`] should be called although nothing happened.
    #[must_use]
    pub fn next_decision(&self, now: Duration) -> Option<Duration> {
        self.residents()
            .filter(|(_, resident)| resident.phase == Phase::Probing)
            .map(|(_, resident)| resident.announced + PATIENCE)
            .filter(|&at| at > now)
            .min()
    }

    fn enter(&mut self, index: usize, phase: Phase, cause: &'static str, now: Duration) {
        let Some(resident) = &mut self.slots[index] else {
            return;
        };
        let before = resident.phase;
        resident.phase = phase;
        resident.since = now;
        self.tell(index, before, cause);
    }

    fn tell(&mut self, index: usize, before: Phase, cause: &'static str) {
        if let Some(resident) = &self.slots[index] {
            self.events.push(Event {
                phase: Some(resident.phase),
                before: Some(before),
                slot: index + 1,
                backend: Arc::clone(&resident.backend),
                cause,
                announced: resident.announced,
            });
        }
    }

    fn free(&mut self, index: usize, cause: &'static str) {
        if let Some(resident) = self.slots[index].take() {
            self.events.push(Event {
                phase: None,
                before: Some(resident.phase),
                slot: index + 1,
                backend: resident.backend,
                cause,
                announced: resident.announced,
            });
        }
    }
}

#[cfg(test)]
mod tests;
