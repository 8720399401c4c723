//! Transfers one object over several connections into a sink, with retries.
//!
//! Every range carries If-Match and every response is compared with the first, so that an object that is replaced
//! meanwhile is noticed and versions are never mixed. A failed range is retried with backoff, from the byte it had
//! reached.

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

/// The default part size (bytes).
pub(crate) const PART_SIZE: u64 = 8 << 20;
/// Objects larger than this use larger parts, so that the record of the partial download stays short (bytes).
const LARGE_OBJECT: u64 = 4 << 30;
/// The default limit of connections: one S3 connection delivers 50 to 90 MB/s.
const DEFAULT_CONNECTIONS: u64 = 8;
/// Connections at the start.
const INITIAL_CONNECTIONS: u64 = 2;
/// How often the number of connections may grow.
const GROW_INTERVAL: Duration = Duration::from_millis(50);
/// Above this share of one CPU the network is not the bottleneck, and another connection only costs memory.
const BUSY_CPU: f64 = 0.5;
/// Attempts without progress.
const MAX_ATTEMPTS: u32 = 5;
/// Bytes that count as progress and reset the attempts.
const PROGRESS_BYTES: u64 = 1 << 20;
/// The limit of a server's Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub(crate) struct TransferOptions {
    /// Fixed number of connections, if configured.
    pub connections: Option<u64>,
    /// Bytes per second.
    pub max_rate: Option<u64>,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
}

#[must_use]
pub(crate) fn part_size(size: u64, configured: Option<u64>) -> u64 {
    configured.unwrap_or(if size > LARGE_OBJECT {
        PART_SIZE * 4
    } else {
        PART_SIZE
    })
}

/// The transfer of one object.
pub(crate) struct ObjectTransfer {
    pub store: Rc<dyn ObjectStore>,
    pub source: Rc<ArtifactSource>,
    pub options: TransferOptions,
    limiter: RefCell<Option<Instant>>,
}

impl ObjectTransfer {
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

    /// Opens the first response, which has the object's length and entity tag. Retries as [`ObjectTransfer::ranges`]
    /// does.
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

    /// Fetches `parts` (number, start and end of each) of the object that `meta` identifies. `first` is a response that
    /// is already open, at the start of a part.
    ///
    /// # Errors
    /// `Changed` when the object is no longer that of `meta`; else the last error of the store.
    pub(crate) async fn ranges(
        self: &Rc<Self>,
        meta: &ObjectMeta,
        parts: VecDeque<(u64, u64, u64)>,
        first: Option<GetResponse>,
        sink: &DownloadSink,
    ) -> Result<(), StoreError> {
        let most =
            (parts.len() as u64).min(self.options.connections.unwrap_or(DEFAULT_CONNECTIONS));
        let mut connections = most.min(self.options.connections.unwrap_or(INITIAL_CONNECTIONS));
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
                () = sleep(GROW_INTERVAL), if connections < most => {
                    if load.since() < BUSY_CPU {
                        let more = connections.min(most - connections);
                        (0..more).for_each(|_| start(&mut workers));
                        connections += more;
                        debug!(connections, "the network is the bottleneck: opening more connections");
                    }
                    continue;
                }
            };
            let Some(ended) = ended else { return Ok(()) };
            ended.map_err(|error| {
                StoreError::new(
                    StoreErrorKind::Permanent,
                    "the task of a connection panicked",
                )
                .because(error)
            })??;
        }
    }

    /// One connection: part after part, until none is left. `open` is a response that starts with one of them.
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
            sink.finish_part(part).await.map_err(|SinkClosed| disk())?;
        }
    }

    /// Fetches an object without ranges as one stream. `room` is called before bytes beyond the reservation are
    /// accepted.
    ///
    /// # Errors
    /// Those of the store, without a retry: nothing proves that a second response has the same object.
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
                    "the server sent more bytes than it announced",
                ));
            }
            room(end)?;
            self.limit(piece.len()).await;
            sink.send_piece(at, piece)
                .await
                .map_err(|SinkClosed| disk())?;
            at = end;
        }
        if reply.meta.size.is_some_and(|size| at != size) {
            return Err(StoreError::new(
                StoreErrorKind::Transient,
                format!("the connection ended after {at} bytes"),
            ));
        }
        sink.finish_part(0).await.map_err(|SinkClosed| disk())?;
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
                        // The first response may be shorter than a part.
                        return if at > before {
                            Ok(())
                        } else {
                            Err(StoreError::new(
                                StoreErrorKind::Transient,
                                "the response was empty",
                            ))
                        };
                    };
                    piece.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                    self.limit(piece.len()).await;
                    let length = piece.len() as u64;
                    sink.send_piece(at, piece)
                        .await
                        .map_err(|SinkClosed| disk())?;
                    at += length;
                }
                Ok(())
            }
            .await;
            if at - before >= PROGRESS_BYTES {
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
        // Twice the stall timeout, for the TCP and TLS handshakes of a new connection.
        match timeout(
            self.options.stall_timeout * 2,
            self.store.get(&self.source, want),
        )
        .await
        {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Transient,
                "no response in time",
            )),
        }
    }

    async fn next(&self, reply: &mut GetResponse) -> Result<Option<bytes::Bytes>, StoreError> {
        match timeout(self.options.stall_timeout, reply.body.next()).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Transient,
                "the connection stalled",
            )),
        }
    }

    /// Waits until `bytes` more fit the rate limit.
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

/// The CPU time of this process at a moment.
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

    /// CPUs used since the last call: 1.0 is one CPU all the time.
    fn since(&mut self) -> f64 {
        let before = std::mem::replace(self, Self::now());
        let used = self.used.saturating_sub(before.used);
        used.as_secs_f64() / (self.at - before.at).as_secs_f64().max(0.001)
    }
}

/// Checks that a response is of the object that `meta` identifies.
fn same_object(meta: &ObjectMeta, reply: &GetResponse, at: u64) -> Result<(), StoreError> {
    let changed = |why: &str| Err(StoreError::new(StoreErrorKind::Changed, why));
    if !reply.partial && at != 0 {
        return changed("the server sent the whole object for a range");
    }
    if reply.offset != at {
        return Err(StoreError::new(
            StoreErrorKind::Transient,
            "the server sent another range than requested",
        ));
    }
    let size = reply.meta.size.is_none() || reply.meta.size == meta.size;
    match &reply.meta.etag {
        // A server or proxy that omits the tag may have ignored If-Match as well.
        None => changed("the server sent a range without an entity tag"),
        etag if size && *etag == meta.etag => Ok(()),
        _ => changed("the object was replaced during the download"),
    }
}

/// A placeholder: the sink's thread ends with the actual error.
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

    /// Waits for the backoff, or returns the error when a retry is pointless.
    async fn after(
        &mut self,
        error: StoreError,
        source: &ArtifactSource,
    ) -> Result<(), StoreError> {
        self.attempts += 1;
        if error.kind != StoreErrorKind::Transient || self.attempts >= MAX_ATTEMPTS {
            return Err(error);
        }
        let delay = self
            .backoff
            .next_delay()
            .max(error.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
        info!(%source, %error, attempt = self.attempts, delay_ms = delay.as_millis() as u64, "request failed; retrying");
        sleep(delay).await;
        Ok(())
    }
}
