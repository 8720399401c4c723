//! What `--check` prints: every setting, also those that have their defaults.

use hostkit::units::{format_duration, format_size};
use hyper::header::ACCESS_CONTROL_ALLOW_ORIGIN;

use super::{
    AccessLogFormat, AccessRules, BackendSettings, CacheSettings, CorsPolicy, KeySources,
    MemcachedSettings, PreflightPolicy, RequestLimits, RequestTimeouts, RouteRule, Settings,
    SiteSettings,
};

/// The settings, for people: one line each, with what is in force and was not said.
// Everything is taken apart by name: a new setting that is not told here does not compile.
#[must_use]
pub fn summary(settings: &Settings) -> String {
    let Settings {
        listen,
        server,
        threads,
        connections,
        engine,
        cache,
        shared,
        lame_duck,
        drain_timeout,
        admin,
        access_log,
        site,
        hash: _,
    } = settings;
    let SiteSettings {
        credentials,
        rules,
        trusted,
        protected,
        cors,
        health_path,
        fail_open,
        timeouts,
        stream_all,
        limits,
    } = &**site;
    let RequestTimeouts {
        server: server_timeout,
        client,
        idle,
        stream,
    } = timeouts;
    let streams = match stream_all {
        true => "every response after its first byte",
        false => "event streams",
    };
    let RequestLimits {
        head,
        body,
        rate,
        server_connections,
    } = limits;
    let mut lines: Vec<(&str, String)> = vec![
        ("listen", list(listen)),
        ("server", server.to_string()),
        ("threads", format!("{threads}, {connections} connections")),
        ("engine", describe_engine(engine)),
        ("cache", describe_cache(cache)),
        ("memcached", describe_shared(shared.as_ref())),
        ("keys in", describe_credentials(credentials)),
    ];
    lines.extend(describe_rules(rules));
    lines.extend(describe_cors(cors));
    let none = || "none".to_owned();
    lines.extend([
        ("health", health_path.clone().unwrap_or_else(none)),
        ("trusted", list(trusted)),
        (
            "protected",
            format!("x-forwarded-*, x-real-ip, x-request-id, {}", list(protected)),
        ),
        (
            "deadlines",
            format!(
                "server {}, client {}, idle {}, {streams} {}; lame duck {}, drain {}",
                format_duration(*server_timeout),
                format_duration(*client),
                format_duration(*idle),
                format_duration(*stream),
                format_duration(*lame_duck),
                format_duration(*drain_timeout)
            ),
        ),
        (
            "limits",
            format!(
                "head {}, body {}, {rate} B/s, {server_connections} connections to the server a thread",
                format_size(*head as u64),
                body.map_or("any length".to_owned(), format_size),
            ),
        ),
        (
            "fail-open",
            match fail_open {
                true => "ON: unknown keys pass while the engine is away",
                false => "off",
            }
            .to_owned(),
        ),
        (
            "access log",
            match access_log {
                Some(AccessLogFormat::Plain) => "plain",
                Some(AccessLogFormat::Json) => "json",
                None => "off",
            }
            .to_owned(),
        ),
        (
            "admin",
            admin.as_ref().map_or("off".to_owned(), ToString::to_string),
        ),
    ]);
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<10}  {value}\n"))
        .collect()
}

fn describe_engine(engine: &BackendSettings) -> String {
    match engine {
        BackendSettings::File(path) => format!("file {}", path.display()),
        BackendSettings::Servers(urls) => {
            let urls: Vec<String> = urls
                .iter()
                .map(|url| hostkit::mask::mask_url(url.as_str()))
                .collect();
            format!("servers {}", urls.join(", "))
        }
        BackendSettings::Liveconf(path) => format!("`aclserver` in {}", path.display()),
    }
}

fn describe_cache(cache: &CacheSettings) -> String {
    let CacheSettings {
        entries,
        allowed,
        denied,
        error,
        stale,
    } = *cache;
    format!(
        "{entries} keys; allowed {}, denied {}, error {}, stale {}",
        format_duration(allowed),
        format_duration(denied),
        format_duration(error),
        format_duration(stale)
    )
}

fn describe_shared(shared: Option<&MemcachedSettings>) -> String {
    let Some(MemcachedSettings {
        servers,
        prefix,
        secrets,
    }) = shared
    else {
        return "not used".to_owned();
    };
    let secrets = match secrets.len() {
        1 => "",
        _ => "; two secrets, the first signs",
    };
    format!("{}, prefix {prefix}{secrets}", servers.join(", "))
}

fn describe_credentials(credentials: &KeySources) -> String {
    let KeySources {
        header,
        parameter,
        hide,
    } = credentials;
    let hidden = match hide {
        true => "hidden from the server",
        false => "passed on to the server",
    };
    format!("{header}, Authorization, ?{parameter}=; {hidden}")
}

fn describe_rules(rules: &AccessRules) -> Vec<(&'static str, String)> {
    let AccessRules {
        rights,
        routes,
        preflight: everywhere,
        host_parameter,
    } = rules;
    let mut lines = vec![("rights", list(rights))];
    for RouteRule {
        name,
        prefix,
        methods,
        rights,
        preflight,
    } in routes
    {
        let needs = match rights {
            Some(rights) => list(rights),
            None => "open".to_owned(),
        };
        let methods = match methods.as_slice() {
            [] => String::new(),
            methods => format!(" {}", methods.join(",")),
        };
        let name = match **name == **prefix {
            true => String::new(),
            false => format!(" ({name})"),
        };
        let preflights = match preflight == everywhere {
            true => String::new(),
            false => format!("; preflights {}", describe_preflight(*preflight)),
        };
        lines.push((
            "route",
            format!("{prefix}{methods}{name}: {needs}{preflights}"),
        ));
    }
    lines.push(("preflights", describe_preflight(*everywhere).to_owned()));
    let host = match host_parameter {
        Some(name) => format!("?{name}="),
        None => "the Host header".to_owned(),
    };
    lines.push(("host", host));
    lines
}

const fn describe_preflight(preflight: PreflightPolicy) -> &'static str {
    match preflight {
        PreflightPolicy::Off => "off",
        PreflightPolicy::Answer => "answer",
        PreflightPolicy::Pass => "pass",
    }
}

fn describe_cors(cors: &CorsPolicy) -> Vec<(&'static str, String)> {
    let CorsPolicy { headers, origins } = cors;
    let origins = origins
        .iter()
        .map(|origin| (&ACCESS_CONTROL_ALLOW_ORIGIN, origin));
    headers
        .iter()
        .map(|(name, value)| (name, value))
        .chain(origins)
        .map(|(name, value)| {
            let value = value.to_str().unwrap_or_default();
            ("cors", format!("{name}: {value}"))
        })
        .collect()
}

fn list(items: &[impl ToString]) -> String {
    match items {
        [] => "none".to_owned(),
        items => {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            items.join(", ")
        }
    }
}
