//! Every key there is, declared once: what is accepted, what it means without it, and what it says. One key per line:
//! it is a table, and rustfmt is told so where the module is declared.

use super::schema::{Key, Origin, Section};

const fn key(
    name: &'static str,
    shape: &'static str,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        name,
        shape,
        default,
        doc,
        origin: Origin::Synapse,
    }
}

const fn ours(
    name: &'static str,
    shape: &'static str,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        origin: Origin::Ours,
        ..key(name, shape, default, doc)
    }
}

const fn unused(name: &'static str, shape: &'static str, doc: &'static str) -> Key {
    Key {
        origin: Origin::Unused,
        ..key(name, shape, "", doc)
    }
}

const METHOD: Key = key("method", "zookeeper | dns | file | base | multi", "", "How members are found; required");
const LABEL_FILTERS: Key = key("label_filters", "list of maps", "", "Only members whose labels pass all of these are used");
const LABEL_FILTER: Key = key("label_filter", "map", "", "One label filter; the older spelling");

pub(super) static SECTIONS: &[&Section] = &[
    &ROOT, &SERVICE, &PAIR, &CANARY, &SERVER, &ZOOKEEPER, &DECODE, &RETRY, &DNS, &DNS_SERVER, &FILE, &BASE, &MULTI,
    &DISCOVERY_MULTI, &RESOLVER, &FILTER, &PROXY, &SERVICE_FILE, &HAPROXY, &FILE_OUTPUT, &STATSD, &CLUSTER, &GUARD,
];

pub(super) static ROOT: Section = Section {
    path: "The file",
    doc: "The top level.",
    keys: &[
        key("services", "map of services", "{}", "The services, by name"),
        key("service_conf_dir", "directory", "", "Every `*.yaml` and `*.json` in it is a service named after the file; relative to this file"),
        key("haproxy", "map", "", "The HAProxy that is driven; without it only files are written"),
        key("file_output", "map", "", "One JSON file per service"),
        key("statsd", "map", "", "Metrics as DogStatsD"),
        ours("clusters", "list of maps", "", "Names for ensembles and what lives in them"),
        ours("guard", "map", "", "When removals are held back"),
        ours("max_removed_services", "percent", "25", "How much of the services one reload of the configuration may remove without `--force`"),
    ],
};

pub(super) static SERVICE: Section = Section {
    path: "services.NAME",
    doc: "One service. Where the discovery path is a pattern, NAME may hold `%{role}`, `%{environment}` and `%{job}`: then every matching path is a service of its own.",
    keys: &[
        key("discovery", "map", "", "Where members are found; required"),
        key("discovery_multi", "map", "", "More watchers beside `discovery`, which becomes the watcher `primary`"),
        key("default_servers", "list of maps", "[]", "Members when discovery has none"),
        key("keep_default_servers", "boolean", "false", "Default servers are members always"),
        key("use_previous_backends", "boolean", "true", "An empty discovery without default servers changes nothing"),
        key("backend_port_override", "port", "", "The port instead of every registered one"),
        key("leader_election", "boolean", "false", "Only the member with the smallest id is used"),
        key("load_test_concurrency", "number", "", "That many copies of the service, NAME_0 and so on"),
        key("haproxy", "map", "{}", "What is written for HAProxy"),
        key("file_output", "map", "{}", "The service's JSON file"),
        ours("public", "map", "", "A pair of endpoints of one job: this one is the service NAME"),
        ours("private", "map", "", "A pair of endpoints of one job: this one is the service NAME-private"),
        ours("canary", "map", "", "Some live traffic for a new version"),
        ours("slots", "1 to 4096", "sized by the members", "Server slots to begin with"),
        ours("servers", "slots | named", "by the lines", "How members stand in HAProxy: in slots that are filled at run time, or each as a server of its own"),
        ours("probe", "connect | http | http /path | none", "connect", "What makes a new member ready"),
        ours("probe_path", "path", "", "What `probe: http` gets"),
        ours("panic_threshold", "percent", "50", "Below this share of ready members, probes stop counting"),
    ],
};

pub(super) static PAIR: Section = Section {
    path: "services.NAME.public and .private",
    doc: "What differs from the rest of the entry.",
    keys: &[
        ours("endpoint_name", "name", "that of `decode`", "The registered endpoint"),
        ours("haproxy", "map", "{}", "Laid upon the entry's `haproxy`: maps merge, all else replaces"),
        ours("slots", "1 to 4096", "the entry's", "Server slots to begin with"),
        ours("probe", "as in the entry", "the entry's", "What makes a new member ready"),
        ours("probe_path", "path", "the entry's", "What `probe: http` gets"),
    ],
};

pub(super) static CANARY: Section = Section {
    path: "services.NAME.canary",
    doc: "Members of a second path. One of `path` and `discovery` is required.",
    keys: &[
        ours("path", "znode path", "", "The path, in the place of that of the service's discovery"),
        ours("discovery", "map", "", "Another discovery altogether"),
        ours("weight", "0 to 100", "", "Share of requests a canary member gets, in percent of a normal member's; required"),
    ],
};

pub(super) static SERVER: Section = Section {
    path: "services.NAME.default_servers",
    doc: "One member.",
    keys: &[
        key("name", "name", "", "Its name"),
        key("host", "name or address", "", "Its host; required"),
        key("port", "port", "", "Its port; required"),
        key("id", "number", "", "What leader election compares"),
        key("weight", "0 to 256", "", "Its weight"),
        key("labels", "map of texts", "{}", "What label filters compare"),
        key("haproxy_server_options", "text", "", "Options of its server line alone"),
        key("haproxy_server_id", "number", "", "Its id in HAProxy"),
    ],
};

pub(super) static ZOOKEEPER: Section = Section {
    path: "discovery, method: zookeeper",
    doc: "Registrations below a path. Members that HAProxy should not get are refused and counted.",
    keys: &[
        METHOD,
        key("path", "znode path", "", "Below which the members are; a component may be `*`; required"),
        key("hosts", "list of host:port", "", "The ensemble; required unless `cluster` is given"),
        ours("cluster", "name", "", "The ensemble of this cluster, instead of `hosts`"),
        key("decode", "map", "nerve", "What the registrations look like"),
        key("generator_config_path", "znode path | disabled", "the path", "Where the registry holds configuration of the service"),
        LABEL_FILTERS,
        LABEL_FILTER,
        unused("retry_policy", "map", "Connections are retried for ever, with growing pauses"),
        unused("discovery_jitter", "0 to 120 s", "Reads are few enough: one per new member"),
    ],
};

pub(super) static DECODE: Section = Section {
    path: "discovery.decode",
    doc: "The format of registrations.",
    keys: &[
        key("method", "nerve | serverset", "nerve", "Nerve's, or that of ServerSets as Aurora writes them"),
        key("endpoint_name", "name", "the service endpoint", "Which endpoint of a ServerSet"),
    ],
};

pub(super) static RETRY: Section = Section {
    path: "discovery.retry_policy",
    doc: "Synapse's retries.",
    keys: &[
        unused("max_attempts", "number", "Attempts"),
        unused("max_delay", "seconds", "All attempts"),
        unused("base_interval", "seconds", "The first pause"),
        unused("max_interval", "seconds", "The longest pause"),
    ],
};

pub(super) static DNS: Section = Section {
    path: "discovery, method: dns",
    doc: "Names with A, AAAA or SRV records, looked up as often as their TTL asks for.",
    keys: &[
        METHOD,
        key("servers", "list of maps", "", "What is looked up; required"),
        key("nameserver", "address[:port]", "the system's", "Who is asked"),
        key("check_interval", "duration", "30", "The longest time between two lookups"),
        LABEL_FILTERS,
        LABEL_FILTER,
    ],
};

pub(super) static DNS_SERVER: Section = Section {
    path: "discovery.servers",
    doc: "One name.",
    keys: &[
        key("name", "name", "", "What its members are called"),
        key("host", "name", "", "What is looked up; one that begins with `_` has SRV records; required"),
        key("port", "port", "that of the SRV record", "The port"),
        key("labels", "map of texts", "{}", "What label filters compare"),
    ],
};

pub(super) static FILE: Section = Section {
    path: "discovery, method: file",
    doc: "A list in a YAML or JSON file, read again whenever it changes.",
    keys: &[METHOD, ours("path", "file", "", "The file; required"), LABEL_FILTERS, LABEL_FILTER],
};

pub(super) static BASE: Section = Section {
    path: "discovery, method: base",
    doc: "The default servers alone.",
    keys: &[METHOD, LABEL_FILTERS, LABEL_FILTER],
};

pub(super) static MULTI: Section = Section {
    path: "discovery, method: multi",
    doc: "Several discoveries at once.",
    keys: &[
        METHOD,
        key("watchers", "map of discoveries", "", "The discoveries, by name; required"),
        key("resolver", "map", "", "How what they find becomes one list; required"),
        LABEL_FILTERS,
        LABEL_FILTER,
    ],
};

pub(super) static DISCOVERY_MULTI: Section = Section {
    path: "services.NAME.discovery_multi",
    doc: "As `method: multi`, with `discovery` as the watcher `primary`.",
    keys: &[
        key("watchers", "map of discoveries", "", "The discoveries, by name; required"),
        key("resolver", "map", "", "How what they find becomes one list; required"),
    ],
};

pub(super) static RESOLVER: Section = Section {
    path: "discovery.resolver",
    doc: "How what several watchers find becomes one list.",
    keys: &[
        key("method", "base | union | sequential", "", "What `primary` finds, what any finds, or what the first finds that finds anything; required"),
        key("sequential_order", "list of names", "", "The order of `sequential`; required there"),
    ],
};

pub(super) static FILTER: Section = Section {
    path: "discovery.label_filters",
    doc: "One filter.",
    keys: &[
        key("label", "text", "", "The label; required"),
        key("value", "text", "", "Its value; required"),
        key("condition", "equals | not-equals", "", "What the member's label must be; required"),
    ],
};

pub(super) static PROXY: Section = Section {
    path: "services.NAME.haproxy",
    doc: "What is written for HAProxy. Lines may hold `%{role}`, `%{environment}` and `%{job}` where the name does.",
    keys: &[
        key("disabled", "boolean", "false", "Nothing is written"),
        key("port", "port | null", "no frontend", "What the frontend binds; null binds `bind_address` alone, for unix sockets"),
        key("bind_address", "address", "the top level's", "Where the frontend binds"),
        key("bind_options", "text", "", "Appended to the bind line"),
        key("server_options", "text", "", "Options of every server; `%{host}`, `%{port}` and `%{name}` are the member's, and make servers named"),
        key("server_port_override", "port", "", "The older spelling of `backend_port_override`"),
        key("listen", "list of lines", "[]", "Lines of the frontend, the backend or both, wherever HAProxy takes the keyword"),
        key("frontend", "list of lines", "[]", "Lines of the frontend"),
        key("backend", "list of lines", "[]", "Lines of the backend"),
        key("shared_frontend", "list of lines", "[]", "Lines added to the shared frontend"),
        key("backend_name", "name", "the service's name", "The backend's name"),
        key("backend_order", "asc | desc | no_shuffle | shuffle", "shuffle", "The order of named servers"),
        key("cookie_value_method", "name | hash", "name", "What a named server's cookie is"),
        key("use_nerve_weights", "boolean", "the top level's", "Registered weights are used"),
    ],
};

pub(super) static SERVICE_FILE: Section = Section {
    path: "services.NAME.file_output",
    doc: "The service's JSON file.",
    keys: &[key("disabled", "boolean", "false", "No file is written")],
};

pub(super) static HAPROXY: Section = Section {
    path: "haproxy",
    doc: "The HAProxy that is driven.",
    keys: &[
        key("global", "list of lines", "", "Lines of `global`; required"),
        key("defaults", "list of lines", "", "Lines of `defaults`; required"),
        key("extra_sections", "map of lists of lines", "{}", "Whole sections, verbatim, by their head line"),
        key("shared_frontend", "list of lines", "", "Lines of the one frontend `shared-frontend`"),
        key("bind_address", "address", "localhost", "Where frontends bind"),
        key("do_writes", "boolean", "true", "HAProxy's file is written"),
        key("do_checks", "boolean", "false", "`check_command` is asked too, after our own preflight"),
        key("do_reloads", "boolean", "true", "HAProxy is reloaded"),
        key("do_socket", "boolean", "true", "The runtime API is used"),
        key("config_file_path", "file", "", "HAProxy's file; required with `do_writes`"),
        key("candidate_config_file_path", "file", "<config_file_path>.tmp", "Where a candidate is written"),
        key("check_command", "command", "", "Succeeds when the candidate is good; required with `do_checks`"),
        key("reload_command", "command", "", "Reloads HAProxy"),
        key("socket_file_path", "socket or list of them", "", "The stats sockets, of level admin; required with `do_socket`"),
        key("restart_interval", "duration", "2", "At least this long between two reloads"),
        key("restart_jitter", "factor", "0", "A random share of `restart_interval` added to it"),
        key("state_file_path", "file", "/var/lib/hostkit/synapse/state.json", "Our state; the journal and `proxies.json` stand beside it"),
        key("state_file_ttl", "duration", "86400", "How long a service that is gone stays in it"),
        key("server_order_seed", "number", "of the host's name", "Seed of the shuffled order"),
        key("max_server_id", "1 to 2147483647", "65535", "The largest server id"),
        key("use_nerve_weights", "boolean", "false", "Registered weights are used"),
        ours("inject", "boolean", "true", "Lines that hitless operation needs are added where they are missing"),
        ours("master_socket", "socket", "", "The master's (`haproxy -W -S`): reloads go through it"),
        ours("pid_file", "file", "", "HAProxy's pid file: reloads start a new process that takes over"),
        ours("binary", "file", "haproxy", "The program"),
        ours("canary_url", "URL", "", "Must answer 2xx or 3xx after a reload, or the old file is put back"),
        ours("server_state_file", "file", "haproxy-servers.state beside our state", "HAProxy's own state of servers over a reload"),
    ],
};

pub(super) static FILE_OUTPUT: Section = Section {
    path: "file_output",
    doc: "One JSON file per service, `<directory>/<service>.json`.",
    keys: &[key("output_directory", "directory", "", "Where; required")],
};

pub(super) static STATSD: Section = Section {
    path: "statsd",
    doc: "Metrics as DogStatsD.",
    keys: &[
        key("host", "name", "localhost", "The host"),
        key("port", "port", "8125", "The UDP port"),
        key("sample_rate", "map of numbers", "{}", "Share of events sent, by metric"),
    ],
};

pub(super) static CLUSTER: Section = Section {
    path: "clusters",
    doc: "One cluster.",
    keys: &[
        ours("name", "name", "", "The first part of job keys; required"),
        ours("hosts", "list of host:port", "", "The ensemble; required"),
        ours("root", "znode path", "/aurora", "Below which `role/environment/job` stand"),
        ours("chroot", "znode path", "", "What every path of the ensemble is relative to"),
        ours("digest", "user:password", "", "Credentials"),
    ],
};

pub(super) static GUARD: Section = Section {
    path: "guard",
    doc: "When most members of many services vanish at once, the registry is doubted.",
    keys: &[
        ours("members", "percent", "50", "A service lost most of its members when it lost more than this share"),
        ours("services", "percent", "30", "Removals are held back when more than this share of services did"),
        ours("at_least", "number", "3", "And at least this many"),
        ours("window", "duration", "10", "Within this time"),
        ours("hold", "duration", "300", "How long they are held back unless HAProxy's own checks agree"),
    ],
};
