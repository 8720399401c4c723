//! What a grant allows, and which right a request needs.
//!
//! Owns hosts, paths, methods, rights and expiry, and which paths can be judged at all. Pure: the time is an argument.
//! Who is asked for a grant is `permissions`'; the order of the door's questions is `door`'s.

mod host;
mod path;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;

use crate::grant::Grant;
use crate::request_error::RequestError;
use crate::settings::{AccessRules, PreflightPolicy, RouteRule};

pub use host::normalize_host_pattern;
pub use path::{is_unambiguous_path, normalize_path_prefix};

use path::CaseSensitivity;

/// What a request asks of a grant.
#[derive(Debug, Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The method as it was sent.
    pub method: &'a str,
    /// The path as it was sent, without the query.
    pub path: &'a str,
    /// The hosts it names, all of which have to be allowed, with or without a port. One that cannot be read fits no key.
    pub hosts: &'a [Cow<'a, str>],
    /// The rights it needs, all of them.
    pub rights: &'a [String],
    /// Seconds since 1970 UTC.
    pub now: u64,
}

/// Whether a grant is good for a request.
///
/// # Errors
/// The first thing that it is not good for, in this order: time, rights, host, path, method. A path that servers read
/// differently is [`RequestError::AmbiguousPath`] where the grant has `paths`.
pub fn check_grant(grant: &Grant, asked: &AccessRequest<'_>) -> Result<(), RequestError> {
    if grant.expires.is_some_and(|end| asked.now >= end) {
        return Err(RequestError::ExpiredKey);
    }
    if !asked.rights.iter().all(|one| grant.rights.contains(one)) {
        return Err(RequestError::MissingRight);
    }
    let is_allowed = |host: &Cow<'_, str>| host::matches(&grant.hosts, host);
    if !grant.hosts.is_empty() && (asked.hosts.is_empty() || !asked.hosts.iter().all(is_allowed)) {
        return Err(RequestError::HostNotAllowed);
    }
    if !grant.paths.is_empty() && !grant.paths.iter().any(|prefix| path::is_root(prefix)) {
        let path = path::parse_path(asked.path).ok_or(RequestError::AmbiguousPath)?;
        let fits = |path: &[u8]| {
            let mut prefixes = grant.paths.iter();
            prefixes.any(|prefix| path::starts_with(path, prefix, CaseSensitivity::Sensitive))
        };
        if !path.readings().all(fits) {
            return Err(RequestError::PathNotAllowed);
        }
    }
    if !allows_method(&grant.methods, asked.method) {
        return Err(RequestError::MethodNotAllowed);
    }
    Ok(())
}

/// What the route table says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch<'s> {
    /// The route; none where no route fits.
    pub name: Option<&'s Arc<str>>,
    /// What is needed; all of them. None: the path is open, and needs no key.
    pub rights: Option<Cow<'s, [String]>>,
    /// What becomes of CORS preflights that ask about it.
    pub preflight: PreflightPolicy,
}

impl RouteMatch<'_> {
    /// What a request needs that servers read in these two ways: what both need, and it is open only if both are.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let rights = match (self.rights, other.rights) {
            (Some(mut all), Some(others)) if all != others => {
                for right in others.iter() {
                    if !all.contains(right) {
                        all.to_mut().push(right.clone());
                    }
                }
                Some(all)
            }
            (own, others) => own.or(others),
        };
        Self {
            name: self.name.or(other.name),
            rights,
            preflight: self.preflight.min(other.preflight),
        }
    }
}

/// Which route decides about a request: the longest prefix that fits, with a method that fits. Of two equally long ones
/// that which names methods, then the first.
///
/// Servers differ over case, and over percent-encoding that is not needed. Where a route depends on either, the request
/// needs what every reading of it needs.
///
/// # Errors
/// [`RequestError::AmbiguousPath`]: there are routes, and servers read this path differently.
pub fn match_route<'s>(
    rules: &'s AccessRules,
    method: &str,
    path: &str,
) -> Result<RouteMatch<'s>, RequestError> {
    if rules.routes.is_empty() {
        return Ok(default_match(rules));
    }
    let plain = path::parse_path(path);
    let needs_path = |route: &RouteRule| !path::is_root(&route.prefix);
    if plain.is_none() && rules.routes.iter().any(needs_path) {
        return Err(RequestError::AmbiguousPath);
    }
    // The gate lets no standard method come in another case; this is for those of a server's own.
    let is_lower = method.bytes().any(|byte| byte.is_ascii_lowercase());
    let upper = is_lower.then(|| method.to_ascii_uppercase());
    let mut strictest: Option<RouteMatch<'s>> = None;
    for method in iter::once(method).chain(upper.as_deref()) {
        let mut read = |fits: &dyn Fn(&str) -> bool| {
            let matched = longest_prefix_match(rules, method, fits);
            strictest = Some(match strictest.take() {
                Some(before) => before.and(matched),
                None => matched,
            });
        };
        match &plain {
            // Every route is about all paths.
            None => read(&|_| true),
            Some(plain) => {
                for path in plain.readings() {
                    read(&|prefix| path::starts_with(path, prefix, CaseSensitivity::Sensitive));
                    read(&|prefix| path::starts_with(path, prefix, CaseSensitivity::Insensitive));
                }
            }
        }
    }
    Ok(strictest.unwrap_or_else(|| default_match(rules)))
}

/// What is said of requests that no route is about.
fn default_match(rules: &AccessRules) -> RouteMatch<'_> {
    RouteMatch {
        name: None,
        rights: Some(Cow::Borrowed(&rules.rights)),
        preflight: rules.preflight,
    }
}

/// The route that decides in one reading of a request.
fn longest_prefix_match<'s>(
    rules: &'s AccessRules,
    method: &str,
    fits: &dyn Fn(&str) -> bool,
) -> RouteMatch<'s> {
    let found = rules
        .routes
        .iter()
        .rev()
        .filter(|route| allows_method(&route.methods, method) && fits(&route.prefix))
        // The last of the greatest, hence from the end.
        .max_by_key(|route| {
            (
                path::prefix_length(&route.prefix),
                !route.methods.is_empty(),
            )
        });
    found.map_or_else(
        || default_match(rules),
        |route| RouteMatch {
            name: Some(&route.name),
            rights: route.rights.as_deref().map(Cow::Borrowed),
            preflight: route.preflight,
        },
    )
}

/// Whether a method is in a list; in an empty one all are. Case matters (RFC 9110 section 9.1). `GET` brings `HEAD`,
/// which servers answer by doing a `GET`.
fn allows_method(methods: &[String], method: &str) -> bool {
    methods.is_empty()
        || methods
            .iter()
            .any(|one| one == method || (one == "GET" && method == "HEAD"))
}
