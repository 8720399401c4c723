//! One download by the leader: plan the parts, transfer, verify, publish. `destination` owns where the bytes go and
//! whether there is room for them.

mod destination;
mod expected_digest;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use hostkit::failure::is_out_of_resources;
use hostkit::{Exit, Failure, clock};
use tracing::{info, warn};

use crate::cache::eviction::RecentPolicy;
use crate::cache::index_entry::FileStamp;
use crate::cache::partial_download::{FinishedPart, PartialDownload};
use crate::cache::space::{self, SpaceLimits};
use crate::cache::{CachedBlob, HostCache, IndexEntry};
use crate::copy::{PendingFile, write_failure};
use crate::progress::TransferProgress;
use crate::settings::Settings;
use crate::single_flight::MAX_TURNS;
use crate::sink::{DownloadFile, DownloadSink, DownloadSummary, PartLayout, SinkThread};
use crate::source::ArtifactSource;
use crate::store::{
    CrcKind, GetResponse, ObjectChecksum, ObjectMeta, ObjectStore, StoreError, StoreErrorKind,
};
use crate::transfer::{self, ObjectTransfer, TransferOptions};
use crate::unpack;
use crate::verification::{self, ExpectedDigest};
use destination::DownloadDestination;

/// How often a download restarts when the object is replaced meanwhile or its single stream breaks.
const RESTARTS: u32 = 3;

/// The inputs of a download, and what is known about the object so far.
pub(crate) struct ArtifactDownload<'a> {
    pub store: Rc<dyn ObjectStore>,
    pub source: &'a ArtifactSource,
    pub name: &'a str,
    pub settings: &'a Settings,
    /// The digest that the caller requires.
    pub sha256: Option<&'a str>,
    pub recent: RecentPolicy,
    /// The object's properties, once requested.
    pub meta: Option<ObjectMeta>,
    /// The expected digest, once requested: `Some(None)` when none is published.
    pub expected: Option<Option<ExpectedDigest>>,
}

/// How a download into the cache ended.
pub(crate) enum DownloadOutcome {
    Published(Box<CachedBlob>),
    /// Complete and verified, but not published: the cache failed after the download.
    Unpublished {
        file: File,
        size: u64,
    },
    /// The cache cannot hold it; nothing was fetched.
    NoRoom(String),
}

/// How an object is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransferMode {
    /// In ranges over several connections, where the store can.
    Ranges,
    /// In one response.
    SingleStream,
}

/// Why an attempt ended.
enum AttemptError {
    Store(StoreError),
    /// The single stream broke. Without ranges it cannot be continued, only restarted.
    Stream(StoreError),
    NoRoom(String),
    Fail(Failure),
}

impl From<StoreError> for AttemptError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// All bytes of the object, not verified yet.
struct CompletedDownload {
    target: DownloadFile,
    summary: DownloadSummary,
    meta: ObjectMeta,
}

impl ArtifactDownload<'_> {
    /// Downloads into the caller's share of the cache.
    ///
    /// # Errors
    /// The store failed, the bytes are not what they should be, or the disk failed.
    pub(crate) async fn download_to_cache(
        &mut self,
        cache: &HostCache,
        key: &str,
        turn: u32,
    ) -> Result<DownloadOutcome, Failure> {
        let share = &cache.own;
        let disk = |error: io::Error| {
            Failure::new(
                Exit::IO,
                format!("cannot write to {}", share.display_path()),
            )
            .because(error)
        };
        let bounds = SpaceLimits {
            max_size: self.settings.max_size,
            keep_free: self.settings.keep_free,
            recent: self.recent,
        };
        let arrived = match self
            .attempts(&DownloadDestination::Cache {
                share,
                cache,
                key,
                turn,
                bounds,
            })
            .await
        {
            Ok(arrived) => arrived,
            Err(AttemptError::NoRoom(why)) => return Ok(DownloadOutcome::NoRoom(why)),
            // The cache's disk failed or filled up: the partial download would take space from others.
            Err(AttemptError::Store(error)) if error.kind == StoreErrorKind::Disk => {
                if let Ok(dir) = share.record_dir("partial") {
                    let _ = space::release(share, PartialDownload::remove(&dir, key, turn));
                }
                return Ok(DownloadOutcome::NoRoom(error.to_string()));
            }
            Err(AttemptError::Store(error) | AttemptError::Stream(error)) => {
                return Err(error.into_failure(self.source));
            }
            Err(AttemptError::Fail(failure)) => return Err(failure),
        };
        let size = arrived.summary.size;
        let file_name = arrived
            .target
            .record
            .as_ref()
            .map(|record| record.name.clone())
            .unwrap_or_default();
        let Ok(dir) = share.record_dir("partial") else {
            // The cache directory was removed meanwhile.
            self.verify(&arrived).await?;
            let file = arrived.target.data;
            return Ok(DownloadOutcome::Unpublished { file, size });
        };
        if let Err(failure) = self.verify(&arrived).await {
            let _ = space::release(share, PartialDownload::remove(&dir, key, turn));
            return Err(failure);
        }
        let Ok(file) = dir.open_file(&file_name) else {
            let file = arrived.target.data;
            return Ok(DownloadOutcome::Unpublished { file, size });
        };
        let mut entry = self.entry(&arrived, &file).map_err(disk)?;
        // The kernel does not execute a file that is open for writing (ETXTBSY).
        drop(arrived);
        match share.publish(&dir, &file_name, &file, key, &mut entry) {
            Ok(path) => {
                for turn in 0..MAX_TURNS {
                    PartialDownload::remove_record(&dir, key, turn);
                }
                Ok(DownloadOutcome::Published(Box::new(CachedBlob {
                    entry,
                    file,
                    path,
                })))
            }
            Err(error) if is_out_of_resources(&error) => Err(disk(error)),
            Err(error) => {
                warn!(%error, path = share.display_path(), "cannot publish to the cache; continuing without it");
                let _ = space::release(share, PartialDownload::remove(&dir, key, turn));
                Ok(DownloadOutcome::Unpublished { file, size })
            }
        }
    }

    /// Downloads straight to its destination.
    ///
    /// # Errors
    /// As [`ArtifactDownload::download_to_cache`]; a full disk is exit 73.
    pub(crate) async fn download_to_file(
        &mut self,
        target: &Path,
        mode: u32,
    ) -> Result<(), Failure> {
        let placing = PendingFile::new(target, mode)?;
        match self
            .attempts(&DownloadDestination::File(&placing.file))
            .await
        {
            Ok(arrived) => {
                self.verify(&arrived).await?;
                placing.place()
            }
            Err(AttemptError::Store(error)) if error.kind == StoreErrorKind::Disk => {
                Err(write_failure(
                    target,
                    io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32),
                ))
            }
            Err(AttemptError::Store(error) | AttemptError::Stream(error)) => {
                Err(error.into_failure(self.source))
            }
            Err(AttemptError::NoRoom(why)) => Err(Failure::new(Exit::CANNOT_CREATE, why)),
            Err(AttemptError::Fail(failure)) => Err(failure),
        }
    }

    /// The object's properties by HEAD, requested once, for stores whose HEAD has more than their GET.
    pub(crate) async fn head(&mut self) -> Result<Option<ObjectMeta>, StoreError> {
        if self.meta.is_none() && self.store.wants_head() {
            self.meta = Some(self.store.head(self.source, None).await?.into_meta());
        }
        Ok(self.meta.clone())
    }

    /// Requests the first missing part of an interrupted download. `None` if the object has changed or the store
    /// prefers HEAD.
    async fn resume(
        &self,
        job: &ObjectTransfer,
        into: &DownloadDestination<'_>,
    ) -> Result<Option<(ObjectMeta, GetResponse)>, StoreError> {
        if self.store.wants_head() {
            return Ok(None);
        }
        let Some((header, missing)) = into.find_resumable(self.settings.part_size) else {
            return Ok(None);
        };
        let (start, length) = header.part(missing);
        match job
            .first(Some((start, start + length - 1)), Some(&header.etag))
            .await
        {
            Ok(reply) => {
                let meta = reply.meta.clone();
                let same = reply.partial
                    && reply.offset == start
                    && meta.etag.as_ref() == Some(&header.etag)
                    && meta.size == Some(header.size);
                Ok(same.then_some((meta, reply)))
            }
            Err(error) if error.kind == StoreErrorKind::Transient => Err(error),
            // The partial download is of another version of the object: request it from its start.
            Err(_) => Ok(None),
        }
    }

    async fn attempts(
        &mut self,
        into: &DownloadDestination<'_>,
    ) -> Result<CompletedDownload, AttemptError> {
        let mut restarts = 0;
        let mut mode = TransferMode::Ranges;
        loop {
            let stopped = match self.attempt(into, mode).await {
                Err(AttemptError::Stream(error)) => error,
                Err(AttemptError::Store(error)) if error.kind == StoreErrorKind::Changed => error,
                other => return other,
            };
            restarts += 1;
            if restarts > RESTARTS {
                if mode == TransferMode::SingleStream || stopped.kind != StoreErrorKind::Changed {
                    return Err(AttemptError::Store(stopped));
                }
                warn!(source = %self.source, "ranges are inconsistent: the server ignores them, or tags equal bytes differently; fetching as one stream");
                (restarts, mode) = (0, TransferMode::SingleStream);
            }
            info!(source = %self.source, error = %stopped, "restarting the download");
            self.meta = None;
            tokio::time::sleep(Duration::from_millis(100) * restarts).await;
        }
    }

    /// Requests the whole object in one response, which is consistent in itself. A checksum from HEAD counts only for
    /// the same entity tag.
    async fn begin_stream(
        &mut self,
        job: &ObjectTransfer,
    ) -> Result<(ObjectMeta, Option<GetResponse>), StoreError> {
        let known = self.head().await?.unwrap_or_default();
        let reply = job.first(None, None).await?;
        let mut meta = reply.meta.clone();
        if known.etag.is_some() && known.etag == meta.etag {
            meta.checksum = known.checksum;
        }
        Ok((meta, Some(reply)))
    }

    /// Starts a download by ranges: the object's properties, and the first response.
    async fn begin_ranges(
        &mut self,
        job: &ObjectTransfer,
        into: &DownloadDestination<'_>,
    ) -> Result<(ObjectMeta, Option<GetResponse>), StoreError> {
        // S3 reports everything in a HEAD, other stores in the response to the first range.
        let known = self
            .head()
            .await?
            .filter(|meta| meta.size.is_some() && meta.strong_etag().is_some());
        Ok(match (known, self.resume(job, into).await?) {
            (_, Some((meta, reply))) => (meta, Some(reply)),
            (Some(meta), None) if self.store.wants_head() => (meta, None),
            _ => {
                let probe = self.settings.part_size.unwrap_or(transfer::PART_SIZE);
                let mut reply = job.first(Some((0, probe - 1)), None).await?;
                let whole = !reply.partial || reply.meta.size.is_some_and(|size| size <= probe);
                if !whole && (reply.meta.strong_etag().is_none() || reply.meta.size.is_none()) {
                    // Without an entity tag parts of two versions could be mixed: fetch one stream.
                    reply = job.first(None, None).await?;
                }
                (reply.meta.clone(), Some(reply))
            }
        })
    }

    async fn attempt(
        &mut self,
        into: &DownloadDestination<'_>,
        mode: TransferMode,
    ) -> Result<CompletedDownload, AttemptError> {
        let options = TransferOptions {
            connections: self.settings.connections,
            max_rate: self.settings.max_rate,
            stall_timeout: self.settings.stall_timeout,
        };
        let job = Rc::new(ObjectTransfer::new(
            self.store.clone(),
            self.source.clone(),
            options,
        ));
        let (meta, first) = match mode {
            TransferMode::Ranges => self.begin_ranges(&job, into).await?,
            TransferMode::SingleStream => self.begin_stream(&job).await?,
        };
        let ranged = meta.size.is_some()
            && meta.strong_etag().is_some()
            && first.as_ref().is_none_or(|reply| reply.partial);
        let size = meta.size.filter(|_| ranged || first.is_some());
        let part_size = if ranged {
            transfer::part_size(size.unwrap_or(0), self.settings.part_size)
        } else {
            u64::MAX / 2
        };
        let crc = match meta.checksum {
            Some(ObjectChecksum::Crc(crc, _)) => crc,
            _ => CrcKind::default(),
        };
        let shape = PartLayout {
            size,
            part_size,
            crc,
            archive: unpack::archive_kind(self.name),
        };
        let (target, done) = into.open(shape, ranged.then_some(&meta), self.settings.max_rate)?;
        let reserved = size.unwrap_or(0);
        let ran = self
            .transfer(&job, shape, ranged, &meta, first, target, done, into)
            .await;
        if ran.is_err() && !ranged {
            into.remove_partial(reserved);
        }
        let (target, summary) = ran?;
        Ok(CompletedDownload {
            target,
            summary,
            meta,
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one caller; a struct would only repeat the names"
    )]
    async fn transfer(
        &self,
        job: &Rc<ObjectTransfer>,
        shape: PartLayout,
        ranged: bool,
        meta: &ObjectMeta,
        first: Option<GetResponse>,
        target: DownloadFile,
        done: Vec<FinishedPart>,
        into: &DownloadDestination<'_>,
    ) -> Result<(DownloadFile, DownloadSummary), AttemptError> {
        let room = target.data.try_clone().map_err(StoreError::disk)?;
        let (sink, thread) = DownloadSink::start(target, shape, &done).map_err(StoreError::disk)?;
        let arrived = sink.arrived();
        let shown = tokio::task::spawn_local({
            let mut progress = TransferProgress::new(&self.source.to_string(), "fetching");
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    progress.show(
                        arrived.load(std::sync::atomic::Ordering::Relaxed),
                        shape.size,
                    );
                }
            }
        });
        let result = match first {
            Some(reply) if !ranged => {
                let mut reserved = shape.size.unwrap_or(0);
                job.stream(reply, &sink, |end| {
                    if end > reserved {
                        // Without a length, room is reserved in steps.
                        let want = end.max(reserved + reserved.clamp(1 << 20, 64 << 20));
                        into.reserve(&room, reserved, want)?;
                        reserved = want;
                    }
                    Ok(())
                })
                .await
                .map(|_| ())
                .map_err(|mut error| match error.kind {
                    StoreErrorKind::Transient => {
                        error.message = format!("the transfer was interrupted: {}", error.message);
                        AttemptError::Stream(error)
                    }
                    _ => AttemptError::Store(error),
                })
            }
            first => {
                let size = shape.size.unwrap_or(0);
                let parts: VecDeque<(u64, u64, u64)> = (0..size.div_ceil(shape.part_size).max(1))
                    .filter(|part| !done.iter().any(|done| done.part == *part))
                    .map(|part| {
                        (
                            part,
                            part * shape.part_size,
                            size.min((part + 1) * shape.part_size),
                        )
                    })
                    .collect();
                job.ranges(meta, parts, first, &sink)
                    .await
                    .map_err(AttemptError::from)
            }
        };
        shown.abort();
        drop(sink);
        match (result, join_sink(thread).await) {
            (Ok(()), Ok((summary, target))) => {
                if shape.size.is_none() {
                    target
                        .data
                        .set_len(summary.size)
                        .map_err(StoreError::disk)?;
                }
                Ok((target, summary))
            }
            // The thread's error is the cause, unless it only noticed that the transfer ended.
            (_, Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                Err(StoreError::disk(error).into())
            }
            (Err(stop), _) => Err(stop),
            (Ok(()), Err(error)) => Err(StoreError::disk(error).into()),
        }
    }

    async fn verify(&mut self, arrived: &CompletedDownload) -> Result<(), Failure> {
        let expected = self.expected_digest().await?;
        let crc = match arrived.meta.checksum {
            Some(ObjectChecksum::Crc(crc, _)) => crc,
            _ => CrcKind::default(),
        };
        verification::compare_digests(
            self.source,
            &arrived.summary,
            crc,
            arrived.meta.checksum,
            expected.as_ref(),
        )?;
        match &arrived.summary.broken {
            Some(why) => Err(verification::broken_archive(self.source, self.name, why)),
            None => verification::check_zip(self.source, self.name, &arrived.target.data),
        }
    }

    fn entry(&self, arrived: &CompletedDownload, file: &File) -> io::Result<IndexEntry> {
        let by_store = arrived.meta.checksum.is_some().then(|| "store".to_owned());
        let expected = self
            .expected
            .clone()
            .flatten()
            .map(|expected| expected.verified_by.to_owned());
        Ok(new_entry(
            self.source,
            self.name,
            &arrived.summary,
            arrived.meta.etag.clone(),
            expected.or(by_store),
            FileStamp::of(&file.metadata()?),
        ))
    }
}

/// The index entry of a verified file.
pub(crate) fn new_entry(
    source: &ArtifactSource,
    name: &str,
    summary: &DownloadSummary,
    etag: Option<String>,
    verified_by: Option<String>,
    stamp: FileStamp,
) -> IndexEntry {
    IndexEntry {
        source: source.to_string(),
        name: name.to_owned(),
        sha256: summary.sha256.clone(),
        size: summary.size,
        etag,
        fetched: clock::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        fetch_id: format!(
            "{:x}-{:x}",
            clock::since_boot().as_nanos(),
            std::process::id()
        ),
        verified_by,
        pex: None,
        stamp,
    }
}

/// Joins the sink's thread without blocking the runtime.
async fn join_sink(thread: SinkThread) -> io::Result<(DownloadSummary, DownloadFile)> {
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .map_err(io::Error::other)?
        .unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
}
