//! One look at everything: what registries say now, what that makes of each service, and what HAProxy holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hostkit::clock;
use tokio::time::{Instant, timeout_at};

use crate::config;
use crate::engine::{Tracked, remembered};
use crate::haproxy::live::{self, Live};
use crate::haproxy::socket::Socket;
use crate::model::Discovered;
use crate::render::{Input, Rendered, Renderer};
use crate::settings::{Service, Settings};
use crate::state::{self, State};
use crate::watcher::expand::{expand, many};
use crate::watcher::merge::merge;
use crate::watcher::resolve::{Hosts, Resolution};
use crate::watcher::select::select;
use crate::watcher::{Context, Watch, start};

/// What was seen.
pub(super) struct Seen {
    /// The services, as they would be now.
    pub(super) tracked: BTreeMap<String, Tracked>,
    /// What was last known good; empty where there is no state file.
    pub(super) state: State,
    /// Services whose source did not answer in time, each with why.
    pub(super) silent: Vec<(String, String)>,
    /// The services that were found for patterns, wanted or not.
    pub(super) found: Vec<String>,
    /// What HAProxy holds, or why that is not known.
    pub(super) live: Result<Vec<Live>, String>,
    /// The backends that HAProxy has.
    pub(super) backends: Vec<String>,
}

impl Seen {
    /// What is silent, one line for each reason.
    pub(super) fn silences(&self) -> Vec<String> {
        let mut services: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (service, why) in &self.silent {
            services.entry(why).or_default().push(service);
        }
        services
            .into_iter()
            .map(|(why, services)| match services.as_slice() {
                [first, second, third, rest @ ..] if !rest.is_empty() => {
                    format!("{first}, {second}, {third} and {} more: {why}", rest.len())
                }
                few => format!("{}: {why}", few.join(", ")),
            })
            .collect()
    }
}

/// Looks at everything, waiting at most `wait` for registries; only at the services that `wanted` names, when it does.
pub(super) async fn observe(settings: &Settings, wanted: Option<&str>, wait: Duration) -> Seen {
    let state = state::peek(&settings.state_file).unwrap_or_default();
    let context = Context {
        clusters: settings.clusters.clone(),
        ..Context::default()
    };
    let now = clock::since_boot();
    let deadline = Instant::now() + wait;
    let entries: Vec<_> = settings
        .services
        .iter()
        .filter(|service| wanted.is_none_or(|wanted| service.name == wanted || many(service)))
        .map(|service| {
            let canary = service
                .canary
                .as_ref()
                .map(|canary| start(&canary.discovery, &context));
            (service, start(&service.discovery, &context), canary)
        })
        .collect();
    let mut tracked = BTreeMap::new();
    let (mut silent, mut others) = (Vec::new(), Vec::new());
    let mut resolver = Hosts::new(None);
    for (service, mut main, mut canary) in entries {
        answered(&mut main, deadline).await;
        if let Some(canary) = &mut canary {
            answered(canary, deadline).await;
        }
        let canary = canary.map(|canary| merge(canary.found.borrow().values()));
        let found = Arc::clone(&main.found.borrow());
        let mut services = expand(service, &found).services;
        if many(service) {
            // A path that is gone, or not answered for, is not a service less at once.
            for (service, _) in remembered(service, &state) {
                if services.iter().all(|(found, _)| found.name != service.name) {
                    let gone = main
                        .found
                        .borrow()
                        .values()
                        .any(|found| found.synced.is_some());
                    let trouble = gone.then(|| "its path is gone".to_owned());
                    services.push((
                        service,
                        Arc::new(Discovered {
                            trouble,
                            ..Discovered::default()
                        }),
                    ));
                }
            }
        }
        for (service, main) in services {
            if wanted.is_some_and(|wanted| service.name != wanted) {
                others.push(service.name.clone());
                continue;
            }
            let kept = state.services.get(&service.name);
            let says = main.generator_config.as_deref();
            let says = says.or(kept.and_then(|kept| kept.generator_config.as_deref()));
            let (service, trouble) = generated(settings, service, says);
            let mut one = Tracked::new(service, String::new());
            if let Some(kept) = kept {
                one.restore(kept, now);
                // Here it is the comparison that is wanted.
                one.inherited = false;
            }
            one.found(main);
            let main = Arc::clone(&one.main);
            if main.synced.is_none() {
                let why = main.trouble.as_deref().unwrap_or("no answer in time");
                silent.push((one.service.name.clone(), why.to_owned()));
            } else {
                place(&mut one, &main, canary.as_ref());
            }
            one.trouble = one.trouble.or(trouble);
            look_up(&one, &mut resolver, deadline).await;
            let resolve = |host: &str| resolved(&mut resolver, host);
            one.follow(now, resolve);
            one.settle(now);
            tracked.insert(one.service.name.clone(), one);
        }
    }
    let (live, backends) = match read(settings).await {
        Ok((live, backends)) => (Ok(live), backends),
        Err(why) => (Err(why), Vec::new()),
    };
    Seen {
        tracked,
        state,
        silent,
        found: others,
        live,
        backends,
    }
}

/// A service of the file as its registry has it, and what is wrong with what that says.
pub(super) fn generated(
    settings: &Settings,
    local: Arc<Service>,
    says: Option<&str>,
) -> (Arc<Service>, Option<String>) {
    let Some(text) = says else {
        return (local, None);
    };
    match config::generated(settings, &local, settings.services.iter(), text, true) {
        Ok((service, _)) => (Arc::new(service), None),
        Err(failure) => (local, Some(failure.to_string())),
    }
}

fn place(one: &mut Tracked, main: &Discovered, canary: Option<&Discovered>) {
    let weights = one.uses_weights();
    let selection = select(&one.service, weights, main, canary, &one.members);
    one.rejects.clone_from(&main.rejects);
    one.rejects.extend(selection.rejects);
    one.trouble = selection.trouble.or_else(|| main.trouble.clone());
    one.members = Arc::new(selection.members);
    one.known = true;
}

/// Waits until a watcher knows everything it follows.
async fn answered(watch: &mut Watch, deadline: Instant) {
    let all = |found: &Arc<crate::watcher::Found>| {
        !found.is_empty() && found.values().all(|found| found.synced.is_some())
    };
    let _ = timeout_at(deadline, watch.found.wait_for(all)).await;
}

async fn look_up(one: &Tracked, resolver: &mut Hosts, deadline: Instant) {
    let hosts: BTreeSet<&str> = one.members.iter().map(|member| &*member.host).collect();
    let mut changed = resolver.changed();
    while hosts.iter().any(|host| {
        host.parse::<IpAddr>().is_err() && matches!(resolver.resolve(host), Resolution::Pending)
    }) {
        if !matches!(timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn resolved(resolver: &mut Hosts, host: &str) -> Result<Option<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(Some(address));
    }
    match resolver.resolve(host) {
        Resolution::Known(address) => Ok(Some(address)),
        Resolution::Pending => Err("not resolved in time".to_owned()),
        Resolution::Failed(why) => Err(why),
    }
}

/// The servers and the backends of the first HAProxy.
async fn read(settings: &Settings) -> Result<(Vec<Live>, Vec<String>), String> {
    let Some(path) = settings.haproxy.sockets.first() else {
        return Err("no socket_file_path is configured".to_owned());
    };
    let socket = Socket::new(path);
    let asked = socket.ask("show servers state").await;
    let servers = asked.map_err(|error| error.to_string())?;
    let live = live::servers(&servers).map_err(|error| error.to_string())?;
    let asked = socket.ask("show backend").await;
    let backends = asked.map_err(|error| error.to_string())?;
    Ok((live, live::backends(&backends).map(str::to_owned).collect()))
}

/// The file that these services result in.
pub(super) fn render(settings: &Settings, tracked: &BTreeMap<String, Tracked>) -> Rendered {
    let inputs: Vec<Input<'_>> = tracked
        .values()
        .map(|one| Input {
            service: &one.service,
            roster: &one.roster,
            revision: one.revision,
        })
        .collect();
    let position = |name: &str| {
        settings
            .services
            .iter()
            .position(|service| service.name == name)
    };
    let mut inputs = inputs;
    inputs.sort_by_key(|input| position(&input.service.name).unwrap_or(usize::MAX));
    Renderer::new(&settings.haproxy).render(&inputs)
}
