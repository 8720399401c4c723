//! Matches a request to a route, and checks it against a grant.
//!
//! Owns hosts, paths, methods, rights and expiry, and which paths are ambiguous. Pure: the time is an argument.

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

pub(crate) use host::normalize_host_pattern;
pub(crate) use path::{is_unambiguous_path, normalize_path_prefix};

use path::CaseSensitivity;

/// The parts of a request that a grant may restrict.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessRequest<'a> {
    pub method: &'a str,
    /// As sent, without the query.
    pub path: &'a str,
    /// All of them must be allowed; a port is ignored. An invalid host matches no restriction.
    pub hosts: &'a [Cow<'a, str>],
    /// All of them are required.
    pub rights: &'a [String],
    /// Seconds since 1970 UTC.
    pub now: u64,
}

/// Checks expiry, rights, hosts, path and method, in this order.
///
/// # Errors
/// The first check that fails. If the grant restricts paths, a path that servers interpret differently is
/// [`RequestError::AmbiguousPath`].
pub(crate) fn check_grant(grant: &Grant, request: &AccessRequest<'_>) -> Result<(), RequestError> {
    if grant.expires.is_some_and(|end| request.now >= end) {
        return Err(RequestError::ExpiredKey);
    }
    if !request.rights.iter().all(|one| grant.rights.contains(one)) {
        return Err(RequestError::MissingRight);
    }
    let is_allowed = |host: &Cow<'_, str>| host::matches(&grant.hosts, host);
    if !grant.hosts.is_empty()
        && (request.hosts.is_empty() || !request.hosts.iter().all(is_allowed))
    {
        return Err(RequestError::HostNotAllowed);
    }
    if !grant.paths.is_empty() && !grant.paths.iter().any(|prefix| path::is_root(prefix)) {
        let path = path::parse_path(request.path).ok_or(RequestError::AmbiguousPath)?;
        let is_allowed = |path: &[u8]| {
            let mut prefixes = grant.paths.iter();
            prefixes.any(|prefix| path::starts_with(path, prefix, CaseSensitivity::Sensitive))
        };
        if !path.interpretations().all(is_allowed) {
            return Err(RequestError::PathNotAllowed);
        }
    }
    if !allows_method(&grant.methods, request.method) {
        return Err(RequestError::MethodNotAllowed);
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteMatch<'s> {
    /// `None` where no route matches.
    pub name: Option<&'s Arc<str>>,
    /// The required rights, all of them. `None`: the path is open, and needs no key.
    pub rights: Option<Cow<'s, [String]>>,
    pub preflight: PreflightPolicy,
}

impl RouteMatch<'_> {
    /// Combines the matches of two interpretations of a request: it requires the rights of both, and is open only if
    /// both are.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
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

/// Finds the route of a request: the longest matching prefix with a matching method. Of two of equal length the one with
/// methods wins, then the first.
///
/// Servers differ over case and over unnecessary percent-encoding. Where the route depends on either, the request requires
/// the rights of every interpretation.
///
/// # Errors
/// [`RequestError::AmbiguousPath`]: a route depends on the path, which servers interpret differently.
pub(crate) fn match_route<'s>(
    rules: &'s AccessRules,
    method: &str,
    path: &str,
) -> Result<RouteMatch<'s>, RequestError> {
    if rules.routes.is_empty() {
        return Ok(default_match(rules));
    }
    let parsed = path::parse_path(path);
    let needs_path = |route: &RouteRule| !path::is_root(&route.prefix);
    if parsed.is_none() && rules.routes.iter().any(needs_path) {
        return Err(RequestError::AmbiguousPath);
    }
    // `request_validation` rejects standard methods in another case; this is for the extension methods of a server.
    let is_lower = method.bytes().any(|byte| byte.is_ascii_lowercase());
    let upper = is_lower.then(|| method.to_ascii_uppercase());
    let mut strictest: Option<RouteMatch<'s>> = None;
    for method in iter::once(method).chain(upper.as_deref()) {
        let mut add = |matches: &dyn Fn(&str) -> bool| {
            let matched = longest_prefix_match(rules, method, matches);
            strictest = Some(match strictest.take() {
                Some(previous) => previous.and(matched),
                None => matched,
            });
        };
        match &parsed {
            // All routes apply to all paths.
            None => add(&|_| true),
            Some(parsed) => {
                for path in parsed.interpretations() {
                    add(&|prefix| path::starts_with(path, prefix, CaseSensitivity::Sensitive));
                    add(&|prefix| path::starts_with(path, prefix, CaseSensitivity::Insensitive));
                }
            }
        }
    }
    Ok(strictest.unwrap_or_else(|| default_match(rules)))
}

/// The requirements where no route matches.
fn default_match(rules: &AccessRules) -> RouteMatch<'_> {
    RouteMatch {
        name: None,
        rights: Some(Cow::Borrowed(&rules.rights)),
        preflight: rules.preflight,
    }
}

/// The route of one interpretation of a request.
fn longest_prefix_match<'s>(
    rules: &'s AccessRules,
    method: &str,
    matches: &dyn Fn(&str) -> bool,
) -> RouteMatch<'s> {
    let found = rules
        .routes
        .iter()
        .rev()
        .filter(|route| allows_method(&route.methods, method) && matches(&route.prefix))
        // `max_by_key` returns the last of several maxima, hence the reverse order.
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

/// An empty list allows all methods. Methods are case-sensitive (RFC 9110 section 9.1). `GET` includes `HEAD`, which
/// servers implement as a `GET`.
fn allows_method(methods: &[String], method: &str) -> bool {
    methods.is_empty()
        || methods
            .iter()
            .any(|one| one == method || (one == "GET" && method == "HEAD"))
}
