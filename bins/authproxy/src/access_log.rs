//! The access log: one line per request, on stderr. `formatter` owns the format of a line.
//!
//! A thread of its own writes, so that requests never wait: stderr is shared with other processes and cannot be made
//! nonblocking, and a write to a full pipe would stop every connection of a serving thread. Lines are gathered for up
//! to a second; lines that do not fit into the buffer are dropped and counted.

mod formatter;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use hostkit::{Exit, Failure};

use crate::record::RequestRecord;
use crate::settings;

use formatter::LineFormatter;

/// The writer is woken at once when this many bytes wait.
const FLUSH_BYTES: usize = 32 << 10;
/// Lines are dropped while more bytes than this wait.
const MAX_PENDING_BYTES: usize = 256 << 10;
const GATHER_FOR: Duration = Duration::from_secs(1);
/// Enough for the allocator's slow paths; untouched pages cost nothing.
const WRITER_STACK: usize = 256 << 10;

/// A running access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    formatter: LineFormatter,
    buffer: Arc<LineBuffer>,
}

#[derive(Debug, Default)]
struct LineBuffer {
    pending: Mutex<PendingLines>,
    /// Signals lines to write, or the end.
    work: Condvar,
    /// Signals that all lines are written.
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
    fn pending(&self) -> MutexGuard<'_, PendingLines> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLog {
    /// Starts the log on stderr.
    ///
    /// # Errors
    /// The thread cannot be started (exit 1).
    pub(crate) fn start(
        shape: settings::AccessLogFormat,
        tags: &[String],
    ) -> Result<Self, Failure> {
        Self::start_on(LineFormatter::new(shape, tags), io::stderr())
    }

    fn start_on(
        formatter: LineFormatter,
        to: impl Write + Send + 'static,
    ) -> Result<Self, Failure> {
        let buffer = Arc::new(LineBuffer::default());
        let writer = Arc::clone(&buffer);
        thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(WRITER_STACK)
            .spawn(move || run_writer(&writer, to))
            .map_err(|error| {
                Failure::new(Exit::FAILED, "cannot start the access log thread")
                    .remedy("allow this user more threads, or set --access-log=off")
                    .because(error)
            })?;
        Ok(Self { formatter, buffer })
    }

    /// The number of dropped lines.
    pub(crate) fn dropped(&self) -> u64 {
        self.buffer.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, record: &RequestRecord, duration: Duration) {
        let mut pending = self.buffer.pending();
        let before = pending.lines.len();
        if before >= MAX_PENDING_BYTES {
            self.buffer.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.formatter.write(&mut pending.lines, record, duration);
        let after = pending.lines.len();
        if before == 0 || (before < FLUSH_BYTES && after >= FLUSH_BYTES) {
            self.buffer.work.notify_one();
        }
    }

    /// Writes the pending lines, and waits for that until `timeout`.
    pub(crate) fn finish(&self, timeout: Duration) {
        let mut pending = self.buffer.pending();
        pending.ending = true;
        self.buffer.work.notify_one();
        let done = &self.buffer.done;
        drop(done.wait_timeout_while(pending, timeout, |pending| !pending.ended));
    }
}

fn run_writer(buffer: &LineBuffer, mut to: impl Write) {
    let mut lines = Vec::new();
    loop {
        let pending = buffer.pending();
        let is_idle = |pending: &mut PendingLines| pending.lines.is_empty() && !pending.ending;
        let pending = buffer.work.wait_while(pending, is_idle);
        let is_gathering =
            |pending: &mut PendingLines| pending.lines.len() < FLUSH_BYTES && !pending.ending;
        let pending = pending.unwrap_or_else(PoisonError::into_inner);
        let gathered = buffer
            .work
            .wait_timeout_while(pending, GATHER_FOR, is_gathering);
        let (mut pending, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut pending.lines, &mut lines);
        if lines.is_empty() {
            pending.ended = true;
            buffer.done.notify_all();
            return;
        }
        drop(pending);
        write_lines(&mut to, &lines, &buffer.dropped);
        lines.clear();
        lines.shrink_to(FLUSH_BYTES);
    }
}

/// Writes lines, and counts those that it cannot write.
fn write_lines(to: &mut impl Write, mut lines: &[u8], dropped: &AtomicU64) {
    while !lines.is_empty() {
        match to.write(lines) {
            Ok(written) if written > 0 => lines = &lines[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares stderr has made it nonblocking.
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
