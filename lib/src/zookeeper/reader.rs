//! Requests to ZooKeeper over one session: bounded in number and time, counted, and with watches.
//!
//! Servers since 3.6 have persistent recursive watches: one per follower. Older servers have one-shot watches on single
//! paths; there every request that lists or reads also sets one, unless it is set already. Dropping such a watch before
//! it fires makes the library ask the server to remove it, which 3.4 answers by closing the session. So a task holds
//! each until it fires.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zookeeper_client::{AddWatchMode, Error, EventType, MultiReadResult, OneshotWatcher, Stat};

use super::member::{MemberError, MemberErrorKind, MemberFormat, sequence_number};
use super::path_pattern::join_path;
use super::payload;
use super::session::{EnsembleContext, SessionConnection, increment};
use super::snapshot::{MemberDecoder, MemberNode};
use super::znode_name::ZnodeName;

/// The timeout of a request. A connection without any response is lost long before.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Limits of one read request: a request costs the server ten times as much as one more znode in it, and one of more
/// than 1 MiB (`jute.maxbuffer`) makes it close the connection.
const MAX_BATCH: usize = 32;
const MAX_BATCH_PATH_BYTES: usize = 64 << 10;

/// A watch event. Sent in a box: a channel allocates room for dozens at once.
#[derive(Debug)]
pub(super) struct WatchEvent {
    pub(super) kind: EventType,
    pub(super) path: String,
}

/// The cause of a failed read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReadError {
    /// Every read fails at present.
    Unavailable(String),
    /// Only this path cannot be read.
    Path(String),
    /// The server is older than 3.6.
    NoPersistentWatches,
}

/// The condition of a one-shot watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum WatchKind {
    Children,
    Data,
    Existence,
}

/// One-shot watches that have not fired yet.
type PendingWatches = Arc<Mutex<HashSet<(String, WatchKind)>>>;

/// Reads for one follower.
#[derive(Debug)]
pub(super) struct ZnodeReader<D> {
    session: Arc<SessionConnection>,
    context: Arc<EnsembleContext>,
    decoder: D,
    events: mpsc::Sender<Box<WatchEvent>>,
    pending_watches: PendingWatches,
}

impl<D: MemberDecoder> ZnodeReader<D> {
    pub(super) fn new(
        session: Arc<SessionConnection>,
        context: Arc<EnsembleContext>,
        decoder: D,
        events: mpsc::Sender<Box<WatchEvent>>,
    ) -> Self {
        Self {
            session,
            context,
            decoder,
            events,
            pending_watches: PendingWatches::default(),
        }
    }

    pub(super) fn format(&self) -> MemberFormat {
        self.decoder.format()
    }

    /// Whether the server has only one-shot watches on single paths.
    pub(super) fn uses_oneshot_watches(&self) -> bool {
        self.session.uses_oneshot_watches
    }

    /// Waits for permission to scan, which ends when the permit is dropped.
    pub(super) async fn acquire_scan_permit(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.context.scan_permits.acquire().await.ok()
    }

    /// Watches `root` and everything below it. Events are sent until the result is dropped.
    pub(super) async fn watch(&self, root: &str) -> Result<JoinSet<()>, ReadError> {
        let adding = self
            .session
            .client
            .watch(root, AddWatchMode::PersistentRecursive);
        let mut watcher = match self.send_request(1, adding).await {
            Err(Error::Unimplemented) => return Err(ReadError::NoPersistentWatches),
            other => other.map_err(|error| read_error(&error))?,
        };
        let (context, events) = (Arc::clone(&self.context), self.events.clone());
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
                increment(&context.counters.events);
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
    pub(super) async fn list_children(
        &self,
        path: &str,
    ) -> Result<Option<(Vec<String>, i64)>, ReadError> {
        let client = &self.session.client;
        for _ in 0..2 {
            increment(&self.context.counters.lists);
            let listed = if self.begin_watch(path, WatchKind::Children) {
                let listed = self
                    .send_request(1, client.get_and_watch_children(path))
                    .await;
                self.hold_watch(
                    path,
                    WatchKind::Children,
                    listed.map(|(names, stat, watcher)| ((names, stat), watcher)),
                )
            } else {
                self.send_request(1, client.get_children(path)).await
            };
            match listed {
                Ok((names, stat)) => return Ok(Some((names, stat.czxid))),
                Err(Error::NoNode) => {}
                Err(error) => return Err(read_error(&error)),
            }
            // It may be created before the existence watch is set; then it is listed after all.
            if !self.begin_watch(path, WatchKind::Existence) {
                return Ok(None);
            }
            let checked = self
                .send_request(1, client.check_and_watch_stat(path))
                .await;
            match self.hold_watch(path, WatchKind::Existence, checked) {
                Ok(None) => return Ok(None),
                Ok(Some(_)) => {}
                Err(error) => return Err(read_error(&error)),
            }
        }
        Ok(None)
    }

    /// The data of a path and the transaction that created it; `None` if it does not exist.
    pub(super) async fn read_path_data(
        &self,
        path: &str,
    ) -> Result<Option<(Vec<u8>, i64)>, ReadError> {
        match self.read_data(path, true).await {
            Ok((data, stat)) => Ok(Some((data, stat.czxid))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(read_error(&error)),
        }
    }

    /// Whether a watch reports changes of the path's data.
    pub(super) fn data_is_watched(&self, path: &str) -> bool {
        let key = (path.to_owned(), WatchKind::Data);
        !self.uses_oneshot_watches() || lock(&self.pending_watches).contains(&key)
    }

    /// Splits names into batches for [`ZnodeReader::read_members`].
    pub(super) fn batches(&self, path: &str, names: Vec<ZnodeName>) -> Vec<Vec<ZnodeName>> {
        // Old servers have no multi-read.
        batches(
            path,
            names,
            if self.uses_oneshot_watches() {
                1
            } else {
                MAX_BATCH
            },
        )
    }

    /// The members of these names, without those that do not exist.
    pub(super) async fn read_members(
        &self,
        path: &Arc<str>,
        names: Vec<ZnodeName>,
    ) -> Result<Vec<(ZnodeName, MemberNode<D::Output>)>, ReadError> {
        let mut found = Vec::with_capacity(names.len());
        if let [name] = &names[..] {
            let child = self.read_member(path, name).await?;
            found.extend(child.map(|child| (name.clone(), child)));
            return Ok(found);
        }
        let mut requested = Vec::with_capacity(names.len());
        let mut request = self.session.client.new_multi_reader();
        for name in names {
            let child = match self.decode_name(path, &name) {
                Some(child) => Some(child),
                None => match request.add_get_data(&join_path(path, &name.text())) {
                    Ok(()) => {
                        requested.push(name);
                        continue;
                    }
                    Err(error) => self.decode_member(path, &name, Err(error))?,
                },
            };
            found.extend(child.map(|child| (name, child)));
        }
        requested
            .iter()
            .for_each(|_| increment(&self.context.counters.reads));
        let results = self.send_request(requested.len(), request.commit()).await;
        let results = results.map_err(|error| read_error(&error))?;
        if results.len() != requested.len() {
            let counts = format!("{} results for {} reads", results.len(), requested.len());
            return Err(ReadError::Unavailable(counts));
        }
        for (name, result) in requested.into_iter().zip(results) {
            let result = match result {
                MultiReadResult::Data { data, stat } => Ok((data, stat)),
                MultiReadResult::Error { err } => Err(err),
                other => {
                    return Err(ReadError::Unavailable(format!(
                        "unexpected result of a multi-read: {other:?}"
                    )));
                }
            };
            let child = self.decode_member(path, &name, result)?;
            found.extend(child.map(|child| (name, child)));
        }
        Ok(found)
    }

    /// The member of this name; `None` if it does not exist.
    pub(super) async fn read_member(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
    ) -> Result<Option<MemberNode<D::Output>>, ReadError> {
        if let Some(child) = self.decode_name(path, name) {
            return Ok(Some(child));
        }
        let full = join_path(path, &name.text());
        let mut found = self.read_data(&full, false).await;
        if let Ok((_, stat)) = &found
            && self.uses_oneshot_watches()
            && !is_immutable(&name.text(), stat)
        {
            found = self.read_data(&full, true).await;
        }
        self.decode_member(path, name, found)
    }

    /// Decodes the member that the name itself carries, if it does.
    fn decode_name(&self, path: &Arc<str>, name: &ZnodeName) -> Option<MemberNode<D::Output>> {
        let result = payload::decode_name(self.format(), &name.text(), &self.context.interner)?;
        Some(MemberNode {
            value: self.decoder.decode(path, name, result),
            immutable: true,
        })
    }

    /// Decodes the result of a read; `None` if the znode does not exist.
    fn decode_member(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
        found: Result<(Vec<u8>, Stat), Error>,
    ) -> Result<Option<MemberNode<D::Output>>, ReadError> {
        let (result, immutable) = match found {
            Ok((data, stat)) => {
                let text = name.text();
                let result =
                    payload::decode_payload(self.format(), &text, &data, &self.context.interner);
                (result, is_immutable(&text, &stat))
            }
            Err(Error::NoNode) => return Ok(None),
            Err(error) => match read_error(&error) {
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

    async fn read_data(&self, path: &str, watched: bool) -> Result<(Vec<u8>, Stat), Error> {
        increment(&self.context.counters.reads);
        let client = &self.session.client;
        if !watched || !self.begin_watch(path, WatchKind::Data) {
            return self.send_request(1, client.get_data(path)).await;
        }
        let found = self.send_request(1, client.get_and_watch_data(path)).await;
        let found = found.map(|(data, stat, watcher)| ((data, stat), watcher));
        self.hold_watch(path, WatchKind::Data, found)
    }

    /// Sends a request about `znodes` znodes and waits for its response.
    async fn send_request<T>(
        &self,
        znodes: usize,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // The semaphore is never closed.
        let permits = u32::try_from(znodes).unwrap_or(u32::MAX);
        let _permits = self.context.request_permits.acquire_many(permits).await;
        let result = timeout(REQUEST_TIMEOUT, request).await;
        result.unwrap_or(Err(Error::Timeout))
    }

    /// Whether the next request must set a one-shot watch: the server has no others, and none is set.
    fn begin_watch(&self, path: &str, what: WatchKind) -> bool {
        self.uses_oneshot_watches() && lock(&self.pending_watches).insert((path.to_owned(), what))
    }

    /// Holds a one-shot watch until it fires, and passes on the result of the request that set it.
    fn hold_watch<T>(
        &self,
        path: &str,
        what: WatchKind,
        result: Result<(T, OneshotWatcher), Error>,
    ) -> Result<T, Error> {
        let key = (path.to_owned(), what);
        match result {
            Err(error) => {
                lock(&self.pending_watches).remove(&key);
                Err(error)
            }
            Ok((result, watcher)) => {
                // Holding the reader here would keep the session open.
                let (pending_watches, events) =
                    (Arc::clone(&self.pending_watches), self.events.clone());
                let context = Arc::clone(&self.context);
                tokio::spawn(async move {
                    let event = watcher.changed().await;
                    lock(&pending_watches).remove(&key);
                    if event.event_type != EventType::Session {
                        increment(&context.counters.events);
                        let (kind, path) = (event.event_type, event.path);
                        // The follower may have ended.
                        let _ = events.send(Box::new(WatchEvent { kind, path })).await;
                    }
                });
                Ok(result)
            }
        }
    }
}

fn lock(
    pending_watches: &Mutex<HashSet<(String, WatchKind)>>,
) -> std::sync::MutexGuard<'_, HashSet<(String, WatchKind)>> {
    pending_watches
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Splits names below a path into batches of at most `most`.
fn batches(path: &str, names: Vec<ZnodeName>, most: usize) -> Vec<Vec<ZnodeName>> {
    let mut batches: Vec<Vec<ZnodeName>> = Vec::new();
    let mut size = 0;
    for name in names {
        let more = path.len() + name.text().len();
        match batches.last_mut() {
            Some(last) if last.len() < most && size + more <= MAX_BATCH_PATH_BYTES => {
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

/// Whether the data of a member cannot change: an ephemeral sequential znode.
fn is_immutable(name: &str, stat: &Stat) -> bool {
    stat.ephemeral_owner != 0 && sequence_number(name).is_some()
}

fn read_error(error: &Error) -> ReadError {
    match error {
        Error::NoAuth => ReadError::Path(
            "permission denied: give the ensemble a digest that may read it".to_owned(),
        ),
        Error::BadArguments(_)
        | Error::UnmarshalError { .. }
        | Error::MarshallingError
        | Error::UnexpectedErrorCode(_) => ReadError::Path(error.to_string()),
        _ => ReadError::Unavailable(error.to_string()),
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
        let long = ZnodeName::from("x".repeat(MAX_BATCH_PATH_BYTES / 2 - 5).as_str());
        let longer = ZnodeName::from("x".repeat(MAX_BATCH_PATH_BYTES * 2).as_str());
        assert_eq!(sizes((0..70).map(name).collect(), 32), [32, 32, 6]);
        assert_eq!(sizes((0..3).map(name).collect(), 1), [1, 1, 1]);
        assert_eq!(sizes(vec![long; 3], 32), [2, 1]);
        assert_eq!(sizes(vec![name(1), longer, name(2)], 32), [1, 1, 1]);
        assert_eq!(sizes(Vec::new(), 32), [0; 0]);
    }
}
