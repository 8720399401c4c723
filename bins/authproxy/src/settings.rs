//! What the proxy runs with, valid as a whole.
//!
//! Owns the meaning of every setting. Flags are `cli`'s, the file's keys are `config`'s.

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

pub use address::{ListenAddress, TrustedNetwork, UpstreamAddress};
pub use live::{LiveSettings, SettingsView};
pub use summary::describe_effects;
pub(crate) use validate::resolve_rules;
pub use validate::{LoadedSettings, load, restarts};

use hostkit::admin::AdminAddress;

use hyper::header::{HeaderMap, HeaderName, HeaderValue, ORIGIN};
use ipnet::IpNet;
use url::Url;

/// Everything. What `site` holds follows SIGHUP; the rest needs a restart.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where clients connect. `[::]` takes IPv4 connections too, and is `0.0.0.0` on a host without IPv6.
    pub listen: Vec<SocketAddr>,
    /// The server that requests are passed on to.
    pub server: UpstreamAddress,
    /// Threads that serve, each with connections to the server of its own.
    pub threads: usize,
    /// Connections of clients at once, of all threads; more wait in the backlog.
    pub connections: usize,
    /// Who knows the keys.
    pub backend: BackendSettings,
    /// What is remembered of its answers.
    pub cache: CacheSettings,
    /// What is shared of them with other hosts, if anything is.
    pub memcached: Option<MemcachedSettings>,
    /// How long new connections are still taken after being told to stop.
    pub lame_duck: Duration,
    /// Longest time to finish what was begun after that.
    pub drain_timeout: Duration,
    /// Where it can be asked, if anywhere.
    pub admin: Option<AdminAddress>,
    /// The shape of the access log, if there is one.
    pub access_log: Option<AccessLogFormat>,
    /// What follows SIGHUP.
    pub site: Arc<SiteSettings>,
    /// SHA-256 of all that was said, in hex.
    pub hash: String,
}

/// What is looked at for every request, and can be changed while running.
#[derive(Debug, Clone)]
pub struct SiteSettings {
    /// Where keys are.
    pub credentials: KeySources,
    /// What needs which right.
    pub rules: AccessRules,
    /// Whose `X-Forwarded-*` and `X-Request-Id` are believed.
    pub trusted: Vec<IpNet>,
    /// Headers, in lower case, that `Connection` may not name, beside those that identify the client; all that begin
    /// so where a `*` is the end.
    pub protected: Vec<String>,
    /// What our own answers tell browsers.
    pub cors: CorsPolicy,
    /// A path that is answered here, without a key: `200 ok`, or `503 draining`.
    pub health_path: Option<String>,
    /// Requests that nobody can judge pass.
    pub fail_open: bool,
    /// Deadlines of phases.
    pub timeouts: RequestTimeouts,
    /// `--stream-all`: every response is a streaming one from the first byte of its body on.
    pub stream_all: bool,
    /// Bounds of requests.
    pub limits: RequestLimits,
}

/// Where a key is looked for, and what the server sees of it.
#[derive(Debug, Clone)]
pub struct KeySources {
    /// The header that holds a key and nothing else.
    pub header: HeaderName,
    /// The query parameter.
    pub parameter: String,
    /// The server does not get the key.
    pub hide: bool,
}

/// What needs which right.
#[derive(Debug, Clone)]
pub struct AccessRules {
    /// Needed for everything that no route says otherwise about; all of them.
    pub rights: Vec<String>,
    /// The longest prefix that fits, with a method that fits, decides.
    pub routes: Vec<RouteRule>,
    /// What becomes of CORS preflights that no route says otherwise about.
    pub preflight: PreflightPolicy,
    /// The query parameter that names the host that the request is about, instead of the Host header.
    pub host_parameter: Option<String>,
}

/// What some requests need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    /// What metrics call it.
    pub name: Arc<str>,
    /// The beginning of the path, at the border of a segment.
    pub prefix: String,
    /// Methods it is for; empty: all.
    pub methods: Vec<String>,
    /// What is needed; all of them. None: the path is open, and needs no key.
    pub rights: Option<Vec<String>>,
    /// What becomes of CORS preflights that ask about it.
    pub preflight: PreflightPolicy,
}

/// What becomes of a CORS preflight, the strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum PreflightPolicy {
    /// It needs a key, as every other request does.
    Off,
    /// It is answered here, from `cors`.
    Answer,
    /// It goes on to the server without a key.
    Pass,
}

/// What our own answers tell browsers.
#[derive(Debug, Clone, Default)]
pub struct CorsPolicy {
    /// The headers that are the same for every request: `Access-Control-*`, and `Vary` if there are `origins`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// If there are several origins: those, of which an answer names the request's.
    pub origins: Vec<HeaderValue>,
}

impl CorsPolicy {
    /// The origin that the answer to a request names beside [`CorsPolicy::headers`].
    #[must_use]
    pub fn origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let own = self.origins.first().and(request.get(ORIGIN))?;
        self.origins.iter().find(|origin| *origin == own).cloned()
    }
}

/// Deadlines of phases.
#[derive(Debug, Clone, Copy)]
pub struct RequestTimeouts {
    /// `--timeout`: the server has to take the connection, begin its answer, and go on with it, within this time each.
    pub server: Duration,
    /// `--client-timeout`: the client has to send a whole head, the next bytes of a body, and to read what there is for
    /// it, within this time each.
    pub client: Duration,
    /// How long a connection without a request is kept.
    pub idle: Duration,
    /// `--stream-timeout`: the longest silence of the server within a streaming response.
    pub stream: Duration,
}

/// Bounds of requests.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// The longest head, in bytes: request line and headers, or the trailers of a chunked body.
    pub head: usize,
    /// The longest body, in bytes; none: any length.
    pub body: Option<u64>,
    /// The slowest body, either way, in bytes per second on average, once `--client-timeout` is over.
    pub rate: u64,
    /// Connections to the server of one thread; more requests wait for one, at most `--timeout` and as many as these.
    pub server_connections: usize,
}

/// Who knows the keys.
#[derive(Debug, Clone)]
pub enum BackendSettings {
    /// A YAML file, followed as it changes.
    File(PathBuf),
    /// Permissions engines, in the order in which they are asked.
    Servers(Vec<Url>),
    /// A YAML file that says where they are, followed as it changes.
    Liveconf(PathBuf),
}

/// What is remembered in the process.
#[derive(Debug, Clone, Copy)]
pub struct CacheSettings {
    /// Keys that are known, at most; as many unknown ones on top.
    pub entries: usize,
    /// How long a grant is believed, unless the engine says less.
    pub allowed: Duration,
    /// How long "nobody has this key" is believed.
    pub denied: Duration,
    /// How long an engine that failed is not asked about the same key again.
    pub error: Duration,
    /// How much longer a grant is believed while the engine fails.
    pub stale: Duration,
}

/// What is shared with other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemcachedSettings {
    /// memcached servers, as `host:port`.
    pub servers: Vec<String>,
    /// The beginning of every memcached key.
    pub prefix: String,
    /// What entries are signed with, at least 16 bytes, and after it what else they may be signed with.
    pub secrets: Vec<SigningSecret>,
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(pub Vec<u8>);

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The shape of the access log, on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// For people.
    Plain,
    /// One logstash object a line.
    Json,
}

/// What `--access-log` can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLogOption {
    /// Lines for people.
    Plain,
    /// One logstash object a line.
    Json,
    /// None.
    Off,
}

impl SiteSettings {
    /// Whether an address may say who the client is.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|net| net.contains(&peer))
    }
}
