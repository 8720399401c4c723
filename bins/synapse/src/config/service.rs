//! One entry of `services`, which is one service, or a pair, or several copies.

use std::rc::Rc;
use std::sync::Arc;

use super::context::{Context, Kind, Map, join};
use super::discovery::{self, Source, znode_path};
use super::keys;
use super::pattern::{Pattern, without_placeholders};
use super::proxy::{self, Written};
use super::tree::{At, Node, Value, overlay};
use crate::model::{Backend, Rare, Rarely, safe_host, safe_name, safe_options, shown};
use crate::settings::{
    Canary, Cluster, Decode, Discovery, Probe, Servers, Service, ZookeeperDiscovery,
};

/// What of the rest of the file a service depends on.
pub(super) struct Around<'c> {
    pub(super) clusters: &'c [Cluster],
    /// Whether there is a top-level `haproxy`.
    pub(super) haproxy: bool,
    pub(super) shared_frontend: bool,
    pub(super) use_nerve_weights: bool,
    pub(super) file_output: bool,
}

/// Reads the entry `name`; what cannot be read is left out, and the context knows why.
pub(super) fn read(
    context: &mut Context,
    around: &Around<'_>,
    name: &str,
    at: At,
    node: &Node<'_>,
) -> Vec<Service> {
    let Some(map) = Map::open(context, &keys::SERVICE, node, join("services", name)) else {
        return Vec::new();
    };
    let Some(source) = source(context, around, &map) else {
        return Vec::new();
    };
    let pattern = Pattern::of(context, name, at, &source.discovery);
    let entry = Entry {
        around,
        common: Common::read(context, around, &map, &source, &pattern),
        source,
        pattern,
        map,
        at,
    };
    let (public, private) = (entry.map.get("public"), entry.map.get("private"));
    let mut services = Vec::new();
    if public.is_none() && private.is_none() {
        services.extend(entry.service(context, name.to_owned(), None));
    }
    if public.is_some() {
        services.extend(entry.service(context, name.to_owned(), Some("public")));
    }
    if private.is_some() {
        services.extend(entry.service(context, format!("{name}-private"), Some("private")));
    }
    match entry
        .map
        .number(context, "load_test_concurrency", 1..=1000u32)
    {
        None => services,
        Some(copies) => services
            .iter()
            .flat_map(|service| {
                (0..copies).map(|number| Service {
                    name: format!("{}_{number}", service.name),
                    ..service.clone()
                })
            })
            .collect(),
    }
}

fn source(context: &mut Context, around: &Around<'_>, map: &Map<'_, '_>) -> Option<Source> {
    let Some(node) = map.get("discovery") else {
        map.missing(context, "discovery");
        return None;
    };
    let source = discovery::read(context, around.clusters, node, map.name("discovery"))?;
    match map.map(context, "discovery_multi", &keys::DISCOVERY_MULTI) {
        None => Some(source),
        Some(multi) => discovery::multi(context, around.clusters, &multi, source),
    }
}

/// What the services of an entry share, beside their discovery.
struct Common {
    default_servers: Vec<Arc<Backend>>,
    keep_default_servers: bool,
    use_previous_backends: bool,
    backend_port_override: Option<u16>,
    leader_election: bool,
    canary: Option<Canary>,
    servers: Option<Servers>,
    panic_threshold: u8,
    file_output: bool,
}

impl Common {
    fn read(
        context: &mut Context,
        around: &Around<'_>,
        map: &Map<'_, '_>,
        source: &Source,
        pattern: &Pattern,
    ) -> Self {
        let servers = map.text(context, "servers").and_then(|word| match word {
            "slots" => Some(Servers::Slots),
            "named" => {
                let place = context.place(map.value_at("servers"));
                Some(Servers::Named(format!("`servers: named` ({place})")))
            }
            other => {
                let message = format!("`{}` is `{other}`", map.name("servers"));
                context.error(map.value_at("servers"), message, "write slots or named");
                None
            }
        });
        Self {
            default_servers: default_servers(context, map),
            keep_default_servers: map.flag(context, "keep_default_servers", false),
            use_previous_backends: map.flag(context, "use_previous_backends", true),
            backend_port_override: map.number(context, "backend_port_override", 1..=65535),
            leader_election: map.flag(context, "leader_election", false),
            canary: canary(context, around, map, source, pattern),
            servers,
            panic_threshold: map
                .number(context, "panic_threshold", 0..=100)
                .unwrap_or(50),
            file_output: match map.map(context, "file_output", &keys::SERVICE_FILE) {
                Some(file) => around.file_output && !file.flag(context, "disabled", false),
                None => around.file_output,
            },
        }
    }
}

fn default_servers(context: &mut Context, map: &Map<'_, '_>) -> Vec<Arc<Backend>> {
    let mut servers = Vec::new();
    let path: Rc<str> = map.name("default_servers").into();
    for node in map.list(context, "default_servers") {
        let Some(server) = Map::open(context, &keys::SERVER, node, Rc::clone(&path)) else {
            continue;
        };
        if server.get("host").is_none() || server.get("port").is_none() {
            let message = "a default server without host and port: Synapse leaves it out";
            context.push(Kind::Dropped, node.at, message, "give it both");
            continue;
        }
        let port = server.number(context, "port", 1..=65535);
        let host = server.text(context, "host");
        let (Some(host), Some(port)) = (host, port) else {
            continue;
        };
        if !safe_host(host.trim_matches(['[', ']'])) {
            let message = format!("`{}` is `{}`", server.name("host"), shown(host));
            let remedy = "write a DNS name or an address";
            context.error(server.value_at("host"), message, remedy);
            continue;
        }
        let options = server.text(context, "haproxy_server_options");
        if !options.is_none_or(safe_options) {
            let message = format!("`{}`", server.name("haproxy_server_options"));
            let remedy = "letters, digits, spaces and -_.:/,@=()+ can stand there, 512 of them";
            context.error(server.value_at("haproxy_server_options"), message, remedy);
        }
        let source = context.place(node.at).to_string();
        if let Ok(backend) = Backend::new(host, port, source) {
            servers.push(Arc::new(Backend {
                id: server.number(context, "id", 0..=u64::MAX),
                weight: server.number(context, "weight", 0..=256),
                rare: Rarely::from(Rare {
                    name: discovery::name(context, &server, "name").map(Box::from),
                    options: options.map(Box::from),
                    server_id: server.number(context, "haproxy_server_id", 1..=i32::MAX as u32),
                    labels: discovery::labels(context, &server),
                }),
                ..backend
            }));
        }
    }
    servers
}

/// An entry of `services`.
struct Entry<'e, 't, 'a> {
    around: &'e Around<'e>,
    common: Common,
    source: Source,
    pattern: Pattern,
    map: Map<'t, 'a>,
    at: At,
}

impl Entry<'_, '_, '_> {
    /// The service of the entry, or the one that is `public` or `private` in it.
    fn service(
        &self,
        context: &mut Context,
        name: String,
        pair: Option<&'static str>,
    ) -> Option<Service> {
        if !safe_name(&without_placeholders(&name)) {
            let message = format!("the service `{}`", shown(&name));
            let remedy = "HAProxy takes letters, digits and -_.: in names, 128 of them";
            context.error(self.at, message, remedy);
            return None;
        }
        let pair = match pair {
            Some(key) => Some(self.map.map(context, key, &keys::PAIR)?),
            None => None,
        };
        // What the pair says is laid upon what the entry says.
        let says = |key| match &pair {
            Some(pair) if pair.get(key).is_some() => pair,
            _ => &self.map,
        };
        let written = self.written(context, pair.as_ref())?;
        let mut discovery = self.source.discovery.clone();
        let mut canary = self.common.canary.clone();
        if pair.is_some() {
            // What a znode says of one service cannot be meant for two.
            without_generator_config(&mut discovery);
        }
        if let Some(pair) = &pair
            && let Some(endpoint) = pair.text(context, "endpoint_name")
        {
            let mut found = with_endpoint(&mut discovery, endpoint);
            if let Some(canary) = &mut canary {
                found |= with_endpoint(&mut canary.discovery, endpoint);
            }
            if !found {
                let message = format!("`{endpoint}` is an endpoint of no ServerSet");
                let remedy = "write `decode: {method: serverset}` in `discovery`";
                context.error(pair.value_at("endpoint_name"), message, remedy);
            }
        }
        let proxy = written.proxy.filter(|_| self.around.haproxy);
        let servers = self.common.servers.clone().unwrap_or_else(|| {
            proxy
                .as_ref()
                .and_then(proxy::named)
                .map_or(Servers::Slots, Servers::Named)
        });
        Some(Service {
            name,
            place: context.place(self.at),
            discovery,
            label_filters: self.source.filters.clone(),
            default_servers: self.common.default_servers.clone(),
            keep_default_servers: self.common.keep_default_servers,
            use_previous_backends: self.common.use_previous_backends,
            backend_port_override: self.common.backend_port_override.or(written.port_override),
            leader_election: self.common.leader_election,
            canary,
            slots: says("slots").number(context, "slots", 1..=4096),
            servers,
            probe: probe(context, says("probe"), says("probe_path")),
            panic_threshold: self.common.panic_threshold,
            haproxy: proxy,
            file_output: self.common.file_output,
        })
    }

    fn written(&self, context: &mut Context, pair: Option<&Map<'_, '_>>) -> Option<Written> {
        let nothing = Node {
            at: self.at,
            value: Value::Map(Vec::new()),
        };
        let own = self.map.get("haproxy").unwrap_or(&nothing);
        let read = |context: &mut Context, node: &Node<'_>, path| {
            proxy::read(context, self.around, &self.pattern, node, path)
        };
        match pair.and_then(|pair| Some((pair, pair.get("haproxy")?))) {
            None => read(context, own, self.map.name("haproxy")),
            Some((pair, over)) => {
                let mut both = own.clone();
                overlay(&mut both, over.clone());
                read(context, &both, pair.name("haproxy"))
            }
        }
    }
}

fn canary(
    context: &mut Context,
    around: &Around<'_>,
    map: &Map<'_, '_>,
    source: &Source,
    pattern: &Pattern,
) -> Option<Canary> {
    let canary = map.map(context, "canary", &keys::CANARY)?;
    if canary.get("weight").is_none() {
        canary.missing(context, "weight");
    }
    let weight = canary.number(context, "weight", 0..=100);
    let wrong = |context: &mut Context, remedy: &str| {
        let message = format!("`{}` does not say where", map.name("canary"));
        context.error(canary.at, message, remedy);
        None
    };
    if pattern.per_match() {
        return wrong(
            context,
            "a service per match has no canary: give the job an entry of its own",
        );
    }
    let discovery = match (canary.get("path"), canary.get("discovery")) {
        (Some(_), None) => {
            let Discovery::Zookeeper(like) = &source.discovery else {
                return wrong(
                    context,
                    "only `method: zookeeper` has a path: give it a `discovery`",
                );
            };
            Discovery::Zookeeper(ZookeeperDiscovery {
                path: znode_path(context, &canary, "path", true)?,
                generator_config_path: None,
                ..like.clone()
            })
        }
        (None, Some(node)) => {
            let own = discovery::read(context, around.clusters, node, canary.name("discovery"))?;
            if !own.filters.is_empty() && own.filters != source.filters {
                let message = format!("label filters in `{}`", canary.name("discovery"));
                let remedy = "those of the service's `discovery` hold for both";
                context.error(node.at, message, remedy);
            }
            own.discovery
        }
        _ => return wrong(context, "give it `path` or `discovery`, one of them"),
    };
    Some(Canary {
        discovery,
        weight: weight?,
    })
}

fn probe(context: &mut Context, map: &Map<'_, '_>, path_map: &Map<'_, '_>) -> Probe {
    let path = path_map.text(context, "probe_path");
    let text = map.text(context, "probe").unwrap_or("connect");
    let (word, inline) = match text.split_once(' ') {
        Some((word, path)) => (word, Some(path.trim())),
        None => (text, None),
    };
    match (word, inline.or(path)) {
        ("connect", None) => Probe::Connect,
        ("none", None) => Probe::None,
        ("http", Some(path))
            if path.starts_with('/') && path.bytes().all(|c| c.is_ascii_graphic()) =>
        {
            Probe::Http(path.to_owned())
        }
        ("http", _) => {
            let message = format!("`{}` has no path", map.name("probe"));
            let remedy = "write `http /path`, or the path as `probe_path`";
            context.error(map.value_at("probe"), message, remedy);
            Probe::Connect
        }
        ("connect" | "none", Some(_)) => {
            let message = format!("`{}: {word}` gets no path", map.name("probe"));
            let remedy = "write `http /path`, or leave the path out";
            context.error(map.value_at("probe"), message, remedy);
            Probe::Connect
        }
        _ => {
            let message = format!("`{}` is `{}`", map.name("probe"), shown(text));
            let remedy = "write connect, none or `http /path`";
            context.error(map.value_at("probe"), message, remedy);
            Probe::Connect
        }
    }
}

fn without_generator_config(discovery: &mut Discovery) {
    match discovery {
        Discovery::Zookeeper(zookeeper) => zookeeper.generator_config_path = None,
        Discovery::Multi(children, _) => children
            .iter_mut()
            .for_each(|(_, child)| without_generator_config(child)),
        _ => {}
    }
}

/// Lets every ServerSet in `discovery` use this endpoint; whether there is one.
fn with_endpoint(discovery: &mut Discovery, endpoint: &str) -> bool {
    match discovery {
        Discovery::Zookeeper(ZookeeperDiscovery {
            decode: Decode::ServerSet(name),
            ..
        }) => {
            *name = Some(endpoint.to_owned());
            true
        }
        Discovery::Multi(children, _) => children
            .iter_mut()
            .map(|(_, child)| with_endpoint(child, endpoint))
            .fold(false, |any, found| any | found),
        _ => false,
    }
}
