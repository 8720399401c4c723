//! Wall time in milliseconds. Times in logs, files and the state file are untrusted: all arithmetic saturates.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

/// Milliseconds since 1970 in UTC, negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WallTime(pub i64);

impl WallTime {
    /// The modification time of a file.
    pub(crate) fn modified(metadata: &Metadata) -> Self {
        Self::of(metadata.mtime(), metadata.mtime_nsec())
    }

    /// The change time of a file.
    pub(crate) fn changed(metadata: &Metadata) -> Self {
        Self::of(metadata.ctime(), metadata.ctime_nsec())
    }

    /// The creation time of a file; `None` if the file system does not record it.
    pub(crate) fn birth(metadata: &Metadata) -> Option<Self> {
        metadata.created().ok().map(Self::from)
    }

    fn of(seconds: i64, nanoseconds: i64) -> Self {
        let millis = seconds.saturating_mul(1000);
        Self(millis.saturating_add(nanoseconds / 1_000_000))
    }

    pub(crate) fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    /// The age at `now`; zero for a time in the future.
    pub(crate) fn age(self, now: Self) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.0).try_into().unwrap_or(0))
    }
}

impl From<SystemTime> for WallTime {
    fn from(time: SystemTime) -> Self {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => millis(since),
            Err(before) => -millis(before.duration()),
        })
    }
}
