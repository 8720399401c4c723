//! The writing half of a download, in a thread of its own: writes pieces in place and records finished parts.
//!
//! SHA-256 and archive checks need the bytes in order. Pieces at the frontier (everything before it was passed on) go
//! to the worker threads as they arrive; later pieces are passed on when the frontier reaches them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::archive;
use crate::cache::partial_download::{FinishedPart, PartialDownload, PartialHeader};
use crate::digest::Sha256Hex;
use crate::store::CrcKind;
use crate::stream_worker::{self, StreamChunk, StreamWorker};
use crate::unpack::ArchiveKind;

/// Pieces in the queue. A piece is one read of a connection, 8 KiB to 400 KiB.
const QUEUE: usize = 8;
/// How often progress is recorded for the followers.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes after which write-back starts, so that the final fsync has little left to do.
const WRITE_BACK: u64 = 32 << 20;

/// The file that a download writes.
#[derive(Debug)]
pub(crate) struct DownloadFile {
    pub data: File,
    /// The record of the partial download, if the bytes may outlive this process.
    pub record: Option<PartialDownload>,
}

/// Parts of equal size of an object, whose length may be unknown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartLayout {
    pub size: Option<u64>,
    pub part_size: u64,
    /// The CRC of each part.
    pub crc: CrcKind,
    /// The kind of archive to check while it arrives.
    pub archive: Option<ArchiveKind>,
}

enum SinkMessage {
    Piece { at: u64, bytes: Bytes },
    Finished { part: u64 },
}

/// The result of writing all bytes.
#[derive(Debug)]
pub(crate) struct DownloadSummary {
    pub sha256: Sha256Hex,
    pub size: u64,
    pub crc: u64,
    /// Why the archive is invalid.
    pub broken: Option<String>,
}

/// The writing thread.
pub(crate) type SinkThread = JoinHandle<io::Result<(DownloadSummary, DownloadFile)>>;

/// The sending end, for the connections.
#[derive(Debug, Clone)]
pub(crate) struct DownloadSink {
    queue: mpsc::Sender<SinkMessage>,
    arrived: Arc<AtomicU64>,
}

/// The writing thread ended with an error, which [`SinkThread`] returns.
#[derive(Debug)]
pub(crate) struct SinkClosed;

impl DownloadSink {
    /// Starts the thread. `done` are the verified parts that are already in the file.
    pub(crate) fn start(
        target: DownloadFile,
        shape: PartLayout,
        done: &[FinishedPart],
    ) -> io::Result<(Self, SinkThread)> {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let arrived = Arc::new(AtomicU64::new(0));
        let mut writer = SinkWriter::new(target, shape, arrived.clone());
        let done = done.to_vec();
        let thread = hostkit::thread::spawn(move || {
            writer
                .run(pieces, &done)
                .map(|summary| (summary, writer.target))
        })?;
        Ok((Self { queue, arrived }, thread))
    }

    /// Sends bytes that belong at offset `at`. Waits while the disk is slower than the network.
    pub(crate) async fn send_piece(&self, at: u64, bytes: Bytes) -> Result<(), SinkClosed> {
        self.queue
            .send(SinkMessage::Piece { at, bytes })
            .await
            .map_err(|_| SinkClosed)
    }

    /// Reports that all bytes of a part were sent.
    pub(crate) async fn finish_part(&self, part: u64) -> Result<(), SinkClosed> {
        self.queue
            .send(SinkMessage::Finished { part })
            .await
            .map_err(|_| SinkClosed)
    }

    /// Bytes written so far, by interrupted downloads too.
    #[must_use]
    pub(crate) fn arrived(&self) -> Arc<AtomicU64> {
        self.arrived.clone()
    }
}

struct SinkWriter {
    target: DownloadFile,
    shape: PartLayout,
    hasher: Option<StreamWorker<io::Result<Sha256Hex>>>,
    checker: Option<StreamWorker<io::Result<()>>>,
    /// All bytes before this offset were passed to the two workers.
    frontier: u64,
    /// Part -> written bytes and their CRC so far.
    open: BTreeMap<u64, (u64, crc_fast::Digest)>,
    /// Part -> (length, CRC).
    done: BTreeMap<u64, (u64, u64)>,
    arrived: Arc<AtomicU64>,
    reported: Instant,
    unsynced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl SinkWriter {
    fn new(target: DownloadFile, shape: PartLayout, arrived: Arc<AtomicU64>) -> Self {
        Self {
            target,
            shape,
            hasher: None,
            checker: None,
            frontier: 0,
            open: BTreeMap::new(),
            done: BTreeMap::new(),
            arrived,
            reported: Instant::now(),
            unsynced: 0,
            syncing: None,
        }
    }

    fn run(
        &mut self,
        mut pieces: mpsc::Receiver<SinkMessage>,
        done: &[FinishedPart],
    ) -> io::Result<DownloadSummary> {
        let data = self.target.data.try_clone()?;
        self.hasher = Some(StreamWorker::start(data, stream_worker::sha256)?);
        if let Some(kind) = self.shape.archive {
            let data = self.target.data.try_clone()?;
            let check = move |bytes| archive::check(kind, bytes);
            self.checker = Some(StreamWorker::start(data, check)?);
        }
        for part in done {
            let length = self.part_length(part.part);
            self.done.insert(part.part, (length, part.crc));
            self.arrived.fetch_add(length, Ordering::Relaxed);
            self.record(|record| record.record_part(*part))?;
        }
        self.catch_up();
        while let Some(message) = pieces.blocking_recv() {
            match message {
                SinkMessage::Piece { at, bytes } => self.write(at, bytes)?,
                SinkMessage::Finished { part } => self.finish(part)?,
            }
        }
        // The write-back thread holds the file open for writing.
        let synced = self.synced();
        let summary = self.summary()?;
        synced?;
        // Followers give a leader that only fsyncs more time.
        self.record(|record| record.record_progress(summary.size))?;
        Ok(summary)
    }

    /// The length of a part; without a known length there is one part, as long as it gets.
    fn part_length(&self, part: u64) -> u64 {
        match self.shape.size {
            Some(size) => self
                .shape
                .part_size
                .min(size.saturating_sub(part * self.shape.part_size)),
            None => self.open.get(&part).map_or(0, |(written, _)| *written),
        }
    }

    fn write(&mut self, at: u64, bytes: Bytes) -> io::Result<()> {
        let length = bytes.len() as u64;
        self.target.data.write_all_at(&bytes, at)?;
        let part = at / self.shape.part_size;
        let crc = self.shape.crc;
        let (written, digest) = self.open.entry(part).or_insert_with(|| (0, crc.digest()));
        digest.update(&bytes);
        *written += length;
        if at == self.frontier {
            self.frontier += length;
            self.follow(StreamChunk::Piece(bytes));
        }
        let arrived = self.arrived.fetch_add(length, Ordering::Relaxed) + length;
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.reported = Instant::now();
            self.record(|record| record.record_progress(arrived))?;
        }
        self.write_back(length)
    }

    /// Starts write-back in a thread of its own, unless one is running: the final fsync waits for the rest.
    fn write_back(&mut self, bytes: u64) -> io::Result<()> {
        self.unsynced += bytes;
        if self.target.record.is_some() && self.unsynced >= WRITE_BACK {
            if self
                .syncing
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
            {
                return Ok(());
            }
            self.unsynced = 0;
            self.synced()?;
            let data = self.target.data.try_clone()?;
            // Without a thread the final fsync has more to do.
            self.syncing = hostkit::thread::spawn(move || data.sync_data()).ok();
        }
        Ok(())
    }

    /// Waits for the write-back: the kernel reports a write error once, and the final fsync would miss it.
    fn synced(&mut self) -> io::Result<()> {
        let failed = |_| Err(io::Error::other("the write-back thread panicked"));
        let thread = self.syncing.take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(failed))
    }

    fn finish(&mut self, part: u64) -> io::Result<()> {
        let length = self.part_length(part);
        let crc = self.open.remove(&part).map_or_else(
            || self.shape.crc.digest().finalize(),
            |(_, digest)| digest.finalize(),
        );
        self.done.insert(part, (length, crc));
        self.record(|record| record.record_part(FinishedPart { part, crc }))?;
        self.catch_up();
        Ok(())
    }

    /// Passes on what the frontier has reached: whole parts, and the written beginning of the next one.
    fn catch_up(&mut self) {
        loop {
            let part = self.frontier / self.shape.part_size;
            let written = match (self.done.get(&part), self.open.get(&part)) {
                (Some((length, _)), _) => *length,
                (None, Some((written, _))) => *written,
                (None, None) => 0,
            };
            let end = part * self.shape.part_size + written;
            if end <= self.frontier {
                return;
            }
            self.follow(StreamChunk::Range(self.frontier, end));
            self.frontier = end;
        }
    }

    fn follow(&self, next: StreamChunk) {
        if let Some(checker) = &self.checker {
            checker.take(next.clone());
        }
        if let Some(hasher) = &self.hasher {
            hasher.take(next);
        }
    }

    fn record(
        &mut self,
        write: impl FnOnce(&mut PartialDownload) -> io::Result<()>,
    ) -> io::Result<()> {
        self.target.record.as_mut().map_or(Ok(()), write)
    }

    fn summary(&mut self) -> io::Result<DownloadSummary> {
        let size = self.done.values().map(|(length, _)| length).sum();
        if self.frontier != size
            || self.shape.size.is_some_and(|expected| expected != size)
            || !self.open.is_empty()
        {
            // The transfer gave up and has its own error.
            return Err(io::ErrorKind::Interrupted.into());
        }
        let crc = self.shape.crc;
        let whole = self
            .done
            .values()
            .copied()
            .reduce(|(before, first), (length, second)| {
                (before + length, crc.combine(first, second, length))
            });
        let crc = whole.map_or_else(|| crc.digest().finalize(), |(_, crc)| crc);
        let sha256 = match self.hasher.take() {
            Some(hasher) => hasher.finish()??,
            None => return Err(io::ErrorKind::Interrupted.into()),
        };
        let checked = self.checker.take().map(StreamWorker::finish).transpose()?;
        Ok(DownloadSummary {
            sha256,
            size,
            crc,
            broken: checked.and_then(|checked| Some(checked.err()?.to_string())),
        })
    }
}

/// The header of the record of a download with this layout.
#[must_use]
pub(crate) fn header(
    shape: PartLayout,
    etag: &str,
    max_rate: Option<u64>,
) -> Option<PartialHeader> {
    Some(PartialHeader {
        etag: etag.to_owned(),
        size: shape.size?,
        part_size: shape.part_size,
        crc: shape.crc.name().to_owned(),
        max_rate,
    })
}

#[cfg(test)]
mod tests;
