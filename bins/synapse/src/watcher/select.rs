//! From what was found to the members a service should have: filters, default servers, what to do when nothing is
//! found, the leader, canaries, weights, duplicates. Pure.
//!
//! The rules are Synapse's, in its order, and these where it has none or contradicts itself:
//! * Members are what was found. Where nothing was (before label filters), they are the default servers; without those
//!   the previous members, or none with `use_previous_backends: false`. As long as the source has not answered at all,
//!   they are the previous members, and the default servers if there are none.
//! * `backend_port_override` is for what was found, and for default servers that are kept beside it.
//! * A leader is only elected where everything found has an id. Otherwise nobody new becomes a member: those that were
//!   and still are found remain, and the trouble is told.
//! * Registered weights count where `use_nerve_weights` says so; those of files, SRV records and default servers were
//!   written to be used.
//! * An endpoint of both the canary path and the main one is a canary: the doubt costs the least traffic.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Backend, Discovered, Reason, Reject};
use crate::settings::{Canary, Discovery, LabelFilter, Service};

/// The weight of a member beside canaries, whose weight is a percentage of it.
const NORMAL: u16 = 100;

/// The members a service should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each endpoint once: what was found by id and endpoint, default servers as they were written, canaries as what was
    /// found.
    pub members: Vec<Arc<Backend>>,
    /// What was found and is not a member, beside what the watchers refused themselves; ordered.
    pub rejects: Vec<Reject>,
    /// Why these are not the members that the configuration asks for.
    pub trouble: Option<String>,
}

/// Chooses the members of `service`. `previous` are those of its last selection, or of the last known good state;
/// `use_nerve_weights` is HAProxy's setting of that name.
#[must_use]
pub fn select(
    service: &Service,
    use_nerve_weights: bool,
    main: &Discovered,
    canary: Option<&Discovered>,
    previous: &[Arc<Backend>],
) -> Selection {
    let mut rejects = Vec::new();
    let mut trouble = None;
    let registered = !use_nerve_weights && registers(&service.discovery);
    let weigh = |mut backend: Arc<Backend>| {
        if registered && backend.weight.is_some() {
            Arc::make_mut(&mut backend).weight = None;
        } else if backend.weight.is_some() && backend.rare.options.is_some() {
            let backend = Arc::make_mut(&mut backend);
            unweighted(backend);
        }
        backend
    };

    let canaries = canaries(service, main, canary, previous, &mut rejects);
    let apart: BTreeSet<(String, u16)> = canaries.iter().map(|backend| endpoint(backend)).collect();
    // Canaries of before are told by what is one now.
    let mut previous = previous.to_vec();
    previous.retain(|backend| !apart.contains(&endpoint(backend)));

    let mut pool = pool(service, main, &previous, weigh);
    pool = unique(pool, &mut rejects);
    pool = filtered(pool, &service.label_filters, &mut rejects);
    if service.leader_election {
        (pool, trouble) = leader(pool, &previous, &mut rejects);
    }
    if service.canary.is_some() {
        pool = beside(pool, canaries, &apart, &mut rejects);
    }
    rejects.sort_by(|a, b| (&a.source, a.reason, &a.detail).cmp(&(&b.source, b.reason, &b.detail)));
    Selection {
        members: pool,
        rejects,
        trouble,
    }
}

/// Who could be a member: in order, endpoints may repeat.
fn pool(
    service: &Service,
    main: &Discovered,
    previous: &[Arc<Backend>],
    weigh: impl Fn(Arc<Backend>) -> Arc<Backend>,
) -> Vec<Arc<Backend>> {
    let defaults = &service.default_servers;
    let overridden = |mut backend: Arc<Backend>| {
        override_port(&mut backend, service);
        backend
    };
    let kept: Vec<Arc<Backend>> = if service.keep_default_servers {
        defaults.iter().cloned().map(overridden).collect()
    } else {
        Vec::new()
    };
    // Of `base` there is nothing to remember: the default servers are all it ever has.
    let remembers = service.discovery != Discovery::Base;
    if main.synced.is_none() && remembers && !previous.is_empty() {
        // As they are configured now, not as they were.
        let now: BTreeSet<(String, u16)> = kept.iter().map(|backend| endpoint(backend)).collect();
        let others = previous
            .iter()
            .filter(|backend| !now.contains(&endpoint(backend)));
        return others.cloned().chain(kept).collect();
    }
    let found = main.synced.map_or(&[][..], |_| &main.backends);
    if found.is_empty() {
        if defaults.is_empty() && service.use_previous_backends && remembers {
            return previous.to_vec();
        }
        if service.keep_default_servers {
            return kept;
        }
        return defaults.clone();
    }
    let mut pool: Vec<Arc<Backend>> = found.iter().cloned().map(weigh).map(overridden).collect();
    pool.sort_by(|a, b| order(a, b));
    pool.extend(kept);
    pool
}

/// The backend at the configured port, which is another one only if the port is.
fn override_port(backend: &mut Arc<Backend>, service: &Service) {
    if let Some(port) = service.backend_port_override
        && port != backend.port
    {
        Arc::make_mut(backend).port = port;
    }
}

/// Whether weights come from registrations, which `use_nerve_weights` is about.
fn registers(discovery: &Discovery) -> bool {
    match discovery {
        Discovery::Zookeeper(_) => true,
        Discovery::Multi(children, _) => children.iter().any(|(_, child)| registers(child)),
        Discovery::Base | Discovery::File(_) | Discovery::Dns(_) => false,
    }
}

/// Every endpoint once, where its first stood: the one that was registered last.
fn unique(backends: Vec<Arc<Backend>>, rejects: &mut Vec<Reject>) -> Vec<Arc<Backend>> {
    let mut places: BTreeMap<(String, u16), usize> = BTreeMap::new();
    let mut unique: Vec<Arc<Backend>> = Vec::with_capacity(backends.len());
    for backend in backends {
        match places.get(&endpoint(&backend)) {
            None => {
                places.insert(endpoint(&backend), unique.len());
                unique.push(backend);
            }
            Some(&place) => {
                let standing = &mut unique[place];
                let loser = if backend.id > standing.id {
                    std::mem::replace(standing, backend)
                } else {
                    backend
                };
                if loser != *standing {
                    let detail = format!("{}: {} is newer", loser.endpoint(), standing.source);
                    rejects.push(Reject::new(loser.source.clone(), Reason::Duplicate, detail));
                }
            }
        }
    }
    unique
}

fn filtered(
    backends: Vec<Arc<Backend>>,
    filters: &[LabelFilter],
    rejects: &mut Vec<Reject>,
) -> Vec<Arc<Backend>> {
    let mut kept = Vec::with_capacity(backends.len());
    for backend in backends {
        // A label that is missing is not equal to anything.
        let failing = filters.iter().find(|filter| {
            (backend.rare.labels.get(&filter.label) == Some(&filter.value)) != filter.equals
        });
        match failing {
            None => kept.push(backend),
            Some(filter) => {
                let value = backend.rare.labels.get(&filter.label);
                let detail = match value {
                    Some(value) => format!("{} is {value}", filter.label),
                    None => format!("no label {}", filter.label),
                };
                rejects.push(Reject::new(backend.source.clone(), Reason::Label, detail));
            }
        }
    }
    kept
}

/// The one with the smallest id; or, where that cannot be told, those of `previous` that are still there.
fn leader(
    pool: Vec<Arc<Backend>>,
    previous: &[Arc<Backend>],
    rejects: &mut Vec<Reject>,
) -> (Vec<Arc<Backend>>, Option<String>) {
    let Some(nameless) = pool.iter().find(|backend| backend.id.is_none()) else {
        let first = pool.iter().map(|backend| backend.id).min();
        let mut elected = Vec::new();
        for backend in pool {
            // Equal ids, from two paths, leave the first in order.
            if elected.is_empty() && Some(backend.id) == first {
                elected.push(backend);
            } else {
                rejects.push(not_leader(&backend, "another has a smaller id"));
            }
        }
        return (elected, None);
    };
    let trouble = format!(
        "no leader can be elected: {} ({}) has no id; members stay as they were",
        nameless.endpoint(),
        nameless.source
    );
    let before: BTreeSet<(String, u16)> =
        previous.iter().map(|backend| endpoint(backend)).collect();
    let mut kept = Vec::new();
    for backend in pool {
        if before.contains(&endpoint(&backend)) {
            kept.push(backend);
        } else {
            rejects.push(not_leader(&backend, "no leader can be elected"));
        }
    }
    (kept, Some(trouble))
}

fn not_leader(backend: &Backend, why: &str) -> Reject {
    Reject::new(backend.source.clone(), Reason::Leader, why)
}

/// The members of the canary path, with their weight. As long as that has not answered, canaries are those that were:
/// of the previous members the ones with a canary's weight that are not found in the main path.
fn canaries(
    service: &Service,
    main: &Discovered,
    found: Option<&Discovered>,
    previous: &[Arc<Backend>],
    rejects: &mut Vec<Reject>,
) -> Vec<Arc<Backend>> {
    let (Some(Canary { weight, .. }), Some(found)) = (&service.canary, found) else {
        return Vec::new();
    };
    let mut canaries = if found.synced.is_some() {
        found.backends.clone()
    } else {
        let there: BTreeSet<(String, u16)> = main
            .backends
            .iter()
            .map(|backend| endpoint(backend))
            .collect();
        let was = |backend: &&Arc<Backend>| {
            backend.weight == Some(u16::from(*weight)) && !there.contains(&endpoint(backend))
        };
        previous.iter().filter(was).cloned().collect()
    };
    for backend in &mut canaries {
        override_port(backend, service);
        let backend = Arc::make_mut(backend);
        backend.weight = Some(u16::from(*weight));
        unweighted(backend);
    }
    canaries.sort_by(|a, b| order(a, b));
    let canaries = unique(canaries, rejects);
    filtered(canaries, &service.label_filters, rejects)
}

/// `normal` members with the weight that canaries are a percentage of, and the canaries, whose endpoints are `apart`.
fn beside(
    normal: Vec<Arc<Backend>>,
    canaries: Vec<Arc<Backend>>,
    apart: &BTreeSet<(String, u16)>,
    rejects: &mut Vec<Reject>,
) -> Vec<Arc<Backend>> {
    let mut members = Vec::with_capacity(normal.len() + canaries.len());
    for mut backend in normal {
        if apart.contains(&endpoint(&backend)) {
            let detail = format!("{} is a canary too", backend.endpoint());
            rejects.push(Reject::new(
                backend.source.clone(),
                Reason::Duplicate,
                detail,
            ));
        } else {
            if backend.weight.is_none() {
                Arc::make_mut(&mut backend).weight = Some(NORMAL);
            }
            members.push(backend);
        }
    }
    members.extend(canaries);
    members
}

/// What makes two backends one: addresses by value, names in lower case and without a final dot.
fn endpoint(backend: &Backend) -> (String, u16) {
    let host = match backend.host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => backend.host.trim_end_matches('.').to_ascii_lowercase(),
    };
    (host, backend.port)
}

/// A total order, so that the same findings give the same members in whatever order they came: as they were registered,
/// then by endpoint; what differs in nothing of that is told apart by the rest.
fn order(a: &Backend, b: &Backend) -> Ordering {
    let endpoints = || endpoint(a).cmp(&endpoint(b));
    a.id.cmp(&b.id).then_with(endpoints).then_with(|| {
        let rest = |backend: &Backend| {
            (
                backend.source.clone(),
                (backend.shard, backend.weight),
                backend.rare.clone(),
                backend.host.clone(),
            )
        };
        rest(a).cmp(&rest(b))
    })
}

/// Takes `weight N`, which `set server .. weight` sets, out of its options.
fn unweighted(backend: &mut Backend) {
    backend.rare.edit(|rare| {
        let options = rare.options.take();
        rare.options = options.and_then(|options| without_weight(&options));
    });
}

fn without_weight(options: &str) -> Option<Box<str>> {
    let mut words = Vec::new();
    let mut rest = options.split_whitespace();
    while let Some(word) = rest.next() {
        if word == "weight" {
            rest.next();
        } else {
            words.push(word);
        }
    }
    (!words.is_empty()).then(|| words.join(" ").into())
}

#[cfg(test)]
mod tests;
