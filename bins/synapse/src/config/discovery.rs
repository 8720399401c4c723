//! The `discovery` of a service: where its members are found, and which of them count.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hostkit::suggestion::nearest;

use super::context::{Context, Kind, Map, join};
use super::keys;
use super::tree::{At, Node, Value};
use crate::model::{safe_host, safe_name, shown};
use crate::settings::{
    Cluster, Decode, Discovery, DnsDiscovery, DnsServer, LabelFilter, Resolver, ZookeeperDiscovery,
};

/// The port of an ensemble that is given without one (ZooKeeper's own default).
const ZOOKEEPER_PORT: u16 = 2181;

const METHODS: [&str; 5] = ["zookeeper", "dns", "file", "base", "multi"];

/// Methods of Synapse that are not here, and what does their work.
const ELSEWHERE: [(&str, &str); 6] = [
    (
        "zookeeper_poll",
        "use `method: zookeeper`: it watches, and lists again from time to time",
    ),
    (
        "zookeeper_dns",
        "use `method: zookeeper`: registered host names are resolved there",
    ),
    (
        "zookeeper_dns_poll",
        "use `method: zookeeper`: registered host names are resolved there",
    ),
    (
        "docker",
        "use `method: file` and let something write the file, or announce the containers in ZooKeeper",
    ),
    (
        "ec2tag",
        "use `method: dns`, or `method: file` and let something write the file",
    ),
    (
        "marathon",
        "use `method: dns` with the SRV records of Mesos-DNS, or `method: file`",
    ),
];

/// What a `discovery` says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    pub(super) discovery: Discovery,
    pub(super) filters: Vec<LabelFilter>,
}

/// Reads a `discovery`.
pub(super) fn read(
    context: &mut Context,
    clusters: &[Cluster],
    node: &Node<'_>,
    path: String,
) -> Option<Source> {
    let method = match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == "method"),
        _ => None,
    };
    let Some(method) = method else {
        let message = format!("`{}` is missing", join(&path, "method"));
        let remedy = format!("write one of {}", METHODS.join(", "));
        context.error(node.at, message, remedy);
        return None;
    };
    let section = match method.node.text().unwrap_or_default() {
        "zookeeper" => &keys::ZOOKEEPER,
        "dns" => &keys::DNS,
        "file" => &keys::FILE,
        "base" => &keys::BASE,
        "multi" => &keys::MULTI,
        other => {
            let remedy = match ELSEWHERE.iter().find(|(name, _)| *name == other) {
                Some((_, remedy)) => (*remedy).to_owned(),
                None => match nearest(other, METHODS) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("the methods are {}", METHODS.join(", ")),
                },
            };
            let message = format!("`{}: {}` is not here", join(&path, "method"), shown(other));
            context.error(method.node.at, message, remedy);
            return None;
        }
    };
    let map = Map::open(context, section, node, path)?;
    let mut filters = filters(context, &map);
    let discovery = match map.text(context, "method")? {
        "zookeeper" => Discovery::Zookeeper(zookeeper(context, clusters, &map)?),
        "dns" => Discovery::Dns(dns(context, &map)?),
        "file" => Discovery::File(PathBuf::from(map.required(context, "path")?)),
        "multi" => {
            let children = watchers(context, clusters, &map, &mut filters)?;
            let (order, resolver) = resolver(context, &map, children)?;
            Discovery::Multi(order, resolver)
        }
        _ => Discovery::Base,
    };
    Some(Source { discovery, filters })
}

/// `discovery_multi`: `discovery` is its watcher `primary`.
pub(super) fn multi(
    context: &mut Context,
    clusters: &[Cluster],
    map: &Map<'_, '_>,
    primary: Source,
) -> Option<Source> {
    let mut filters = Vec::new();
    let others = watchers(context, clusters, map, &mut filters)?;
    if primary.filters != filters {
        mixed_filters(context, map.at);
    }
    let mut children = vec![("primary".to_owned(), primary.discovery)];
    children.extend(others.into_iter().filter(|(name, _)| name != "primary"));
    let (children, resolver) = resolver(context, map, children)?;
    Some(Source {
        discovery: Discovery::Multi(children, resolver),
        filters,
    })
}

fn mixed_filters(context: &mut Context, at: At) {
    context.error(
        at,
        "the watchers have different label filters",
        "give all of them the same ones, or make two services",
    );
}

fn watchers(
    context: &mut Context,
    clusters: &[Cluster],
    map: &Map<'_, '_>,
    filters: &mut Vec<LabelFilter>,
) -> Option<Vec<(String, Discovery)>> {
    let Some(node) = map.get("watchers") else {
        map.missing(context, "watchers");
        return None;
    };
    let Value::Map(entries) = &node.value else {
        let message = format!("`{}` is {}, not a map", map.name("watchers"), node.kind());
        context.error(node.at, message, "give each watcher a name");
        return None;
    };
    let mut children = Vec::new();
    let mut seen: Option<Vec<LabelFilter>> = None;
    for entry in entries {
        let path = join(&map.name("watchers"), &entry.key);
        let source = read(context, clusters, &entry.node, path)?;
        if let Discovery::Multi(..) = source.discovery {
            let remedy = "list its watchers here";
            context.error(entry.at, "a multi inside a multi", remedy);
        }
        match &seen {
            Some(seen) if *seen != source.filters => mixed_filters(context, entry.at),
            _ => seen = Some(source.filters),
        }
        children.push((entry.key.clone().into_owned(), source.discovery));
    }
    filters.extend(seen.unwrap_or_default());
    Some(children)
}

type Watchers = Vec<(String, Discovery)>;

/// The resolver, and the watchers in an order in which the first is the one that `base` means.
fn resolver(
    context: &mut Context,
    map: &Map<'_, '_>,
    mut children: Watchers,
) -> Option<(Watchers, Resolver)> {
    if map.get("resolver").is_none() {
        map.missing(context, "resolver");
        return None;
    }
    let choice = map.map(context, "resolver", &keys::RESOLVER)?;
    children.sort_by_key(|(name, _)| name != "primary");
    let names = || children.iter().map(|(name, _)| name.as_str());
    let resolver = match choice.required(context, "method")? {
        "base" => Resolver::Base,
        "union" => Resolver::Union,
        "sequential" => {
            if choice.get("sequential_order").is_none() {
                choice.missing(context, "sequential_order");
            }
            let mut order = Vec::new();
            for node in choice.list(context, "sequential_order") {
                let name = node.text().unwrap_or_default();
                if !names().any(|known| known == name) {
                    let message = format!("there is no watcher `{}`", shown(name));
                    let remedy = format!(
                        "the watchers are {}",
                        names().collect::<Vec<_>>().join(", ")
                    );
                    context.error(node.at, message, remedy);
                }
                order.push(name.to_owned());
            }
            Resolver::Sequential(order)
        }
        "fallback" => {
            context.push(
                Kind::Refused,
                choice.value_at("method"),
                "resolver `fallback`: Synapse names it in an example and does not have it",
                "write `sequential` with `sequential_order`; taken as sequential in the order written",
            );
            Resolver::Sequential(names().map(str::to_owned).collect())
        }
        "s3_toggle" => {
            let message = format!("`{}: s3_toggle` is not here", choice.name("method"));
            let remedy = "use `canary` for a share of the traffic, or `sequential`";
            context.error(choice.value_at("method"), message, remedy);
            return None;
        }
        other => {
            let message = format!("`{}` is `{other}`", choice.name("method"));
            let remedy = "write base, union or sequential";
            context.error(choice.value_at("method"), message, remedy);
            return None;
        }
    };
    Some((children, resolver))
}

fn zookeeper(
    context: &mut Context,
    clusters: &[Cluster],
    map: &Map<'_, '_>,
) -> Option<ZookeeperDiscovery> {
    let hosts = match map.text(context, "cluster") {
        Some(name) => {
            if map.get("hosts").is_some() {
                let message = format!("`{}` and `hosts`", map.name("cluster"));
                context.error(map.at("hosts"), message, "leave one of them");
            }
            let found = clusters.iter().find(|cluster| cluster.name == name);
            if found.is_none() {
                let message = format!("there is no cluster `{name}`");
                let names = clusters.iter().map(|cluster| cluster.name.as_str());
                let remedy = match nearest(name, names) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => "declare it under `clusters`".to_owned(),
                };
                context.error(map.value_at("cluster"), message, remedy);
            }
            found?.hosts.clone()
        }
        None => hosts(context, map),
    };
    let decode = match map.map(context, "decode", &keys::DECODE) {
        Some(decode) => {
            let endpoint = decode.text(context, "endpoint_name").map(str::to_owned);
            match decode.text(context, "method").unwrap_or("nerve") {
                "nerve" => Decode::Nerve,
                "serverset" => Decode::ServerSet(endpoint),
                other => {
                    let message = format!("`{}` is `{other}`", decode.name("method"));
                    context.error(
                        decode.value_at("method"),
                        message,
                        "write nerve or serverset",
                    );
                    return None;
                }
            }
        }
        None => Decode::Nerve,
    };
    // These change nothing here, but what is written there should still be what it was meant to be.
    map.map(context, "retry_policy", &keys::RETRY);
    map.number(context, "discovery_jitter", 0.0..=120.0);
    let path = znode_path(context, map, "path", true)?;
    let generator_config_path = match map.text(context, "generator_config_path") {
        None => Some(path.clone()),
        Some("disabled") => None,
        Some(_) => znode_path(context, map, "generator_config_path", false),
    };
    Some(ZookeeperDiscovery {
        hosts,
        path,
        decode,
        generator_config_path,
    })
}

/// An absolute znode path without `.`, `..` and empty components, which ZooKeeper refuses; `*` stands alone.
pub(super) fn znode_path(
    context: &mut Context,
    map: &Map<'_, '_>,
    key: &'static str,
    pattern: bool,
) -> Option<String> {
    let text = map.required(context, key)?;
    let path = text.strip_suffix('/').unwrap_or(text);
    let good = |part: &str| {
        !matches!(part, "" | "." | "..") && (!part.contains('*') || pattern && part == "*")
    };
    let parts = path.strip_prefix('/');
    if !parts.is_some_and(|parts| parts.split('/').all(good)) {
        let message = format!("`{}` is `{text}`", map.name(key));
        let remedy = if pattern {
            "write a path like /nerve/services/name, or a pattern like /aurora/*/prod/* in which `*` is a whole name"
        } else {
            "write a path like /nerve/services/name"
        };
        context.error(map.value_at(key), message, remedy);
        return None;
    }
    Some(path.to_owned())
}

/// The `hosts` of an ensemble, sorted, each with its port.
pub(super) fn hosts(context: &mut Context, map: &Map<'_, '_>) -> Vec<String> {
    if map.get("hosts").is_none() {
        map.missing(context, "hosts");
    }
    let mut hosts = Vec::new();
    for node in map.list(context, "hosts") {
        match node.text().and_then(host_port) {
            Some(host) => hosts.push(host),
            None => {
                let text = shown(node.text().unwrap_or_default());
                let message = format!("`{}` holds `{text}`", map.name("hosts"));
                let remedy = "write host:port; a chroot belongs to `clusters`";
                context.error(node.at, message, remedy);
            }
        }
    }
    hosts.sort();
    hosts.dedup();
    if hosts.is_empty()
        && let Some(node) = map.get("hosts")
        && matches!(&node.value, Value::List(items) if items.is_empty())
    {
        let message = format!("`{}` is empty", map.name("hosts"));
        context.error(node.at, message, "write host:port");
    }
    hosts
}

fn host_port(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port: u16 = port.map_or(Some(ZOOKEEPER_PORT), |port| port.parse().ok())?;
    if port == 0 || !safe_host(host) {
        return None;
    }
    Some(if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    })
}

fn dns(context: &mut Context, map: &Map<'_, '_>) -> Option<DnsDiscovery> {
    if map.get("servers").is_none() {
        map.missing(context, "servers");
    }
    let mut servers = Vec::new();
    for node in map.list(context, "servers") {
        let server = Map::open(context, &keys::DNS_SERVER, node, map.name("servers"))?;
        let host = server.required(context, "host")?;
        let srv = host.starts_with('_');
        if !safe_host(host.trim_start_matches('_').trim_end_matches('.')) {
            let message = format!("`{}` is `{}`", server.name("host"), shown(host));
            context.error(server.value_at("host"), message, "write a DNS name");
        }
        let port = server.number(context, "port", 1..=65535);
        if port.is_none() && !srv {
            server.missing(context, "port");
        }
        servers.push(DnsServer {
            name: name(context, &server, "name"),
            host: host.to_owned(),
            port,
            labels: labels(context, &server),
        });
    }
    let check_interval = map
        .duration(context, "check_interval")
        .unwrap_or(Duration::from_secs(30));
    if check_interval < Duration::from_secs(1) {
        let message = format!("`{}` is under a second", map.name("check_interval"));
        context.error(map.value_at("check_interval"), message, "write at least 1");
    }
    Some(DnsDiscovery {
        servers,
        nameserver: map.text(context, "nameserver").map(str::to_owned),
        check_interval,
    })
}

fn filters(context: &mut Context, map: &Map<'_, '_>) -> Vec<LabelFilter> {
    let mut filters = Vec::new();
    if let Some(node) = map.get("label_filter") {
        let message = format!("`{}` is the older spelling", map.name("label_filter"));
        context.push(
            Kind::Note,
            map.at("label_filter"),
            message,
            "write `label_filters`, a list",
        );
        filter(context, node, map.name("label_filter"), &mut filters);
    }
    for node in map.list(context, "label_filters") {
        filter(context, node, map.name("label_filters"), &mut filters);
    }
    filters
}

fn filter(context: &mut Context, node: &Node<'_>, path: String, filters: &mut Vec<LabelFilter>) {
    let Some(map) = Map::open(context, &keys::FILTER, node, path) else {
        return;
    };
    let label = map.required(context, "label");
    let value = map.required(context, "value");
    let (Some(label), Some(value)) = (label, value) else {
        return;
    };
    let new = |equals| LabelFilter {
        label: label.to_owned(),
        value: value.to_owned(),
        equals,
    };
    match map.text(context, "condition") {
        Some("equals") => filters.push(new(true)),
        Some("not-equals") => filters.push(new(false)),
        other => {
            let message = format!(
                "`{}` is `{}`: no member passes Synapse's filter",
                map.name("condition"),
                other.unwrap_or_default()
            );
            let remedy = "write equals or not-equals";
            context.push(Kind::Ignored, map.value_at("condition"), message, remedy);
            // Equal and not equal at once: what nothing passes.
            filters.extend([new(true), new(false)]);
        }
    }
}

/// A name that may become a part of a server's name.
pub(super) fn name(context: &mut Context, map: &Map<'_, '_>, key: &'static str) -> Option<String> {
    let name = map.text(context, key)?;
    if !safe_name(name) {
        let message = format!("`{}` is `{}`", map.name(key), shown(name));
        let remedy = "HAProxy takes letters, digits and -_.: in names";
        context.error(map.value_at(key), message, remedy);
    }
    Some(name.to_owned())
}

/// The texts of `labels`.
pub(super) fn labels(context: &mut Context, map: &Map<'_, '_>) -> BTreeMap<String, String> {
    texts(context, map, "labels")
        .into_iter()
        .map(|(key, node)| (key, node.text().unwrap_or_default().to_owned()))
        .collect()
}

/// A map whose keys are the writer's own and whose values are scalars.
pub(super) fn texts<'t, 'a>(
    context: &mut Context,
    map: &Map<'t, 'a>,
    key: &'static str,
) -> Vec<(String, &'t Node<'a>)> {
    let Some(node) = map.get(key) else {
        return Vec::new();
    };
    let Value::Map(entries) = &node.value else {
        let message = format!("`{}` is {}, not a map", map.name(key), node.kind());
        context.error(node.at, message, "write a map");
        return Vec::new();
    };
    let mut texts = Vec::new();
    for entry in entries {
        match entry.node.value {
            Value::Scalar(..) => texts.push((entry.key.clone().into_owned(), &entry.node)),
            _ => {
                let name = join(&map.name(key), &entry.key);
                let message = format!("`{name}` is {}, not text", entry.node.kind());
                context.error(entry.node.at, message, "write one value");
            }
        }
    }
    texts
}
