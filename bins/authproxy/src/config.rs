//! The configuration file: the same keys as the flags, and a few that only it has.
//!
//! Owns how values are written in YAML, and which source beats which. What values mean together is `settings`'s.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::str::FromStr;

use clap::ValueEnum as _;
use clap::parser::ValueSource;
use hostkit::Failure;
use hostkit::cli::CommandLine;
use hostkit::config::value;
pub use hostkit::config::value::Scalar;
pub(crate) use hostkit::config::value::{duration, size};
use ipnet::IpNet;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::cli::{Args, Flags, Networks};
use crate::settings::{AccessLogOption, PreflightPolicy};

/// The flags that each name a permissions engine; there is only one.
pub const ENGINES: &[&str] = &["acl-file", "acl-server", "use-liveconf-aclserver"];

/// An entry of `routes`, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RouteEntry {
    /// What metrics call it; the path when nothing is said.
    pub name: Option<String>,
    /// The beginning of the path.
    pub path: String,
    /// Methods it is for; all when nothing is said.
    #[serde(deserialize_with = "list")]
    pub methods: Option<Vec<String>>,
    /// Rights that are needed, all of them.
    #[serde(deserialize_with = "list")]
    pub rights: Option<Vec<String>>,
    /// Nothing is needed.
    pub open: bool,
    /// What becomes of CORS preflights that ask about it; the same as elsewhere when nothing is said.
    #[serde(deserialize_with = "preflight")]
    pub cors_preflight: Option<PreflightPolicy>,
}

/// A value of `cors`, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a text, a number, a boolean or a list")]
pub enum CorsValue {
    /// One.
    One(Scalar),
    /// A list.
    List(Vec<Scalar>),
}

impl CorsValue {
    /// As it stands in a header.
    pub(crate) fn join(&self) -> String {
        match self {
            Self::One(Scalar(text)) => text.clone(),
            Self::List(values) => {
                let texts: Vec<&str> = values.iter().map(|Scalar(text)| text.as_str()).collect();
                texts.join(", ")
            }
        }
    }
}

/// What was said, by whoever has the last word: the command line, then the environment, then the file.
///
/// # Errors
/// The file cannot be read or is wrong (exit 78).
pub fn merged(args: &Args, line: &CommandLine) -> Result<(Flags, bool), Failure> {
    let matches = line.matches();
    let mut file: Flags = hostkit::config::load("authproxy", args.config.as_deref(), None)?;
    let configured = file != Flags::default();
    if hostkit::cli::names_any(ENGINES, matches) {
        file = Flags {
            acl_file: None,
            acl_server: None,
            use_liveconf_aclserver: None,
            ..file
        };
    }
    let given: BTreeSet<&str> = matches
        .ids()
        .map(clap::Id::as_str)
        .filter(|id| matches.value_source(id) != Some(ValueSource::DefaultValue))
        .collect();
    let flags = Flags {
        admin: args.admin.admin.clone(),
        drain_timeout: Some(args.drain.drain_timeout),
        ..args.flags.clone()
    };
    // A default of clap's (booleans, --drain-timeout) stands behind the file.
    macro_rules! choose {
        ($($field:ident),* $(,)?) => {
            Flags {
                $($field: if given.contains(stringify!($field)) {
                    flags.$field
                } else {
                    file.$field.or(flags.$field)
                },)*
            }
        };
    }
    let chosen = choose![
        port,
        listen,
        server,
        right,
        threads,
        acl_file,
        acl_server,
        use_liveconf_aclserver,
        liveconf,
        fail_open,
        cache,
        memcache_servers,
        cache_prefix,
        cache_secret_file,
        cache_entries,
        ttl_allowed,
        ttl_denied,
        ttl_error,
        stale_if_error,
        key_header,
        key_parameter,
        hide_credentials,
        trusted_proxies,
        protected_headers,
        cors_preflight,
        timeout,
        client_timeout,
        idle_timeout,
        stream_timeout,
        stream_all,
        lame_duck,
        max_connections,
        server_connections,
        max_head,
        max_body,
        min_rate,
        health_path,
        access_log,
        admin,
        drain_timeout,
        routes,
        open,
        host_param,
        cors,
    ];
    Ok((chosen, configured))
}

/// Addresses and networks with commas, or `none`.
///
/// # Errors
/// One of them is neither.
pub fn networks(text: &str) -> Result<Networks, String> {
    if text == "none" {
        return Ok(Networks::default());
    }
    let networks: Result<_, _> = text.split(',').map(str::trim).map(network).collect();
    networks.map(Networks)
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse()
        .ok()
        .or_else(|| address(text))
        .ok_or_else(|| format!("{text:?} is no network: write it like 10.0.0.0/8, or an address"))
}

/// What a type makes of a text.
pub(crate) fn text<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    value::parsed(from, |text| {
        text.parse().map_err(|error: T::Err| error.to_string())
    })
}

/// The shape of the access log. `off` is a boolean in YAML.
pub(crate) fn shape<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<AccessLogOption>, D::Error> {
    value::parsed(from, |text| match text {
        "false" => Ok(AccessLogOption::Off),
        text => AccessLogOption::from_str(text, false)
            .map_err(|_| "expected plain, json or off".to_owned()),
    })
}

/// What becomes of CORS preflights. `off` is a boolean in YAML.
pub(crate) fn preflight<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<PreflightPolicy>, D::Error> {
    value::parsed(from, |text| match text {
        "false" => Ok(PreflightPolicy::Off),
        text => PreflightPolicy::from_str(text, false)
            .map_err(|_| "expected off, answer or pass".to_owned()),
    })
}

/// A list of YAML, or what would stand on the command line.
pub(crate) fn list<'de, D, T>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    from.deserialize_any(List)?
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error: T::Err| D::Error::custom(format!("{text:?}: {error}")))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// Networks: a list, or what would stand on the command line.
pub(crate) fn trusted<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Networks>, D::Error> {
    let texts = from.deserialize_any(List)?;
    match texts.as_slice() {
        [] => Ok(Some(Networks::default())),
        texts => networks(&texts.join(","))
            .map(Some)
            .map_err(D::Error::custom),
    }
}

/// A list, or one text with commas.
struct List;

impl<'de> Visitor<'de> for List {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list, or a text with commas")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.split(',').map(|part| part.trim().to_owned()).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(part) = parts.next_element()? {
            list.push(part);
        }
        Ok(list)
    }
}
