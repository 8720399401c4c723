//! Work on every byte of a growing file in order, each kind in a thread of its own: SHA-256 is the most expensive step
//! per byte, decompression costs even more, and neither network nor disk should wait for them.
//!
//! Bytes that arrive in order are taken from memory, while they are in the CPU's cache; bytes that arrived early are
//! read back from the file.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::{Buf as _, Bytes};
use hostkit::thread::ThreadSpawnError;
use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Hex;

const QUEUE: usize = 4;
/// Bytes read back at once.
const BUFFER: usize = 256 << 10;

#[derive(Debug, Clone)]
pub(crate) enum StreamChunk {
    /// Bytes that were also written to the file.
    Piece(Bytes),
    /// Start and end of a range to read back from the file.
    Range(u64, u64),
}

#[derive(Debug)]
pub(crate) struct StreamWorker<T> {
    queue: SyncSender<StreamChunk>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> StreamWorker<T> {
    pub(crate) fn start(
        file: File,
        read: impl FnOnce(GrowingFileReader) -> T + Send + 'static,
    ) -> Result<Self, ThreadSpawnError> {
        let (queue, work) = sync_channel(QUEUE);
        let bytes = GrowingFileReader {
            file,
            work,
            piece: Bytes::new(),
            range: (0, 0),
            buffer: Vec::new(),
            buffered: (0, 0),
        };
        let thread = hostkit::thread::spawn(move || read(bytes))?;
        Ok(Self { queue, thread })
    }

    /// Sends the next bytes. Waits while the thread is slower than the network, and does nothing once the thread has
    /// ended.
    pub(crate) fn take(&self, next: StreamChunk) {
        let _ = self.queue.send(next);
    }

    /// Waits for the thread's result.
    pub(crate) fn finish(self) -> io::Result<T> {
        drop(self.queue);
        let failed = |_| io::Error::other("a worker thread panicked");
        self.thread.join().map_err(failed)
    }
}

/// The bytes of a growing file from its start. A read waits for bytes that have not arrived.
#[derive(Debug)]
pub(crate) struct GrowingFileReader {
    file: File,
    work: Receiver<StreamChunk>,
    piece: Bytes,
    /// To be read back before the next piece.
    range: (u64, u64),
    buffer: Vec<u8>,
    /// The part of the buffer that was not consumed.
    buffered: (usize, usize),
}

impl BufRead for GrowingFileReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && self.buffered.0 == self.buffered.1 {
            let (at, end) = self.range;
            if at < end {
                self.buffer.resize(BUFFER, 0);
                let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                self.file.read_exact_at(&mut self.buffer[..want], at)?;
                self.range.0 += want as u64;
                self.buffered = (0, want);
                continue;
            }
            match self.work.recv() {
                Ok(StreamChunk::Piece(piece)) => self.piece = piece,
                Ok(StreamChunk::Range(at, end)) => self.range = (at, end),
                Err(_) => break,
            }
        }
        Ok(if self.piece.is_empty() {
            &self.buffer[self.buffered.0..self.buffered.1]
        } else {
            &self.piece
        })
    }

    fn consume(&mut self, length: usize) {
        if self.piece.is_empty() {
            self.buffered.0 += length;
        } else {
            self.piece.advance(length);
        }
    }
}

impl Read for GrowingFileReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(into.len());
        into[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// The SHA-256 of all bytes.
pub(crate) fn sha256(mut bytes: impl BufRead) -> io::Result<Sha256Hex> {
    let mut hasher = Sha256::new();
    loop {
        let piece = bytes.fill_buf()?;
        if piece.is_empty() {
            return Ok(hostkit::hex::encode(&hasher.finalize()));
        }
        hasher.update(piece);
        let length = piece.len();
        bytes.consume(length);
    }
}
