//! What synapse was told to do, validated: what every other module works from. [`crate::config`] makes it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::Backend;

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Services that are not disabled, in the order they were written. An entry with `public` and `private` is two.
    pub services: Vec<Arc<Service>>,
    /// The HAProxy that is driven.
    pub haproxy: Haproxy,
    /// Where `file_output` writes one JSON file per service.
    pub file_output: Option<PathBuf>,
    /// Where metrics are also sent, as DogStatsD.
    pub statsd: Option<Statsd>,
    /// The names of clusters: which ensemble and which root path they are.
    pub clusters: Vec<Cluster>,
    /// Our own state: last known good members. The journal and `proxies.json` are written beside it.
    pub state_file: PathBuf,
    /// How long a service that is no longer configured stays in the state file (86,400 s).
    pub state_ttl: Duration,
    /// When removals over all services are held back.
    pub guard: Guard,
    /// How much of the services one reload of the configuration may remove, in percent (25).
    pub max_removed_services: u8,
    /// SHA-256 of all that was read, in hex.
    pub hash: String,
}

/// Where one line of the configuration was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
}

/// One line for HAProxy's configuration and where it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Without indentation or line end.
    pub text: String,
    /// Where it was written; `None` for what the registry holds.
    pub place: Option<Place>,
}

/// A service: whom to watch, and what to write of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its name, unique, and that of its HAProxy proxies unless `backend_name` says otherwise. In an entry whose
    /// discovery path is a pattern it may hold `%{role}`, `%{environment}` and `%{job}`: then every path that matches
    /// is a service of its own, and lines may hold them too. Without them, all matching paths are one service.
    pub name: String,
    /// Where it was written.
    pub place: Place,
    /// Where its members are found.
    pub discovery: Discovery,
    /// Which members are used, by label.
    pub label_filters: Vec<LabelFilter>,
    /// Members when discovery has none.
    pub default_servers: Vec<Arc<Backend>>,
    /// Whether `default_servers` are members always (false).
    pub keep_default_servers: bool,
    /// Whether an empty discovery without default servers changes nothing (true).
    pub use_previous_backends: bool,
    /// The port to use instead of every registered one.
    pub backend_port_override: Option<u16>,
    /// Whether only the member with the smallest id is used (false).
    pub leader_election: bool,
    /// Some live traffic for a new version.
    pub canary: Option<Canary>,
    /// Server slots to begin with; `None` is sized from the members.
    pub slots: Option<u16>,
    /// How members are represented in HAProxy.
    pub servers: Servers,
    /// What makes a new member ready.
    pub probe: Probe,
    /// Below which share of ready members probes stop counting, in percent (50).
    pub panic_threshold: u8,
    /// What is written for HAProxy; `None` when it is disabled there.
    pub haproxy: Option<Proxy>,
    /// Whether a JSON file is written (true where `file_output` is configured).
    pub file_output: bool,
}

/// How members are found.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// `default_servers` alone.
    Base,
    /// Registrations below a ZooKeeper path.
    Zookeeper(ZookeeperDiscovery),
    /// A list in a YAML or JSON file.
    File(PathBuf),
    /// DNS names.
    Dns(DnsDiscovery),
    /// Several at once.
    Multi(Vec<(String, Discovery)>, Resolver),
}

/// `method: zookeeper`.
#[derive(Debug, Clone, PartialEq)]
pub struct ZookeeperDiscovery {
    /// `host:port`s of the ensemble, sorted; all discoveries with equal hosts share a session.
    pub hosts: Vec<String>,
    /// The path, or a pattern in which a component may be `*`.
    pub path: String,
    /// What the registrations look like.
    pub decode: Decode,
    /// Where the registry holds generator configuration: `None` nowhere. (Synapse's default is `path` itself.)
    pub generator_config_path: Option<String>,
}

/// The format of registrations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decode {
    /// Nerve's.
    Nerve,
    /// Twitter commons' ServerSet, as Aurora writes it; the named endpoint, or `serviceEndpoint`.
    ServerSet(Option<String>),
}

/// `method: dns`.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsDiscovery {
    /// What is resolved.
    pub servers: Vec<DnsServer>,
    /// Asked instead of the system's, `address` or `address:port`.
    pub nameserver: Option<String>,
    /// The longest time between two lookups, whatever the records' TTL (30 s).
    pub check_interval: Duration,
}

/// A name that `method: dns` resolves.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsServer {
    /// What the backends are called.
    pub name: Option<String>,
    /// A name with A or AAAA records; one that begins with `_` has SRV records.
    pub host: String,
    /// The port; `None` only for SRV, which has its own.
    pub port: Option<u16>,
    /// For label filters.
    pub labels: BTreeMap<String, String>,
}

/// How `method: multi` puts together what its watchers find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolver {
    /// What the watcher named `primary` (the first) finds.
    Base,
    /// What any of them finds.
    Union,
    /// What the first of these, in this order, that finds anything finds.
    Sequential(Vec<String>),
}

/// One label filter; all of a service's must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFilter {
    /// The label.
    pub label: String,
    /// Its value.
    pub value: String,
    /// Whether the value must be equal (true) or must not.
    pub equals: bool,
}

/// Members of a second path that get some of the traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// Where they are found.
    pub discovery: Discovery,
    /// Share of requests a canary member gets, in percent of a normal member's: 0 to 100.
    pub weight: u8,
}

/// How members are represented in HAProxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// Server slots `slot1`..`slotN`, filled at run time.
    Slots,
    /// One server per member, named after it; the text says which line or key asks for it.
    Named(String),
}

/// What makes a new member ready for requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection can be opened.
    Connect,
    /// `GET` of this path is answered with 2xx or 3xx.
    Http(String),
    /// Nothing: it is ready when it is announced.
    None,
}

/// The `haproxy` section of a service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proxy {
    /// What the frontend binds: `None` has no frontend; `Some(None)` binds `bind_address` alone (a unix socket).
    pub port: Option<Option<u16>>,
    /// Where the frontend binds (that of the top level).
    pub bind_address: Option<String>,
    /// Appended to the bind line.
    pub bind_options: Option<String>,
    /// Options of every server line; may hold `%{port}`, `%{host}`, `%{name}`.
    pub server_options: Option<Line>,
    /// Lines of the frontend: `frontend`, and what of `listen` belongs there.
    pub frontend: Vec<Line>,
    /// Lines of the backend: `backend`, and what of `listen` belongs there.
    pub backend: Vec<Line>,
    /// Lines added to the shared frontend.
    pub shared_frontend: Vec<Line>,
    /// The backend's name, when it is not the service's.
    pub backend_name: Option<String>,
    /// The order of servers in the file.
    pub backend_order: Order,
    /// What a server's cookie is made of; only named servers have one.
    pub cookie_value: CookieValue,
    /// Whether registered weights are used: the service's own word, or that of the top level (false).
    pub use_nerve_weights: bool,
}

/// The order of servers in the file, for named servers; slots stand in slot order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// By name, ascending.
    Asc,
    /// By name, descending.
    Desc,
    /// As discovered.
    NoShuffle,
    /// Shuffled by a seed that is stable on this host, and independent of which other members there are.
    #[default]
    Shuffle,
}

/// What a server's cookie is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CookieValue {
    /// Its name.
    #[default]
    Name,
    /// SHA-1 of its name, in hex.
    Hash,
}

/// The HAProxy that is driven: top-level `haproxy`.
#[derive(Debug, Clone, PartialEq)]
pub struct Haproxy {
    /// Lines of `global`.
    pub global: Vec<Line>,
    /// Lines of `defaults`.
    pub defaults: Vec<Line>,
    /// Whole sections, verbatim, by their head line.
    pub extra_sections: Vec<(Line, Vec<Line>)>,
    /// Lines of the one shared frontend; `None` is none.
    pub shared_frontend: Option<Vec<Line>>,
    /// Where frontends bind when the service does not say (localhost).
    pub bind_address: String,
    /// Whether the file is written (true).
    pub do_writes: bool,
    /// Whether a candidate is checked by `check_command` too, beside our own preflight (false).
    pub do_checks: bool,
    /// Whether HAProxy is reloaded (true).
    pub do_reloads: bool,
    /// Whether the runtime API is used (true).
    pub do_socket: bool,
    /// HAProxy's file.
    pub config_file: Option<PathBuf>,
    /// Where a candidate is written (`<config_file>.tmp`).
    pub candidate_file: Option<PathBuf>,
    /// A shell command that succeeds when the candidate is good.
    pub check_command: Option<String>,
    /// A shell command that reloads HAProxy.
    pub reload_command: Option<String>,
    /// The stats sockets (level admin): one per HAProxy process.
    pub sockets: Vec<PathBuf>,
    /// The master's socket (`haproxy -W -S PATH`): reloads go through it.
    pub master_socket: Option<PathBuf>,
    /// HAProxy's pid file: reloads start a new process with `-x SOCKET -sf PIDS`.
    pub pid_file: Option<PathBuf>,
    /// The program (haproxy).
    pub binary: PathBuf,
    /// At least this long between two reloads (2 s).
    pub restart_interval: Duration,
    /// A random share of `restart_interval` added to it (0.0).
    pub restart_jitter: f64,
    /// Whether lines that hitless operation needs are added to `global` and `defaults` where they are missing (true).
    pub inject: bool,
    /// Must answer 2xx or 3xx after a reload, or the old file is put back.
    pub canary_url: Option<String>,
    /// HAProxy's own state of servers over a reload (`haproxy-servers.state` beside our state file).
    pub server_state_file: PathBuf,
    /// Seed of the shuffled order (a hash of the host's name).
    pub server_order_seed: u64,
    /// The largest server id that is given out (65535).
    pub max_server_id: u32,
    /// Whether registered weights are used (false; Synapse documents it per service and reads it here).
    pub use_nerve_weights: bool,
}

impl Default for Haproxy {
    fn default() -> Self {
        Self {
            global: Vec::new(),
            defaults: Vec::new(),
            extra_sections: Vec::new(),
            shared_frontend: None,
            bind_address: "localhost".to_owned(),
            do_writes: true,
            do_checks: false,
            do_reloads: true,
            do_socket: true,
            config_file: None,
            candidate_file: None,
            check_command: None,
            reload_command: None,
            sockets: Vec::new(),
            master_socket: None,
            pid_file: None,
            binary: PathBuf::from("haproxy"),
            restart_interval: Duration::from_secs(2),
            restart_jitter: 0.0,
            inject: true,
            canary_url: None,
            server_state_file: PathBuf::new(),
            server_order_seed: 0,
            max_server_id: 65535,
            use_nerve_weights: false,
        }
    }
}

/// A name for the jobs below a root path of an ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The cluster's name, the first part of job keys.
    pub name: String,
    /// `host:port`s of the ensemble, sorted.
    pub hosts: Vec<String>,
    /// Below which `role/environment/job` stand (/aurora).
    pub root: String,
    /// What the ensemble lives below: every path is relative to it.
    pub chroot: Option<String>,
    /// Digest credentials, `user:password`.
    pub digest: Option<String>,
}

/// When removals are held back: when most members of many services vanish at once, the registry is doubted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// A service has lost most of its members when it lost more than this share, in percent (50).
    pub members: u8,
    /// Removals are held back when more than this share of services lost most of theirs, in percent (30) ...
    pub services: u8,
    /// ... and at least this many did (3) ...
    pub at_least: u16,
    /// ... within this time (10 s).
    pub window: Duration,
    /// How long they are held back unless HAProxy's own checks agree (300 s).
    pub hold: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            members: 50,
            services: 30,
            at_least: 3,
            window: Duration::from_secs(10),
            hold: Duration::from_secs(300),
        }
    }
}

/// Where metrics are sent as DogStatsD.
#[derive(Debug, Clone, PartialEq)]
pub struct Statsd {
    /// The host (localhost).
    pub host: String,
    /// The UDP port (8125).
    pub port: u16,
    /// Share of events sent, by metric (1.0).
    pub sample_rate: BTreeMap<String, f64>,
}
