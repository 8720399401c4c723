//! Index entries: which blob a source has, and the file stamp that shows whether the blob was changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use super::share::CacheShare;
use crate::digest::Sha256Hex;

/// The index entry of a source, stored as JSON. Unknown fields are ignored, so that later versions of this format can
/// add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The source with secrets masked, for people.
    pub source: String,
    /// The file name of the artifact and of its blob.
    pub name: String,
    /// SHA-256 of the blob.
    pub sha256: Sha256Hex,
    /// Length of the blob (bytes).
    pub size: u64,
    /// The store's entity tag, for revalidation.
    pub etag: Option<String>,
    /// When it was fetched (Unix seconds).
    pub fetched: u64,
    /// Unique per fetch: shows a follower that the artifact was fetched again.
    pub fetch_id: String,
    /// What the digest was verified by: `flag`, `sidecar`, `store`, or `None`.
    #[serde(rename = "vouched")]
    pub verified_by: Option<String>,
    /// Whether the blob is a pex; absent in entries of early releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pex: Option<bool>,
    /// The blob's stamp when its digest was last verified.
    pub(crate) stamp: FileStamp,
}

/// Size, times and inode of a file: they show that it was not changed, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStamp {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    inode: u64,
}

impl FileStamp {
    #[must_use]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

impl CacheShare {
    /// All index entries of the share with their keys, except unreadable ones.
    #[must_use]
    pub fn index_entries(&self) -> Vec<(String, IndexEntry)> {
        let Ok(index) = self.record_dir("index") else {
            return Vec::new();
        };
        let Ok(shelves) = index.entries() else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (shelf, _) in shelves.flatten() {
            let Ok(records) = index.child(&shelf).and_then(|shelf| shelf.entries()) else {
                continue;
            };
            for (key, _) in records.flatten() {
                let key = key.to_string_lossy().into_owned();
                if key.len() == 64
                    && let Ok(entry) = self.entry(&key)
                {
                    found.push((key, entry));
                }
            }
        }
        found
    }
}
