//! Whether a request may go on to the server.
//!
//! Owns the order of the questions: preflight, open path, key, grant, scope; and which host a request is about. Where
//! keys stand is `credential`'s, what is known of them `cache`'s, what a grant allows `scope`'s.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use hostkit::clock;
use hyper::header::HOST;
use hyper::http::request::Parts;

use crate::cache::{KeyLookup, KeyLookupResult, PermissionsCache, PurgeTarget, Snapshot};
use crate::credential;
use crate::grant::{Grant, KeyHash};
use crate::headers::{PeerAddress, overrides};
use crate::permissions::file::AclFile;
use crate::permissions::{BackendStatus, PermissionsBackend as _, RemoteBackend};
use crate::preflight;
use crate::request_error::RequestError;
use crate::scope::{self, AccessRequest};
use crate::settings::{AccessRules, PreflightPolicy, SiteSettings};

/// How often the log says at most that preflights are refused.
const MINUTE: Duration = Duration::from_secs(60);

/// What is said of a request that goes on to the server.
#[derive(Debug, Clone)]
pub struct AllowDecision {
    /// The grant of its key; none where no key was looked at ([`AllowReason::OpenPath`], [`AllowReason::ForwardedPreflight`], [`AllowReason::AnsweredPreflight`])
    /// or could be ([`AllowReason::FailOpen`]).
    pub grant: Option<Arc<Grant>>,
    /// The name of the route that decided, for metrics; none where no route fits.
    pub route: Option<Arc<str>>,
    /// Why it may.
    pub reason: AllowReason,
}

/// Why a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AllowReason {
    /// Its key allows it.
    ValidKey,
    /// Its key allowed it when the permissions engine was last heard of; now it fails.
    StaleGrant,
    /// The path needs no key, and one that is sent is not looked at: open paths do not depend on the engine.
    OpenPath,
    /// It is a CORS preflight, which never carries a key, and `cors-preflight` passes it on.
    ForwardedPreflight,
    /// It is a CORS preflight, and is answered here.
    AnsweredPreflight,
    /// The permissions engine cannot be asked, and `--fail-open` is on.
    FailOpen,
}

/// What is said of a request that is answered here.
#[derive(Debug, Clone)]
pub struct DenyDecision {
    /// Why.
    pub refusal: RequestError,
    /// What is known of it beyond that, for the access log and the warning.
    pub detail: Option<Cow<'static, str>>,
    /// Who sent it, as far as is known: a key that is known, but not for this.
    pub grant: Option<Arc<Grant>>,
    /// Which key it was, if nobody has it.
    pub key: Option<KeyHash>,
    /// The name of the route that decided; none where no route fits, or none could be found.
    pub route: Option<Arc<str>>,
    /// The rights that the request needs, if the key lacks one of them.
    pub required_rights: Box<[String]>,
}

impl DenyDecision {
    /// The sentence for people: with the rights that the key lacks.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        let sentence = self.refusal.message();
        let has = |right| (self.grant.as_ref()).is_some_and(|grant| grant.rights.contains(right));
        let missing = self.required_rights.iter().filter(|right| !has(right));
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        match missing.as_slice() {
            [] => sentence.into(),
            missing => format!("{sentence}: {}", missing.join(", ")).into(),
        }
    }
}

impl From<RequestError> for DenyDecision {
    fn from(refusal: RequestError) -> Self {
        Self {
            refusal,
            detail: refusal.detail().map(Cow::Borrowed),
            grant: None,
            key: None,
            route: None,
            required_rights: Box::default(),
        }
    }
}

/// Lets requests pass, or not.
#[derive(Debug, Clone)]
pub struct Authorizer {
    source: GrantSource,
    /// When the log last said that preflights are refused.
    told: Arc<Mutex<Option<Instant>>>,
}

/// Where grants come from.
#[derive(Debug, Clone)]
pub enum GrantSource {
    /// A file, which is in memory.
    File(Arc<AclFile>),
    /// Engines that are asked over the network, whose answers are remembered.
    Remote(PermissionsCache<RemoteBackend>),
}

impl Authorizer {
    /// A door that asks this.
    #[must_use]
    pub fn new(source: GrantSource) -> Self {
        Self {
            source,
            told: Arc::default(),
        }
    }

    /// Whether a request may go on. Waits only for a key of which this process knows nothing.
    ///
    /// # Errors
    /// Why not.
    pub async fn decide(
        &self,
        site: &SiteSettings,
        parts: &Parts,
        client: &PeerAddress,
    ) -> Result<AllowDecision, DenyDecision> {
        let decided = decide(site, parts, client.trusted, |key| self.look_up(key)).await;
        if let Err(refused) = &decided
            && refused.refusal == RequestError::MissingKey
            && preflight::requested_method(parts).is_some()
        {
            self.tell_of_preflight();
        }
        decided
    }

    /// Logs the name of the setting: without that an operator sees only that browsers fail.
    fn tell_of_preflight(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= MINUTE) {
            *told = Some(Instant::now());
            tracing::warn!(
                "a CORS preflight without a key was refused: give `cors` in the configuration file to have preflights \
                 answered here, or --cors-preflight=pass"
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

    /// Forgets what is remembered; how many keys that was. Of a file nothing is. Has to be called inside a runtime.
    pub fn purge(&self, what: &PurgeTarget) -> usize {
        match &self.source {
            GrantSource::File(_) => 0,
            GrantSource::Remote(cache) => cache.purge(what),
        }
    }

    /// Reads the file of keys again, if there is one, whether or not it was noticed to have changed. Blocks while the
    /// disk does.
    pub fn reread(&self) {
        if let GrantSource::File(file) = &self.source {
            file.reread();
        }
    }

    /// What the engine tells of itself.
    #[must_use]
    pub fn status(&self) -> BackendStatus {
        match &self.source {
            GrantSource::File(file) => BackendStatus {
                file: Some(file.status()),
                servers: Vec::new(),
            },
            GrantSource::Remote(cache) => cache.engine().status(),
        }
    }

    /// What the cache has done; none in front of a file.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        match &self.source {
            GrantSource::File(_) => None,
            GrantSource::Remote(cache) => Some(cache.snapshot()),
        }
    }
}

/// The questions, in their order.
pub(crate) async fn decide<F: Future<Output = KeyLookupResult>>(
    site: &SiteSettings,
    parts: &Parts,
    trusted: bool,
    find: impl FnOnce(KeyHash) -> F,
) -> Result<AllowDecision, DenyDecision> {
    let path = parts.uri.path();
    if let Some(method) = preflight::requested_method(parts) {
        let asked_about = scope::match_route(&site.rules, method, path)?;
        let mark = match asked_about.preflight {
            PreflightPolicy::Off => None,
            PreflightPolicy::Answer => Some(AllowReason::AnsweredPreflight),
            PreflightPolicy::Pass => Some(AllowReason::ForwardedPreflight),
        };
        if let Some(mark) = mark {
            return Ok(AllowDecision {
                grant: None,
                route: asked_about.name.cloned(),
                reason: mark,
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
    let deny = |refusal, grant| DenyDecision {
        refusal,
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
        .map_err(|refusal| deny(refusal, None))?;
    let (grant, stale) = match find(key).await {
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
                detail: Some(unavailable.why.into()),
                ..deny(
                    RequestError::PermissionsUnavailable(unavailable.cause),
                    None,
                )
            });
        }
    };
    match allows(&grant, site, parts, trusted, rights) {
        Ok(()) if stale => Ok(allow(Some(grant), AllowReason::StaleGrant)),
        Ok(()) => Ok(allow(Some(grant), AllowReason::ValidKey)),
        Err(RequestError::MissingRight) => Err(DenyDecision {
            required_rights: Box::from(&rights[..]),
            ..deny(RequestError::MissingRight, Some(grant))
        }),
        Err(refusal) => Err(deny(refusal, Some(grant))),
    }
}

fn allows(
    grant: &Grant,
    site: &SiteSettings,
    parts: &Parts,
    trusted: bool,
    rights: &[String],
) -> Result<(), RequestError> {
    // Only where it decides must it be certain.
    let hosts = if grant.hosts.is_empty() {
        Vec::new()
    } else {
        hosts(parts, &site.rules, trusted)?
    };
    // Most grants have no end, and need no clock. By one that cannot be right, everything is over.
    let now = grant.expires.map_or(0, |_| {
        let now = clock::now().duration_since(UNIX_EPOCH);
        now.map_or(u64::MAX, |now| now.as_secs())
    });
    let asked = AccessRequest {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        hosts: &hosts,
        rights,
        now,
    };
    scope::check_grant(grant, &asked)?;
    if !grant.methods.is_empty() {
        for method in overrides::method_overrides(&parts.headers) {
            let method = &method?.to_ascii_uppercase();
            scope::check_grant(grant, &AccessRequest { method, ..asked })?;
        }
    }
    Ok(())
}

/// The hosts that a request names.
fn hosts<'p>(
    parts: &'p Parts,
    rules: &AccessRules,
    trusted: bool,
) -> Result<Vec<Cow<'p, str>>, RequestError> {
    if let Some(name) = &rules.host_parameter {
        let query = parts.uri.query().unwrap_or_default();
        return match credential::find_parameter(query, name) {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(found)) if !found.semicolon => Ok(vec![match found.value {
                Cow::Borrowed(value) => String::from_utf8_lossy(value),
                Cow::Owned(value) => String::from_utf8_lossy(&value).into_owned().into(),
            }]),
            Ok(Some(_)) | Err(_) => Err(RequestError::AmbiguousHost),
        };
    }
    // There is one, and a target in absolute form has no other: the gate has seen to it.
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    // Those of all others do not reach the server.
    let forwarded = trusted.then(|| overrides::host_overrides(&parts.headers));
    let hosts = host.into_iter().chain(forwarded.into_iter().flatten());
    Ok(hosts.map(Cow::Borrowed).collect())
}
