//! The range engine: fetches one object over several connections into a sink, and survives what networks do.
//!
//! Every range carries If-Match and every answer is compared with the first, so that an object replaced in mid-flight
//! is noticed and never mixed. What fails is tried again with backoff, from the byte it had reached.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use hostkit::backoff::Backoff;
use hostkit::clock;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use crate::sink::{DownloadSink, SinkClosed};
use crate::source::ArtifactSource;
use crate::store::{GetRequest, GetResponse, ObjectMeta, ObjectStore, StoreError, StoreErrorKind};

/// Bytes per part, unless the user says otherwise.
pub(crate) const PART_SIZE: u64 = 8 << 20;
/// An object larger than this is fetched in larger parts: its record stays short (bytes).
const LARGE: u64 = 4 << 30;
/// The most connections at once, unless the user says otherwise: one S3 connection gives 50 to 90 MB/s.
const CONNECTIONS: u64 = 8;
/// Connections to begin with.
const FIRST_CONNECTIONS: u64 = 2;
/// How often it is looked whether more connections would help.
const GROW_EVERY: Duration = Duration::from_millis(50);
/// Above this share of one processor it is not the network that is waited for, and another connection only costs memory.
const BUSY: f64 = 0.5;
/// Attempts without progress before giving up.
const ATTEMPTS: u32 = 5;
/// So many bytes are progress.
const PROGRESS: u64 = 1 << 20;
/// The longest a server's Retry-After is waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// How to fetch.
#[derive(Debug, Clone)]
pub(crate) struct TransferOptions {
    /// Connections at once, when settled by the user.
    pub connections: Option<u64>,
    /// The most to fetch per second (bytes).
    pub max_rate: Option<u64>,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
}

/// Bytes per part for an object of this size.
#[must_use]
pub(crate) fn part_size(size: u64, settled: Option<u64>) -> u64 {
    settled.unwrap_or(if size > LARGE {
        PART_SIZE * 4
    } else {
        PART_SIZE
    })
}

/// One object being fetched.
pub(crate) struct ObjectTransfer {
    /// Where from.
    pub store: Rc<dyn ObjectStore>,
    /// What.
    pub source: Rc<ArtifactSource>,
    /// How.
    pub options: TransferOptions,
    limiter: RefCell<Option<Instant>>,
}

impl ObjectTransfer {
    /// A job that has not begun.
    #[must_use]
    pub(crate) fn new(
        store: Rc<dyn ObjectStore>,
        source: ArtifactSource,
        options: TransferOptions,
    ) -> Self {
        Self {
            store,
            source: Rc::new(source),
            options,
            limiter: RefCell::new(None),
        }
    }

    /// Opens the first answer, which says how long the object is and what identifies it. Tries again as [`ObjectTransfer::ranges`].
    ///
    /// # Errors
    /// What the store said last.
    pub(crate) async fn first(
        &self,
        range: Option<(u64, u64)>,
        if_match: Option<&str>,
    ) -> Result<GetResponse, StoreError> {
        let mut retry = TransferRetry::new();
        loop {
            match self
                .request(GetRequest {
                    range,
                    if_match: if_match.map(str::to_owned),
                })
                .await
            {
                Ok(reply) => return Ok(reply),
                Err(error) => retry.after(error, &self.source).await?,
            }
        }
    }

    /// Fetches `parts` (start and end byte of each, with its number) of the object that `meta` identifies. `first` is
    /// an answer already open, from the start of a part.
    ///
    /// # Errors
    /// `Changed` when the object is no longer the one of `meta`; else what the store said last.
    pub(crate) async fn ranges(
        self: &Rc<Self>,
        meta: &ObjectMeta,
        parts: VecDeque<(u64, u64, u64)>,
        first: Option<GetResponse>,
        sink: &DownloadSink,
    ) -> Result<(), StoreError> {
        let most = (parts.len() as u64).min(self.options.connections.unwrap_or(CONNECTIONS));
        let mut connections = most.min(self.options.connections.unwrap_or(FIRST_CONNECTIONS));
        debug!(parts = parts.len(), connections, "fetching in ranges");
        let meta = Rc::new(meta.clone());
        let parts = Rc::new(RefCell::new(parts));
        let mut first = first;
        let mut workers: JoinSet<Result<(), StoreError>> = JoinSet::new();
        let mut start = |workers: &mut JoinSet<_>| {
            let (job, meta, parts, sink) =
                (self.clone(), meta.clone(), parts.clone(), sink.clone());
            workers.spawn_local(job.work(meta, parts, first.take(), sink));
        };
        (0..connections).for_each(|_| start(&mut workers));
        let mut load = CpuLoad::now();
        loop {
            let ended = tokio::select! {
                ended = workers.join_next() => ended,
                () = sleep(GROW_EVERY), if connections < most => {
                    if load.since() < BUSY {
                        let more = connections.min(most - connections);
                        (0..more).for_each(|_| start(&mut workers));
                        connections += more;
                        debug!(connections, "the network is waited for: more connections");
                    }
                    continue;
                }
            };
            let Some(ended) = ended else { return Ok(()) };
            ended.map_err(|error| {
                StoreError::new(StoreErrorKind::Permanent, "a connection's task failed")
                    .because(error)
            })??;
        }
    }

    /// What one connection does: part after part, until none is left. `open` is an answer that starts with one of them.
    async fn work(
        self: Rc<Self>,
        meta: Rc<ObjectMeta>,
        parts: Rc<RefCell<VecDeque<(u64, u64, u64)>>>,
        mut open: Option<GetResponse>,
        sink: DownloadSink,
    ) -> Result<(), StoreError> {
        loop {
            let Some((part, start, end)) = parts.borrow_mut().pop_front() else {
                return Ok(());
            };
            let usable = open.take_if(|reply| reply.offset == start);
            self.part(&meta, start, end, usable, &sink).await?;
            sink.finished(part).await.map_err(|SinkClosed| disk())?;
        }
    }

    /// Fetches an object that cannot be fetched in ranges, as one stream. `room` is asked before bytes beyond what was
    /// reserved are taken in.
    ///
    /// # Errors
    /// What the store said; there is no second attempt, because nothing tells whether it would be the same object.
    pub(crate) async fn stream(
        &self,
        mut reply: GetResponse,
        sink: &DownloadSink,
        mut room: impl FnMut(u64) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        let mut at = 0;
        while let Some(piece) = self.next(&mut reply).await? {
            let end = at + piece.len() as u64;
            if reply.meta.size.is_some_and(|size| end > size) {
                return Err(StoreError::new(
                    StoreErrorKind::Transient,
                    "the server sent more than it said",
                ));
            }
            room(end)?;
            self.limit(piece.len()).await;
            sink.piece(at, piece).await.map_err(|SinkClosed| disk())?;
            at = end;
        }
        if reply.meta.size.is_some_and(|size| at != size) {
            return Err(StoreError::new(
                StoreErrorKind::Transient,
                format!("the connection ended after {at} bytes"),
            ));
        }
        sink.finished(0).await.map_err(|SinkClosed| disk())?;
        Ok(at)
    }

    async fn part(
        &self,
        meta: &ObjectMeta,
        start: u64,
        end: u64,
        open: Option<GetResponse>,
        sink: &DownloadSink,
    ) -> Result<(), StoreError> {
        let mut at = start;
        let mut retry = TransferRetry::new();
        let mut open = open;
        while at < end {
            let before = at;
            let result = async {
                let mut reply = match open.take() {
                    Some(reply) => reply,
                    None => {
                        let if_match = meta.strong_etag().map(str::to_owned);
                        self.request(GetRequest {
                            range: Some((at, end - 1)),
                            if_match,
                        })
                        .await?
                    }
                };
                same_object(meta, &reply, at)?;
                while at < end {
                    let Some(mut piece) = self.next(&mut reply).await? else {
                        // The first answer may cover less than a part: that is no failure.
                        return if at > before {
                            Ok(())
                        } else {
                            Err(StoreError::new(
                                StoreErrorKind::Transient,
                                "the answer was empty",
                            ))
                        };
                    };
                    piece.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                    self.limit(piece.len()).await;
                    let length = piece.len() as u64;
                    sink.piece(at, piece).await.map_err(|SinkClosed| disk())?;
                    at += length;
                }
                Ok(())
            }
            .await;
            if at - before >= PROGRESS {
                retry = TransferRetry::new();
            }
            match result {
                Ok(()) => {}
                Err(error) => retry.after(error, &self.source).await?,
            }
        }
        Ok(())
    }

    async fn request(&self, want: GetRequest) -> Result<GetResponse, StoreError> {
        // Twice the silence: a new connection and its TLS come first.
        match timeout(
            self.options.stall_timeout * 2,
            self.store.get(&self.source, want),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Transient,
                "no answer in time",
            )),
        }
    }

    async fn next(&self, reply: &mut GetResponse) -> Result<Option<bytes::Bytes>, StoreError> {
        match timeout(self.options.stall_timeout, reply.body.next()).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Transient,
                "the connection fell silent",
            )),
        }
    }

    /// Waits until `bytes` more keep the rate within its bound.
    async fn limit(&self, bytes: usize) {
        let Some(rate) = self.options.max_rate else {
            return;
        };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut next = self.limiter.borrow_mut();
            let start = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(start + cost);
            start + cost
        };
        sleep_until(until).await;
    }
}

/// How busy this process is.
struct CpuLoad {
    at: Instant,
    used: Duration,
}

impl CpuLoad {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            used: clock::cpu_time(),
        }
    }

    /// Processors used since the last look: 1 is one of them all the time.
    fn since(&mut self) -> f64 {
        let before = std::mem::replace(self, Self::now());
        let used = self.used.saturating_sub(before.used);
        used.as_secs_f64() / (self.at - before.at).as_secs_f64().max(0.001)
    }
}

/// Compares an answer with what the object is known to be.
fn same_object(meta: &ObjectMeta, reply: &GetResponse, at: u64) -> Result<(), StoreError> {
    let changed = |why: &str| Err(StoreError::new(StoreErrorKind::Changed, why));
    if !reply.partial && at != 0 {
        return changed("the server answered a range with the whole object");
    }
    if reply.offset != at {
        return Err(StoreError::new(
            StoreErrorKind::Transient,
            "the server sent another range than was asked for",
        ));
    }
    let size = reply.meta.size.is_none() || reply.meta.size == meta.size;
    match &reply.meta.etag {
        // A server or proxy that does not send it may not have looked at If-Match either.
        None => changed("the server did not say which object its range is of"),
        etag if size && *etag == meta.etag => Ok(()),
        _ => changed("it was replaced in mid-flight"),
    }
}

/// A placeholder for the error the sink's thread ends with.
fn disk() -> StoreError {
    StoreError::new(StoreErrorKind::Disk, "cannot write")
}

struct TransferRetry {
    attempts: u32,
    backoff: Backoff,
}

impl TransferRetry {
    fn new() -> Self {
        Self {
            attempts: 0,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
        }
    }

    /// Waits as long as it takes, or gives the error back when trying again is pointless.
    async fn after(
        &mut self,
        error: StoreError,
        source: &ArtifactSource,
    ) -> Result<(), StoreError> {
        self.attempts += 1;
        if error.kind != StoreErrorKind::Transient || self.attempts >= ATTEMPTS {
            return Err(error);
        }
        let delay = self
            .backoff
            .next_delay()
            .max(error.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        info!(%source, attempt = self.attempts, delay_ms = delay.as_millis() as u64, "{error}: trying again");
        sleep(delay).await;
        Ok(())
    }
}
