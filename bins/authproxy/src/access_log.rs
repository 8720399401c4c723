//! The access log: one line for each request, on stderr.
//!
//! Owns getting lines out without a request ever waiting for it. What is in a line is `line`'s.
//!
//! A thread of its own writes: stderr is shared with other processes, so it cannot be made nonblocking, and a write to
//! a pipe that nobody reads would stop every connection of the thread that serves them. The thread sleeps while there is
//! nothing to write, gathers what comes within a second, and allocates nothing. What does not fit into the buffer then
//! is dropped and counted.

mod line;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hostkit::{Exit, Failure};

use crate::record::Record;
use crate::settings;

pub use line::LineFormatter;

/// What is written at once, in bytes.
const FULL: usize = 32 << 10;
/// What is kept while nobody takes it, in bytes; a line may go beyond it.
const MOST: usize = 256 << 10;
/// How long a line waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// The stack of the thread that writes. The allocator's slow paths need more than the thread itself; what is not touched
/// costs nothing.
const STACK: usize = 256 << 10;

/// A running access log.
#[derive(Debug)]
pub struct AccessLog {
    format: LineFormatter,
    shared: Arc<LineBuffer>,
}

#[derive(Debug, Default)]
struct LineBuffer {
    waiting: Mutex<PendingLines>,
    /// There is something to write, or this is the end.
    work: Condvar,
    /// Everything is written.
    done: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct PendingLines {
    lines: Vec<u8>,
    ending: bool,
    ended: bool,
}

impl LineBuffer {
    fn waiting(&self) -> MutexGuard<'_, PendingLines> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLog {
    /// Starts a log on stderr.
    ///
    /// # Errors
    /// No thread can be started (exit 1).
    pub fn start(shape: settings::AccessLogFormat, tags: &[String]) -> Result<Self, Failure> {
        Self::start_on(LineFormatter::new(shape, tags), io::stderr())
    }

    fn start_on(format: LineFormatter, to: impl Write + Send + 'static) -> Result<Self, Failure> {
        let shared = Arc::new(LineBuffer::default());
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(STACK)
            .spawn(move || write_all(&writer, to))
            .map_err(|error| {
                Failure::new(Exit::FAILED, "cannot start the thread of the access log")
                    .remedy("allow this user more threads, or give --access-log=off")
                    .because(error)
            })?;
        Ok(Self { format, shared })
    }

    /// Lines that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Logs a request that took so long.
    pub(crate) fn write(&self, record: &Record, took: Duration) {
        let mut waiting = self.shared.waiting();
        let before = waiting.lines.len();
        if before >= MOST {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.format.write(&mut waiting.lines, record, took);
        let after = waiting.lines.len();
        if before == 0 || (before < FULL && after >= FULL) {
            self.shared.work.notify_one();
        }
    }

    /// Writes what waits, and waits for that, but not longer than `patience`.
    pub fn finish(&self, patience: Duration) {
        let mut waiting = self.shared.waiting();
        waiting.ending = true;
        self.shared.work.notify_one();
        let done = &self.shared.done;
        drop(done.wait_timeout_while(waiting, patience, |waiting| !waiting.ended));
    }
}

/// What the thread does.
fn write_all(shared: &LineBuffer, mut to: impl Write) {
    let mut lines = Vec::new();
    loop {
        let waiting = shared.waiting();
        let nothing = |waiting: &mut PendingLines| waiting.lines.is_empty() && !waiting.ending;
        let waiting = shared.work.wait_while(waiting, nothing);
        let few = |waiting: &mut PendingLines| waiting.lines.len() < FULL && !waiting.ending;
        let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let gathered = shared.work.wait_timeout_while(waiting, GATHER, few);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut waiting.lines, &mut lines);
        if lines.is_empty() {
            waiting.ended = true;
            shared.done.notify_all();
            return;
        }
        drop(waiting);
        write_lines(&mut to, &lines, &shared.dropped);
        lines.clear();
        lines.shrink_to(FULL);
    }
}

/// Writes lines; those that cannot be written are counted.
fn write_lines(to: &mut impl Write, mut lines: &[u8], dropped: &AtomicU64) {
    while !lines.is_empty() {
        match to.write(lines) {
            Ok(written) if written > 0 => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who shares stderr has made it nonblocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(_) | Err(_) => {
                let lost = lines.iter().filter(|byte| **byte == b'\n').count();
                dropped.fetch_add(lost as u64, Ordering::Relaxed);
                return;
            }
        }
    }
}
