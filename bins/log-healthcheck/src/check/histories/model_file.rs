//! A file in the model of the histories, and which of its lines are new.

use super::*;

#[derive(Debug, Clone)]
pub(super) struct ModelFile {
    pub(super) path: PathBuf,
    pub(super) run: u64,
    /// 0 for the log itself.
    pub(super) rotated: usize,
    pub(super) stream: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) modified: i64,
    /// Length and modification time at the last check, whether it read or skipped the file.
    pub(super) checked_length: usize,
    pub(super) checked_modified: i64,
    /// The contents that the last check read.
    pub(super) checked_bytes: Vec<u8>,
    /// Whether it is a copy that no check has seen: it has the fingerprint of its log.
    pub(super) is_new_copy: bool,
}

impl ModelFile {
    /// Whether it may have been appended to since the last check: its fingerprint is unchanged.
    pub(super) fn may_be_appended(&self) -> bool {
        let edges = |bytes: &[u8]| {
            let length = bytes.len().min(64);
            [
                bytes[..length].to_vec(),
                bytes[bytes.len() - length..].to_vec(),
            ]
        };
        self.bytes.len() >= self.checked_length
            && edges(&self.bytes[..self.checked_bytes.len()]) == edges(&self.checked_bytes)
    }

    /// The length that a check skips as already read.
    pub(super) fn known_length(&self) -> usize {
        let was_rewritten =
            self.bytes.len() == self.checked_length && self.modified != self.checked_modified;
        match self.may_be_appended() && !was_rewritten {
            true => self.checked_length,
            false => 0,
        }
    }

    /// Whether its last line has no newline: another line would be read as part of it.
    pub(super) fn ends_in_partial_line(&self) -> bool {
        self.bytes.last().is_some_and(|byte| *byte != b'\n')
    }

    /// Whether the last check skipped it, so that rewriting it is not detected.
    pub(super) fn was_skipped(&self) -> bool {
        self.checked_length > 0 && self.checked_bytes.is_empty()
    }
}

impl ModelFile {
    pub(super) fn rotate(&mut self, base: &Path) {
        self.rotated += 1;
        let path = base.with_extension(self.rotated.to_string());
        fs::rename(&self.path, &path).unwrap();
        self.path = path;
    }
}

/// The time of the newest line with bytes after `checked_length` that was not written after `until`.
pub(super) fn newest_line_time(
    bytes: &[u8],
    checked_length: usize,
    modified: i64,
    until: i64,
) -> Option<i64> {
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
        if place <= checked_length || !text.starts_with('{') {
            continue;
        }
        let time = text
            .split_once("\"@timestamp\":\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        // A time that was partly overwritten by another line is invalid.
        let time = time.and_then(|(time, _)| humantime::parse_rfc3339(time).ok());
        let time = time.map(|time| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            since.as_millis() as i64
        });
        newest = newest.max(Some(time.unwrap_or(modified)).filter(|time| *time <= until));
    }
    newest
}
