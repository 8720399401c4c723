//! What `--check` prints.

use hostkit::units::{show_duration, show_size};

use super::{AccessLog, Engine, Settings};

/// The settings, for people: one line each, with what is in force and was not said.
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
    let mut lines: Vec<(&str, String)> = Vec::new();
    let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
    lines.push(("listen", listen.join(", ")));
    lines.push(("server", server.to_string()));
    let threads = format!("{threads}, {connections} connections");
    lines.push(("threads", threads));
    lines.push((
        "engine",
        match engine {
            Engine::File(path) => format!("file {}", path.display()),
            Engine::Servers(urls) => {
                let urls: Vec<String> = urls
                    .iter()
                    .map(|url| hostkit::mask::url(url.as_str()))
                    .collect();
                format!("servers {}", urls.join(", "))
            }
            Engine::Liveconf(path) => format!("`aclserver` in {}", path.display()),
        },
    ));
    lines.push((
        "cache",
        format!(
            "{} keys; allowed {}, denied {}, error {}, stale {}",
            cache.entries,
            show_duration(cache.allowed),
            show_duration(cache.denied),
            show_duration(cache.error),
            show_duration(cache.stale)
        ),
    ));
    lines.push((
        "memcached",
        shared.as_ref().map_or("not used".to_owned(), |shared| {
            format!("{}, prefix {}", shared.servers.join(", "), shared.prefix)
        }),
    ));
    lines.push(("rights", list(&site.rules.rights)));
    for route in &site.rules.routes {
        let needs = match &route.rights {
            Some(rights) => list(rights),
            None => "open".to_owned(),
        };
        let methods = match route.methods.as_slice() {
            [] => String::new(),
            methods => format!(" {}", methods.join(",")),
        };
        lines.push(("route", format!("{}{methods}: {needs}", route.prefix)));
    }
    let trusted: Vec<String> = site.trusted.iter().map(ToString::to_string).collect();
    lines.push(("trusted", list(&trusted)));
    let timeouts = &site.timeouts;
    lines.push((
        "deadlines",
        format!(
            "server {}, client {}, idle {}; lame duck {}, drain {}",
            show_duration(timeouts.server),
            show_duration(timeouts.client),
            show_duration(timeouts.idle),
            show_duration(*lame_duck),
            show_duration(*drain_timeout)
        ),
    ));
    let limits = &site.limits;
    let body = limits.body.map_or("any length".to_owned(), show_size);
    lines.push((
        "limits",
        format!(
            "head {}, body {body}, {} B/s, {} connections to the server a thread",
            show_size(limits.head as u64),
            limits.rate,
            limits.server_connections
        ),
    ));
    if site.fail_open {
        lines.push((
            "fail-open",
            "ON: unknown keys pass while the engine is away".to_owned(),
        ));
    }
    lines.push((
        "access log",
        match access_log {
            Some(AccessLog::Plain) => "plain",
            Some(AccessLog::Json) => "json",
            None => "off",
        }
        .to_owned(),
    ));
    lines.push((
        "admin",
        admin.as_ref().map_or("off".to_owned(), ToString::to_string),
    ));
    lines
        .into_iter()
        .map(|(name, value)| format!("{name:<10}  {value}\n"))
        .collect()
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
