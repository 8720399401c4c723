//! One follower: the loop that waits for events, read results, scans, the session and the clock, and publishes the
//! snapshots that [`FollowerState`] makes of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use zookeeper_client::EventType;

use super::follower_state::{FollowerState, ReadRequest, ReadResult};
use super::path_pattern::depth;
use super::reader::{ReadError, WatchEvent, ZnodeReader};
use super::scan::{MemberReuse, ScanOutcome, ScanRequest, scan};
use super::session::{ConnectedSession, EnsembleContext, SessionLink, count};
use super::{DiscoverySnapshot, MemberDecoder, PathPattern, SessionPool};
use crate::backoff::Backoff;
use crate::clock;

/// How many events wait for the loop before their sender does.
const EVENTS: usize = 1024;

/// The least time between two publications: a storm of changes costs no more than this often. A change after a quiet
/// moment is published at once.
const GAP: Duration = Duration::from_millis(5);

/// How long after a scan that failed the next one begins.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How many scans in a row may fail before the session, though connected, is given up.
const FAILURES: u32 = 3;

/// Further off than anything waits.
const FAR: Duration = Duration::from_secs(86_400);

pub(super) struct PatternFollower<D: MemberDecoder> {
    shared: Arc<EnsembleContext>,
    link: watch::Receiver<SessionLink>,
    out: watch::Sender<Arc<DiscoverySnapshot<D::Output>>>,
    decoder: D,
    live: FollowerState<D::Output>,

    connection: Option<FollowerSession<D>>,
    events: mpsc::Receiver<Box<WatchEvent>>,
    reads: JoinSet<(ReadRequest, ReadResult<D::Output>)>,
    /// The scan under way: at most one.
    scanning: JoinSet<(ScanPurpose, Vec<String>, ScanOutcome<D::Output>)>,
    /// Paths below which something has changed, where an event does not say what.
    dirty: BTreeSet<String>,

    /// Whether `live` agrees with ZooKeeper but for events under way, so that it may be published.
    agrees: bool,
    synced_at: Option<Duration>,
    problem: Option<String>,
    /// Whether something is to be published.
    news: bool,
    published: Instant,

    audit_at: Instant,
    audits: Backoff,
    retry_at: Option<Instant>,
    retries: Backoff,
    failures: u32,
}

/// A session, as this follower uses it.
struct FollowerSession<D> {
    up: Arc<ConnectedSession>,
    reader: Arc<ZnodeReader<D>>,
    /// Whether it is connected now.
    connected: bool,
    /// The persistent watch.
    watch: Option<JoinSet<()>>,
    /// Whether all has been read in this session.
    seen: bool,
    /// Whether all must be scanned, the watch set first.
    unsynced: bool,
}

/// What a scan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanPurpose {
    Sync,
    Audit,
    Dirty,
}

impl<D: MemberDecoder> PatternFollower<D> {
    pub(super) fn new(
        shared: Arc<EnsembleContext>,
        mut link: watch::Receiver<SessionLink>,
        pattern: PathPattern,
        decoder: D,
        out: watch::Sender<Arc<DiscoverySnapshot<D::Output>>>,
    ) -> Self {
        // After a defect what was published stands.
        let (before, now) = (Arc::clone(&out.borrow()), Instant::now());
        link.mark_changed();
        let (_, events) = mpsc::channel(1);
        let audit = shared.options.audit;
        Self {
            shared,
            link,
            out,
            live: FollowerState::new(pattern, decoder.format(), before.paths.clone()),
            decoder,
            connection: None,
            events,
            reads: JoinSet::new(),
            scanning: JoinSet::new(),
            dirty: BTreeSet::new(),
            agrees: false,
            synced_at: before.synced_at,
            problem: None,
            news: false,
            published: now,
            audit_at: now + FAR,
            audits: Backoff::new(audit * 3 / 4, audit * 5 / 4),
            retry_at: None,
            retries: Backoff::new(RETRY.0, RETRY.1),
            failures: 0,
        }
    }

    /// Follows until nobody looks any more. In a box, because a future has room for its arguments twice.
    pub(super) async fn run(mut self: Box<Self>, sessions: SessionPool<D>) {
        loop {
            let wake = self.wake();
            tokio::select! {
                () = self.out.closed() => {
                    let ensemble = &self.shared.ensemble;
                    if sessions.forget(ensemble, self.live.pattern(), &self.decoder) {
                        self.interrupt();
                        return;
                    }
                }
                changed = self.link.changed() => match changed {
                    Ok(()) => self.relink(),
                    // Only a session that nobody follows ends.
                    Err(_) => return,
                },
                Some(event) = self.events.recv() => self.note(event),
                Some(done) = self.reads.join_next() => match done {
                    Ok((question, answer)) => self.live.answered(&question, answer),
                    Err(_) => self.live.lose(),
                },
                Some(done) = self.scanning.join_next() => match done {
                    Ok((purpose, below, scanned)) => self.scanned(purpose, &below, scanned),
                    Err(defect) => self.failed(defect.to_string()),
                },
                () = sleep_until(wake) => {}
            }
            self.drain();
            self.ask();
            self.rescan();
            self.publish();
        }
    }

    fn wake(&self) -> Instant {
        let publish_at = self.news.then_some(self.published + GAP);
        let times = [self.retry_at, publish_at].into_iter().flatten();
        times.fold(self.audit_at, Instant::min)
    }

    /// Takes what else is ready, so that a burst is one change.
    fn drain(&mut self) {
        for _ in 0..EVENTS {
            match self.events.try_recv() {
                Ok(event) => self.note(event),
                Err(_) => break,
            }
        }
        while let Some(Ok((question, answer))) = self.reads.try_join_next() {
            self.live.answered(&question, answer);
        }
    }

    fn note(&mut self, event: Box<WatchEvent>) {
        let Some(connection) = &self.connection else {
            return;
        };
        let levels = self.live.pattern().depth();
        let of_member = depth(&event.path) > levels;
        if !connection.reader.fires_once()
            || (of_member && event.kind == EventType::NodeDataChanged)
        {
            self.live.note(&event);
        } else if !of_member {
            // Which of its children have changed is not told.
            self.dirty.insert(event.path);
        }
    }

    /// The session has changed.
    fn relink(&mut self) {
        self.interrupt();
        let link = self.link.borrow_and_update().clone();
        match link {
            SessionLink::Down(why) => {
                if let Some(connection) = &mut self.connection {
                    connection.connected = false;
                    connection.watch = None;
                }
                self.problem = Some(why);
                self.news = true;
            }
            SessionLink::Up(up) => {
                let before = self.connection.take();
                let same = before.filter(|before| before.up.session == up.session);
                let (reader, seen) = match same {
                    // Its watches that fire once still hold: the library sets them again.
                    Some(before) => (before.reader, before.seen),
                    None => {
                        let (sender, events) = mpsc::channel(EVENTS);
                        self.events = events;
                        let (up, shared) = (Arc::clone(&up), Arc::clone(&self.shared));
                        (
                            Arc::new(ZnodeReader::new(up, shared, self.decoder.clone(), sender)),
                            false,
                        )
                    }
                };
                self.connection = Some(FollowerSession {
                    up,
                    reader,
                    connected: true,
                    watch: None,
                    seen,
                    unsynced: true,
                });
            }
        }
    }

    /// Lets go of everything under way. What was asked is answered or fails without us: a request that is cancelled
    /// would take back the watch it sets, which old servers cannot do.
    fn interrupt(&mut self) {
        self.reads.detach_all();
        self.scanning.detach_all();
        self.live.interrupt();
        self.dirty.clear();
        self.agrees = false;
        self.audit_at = Instant::now() + FAR;
        self.retry_at = None;
        self.failures = 0;
    }

    /// Asks for what events have named.
    fn ask(&mut self) {
        let questions = self.live.apply();
        let Some(connection) = &self.connection else {
            return;
        };
        for question in questions {
            let reader = Arc::clone(&connection.reader);
            self.reads.spawn(async move {
                let path = &question.key.path;
                let answer = match &question.key.member {
                    Some(name) => ReadResult::Member(reader.member(path, name).await),
                    None => ReadResult::Data(reader.data(path).await),
                };
                (question, answer)
            });
        }
    }

    /// Starts the scan that is due, if one is.
    fn rescan(&mut self) {
        let now = Instant::now();
        let Some(connection) = &mut self.connection else {
            return;
        };
        let waits = self.retry_at.is_some_and(|at| at > now);
        if !connection.connected || !self.scanning.is_empty() || waits {
            return;
        }
        self.retry_at = None;
        connection.unsynced |= self.live.take_lost();
        let (purpose, reuse) = if connection.unsynced && connection.seen {
            (ScanPurpose::Sync, MemberReuse::Immutable)
        } else if connection.unsynced {
            (ScanPurpose::Sync, MemberReuse::Nothing)
        } else if !self.dirty.is_empty() {
            (ScanPurpose::Dirty, MemberReuse::All)
        } else if self.audit_at <= now {
            (ScanPurpose::Audit, MemberReuse::All)
        } else {
            return;
        };
        let dirty = std::mem::take(&mut self.dirty);
        let below = match purpose {
            ScanPurpose::Sync | ScanPurpose::Audit => vec![self.live.pattern().root().to_owned()],
            ScanPurpose::Dirty => dirty.into_iter().collect(),
        };
        let order = ScanRequest {
            pattern: self.live.pattern().clone(),
            below: below.clone(),
            reuse,
            watch: purpose == ScanPurpose::Sync,
            known: self.live.paths().clone(),
        };
        self.live.begin_scan();
        let reader = Arc::clone(&connection.reader);
        self.scanning
            .spawn(async move { (purpose, below, scan(reader, order).await) });
    }

    fn scanned(&mut self, purpose: ScanPurpose, below: &[String], scanned: ScanOutcome<D::Output>) {
        // Events that are older than the scan's last answer stand before it: what they touch is not the scan's.
        self.drain();
        self.ask();
        let Some(connection) = &mut self.connection else {
            return;
        };
        if scanned.watch.is_some() {
            connection.watch = scanned.watch;
        }
        let ensemble = &self.shared.ensemble;
        let found = match scanned.found {
            Ok(found) => found,
            Err(ReadError::OldServer) => {
                info!(
                    "ZooKeeper at {ensemble} is older than 3.6: it is followed by a watch per path"
                );
                self.shared.old_server.store(true, Ordering::Relaxed);
                connection.connected = false;
                connection.up.give_up.notify_one();
                return;
            }
            Err(ReadError::Lost(why) | ReadError::Path(why)) => return self.failed(why),
        };
        self.failures = 0;
        self.retries = Backoff::new(RETRY.0, RETRY.1);
        let (different, again) = self.live.merge(below, found);
        self.dirty.extend(again);
        match purpose {
            ScanPurpose::Dirty => return,
            ScanPurpose::Sync => {
                connection.seen = true;
                connection.unsynced = false;
                self.agrees = true;
                self.problem = None;
            }
            ScanPurpose::Audit if different > 0 => {
                count(&self.shared.counters.repairs);
                let pattern = self.live.pattern();
                warn!("{pattern} at {ensemble}: {different} paths had changed without an event");
            }
            ScanPurpose::Audit => {}
        }
        self.audit_at = Instant::now() + self.audits.next_delay();
        self.news = true;
    }

    /// A scan has failed.
    fn failed(&mut self, why: String) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        connection.unsynced = true;
        self.retry_at = Some(Instant::now() + self.retries.next_delay());
        self.failures += 1;
        if self.failures >= FAILURES {
            self.failures = 0;
            connection.up.give_up.notify_one();
        }
        let (pattern, ensemble) = (self.live.pattern(), &self.shared.ensemble);
        self.problem = Some(format!("reading {pattern} at ZooKeeper {ensemble}: {why}"));
        self.news = true;
    }

    fn publish(&mut self) {
        if self.agrees {
            self.news |= self.live.take_changed();
        }
        let now = Instant::now();
        if !self.news || now < self.published + GAP {
            return;
        }
        let paths = if self.agrees {
            self.synced_at = Some(clock::since_boot());
            self.live.paths().clone()
        } else {
            self.out.borrow().paths.clone()
        };
        self.out.send_replace(Arc::new(DiscoverySnapshot {
            paths,
            synced_at: self.synced_at,
            problem: self.problem.clone().or_else(|| self.live.problem()),
        }));
        self.news = false;
        self.published = now;
    }
}
