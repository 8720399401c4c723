//! Finds lines among the bytes of a file that are new, from the end backwards, in constant memory.
//!
//! Owns where lines begin; what they mean is the caller's. A line is what stands between newlines. NULs at the beginning
//! of the file are not part of its first line: a writer that does not append leaves them when its file is truncated.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use memchr::memrchr;
use nix::unistd::{Whence, lseek};

use crate::pattern::Pattern;

/// Bytes that are read first: the end of a log mostly decides.
const FIRST: usize = 64 << 10;
/// Bytes that are read at once after that: what fits a processor's second cache.
const BLOCK: usize = 256 << 10;
/// Bytes of a line that its time is looked for in.
const LINE: usize = 64 << 10;

/// What is known of the line that the first new byte belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum First {
    /// It begins here.
    At(u64),
    /// It begins at most so many bytes in front of the new ones; a line that does not is not looked at.
    Behind(u64),
}

/// What a scan has found besides lines.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Where the last line begins, or would; `None` when that is too far ahead.
    pub(crate) line: Option<u64>,
    /// Whether the file had become shorter meanwhile.
    pub(crate) shrunk: bool,
}

/// Reads files and counts what it reads.
#[derive(Debug)]
pub(crate) struct Scanner {
    block: Vec<u8>,
    line: Vec<u8>,
    /// Bytes read so far.
    pub(crate) read: u64,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            block: Vec::new(),
            line: Vec::new(),
            read: 0,
        }
    }

    /// Reads at most `length` bytes at `at` into the line's buffer.
    pub(crate) fn piece(&mut self, file: &File, at: u64, length: usize) -> io::Result<&[u8]> {
        self.line.resize(length.min(LINE), 0);
        let mut filled = 0;
        while filled < self.line.len() {
            match file.read_at(&mut self.line[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.read += filled as u64;
        Ok(&self.line[..filled])
    }

    /// Calls `found` with the beginning of each line that begins with `pattern` and has bytes at or behind `from` and
    /// before `end`. It says whether that is enough; then no further block is read, but what was read is gone through.
    pub(crate) fn lines(
        &mut self,
        file: &File,
        pattern: &Pattern,
        (mut from, end): (u64, u64),
        mut first: First,
        mut found: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Scanned> {
        if let First::At(0) = first {
            let start = self.after_nuls(file, end)?;
            (from, first) = (from.max(start), First::At(start));
        }
        let mut line = None;
        let mut enough = false;
        let (mut start, mut size, mut kept) = (end, FIRST, 0);
        while start > from {
            let below = from.max(start.saturating_sub(size as u64));
            let length = usize::try_from(start - below).unwrap_or(size);
            // Behind the block stands the beginning of the one behind it, for a line that begins at the border.
            self.block.resize(self.block.len().max(length + kept), 0);
            self.block.copy_within(..kept, length);
            match file.read_exact_at(&mut self.block[..length], below) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Scanned {
                        line: None,
                        shrunk: true,
                    });
                }
                other => other?,
            }
            self.read += length as u64;
            let block = std::mem::take(&mut self.block);
            let known = &block[..length + kept];
            line = line.or_else(|| Some(below + memrchr(b'\n', &block[..length])? as u64 + 1));
            let mut result = Ok(());
            pattern.candidates(known, |newline| {
                let at = newline + 1;
                let place = below + at as u64;
                if newline < length && place < end && result.is_ok() {
                    result = self
                        .beginning(file, &known[at..], (place, end))
                        .map(|line| enough |= pattern.begins(line) && found(line));
                }
            });
            kept = known.len().min(pattern.overlap());
            self.block = block;
            result?;
            (start, size) = (below, BLOCK);
            if enough && start > from {
                return Ok(Scanned {
                    line,
                    shrunk: false,
                });
            }
        }
        let first = match first {
            First::At(start) => Some(start),
            First::Behind(limit) => match self.line_around(file, from, limit)? {
                Some(0) => Some(self.after_nuls(file, end)?),
                other => other,
            },
        };
        if let Some(place) = first.filter(|place| from < end && *place < end) {
            let line = self.beginning(file, &[], (place, end))?;
            if pattern.begins(line) {
                found(line);
            }
        }
        Ok(Scanned {
            line: line.or(first),
            shrunk: false,
        })
    }

    /// The beginning of the line at `place`, of which the bytes `known` are at hand.
    fn beginning<'a>(
        &'a mut self,
        file: &File,
        known: &'a [u8],
        (place, end): (u64, u64),
    ) -> io::Result<&'a [u8]> {
        let left = usize::try_from(end - place).unwrap_or(usize::MAX).min(LINE);
        let known = &known[..known.len().min(left)];
        if let Some(newline) = memchr::memchr(b'\n', known) {
            return Ok(&known[..newline]);
        }
        let bytes = if known.len() == left {
            known
        } else {
            self.piece(file, place, left)?
        };
        let newline = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        Ok(&bytes[..newline])
    }

    /// Where the line begins that a byte at `place` belongs to, unless that is more than `limit` bytes in front of it.
    fn line_around(&mut self, file: &File, place: u64, limit: u64) -> io::Result<Option<u64>> {
        let lowest = place.saturating_sub(limit);
        let mut start = place;
        while start > lowest {
            let below = lowest.max(start.saturating_sub(LINE as u64));
            let length = usize::try_from(start - below).unwrap_or(LINE);
            if let Some(newline) = memrchr(b'\n', self.piece(file, below, length)?) {
                return Ok(Some(below + newline as u64 + 1));
            }
            start = below;
        }
        Ok((start == 0).then_some(0))
    }

    /// The first byte of the file that is not NUL, or `end`.
    fn after_nuls(&mut self, file: &File, end: u64) -> io::Result<u64> {
        if self.piece(file, 0, 1)? != b"\0" {
            return Ok(0);
        }
        // Most of them are a hole, which need not be read; a filesystem that does not know holes says so.
        let data = lseek(file, 0, Whence::SeekData).ok();
        let mut at = data.and_then(|at| u64::try_from(at).ok()).unwrap_or(0);
        while at < end {
            let piece = self.piece(file, at, LINE)?;
            if let Some(place) = piece.iter().position(|byte| *byte != 0) {
                return Ok(end.min(at + place as u64));
            }
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests;
