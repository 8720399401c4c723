//! The command line. Every setting is declared here once: its flag, its variable, its key in the configuration file, its
//! default, its parser, and whether SIGHUP changes it.
//!
//! What values mean together is `settings`'s; the keys that only a file has are `config`'s.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, value_parser};
use hostkit::admin::AdminFlags;
use hostkit::cli::{AT_START, Common, RELOADABLE, Tool};
use hostkit::shutdown::DrainFlags;
use hostkit::units::{parse_duration, parse_size, parse_timeout};
use hyper::header::HeaderName;
use url::Url;

use crate::request_validation;
use crate::settings::{
    AccessLogOption, ListenAddress, PreflightPolicy, TrustedNetwork, UpstreamAddress,
    parse_permissions_url,
};

/// Bounds of `--max-head`, in bytes.
const HEAD_BOUNDS: std::ops::RangeInclusive<u64> = 1024..=request_validation::MAX_HEAD as u64;
/// What would fit into the memory of any host.
const MAX_COUNT: i64 = 10_000_000;
/// The networks that are not of the Internet: loopback, RFC 1918, link-local, and those of RFC 4193.
const PRIVATE_NETWORKS: &str = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,\
                                fc00::/7,fe80::/10";

/// The flags that each name a permissions backend; there is only one.
const BACKENDS: &[&str] = &["acl-file", "acl-server", "use-liveconf-aclserver"];

/// Checks the API key of every request, and forwards the request to the upstream server.
///
/// A key comes in the header X-API-Key, as `Authorization: Bearer KEY` or `ApiKey KEY`, or in the query as apikey=KEY.
/// The permissions backend, named by --acl-file, --acl-server or --use-liveconf-aclserver, has the rights of each key.
/// Results are cached in the process and, with --cache, in memcached. A request without a key is answered with 401, one
/// whose key lacks a right with 403, and with 503 while the backend is unavailable.
///
/// Every option but --config, --check and those of logging is also a key of the configuration file, without the hyphens
/// in front. A flag overrides the environment, which overrides the file.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Read this file instead of /etc/hostkit/authproxy.yaml and authproxy.d/*.yaml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Validate the configuration and the ACL file, print every setting and its origin, and exit
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) proxy: ProxyFlags,
    #[command(flatten)]
    pub(crate) admin: AdminFlags,
    #[command(flatten)]
    pub(crate) drain: DrainFlags,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// What it does instead of proxying.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Verb {
    /// Create, list, rotate, revoke, hash or check API keys
    #[command(subcommand)]
    Key(crate::key::KeyVerb),
    /// Serve an ACL file to the authproxies of other hosts
    ServeAcl(crate::serve_acl::ServeAcl),
}

/// The settings of the proxy.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProxyFlags {
    /// Port that clients connect to: `{{thermos.ports[http]}}`
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..), group = AT_START)]
    pub(crate) port: Option<u16>,
    /// Addresses to listen on: ADDR, with --port, or ADDR:PORT. Repeatable, or with commas; `::` is every address, IPv4
    /// and IPv6
    #[arg(long, value_name = "ADDR", value_delimiter = ',', default_value = "::", group = AT_START)]
    pub(crate) listen: Vec<ListenAddress>,
    /// Upstream server: http://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL", group = AT_START)]
    pub(crate) server: Option<UpstreamAddress>,
    /// Rights that a key must have, all of them. Repeatable, or with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', group = RELOADABLE)]
    pub(crate) right: Vec<String>,
    /// Threads that serve requests; never more than the CPU quota of the job allows
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u16).range(1..), group = AT_START,
          hide_short_help = true)]
    pub(crate) threads: u16,
    /// Path that is answered here, without a key: `ok`, or 503 during shutdown
    #[arg(long, value_name = "PATH", group = RELOADABLE)]
    pub(crate) health_path: Option<String>,
    /// One line per request on stderr; by default plain, or json with --logstash-format
    #[arg(long, value_name = "FORMAT", group = AT_START)]
    pub(crate) access_log: Option<AccessLogOption>,

    /// YAML file of keys, followed as it changes
    #[arg(long, value_name = "FILE", help_heading = "Permissions backend", group = AT_START)]
    pub(crate) acl_file: Option<PathBuf>,
    /// Permissions servers (http, https, unix:/PATH), tried in this order. Repeatable, or with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', value_parser = parse_permissions_url,
          help_heading = "Permissions backend", group = AT_START)]
    pub(crate) acl_server: Vec<Url>,
    /// Use the permissions servers under `aclserver` in the --liveconf file, followed as it changes
    #[arg(long, help_heading = "Permissions backend", group = AT_START)]
    pub(crate) use_liveconf_aclserver: bool,
    /// Live configuration of this host
    #[arg(long, value_name = "FILE", default_value = "/etc/hostkit/liveconf.yaml", help_heading = "Permissions backend",
          group = AT_START, hide_short_help = true)]
    pub(crate) liveconf: PathBuf,
    /// Allow any key while the permissions backend cannot be queried; such requests are marked with `X-Auth-Fail-Open: 1`
    #[arg(long, help_heading = "Permissions backend", group = RELOADABLE)]
    pub(crate) fail_open: bool,

    /// Share cached permissions with other hosts, over --memcache-servers
    #[arg(long, help_heading = "Cache", group = AT_START)]
    pub(crate) cache: bool,
    /// memcached servers, HOST:PORT with commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Cache", group = AT_START)]
    pub(crate) memcache_servers: Vec<String>,
    /// Prefix of every memcached key
    #[arg(long, value_name = "TEXT", default_value = "authproxy", help_heading = "Cache", group = AT_START,
          hide_short_help = true)]
    pub(crate) cache_prefix: String,
    /// Secret that signs entries in memcached, the same on all hosts: at least 16 bytes. Without it memcached is not used
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SECRET_FILE, help_heading = "Cache", group = AT_START,
          hide_short_help = true)]
    pub(crate) cache_secret_file: PathBuf,
    /// Valid keys cached in the process, and as many unknown keys
    #[arg(long, value_name = "N", default_value = "10000", value_parser = value_parser!(u32).range(1..=MAX_COUNT),
          help_heading = "Cache", group = AT_START, hide_short_help = true)]
    pub(crate) cache_entries: u32,
    /// Cache a valid key for this long, unless the backend sets a shorter time
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration, help_heading = "Cache",
          group = AT_START)]
    pub(crate) ttl_allowed: Duration,
    /// Cache an unknown key for this long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help_heading = "Cache",
          group = AT_START)]
    pub(crate) ttl_denied: Duration,
    /// Wait this long after a failure of the backend before the same key is looked up again
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration, help_heading = "Cache",
          group = AT_START, hide_short_help = true)]
    pub(crate) ttl_error: Duration,
    /// Use an expired result of a valid key for this long while the backend is unavailable
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration, help_heading = "Cache",
          group = AT_START)]
    pub(crate) stale_if_error: Duration,

    /// Header that holds a key and nothing else
    #[arg(long, value_name = "NAME", default_value = "x-api-key", help_heading = "Keys", group = RELOADABLE,
          hide_short_help = true)]
    pub(crate) key_header: HeaderName,
    /// Query parameter that holds a key
    #[arg(long, value_name = "NAME", default_value = "apikey", help_heading = "Keys", group = RELOADABLE,
          hide_short_help = true)]
    pub(crate) key_parameter: String,
    /// Remove keys from forwarded requests
    #[arg(long, help_heading = "Keys", group = RELOADABLE)]
    pub(crate) hide_credentials: bool,
    /// Peers whose X-Forwarded-* and X-Request-Id are trusted: addresses or networks, with commas; or `none`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = PRIVATE_NETWORKS, help_heading = "Keys",
          group = RELOADABLE, hide_short_help = true)]
    pub(crate) trusted_proxies: Vec<TrustedNetwork>,
    /// Headers that proxies in front set, besides X-SSL-* and X-Forwarded-*: a Connection header that names one is
    /// answered with 400. With commas; `*` at the end matches any rest
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Keys", group = RELOADABLE,
          hide_short_help = true)]
    pub(crate) protected_headers: Vec<String>,
    /// Handling of CORS preflights, which carry no key; by default answer if the file has `cors`, else off
    #[arg(long, value_name = "MODE", help_heading = "Keys", group = RELOADABLE, hide_short_help = true)]
    pub(crate) cors_preflight: Option<PreflightPolicy>,

    /// Timeout of the upstream server: to accept a connection, to begin a response, and between two parts of it
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_timeout, help_heading = "Timeouts",
          group = RELOADABLE)]
    pub(crate) timeout: Duration,
    /// Timeout of the client: to send a whole head, between two parts of a body, and to read a response
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_timeout, help_heading = "Timeouts",
          group = RELOADABLE)]
    pub(crate) client_timeout: Duration,
    /// Idle timeout of a connection without a request
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_timeout, help_heading = "Timeouts",
          group = RELOADABLE)]
    pub(crate) idle_timeout: Duration,
    /// Timeout between two parts of a streaming response: text/event-stream, and every response with --stream-all
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_timeout, help_heading = "Timeouts",
          group = RELOADABLE, hide_short_help = true)]
    pub(crate) stream_timeout: Duration,
    /// Treat every response as a streaming one from the first byte of its body on
    #[arg(long, help_heading = "Timeouts", group = RELOADABLE, hide_short_help = true)]
    pub(crate) stream_all: bool,
    /// Accept new connections for this long after a shutdown begins, while the health path answers 503
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration, help_heading = "Timeouts",
          group = AT_START, hide_short_help = true)]
    pub(crate) lame_duck: Duration,

    /// Client connections at once; more wait in the backlog
    #[arg(long, value_name = "N", default_value = "20000", value_parser = value_parser!(u32).range(1..=MAX_COUNT),
          help_heading = "Limits", group = AT_START, hide_short_help = true)]
    pub(crate) max_connections: u32,
    /// Upstream connections per thread, shared fairly between keys, and length of the queue for them. If it is full:
    /// 503; for a key that fills half of it: 429
    #[arg(long, value_name = "N", default_value = "1024", value_parser = value_parser!(u32).range(1..=MAX_COUNT),
          help_heading = "Limits", group = AT_START, hide_short_help = true)]
    pub(crate) server_connections: u32,
    /// Maximum size of a request head, 1K to 64K
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = parse_head_size, help_heading = "Limits",
          group = RELOADABLE, hide_short_help = true)]
    pub(crate) max_head: u64,
    /// Maximum size of a request body; unlimited by default
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Limits", group = RELOADABLE)]
    pub(crate) max_body: Option<u64>,
    /// Minimum transfer rate of a body, either way, in bytes per second and after --client-timeout; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "500", value_parser = parse_size, help_heading = "Limits",
          group = RELOADABLE, hide_short_help = true)]
    pub(crate) min_rate: u64,
}

/// Where the secret is by default: only there may it be missing.
pub(crate) const DEFAULT_SECRET_FILE: &str = "/etc/hostkit/authproxy.secret";

fn parse_head_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if HEAD_BOUNDS.contains(&size) => Ok(size),
        _ => Err("give 1K to 64K".to_owned()),
    }
}

impl Tool for Args {
    const NAME: &'static str = "authproxy";
    const EXCLUSIVE: &[&[&str]] = &[BACKENDS];
    fn common(&self) -> &Common {
        &self.common
    }
}
