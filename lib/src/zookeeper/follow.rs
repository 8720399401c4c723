//! One follower: the loop that waits for events, answers, scans, the session and the clock, and publishes what [`Live`]
//! makes of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use zookeeper_client::EventType;

use super::live::{Answer, Live, Question};
use super::pattern::depth;
use super::reader::{Event, Fault, Reader};
use super::scan::{Order, Reuse, Scanned, scan};
use super::session::{Link, Shared, Up, count};
use super::{Decode, Pattern, Sessions, Tree};
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

pub(super) struct Follower<D: Decode> {
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
    out: watch::Sender<Arc<Tree<D::Kept>>>,
    decode: D,
    live: Live<D::Kept>,

    connection: Option<Connection<D>>,
    events: mpsc::Receiver<Box<Event>>,
    reads: JoinSet<(Question, Answer<D::Kept>)>,
    /// The scan under way: at most one.
    scanning: JoinSet<(Purpose, Vec<String>, Scanned<D::Kept>)>,
    /// Paths below which something has changed, where an event does not say what.
    dirty: BTreeSet<String>,

    /// Whether `live` agrees with ZooKeeper but for events under way, so that it may be published.
    agrees: bool,
    synced: Option<Duration>,
    trouble: Option<String>,
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
struct Connection<D> {
    up: Arc<Up>,
    reader: Arc<Reader<D>>,
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
enum Purpose {
    Sync,
    Audit,
    Dirty,
}

impl<D: Decode> Follower<D> {
    pub(super) fn new(
        shared: Arc<Shared>,
        mut link: watch::Receiver<Link>,
        pattern: Pattern,
        decode: D,
        out: watch::Sender<Arc<Tree<D::Kept>>>,
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
            live: Live::new(pattern, decode.format(), before.paths.clone()),
            decode,
            connection: None,
            events,
            reads: JoinSet::new(),
            scanning: JoinSet::new(),
            dirty: BTreeSet::new(),
            agrees: false,
            synced: before.synced,
            trouble: None,
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
    pub(super) async fn run(mut self: Box<Self>, sessions: Sessions<D>) {
        loop {
            let wake = self.wake();
            tokio::select! {
                () = self.out.closed() => {
                    let ensemble = &self.shared.ensemble;
                    if sessions.forget(ensemble, self.live.pattern(), &self.decode) {
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

    fn note(&mut self, event: Box<Event>) {
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
            Link::Down(why) => {
                if let Some(connection) = &mut self.connection {
                    connection.connected = false;
                    connection.watch = None;
                }
                self.trouble = Some(why);
                self.news = true;
            }
            Link::Up(up) => {
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
                            Arc::new(Reader::new(up, shared, self.decode.clone(), sender)),
                            false,
                        )
                    }
                };
                self.connection = Some(Connection {
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
                    Some(name) => Answer::Member(reader.member(path, name).await),
                    None => Answer::Data(reader.data(path).await),
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
            (Purpose::Sync, Reuse::Settled)
        } else if connection.unsynced {
            (Purpose::Sync, Reuse::Nothing)
        } else if !self.dirty.is_empty() {
            (Purpose::Dirty, Reuse::Known)
        } else if self.audit_at <= now {
            (Purpose::Audit, Reuse::Known)
        } else {
            return;
        };
        let dirty = std::mem::take(&mut self.dirty);
        let below = match purpose {
            Purpose::Sync | Purpose::Audit => vec![self.live.pattern().root().to_owned()],
            Purpose::Dirty => dirty.into_iter().collect(),
        };
        let order = Order {
            pattern: self.live.pattern().clone(),
            below: below.clone(),
            reuse,
            watch: purpose == Purpose::Sync,
            known: self.live.paths().clone(),
        };
        self.live.begin_scan();
        let reader = Arc::clone(&connection.reader);
        self.scanning
            .spawn(async move { (purpose, below, scan(reader, order).await) });
    }

    fn scanned(&mut self, purpose: Purpose, below: &[String], scanned: Scanned<D::Kept>) {
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
            Err(Fault::OldServer) => {
                info!(
                    "ZooKeeper at {ensemble} is older than 3.6: it is followed by a watch per path"
                );
                self.shared.old_server.store(true, Ordering::Relaxed);
                connection.connected = false;
                connection.up.give_up.notify_one();
                return;
            }
            Err(Fault::Lost(why) | Fault::Path(why)) => return self.failed(why),
        };
        self.failures = 0;
        self.retries = Backoff::new(RETRY.0, RETRY.1);
        let (different, again) = self.live.merge(below, found);
        self.dirty.extend(again);
        match purpose {
            Purpose::Dirty => return,
            Purpose::Sync => {
                connection.seen = true;
                connection.unsynced = false;
                self.agrees = true;
                self.trouble = None;
            }
            Purpose::Audit if different > 0 => {
                count(&self.shared.counters.repairs);
                let pattern = self.live.pattern();
                warn!("{pattern} at {ensemble}: {different} paths had changed without an event");
            }
            Purpose::Audit => {}
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
        self.trouble = Some(format!("reading {pattern} at ZooKeeper {ensemble}: {why}"));
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
            self.synced = Some(clock::since_boot());
            self.live.paths().clone()
        } else {
            self.out.borrow().paths.clone()
        };
        self.out.send_replace(Arc::new(Tree {
            paths,
            synced: self.synced,
            trouble: self.trouble.clone().or_else(|| self.live.trouble()),
        }));
        self.news = false;
        self.published = now;
    }
}
