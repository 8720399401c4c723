//! What needs which right, and what browsers are told: the part of the settings that only a file can say in full.

use std::sync::Arc;

use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HeaderName, HeaderValue, ORIGIN, VARY};

use super::validate::{Wrong, wrong};
use super::{AccessRules, CorsPolicy, PreflightPolicy, RouteRule};
use crate::cli::Flags;
use crate::config::RouteEntry;
use crate::preflight;
use crate::scope;

/// The longest route table: it is gone through for every request.
const ROUTES: usize = 256;

/// The headers of CORS that an answer can have (Fetch standard, section 3.3.3), without `access-control-`.
const CORS: [&str; 6] = [
    "allow-origin",
    "allow-methods",
    "allow-headers",
    "allow-credentials",
    "expose-headers",
    "max-age",
];

pub(super) fn rules(flags: &Flags, cors: &CorsPolicy) -> Result<AccessRules, Wrong> {
    let rights = names("--right", flags.right.as_deref().unwrap_or_default())?;
    let preflight = match flags.cors_preflight {
        Some(asked) => possible(asked, cors)?,
        None if cors.headers.is_empty() => PreflightPolicy::Off,
        None => PreflightPolicy::Answer,
    };
    let mut routes: Vec<RouteRule> = Vec::new();
    let entries = flags.routes.as_deref().unwrap_or_default();
    for entry in entries {
        let preflight = match entry.cors_preflight {
            Some(asked) => possible(asked, cors)?,
            // It passes as every request does, and the server's own answer fits the server's other answers.
            None if entry.open && entry.methods.is_none() => PreflightPolicy::Off,
            None => preflight,
        };
        routes.push(route(entry, preflight)?);
    }
    for prefix in flags.open.iter().flatten() {
        let prefix = path("open", prefix)?;
        routes.push(RouteRule {
            name: prefix.as_str().into(),
            prefix,
            methods: Vec::new(),
            rights: None,
            preflight: PreflightPolicy::Off,
        });
    }
    if routes.len() > ROUTES {
        return Err(wrong(
            format!("there are {} routes", routes.len()),
            format!(
                "at most {ROUTES} are looked at for every request: let prefixes stand for more"
            ),
        ));
    }
    for (index, route) in routes.iter().enumerate() {
        let differs = |other: &&RouteRule| {
            other.prefix != route.prefix && other.prefix.eq_ignore_ascii_case(&route.prefix)
        };
        if let Some(other) = routes[..index].iter().find(differs) {
            return Err(wrong(
                format!(
                    "the routes for {} and {} differ only in case",
                    other.prefix, route.prefix
                ),
                "write both alike: there are servers to which they are one path",
            ));
        }
        let both = |other: &&RouteRule| {
            let same = |method| other.methods.contains(method);
            other.prefix == route.prefix
                && (route.methods.is_empty() == other.methods.is_empty())
                && (route.methods.is_empty() || route.methods.iter().any(same))
        };
        if routes[..index].iter().find(both).is_some() {
            return Err(wrong(
                format!("two routes are for {}", route.prefix),
                "leave one of them, or give them different methods",
            ));
        }
    }
    Ok(AccessRules {
        rights,
        routes,
        preflight,
        host_parameter: flags.host_param.clone(),
    })
}

/// Refuses rules by which some request would need no right.
pub(super) fn complete(rules: &AccessRules) -> Result<(), Wrong> {
    let everything = |route: &RouteRule| route.prefix == "/" && route.methods.is_empty();
    if rules.rights.is_empty() && !rules.routes.iter().any(everything) {
        return Err(wrong(
            "nothing says which right a key needs",
            "give --right=NAME, or a route for the path / in the configuration file",
        ));
    }
    Ok(())
}

/// An answer to preflights needs something to say.
fn possible(asked: PreflightPolicy, cors: &CorsPolicy) -> Result<PreflightPolicy, Wrong> {
    if asked == PreflightPolicy::Answer && cors.headers.is_empty() {
        return Err(wrong(
            "cors-preflight: answer has nothing to answer with",
            "give `cors: {allow-origin: https://example.com, allow-headers: X-API-Key}` in the configuration file",
        ));
    }
    Ok(asked)
}

fn route(entry: &RouteEntry, preflight: PreflightPolicy) -> Result<RouteRule, Wrong> {
    let prefix = path("routes: path", &entry.path)?;
    let what = format!("the route for {prefix}");
    let methods = entry.methods.clone().unwrap_or_default();
    for method in &methods {
        let upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
        if method.is_empty() || !method.bytes().all(upper) {
            return Err(wrong(
                format!("{what}: {method:?} is no method"),
                "write methods in upper case, as in [GET, HEAD]",
            ));
        }
    }
    let rights = match (&entry.rights, entry.open) {
        (None, true) => None,
        (Some(rights), false) if !rights.is_empty() => Some(names(&what, rights)?),
        (Some(_), true) => {
            return Err(wrong(
                format!("{what} is open, and needs rights"),
                "leave out one of `open` and `rights`",
            ));
        }
        _ => {
            return Err(wrong(
                format!("{what} says nothing"),
                "give `rights: [NAME]`, or `open: true` for everybody",
            ));
        }
    };
    let name = entry.name.as_deref().unwrap_or(&prefix);
    if name.is_empty() || name.len() > 100 || name.contains(char::is_control) {
        return Err(wrong(
            format!("{what}: {name:?} is no name"),
            "use 1 to 100 visible characters",
        ));
    }
    Ok(RouteRule {
        name: Arc::from(name),
        methods,
        rights,
        preflight,
        prefix,
    })
}

/// Names of rights.
fn names(what: &str, rights: &[String]) -> Result<Vec<String>, Wrong> {
    for right in rights {
        if right.is_empty() || right.len() > 128 || right.contains(|c: char| !c.is_ascii_graphic())
        {
            return Err(wrong(
                format!("{what}: {right:?} is no right"),
                "use 1 to 128 visible ASCII characters",
            ));
        }
    }
    Ok(rights.to_vec())
}

/// A path in a rule.
pub(super) fn path(what: &str, path: &str) -> Result<String, Wrong> {
    if path.contains(['*', '?', '#']) {
        return Err(wrong(
            format!("{what}: {path:?} is no path, and a `*`, `?` or `#` in it stands for nothing"),
            "write /admin, which is that path and all below it",
        ));
    }
    scope::normalize_path_prefix(path).map_err(|error| wrong(what, error))
}

/// The health path, which is compared as it is.
pub(super) fn health(path: &str) -> Result<String, Wrong> {
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) || !scope::is_unambiguous_path(path)
    {
        return Err(wrong(
            format!("--health-path={path:?} is no path that all servers read alike"),
            "write it like /authproxy/health",
        ));
    }
    Ok(path.to_owned())
}

pub(super) fn cors(flags: &Flags) -> Result<CorsPolicy, Wrong> {
    let mut cors = CorsPolicy::default();
    for (key, values) in flags.cors.iter().flatten() {
        let name: HeaderName = CORS
            .contains(&key.as_str())
            .then(|| format!("access-control-{key}").parse().ok())
            .flatten()
            .ok_or_else(|| {
                wrong(
                    format!("cors: unknown key `{key}`"),
                    format!("the keys are {}", CORS.join(", ")),
                )
            })?;
        let value = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| {
                wrong(
                    format!("cors: {key}: {text:?} cannot stand in a header"),
                    "use visible ASCII",
                )
            })
        };
        let text = values.join();
        let whole = value(&text)?;
        let origins: Vec<&str> = text.split(',').map(str::trim).collect();
        if key == "allow-origin" && text != "*" {
            let is_sent = |origin: &str| {
                preflight::is_origin(origin) && !origin.contains(|c: char| c.is_ascii_uppercase())
            };
            if let Some(odd) = origins.iter().find(|origin| !is_sent(origin)) {
                return Err(wrong(
                    format!("cors: allow-origin: {odd:?} is not an origin as browsers send it"),
                    "write https://example.com in lower case and without a slash behind it, or `*` alone",
                ));
            }
        }
        // Browsers take one origin, not a list.
        if key == "allow-origin" && origins.len() > 1 {
            for origin in origins {
                cors.origins.push(value(origin)?);
            }
            cors.headers.push((VARY, HeaderValue::from_name(ORIGIN)));
        } else {
            cors.headers.push((name, whole));
        }
    }
    let names_origins = |cors: &[(HeaderName, HeaderValue)]| {
        cors.iter()
            .any(|(name, _)| *name == ACCESS_CONTROL_ALLOW_ORIGIN || *name == VARY)
    };
    if !cors.headers.is_empty() && !names_origins(&cors.headers) {
        return Err(wrong(
            "cors: allow-origin is missing, without which browsers hear nothing of the rest",
            "name the origins whose pages may ask, or `*`",
        ));
    }
    Ok(cors)
}
