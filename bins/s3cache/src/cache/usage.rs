//! The disk usage of a share by kind. The sum is that of `du -sb`.

use std::collections::HashSet;
use std::io;

use hostkit::dir::Dir;

use super::eviction::PartialKind;
use super::gc::{MAX_DEPTH, pex_root_bytes};
use super::share::CacheShare;
use super::space;

/// The number of files and their total length.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileTotal {
    pub count: u64,
    /// Their total length (bytes).
    pub bytes: u64,
}

/// The disk usage of a share.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShareUsage {
    pub artifacts: FileTotal,
    /// Partial downloads and their records.
    pub partial_downloads: FileTotal,
    /// Quarantined blobs.
    pub quarantined: FileTotal,
    /// Records of failed leaders.
    pub failures: FileTotal,
    /// Unpacked pexes (bytes); `None` when another user's cannot be read.
    pub unpacked: Option<u64>,
    /// Directories, index and locks (bytes), which do not count toward `max-size`.
    pub other: u64,
}

impl ShareUsage {
    pub(crate) fn of(share: &CacheShare) -> io::Result<Self> {
        let mut usage = Self::default();
        if let Some(partial) = share.existing_record_dir("partial")? {
            usage.count_partials(&partial)?;
        }
        for blob in space::blobs(share)? {
            usage.artifacts.count += 1;
            usage.artifacts.bytes += blob.size;
        }
        usage.unpacked = pex_root_bytes(share).ok();
        let all = whole(share.dir(), 0, &mut HashSet::new());
        usage.other = all.saturating_sub(usage.held());
        Ok(usage)
    }

    fn count_partials(&mut self, dir: &Dir) -> io::Result<()> {
        for entry in dir.entries()? {
            let (name, is_dir) = entry?;
            let Ok(found) = dir.stat(&name) else {
                continue;
            };
            if is_dir {
                continue;
            }
            let amount = match PartialKind::of(&name.to_string_lossy()) {
                PartialKind::Download => &mut self.partial_downloads,
                PartialKind::Quarantined => &mut self.quarantined,
                PartialKind::FailureRecord => &mut self.failures,
            };
            amount.count += 1;
            amount.bytes += u64::try_from(found.st_size).unwrap_or(0);
        }
        Ok(())
    }

    /// Readable bytes that count toward `max-size`.
    #[must_use]
    pub(crate) fn held(&self) -> u64 {
        self.artifacts.bytes
            + self.partial_downloads.bytes
            + self.quarantined.bytes
            + self.failures.bytes
            + self.unpacked.unwrap_or(0)
    }

    /// All readable bytes.
    #[must_use]
    pub(crate) fn total(&self) -> u64 {
        self.held() + self.other
    }
}

/// Bytes of a directory and all below it, as `du -sb` counts: each file once, directories included.
fn whole(dir: &Dir, depth: usize, seen: &mut HashSet<u64>) -> u64 {
    let size = |size: i64| u64::try_from(size).unwrap_or(0);
    let mut bytes = dir.metadata().map_or(0, |found| size(found.st_size));
    if depth > MAX_DEPTH {
        return bytes;
    }
    for (name, is_dir) in dir.entries().into_iter().flatten().flatten() {
        if is_dir {
            bytes += dir
                .child(&name)
                .map_or(0, |child| whole(&child, depth + 1, seen));
        } else if let Ok(found) = dir.stat(&name)
            && (found.st_nlink < 2 || seen.insert(found.st_ino))
        {
            bytes += size(found.st_size);
        }
    }
    bytes
}
