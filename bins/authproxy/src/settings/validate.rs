//! From the flags, with the file below them, to valid settings: bounds, and values that contradict one another.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hostkit::cli::{CommandLine, FileLayer, SettingTable};
use hostkit::config::ConfigFiles;
use hostkit::{Exit, Failure};
use hyper::header::{self, HeaderName};
use sha2::{Digest as _, Sha256};

use super::{
    AccessLogFormat, AccessLogOption, BackendSettings, CacheSettings, KeySources, ListenAddress,
    RequestLimits, RequestTimeouts, Settings, SiteSettings, TrustedNetwork, UpstreamAddress,
    backend, rules, summary,
};
use crate::cli::{Args, ProxyFlags};
use crate::config::{FILE_KEYS, FileRules};
use crate::headers;

/// Settings, with their origins and warnings.
#[derive(Debug, Clone)]
pub(crate) struct LoadedSettings {
    /// The settings.
    pub settings: Settings,
    /// Each setting as it was written.
    pub table: SettingTable,
    /// Recoverable problems. Each names its object and the remedy.
    pub warnings: Vec<String>,
}

/// Reads the configuration file below a command line, and validates everything.
///
/// # Errors
/// The file is invalid (exit 78); or values contradict one another: exit 2, or 78 if there is a file, and with
/// `--check`.
pub(crate) fn load(args: &Args, line: &CommandLine) -> Result<LoadedSettings, Failure> {
    let files = ConfigFiles::read("authproxy", args.config.as_deref(), None)?;
    let exit = match files.is_empty() && !args.check {
        true => Exit::USAGE,
        false => Exit::CONFIG,
    };
    let (args, rules, mut table) = merge(line, &files)?;
    let mut warnings = Vec::new();
    let mut settings = settle(&args, &rules, &mut warnings)
        .map_err(|SettingError { what, remedy }| Failure::new(exit, what).remedy(remedy))?;
    settings.hash = hash(&table, &rules);
    summary::add_file_keys(&mut table, &settings.site, &rules, &files);
    Ok(LoadedSettings {
        settings,
        table,
        warnings,
    })
}

fn merge(
    line: &CommandLine,
    files: &ConfigFiles,
) -> Result<(Args, FileRules, SettingTable), Failure> {
    let layer = FileLayer {
        files,
        accepts: |_| true,
        other_keys: FILE_KEYS,
    };
    let (args, table) = line.with_files(&[layer])?;
    Ok((args, files.structured()?, table))
}

/// SHA-256 of every value as it was written, in hex.
fn hash(table: &SettingTable, rules: &FileRules) -> String {
    let mut hash = Sha256::new();
    for (name, value) in table.values() {
        hash.update(format!("{name}={value}\n"));
    }
    hash.update(format!("{rules:?}"));
    hostkit::hex::encode(&hash.finalize())
}

/// The permissions backend and the rules of the daemon's configuration files, for `key check`. With `require_rights`
/// every request has to need a right, as for [`load`].
///
/// # Errors
/// A file is invalid, or its values contradict one another (exit 78).
pub(crate) fn resolve_rules(
    line: &CommandLine,
    files: &ConfigFiles,
    require_rights: bool,
) -> Result<(BackendSettings, SiteSettings), Failure> {
    let (args, rules, _) = merge(line, files)?;
    let settled = || {
        let site = site(&args.proxy, &rules, &mut Vec::new())?;
        if require_rights {
            rules::complete(&site.rules)?;
        }
        Ok((backend::backend(&args.proxy)?, site))
    };
    settled()
        .map_err(|SettingError { what, remedy }| Failure::new(Exit::CONFIG, what).remedy(remedy))
}

/// The settings that differ and cannot be changed while running.
#[must_use]
pub(crate) fn restarts(before: &LoadedSettings, after: &LoadedSettings) -> Vec<String> {
    const SECRET: &str = "cache-secret-file";
    const MEMCACHED: [&str; 4] = ["cache", "memcache-servers", "cache-prefix", SECRET];
    let (old, new) = (&before.settings, &after.settings);
    let is_memcached_changed = old.memcached != new.memcached;
    // Another spelling of a value, or a value that nothing uses, changes nothing.
    let differs = |name: &String| match name.as_str() {
        "port" | "listen" => old.listen != new.listen,
        "server" => old.server != new.server,
        "threads" => old.threads != new.threads,
        "access-log" => old.access_log != new.access_log,
        "acl-file" | "acl-server" | "use-liveconf-aclserver" | "liveconf" => {
            old.backend != new.backend
        }
        name if MEMCACHED.contains(&name) => is_memcached_changed,
        _ => true,
    };
    let mut names = before.table.restarts(&after.table);
    names.retain(differs);
    // The file is the same, and its contents are not.
    if is_memcached_changed && !names.iter().any(|name| MEMCACHED.contains(&name.as_str())) {
        names.push(SECRET.to_owned());
    }
    names
}

/// A value that cannot be used, and the remedy.
pub(super) struct SettingError {
    what: String,
    remedy: String,
}

pub(super) fn wrong(what: impl Into<String>, remedy: impl Into<String>) -> SettingError {
    SettingError {
        what: what.into(),
        remedy: remedy.into(),
    }
}

fn settle(
    args: &Args,
    file_rules: &FileRules,
    warnings: &mut Vec<String>,
) -> Result<Settings, SettingError> {
    let flags = &args.proxy;
    let site = site(flags, file_rules, warnings)?;
    rules::complete(&site.rules)?;
    let server = flags.server.clone().ok_or_else(|| {
        wrong(
            "missing --server",
            "give --server=http://localhost:PORT, or unix:PATH",
        )
    })?;
    let listen = listen(flags.port, &flags.listen)?;
    if let Some(same) = listen.iter().find(|address| is_itself(&server, address)) {
        return Err(wrong(
            format!("--server={server} is where authproxy itself listens ({same})"),
            "give the port of the upstream server",
        ));
    }
    Ok(Settings {
        listen,
        server,
        threads: threads(flags.threads.into(), warnings),
        connections: flags.max_connections as usize,
        backend: backend::backend(flags)?,
        cache: CacheSettings {
            entries: flags.cache_entries as usize,
            allowed: flags.ttl_allowed,
            denied: flags.ttl_denied,
            error: flags.ttl_error,
            stale: flags.stale_if_error,
        },
        memcached: backend::memcached(flags, warnings)?,
        lame_duck: flags.lame_duck,
        drain_timeout: args.drain.drain_timeout,
        admin: args.admin.admin.clone(),
        access_log: match flags.access_log {
            Some(AccessLogOption::Off) => None,
            Some(AccessLogOption::Json) => Some(AccessLogFormat::Json),
            None if args.common.logstash_format => Some(AccessLogFormat::Json),
            Some(AccessLogOption::Plain) | None => Some(AccessLogFormat::Plain),
        },
        site: Arc::new(site),
        hash: String::new(),
    })
}

fn site(
    flags: &ProxyFlags,
    file_rules: &FileRules,
    warnings: &mut Vec<String>,
) -> Result<SiteSettings, SettingError> {
    if flags.fail_open {
        warnings.push(
            "--fail-open is on: every request is allowed while the permissions backend is unavailable"
                .to_owned(),
        );
    }
    let cors = rules::cors(file_rules)?;
    Ok(SiteSettings {
        credentials: credentials(flags, file_rules)?,
        rules: rules::rules(flags, file_rules, &cors)?,
        trusted: TrustedNetwork::networks(&flags.trusted_proxies).map_err(|what| {
            wrong(
                format!("--trusted-proxies: {what}"),
                "give networks, or `none` alone",
            )
        })?,
        protected: protected(&flags.protected_headers)?,
        cors,
        health_path: match &flags.health_path {
            Some(path) => Some(rules::health(path)?),
            None => None,
        },
        fail_open: flags.fail_open,
        timeouts: RequestTimeouts {
            server: flags.timeout,
            client: flags.client_timeout,
            idle: flags.idle_timeout,
            stream: flags.stream_timeout,
        },
        stream_all: flags.stream_all,
        limits: RequestLimits {
            head: usize::try_from(flags.max_head).unwrap_or(usize::MAX),
            body: flags.max_body,
            rate: flags.min_rate,
            server_connections: flags.server_connections as usize,
        },
    })
}

fn listen(port: Option<u16>, addresses: &[ListenAddress]) -> Result<Vec<SocketAddr>, SettingError> {
    let mut sockets = Vec::new();
    for ListenAddress { ip, port: own } in addresses {
        let port = own.or(port).ok_or_else(|| {
            wrong(
                "missing --port",
                "give --port={{thermos.ports[http]}}, or --listen=ADDR:PORT",
            )
        })?;
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

/// Whether the upstream server is this process.
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

/// At most as many threads as the CPU quota of the job allows.
fn threads(asked: usize, warnings: &mut Vec<String>) -> usize {
    let most = std::thread::available_parallelism().map_or(1, Into::into);
    if asked > most {
        warnings.push(format!(
            "--threads={asked} is more than the CPU quota of this job allows: {most} will serve"
        ));
    }
    asked.min(most)
}

fn credentials(flags: &ProxyFlags, rules: &FileRules) -> Result<KeySources, SettingError> {
    let header = flags.key_header.clone();
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
            format!("--key-header={header} has another meaning in HTTP"),
            "choose another header; a key in Authorization is accepted in any case",
        ));
    }
    let parameter = |flag: &str, name: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err(wrong(
                format!("{flag}={name:?} is not the name of a query parameter"),
                "use letters, digits and -._~",
            ));
        }
        Ok(name.to_owned())
    };
    let key = parameter("--key-parameter", &flags.key_parameter)?;
    if let Some(name) = &rules.host_param
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
        hide: flags.hide_credentials,
    })
}

/// Headers that proxies in front set.
fn protected(names: &[String]) -> Result<Vec<String>, SettingError> {
    let name = |name: &String| {
        let start = name.strip_suffix('*').unwrap_or(name);
        match HeaderName::try_from(start) {
            Ok(start) if !start.as_str().contains('*') => Ok(name.to_ascii_lowercase()),
            _ => Err(wrong(
                format!("--protected-headers: {name:?} is not the name of a header"),
                "write X-Tenant, or X-Tenant-* for all with that prefix",
            )),
        }
    };
    // TLS terminators put the client's certificate there.
    iter::once(Ok("x-ssl-*".to_owned()))
        .chain(names.iter().map(name))
        .collect()
}
