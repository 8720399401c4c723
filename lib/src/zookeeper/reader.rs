//! What is asked of ZooKeeper, over one session: bounded in number and in time, counted, and watched.
//!
//! Servers since 3.6 have persistent recursive watches: one per follower. Older servers have watches that fire once and
//! belong to a single path; there every request that lists or reads also sets one, unless one is set. Such a watch must
//! not be dropped before it has fired: the library would ask the server to remove it, which 3.4 answers by closing the
//! session. So each is held by a task that lives as long as it does.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zookeeper_client::{AddWatchMode, Error, EventType, MultiReadResult, OneshotWatcher, Stat};

use super::member::{MemberError, MemberErrorKind, MemberFormat, sequence_number};
use super::path_pattern::join;
use super::payload;
use super::session::{ConnectedSession, EnsembleContext, count};
use super::snapshot::{MemberDecoder, MemberNode};
use super::znode_name::ZnodeName;

/// How long one request may take. A connection on which nothing at all is answered is lost long before that.
const REQUEST: Duration = Duration::from_secs(30);

/// How many znodes are read with one request: it costs the server ten times what one znode more within it does. And how
/// long their paths may be together: on a request of more than 1 MiB (`jute.maxbuffer`) it drops the connection.
const BATCH: usize = 32;
const REQUEST_SIZE: usize = 64 << 10;

/// Something happened to a path. In a box on its way: a channel begins with room for dozens.
#[derive(Debug)]
pub(super) struct WatchEvent {
    pub(super) kind: EventType,
    pub(super) path: String,
}

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadError {
    /// Nothing can be read now.
    Lost(String),
    /// This path cannot be read; others can.
    Path(String),
    /// The server does not have persistent watches.
    OldServer,
}

/// What a watch that fires once watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum WatchKind {
    Children,
    Data,
    Existence,
}

/// Watches that have not fired yet.
type PendingWatches = Arc<Mutex<HashSet<(String, WatchKind)>>>;

/// Reads for one follower.
#[derive(Debug)]
pub(super) struct ZnodeReader<D> {
    up: Arc<ConnectedSession>,
    shared: Arc<EnsembleContext>,
    decoder: D,
    events: mpsc::Sender<Box<WatchEvent>>,
    armed: PendingWatches,
}

impl<D: MemberDecoder> ZnodeReader<D> {
    pub(super) fn new(
        up: Arc<ConnectedSession>,
        shared: Arc<EnsembleContext>,
        decoder: D,
        events: mpsc::Sender<Box<WatchEvent>>,
    ) -> Self {
        Self {
            up,
            shared,
            decoder,
            events,
            armed: PendingWatches::default(),
        }
    }

    pub(super) fn format(&self) -> MemberFormat {
        self.decoder.format()
    }

    /// Whether watches fire once and belong to single paths.
    pub(super) fn fires_once(&self) -> bool {
        self.up.old_server
    }

    /// Waits for the turn of a scan, which is over when the result is dropped.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.shared.scans.acquire().await.ok()
    }

    /// Watches `root` and all below it. Events are sent for as long as the result is held.
    pub(super) async fn watch(&self, root: &str) -> Result<JoinSet<()>, ReadError> {
        let adding = self
            .up
            .client
            .watch(root, AddWatchMode::PersistentRecursive);
        let mut watcher = match self.ask(1, adding).await {
            Err(Error::Unimplemented) => return Err(ReadError::OldServer),
            other => other.map_err(|error| fault(&error))?,
        };
        let (shared, events) = (Arc::clone(&self.shared), self.events.clone());
        let mut forwarder = JoinSet::new();
        forwarder.spawn(async move {
            loop {
                let event = watcher.changed().await;
                if event.event_type == EventType::Session {
                    if event.session_state.is_terminated() {
                        return;
                    }
                    continue;
                }
                count(&shared.counters.events);
                let (kind, path) = (event.event_type, event.path);
                if events
                    .send(Box::new(WatchEvent { kind, path }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(forwarder)
    }

    /// The children of a path and the transaction that created it; `None` if it does not exist.
    pub(super) async fn children(
        &self,
        path: &str,
    ) -> Result<Option<(Vec<String>, i64)>, ReadError> {
        let client = &self.up.client;
        for _ in 0..2 {
            count(&self.shared.counters.lists);
            let listed = if self.arm(path, WatchKind::Children) {
                let listed = self.ask(1, client.get_and_watch_children(path)).await;
                self.armed(
                    path,
                    WatchKind::Children,
                    listed.map(|(names, stat, watcher)| ((names, stat), watcher)),
                )
            } else {
                self.ask(1, client.get_children(path)).await
            };
            match listed {
                Ok((names, stat)) => return Ok(Some((names, stat.czxid))),
                Err(Error::NoNode) => {}
                Err(error) => return Err(fault(&error)),
            }
            // It may come to exist at any time: before the watch on that was set, in which case it is listed after all.
            if !self.arm(path, WatchKind::Existence) {
                return Ok(None);
            }
            let checked = self.ask(1, client.check_and_watch_stat(path)).await;
            match self.armed(path, WatchKind::Existence, checked) {
                Ok(None) => return Ok(None),
                Ok(Some(_)) => {}
                Err(error) => return Err(fault(&error)),
            }
        }
        Ok(None)
    }

    /// The data of a path and the transaction that created it; `None` if it does not exist.
    pub(super) async fn data(&self, path: &str) -> Result<Option<(Vec<u8>, i64)>, ReadError> {
        match self.get(path, true).await {
            Ok((data, stat)) => Ok(Some((data, stat.czxid))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Whether a watch would have told if the data of a path had changed since it was read.
    pub(super) fn data_is_watched(&self, path: &str) -> bool {
        let key = (path.to_owned(), WatchKind::Data);
        !self.fires_once() || lock(&self.armed).contains(&key)
    }

    /// These names in batches that [`ZnodeReader::members`] may be asked for.
    pub(super) fn batches(&self, path: &str, names: Vec<ZnodeName>) -> Vec<Vec<ZnodeName>> {
        // Old servers answer for one at a time.
        batches(path, names, if self.fires_once() { 1 } else { BATCH })
    }

    /// The registrations of these names, less those that do not exist.
    pub(super) async fn members(
        &self,
        path: &Arc<str>,
        names: Vec<ZnodeName>,
    ) -> Result<Vec<(ZnodeName, MemberNode<D::Output>)>, ReadError> {
        let mut found = Vec::with_capacity(names.len());
        if let [name] = &names[..] {
            let child = self.member(path, name).await?;
            found.extend(child.map(|child| (name.clone(), child)));
            return Ok(found);
        }
        let mut asked = Vec::with_capacity(names.len());
        let mut request = self.up.client.new_multi_reader();
        for name in names {
            let child = match self.carried(path, &name) {
                Some(child) => Some(child),
                None => match request.add_get_data(&join(path, &name.text())) {
                    Ok(()) => {
                        asked.push(name);
                        continue;
                    }
                    Err(error) => self.child(path, &name, Err(error))?,
                },
            };
            found.extend(child.map(|child| (name, child)));
        }
        asked
            .iter()
            .for_each(|_| count(&self.shared.counters.reads));
        let answers = self.ask(asked.len(), request.commit()).await;
        let answers = answers.map_err(|error| fault(&error))?;
        if answers.len() != asked.len() {
            let counts = format!("{} answers to {} questions", answers.len(), asked.len());
            return Err(ReadError::Lost(counts));
        }
        for (name, answer) in asked.into_iter().zip(answers) {
            let answer = match answer {
                MultiReadResult::Data { data, stat } => Ok((data, stat)),
                MultiReadResult::Error { err } => Err(err),
                other => {
                    return Err(ReadError::Lost(format!(
                        "an answer to no question: {other:?}"
                    )));
                }
            };
            let child = self.child(path, &name, answer)?;
            found.extend(child.map(|child| (name, child)));
        }
        Ok(found)
    }

    /// A registration; `None` if it does not exist.
    pub(super) async fn member(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
    ) -> Result<Option<MemberNode<D::Output>>, ReadError> {
        if let Some(child) = self.carried(path, name) {
            return Ok(Some(child));
        }
        let full = join(path, &name.text());
        let mut found = self.get(&full, false).await;
        if let Ok((_, stat)) = &found
            && self.fires_once()
            && !is_immutable(&name.text(), stat)
        {
            found = self.get(&full, true).await;
        }
        self.child(path, name, found)
    }

    /// The registration that a name carries itself.
    fn carried(&self, path: &Arc<str>, name: &ZnodeName) -> Option<MemberNode<D::Output>> {
        let result = payload::read_name(self.format(), &name.text(), &self.shared.names)?;
        Some(MemberNode {
            value: self.decoder.decode(path, name, result),
            immutable: true,
        })
    }

    /// What was read as a registration; `None` if it does not exist.
    fn child(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
        found: Result<(Vec<u8>, Stat), Error>,
    ) -> Result<Option<MemberNode<D::Output>>, ReadError> {
        let (result, immutable) = match found {
            Ok((data, stat)) => {
                let text = name.text();
                let result = payload::read(self.format(), &text, &data, &self.shared.names);
                (result, is_immutable(&text, &stat))
            }
            Err(Error::NoNode) => return Ok(None),
            Err(error) => match fault(&error) {
                ReadError::Path(why) => (
                    Err(MemberError::new(MemberErrorKind::Unreadable, why)),
                    false,
                ),
                lost => return Err(lost),
            },
        };
        Ok(Some(MemberNode {
            value: self.decoder.decode(path, name, result),
            immutable,
        }))
    }

    async fn get(&self, path: &str, watched: bool) -> Result<(Vec<u8>, Stat), Error> {
        count(&self.shared.counters.reads);
        let client = &self.up.client;
        if !watched || !self.arm(path, WatchKind::Data) {
            return self.ask(1, client.get_data(path)).await;
        }
        let found = self.ask(1, client.get_and_watch_data(path)).await;
        let found = found.map(|(data, stat, watcher)| ((data, stat), watcher));
        self.armed(path, WatchKind::Data, found)
    }

    /// Waits for the answer to a request that is about `znodes`.
    async fn ask<T>(
        &self,
        znodes: usize,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // The semaphore is never closed.
        let permits = u32::try_from(znodes).unwrap_or(u32::MAX);
        let _permits = self.shared.permits.acquire_many(permits).await;
        let answer = timeout(REQUEST, request).await;
        answer.unwrap_or(Err(Error::Timeout))
    }

    /// Whether a watch that fires once is to be set: the server has no others, and none is set.
    fn arm(&self, path: &str, what: WatchKind) -> bool {
        self.fires_once() && lock(&self.armed).insert((path.to_owned(), what))
    }

    /// Holds a watch until it has fired; the answer to the request that set it is passed on.
    fn armed<T>(
        &self,
        path: &str,
        what: WatchKind,
        answer: Result<(T, OneshotWatcher), Error>,
    ) -> Result<T, Error> {
        let key = (path.to_owned(), what);
        match answer {
            Err(error) => {
                lock(&self.armed).remove(&key);
                Err(error)
            }
            Ok((answer, watcher)) => {
                // Nothing here may keep the session open.
                let (armed, events) = (Arc::clone(&self.armed), self.events.clone());
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    let event = watcher.changed().await;
                    lock(&armed).remove(&key);
                    if event.event_type != EventType::Session {
                        count(&shared.counters.events);
                        let (kind, path) = (event.event_type, event.path);
                        // A follower that has gone needs no event.
                        let _ = events.send(Box::new(WatchEvent { kind, path })).await;
                    }
                });
                Ok(answer)
            }
        }
    }
}

fn lock(
    armed: &Mutex<HashSet<(String, WatchKind)>>,
) -> std::sync::MutexGuard<'_, HashSet<(String, WatchKind)>> {
    armed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names below a path, at most so many together.
fn batches(path: &str, names: Vec<ZnodeName>, most: usize) -> Vec<Vec<ZnodeName>> {
    let mut batches: Vec<Vec<ZnodeName>> = Vec::new();
    let mut size = 0;
    for name in names {
        let more = path.len() + name.text().len();
        match batches.last_mut() {
            Some(last) if last.len() < most && size + more <= REQUEST_SIZE => {
                size += more;
                last.push(name);
            }
            _ => {
                size = more;
                batches.push(vec![name]);
            }
        }
    }
    batches
}

/// Whether the bytes of a registration cannot change: an ephemeral sequential znode.
fn is_immutable(name: &str, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 && sequence_number(name).is_some()
}

fn fault(error: &Error) -> ReadError {
    match error {
        Error::NoAuth => ReadError::Path(
            "this client may not read it: give the ensemble a digest that may".to_owned(),
        ),
        Error::BadArguments(_)
        | Error::UnmarshalError { .. }
        | Error::MarshallingError
        | Error::UnexpectedErrorCode(_) => ReadError::Path(error.to_string()),
        _ => ReadError::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_in_number_and_size() {
        let sizes = |names: Vec<ZnodeName>, most| -> Vec<usize> {
            batches("/path", names, most).iter().map(Vec::len).collect()
        };
        let name = |number: usize| ZnodeName::from(format!("member_{number:010}").as_str());
        let long = ZnodeName::from("x".repeat(REQUEST_SIZE / 2 - 5).as_str());
        let longer = ZnodeName::from("x".repeat(REQUEST_SIZE * 2).as_str());
        assert_eq!(sizes((0..70).map(name).collect(), 32), [32, 32, 6]);
        assert_eq!(sizes((0..3).map(name).collect(), 1), [1, 1, 1]);
        assert_eq!(sizes(vec![long; 3], 32), [2, 1]);
        assert_eq!(sizes(vec![name(1), longer, name(2)], 32), [1, 1, 1]);
        assert_eq!(sizes(Vec::new(), 32), [0; 0]);
    }
}
