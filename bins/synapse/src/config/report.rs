//! What a configuration says, and what is found in it, as text for people.

use std::fmt::Write as _;

use super::context::{Finding, Kind};
use crate::settings::{Cluster, Discovery, Haproxy, Resolver, Servers, Service, Settings};

/// The configuration in a few lines, and each service in one or two: for `--check`.
#[must_use]
pub fn summary(settings: &Settings) -> String {
    let mut text = String::new();
    let haproxy = &settings.haproxy;
    let count = settings.services.len();
    let _ = writeln!(text, "{count} service{}", if count == 1 { "" } else { "s" });
    match (&haproxy.config_file, haproxy.do_writes) {
        (Some(file), true) => {
            let _ = writeln!(text, "writes   {}", file.display());
        }
        _ => text.push_str("writes   no HAProxy file\n"),
    }
    let _ = writeln!(text, "reloads  {}", reloads(haproxy));
    let sockets: Vec<String> = haproxy
        .sockets
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let socket = if haproxy.do_socket {
        sockets.join(", ")
    } else {
        "not used".to_owned()
    };
    let _ = writeln!(text, "socket   {socket}");
    if let Some(directory) = &settings.file_output {
        let _ = writeln!(text, "files    {}/<service>.json", directory.display());
    }
    let _ = writeln!(text, "state    {}", settings.state_file.display());
    text.push_str(&clusters_summary(&settings.clusters));
    for service in &settings.services {
        let _ = writeln!(text, "\n{}", service.name);
        let _ = writeln!(text, "  members  {}", watches(&service.discovery));
        if let Some(canary) = &service.canary {
            let _ = writeln!(
                text,
                "  canary   {} at {} %",
                watches(&canary.discovery),
                canary.weight
            );
        }
        let _ = writeln!(text, "  haproxy  {}", serves(haproxy, service));
        if let (Some(_), Servers::Named(why)) = (&service.haproxy, &service.servers) {
            let _ = writeln!(text, "  named    because of {why}");
        }
    }
    text
}

/// Clusters, one per line.
#[must_use]
pub fn clusters_summary(clusters: &[Cluster]) -> String {
    let mut text = String::new();
    for cluster in clusters {
        let Cluster { name, root, .. } = cluster;
        let _ = writeln!(
            text,
            "cluster  {name} is {root} of {}",
            cluster.hosts.join(",")
        );
    }
    text
}

fn reloads(haproxy: &Haproxy) -> String {
    if !haproxy.do_reloads {
        return "never".to_owned();
    }
    let ways = [
        haproxy
            .master_socket
            .as_ref()
            .map(|path| format!("through the master, {}", path.display())),
        haproxy
            .pid_file
            .as_ref()
            .map(|path| format!("by a new process, {}", path.display())),
        haproxy
            .reload_command
            .as_ref()
            .map(|command| format!("by `{command}`")),
    ];
    ways.into_iter().flatten().next().unwrap_or_default()
}

fn watches(discovery: &Discovery) -> String {
    match discovery {
        Discovery::Base => "default servers alone".to_owned(),
        Discovery::Zookeeper(zookeeper) => {
            format!(
                "{} in ZooKeeper {}",
                zookeeper.path,
                zookeeper.hosts.join(",")
            )
        }
        Discovery::File(path) => format!("the file {}", path.display()),
        Discovery::Dns(dns) => {
            let names: Vec<&str> = dns.servers.iter().map(|server| &*server.host).collect();
            format!("{} in DNS", names.join(", "))
        }
        Discovery::Multi(children, resolver) => {
            let children: Vec<String> = children
                .iter()
                .map(|(name, child)| format!("{name}: {}", watches(child)))
                .collect();
            let how = match resolver {
                Resolver::Base => "the first".to_owned(),
                Resolver::Union => "all".to_owned(),
                Resolver::Sequential(order) => {
                    format!("the first of {} that has any", order.join(", "))
                }
            };
            format!("{how} of ({})", children.join("; "))
        }
    }
}

fn serves(haproxy: &Haproxy, service: &Service) -> String {
    let Some(proxy) = &service.haproxy else {
        return "nothing is written".to_owned();
    };
    let backend = proxy.backend_name.as_ref().unwrap_or(&service.name);
    let address = proxy.bind_address.as_ref().unwrap_or(&haproxy.bind_address);
    let bind = match proxy.port {
        None => "no frontend".to_owned(),
        Some(None) => format!("binds {address}"),
        Some(Some(port)) => format!("binds {address}:{port}"),
    };
    let mode = match (&service.servers, service.slots) {
        (Servers::Named(_), _) => "named servers".to_owned(),
        (Servers::Slots, Some(slots)) => format!("{slots} slots or more"),
        (Servers::Slots, None) => "slots".to_owned(),
    };
    let shared = if proxy.shared_frontend.is_empty() {
        ""
    } else {
        ", in the shared frontend"
    };
    format!("{bind}, backend {backend}, {mode}{shared}")
}

/// The findings, grouped by what they mean: the report of a migration.
#[must_use]
pub fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    for (kind, head) in [
        (Kind::Error, "Cannot be used"),
        (Kind::Refused, "Refused by Synapse or HAProxy"),
        (Kind::Dropped, "Dropped by Synapse"),
        (
            Kind::Ignored,
            "Ignored by Synapse, or read otherwise than written",
        ),
        (Kind::Note, "Works, and can be written better"),
    ] {
        let mut group = findings
            .iter()
            .filter(|finding| finding.kind == kind)
            .peekable();
        if group.peek().is_none() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{head}:");
        for finding in group {
            let _ = writeln!(
                text,
                "  {}: {}; {}",
                finding.place, finding.message, finding.remedy
            );
        }
    }
    text
}
