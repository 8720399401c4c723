//! The rights that requests need, and the CORS headers of our own responses.

use std::sync::Arc;

use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HeaderName, HeaderValue, ORIGIN, VARY};

use super::validate::{SettingError, wrong};
use super::{AccessRules, CorsPolicy, PreflightPolicy, RouteRule};
use crate::cli::ProxyFlags;
use crate::config::{FileRules, RouteEntry};
use crate::preflight;
use crate::scope;

/// The longest route table: every request searches it.
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

pub(super) fn rules(
    flags: &ProxyFlags,
    file_rules: &FileRules,
    cors: &CorsPolicy,
) -> Result<AccessRules, SettingError> {
    let rights = names("--right", &flags.right)?;
    let preflight = match flags.cors_preflight {
        Some(asked) => possible(asked, cors)?,
        None if cors.headers.is_empty() => PreflightPolicy::Off,
        None => PreflightPolicy::Answer,
    };
    let mut routes: Vec<RouteRule> = Vec::new();
    let entries = file_rules.routes.as_deref().unwrap_or_default();
    for entry in entries {
        let preflight = match entry.cors_preflight {
            Some(asked) => possible(asked, cors)?,
            // The preflight goes to the upstream server, as every request for this path.
            None if entry.open && entry.methods.is_none() => PreflightPolicy::Off,
            None => preflight,
        };
        routes.push(route(entry, preflight)?);
    }
    for prefix in file_rules.open.iter().flatten() {
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
                "write both alike: some servers read them as one path",
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
                "remove one of them, or give them different methods",
            ));
        }
    }
    Ok(AccessRules {
        rights,
        routes,
        preflight,
        host_parameter: file_rules.host_param.clone(),
    })
}

/// Refuses rules by which some request would need no right.
pub(super) fn complete(rules: &AccessRules) -> Result<(), SettingError> {
    let everything = |route: &RouteRule| route.prefix == "/" && route.methods.is_empty();
    if rules.rights.is_empty() && !rules.routes.iter().any(everything) {
        return Err(wrong(
            "missing --right",
            "give --right=NAME, or a route for the path / in the configuration file",
        ));
    }
    Ok(())
}

/// Refuses to answer preflights without `cors`.
fn possible(asked: PreflightPolicy, cors: &CorsPolicy) -> Result<PreflightPolicy, SettingError> {
    if asked == PreflightPolicy::Answer && cors.headers.is_empty() {
        return Err(wrong(
            "cors-preflight: answer needs `cors`",
            "give `cors: {allow-origin: https://example.com, allow-headers: X-API-Key}` in the configuration file",
        ));
    }
    Ok(asked)
}

fn route(entry: &RouteEntry, preflight: PreflightPolicy) -> Result<RouteRule, SettingError> {
    let prefix = path("routes: path", &entry.path)?;
    let what = format!("the route for {prefix}");
    let methods = entry.methods.clone().unwrap_or_default();
    for method in &methods {
        let upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
        if method.is_empty() || !method.bytes().all(upper) {
            return Err(wrong(
                format!("{what}: invalid method {method:?}"),
                "write methods in upper case, as in [GET, HEAD]",
            ));
        }
    }
    let rights = match (&entry.rights, entry.open) {
        (None, true) => None,
        (Some(rights), false) if !rights.is_empty() => Some(names(&what, rights)?),
        (Some(_), true) => {
            return Err(wrong(
                format!("{what} has both `rights` and `open`"),
                "remove one of them",
            ));
        }
        _ => {
            return Err(wrong(
                format!("{what} has neither `rights` nor `open`"),
                "give `rights: [NAME]`, or `open: true` for requests without a key",
            ));
        }
    };
    let name = entry.name.as_deref().unwrap_or(&prefix);
    if name.is_empty() || name.len() > 100 || name.contains(char::is_control) {
        return Err(wrong(
            format!("{what}: invalid name {name:?}"),
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
fn names(what: &str, rights: &[String]) -> Result<Vec<String>, SettingError> {
    for right in rights {
        if right.is_empty() || right.len() > 128 || right.contains(|c: char| !c.is_ascii_graphic())
        {
            return Err(wrong(
                format!("{what}: invalid right {right:?}"),
                "use 1 to 128 visible ASCII characters",
            ));
        }
    }
    Ok(rights.to_vec())
}

/// A path in a rule.
pub(super) fn path(what: &str, path: &str) -> Result<String, SettingError> {
    if path.contains(['*', '?', '#']) {
        return Err(wrong(
            format!("{what}: invalid path {path:?}: `*`, `?` and `#` match nothing"),
            "write /admin, which is that path and all below it",
        ));
    }
    scope::normalize_path_prefix(path).map_err(|error| wrong(what, error))
}

/// The health path, which is compared as it is.
pub(super) fn health(path: &str) -> Result<String, SettingError> {
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) || !scope::is_unambiguous_path(path)
    {
        return Err(wrong(
            format!("--health-path={path:?} is a path that servers read in different ways"),
            "write it like /authproxy/health",
        ));
    }
    Ok(path.to_owned())
}

pub(super) fn cors(file_rules: &FileRules) -> Result<CorsPolicy, SettingError> {
    let mut cors = CorsPolicy::default();
    for (key, values) in file_rules.cors.iter().flatten() {
        let name: HeaderName = CORS
            .contains(&key.as_str())
            .then(|| format!("access-control-{key}").parse().ok())
            .flatten()
            .ok_or_else(|| {
                wrong(
                    format!("cors: unknown key `{key}`"),
                    format!("valid keys: {}", CORS.join(", ")),
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
            "cors: missing allow-origin, without which browsers ignore the rest",
            "name the origins whose pages may ask, or `*`",
        ));
    }
    Ok(cors)
}
