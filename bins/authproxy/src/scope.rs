//! What a grant allows, and which right a request needs.
//!
//! Owns hosts, paths, methods, rights and expiry, and which paths can be judged at all. Pure: the time is an argument.
//! Who is asked for a grant is `permissions`'; the order of the door's questions is `door`'s.

mod host;
mod path;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::grant::Grant;
use crate::refusal::Refusal;
use crate::settings::Rules;

pub use host::pattern as host_pattern;
pub use path::{is_plain, prefix};

/// What a request asks of a grant.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The method as it was sent.
    pub method: &'a str,
    /// The path as it was sent, without the query.
    pub path: &'a str,
    /// The host it is about, with or without a port; empty when it names none.
    pub host: &'a str,
    /// The rights it needs, all of them.
    pub rights: &'a [String],
    /// Seconds since 1970 UTC.
    pub now: u64,
}

/// Whether a grant is good for a request.
///
/// # Errors
/// The first thing that it is not good for, in this order: time, rights, host, path, method. A path that servers read
/// differently is [`Refusal::AmbiguousPath`] where the grant has `paths`.
pub fn allows(grant: &Grant, asked: &Asked<'_>) -> Result<(), Refusal> {
    if grant.expires.is_some_and(|end| asked.now >= end) {
        return Err(Refusal::ExpiredKey);
    }
    if !asked.rights.iter().all(|one| grant.rights.contains(one)) {
        return Err(Refusal::MissingRight);
    }
    if !grant.hosts.is_empty() && !host::matches(&grant.hosts, asked.host) {
        return Err(Refusal::HostNotAllowed);
    }
    if !grant.paths.is_empty() && !grant.paths.iter().any(|prefix| path::is_root(prefix)) {
        let path = path::plain(asked.path).ok_or(Refusal::AmbiguousPath)?;
        if !grant.paths.iter().any(|prefix| path.begins(prefix)) {
            return Err(Refusal::PathNotAllowed);
        }
    }
    if !is_method(&grant.methods, asked.method) {
        return Err(Refusal::MethodNotAllowed);
    }
    Ok(())
}

/// What the route table says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'s> {
    /// The route; none where no route fits.
    pub name: Option<&'s Arc<str>>,
    /// What is needed; all of them. None: the path is open, and needs no key.
    pub rights: Option<&'s [String]>,
}

/// Which route decides about a request: the longest prefix that fits, with a method that fits. Of two equally long ones
/// that which names methods, then the first.
///
/// # Errors
/// [`Refusal::AmbiguousPath`]: there are routes, and servers read this path differently.
pub fn route<'s>(rules: &'s Rules, method: &str, path: &str) -> Result<Matched<'s>, Refusal> {
    let everywhere = Matched {
        name: None,
        rights: Some(&rules.rights),
    };
    if rules.routes.is_empty() {
        return Ok(everywhere);
    }
    let judged = match path::plain(path) {
        Some(path) => Some(path),
        None if rules
            .routes
            .iter()
            .all(|route| path::is_root(&route.prefix)) =>
        {
            None
        }
        None => return Err(Refusal::AmbiguousPath),
    };
    let fits = |prefix: &str| match &judged {
        Some(path) => path.begins(prefix),
        // Every route is about all paths.
        None => true,
    };
    let found = rules
        .routes
        .iter()
        .rev()
        .filter(|route| is_method(&route.methods, method) && fits(&route.prefix))
        // The last of the greatest, hence from the end.
        .max_by_key(|route| (path::length(&route.prefix), !route.methods.is_empty()));
    Ok(found.map_or(everywhere, |route| Matched {
        name: Some(&route.name),
        rights: route.rights.as_deref(),
    }))
}

/// Whether a method is in a list; in an empty one all are. Case matters (RFC 9110 section 9.1). `GET` brings `HEAD`,
/// which servers answer by doing a `GET`.
fn is_method(methods: &[String], method: &str) -> bool {
    methods.is_empty()
        || methods
            .iter()
            .any(|one| one == method || (one == "GET" && method == "HEAD"))
}
