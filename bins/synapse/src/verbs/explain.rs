//! `synapse explain SERVICE`: every registration, whether it is used and why not, its server, and HAProxy's state of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostkit::{Exit, Failure, stdout};
use serde_json::{Value, json};

use super::{nearest, observe, table};
use crate::haproxy::live::{Live, Operation};
use crate::membership::Admin;
use crate::membership::table::Resident;
use crate::settings::Settings;
use crate::watcher::expand::many;

/// Prints what is known of a service.
///
/// # Errors
/// There is no such service (exit 66), or stdout cannot be written.
pub async fn run(
    settings: &Settings,
    service: &str,
    wait: Duration,
    as_json: bool,
) -> Result<Exit, Failure> {
    let seen = observe::observe(settings, Some(service), wait).await;
    let Some(tracked) = seen.tracked.get(service) else {
        let configured = settings.services.iter().filter(|service| !many(service));
        let names: BTreeSet<&str> = configured
            .map(|service| service.name.as_str())
            .chain(seen.found.iter().map(String::as_str))
            .collect();
        let name = crate::model::shown(service);
        return Err(
            Failure::new(Exit::NOT_FOUND, format!("there is no service {name}"))
                .remedy(nearest(&name, names.into_iter())),
        );
    };
    let live: BTreeMap<&str, &Live> = seen
        .live
        .iter()
        .flatten()
        .filter(|live| live.backend == tracked.backend())
        .map(|live| (live.server.as_str(), live))
        .collect();
    let servers = tracked.server_names();
    if as_json {
        let members: Vec<Value> = servers
            .iter()
            .map(|(server, resident)| {
                json!({
                    "member": resident.backend.endpoint(),
                    "source": resident.backend.source,
                    "shard": resident.backend.shard,
                    "phase": resident.phase.word(),
                    "server": server,
                    "haproxy": live.get(server.as_str()).map(|live| state(live, resident)),
                })
            })
            .collect();
        stdout::print_json(&json!({
            "service": service,
            "synced": tracked.main.synced.is_some(),
            "trouble": tracked.trouble,
            "job": tracked.job,
            "members": members,
            "rejects": tracked.rejects,
            "haproxy": seen.live.as_ref().err(),
        }))?;
        return Ok(Exit::OK);
    }
    if let Some(job) = &tracked.job {
        stdout::print_line(format_args!("job {job}"))?;
    }
    for silence in seen.silences() {
        stdout::print_line(format_args!(
            "! {silence}: what was last known good is shown"
        ))?;
    }
    if let Some(trouble) = &tracked.trouble {
        stdout::print_line(format_args!("! {trouble}"))?;
    }
    if let Err(why) = &seen.live {
        stdout::print_line(format_args!("! HAProxy cannot be asked: {why}"))?;
    }
    let mut rows = table([
        "member",
        "shard",
        "phase",
        "server",
        "haproxy",
        "registered at",
    ]);
    for (server, resident) in &servers {
        rows.add_row([
            resident.backend.endpoint(),
            resident
                .backend
                .shard
                .map_or_else(String::new, |shard| shard.to_string()),
            resident.phase.word().to_owned(),
            server.clone(),
            live.get(server.as_str())
                .map_or_else(|| "no such server".to_owned(), |live| state(live, resident)),
            resident.backend.source.to_string(),
        ]);
    }
    if servers.is_empty() {
        stdout::print_line("no members")?;
    } else {
        stdout::print_line(rows.trim_fmt())?;
    }
    if !tracked.rejects.is_empty() {
        let mut rows = table(["refused", "reason", "registered at"]);
        for reject in &tracked.rejects {
            rows.add_row([
                reject.detail.as_str(),
                reject.reason.word(),
                reject.source.as_str(),
            ]);
        }
        stdout::print_line("")?;
        stdout::print_line(rows.trim_fmt())?;
    }
    Ok(Exit::OK)
}

/// HAProxy's view of a server, and where it differs from ours.
fn state(live: &Live, resident: &Resident) -> String {
    let mut words = match (live.admin.word(), live.operation) {
        (Admin::Ready, Operation::Running | Operation::Starting) => "up".to_owned(),
        (Admin::Ready, Operation::Stopped) => "down".to_owned(),
        (Admin::Ready, Operation::Stopping) => "stopping".to_owned(),
        (admin, _) => admin.word().to_owned(),
    };
    if live.weight != 1 {
        words.push_str(&format!(", weight {}", live.weight));
    }
    if (live.address, live.port) != (Some(resident.address), resident.backend.port) {
        let at = live
            .address
            .map_or_else(|| "nowhere".to_owned(), |address| address.to_string());
        words.push_str(&format!(", but at {at}:{}", live.port));
    }
    words
}
