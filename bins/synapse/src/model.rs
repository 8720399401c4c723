//! What watchers find and everything behind them works on: backends, and what was refused as one.
//!
//! Bytes from a registry are hostile. They become a [`Backend`] only through [`Backend::new`], which lets no byte
//! through that could end a line or a word of HAProxy's configuration or of its runtime commands.

mod shared;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use shared::{Rare, Rarely, Source};

/// One server that a service may send requests to, whatever found it.
///
/// Its identity is the endpoint, `host` and `port`: two that share it are one backend, and the newer (greater `id`)
/// stands for both. Whoever works with backends shares them: from the watcher to the roster it is one allocation, unless
/// something on the way makes another one of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backend {
    /// A DNS name or a literal IPv4 or IPv6 address, the latter without brackets.
    pub host: Arc<str>,
    /// TCP port, never 0.
    pub port: u16,
    /// The sequence number of the znode: grows with every registration below one path.
    pub id: Option<u64>,
    /// The Aurora instance number.
    pub shard: Option<u32>,
    /// Relative weight, 0 to 256 as HAProxy has it; `None` is HAProxy's default.
    pub weight: Option<u16>,
    /// What most backends do not have.
    pub rare: Rarely,
    /// Where it was found: a znode's path, a file, `default_servers`.
    pub source: Source,
}

impl Backend {
    /// A backend at an endpoint.
    ///
    /// # Errors
    /// The port is 0, or the host is not a DNS name or an address.
    pub fn new(host: &str, port: u16, source: impl Into<Source>) -> Result<Self, Reject> {
        let source = source.into();
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if port == 0 {
            return Err(Reject::new(source, Reason::Port, "port 0"));
        }
        if !safe_host(host) {
            return Err(Reject::new(source, Reason::Host, shown(host)));
        }
        Ok(Self {
            host: host.into(),
            port,
            id: None,
            shard: None,
            weight: None,
            rare: Rarely::default(),
            source,
        })
    }

    /// Its name, when there is one: what was registered, or the Aurora instance number, as Synapse does.
    #[must_use]
    pub fn name(&self) -> Option<Cow<'_, str>> {
        let registered = self.rare.name.as_deref().map(Cow::Borrowed);
        registered.or_else(|| Some(Cow::Owned(self.shard?.to_string())))
    }

    /// `host:port`, with an IPv6 address in brackets (RFC 3986 section 3.2.2).
    #[must_use]
    pub fn endpoint(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A registration that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Where it was found.
    pub source: String,
    /// The machine word for the reason, and the label of the metric.
    pub reason: Reason,
    /// What a person needs beside the word; printable.
    pub detail: String,
}

impl Reject {
    /// A refusal. Control characters in `detail` are escaped, and it is cut at 200 characters.
    #[must_use]
    pub fn new(source: impl Into<String>, reason: Reason, detail: impl AsRef<str>) -> Self {
        Self {
            source: source.into(),
            reason,
            detail: shown(detail.as_ref()),
        }
    }
}

/// Why a registration is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The payload is not what the format says: no JSON, no object, wrong types, not UTF-8.
    Malformed,
    /// The payload is larger than any registration.
    Oversized,
    /// The registry does not let us read it.
    Unreadable,
    /// The port is missing, 0, or not a port.
    Port,
    /// The host is not a DNS name or an address.
    Host,
    /// Its status is not ALIVE.
    Status,
    /// It has no endpoint of the configured name.
    Endpoint,
    /// A field other than the host holds what HAProxy's configuration must not.
    Unsafe,
    /// Another registration of the same endpoint is newer.
    Duplicate,
    /// A label filter excludes it.
    Label,
    /// It is not the leader.
    Leader,
    /// Its host name does not resolve.
    Unresolved,
    /// The service has no room for more.
    Full,
}

impl Reason {
    /// The word, as metrics and JSON have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Oversized => "oversized",
            Self::Unreadable => "unreadable",
            Self::Port => "port",
            Self::Host => "host",
            Self::Status => "status",
            Self::Endpoint => "endpoint",
            Self::Unsafe => "unsafe",
            Self::Duplicate => "duplicate",
            Self::Label => "label",
            Self::Leader => "leader",
            Self::Unresolved => "unresolved",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a watcher knows of a service at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovered {
    /// What it found, in no order; endpoints may repeat.
    pub backends: Vec<Arc<Backend>>,
    /// What it refused.
    pub rejects: Vec<Reject>,
    /// Since boot, when the source last confirmed this; `None` before the first answer, when `backends` means nothing.
    pub synced: Option<Duration>,
    /// Whether a part of the source, one of several, has never answered: who is found there is not known yet.
    pub partial: bool,
    /// What is wrong with the source now; what it said before still stands.
    pub trouble: Option<String>,
    /// The job behind the service, where the source knows it.
    pub job: Option<Job>,
    /// Generator configuration that the registry holds for the service (the data of Synapse's
    /// `generator_config_path`), as JSON text.
    pub generator_config: Option<String>,
}

impl Discovered {
    /// Takes over from `before` what is the same, so that it is one allocation wherever it is kept.
    pub fn share(&mut self, before: &Self) {
        let known: HashSet<&Arc<Backend>> = before.backends.iter().collect();
        for backend in &mut self.backends {
            if let Some(same) = known.get(backend) {
                *backend = Arc::clone(same);
            }
        }
    }
}

/// A job key, and what metrics are tagged with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Job {
    /// The cluster, from the configuration: paths do not carry it.
    pub cluster: Option<String>,
    /// The role the job runs as.
    pub role: String,
    /// prod, staging, devel, ...
    pub environment: String,
    /// The job's name.
    pub name: String,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = self.cluster.as_deref().unwrap_or("?");
        write!(
            f,
            "{cluster}/{}/{}/{}",
            self.role, self.environment, self.name
        )
    }
}

/// Whether `host` can stand in a server line: a literal address, or letters, digits, `-`, `_` and `.` as DNS has them
/// (RFC 1123 section 2.1), of at most 253 bytes.
#[must_use]
pub fn safe_host(host: &str) -> bool {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    (1..=253).contains(&host.len())
        && host.bytes().all(allowed)
        && host.as_bytes()[0].is_ascii_alphanumeric()
        && !host.contains("..")
}

/// Whether `name` can be part of an HAProxy proxy or server name: letters, digits and `-_.:`, of at most 128 bytes.
#[must_use]
pub fn safe_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.:".contains(&c))
}

/// Whether registered server options can stand in a server line: printable ASCII words of a charset that cannot quote,
/// comment, escape, expand or end the line; of at most 512 bytes.
#[must_use]
pub fn safe_options(options: &str) -> bool {
    options.len() <= 512
        && options
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b" -_.:/,@=()+".contains(&c))
}

/// The text with control characters escaped, cut at 200 characters.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(200) {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
