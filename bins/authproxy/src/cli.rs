//! The command line, and what of it a configuration file may say: both fill the same [`Flags`].
//!
//! Owns names, spellings and the text of `--help`. What values mean, and what they are when nobody gives them, is
//! `settings`'s; the file is `config`'s.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use hostkit::admin::AdminFlags;
use hostkit::cli::{Common, Tool};
use hostkit::shutdown::DrainFlags;
use hostkit::units;
use hyper::header::HeaderName;
use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use crate::config::{self, CorsValue, RouteEntry};
use crate::settings::{AccessLogOption, ListenAddress, PreflightPolicy, UpstreamAddress};

/// Checks the API key of every request, and passes the request on to the server.
///
/// A key comes in the header X-API-Key, as `Authorization: Bearer KEY` or `ApiKey KEY`, or in the query as apikey=KEY.
/// Whose it is says the permissions engine: one of --acl-file, --acl-server and --use-liveconf-aclserver. Answers are
/// remembered in the process and, with --cache, in memcached. Without a key the answer is 401, with one that may not
/// 403, and 503 while nobody can say.
///
/// Every option but --config, --check and those of logging is also a key of the configuration file, without the hyphens
/// in front. The command line beats the environment, which beats the file.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Read this file instead of /etc/hostkit/authproxy.yaml and authproxy.d/*.yaml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read and validate the configuration and the ACL file, print a summary, and stop
    #[arg(long)]
    pub check: bool,
    /// What it does.
    #[command(flatten)]
    pub flags: Flags,
    /// Where it can be asked.
    #[command(flatten)]
    pub admin: AdminFlags,
    /// How it ends.
    #[command(flatten)]
    pub drain: DrainFlags,
    /// Flags that all tools have.
    #[command(flatten)]
    pub common: Common,
    /// What it does instead.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// What it does instead of proxying.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Verb {
    /// Make, list, rotate, revoke, hash or check API keys
    #[command(subcommand)]
    Key(crate::key::KeyVerb),
    /// Run a permissions engine
    ServeAcl(crate::serve_acl::ServeAcl),
}

/// What the command line, the environment and the file can all say. `None` where nobody says anything.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Flags {
    /// The port that clients connect to: `{{thermos.ports[http]}}`
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Where to listen: ADDR, with --port, or ADDR:PORT. Repeatable, or with commas [default: every address, IPv4 and
    /// IPv6]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    #[serde(deserialize_with = "config::list")]
    pub listen: Option<Vec<ListenAddress>>,
    /// The server that requests are passed on to: http://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL")]
    #[serde(deserialize_with = "config::text")]
    pub server: Option<UpstreamAddress>,
    /// A right that a key must have. Repeatable, or with commas: then all of them
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(deserialize_with = "config::list")]
    pub right: Option<Vec<String>>,
    /// Threads that serve requests; never more than the CPU quota of the job allows [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,

    /// The permissions engine: a YAML file of keys, followed as it changes
    #[arg(long, value_name = "FILE", help_heading = "Permissions engine")]
    pub acl_file: Option<PathBuf>,
    /// The permissions engine: URLs (http, https, unix:/PATH) that are asked in this order. Repeatable, or with commas
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "Permissions engine"
    )]
    #[serde(deserialize_with = "config::list")]
    pub acl_server: Option<Vec<Url>>,
    /// The permissions engine: the URLs under `aclserver` in the --liveconf file, followed as it changes
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Permissions engine")]
    pub use_liveconf_aclserver: Option<bool>,
    /// The live configuration of this host [default: /etc/hostkit/liveconf.yaml]
    #[arg(long, value_name = "FILE", help_heading = "Permissions engine")]
    pub liveconf: Option<PathBuf>,
    /// Pass requests on without knowing the key while the engine cannot be asked, marked with `X-Auth-Fail-Open: 1`
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Permissions engine")]
    pub fail_open: Option<bool>,

    /// Share what is known of keys with other hosts, over --memcache-servers
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Cache")]
    pub cache: Option<bool>,
    /// memcached servers, HOST:PORT with commas
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Cache"
    )]
    #[serde(deserialize_with = "config::list")]
    pub memcache_servers: Option<Vec<String>>,
    /// The beginning of every memcached key [default: authproxy]
    #[arg(long, value_name = "TEXT", help_heading = "Cache")]
    pub cache_prefix: Option<String>,
    /// What entries in memcached are signed with, the same on all hosts: at least 16 bytes. Without it memcached is not
    /// used [default: /etc/hostkit/authproxy.secret]
    #[arg(long, value_name = "FILE", help_heading = "Cache")]
    pub cache_secret_file: Option<PathBuf>,
    /// Keys remembered in the process, and as many again that nobody has [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cache")]
    pub cache_entries: Option<u32>,
    /// How long a known key is believed, unless the engine says less [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Cache")]
    #[serde(deserialize_with = "config::duration")]
    pub ttl_allowed: Option<Duration>,
    /// How long an unknown key is believed to be unknown [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Cache")]
    #[serde(deserialize_with = "config::duration")]
    pub ttl_denied: Option<Duration>,
    /// How long the engine is not asked about a key again after it failed [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Cache")]
    #[serde(deserialize_with = "config::duration")]
    pub ttl_error: Option<Duration>,
    /// How much longer a known key is believed while the engine cannot be asked [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Cache")]
    #[serde(deserialize_with = "config::duration")]
    pub stale_if_error: Option<Duration>,

    /// The header that holds a key and nothing else [default: x-api-key]
    #[arg(long, value_name = "NAME", help_heading = "Keys")]
    #[serde(deserialize_with = "config::text")]
    pub key_header: Option<HeaderName>,
    /// The query parameter that holds a key [default: apikey]
    #[arg(long, value_name = "NAME", help_heading = "Keys")]
    pub key_parameter: Option<String>,
    /// Do not let the server see keys
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Keys")]
    pub hide_credentials: Option<bool>,
    /// Whose X-Forwarded-* and X-Request-Id are believed: addresses or networks, with commas; `none` for nobody's
    /// [default: 127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,fc00::/7,fe80::/10]
    #[arg(long, value_name = "LIST", value_parser = config::networks, help_heading = "Keys")]
    #[serde(deserialize_with = "config::trusted")]
    pub trusted_proxies: Option<Networks>,
    /// Headers that proxies in front set, beside X-SSL-*, X-Forwarded-*, X-Real-IP and X-Request-Id: a request whose
    /// Connection header names one is 400. With commas; a `*` at the end stands for all that begin so
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Keys"
    )]
    #[serde(deserialize_with = "config::list")]
    pub protected_headers: Option<Vec<String>>,
    /// CORS preflights, which carry no key: off (they need one), answer (here, from `cors` in the file) or pass (to the
    /// server) [default: answer if there is `cors`, else off]
    #[arg(long, value_name = "MODE", help_heading = "Keys")]
    #[serde(deserialize_with = "config::preflight")]
    pub cors_preflight: Option<PreflightPolicy>,

    /// Longest time for the server to take a connection, to begin its answer, and to go on with it [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Deadlines")]
    #[serde(deserialize_with = "config::duration")]
    pub timeout: Option<Duration>,
    /// Longest time for a client to send a whole head, the next bytes of a body, and to read what there is for it
    /// [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Deadlines")]
    #[serde(deserialize_with = "config::duration")]
    pub client_timeout: Option<Duration>,
    /// How long a connection without a request is kept [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Deadlines")]
    #[serde(deserialize_with = "config::duration")]
    pub idle_timeout: Option<Duration>,
    /// Longest silence of the server within a streaming response: text/event-stream, and all with --stream-all
    /// [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Deadlines")]
    #[serde(deserialize_with = "config::duration")]
    pub stream_timeout: Option<Duration>,
    /// Treat every response as a streaming one from the first byte of its body on
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Deadlines")]
    pub stream_all: Option<bool>,
    /// How long new connections are still taken when told to stop, while the health path says so [default: 3s]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration, help_heading = "Deadlines")]
    #[serde(deserialize_with = "config::duration")]
    pub lame_duck: Option<Duration>,

    /// Connections of clients at once; more wait [default: 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub max_connections: Option<u32>,
    /// Connections to the server of each thread, shared between keys; as many requests again wait for one, then it is
    /// 503, and 429 for a key that fills half of those places [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub server_connections: Option<u32>,
    /// The longest head of a request, 1K to 64K [default: 16K]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, help_heading = "Limits")]
    #[serde(deserialize_with = "config::size")]
    pub max_head: Option<u64>,
    /// The longest body of a request [default: any length]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, help_heading = "Limits")]
    #[serde(deserialize_with = "config::size")]
    pub max_body: Option<u64>,
    /// Clients that send or read a body slower than this, in bytes per second and after --client-timeout, are given up;
    /// 0 for none [default: 500]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, help_heading = "Limits")]
    #[serde(deserialize_with = "config::size")]
    pub min_rate: Option<u64>,

    /// A path that is answered here, without a key: `ok`, or 503 when told to stop [default: none]
    #[arg(long, value_name = "PATH")]
    pub health_path: Option<String>,
    /// One line per request on stderr: plain, json or off [default: plain, or json with --logstash-format]
    #[arg(long, value_name = "SHAPE")]
    #[serde(deserialize_with = "config::shape")]
    pub access_log: Option<AccessLogOption>,

    /// `admin` in the file.
    #[arg(skip)]
    #[serde(deserialize_with = "config::text")]
    pub admin: Option<hostkit::admin::AdminAddress>,
    /// `drain-timeout` in the file.
    #[arg(skip)]
    #[serde(deserialize_with = "config::duration")]
    pub drain_timeout: Option<Duration>,
    /// `routes`: what some paths need. Only in the file.
    #[arg(skip)]
    pub routes: Option<Vec<RouteEntry>>,
    /// `open`: paths that need no key. Only in the file.
    #[arg(skip)]
    #[serde(deserialize_with = "config::list")]
    pub open: Option<Vec<String>>,
    /// `host-param`: the query parameter that names the host that a request is about. Only in the file.
    #[arg(skip)]
    #[serde(alias = "host_param")]
    pub host_param: Option<String>,
    /// `cors`: what our own answers say to browsers. Only in the file.
    #[arg(skip)]
    pub cors: Option<BTreeMap<String, CorsValue>>,
}

/// Networks that are trusted; a type of its own, since clap would take a list for a flag that is repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(pub Vec<IpNet>);

impl Tool for Args {
    const NAME: &'static str = "authproxy";
    const EXCLUSIVE: &[&[&str]] = &[config::ENGINES];
    fn common(&self) -> &Common {
        &self.common
    }
}
