//! Who follows what: one session per ensemble, one follower per pattern and way to read it, both for as long as somebody looks.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::follower::PatternFollower;
use super::session::{EnsembleContext, EnsembleStats, SessionLink, keep, supervise};
use super::{
    DiscoverySnapshot, Ensemble, MemberDecoder, MemberFormat, PathPattern, SnapshotReceiver,
};

/// How ensembles are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// The session timeout to ask for (30 s). ZooKeeper grants 2 to 20 of its ticks.
    pub session_timeout: Duration,
    /// How often all is listed again, to find what no event has told (60 s, a quarter of it random).
    pub audit: Duration,
    /// The least time between two attempts to open a session (100 ms).
    pub backoff_min: Duration,
    /// The longest time between two attempts (10 s).
    pub backoff_max: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(30),
            audit: Duration::from_secs(60),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// The sessions of this process. A clone is the same.
#[derive(Debug)]
pub struct SessionPool<D: MemberDecoder = MemberFormat> {
    inner: Arc<PoolInner<D>>,
}

impl<D: MemberDecoder> Clone for SessionPool<D> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

#[derive(Debug)]
struct PoolInner<D: MemberDecoder> {
    options: SessionOptions,
    open: Mutex<BTreeMap<Ensemble, EnsembleSession<D>>>,
}

/// Who is told of the tree that matches a pattern.
type SnapshotSenders<D> =
    HashMap<(PathPattern, D), watch::Sender<Arc<DiscoverySnapshot<<D as MemberDecoder>::Output>>>>;

/// An ensemble that is followed.
struct EnsembleSession<D: MemberDecoder> {
    shared: Arc<EnsembleContext>,
    link: watch::Receiver<SessionLink>,
    followed: SnapshotSenders<D>,
    _session: JoinSet<()>,
}

impl<D: MemberDecoder> fmt::Debug for EnsembleSession<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EnsembleSession({}, {})",
            self.shared.ensemble,
            self.followed.len()
        )
    }
}

impl<D: MemberDecoder> SessionPool<D> {
    /// No session yet: each is opened when it is first needed.
    #[must_use]
    pub fn new(options: SessionOptions) -> Self {
        let open = Mutex::default();
        Self {
            inner: Arc::new(PoolInner { options, open }),
        }
    }

    /// Follows all that `pattern` matches, below the ensemble's chroot. Returns at once; until the first complete
    /// reading [`DiscoverySnapshot::synced_at`] is `None`. Equal calls share one follower.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn follow(
        &self,
        ensemble: &Ensemble,
        pattern: &PathPattern,
        decoder: &D,
    ) -> SnapshotReceiver<D::Output> {
        let mut open = self.open();
        let of = open.entry(ensemble.clone()).or_insert_with(|| {
            let shared = Arc::new(EnsembleContext::new(
                ensemble.clone(),
                self.inner.options.clone(),
            ));
            let connecting = format!("connecting to ZooKeeper at {ensemble}");
            let (sender, link) = watch::channel(SessionLink::Down(connecting));
            let mut session = JoinSet::new();
            let keeping = Arc::clone(&shared);
            session.spawn(supervise(format!("session at {ensemble}"), move || {
                keep(Arc::clone(&keeping), sender.clone())
            }));
            EnsembleSession {
                shared,
                link,
                followed: HashMap::new(),
                _session: session,
            }
        });
        let key = (pattern.clone(), decoder.clone());
        if let Some(known) = of.followed.get(&key) {
            return known.subscribe();
        }
        let (out, follow) = watch::channel(Arc::new(DiscoverySnapshot::default()));
        of.followed.insert(key, out.clone());
        let (sessions, shared, link) = (self.clone(), Arc::clone(&of.shared), of.link.clone());
        let (pattern, decoder) = (pattern.clone(), decoder.clone());
        tokio::spawn(supervise(format!("following {pattern}"), move || {
            let (pattern, decoder, out) = (pattern.clone(), decoder.clone(), out.clone());
            let follower =
                PatternFollower::new(Arc::clone(&shared), link.clone(), pattern, decoder, out);
            Box::new(follower).run(sessions.clone())
        }));
        follow
    }

    /// How things stand with each ensemble that is followed, in the order of their names.
    #[must_use]
    pub fn stats(&self) -> Vec<EnsembleStats> {
        let open = self.open();
        open.values()
            .map(|of| of.shared.stats(&of.link.borrow()))
            .collect()
    }

    /// Forgets a follower if really nobody looks any more, and returns whether that is so. With its last follower an
    /// ensemble's session ends.
    pub(super) fn forget(&self, ensemble: &Ensemble, pattern: &PathPattern, decoder: &D) -> bool {
        let mut open = self.open();
        let Some(of) = open.get_mut(ensemble) else {
            return true;
        };
        let key = (pattern.clone(), decoder.clone());
        if of.followed.get(&key).is_some_and(|out| !out.is_closed()) {
            return false;
        }
        of.followed.remove(&key);
        if of.followed.is_empty() {
            open.remove(ensemble);
        }
        true
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<Ensemble, EnsembleSession<D>>> {
        self.inner
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
