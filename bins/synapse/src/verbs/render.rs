//! `synapse render --from SNAPSHOT`: the HAProxy configuration that members result in. Pure: it asks nobody.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hostkit::{Exit, Failure, stdout};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{nearest, observe};
use crate::engine::{Tracked, remembered};
use crate::model::{Backend, Reject, safe_name, safe_options};
use crate::settings::{Probe, Settings};
use crate::state;
use crate::watcher::expand::many;

/// A snapshot as people write it.
#[derive(Debug, Deserialize)]
struct Snapshot {
    services: BTreeMap<String, Vec<Member>>,
}

#[derive(Debug, Deserialize)]
struct Member {
    host: String,
    port: u16,
    name: Option<String>,
    id: Option<u64>,
    weight: Option<u16>,
    haproxy_server_options: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Prints the file.
///
/// # Errors
/// The snapshot cannot be read (exit 66) or is none (exit 65).
pub fn run(settings: &Settings, from: &Path, as_json: bool) -> Result<Exit, Failure> {
    let text = std::fs::read(from).map_err(|error| {
        Failure::new(
            Exit::NOT_FOUND,
            format!("cannot read the snapshot {}", from.display()),
        )
        .remedy("give a state file or JSON of members: see `synapse render --help`")
        .because(error)
    })?;
    let tracked = services(settings, from, &text)?;
    let rendered = observe::render(settings, &tracked);
    if as_json {
        stdout::print_json(&json!({
            "config": rendered.text(),
            "structure": rendered.structure,
            "findings": rendered.findings.iter().map(|finding| json!({"service": finding.service.as_deref(), "text": finding.text})).collect::<Vec<_>>(),
        }))?;
        return Ok(Exit::OK);
    }
    for finding in &rendered.findings {
        tracing::warn!(service = finding.service.as_deref(), "{}", finding.text);
    }
    stdout::print_text(&rendered.text())?;
    Ok(Exit::OK)
}

/// The services of `settings` with the members of a snapshot.
pub(crate) fn services(
    settings: &Settings,
    from: &Path,
    text: &[u8],
) -> Result<BTreeMap<String, Tracked>, Failure> {
    let corrupt = |why: String| {
        Failure::new(Exit::CORRUPT, format!("{} is no snapshot", from.display()))
            .remedy("it must be a state file, or JSON of the shape {\"services\": {\"NAME\": [{\"host\": \"h\", \"port\": 80}]}}")
            .because(why)
    };
    let value: Value = serde_json::from_slice(text).map_err(|error| corrupt(error.to_string()))?;
    if value.get("version").is_some() {
        let state = state::peek(from)?;
        let mut tracked = BTreeMap::new();
        for entry in settings.services.iter().filter(|service| many(service)) {
            for (service, _) in remembered(entry, &state) {
                let name = service.name.clone();
                tracked.insert(name, Tracked::new(service, entry.name.clone()));
            }
        }
        tracked.extend(single(settings));
        for one in tracked.values_mut() {
            if let Some(kept) = state.services.get(&one.service.name) {
                let says = kept.generator_config.as_deref();
                let local = Arc::clone(&one.service);
                one.service = observe::generated(settings, local, says).0;
                one.restore(kept, Duration::ZERO);
            }
        }
        return Ok(tracked);
    }
    let snapshot: Snapshot =
        serde_json::from_value(value).map_err(|error| corrupt(error.to_string()))?;
    let mut members = BTreeMap::new();
    for (name, list) in snapshot.services {
        if !settings.services.iter().any(|service| service.name == name) {
            let known = settings
                .services
                .iter()
                .map(|service| service.name.as_str());
            let name = crate::model::shown(&name);
            let hint = nearest(&name, known);
            return Err(corrupt(format!("there is no service {name}: {hint}")));
        }
        let list: Result<Vec<Arc<Backend>>, Reject> = list
            .into_iter()
            .map(|member| backend(&name, member).map(Arc::new))
            .collect();
        let list =
            list.map_err(|reject| corrupt(format!("{}: {}", reject.source, reject.detail)))?;
        members.insert(name, list);
    }
    let mut tracked = single(settings);
    for one in tracked.values_mut() {
        one.members = Arc::new(members.remove(&one.service.name).unwrap_or_default());
        // Who is in a snapshot is taken to answer.
        let mut service = (*one.service).clone();
        service.probe = Probe::None;
        one.service = Arc::new(service);
        one.follow(Duration::ZERO, |host| {
            host.parse()
                .map(Some)
                .map_err(|_| "nobody is asked for its address: give one".to_owned())
        });
        one.settle(Duration::ZERO);
    }
    match tracked.values().flat_map(|one| &one.rejects).next() {
        Some(reject) => Err(corrupt(format!("{}: {}", reject.source, reject.detail))),
        None => Ok(tracked),
    }
}

/// The services that are no pattern's, without members.
fn single(settings: &Settings) -> BTreeMap<String, Tracked> {
    settings
        .services
        .iter()
        .filter(|service| !many(service))
        .map(|service| {
            let one = Tracked::new(Arc::clone(service), service.name.clone());
            (service.name.clone(), one)
        })
        .collect()
}

fn backend(service: &str, member: Member) -> Result<Backend, Reject> {
    let source = format!("{service} in the snapshot");
    let mut backend = Backend::new(&member.host, member.port, source.clone())?;
    let unsafe_text = |text: &str| Reject::new(source.clone(), crate::model::Reason::Unsafe, text);
    if let Some(name) = &member.name
        && !safe_name(name)
    {
        return Err(unsafe_text(name));
    }
    if let Some(options) = &member.haproxy_server_options
        && !safe_options(options)
    {
        return Err(unsafe_text(options));
    }
    backend.id = member.id;
    backend.weight = member.weight;
    backend.rare.edit(|rare| {
        rare.name = member.name.map(String::into_boxed_str);
        rare.options = member.haproxy_server_options.map(String::into_boxed_str);
        rare.labels = member.labels;
    });
    Ok(backend)
}
