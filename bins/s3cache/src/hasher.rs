//! SHA-256 of a growing file, in a thread of its own: hashing is the most expensive thing done per byte, and neither the
//! network nor the disk should wait for it.
//!
//! What comes in order is hashed from memory, while it is still in the processor's cache; what came early is read back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::digest::{self, Hex};

/// Pieces waiting to be hashed.
const QUEUE: usize = 4;

/// The next bytes of the file.
#[derive(Debug)]
pub enum Next {
    /// These, which are in the file too.
    Piece(Bytes),
    /// Those in the file from the first offset up to the second.
    Range(u64, u64),
}

/// A hashing thread.
#[derive(Debug)]
pub struct Hasher {
    queue: SyncSender<Next>,
    thread: JoinHandle<io::Result<Hex>>,
}

impl Hasher {
    /// Starts with the empty prefix of `file`.
    #[must_use]
    pub fn start(file: File) -> Self {
        let (queue, work) = sync_channel(QUEUE);
        Self {
            queue,
            thread: std::thread::spawn(move || run(&file, &work)),
        }
    }

    /// Takes the bytes that follow those it has. Waits while hashing is slower than the network. That it failed is said
    /// by [`Hasher::finish`].
    pub fn take(&self, next: Next) {
        let _ = self.queue.send(next);
    }

    /// The digest of all it was given.
    ///
    /// # Errors
    /// A range could not be read back.
    pub fn finish(self) -> io::Result<Hex> {
        drop(self.queue);
        let failed = |_| Err(io::Error::other("the hashing thread failed"));
        self.thread.join().unwrap_or_else(failed)
    }
}

fn run(file: &File, work: &Receiver<Next>) -> io::Result<Hex> {
    let mut hasher = Sha256::new();
    let mut buffer = Vec::new();
    while let Ok(next) = work.recv() {
        match next {
            Next::Piece(bytes) => hasher.update(&bytes),
            Next::Range(mut at, end) => {
                buffer.resize(256 << 10, 0);
                while at < end {
                    let want = usize::try_from(end - at).unwrap_or(usize::MAX);
                    let piece = &mut buffer[..want.min(256 << 10)];
                    file.read_exact_at(piece, at)?;
                    hasher.update(&*piece);
                    at += piece.len() as u64;
                }
            }
        }
    }
    Ok(digest::hex(&hasher.finalize()))
}
