//! A file as the model of the histories knows it, and which of its lines are new.

use super::*;

/// A file as the model knows it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) run: u64,
    /// 0 for the log itself.
    pub(super) rotated: usize,
    pub(super) stream: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) modified: i64,
    /// How long it was, and when it was written to, at the last check that saw it or passed it over.
    pub(super) seen: usize,
    pub(super) seen_modified: i64,
    /// What it held when a check read it last.
    pub(super) read: Vec<u8>,
    /// Whether it is a copy that no check has seen: it is recognised by the log that it was made of.
    pub(super) is_new_copy: bool,
}

impl Kept {
    /// Whether it may have been appended to since a check saw it: what it is recognised by has not changed.
    pub(super) fn is_recognised(&self) -> bool {
        let edges = |bytes: &[u8]| {
            let length = bytes.len().min(64);
            [
                bytes[..length].to_vec(),
                bytes[bytes.len() - length..].to_vec(),
            ]
        };
        self.bytes.len() >= self.seen && edges(&self.bytes[..self.read.len()]) == edges(&self.read)
    }

    /// What a check takes for seen.
    pub(super) fn known(&self) -> usize {
        let was_rewritten = self.bytes.len() == self.seen && self.modified != self.seen_modified;
        match self.is_recognised() && !was_rewritten {
            true => self.seen,
            false => 0,
        }
    }

    /// Whether its last line has no end yet: another one there would be read as part of it.
    pub(super) fn is_in_line(&self) -> bool {
        self.bytes.last().is_some_and(|byte| *byte != b'\n')
    }

    /// Whether a check could not tell other bytes from those that it passed over.
    pub(super) fn is_passed_over(&self) -> bool {
        self.seen > 0 && self.read.is_empty()
    }
}

impl Kept {
    pub(super) fn rotate(&mut self, base: &Path) {
        self.rotated += 1;
        let path = base.with_extension(self.rotated.to_string());
        fs::rename(&self.path, &path).unwrap();
        self.path = path;
    }
}

/// The time of the newest line with bytes behind `seen` that was not written after `until`.
pub(super) fn newest_of(bytes: &[u8], seen: usize, modified: i64, until: i64) -> Option<i64> {
    let mut newest = None;
    let mut place = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let start = place;
        place += line.len();
        let text = String::from_utf8_lossy(line);
        let text = if start == 0 {
            text.trim_start_matches('\0')
        } else {
            &text
        };
        if place <= seen || !text.starts_with('{') {
            continue;
        }
        let time = text
            .split_once("\"@timestamp\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        // A time that another line was written over, or into, cannot be read.
        let time = time.and_then(|(time, _)| humantime::parse_rfc3339(time).ok());
        let time = time.map(|time| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            since.as_millis() as i64
        });
        newest = newest.max(Some(time.unwrap_or(modified)).filter(|time| *time <= until));
    }
    newest
}
