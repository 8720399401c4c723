//! What the index says of one source: which blob it is, and by what the blob is recognised as untouched.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use super::share::CacheShare;
use crate::digest::Sha256Hex;

/// An index entry, stored as JSON. Unknown fields are ignored, so that a newer s3cache of the same format can add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The source, with secrets masked: for people.
    pub source: String,
    /// The file name of the blob: the artifact's own.
    pub name: String,
    /// SHA-256 of the blob.
    pub sha256: Sha256Hex,
    /// Length of the blob (bytes).
    pub size: u64,
    /// Entity tag the store gave, for revalidation.
    pub etag: Option<String>,
    /// When the bytes arrived (Unix seconds).
    pub fetched: u64,
    /// Differs for every fetch: tells a waiting process that the artifact was fetched anew.
    pub fetch_id: String,
    /// Who vouched for the digest: `flag`, `sidecar`, `store`, or nobody.
    pub vouched: Option<String>,
    /// Whether the blob is a pex; absent in entries of an s3cache that did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pex: Option<bool>,
    /// The blob's stamp when its digest was last known to be right.
    pub stamp: FileStamp,
}

/// By what a file is recognised as unchanged without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    inode: u64,
}

impl FileStamp {
    /// The stamp of a file as it is now.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

impl CacheShare {
    /// All index entries of the share with their keys, except those that cannot be read.
    #[must_use]
    pub fn index_entries(&self) -> Vec<(String, IndexEntry)> {
        let Ok(index) = self.records("index") else {
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
