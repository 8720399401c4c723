//! Whether a request may go on to the server.
//!
//! Owns the order of the questions: preflight, open path, key, grant, scope. Where keys stand is `credential`'s, what
//! is known of them `cache`'s, what a grant allows `scope`'s.

use std::sync::Arc;

use crate::grant::Grant;
use crate::refusal::Refusal;

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
    /// Who sent it, as far as is known: a key that is known, but not for this.
    pub id: Option<Arc<Grant>>,
    /// The name of the route that decided; none where no route fits, or none could be found.
    pub route: Option<Arc<str>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            id: None,
            route: None,
        }
    }
}
