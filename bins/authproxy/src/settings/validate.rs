//! From what was said to what is in force: defaults, bounds, and what does not go together.

use std::iter;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hostkit::cli::CommandLine;
use hostkit::{Exit, Failure};
use hyper::header::{self, HeaderName};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{
    AccessLogFormat, AccessLogOption, BackendSettings, CacheSettings, KeySources, ListenAddress,
    RequestLimits, RequestTimeouts, Settings, SiteSettings, UpstreamAddress, engine, rules,
};
use crate::cli::{Args, Flags};
use crate::config;
use crate::headers;
use crate::request_validation;

/// Bounds of `--max-head`, in bytes.
const HEADS: std::ops::RangeInclusive<u64> = 1024..=request_validation::MAX_HEAD as u64;
/// Bounds of `--max-connections` and of `--cache-entries`: what would fit into the memory of any host.
const MOST: u32 = 10_000_000;
/// The networks that are not of the Internet: loopback, RFC 1918, link-local, and those of RFC 4193.
const TRUSTED: &str = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,\
                       fc00::/7,fe80::/10";

/// Settings, and what their reader should know of them.
#[derive(Debug, Clone)]
pub struct LoadedSettings {
    /// The settings.
    pub settings: Settings,
    /// What was said of them, by the names that its writer used.
    flags: Flags,
    /// What is odd, but no reason not to run. Each names its object and the remedy.
    pub warnings: Vec<String>,
}

/// Settles everything.
///
/// # Errors
/// The file is wrong (exit 78); or what was said does not go together: exit 2, or 78 where a file had a say, and with
/// `--check`.
pub fn load(args: &Args, matches: &CommandLine) -> Result<LoadedSettings, Failure> {
    let (flags, configured) = config::merged(args, matches)?;
    let exit = if configured || args.check {
        Exit::CONFIG
    } else {
        Exit::USAGE
    };
    let mut warnings = Vec::new();
    let settings = settle(&flags, args.common.logstash_format, &mut warnings)
        .map_err(|Wrong { what, remedy }| Failure::new(exit, what).remedy(remedy))?;
    Ok(LoadedSettings {
        settings,
        flags,
        warnings,
    })
}

/// What decides about a key: where its grant is found, and what requests need. For `key check`; with `require_rights` every request has to
/// need a right, as for [`load`].
///
/// # Errors
/// What was said does not go together (exit 78).
pub(crate) fn resolve_rules(
    flags: &Flags,
    require_rights: bool,
) -> Result<(BackendSettings, SiteSettings), Failure> {
    let settled = || {
        let site = site(flags, &mut Vec::new())?;
        if require_rights {
            rules::complete(&site.rules)?;
        }
        Ok((engine::engine(flags)?, site))
    };
    settled().map_err(|Wrong { what, remedy }| Failure::new(Exit::CONFIG, what).remedy(remedy))
}

/// What differs between two settings and cannot be changed while running, by the names under which it was said.
#[must_use]
pub fn restarts(before: &LoadedSettings, after: &LoadedSettings) -> Vec<String> {
    /// Whether a part of the settings differs, and which of its names were said otherwise.
    macro_rules! part {
        ($what:expr, $($name:ident),+) => {{
            let what = $what;
            let differs = what(&before.settings) != what(&after.settings);
            let said = [$((stringify!($name), before.flags.$name != after.flags.$name)),+];
            let said = said.into_iter().filter(|(_, differs)| *differs);
            let mut names: Vec<&str> = said.map(|(name, _)| name).collect();
            if names.is_empty() {
                // What it names has changed: the secret in its file.
                names.extend([$(stringify!($name)),+].last());
            }
            differs.then_some(names)
        }};
    }
    let parts = [
        part!(|of: &Settings| format!("{:?}", of.listen), port, listen),
        part!(|of: &Settings| of.server.to_string(), server),
        part!(|of: &Settings| of.threads, threads),
        part!(|of: &Settings| of.connections, max_connections),
        part!(
            |of: &Settings| of.site.limits.server_connections,
            server_connections
        ),
        part!(
            |of: &Settings| format!("{:?}", of.engine),
            acl_file,
            acl_server,
            use_liveconf_aclserver,
            liveconf
        ),
        part!(
            |of: &Settings| format!("{:?}", of.cache),
            cache_entries,
            ttl_allowed,
            ttl_denied,
            ttl_error,
            stale_if_error
        ),
        part!(
            |of: &Settings| of.shared.clone(),
            cache,
            memcache_servers,
            cache_prefix,
            cache_secret_file
        ),
        part!(|of: &Settings| of.lame_duck, lame_duck),
        part!(|of: &Settings| of.drain_timeout, drain_timeout),
        part!(|of: &Settings| of.admin.clone(), admin),
        part!(|of: &Settings| of.access_log, access_log),
    ];
    let names = parts.into_iter().flatten().flatten();
    names.map(|name| name.replace('_', "-")).collect()
}

/// What is wrong, and what to do about it.
pub(super) struct Wrong {
    what: String,
    remedy: String,
}

pub(super) fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    Wrong {
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn settle(flags: &Flags, logstash: bool, warnings: &mut Vec<String>) -> Result<Settings, Wrong> {
    let hash = Sha256::digest(format!("{flags:?}"));
    let site = site(flags, warnings)?;
    rules::complete(&site.rules)?;
    let server = flags.server.clone().ok_or_else(|| {
        wrong(
            "nothing says where requests go",
            "give --server=http://localhost:PORT, or unix:PATH",
        )
    })?;
    let listen = listen(flags.port, flags.listen.as_deref())?;
    if let Some(same) = listen.iter().find(|address| is_itself(&server, address)) {
        return Err(wrong(
            format!("--server={server} is where authproxy itself listens ({same})"),
            "give the port of the server",
        ));
    }
    Ok(Settings {
        listen,
        server,
        threads: threads(flags.threads.unwrap_or(1).into(), warnings),
        connections: count("--max-connections", flags.max_connections, 20_000)?,
        engine: engine::engine(flags)?,
        cache: CacheSettings {
            entries: count("--cache-entries", flags.cache_entries, 10_000)?,
            allowed: flags.ttl_allowed.unwrap_or(Duration::from_secs(60)),
            denied: flags.ttl_denied.unwrap_or(Duration::from_secs(10)),
            error: flags.ttl_error.unwrap_or(Duration::from_secs(1)),
            stale: flags.stale_if_error.unwrap_or(Duration::from_secs(600)),
        },
        shared: engine::shared(flags, warnings)?,
        lame_duck: flags.lame_duck.unwrap_or(Duration::from_secs(3)),
        drain_timeout: flags.drain_timeout.unwrap_or(Duration::from_secs(10)),
        admin: flags.admin.clone(),
        access_log: match flags.access_log {
            Some(AccessLogOption::Off) => None,
            Some(AccessLogOption::Json) => Some(AccessLogFormat::Json),
            None if logstash => Some(AccessLogFormat::Json),
            Some(AccessLogOption::Plain) | None => Some(AccessLogFormat::Plain),
        },
        site: Arc::new(site),
        hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

fn site(flags: &Flags, warnings: &mut Vec<String>) -> Result<SiteSettings, Wrong> {
    let fail_open = flags.fail_open.unwrap_or_default();
    if fail_open {
        warnings.push("--fail-open is on: every key passes while the engine is away".to_owned());
    }
    let cors = rules::cors(flags)?;
    Ok(SiteSettings {
        credentials: credentials(flags)?,
        rules: rules::rules(flags, &cors)?,
        trusted: match &flags.trusted_proxies {
            Some(networks) => networks.0.iter().map(IpNet::trunc).collect(),
            None => TRUSTED
                .split(',')
                .filter_map(|net| net.parse().ok())
                .collect(),
        },
        protected: protected(flags.protected_headers.as_deref().unwrap_or_default())?,
        cors,
        health_path: match &flags.health_path {
            Some(path) => Some(rules::health(path)?),
            None => None,
        },
        fail_open,
        timeouts: RequestTimeouts {
            server: span("--timeout", flags.timeout, 15)?,
            client: span("--client-timeout", flags.client_timeout, 15)?,
            idle: span("--idle-timeout", flags.idle_timeout, 60)?,
            stream: span("--stream-timeout", flags.stream_timeout, 3600)?,
        },
        stream_all: flags.stream_all.unwrap_or_default(),
        limits: RequestLimits {
            head: head(flags.max_head)?,
            body: flags.max_body,
            rate: flags.min_rate.unwrap_or(500),
            server_connections: count("--server-connections", flags.server_connections, 1024)?,
        },
    })
}

fn listen(
    port: Option<u16>,
    addresses: Option<&[ListenAddress]>,
) -> Result<Vec<SocketAddr>, Wrong> {
    let port = port.filter(|port| *port != 0);
    let no_port = || {
        wrong(
            "nothing says which port to listen on",
            "give --port={{thermos.ports[http]}}, or --listen=ADDR:PORT",
        )
    };
    let everywhere = [ListenAddress {
        ip: Ipv6Addr::UNSPECIFIED.into(),
        port: None,
    }];
    let mut sockets = Vec::new();
    for ListenAddress { ip, port: own } in addresses.unwrap_or(&everywhere) {
        let port = own.or(port).ok_or_else(no_port)?;
        let address = SocketAddr::new(*ip, port);
        if sockets.contains(&address) {
            return Err(wrong(
                format!("--listen names {address} twice"),
                "leave one of them",
            ));
        }
        sockets.push(address);
    }
    if sockets.is_empty() {
        return Err(wrong(
            "--listen is empty",
            "name an address, or leave it out",
        ));
    }
    Ok(sockets)
}

/// Whether requests to a server would come back here.
fn is_itself(server: &UpstreamAddress, listen: &SocketAddr) -> bool {
    let UpstreamAddress::Tcp { host, port } = server else {
        return false;
    };
    let (ip, loopback) = match host.parse::<IpAddr>() {
        Ok(ip) => (Some(ip), ip.is_loopback()),
        Err(_) => (None, host == "localhost"),
    };
    let all = listen.ip().is_unspecified() || (ip.is_none() && listen.ip().is_loopback());
    *port == listen.port() && (ip == Some(listen.ip()) || (loopback && all))
}

/// No more threads than processors: the CPU quota of the job counts, too.
fn threads(asked: usize, warnings: &mut Vec<String>) -> usize {
    let most = std::thread::available_parallelism().map_or(1, Into::into);
    if asked > most {
        warnings.push(format!(
            "--threads={asked} is more than this job's share of processors: {most} will serve"
        ));
    }
    asked.min(most)
}

fn credentials(flags: &Flags) -> Result<KeySources, Wrong> {
    let header = flags
        .key_header
        .clone()
        .unwrap_or(HeaderName::from_static("x-api-key"));
    let reserved = [
        header::ACCESS_CONTROL_REQUEST_HEADERS,
        header::ACCESS_CONTROL_REQUEST_METHOD,
        header::AUTHORIZATION,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::ORIGIN,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    // Some servers take `_` for `-`.
    let name = header.as_str().replace('_', "-");
    if reserved.iter().any(|reserved| *reserved == *name)
        || headers::is_identity_header(&name)
        || headers::is_method_override_header(&name)
    {
        return Err(wrong(
            format!("--key-header={header} means something else"),
            "choose a header of its own; Authorization is looked at in any case",
        ));
    }
    let parameter = |flag: &str, name: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err(wrong(
                format!("{flag}={name:?} is no name of a query parameter"),
                "use letters, digits and -._~",
            ));
        }
        Ok(name.to_owned())
    };
    let key = flags.key_parameter.as_deref().unwrap_or("apikey");
    let key = parameter("--key-parameter", key)?;
    if let Some(name) = &flags.host_param
        && parameter("host-param", name)? == key
    {
        return Err(wrong(
            format!("host-param: {name} is the parameter of the key"),
            "choose another name for one of them (--key-parameter)",
        ));
    }
    Ok(KeySources {
        header,
        parameter: key,
        hide: flags.hide_credentials.unwrap_or_default(),
    })
}

/// Headers that proxies in front set.
fn protected(names: &[String]) -> Result<Vec<String>, Wrong> {
    let name = |name: &String| {
        let start = name.strip_suffix('*').unwrap_or(name);
        match HeaderName::try_from(start) {
            Ok(start) if !start.as_str().contains('*') => Ok(name.to_ascii_lowercase()),
            _ => Err(wrong(
                format!("--protected-headers: {name:?} is not the name of a header"),
                "write X-Tenant, or X-Tenant-* for all that begin so",
            )),
        }
    };
    // Terminators of TLS name the client's certificate so.
    iter::once(Ok("x-ssl-*".to_owned()))
        .chain(names.iter().map(name))
        .collect()
}

fn span(flag: &str, asked: Option<Duration>, default: u64) -> Result<Duration, Wrong> {
    match asked {
        Some(Duration::ZERO) => Err(wrong(
            format!("{flag}=0 gives nobody a chance"),
            "give it a second at least",
        )),
        asked => Ok(asked.unwrap_or(Duration::from_secs(default))),
    }
}

fn count(flag: &str, asked: Option<u32>, default: u32) -> Result<usize, Wrong> {
    match asked.unwrap_or(default) {
        count @ 1..=MOST => Ok(count as usize),
        count => Err(wrong(
            format!("{flag}={count} is out of bounds"),
            format!("give 1 to {MOST}"),
        )),
    }
}

fn head(asked: Option<u64>) -> Result<usize, Wrong> {
    let bytes = asked.unwrap_or(16 << 10);
    match usize::try_from(bytes) {
        Ok(head) if HEADS.contains(&bytes) => Ok(head),
        _ => Err(wrong(
            format!("--max-head={bytes} is out of bounds"),
            "give 1K to 64K",
        )),
    }
}
