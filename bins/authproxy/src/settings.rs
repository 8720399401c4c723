//! The validated settings of the proxy. They are declared in `cli`; the keys that only the file has in `config`.

mod address;
mod backend;
mod live;
mod rules;
mod secret;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use address::{ListenAddress, TrustedNetwork, UpstreamAddress, parse_permissions_url};
pub(crate) use live::{LiveSettings, SettingsView};
pub(crate) use summary::describe_effects;
pub(crate) use validate::resolve_rules;
pub(crate) use validate::{LoadedSettings, load, restarts};

use hostkit::admin::AdminAddress;

use hyper::header::{HeaderMap, HeaderName, HeaderValue, ORIGIN};
use ipnet::IpNet;
use url::Url;

/// All settings. SIGHUP replaces `site`; the rest needs a restart.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Addresses to listen on. `[::]` accepts IPv4 connections too, and is `0.0.0.0` on a host without IPv6.
    pub listen: Vec<SocketAddr>,
    /// The upstream server.
    pub server: UpstreamAddress,
    /// Threads that serve, each with upstream connections of its own.
    pub threads: usize,
    /// Client connections of all threads; more wait in the backlog.
    pub connections: usize,
    /// The permissions backend.
    pub backend: BackendSettings,
    /// The cache of its results.
    pub cache: CacheSettings,
    /// The part of the cache that is shared with other hosts.
    pub memcached: Option<MemcachedSettings>,
    /// Time after the start of a shutdown in which new connections are accepted.
    pub lame_duck: Duration,
    /// Time after that to finish requests.
    pub drain_timeout: Duration,
    /// The admin address.
    pub admin: Option<AdminAddress>,
    /// The format of the access log; none: off.
    pub access_log: Option<AccessLogFormat>,
    /// The settings that SIGHUP replaces.
    pub site: Arc<SiteSettings>,
    /// SHA-256 of every value as it was written, in hex.
    pub hash: String,
}

/// The settings that every request reads, and that can be changed while running.
#[derive(Debug, Clone)]
pub(crate) struct SiteSettings {
    /// Where keys are found.
    pub credentials: KeySources,
    /// The rights that requests need.
    pub rules: AccessRules,
    /// Peers whose `X-Forwarded-*` and `X-Request-Id` are trusted.
    pub trusted: Vec<IpNet>,
    /// Headers, in lower case, that `Connection` may not name, beside those that identify the client; a `*` at the end
    /// matches all with that prefix.
    pub protected: Vec<String>,
    /// The CORS headers of our own responses.
    pub cors: CorsPolicy,
    /// Path that is answered here, without a key: `200 ok`, or `503 draining`.
    pub health_path: Option<String>,
    /// Requests are allowed while the permissions backend is unavailable.
    pub fail_open: bool,
    /// Timeouts of phases.
    pub timeouts: RequestTimeouts,
    /// `--stream-all`: every response is a streaming one from the first byte of its body on.
    pub stream_all: bool,
    /// Bounds of requests.
    pub limits: RequestLimits,
}

/// Where a key is found, and whether it is forwarded.
#[derive(Debug, Clone)]
pub struct KeySources {
    /// The header that holds a key and nothing else.
    pub header: HeaderName,
    /// The query parameter.
    pub parameter: String,
    /// Keys are removed from forwarded requests.
    pub hide: bool,
}

/// The rights that requests need.
#[derive(Debug, Clone)]
pub(crate) struct AccessRules {
    /// Needed for every path without a route, all of them.
    pub rights: Vec<String>,
    /// The longest matching prefix with a matching method decides.
    pub routes: Vec<RouteRule>,
    /// The policy for CORS preflights of paths without a route.
    pub preflight: PreflightPolicy,
    /// The query parameter that names the host that the request is about, instead of the Host header.
    pub host_parameter: Option<String>,
}

/// The rights for the paths below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteRule {
    /// The name in metrics.
    pub name: Arc<str>,
    /// The beginning of the path, up to the end of a segment.
    pub prefix: String,
    /// Methods it is for; empty: all.
    pub methods: Vec<String>,
    /// Rights that are needed, all of them; none: the path needs no key.
    pub rights: Option<Vec<String>>,
    /// The policy for CORS preflights of this path.
    pub preflight: PreflightPolicy,
}

/// The policy for CORS preflights, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum PreflightPolicy {
    /// Require a key, as for every other request
    Off,
    /// Answer here, from `cors` in the file
    Answer,
    /// Forward to the upstream server without a key
    Pass,
}

/// The CORS headers of our own responses.
#[derive(Debug, Clone, Default)]
pub(crate) struct CorsPolicy {
    /// The headers that are the same for every request: `Access-Control-*`, and `Vary` if there are `origins`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// If there are several origins: those, of which a response names the request's.
    pub origins: Vec<HeaderValue>,
}

impl CorsPolicy {
    /// The origin that the response to a request names beside [`CorsPolicy::headers`].
    #[must_use]
    pub(crate) fn origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let own = self.origins.first().and(request.get(ORIGIN))?;
        self.origins.iter().find(|origin| *origin == own).cloned()
    }
}

/// Timeouts of phases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTimeouts {
    /// `--timeout`: for the upstream server to accept a connection, to begin a response, and between two parts of it.
    pub server: Duration,
    /// `--client-timeout`: for the client to send a whole head, between two parts of a body, and to read a response.
    pub client: Duration,
    /// The idle timeout of a connection without a request.
    pub idle: Duration,
    /// `--stream-timeout`: between two parts of a streaming response.
    pub stream: Duration,
}

/// Bounds of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLimits {
    /// The longest head, in bytes: request line and headers, or the trailers of a chunked body.
    pub head: usize,
    /// The longest body, in bytes; none: any length.
    pub body: Option<u64>,
    /// The minimum transfer rate of a body, either way, in bytes per second on average after `--client-timeout`.
    pub rate: u64,
    /// Upstream connections of one thread; as many requests again wait for one, at most for `--timeout`.
    pub server_connections: usize,
}

/// The permissions backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendSettings {
    /// A YAML file, followed as it changes.
    File(PathBuf),
    /// Permissions servers, in the order in which they are tried.
    Servers(Vec<Url>),
    /// A YAML file with their URLs, followed as it changes.
    Liveconf(PathBuf),
}

/// The cache in the process.
#[derive(Debug, Clone, Copy)]
pub struct CacheSettings {
    /// Valid keys, at most; as many unknown keys again.
    pub entries: usize,
    /// Positive TTL, unless the backend sets a shorter one.
    pub allowed: Duration,
    /// Negative TTL.
    pub denied: Duration,
    /// Error TTL: the same key is not looked up again for this long.
    pub error: Duration,
    /// Time after its TTL in which a grant is used while the backend is unavailable.
    pub stale: Duration,
}

/// The part of the cache that is shared with other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemcachedSettings {
    /// memcached servers, as `host:port`.
    pub servers: Vec<String>,
    /// The prefix of every memcached key.
    pub prefix: String,
    /// The secret that signs entries, at least 16 bytes, and after it a second one that is accepted.
    pub secrets: Vec<SigningSecret>,
}

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(pub Vec<u8>);

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The format of the access log, on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessLogFormat {
    /// Text.
    Plain,
    /// One JSON object per line.
    Json,
}

/// The values of `--access-log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AccessLogOption {
    /// Text
    Plain,
    /// One JSON object per line, in logstash v1 shape
    Json,
    /// No access log
    Off,
}

impl SiteSettings {
    /// Whether X-Forwarded-* of this peer are trusted.
    #[must_use]
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|net| net.contains(&peer))
    }
}
