//! One service as the engine follows it: what was found, who is a member, who has which slot.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::membership::table::{Event, Phase, Policy, Resident, Table};
use crate::membership::{Admin, Occupant, Roster};
use crate::model::{Backend, Discovered, Job, Reason, Reject};
use crate::planner::{self, Held};
use crate::probe::Target;
use crate::render::{server_name, slots_for, split_weight};
use crate::settings::{Probe, Servers, Service};
use crate::state::{self, State};
use crate::watcher::expand::concrete;

/// A service and all that is known of it.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) service: Arc<Service>,
    /// The configuration entry it comes from.
    pub(crate) entry: String,
    /// What its source said last, as it was published.
    heard: Arc<Discovered>,
    /// The same, with those that silence must not remove.
    pub(crate) main: Arc<Discovered>,
    pub(crate) canary: Option<Arc<Discovered>>,
    /// The job behind it, where that is known.
    pub(crate) job: Option<Job>,
    /// Members of last known good that nobody has found since.
    unseen: Vec<Arc<Backend>>,
    /// Who was selected last: what `use_previous_backends` keeps.
    pub(crate) members: Arc<Vec<Arc<Backend>>>,
    /// Members that the guard keeps, and why.
    pub(crate) kept: Option<(Vec<Arc<Backend>>, String)>,
    /// What was refused between discovery and the slots.
    pub(crate) rejects: Vec<Reject>,
    pub(crate) trouble: Option<String>,
    pub(crate) table: Table,
    pub(crate) roster: Arc<Roster>,
    /// Another number whenever the service or the roster is.
    pub(crate) revision: u64,
    /// Whether HAProxy may know better who stands where than what was saved: it was driven by a synapse before this one,
    /// which may have been killed before it could save. Nothing is told until its source has answered.
    pub(crate) inherited: bool,
    /// Whether its members are known, from a registry or from the state file. Before that nothing is written over.
    pub(crate) known: bool,
    /// Since when its path is gone (services of a pattern only).
    pub(crate) gone: Option<Duration>,
    /// When the table wants to decide again although nothing happened.
    pub(crate) decides_at: Option<Duration>,
    /// The probe targets as they were last aimed at.
    aimed: BTreeMap<String, Target>,
}

impl Tracked {
    pub(crate) fn new(service: Arc<Service>, entry: String) -> Self {
        let table = Table::new(capacity(&service, 0, 0));
        let roster = Arc::new(table.roster());
        Self {
            service,
            entry,
            heard: Arc::default(),
            main: Arc::default(),
            canary: None,
            job: None,
            unseen: Vec::new(),
            members: Arc::default(),
            kept: None,
            rejects: Vec::new(),
            trouble: None,
            table,
            roster,
            revision: 1,
            inherited: false,
            known: false,
            gone: None,
            decides_at: None,
            aimed: BTreeMap::new(),
        }
    }

    /// Takes over what was last known good.
    pub(crate) fn restore(&mut self, kept: &state::Service, now: Duration) {
        let mut table = Table::restore(&kept.roster, now);
        table.grow(capacity(
            &self.service,
            table.taken(),
            usize::from(kept.slots),
        ));
        self.table = table;
        // Whoever was kept in doubt is still in doubt: as a member, until its source answers and the guard is asked again.
        let known: HashSet<(&str, u16)> = kept
            .members
            .iter()
            .map(|backend| endpoint(backend))
            .collect();
        let occupants = kept.roster.servers.iter().flatten();
        let doubted = occupants
            .filter(|occupant| occupant.admin == Admin::Ready)
            .filter(|occupant| !known.contains(&endpoint(&occupant.backend)))
            .map(|occupant| occupant.backend.clone());
        self.members = Arc::new(kept.members.iter().cloned().chain(doubted).collect());
        self.unseen = self.members.to_vec();
        self.job.clone_from(&kept.job);
        self.inherited = true;
        self.known = true;
        self.refresh();
    }

    /// Whether this is what its source said last, the very same.
    pub(crate) fn has_heard(&self, main: &Arc<Discovered>) -> bool {
        self.gone.is_none() && Arc::ptr_eq(&self.heard, main)
    }

    /// Takes what its source says. Where a part of the source has never answered, those of last known good may be there:
    /// silence removes nobody.
    pub(crate) fn found(&mut self, mut main: Arc<Discovered>) {
        self.heard = Arc::clone(&main);
        if main.synced.is_some() {
            self.job.clone_from(&main.job);
            let found: HashSet<(&str, u16)> = main
                .backends
                .iter()
                .map(|backend| endpoint(backend))
                .collect();
            let defaults = &self.service.default_servers;
            let written: HashSet<(&str, u16)> =
                defaults.iter().map(|backend| endpoint(backend)).collect();
            self.unseen.retain(|backend| {
                let place = endpoint(backend);
                main.partial && !found.contains(&place) && !written.contains(&place)
            });
        }
        if main.partial && !self.unseen.is_empty() {
            let whole = Arc::make_mut(&mut main);
            whole.backends.extend(self.unseen.iter().cloned());
        }
        self.main = main;
    }

    /// Takes over what HAProxy holds in its backend, where that is newer than what was saved: whoever stands there stays
    /// there, as it is. Returns false while the address of a member is not known yet.
    pub(crate) fn adopt(
        &mut self,
        held: &BTreeMap<Arc<str>, Held>,
        now: Duration,
        mut resolve: impl FnMut(&str) -> Result<Option<IpAddr>, String>,
    ) -> bool {
        let mut found = Vec::with_capacity(self.members.len());
        for backend in self.members.iter() {
            match resolve(&backend.host) {
                Ok(Some(address)) => found.push((backend, address)),
                Ok(None) => return false,
                Err(_) => {}
            }
        }
        let named = self.service.servers != Servers::Slots;
        let mut servers: Vec<Option<Occupant>> = self
            .roster
            .servers
            .iter()
            .enumerate()
            .map(|(index, occupant)| {
                let occupant = occupant.as_ref()?;
                match held.get(&*self.server_name(index + 1, &occupant.backend)) {
                    Some(held) => held
                        .is_at(occupant.address, occupant.backend.port)
                        .then(|| Occupant {
                            admin: held.admin,
                            ..occupant.clone()
                        }),
                    // HAProxy is about to get it.
                    None => Some(occupant.clone()),
                }
            })
            .collect();
        let known: HashSet<String> = servers
            .iter()
            .flatten()
            .map(|occupant| occupant.backend.endpoint())
            .collect();
        let slots = (0..).map_while(|index| Some((index, held.get(&*planner::slot(index))?)));
        let slots = slots.filter(|(_, held)| !named && held.admin == Admin::Ready);
        let serving: HashMap<(IpAddr, u16), usize> = slots
            .filter_map(|(index, held)| Some(((held.address?, held.port), index)))
            .collect();
        for (backend, address) in found {
            if known.contains(&backend.endpoint()) {
                continue;
            }
            let place = match named {
                true => {
                    let server = held.get(&*server_name(backend));
                    let serves = |held: &&Held| {
                        held.admin == Admin::Ready && held.is_at(address, backend.port)
                    };
                    server.filter(serves).map(|_| servers.len())
                }
                false => serving.get(&(address, backend.port)).copied(),
            };
            let Some(place) = place else { continue };
            servers.resize(servers.len().max(place + 1), None);
            servers[place] = Some(Occupant {
                backend: Arc::clone(backend),
                address,
                weight: None,
                admin: Admin::Ready,
            });
        }
        let slots = held
            .keys()
            .filter(|server| server.starts_with("slot"))
            .count();
        let before = self.table.capacity().max(if named { 0 } else { slots });
        self.table = Table::restore(&Roster { servers, free: 0 }, now);
        self.table.grow(capacity(&self.service, 0, before));
        true
    }

    /// The name of its HAProxy backend.
    pub(crate) fn backend(&self) -> &str {
        let proxy = self.service.haproxy.as_ref();
        proxy
            .and_then(|proxy| proxy.backend_name.as_deref())
            .unwrap_or(&self.service.name)
    }

    /// The weight of a member that has none of its own.
    pub(crate) fn weight(&self) -> u16 {
        let proxy = self.service.haproxy.as_ref();
        let options = proxy.and_then(|proxy| proxy.server_options.as_ref());
        options
            .and_then(|line| split_weight(&line.text).0)
            .unwrap_or(1)
    }

    /// Whether registered weights count.
    pub(crate) fn uses_weights(&self) -> bool {
        self.service
            .haproxy
            .as_ref()
            .is_some_and(|proxy| proxy.use_nerve_weights)
    }

    fn policy(&self) -> Policy {
        Policy {
            probe: self.service.probe != Probe::None,
            panic_threshold: self.service.panic_threshold,
        }
    }

    /// Gives these members their slots. `resolve` finds the address of a host; `None` leaves a newcomer waiting. Returns
    /// whether the number of slots grew, which takes a reload.
    pub(crate) fn follow(
        &mut self,
        now: Duration,
        mut resolve: impl FnMut(&str) -> Result<Option<IpAddr>, String>,
    ) -> bool {
        let known: BTreeMap<String, IpAddr> = self
            .table
            .residents()
            .map(|(_, resident)| (resident.backend.endpoint(), resident.address))
            .collect();
        let mut members = Vec::with_capacity(self.members.len());
        let there: HashSet<(&str, u16)> = self
            .members
            .iter()
            .map(|backend| endpoint(backend))
            .collect();
        let kept = self.kept.iter().flat_map(|(kept, _)| kept);
        let kept = kept.filter(|backend| !there.contains(&endpoint(backend)));
        for backend in self.members.iter().chain(kept) {
            match resolve(&backend.host) {
                Ok(Some(address)) => members.push((Arc::clone(backend), address)),
                // Whoever has a slot keeps it, at the address it has.
                other => match (known.get(&backend.endpoint()), other) {
                    (Some(address), _) => members.push((Arc::clone(backend), *address)),
                    (None, Ok(_)) => {}
                    (None, Err(why)) => {
                        let source = backend.source.clone();
                        let detail = format!("{}: {why}", backend.host);
                        self.rejects
                            .push(Reject::new(source, Reason::Unresolved, detail));
                    }
                },
            }
        }
        // Those that drain still have their slots. Room for them is not kept ahead of need, but nobody is left without.
        let staying: HashSet<String> = members
            .iter()
            .map(|(backend, _)| backend.endpoint())
            .collect();
        let leaving = self.table.residents();
        let leaving = leaving
            .filter(|(_, resident)| !staying.contains(&resident.backend.endpoint()))
            .count();
        let needed = match members.len() + leaving > self.table.capacity() {
            true => members.len() + leaving,
            false => members.len(),
        };
        let capacity = capacity(&self.service, needed, self.table.capacity());
        let grows = capacity > self.table.capacity();
        self.table.grow(capacity);
        self.rejects
            .extend(self.table.follow(&members, self.policy(), now));
        grows && self.service.servers == Servers::Slots
    }

    /// Decides what became possible. Returns whether anything that HAProxy or its file holds is different now.
    pub(crate) fn settle(&mut self, now: Duration) -> bool {
        self.table.settle(self.policy(), now);
        self.decides_at = self.table.next_decision(now);
        self.refresh()
    }

    /// Takes the roster from the table; whether it is another one.
    pub(crate) fn refresh(&mut self) -> bool {
        let mut roster = self.table.roster();
        if self.service.servers != Servers::Slots {
            roster.servers.retain(Option::is_some);
            roster.free = 0;
        }
        let changed = *self.roster != roster;
        if changed {
            self.revision += 1;
        }
        // Also when it only says the same: then it shares its members with what was found last.
        self.roster = Arc::new(roster);
        changed
    }

    /// Takes a service that is configured otherwise; whether it is.
    pub(crate) fn reconfigure(&mut self, service: Arc<Service>) -> bool {
        if self.service == service {
            return false;
        }
        if (self.service.servers == Servers::Slots) != (service.servers == Servers::Slots) {
            self.table.compact();
        }
        self.service = service;
        self.table.grow(capacity(
            &self.service,
            self.table.taken(),
            self.table.capacity(),
        ));
        self.refresh();
        self.revision += 1;
        true
    }

    /// Whom to probe; `None` when that is whom it is already.
    pub(crate) fn targets(&mut self) -> Option<BTreeMap<String, Target>> {
        let probe = &self.service.probe;
        let waits = |phase| matches!(phase, Phase::Probing | Phase::Held);
        let targets: BTreeMap<String, Target> = self
            .table
            .residents()
            .filter(|(_, resident)| *probe != Probe::None && waits(resident.phase))
            .map(|(_, resident)| {
                let target = Target {
                    address: SocketAddr::new(resident.address, resident.backend.port),
                    probe: probe.clone(),
                    keep_on: resident.phase == Phase::Held,
                };
                (resident.backend.endpoint(), target)
            })
            .collect();
        if targets == self.aimed {
            return None;
        }
        self.aimed.clone_from(&targets);
        Some(targets)
    }

    /// Whether a member has options of its own, which only a reload brings to HAProxy.
    pub(crate) fn has_options(&self) -> bool {
        let own = |backend: &Backend| {
            backend
                .rare
                .options
                .as_deref()
                .is_some_and(|options| !split_weight(options).1.is_empty())
        };
        self.roster
            .servers
            .iter()
            .flatten()
            .any(|occupant| own(&occupant.backend))
    }

    /// Who stands in a server.
    pub(crate) fn occupant(&self, server: &str) -> Option<&Occupant> {
        self.roster
            .servers
            .iter()
            .enumerate()
            .find_map(|(index, occupant)| {
                let occupant = occupant.as_ref()?;
                (self.server_name(index + 1, &occupant.backend) == server).then_some(occupant)
            })
    }

    /// The HAProxy server of a member with this slot (from 1).
    pub(crate) fn server_name(&self, slot: usize, backend: &Backend) -> String {
        match self.service.servers {
            Servers::Slots => planner::slot(slot - 1),
            Servers::Named(_) => server_name(backend),
        }
    }

    /// The members with the HAProxy servers they have.
    pub(crate) fn server_names(&self) -> Vec<(String, &Resident)> {
        self.table
            .residents()
            .map(|(slot, resident)| (self.server_name(slot, &resident.backend), resident))
            .collect()
    }

    /// How many members get requests.
    pub(crate) fn ready(&self) -> usize {
        self.table.count(Phase::Ready) + self.table.count(Phase::Held)
    }

    /// Slots (from 1) whose member is draining.
    pub(crate) fn draining(&self) -> impl Iterator<Item = (usize, &Resident)> {
        self.table
            .residents()
            .filter(|(_, resident)| resident.phase == Phase::Draining)
    }

    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        self.table.take_events()
    }

    /// What is kept of it over a restart. A member that is held only because too few others are ready stays ready.
    pub(crate) fn state(&self) -> state::Service {
        state::Service {
            members: Arc::clone(&self.members),
            roster: Arc::clone(&self.roster),
            slots: match self.service.servers {
                Servers::Slots => u16::try_from(self.table.capacity()).unwrap_or(u16::MAX),
                Servers::Named(_) => 0,
            },
            unconfigured_ms: None,
            job: self.job.clone(),
            generator_config: None,
        }
    }
}

fn endpoint(backend: &Backend) -> (&str, u16) {
    (&backend.host, backend.port)
}

/// The services of a pattern's entry as they were found last.
pub(crate) fn remembered(
    entry: &Service,
    state: &State,
) -> Vec<(Arc<Service>, Arc<state::Service>)> {
    let kept = state.services.iter();
    kept.filter(|(_, kept)| kept.unconfigured_ms.is_none())
        .filter_map(|(name, kept)| {
            let service = concrete(entry, kept.job.as_ref()).ok()?;
            (service.name == *name).then(|| (Arc::new(service), Arc::clone(kept)))
        })
        .collect()
}

fn capacity(service: &Service, members: usize, current: usize) -> usize {
    match service.servers {
        Servers::Slots => slots_for(members, service.slots, current),
        // Each member has a server of its own, and leaving ones too.
        Servers::Named(_) => current.max(members * 2 + 8),
    }
}
