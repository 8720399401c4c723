//! The top level: HAProxy itself, outputs, clusters and the guard.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::context::{Context, Kind, Map};
use super::discovery::{hosts, texts, znode_path};
use super::keys;
use super::lines;
use super::tree::{Node, Value};
use crate::keywords::Section;
use crate::model::{safe_name, shown};
use crate::settings::{Cluster, Guard, Haproxy, Line, Settings, Statsd};

/// Where our state is when the configuration does not say.
const STATE_FILE: &str = "/var/lib/hostkit/synapse/state.json";

const PERCENT: RangeInclusive<u8> = 1..=100;

/// Everything but the services. `host` names this host.
pub(super) fn read(
    context: &mut Context,
    root: &Map<'_, '_>,
    shared: &[Cluster],
    host: &str,
) -> Settings {
    let section = root.map(context, "haproxy", &keys::HAPROXY);
    let (state_file, state_ttl) = match &section {
        Some(map) => (
            map.text(context, "state_file_path"),
            map.duration(context, "state_file_ttl"),
        ),
        None => (None, None),
    };
    let state_file = PathBuf::from(state_file.unwrap_or(STATE_FILE));
    let haproxy = match &section {
        Some(map) => haproxy(context, map, &state_file, host),
        None => Haproxy {
            do_writes: false,
            do_reloads: false,
            do_socket: false,
            ..Haproxy::default()
        },
    };
    let file_output = root
        .map(context, "file_output", &keys::FILE_OUTPUT)
        .and_then(|map| map.required(context, "output_directory").map(PathBuf::from));
    Settings {
        services: Vec::new(),
        haproxy,
        file_output,
        statsd: root
            .map(context, "statsd", &keys::STATSD)
            .map(|map| statsd(context, &map)),
        clusters: clusters(context, root, shared),
        state_file,
        state_ttl: state_ttl.unwrap_or(Duration::from_secs(86_400)),
        guard: root
            .map(context, "guard", &keys::GUARD)
            .map_or_else(Guard::default, |map| guard(context, &map)),
        max_removed_services: root
            .number(context, "max_removed_services", 0..=100)
            .unwrap_or(25),
        hash: String::new(),
    }
}

fn haproxy(context: &mut Context, map: &Map<'_, '_>, state_file: &Path, host: &str) -> Haproxy {
    let base = Haproxy::default();
    for key in ["global", "defaults"] {
        if map.get(key).is_none() {
            map.missing(context, key);
        }
    }
    let global = lines::read(context, map, "global");
    let global = global.iter().map(|line| line.line(context)).collect();
    let defaults = lines::read(context, map, "defaults");
    let defaults = lines::defaults(context, &defaults);
    let shared_frontend = map.get("shared_frontend").map(|_| {
        let shared = lines::read(context, map, "shared_frontend");
        lines::of(
            context,
            &shared,
            &map.name("shared_frontend"),
            Section::Frontend,
        )
    });
    let path = |context: &mut Context, key| map.text(context, key).map(PathBuf::from);
    let config_file = path(context, "config_file_path");
    let candidate_file = path(context, "candidate_config_file_path").or_else(|| {
        let mut name = config_file.clone()?.into_os_string();
        name.push(".tmp");
        Some(PathBuf::from(name))
    });
    let haproxy = Haproxy {
        global,
        defaults,
        extra_sections: extra_sections(context, map),
        shared_frontend,
        bind_address: map
            .text(context, "bind_address")
            .map_or(base.bind_address, str::to_owned),
        do_writes: map.flag(context, "do_writes", base.do_writes),
        do_checks: map.flag(context, "do_checks", base.do_checks),
        do_reloads: map.flag(context, "do_reloads", base.do_reloads),
        do_socket: map.flag(context, "do_socket", base.do_socket),
        config_file,
        candidate_file,
        check_command: map.text(context, "check_command").map(str::to_owned),
        reload_command: map.text(context, "reload_command").map(str::to_owned),
        sockets: sockets(context, map),
        master_socket: path(context, "master_socket"),
        pid_file: path(context, "pid_file"),
        binary: path(context, "binary").unwrap_or(base.binary),
        restart_interval: map
            .duration(context, "restart_interval")
            .unwrap_or(base.restart_interval),
        restart_jitter: map
            .number(context, "restart_jitter", 0.0..=100.0)
            .unwrap_or(base.restart_jitter),
        inject: map.flag(context, "inject", base.inject),
        canary_url: canary_url(context, map),
        server_state_file: path(context, "server_state_file")
            .unwrap_or_else(|| state_file.with_file_name("haproxy-servers.state")),
        server_order_seed: map
            .number(context, "server_order_seed", 0..=u64::MAX)
            .unwrap_or_else(|| seed(host)),
        max_server_id: map
            .number(context, "max_server_id", 1..=i32::MAX as u32)
            .unwrap_or(base.max_server_id),
        use_nerve_weights: map.flag(context, "use_nerve_weights", base.use_nerve_weights),
    };
    complete(context, map, &haproxy);
    haproxy
}

/// What a switch that is on needs beside it.
fn complete(context: &mut Context, map: &Map<'_, '_>, haproxy: &Haproxy) {
    let mut need = |key: &'static str, remedy: &str| {
        let message = format!("`{}` is on and something is missing", map.name(key));
        context.error(map.at(key), message, remedy);
    };
    if haproxy.do_writes && haproxy.config_file.is_none() {
        need("do_writes", "add `config_file_path`, or turn it off");
    }
    if haproxy.do_checks && haproxy.check_command.is_none() {
        need("do_checks", "add `check_command`, or turn it off");
    }
    if haproxy.do_socket && haproxy.sockets.is_empty() {
        need("do_socket", "add `socket_file_path`, or turn it off");
    }
    let ways = [
        haproxy.reload_command.is_some(),
        haproxy.master_socket.is_some(),
        haproxy.pid_file.is_some(),
    ];
    if haproxy.do_reloads && !ways.contains(&true) {
        need(
            "do_reloads",
            "add `master_socket`, `pid_file` or `reload_command`, or turn it off",
        );
    }
}

/// A number that is this host's own and stays the same.
fn seed(host: &str) -> u64 {
    Sha256::digest(host)
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

fn extra_sections(context: &mut Context, map: &Map<'_, '_>) -> Vec<(Line, Vec<Line>)> {
    let Some(node) = map.get("extra_sections") else {
        return Vec::new();
    };
    let name = map.name("extra_sections");
    let Value::Map(entries) = &node.value else {
        let message = format!("`{name}` is {}, not a map", node.kind());
        context.error(node.at, message, "write a map of lists, by head line");
        return Vec::new();
    };
    let mut sections = Vec::new();
    for entry in entries {
        if entry.key.contains(|c: char| c.is_control()) || entry.key.trim().is_empty() {
            let message = format!("`{}` is no head line", shown(&entry.key));
            context.error(entry.at, message, "write one like `listen stats`");
            continue;
        }
        let place = Some(context.place(entry.at));
        let body = lines::read_list(context, &format!("{name}.{}", entry.key), &entry.node);
        let mut body: Vec<Line> = body.iter().map(|line| line.line(context)).collect();
        let mut words = entry.key.split_ascii_whitespace();
        let head = match (words.next(), words.next(), words.next()) {
            // Synapse's own example writes it so, and HAProxy no longer takes it.
            (Some(kind @ ("listen" | "frontend")), Some(proxy), Some(address)) => {
                let message = format!("`{}` has an address: HAProxy refuses it", entry.key);
                let remedy = format!("write `bind {address}` in the section; taken as that");
                context.push(Kind::Note, entry.at, message, remedy);
                let text = format!("bind {address}");
                let place = place.clone();
                body.insert(0, Line { text, place });
                format!("{kind} {proxy}")
            }
            _ => entry.key.trim().to_owned(),
        };
        let head = Line { text: head, place };
        sections.push((head, body));
    }
    sections
}

fn sockets(context: &mut Context, map: &Map<'_, '_>) -> Vec<PathBuf> {
    match map.get("socket_file_path").map(|node| &node.value) {
        Some(Value::List(items)) => items
            .iter()
            .filter_map(Node::text)
            .map(PathBuf::from)
            .collect(),
        _ => map
            .text(context, "socket_file_path")
            .map(PathBuf::from)
            .into_iter()
            .collect(),
    }
}

fn canary_url(context: &mut Context, map: &Map<'_, '_>) -> Option<String> {
    let url = map.text(context, "canary_url")?;
    if !url.starts_with("http://") || !url.bytes().all(|c| c.is_ascii_graphic()) {
        let message = format!("`{}` is `{url}`", map.name("canary_url"));
        let remedy = "write a URL that begins with http://";
        context.error(map.value_at("canary_url"), message, remedy);
    }
    Some(url.to_owned())
}

fn statsd(context: &mut Context, map: &Map<'_, '_>) -> Statsd {
    let mut sample_rate = BTreeMap::new();
    for (metric, node) in texts(context, map, "sample_rate") {
        match node.text().and_then(|text| text.parse::<f64>().ok()) {
            Some(rate) if (0.0..=1.0).contains(&rate) => {
                sample_rate.insert(metric, rate);
            }
            _ => {
                let message = format!("the sample rate of `{metric}`");
                context.error(node.at, message, "write a number from 0 to 1");
            }
        }
    }
    Statsd {
        host: map.text(context, "host").unwrap_or("localhost").to_owned(),
        port: map.number(context, "port", 1..=65535).unwrap_or(8125),
        sample_rate,
    }
}

fn guard(context: &mut Context, map: &Map<'_, '_>) -> Guard {
    let base = Guard::default();
    Guard {
        members: map
            .number(context, "members", PERCENT)
            .unwrap_or(base.members),
        services: map
            .number(context, "services", PERCENT)
            .unwrap_or(base.services),
        at_least: map
            .number(context, "at_least", 1..=u16::MAX)
            .unwrap_or(base.at_least),
        window: map.duration(context, "window").unwrap_or(base.window),
        hold: map.duration(context, "hold").unwrap_or(base.hold),
    }
}

/// The file's own clusters, then those that hostkit's tools share, unless they have the same name.
fn clusters(context: &mut Context, root: &Map<'_, '_>, shared: &[Cluster]) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for node in root.list(context, "clusters") {
        let Some(map) = Map::open(context, &keys::CLUSTER, node, "clusters".to_owned()) else {
            continue;
        };
        let Some(name) = map.required(context, "name") else {
            continue;
        };
        let at = map.value_at("name");
        if !safe_name(name) {
            let message = format!("the cluster `{}`", shown(name));
            context.error(at, message, "write letters, digits and -_.:");
        }
        let path = |context: &mut Context, key| match map.get(key) {
            Some(_) => znode_path(context, &map, key, false),
            None => None,
        };
        let root = path(context, "root").unwrap_or_else(|| "/aurora".to_owned());
        let cluster = Cluster {
            name: name.to_owned(),
            hosts: hosts(context, &map),
            root,
            chroot: path(context, "chroot"),
            digest: map.text(context, "digest").map(str::to_owned),
        };
        if clusters.iter().any(|known| known.name == cluster.name) {
            let message = format!("`{name}` is declared twice");
            context.error(at, message, "leave one of them");
        }
        // All that is read from an ensemble goes through one session.
        let differs = |known: &&Cluster| {
            known.hosts == cluster.hosts
                && (known.chroot != cluster.chroot || known.digest != cluster.digest)
        };
        if let Some(known) = clusters.iter().find(differs) {
            let message = format!("`{name}` and `{}` are one ensemble", known.name);
            let remedy = "give them the same chroot and credentials: they share a session";
            context.error(at, message, remedy);
        }
        clusters.push(cluster);
    }
    for cluster in shared {
        if clusters.iter().all(|known| known.name != cluster.name) {
            clusters.push(cluster.clone());
        }
    }
    clusters
}
