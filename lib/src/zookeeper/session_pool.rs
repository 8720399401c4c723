//! One session per ensemble and one follower per pattern and decoder, for as long as a receiver exists.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::follower::PatternFollower;
use super::session::{EnsembleContext, EnsembleStats, SessionLink, maintain_session, supervise};
use super::{
    DiscoverySnapshot, Ensemble, MemberDecoder, MemberFormat, PathPattern, SnapshotReceiver,
};

/// Options of the sessions of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// The session timeout to request (default 30 s). ZooKeeper grants 2 to 20 of its ticks.
    pub session_timeout: Duration,
    /// The interval between audits, which find changes that no event reported (default 60 s, plus or minus a quarter).
    pub audit: Duration,
    /// The shortest pause between two attempts to open a session (default 100 ms).
    pub backoff_min: Duration,
    /// The longest pause between two attempts (default 10 s).
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

/// The sessions of this process. Clones share them.
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
    ensembles: Mutex<BTreeMap<Ensemble, EnsembleSession<D>>>,
}

/// The followers of an ensemble, by pattern and decoder.
type SnapshotSenders<D> =
    HashMap<(PathPattern, D), watch::Sender<Arc<DiscoverySnapshot<<D as MemberDecoder>::Output>>>>;

struct EnsembleSession<D: MemberDecoder> {
    context: Arc<EnsembleContext>,
    link: watch::Receiver<SessionLink>,
    followers: SnapshotSenders<D>,
    _task: JoinSet<()>,
}

impl<D: MemberDecoder> fmt::Debug for EnsembleSession<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "EnsembleSession({}, {})",
            self.context.ensemble,
            self.followers.len()
        )
    }
}

impl<D: MemberDecoder> SessionPool<D> {
    /// A pool without sessions: each is opened by the first follower that needs it.
    #[must_use]
    pub fn new(options: SessionOptions) -> Self {
        let ensembles = Mutex::default();
        Self {
            inner: Arc::new(PoolInner { options, ensembles }),
        }
    }

    /// Follows everything that `pattern` matches, below the ensemble's chroot. Returns at once; until the first
    /// complete scan [`DiscoverySnapshot::synced_at`] is `None`. Equal calls share one follower.
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
        let mut ensembles = self.lock();
        let session = ensembles.entry(ensemble.clone()).or_insert_with(|| {
            let context = Arc::new(EnsembleContext::new(
                ensemble.clone(),
                self.inner.options.clone(),
            ));
            let connecting = format!("connecting to ZooKeeper at {ensemble}");
            let (sender, link) = watch::channel(SessionLink::Down(connecting));
            let mut task = JoinSet::new();
            let session_context = Arc::clone(&context);
            task.spawn(supervise(
                format!("ZooKeeper session {ensemble}"),
                move || maintain_session(Arc::clone(&session_context), sender.clone()),
            ));
            EnsembleSession {
                context,
                link,
                followers: HashMap::new(),
                _task: task,
            }
        });
        let key = (pattern.clone(), decoder.clone());
        if let Some(sender) = session.followers.get(&key) {
            return sender.subscribe();
        }
        let (out, follow) = watch::channel(Arc::new(DiscoverySnapshot::default()));
        session.followers.insert(key, out.clone());
        let (sessions, context, link) = (
            self.clone(),
            Arc::clone(&session.context),
            session.link.clone(),
        );
        let (pattern, decoder) = (pattern.clone(), decoder.clone());
        tokio::spawn(supervise(
            format!("ZooKeeper follower {pattern}"),
            move || {
                let (pattern, decoder, out) = (pattern.clone(), decoder.clone(), out.clone());
                let follower =
                    PatternFollower::new(Arc::clone(&context), link.clone(), pattern, decoder, out);
                Box::new(follower).run(sessions.clone())
            },
        ));
        follow
    }

    /// The state of each followed ensemble, ordered by ensemble.
    #[must_use]
    pub fn stats(&self) -> Vec<EnsembleStats> {
        let ensembles = self.lock();
        ensembles
            .values()
            .map(|session| session.context.stats(&session.link.borrow()))
            .collect()
    }

    /// Removes a follower unless a receiver exists again, and returns whether it was removed. With its last follower an
    /// ensemble's session ends.
    pub(super) fn remove_follower(
        &self,
        ensemble: &Ensemble,
        pattern: &PathPattern,
        decoder: &D,
    ) -> bool {
        let mut ensembles = self.lock();
        let Some(session) = ensembles.get_mut(ensemble) else {
            return true;
        };
        let key = (pattern.clone(), decoder.clone());
        if session
            .followers
            .get(&key)
            .is_some_and(|out| !out.is_closed())
        {
            return false;
        }
        session.followers.remove(&key);
        if session.followers.is_empty() {
            ensembles.remove(ensemble);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ensemble, EnsembleSession<D>>> {
        self.inner
            .ensembles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
