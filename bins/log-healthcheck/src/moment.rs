//! Points of wall time in milliseconds, as logs, files and the state file have them. Any of them may be nonsense: all
//! arithmetic saturates.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

/// A point of wall time: milliseconds since 1970 in UTC, negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// When the file was last written to.
    #[must_use]
    pub fn modified(metadata: &Metadata) -> Self {
        Self::of(metadata.mtime(), metadata.mtime_nsec())
    }

    /// When the file, or what is known of it, was last changed.
    #[must_use]
    pub fn changed(metadata: &Metadata) -> Self {
        Self::of(metadata.ctime(), metadata.ctime_nsec())
    }

    /// When the file was made; `None` where the file system does not know.
    #[must_use]
    pub fn birth(metadata: &Metadata) -> Option<Self> {
        metadata.created().ok().map(Self::from)
    }

    fn of(seconds: i64, nanoseconds: i64) -> Self {
        let millis = seconds.saturating_mul(1000);
        Self(millis.saturating_add(nanoseconds / 1_000_000))
    }

    /// How far two are from one another.
    #[must_use]
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    /// How long it is ago at `now`; zero when it is still to come.
    #[must_use]
    pub fn age(self, now: Self) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.0).try_into().unwrap_or(0))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => millis(since),
            Err(before) => -millis(before.duration()),
        })
    }
}
