//! Whether a request may go on to the server.
//!
//! Owns the order of the questions: preflight, open path, key, grant, scope; and which host a request is about. Where
//! keys stand is `credential`'s, what is known of them `cache`'s, what a grant allows `scope`'s.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use hostkit::clock;
use hyper::Method;
use hyper::header::{
    ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, HOST, ORIGIN, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;

use crate::cache::{Answer, Cache, Known, Purge, Snapshot};
use crate::credential;
use crate::grant::{Grant, KeyHash};
use crate::permissions::file::AclFile;
use crate::permissions::{Permissions as _, Remote, Status};
use crate::refusal::Refusal;
use crate::scope::{self, Asked};
use crate::settings::{Rules, Site};

/// What is said of a request that goes on to the server.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Who sent it; nobody where no key was looked at ([`Mark::Open`], [`Mark::Preflight`]) or could be
    /// ([`Mark::FailOpen`]).
    pub id: Option<Arc<Grant>>,
    /// The name of the route that decided, for metrics; none where no route fits.
    pub route: Option<Arc<str>>,
    /// Why it may.
    pub mark: Mark,
}

/// Why a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Its key allows it.
    Known,
    /// Its key allowed it when the permissions engine was last heard of; now it fails.
    Stale,
    /// The path needs no key, and one that is sent is not looked at: open paths do not depend on the engine.
    Open,
    /// A browser asks whether it may ask: a CORS preflight, which never carries a key.
    Preflight,
    /// The permissions engine cannot be asked, and `--fail-open` is on.
    FailOpen,
}

/// What is said of a request that is answered here.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// What is known of it beyond that, for the access log and the warning.
    pub detail: Option<Cow<'static, str>>,
    /// Who sent it, as far as is known: a key that is known, but not for this.
    pub id: Option<Arc<Grant>>,
    /// Which key it was, if nobody has it.
    pub key: Option<KeyHash>,
    /// The name of the route that decided; none where no route fits, or none could be found.
    pub route: Option<Arc<str>>,
    /// The rights that the request needs, if the key lacks one of them.
    pub needed: Box<[String]>,
}

impl Refused {
    /// The sentence for people: with the rights that the key lacks.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        let sentence = self.refusal.sentence();
        let has = |right| (self.id.as_ref()).is_some_and(|grant| grant.rights.contains(right));
        let missing = self.needed.iter().filter(|right| !has(right));
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        match missing.as_slice() {
            [] => sentence.into(),
            missing => format!("{sentence}: {}", missing.join(", ")).into(),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            detail: match refusal {
                Refusal::Malformed(rule) => Some(Cow::Borrowed(rule)),
                _ => None,
            },
            id: None,
            key: None,
            route: None,
            needed: Box::default(),
        }
    }
}

/// Lets requests pass, or not.
#[derive(Debug, Clone)]
pub struct Door {
    source: Source,
}

/// Where grants come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, which is in memory.
    File(Arc<AclFile>),
    /// Engines that are asked over the network, whose answers are remembered.
    Remote(Cache<Remote>),
}

impl Door {
    /// A door that asks this.
    #[must_use]
    pub const fn new(source: Source) -> Self {
        Self { source }
    }

    /// Whether a request may go on. Waits only for a key of which this process knows nothing.
    ///
    /// # Errors
    /// Why not.
    pub async fn decide(&self, site: &Site, parts: &Parts) -> Result<Pass, Refused> {
        decide(site, parts, |key| self.find(key)).await
    }

    async fn find(&self, key: KeyHash) -> Answer {
        match &self.source {
            Source::File(file) => Ok(match file.find(key).await?.grant {
                Some(grant) => Known::Grant {
                    grant,
                    stale: false,
                },
                None => Known::Nobody,
            }),
            Source::Remote(cache) => cache.find(key).await,
        }
    }

    /// Forgets what is remembered; how many keys that was. Of a file nothing is. Has to be called inside a runtime.
    pub fn purge(&self, what: &Purge) -> usize {
        match &self.source {
            Source::File(_) => 0,
            Source::Remote(cache) => cache.purge(what),
        }
    }

    /// Reads the file of keys again, if there is one, whether or not it was noticed to have changed. Blocks while the
    /// disk does.
    pub fn reread(&self) {
        if let Source::File(file) = &self.source {
            file.reread();
        }
    }

    /// What the engine tells of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        match &self.source {
            Source::File(file) => Status {
                file: Some(file.status()),
                servers: Vec::new(),
            },
            Source::Remote(cache) => cache.engine().status(),
        }
    }

    /// What the cache has done; none in front of a file.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        match &self.source {
            Source::File(_) => None,
            Source::Remote(cache) => Some(cache.snapshot()),
        }
    }
}

/// The questions, in their order.
pub(crate) async fn decide<F: Future<Output = Answer>>(
    site: &Site,
    parts: &Parts,
    find: impl FnOnce(KeyHash) -> F,
) -> Result<Pass, Refused> {
    let path = parts.uri.path();
    let preflight = preflight(parts);
    let method = preflight.unwrap_or(parts.method.as_str());
    let matched = scope::route(&site.rules, method, path)?;
    let pass = |id, mark| Pass {
        id,
        route: matched.name.cloned(),
        mark,
    };
    let refuse = |refusal, id| Refused {
        refusal,
        detail: None,
        id,
        key: None,
        route: matched.name.cloned(),
        needed: Box::default(),
    };
    if preflight.is_some() {
        return Ok(pass(None, Mark::Preflight));
    }
    let Some(rights) = matched.rights else {
        return Ok(pass(None, Mark::Open));
    };
    let key = credential::key(parts, &site.credentials)
        .and_then(|key| key.ok_or(Refusal::NoKey))
        .map_err(|refusal| refuse(refusal, None))?;
    let (grant, stale) = match find(key).await {
        Ok(Known::Grant { grant, stale }) => (grant, stale),
        Ok(Known::Nobody) => {
            let key = Some(key);
            return Err(Refused {
                key,
                ..refuse(Refusal::UnknownKey, None)
            });
        }
        Err(_) if site.fail_open => return Ok(pass(None, Mark::FailOpen)),
        Err(unavailable) => {
            return Err(Refused {
                detail: Some(unavailable.why.into()),
                ..refuse(Refusal::EngineUnavailable(unavailable.cause), None)
            });
        }
    };
    match allows(&grant, site, parts, rights) {
        Ok(()) if stale => Ok(pass(Some(grant), Mark::Stale)),
        Ok(()) => Ok(pass(Some(grant), Mark::Known)),
        Err(Refusal::MissingRight) => Err(Refused {
            needed: rights.into(),
            ..refuse(Refusal::MissingRight, Some(grant))
        }),
        Err(refusal) => Err(refuse(refusal, Some(grant))),
    }
}

fn allows(grant: &Grant, site: &Site, parts: &Parts, rights: &[String]) -> Result<(), Refusal> {
    // Only where it decides must it be certain.
    let host = if grant.hosts.is_empty() {
        Cow::Borrowed("")
    } else {
        host(parts, &site.rules)?
    };
    // Most grants have no end, and need no clock. By one that cannot be right, everything is over.
    let now = grant.expires.map_or(0, |_| {
        let now = clock::now().duration_since(UNIX_EPOCH);
        now.map_or(u64::MAX, |now| now.as_secs())
    });
    let asked = Asked {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        host: &host,
        rights,
        now,
    };
    scope::allows(grant, &asked)
}

/// The host that a request is about; empty if it does not say.
fn host<'p>(parts: &'p Parts, rules: &Rules) -> Result<Cow<'p, str>, Refusal> {
    if let Some(name) = &rules.host_parameter {
        let query = parts.uri.query().unwrap_or_default();
        return match credential::parameter(query, name) {
            Ok(None) => Ok(Cow::Borrowed("")),
            Ok(Some(found)) if !found.semicolon => Ok(match found.value {
                Cow::Borrowed(value) => String::from_utf8_lossy(value),
                Cow::Owned(value) => String::from_utf8_lossy(&value).into_owned().into(),
            }),
            Ok(Some(_)) | Err(_) => Err(Refusal::AmbiguousHost),
        };
    }
    // There is one, and a target in absolute form has no other: the gate has seen to it.
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    Ok(Cow::Borrowed(host))
}

/// The method that a browser asks about, if this is a CORS preflight (Fetch standard, "CORS-preflight request"). With a
/// body or an upgrade it would be more than a question, and no browser sends it.
fn preflight(parts: &Parts) -> Option<&str> {
    let headers = &parts.headers;
    if parts.method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
    if has_body || headers.contains_key(UPGRADE) {
        return None;
    }
    headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()
}
