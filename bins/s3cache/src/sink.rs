//! The writing half of a download, in a thread of its own: puts pieces in place and records finished parts.
//!
//! SHA-256 cannot be computed out of order, nor an archive checked. Pieces at the frontier (all before it is read, or on
//! its way to be) go to the threads that do so as they come; what lies beyond it does when the frontier reaches it.

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

/// Pieces waiting to be written. A piece is what one read of a connection gives, 8 KiB to 400 KiB.
const QUEUE: usize = 8;
/// How often those who watch hear of progress.
const REPORT: Duration = Duration::from_millis(200);
/// Bytes after which writing them back begins, so that the final fsync finds little left to do.
const WRITE_BACK: u64 = 32 << 20;

/// Where the bytes of a download go.
#[derive(Debug)]
pub(crate) struct DownloadFile {
    /// The file.
    pub data: File,
    /// Its record, when the bytes may outlive this process.
    pub record: Option<PartialDownload>,
}

/// The shape of a download: parts of equal size, of an object whose length may be unknown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartLayout {
    /// Length of the object (bytes), when it is known.
    pub size: Option<u64>,
    /// Bytes per part.
    pub part_size: u64,
    /// The CRC taken of each part.
    pub crc: CrcKind,
    /// What the object is checked as while it arrives, when it is an archive.
    pub archive: Option<ArchiveKind>,
}

enum SinkMessage {
    Piece { at: u64, bytes: Bytes },
    Finished { part: u64 },
}

/// What all the bytes came to.
#[derive(Debug)]
pub(crate) struct DownloadSummary {
    /// SHA-256 of the object.
    pub sha256: Sha256Hex,
    /// Its length (bytes).
    pub size: u64,
    /// The CRC of the whole object.
    pub crc: u64,
    /// What is wrong with the archive.
    pub broken: Option<String>,
}

/// The thread that writes, which ends with what it has written.
pub(crate) type SinkThread = JoinHandle<io::Result<(DownloadSummary, DownloadFile)>>;

/// The sending end, held by the engine.
#[derive(Debug, Clone)]
pub(crate) struct DownloadSink {
    queue: mpsc::Sender<SinkMessage>,
    arrived: Arc<AtomicU64>,
}

/// The sink is gone because writing failed; its thread knows why.
#[derive(Debug)]
pub(crate) struct SinkClosed;

impl DownloadSink {
    /// Starts the thread. `done` are parts that stand in the file already, verified.
    ///
    /// # Errors
    /// The system gives no thread.
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

    /// Hands over bytes that belong at `at`. Waits while the disk is slower than the network.
    ///
    /// # Errors
    /// Writing failed.
    pub(crate) async fn piece(&self, at: u64, bytes: Bytes) -> Result<(), SinkClosed> {
        self.queue
            .send(SinkMessage::Piece { at, bytes })
            .await
            .map_err(|_| SinkClosed)
    }

    /// Says that all of a part has been handed over.
    ///
    /// # Errors
    /// Writing failed.
    pub(crate) async fn finished(&self, part: u64) -> Result<(), SinkClosed> {
        self.queue
            .send(SinkMessage::Finished { part })
            .await
            .map_err(|_| SinkClosed)
    }

    /// Bytes written so far, those of earlier processes included.
    #[must_use]
    pub(crate) fn arrived(&self) -> Arc<AtomicU64> {
        self.arrived.clone()
    }
}

struct SinkWriter {
    target: DownloadFile,
    shape: PartLayout,
    /// `None` once it has finished.
    hasher: Option<StreamWorker<io::Result<Sha256Hex>>>,
    checker: Option<StreamWorker<io::Result<()>>>,
    /// All bytes before this one were given to these two.
    frontier: u64,
    /// Part -> bytes of it that are written, and their CRC so far.
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
            self.record(|record| record.finished(*part))?;
        }
        self.catch_up();
        while let Some(message) = pieces.blocking_recv() {
            match message {
                SinkMessage::Piece { at, bytes } => self.write(at, bytes)?,
                SinkMessage::Finished { part } => self.finish(part)?,
            }
        }
        // It holds the file open for writing.
        let synced = self.synced();
        let summary = self.summary()?;
        synced?;
        // Those who watch see that only finishing is left, which they have more patience with.
        self.record(|record| record.arrived(summary.size))?;
        Ok(summary)
    }

    /// Length of a part by the shape; of an object without a known length there is one part, as long as it gets.
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
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.record(|record| record.arrived(arrived))?;
        }
        self.write_back(length)
    }

    /// Starts writing back in a thread of its own, unless one still does: fsync at the end waits for what is left.
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

    /// Waits for the writing back that has begun, and how it went: the kernel says once that it could not write, and
    /// the final fsync would not hear of it again.
    fn synced(&mut self) -> io::Result<()> {
        let failed = |_| Err(io::Error::other("the thread that writes back failed"));
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
        self.record(|record| record.finished(FinishedPart { part, crc }))?;
        self.catch_up();
        Ok(())
    }

    /// Hands on what the frontier has reached: whole parts, and the written beginning of the next one.
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
            // The engine gave up; it has its own error.
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

/// The header of a record for a download of this shape.
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
