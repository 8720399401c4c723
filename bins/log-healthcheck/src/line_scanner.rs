//! Scanning the new bytes of a file for lines, from the end backwards, in constant memory.
//!
//! A line is the text between newlines. NULs at the beginning of the file are not part of its first line: a writer that
//! does not append leaves them when its file is truncated.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use memchr::memrchr;
use nix::unistd::{Whence, lseek};

use crate::line_pattern::LinePattern;

/// The size of the first read: the end of a log is mostly enough.
const FIRST_BLOCK: usize = 64 << 10;
/// The size of further reads, which fits the second-level cache.
const BLOCK: usize = 256 << 10;
/// The part of a line that is searched for its time (bytes).
const MAX_LINE_START: usize = 64 << 10;

/// The start of the line to which the first new byte belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FirstLine {
    /// It starts here.
    At(u64),
    /// It starts at most this many bytes before the first new byte; a longer line is skipped.
    Behind(u64),
}

#[derive(Debug)]
pub(crate) struct ScanResult {
    /// The start of the last line; `None` if it is too far ahead.
    pub(crate) line: Option<u64>,
    /// Whether the file became shorter during the scan.
    pub(crate) is_truncated: bool,
}

/// Reads files and counts the bytes.
#[derive(Debug)]
pub(crate) struct LineScanner {
    block: Vec<u8>,
    line: Vec<u8>,
    /// Bytes read so far.
    pub(crate) read: u64,
}

impl LineScanner {
    pub(crate) fn new() -> Self {
        Self {
            block: Vec::new(),
            line: Vec::new(),
            read: 0,
        }
    }

    /// Reads at most `length` bytes at `at` into the line buffer.
    pub(crate) fn read_chunk(&mut self, file: &File, at: u64, length: usize) -> io::Result<&[u8]> {
        self.line.resize(length.min(MAX_LINE_START), 0);
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

    /// Calls `found` with the beginning of each line that matches `pattern` and has bytes between `from` and `end`.
    /// Once `found` returns true no further block is read, but the current one is finished.
    pub(crate) fn scan_lines(
        &mut self,
        file: &File,
        pattern: &LinePattern,
        (mut from, end): (u64, u64),
        mut first: FirstLine,
        mut found: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<ScanResult> {
        if let FirstLine::At(0) = first {
            let start = self.skip_nuls(file, end)?;
            (from, first) = (from.max(start), FirstLine::At(start));
        }
        let mut line = None;
        let mut enough = false;
        let (mut start, mut size, mut overlap) = (end, FIRST_BLOCK, 0);
        while start > from {
            let below = from.max(start.saturating_sub(size as u64));
            let length = usize::try_from(start - below).unwrap_or(size);
            // The beginning of the next block is kept behind this one, for a line that starts at the border.
            self.block.resize(self.block.len().max(length + overlap), 0);
            self.block.copy_within(..overlap, length);
            match file.read_exact_at(&mut self.block[..length], below) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(ScanResult {
                        line: None,
                        is_truncated: true,
                    });
                }
                other => other?,
            }
            self.read += length as u64;
            let block = std::mem::take(&mut self.block);
            let available = &block[..length + overlap];
            line = line.or_else(|| Some(below + memrchr(b'\n', &block[..length])? as u64 + 1));
            let mut result = Ok(());
            pattern.find_candidates(available, |newline| {
                let at = newline + 1;
                let position = below + at as u64;
                if newline < length && position < end && result.is_ok() {
                    result = self
                        .read_line_start(file, &available[at..], (position, end))
                        .map(|line| enough |= pattern.matches(line) && found(line));
                }
            });
            overlap = available.len().min(pattern.overlap());
            self.block = block;
            result?;
            (start, size) = (below, BLOCK);
            if enough && start > from {
                return Ok(ScanResult {
                    line,
                    is_truncated: false,
                });
            }
        }
        let first = match first {
            FirstLine::At(start) => Some(start),
            FirstLine::Behind(limit) => match self.find_line_start(file, from, limit)? {
                Some(0) => Some(self.skip_nuls(file, end)?),
                other => other,
            },
        };
        if let Some(position) = first.filter(|position| from < end && *position < end) {
            let line = self.read_line_start(file, &[], (position, end))?;
            if pattern.matches(line) {
                found(line);
            }
        }
        Ok(ScanResult {
            line: line.or(first),
            is_truncated: false,
        })
    }

    /// Returns the beginning of the line at `place`, of which the bytes `known` are available.
    fn read_line_start<'a>(
        &'a mut self,
        file: &File,
        available: &'a [u8],
        (position, end): (u64, u64),
    ) -> io::Result<&'a [u8]> {
        let left = usize::try_from(end - position)
            .unwrap_or(usize::MAX)
            .min(MAX_LINE_START);
        let available = &available[..available.len().min(left)];
        if let Some(newline) = memchr::memchr(b'\n', available) {
            return Ok(&available[..newline]);
        }
        let bytes = if available.len() == left {
            available
        } else {
            self.read_chunk(file, position, left)?
        };
        let newline = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        Ok(&bytes[..newline])
    }

    /// The start of the line that contains `place`, unless it is more than `limit` bytes before.
    fn find_line_start(
        &mut self,
        file: &File,
        position: u64,
        limit: u64,
    ) -> io::Result<Option<u64>> {
        let lowest = position.saturating_sub(limit);
        let mut start = position;
        while start > lowest {
            let below = lowest.max(start.saturating_sub(MAX_LINE_START as u64));
            let length = usize::try_from(start - below).unwrap_or(MAX_LINE_START);
            if let Some(newline) = memrchr(b'\n', self.read_chunk(file, below, length)?) {
                return Ok(Some(below + newline as u64 + 1));
            }
            start = below;
        }
        Ok((start == 0).then_some(0))
    }

    /// The position of the first byte that is not NUL, or `end`.
    fn skip_nuls(&mut self, file: &File, end: u64) -> io::Result<u64> {
        if self.read_chunk(file, 0, 1)? != b"\0" {
            return Ok(0);
        }
        // Most of them are a hole, which need not be read; SEEK_DATA fails on filesystems without holes.
        let data = lseek(file, 0, Whence::SeekData).ok();
        let mut at = data.and_then(|at| u64::try_from(at).ok()).unwrap_or(0);
        while at < end {
            let piece = self.read_chunk(file, at, MAX_LINE_START)?;
            if let Some(position) = piece.iter().position(|byte| *byte != 0) {
                return Ok(end.min(at + position as u64));
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
