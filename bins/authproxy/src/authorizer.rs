//! Allows or denies a request.
//!
//! Owns the order of the checks (preflight, open path, key, grant, scope) and which hosts a request names. `credential`
//! extracts the key, `cache` looks it up, `scope` checks what its grant allows.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use hostkit::clock;
use hyper::header::HOST;
use hyper::http::request::Parts;

use crate::cache::{CacheSnapshot, KeyLookup, KeyLookupResult, PermissionsCache, PurgeTarget};
use crate::credential;
use crate::grant::{Grant, KeyHash};
use crate::headers::{PeerAddress, overrides};
use crate::permissions::file::AclFile;
use crate::permissions::{BackendStatus, PermissionsBackend as _, RemoteBackend};
use crate::preflight;
use crate::request_error::RequestError;
use crate::scope::{self, AccessRequest};
use crate::settings::{AccessRules, PreflightPolicy, SiteSettings};

/// The least time between two warnings about denied preflights.
const PREFLIGHT_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// A request is forwarded to the upstream, or is a preflight that is answered here.
#[derive(Debug, Clone)]
pub(crate) struct AllowDecision {
    /// `None` where no key was looked up.
    pub grant: Option<Arc<Grant>>,
    /// The name of the matched route, for metrics.
    pub route: Option<Arc<str>>,
    pub reason: AllowReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AllowReason {
    ValidKey,
    /// The grant allows it, but has expired in the cache while the permissions backend fails (stale-if-error).
    StaleGrant,
    /// The path needs no key. A key that is sent is not looked up, so that open paths do not depend on the backend.
    OpenPath,
    /// A CORS preflight, which never carries a key, with `cors-preflight: pass`.
    ForwardedPreflight,
    /// A CORS preflight that is answered here.
    AnsweredPreflight,
    /// The permissions backend is unavailable, and `--fail-open` is on.
    FailOpen,
}

#[derive(Debug, Clone)]
pub(crate) struct DenyDecision {
    pub error: RequestError,
    /// More about the cause, for the access log and the warning.
    pub detail: Option<Cow<'static, str>>,
    /// The grant of a key that is valid, but not for this request.
    pub grant: Option<Arc<Grant>>,
    /// The hash of an unknown key.
    pub key: Option<KeyHash>,
    /// The name of the matched route.
    pub route: Option<Arc<str>>,
    /// The rights that the request needs, if the key lacks one of them.
    pub required_rights: Box<[String]>,
}

impl DenyDecision {
    /// The message of the response, with the rights that the key lacks.
    pub(crate) fn message(&self) -> Cow<'static, str> {
        let message = self.error.message();
        let has = |right| (self.grant.as_ref()).is_some_and(|grant| grant.rights.contains(right));
        let missing = self.required_rights.iter().filter(|right| !has(right));
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        match missing.as_slice() {
            [] => message.into(),
            missing => format!("{message}: {}", missing.join(", ")).into(),
        }
    }
}

impl From<RequestError> for DenyDecision {
    fn from(error: RequestError) -> Self {
        Self {
            error,
            detail: error.detail().map(Cow::Borrowed),
            grant: None,
            key: None,
            route: None,
            required_rights: Box::default(),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Authorizer {
    source: GrantSource,
    last_preflight_warning: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug, Clone)]
pub(crate) enum GrantSource {
    /// In memory, so that it needs no cache.
    File(Arc<AclFile>),
    Remote(PermissionsCache<RemoteBackend>),
}

impl Authorizer {
    pub(crate) fn new(source: GrantSource) -> Self {
        Self {
            source,
            last_preflight_warning: Arc::default(),
        }
    }

    /// Allows or denies a request. Waits only for a key that is not in the cache of this process.
    pub(crate) async fn decide(
        &self,
        site: &SiteSettings,
        parts: &Parts,
        client: &PeerAddress,
    ) -> Result<AllowDecision, DenyDecision> {
        let decision = decide(site, parts, client.trusted, |key| self.look_up(key)).await;
        if let Err(denied) = &decision
            && denied.error == RequestError::MissingKey
            && preflight::requested_method(parts).is_some()
        {
            self.warn_of_denied_preflight();
        }
        decision
    }

    /// Names the setting: without it an operator sees only that browsers fail.
    fn warn_of_denied_preflight(&self) {
        let last = self.last_preflight_warning.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= PREFLIGHT_WARNING_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!(
                "CORS preflight without a key denied: set `cors` in the configuration file to answer preflights here, \
                 or --cors-preflight=pass to forward them"
            );
        }
    }

    async fn look_up(&self, key: KeyHash) -> KeyLookupResult {
        match &self.source {
            GrantSource::File(file) => Ok(match file.look_up(key).await?.grant {
                Some(grant) => KeyLookup::Grant {
                    grant,
                    stale: false,
                },
                None => KeyLookup::UnknownKey,
            }),
            GrantSource::Remote(cache) => cache.look_up(key).await,
        }
    }

    /// Removes keys from the cache, and returns how many. Must be called inside a runtime.
    pub(crate) fn purge(&self, target: &PurgeTarget) -> usize {
        match &self.source {
            GrantSource::File(_) => 0,
            GrantSource::Remote(cache) => cache.purge(target),
        }
    }

    /// Reads the ACL file again, if there is one, even if no change was noticed. Blocks on the disk.
    pub(crate) fn reread(&self) {
        if let GrantSource::File(file) = &self.source {
            file.reread();
        }
    }

    pub(crate) fn status(&self) -> BackendStatus {
        match &self.source {
            GrantSource::File(file) => BackendStatus {
                file: Some(file.status()),
                servers: Vec::new(),
            },
            GrantSource::Remote(cache) => cache.backend().status(),
        }
    }

    /// The counters of the cache, if there is one.
    pub(crate) fn snapshot(&self) -> Option<CacheSnapshot> {
        match &self.source {
            GrantSource::File(_) => None,
            GrantSource::Remote(cache) => Some(cache.snapshot()),
        }
    }
}

pub(crate) async fn decide<F: Future<Output = KeyLookupResult>>(
    site: &SiteSettings,
    parts: &Parts,
    trusted: bool,
    look_up: impl FnOnce(KeyHash) -> F,
) -> Result<AllowDecision, DenyDecision> {
    let path = parts.uri.path();
    if let Some(method) = preflight::requested_method(parts) {
        let requested = scope::match_route(&site.rules, method, path)?;
        let reason = match requested.preflight {
            PreflightPolicy::Off => None,
            PreflightPolicy::Answer => Some(AllowReason::AnsweredPreflight),
            PreflightPolicy::Pass => Some(AllowReason::ForwardedPreflight),
        };
        if let Some(reason) = reason {
            return Ok(AllowDecision {
                grant: None,
                route: requested.name.cloned(),
                reason,
            });
        }
    }
    let mut matched = scope::match_route(&site.rules, parts.method.as_str(), path)?;
    if !site.rules.routes.is_empty() {
        for method in overrides::method_overrides(&parts.headers) {
            matched = matched.and(scope::match_route(&site.rules, method?, path)?);
        }
    }
    let allow = |grant, reason| AllowDecision {
        grant,
        route: matched.name.cloned(),
        reason,
    };
    let deny = |error, grant| DenyDecision {
        error,
        detail: None,
        grant,
        key: None,
        route: matched.name.cloned(),
        required_rights: Box::default(),
    };
    let Some(rights) = &matched.rights else {
        return Ok(allow(None, AllowReason::OpenPath));
    };
    let key = credential::extract_key(parts, &site.credentials)
        .and_then(|key| key.ok_or(RequestError::MissingKey))
        .map_err(|error| deny(error, None))?;
    let (grant, stale) = match look_up(key).await {
        Ok(KeyLookup::Grant { grant, stale }) => (grant, stale),
        Ok(KeyLookup::UnknownKey) => {
            let key = Some(key);
            return Err(DenyDecision {
                key,
                ..deny(RequestError::UnknownKey, None)
            });
        }
        Err(_) if site.fail_open => return Ok(allow(None, AllowReason::FailOpen)),
        Err(unavailable) => {
            return Err(DenyDecision {
                detail: Some(unavailable.detail.into()),
                ..deny(
                    RequestError::PermissionsUnavailable(unavailable.cause),
                    None,
                )
            });
        }
    };
    match check_grant(&grant, site, parts, trusted, rights) {
        Ok(()) if stale => Ok(allow(Some(grant), AllowReason::StaleGrant)),
        Ok(()) => Ok(allow(Some(grant), AllowReason::ValidKey)),
        Err(RequestError::MissingRight) => Err(DenyDecision {
            required_rights: Box::from(&rights[..]),
            ..deny(RequestError::MissingRight, Some(grant))
        }),
        Err(error) => Err(deny(error, Some(grant))),
    }
}

fn check_grant(
    grant: &Grant,
    site: &SiteSettings,
    parts: &Parts,
    trusted: bool,
    rights: &[String],
) -> Result<(), RequestError> {
    // An ambiguous host is an error only where the grant restricts hosts.
    let hosts = if grant.hosts.is_empty() {
        Vec::new()
    } else {
        named_hosts(parts, &site.rules, trusted)?
    };
    // Most grants do not expire, and need no clock. With a clock before 1970 every expiring grant has expired.
    let now = grant.expires.map_or(0, |_| {
        let now = clock::now().duration_since(UNIX_EPOCH);
        now.map_or(u64::MAX, |now| now.as_secs())
    });
    let request = AccessRequest {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        hosts: &hosts,
        rights,
        now,
    };
    scope::check_grant(grant, &request)?;
    if !grant.methods.is_empty() {
        for method in overrides::method_overrides(&parts.headers) {
            let method = &method?.to_ascii_uppercase();
            scope::check_grant(grant, &AccessRequest { method, ..request })?;
        }
    }
    Ok(())
}

/// All hosts that a request names: servers differ over which of them they use.
fn named_hosts<'p>(
    parts: &'p Parts,
    rules: &AccessRules,
    trusted: bool,
) -> Result<Vec<Cow<'p, str>>, RequestError> {
    if let Some(name) = &rules.host_parameter {
        let query = parts.uri.query().unwrap_or_default();
        return match credential::find_parameter(query, name) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(parameter)) if !parameter.semicolon => Ok(vec![match parameter.value {
                Cow::Borrowed(value) => String::from_utf8_lossy(value),
                Cow::Owned(value) => String::from_utf8_lossy(&value).into_owned().into(),
            }]),
            Ok(Some(_)) | Err(_) => Err(RequestError::AmbiguousHost),
        };
    }
    // `request_validation` lets one Host pass, and no other host in a target in absolute form.
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    // Headers of untrusted peers do not reach the upstream.
    let forwarded = trusted.then(|| overrides::host_overrides(&parts.headers));
    let hosts = host.into_iter().chain(forwarded.into_iter().flatten());
    Ok(hosts.map(Cow::Borrowed).collect())
}
