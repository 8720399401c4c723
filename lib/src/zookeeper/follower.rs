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
use super::session::{EnsembleContext, SessionConnection, SessionLink, increment};
use super::{DiscoverySnapshot, MemberDecoder, PathPattern, SessionPool};
use crate::backoff::Backoff;
use crate::clock;

/// Events in the queue before the watch task waits.
const EVENT_QUEUE: usize = 1024;

/// The least time between two publications: it bounds the cost of a burst of changes. A change after a quiet period is
/// published at once.
const MIN_PUBLISH_INTERVAL: Duration = Duration::from_millis(5);

/// The bounds of the delay between a failed scan and the next one.
const SCAN_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Failed scans in a row after which a connected session is abandoned.
const MAX_FAILED_SCANS: u32 = 3;

/// Later than any deadline.
const FAR_FUTURE: Duration = Duration::from_secs(86_400);

pub(super) struct PatternFollower<D: MemberDecoder> {
    context: Arc<EnsembleContext>,
    link: watch::Receiver<SessionLink>,
    out: watch::Sender<Arc<DiscoverySnapshot<D::Output>>>,
    decoder: D,
    state: FollowerState<D::Output>,

    session: Option<FollowerSession<D>>,
    events: mpsc::Receiver<Box<WatchEvent>>,
    reads: JoinSet<(ReadRequest, ReadResult<D::Output>)>,
    /// At most one scan at a time.
    scans: JoinSet<(ScanPurpose, Vec<String>, ScanOutcome<D::Output>)>,
    /// Paths below which something has changed, for events that do not name the child.
    dirty: BTreeSet<String>,

    /// Whether `state` agrees with ZooKeeper but for events under way, so that it may be published.
    in_sync: bool,
    synced_at: Option<Duration>,
    problem: Option<String>,
    publish_pending: bool,
    published_at: Instant,

    audit_at: Instant,
    audit_backoff: Backoff,
    retry_at: Option<Instant>,
    retry_backoff: Backoff,
    failed_scans: u32,
}

/// A session as this follower uses it.
struct FollowerSession<D> {
    connection: Arc<SessionConnection>,
    reader: Arc<ZnodeReader<D>>,
    connected: bool,
    /// The task of the persistent watch.
    watch: Option<JoinSet<()>>,
    /// Whether a scan has read everything in this session.
    fully_read: bool,
    /// Whether everything must be scanned, after the watch is set.
    needs_sync: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanPurpose {
    Sync,
    Audit,
    Dirty,
}

impl<D: MemberDecoder> PatternFollower<D> {
    pub(super) fn new(
        context: Arc<EnsembleContext>,
        mut link: watch::Receiver<SessionLink>,
        pattern: PathPattern,
        decoder: D,
        out: watch::Sender<Arc<DiscoverySnapshot<D::Output>>>,
    ) -> Self {
        // After a panic the published snapshot stays in force.
        let (before, now) = (Arc::clone(&out.borrow()), Instant::now());
        link.mark_changed();
        let (_, events) = mpsc::channel(1);
        let audit = context.options.audit;
        Self {
            context,
            link,
            out,
            state: FollowerState::new(pattern, decoder.format(), before.paths.clone()),
            decoder,
            session: None,
            events,
            reads: JoinSet::new(),
            scans: JoinSet::new(),
            dirty: BTreeSet::new(),
            in_sync: false,
            synced_at: before.synced_at,
            problem: None,
            publish_pending: false,
            published_at: now,
            audit_at: now + FAR_FUTURE,
            audit_backoff: Backoff::new(audit * 3 / 4, audit * 5 / 4),
            retry_at: None,
            retry_backoff: Backoff::new(SCAN_RETRY.0, SCAN_RETRY.1),
            failed_scans: 0,
        }
    }

    /// Follows until every receiver is dropped. Boxed, because a future has room for its arguments twice.
    pub(super) async fn run(mut self: Box<Self>, sessions: SessionPool<D>) {
        loop {
            let wake = self.next_wakeup();
            tokio::select! {
                () = self.out.closed() => {
                    let ensemble = &self.context.ensemble;
                    if sessions.remove_follower(ensemble, self.state.pattern(), &self.decoder) {
                        self.cancel_work();
                        return;
                    }
                }
                changed = self.link.changed() => match changed {
                    Ok(()) => self.handle_link_change(),
                    // A session ends only after its last follower.
                    Err(_) => return,
                },
                Some(event) = self.events.recv() => self.handle_event(event),
                Some(done) = self.reads.join_next() => match done {
                    Ok((request, result)) => self.state.apply_read(&request, result),
                    Err(_) => self.state.abandon_reads(),
                },
                Some(done) = self.scans.join_next() => match done {
                    Ok((purpose, below, scanned)) => self.handle_scan_outcome(purpose, &below, scanned),
                    Err(defect) => self.handle_scan_failure(defect.to_string()),
                },
                () = sleep_until(wake) => {}
            }
            self.drain_ready();
            self.start_reads();
            self.start_due_scan();
            self.publish();
        }
    }

    fn next_wakeup(&self) -> Instant {
        let publish_at = self
            .publish_pending
            .then_some(self.published_at + MIN_PUBLISH_INTERVAL);
        let times = [self.retry_at, publish_at].into_iter().flatten();
        times.fold(self.audit_at, Instant::min)
    }

    /// Handles the other events and results that are ready, so that a burst is one change.
    fn drain_ready(&mut self) {
        for _ in 0..EVENT_QUEUE {
            match self.events.try_recv() {
                Ok(event) => self.handle_event(event),
                Err(_) => break,
            }
        }
        while let Some(Ok((request, result))) = self.reads.try_join_next() {
            self.state.apply_read(&request, result);
        }
    }

    fn handle_event(&mut self, event: Box<WatchEvent>) {
        let Some(session) = &self.session else {
            return;
        };
        let levels = self.state.pattern().depth();
        let of_member = depth(&event.path) > levels;
        if !session.reader.uses_oneshot_watches()
            || (of_member && event.kind == EventType::NodeDataChanged)
        {
            self.state.record_event(&event);
        } else if !of_member {
            // A one-shot watch does not name the child that changed.
            self.dirty.insert(event.path);
        }
    }

    fn handle_link_change(&mut self) {
        self.cancel_work();
        let link = self.link.borrow_and_update().clone();
        match link {
            SessionLink::Down(why) => {
                if let Some(session) = &mut self.session {
                    session.connected = false;
                    session.watch = None;
                }
                self.problem = Some(why);
                self.publish_pending = true;
            }
            SessionLink::Up(connection) => {
                let before = self.session.take();
                let same = before
                    .filter(|before| before.connection.session_number == connection.session_number);
                let (reader, fully_read) = match same {
                    // Its one-shot watches stay in force: the library sets them again.
                    Some(before) => (before.reader, before.fully_read),
                    None => {
                        let (sender, events) = mpsc::channel(EVENT_QUEUE);
                        self.events = events;
                        let (connection, context) =
                            (Arc::clone(&connection), Arc::clone(&self.context));
                        (
                            Arc::new(ZnodeReader::new(
                                connection,
                                context,
                                self.decoder.clone(),
                                sender,
                            )),
                            false,
                        )
                    }
                };
                self.session = Some(FollowerSession {
                    connection,
                    reader,
                    connected: true,
                    watch: None,
                    fully_read,
                    needs_sync: true,
                });
            }
        }
    }

    /// Detaches reads and scans under way, which still run to their end: cancelling a request would remove the watch it
    /// sets, which old servers cannot do.
    fn cancel_work(&mut self) {
        self.reads.detach_all();
        self.scans.detach_all();
        self.state.cancel_work();
        self.dirty.clear();
        self.in_sync = false;
        self.audit_at = Instant::now() + FAR_FUTURE;
        self.retry_at = None;
        self.failed_scans = 0;
    }

    /// Starts the reads that events require.
    fn start_reads(&mut self) {
        let requests = self.state.apply_events();
        let Some(session) = &self.session else {
            return;
        };
        for request in requests {
            let reader = Arc::clone(&session.reader);
            self.reads.spawn(async move {
                let path = &request.key.path;
                let result = match &request.key.member {
                    Some(name) => ReadResult::Member(reader.read_member(path, name).await),
                    None => ReadResult::Data(reader.read_path_data(path).await),
                };
                (request, result)
            });
        }
    }

    fn start_due_scan(&mut self) {
        let now = Instant::now();
        let Some(session) = &mut self.session else {
            return;
        };
        let waits = self.retry_at.is_some_and(|at| at > now);
        if !session.connected || !self.scans.is_empty() || waits {
            return;
        }
        self.retry_at = None;
        session.needs_sync |= self.state.take_incomplete();
        let (purpose, reuse) = if session.needs_sync && session.fully_read {
            (ScanPurpose::Sync, MemberReuse::Immutable)
        } else if session.needs_sync {
            (ScanPurpose::Sync, MemberReuse::None)
        } else if !self.dirty.is_empty() {
            (ScanPurpose::Dirty, MemberReuse::All)
        } else if self.audit_at <= now {
            (ScanPurpose::Audit, MemberReuse::All)
        } else {
            return;
        };
        let dirty = std::mem::take(&mut self.dirty);
        let below = match purpose {
            ScanPurpose::Sync | ScanPurpose::Audit => vec![self.state.pattern().root().to_owned()],
            ScanPurpose::Dirty => dirty.into_iter().collect(),
        };
        let order = ScanRequest {
            pattern: self.state.pattern().clone(),
            below: below.clone(),
            reuse,
            watch: purpose == ScanPurpose::Sync,
            known: self.state.paths().clone(),
        };
        self.state.begin_scan();
        let reader = Arc::clone(&session.reader);
        self.scans
            .spawn(async move { (purpose, below, scan(reader, order).await) });
    }

    fn handle_scan_outcome(
        &mut self,
        purpose: ScanPurpose,
        below: &[String],
        scanned: ScanOutcome<D::Output>,
    ) {
        // Events that precede the scan's last result take priority over it.
        self.drain_ready();
        self.start_reads();
        let Some(session) = &mut self.session else {
            return;
        };
        if scanned.watch.is_some() {
            session.watch = scanned.watch;
        }
        let ensemble = &self.context.ensemble;
        let found = match scanned.result {
            Ok(found) => found,
            Err(ReadError::NoPersistentWatches) => {
                info!(
                    %ensemble,
                    "ZooKeeper is older than 3.6; using a one-shot watch per path"
                );
                self.context
                    .uses_oneshot_watches
                    .store(true, Ordering::Relaxed);
                session.connected = false;
                session.connection.abandon.notify_one();
                return;
            }
            Err(ReadError::Unavailable(why) | ReadError::Path(why)) => {
                return self.handle_scan_failure(why);
            }
        };
        self.failed_scans = 0;
        self.retry_backoff = Backoff::new(SCAN_RETRY.0, SCAN_RETRY.1);
        let (different, again) = self.state.merge(below, found);
        self.dirty.extend(again);
        match purpose {
            ScanPurpose::Dirty => return,
            ScanPurpose::Sync => {
                session.fully_read = true;
                session.needs_sync = false;
                self.in_sync = true;
                self.problem = None;
            }
            ScanPurpose::Audit if different > 0 => {
                increment(&self.context.counters.repairs);
                let pattern = self.state.pattern();
                warn!(%ensemble, %pattern, paths = different, "audit found changes without events");
            }
            ScanPurpose::Audit => {}
        }
        self.audit_at = Instant::now() + self.audit_backoff.next_delay();
        self.publish_pending = true;
    }

    fn handle_scan_failure(&mut self, why: String) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.needs_sync = true;
        self.retry_at = Some(Instant::now() + self.retry_backoff.next_delay());
        self.failed_scans += 1;
        if self.failed_scans >= MAX_FAILED_SCANS {
            self.failed_scans = 0;
            session.connection.abandon.notify_one();
        }
        let (pattern, ensemble) = (self.state.pattern(), &self.context.ensemble);
        self.problem = Some(format!(
            "cannot read {pattern} from ZooKeeper at {ensemble}: {why}"
        ));
        self.publish_pending = true;
    }

    fn publish(&mut self) {
        if self.in_sync {
            self.publish_pending |= self.state.take_changed();
        }
        let now = Instant::now();
        if !self.publish_pending || now < self.published_at + MIN_PUBLISH_INTERVAL {
            return;
        }
        let paths = if self.in_sync {
            self.synced_at = Some(clock::since_boot());
            self.state.paths().clone()
        } else {
            self.out.borrow().paths.clone()
        };
        self.out.send_replace(Arc::new(DiscoverySnapshot {
            paths,
            synced_at: self.synced_at,
            problem: self.problem.clone().or_else(|| self.state.problem()),
        }));
        self.publish_pending = false;
        self.published_at = now;
    }
}
