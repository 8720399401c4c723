//! Copies an artifact from the share of an untrusted user of this host, when the store vouches for its digest. The
//! bytes are hashed while they are copied, so that their owner cannot change what was verified.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use hostkit::Failure;
use hostkit::dir::Dir;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cache::index_entry::FileStamp;
use crate::cache::partial_download::PartialDownload;
use crate::cache::space::{self, SpaceLimits};
use crate::cache::{CacheShare, CachedBlob, HostCache};
use crate::download::{ArtifactDownload, new_entry};
use crate::single_flight::LeaderLock;
use crate::sink::DownloadSummary;
use crate::store::{HeadResponse, ObjectChecksum};
use crate::verification::{self, ExpectedDigest};

/// How often progress is recorded for the followers.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Copies the artifact from an untrusted share, if one has it and the store vouches for its digest.
///
/// # Errors
/// The store cannot be reached, or the sidecar is invalid.
pub(crate) async fn copy_from_untrusted(
    cache: &HostCache,
    download: &mut ArtifactDownload<'_>,
    key: &str,
    leader: &mut LeaderLock,
) -> Result<Option<CachedBlob>, Failure> {
    let foreign = cache.untrusted_shares();
    if foreign.is_empty() {
        return Ok(None);
    }
    let mut meta = download
        .head()
        .await
        .map_err(|error| error.into_failure(download.source))?;
    let expected = match download.expected_digest().await? {
        Some(expected) => Some(expected),
        None => match meta.as_ref().and_then(|meta| meta.checksum) {
            Some(ObjectChecksum::Sha256(sha256)) => Some(ExpectedDigest {
                sha256: hostkit::hex::encode(&sha256),
                verified_by: "store",
            }),
            _ => None,
        },
    };
    let Some(expected) = expected else {
        return Ok(None);
    };
    let candidates: Vec<(u32, File)> = foreign
        .iter()
        .filter_map(|share| Some((share.uid, open(share, &expected.sha256).ok()??)))
        .collect();
    if !candidates.is_empty() && meta.is_none() {
        // If the server does not answer HEAD, the GET that follows does.
        let request = download.store.head(download.source, None);
        let response = timeout(download.settings.stall_timeout, request).await;
        meta = response
            .ok()
            .and_then(Result::ok)
            .map(HeadResponse::into_meta);
    }
    // Neither the length of an untrusted file nor room for it is trusted: only the object's own length counts.
    let Some(size) = meta.as_ref().and_then(|meta| meta.size) else {
        return Ok(None);
    };
    for (uid, untrusted) in candidates {
        if untrusted.metadata().map(|found| found.len()).ok() != Some(size) {
            warn!(uid, "untrusted copy ignored: its length differs");
            continue;
        }
        let etag = meta.as_ref().and_then(|meta| meta.etag.clone());
        match copy_candidate(
            cache, untrusted, size, &expected, download, key, leader, etag,
        )
        .await
        {
            Ok(CopyOutcome::Published(blob)) => {
                info!(source = %download.source, uid, "copied from an untrusted user of this host, digest verified");
                return Ok(Some(*blob));
            }
            Ok(CopyOutcome::DigestMismatch) => warn!(
                uid,
                sha256 = expected.sha256,
                "untrusted copy ignored: its digest differs"
            ),
            // The download finds no room either, and reports it.
            Ok(CopyOutcome::NoRoom) => return Ok(None),
            Err(error) => warn!(uid, %error, "cannot copy from an untrusted user"),
        }
    }
    Ok(None)
}

/// Opens a blob in an untrusted share: no symlink is followed and opening a FIFO does not block.
fn open(share: &CacheShare, sha256: &str) -> io::Result<Option<File>> {
    let dir: Dir = share
        .dir()
        .child("blobs")?
        .child(&sha256[..2])?
        .child(sha256)?;
    for entry in dir.entries()?.take(16) {
        if let Ok(file) = dir.open_file(entry?.0) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

enum CopyOutcome {
    Published(Box<CachedBlob>),
    DigestMismatch,
    NoRoom,
}

#[allow(
    clippy::too_many_arguments,
    reason = "one caller; a struct would only repeat the names"
)]
async fn copy_candidate(
    cache: &HostCache,
    untrusted: File,
    size: u64,
    expected: &ExpectedDigest,
    download: &ArtifactDownload<'_>,
    key: &str,
    leader: &mut LeaderLock,
    etag: Option<String>,
) -> io::Result<CopyOutcome> {
    let share = &cache.own;
    let dir = share.record_dir("partial")?;
    let bounds = SpaceLimits {
        max_size: download.settings.max_size,
        keep_free: download.settings.keep_free,
        recent: download.recent,
    };
    // This process holds the lock of the turn: files of that turn were left by a dead process.
    let turn = leader.lock_copy_turn(share, key)?;
    space::release(share, PartialDownload::remove(&dir, key, turn))?;
    let partial = PartialDownload::create(&dir, key, turn)?;
    match space::reserve(share, bounds, &partial.data, 0, size) {
        Ok(Ok(())) => {}
        other => {
            PartialDownload::remove(&dir, key, turn);
            return other.map(|_| CopyOutcome::NoRoom);
        }
    }
    // In a thread of its own, so that deadline and signals are served.
    let copied = tokio::task::spawn_blocking(move || copy_hashing(&untrusted, partial, size)).await;
    let outcome = copied.map_err(io::Error::other).and_then(|copied| {
        let (name, sha256) = copied?;
        // From here on the file is not open for writing.
        let file = dir.open_file(&name)?;
        if sha256 != expected.sha256
            || verification::check_archive(download.source, download.name, &file).is_err()
        {
            return Ok(CopyOutcome::DigestMismatch);
        }
        let summary = DownloadSummary {
            sha256,
            size,
            crc: 0,
            broken: None,
        };
        let stamp = FileStamp::of(&file.metadata()?);
        let by = Some(expected.verified_by.to_owned());
        let mut entry = new_entry(download.source, download.name, &summary, etag, by, stamp);
        let path = share.publish(&dir, &name, &file, key, &mut entry)?;
        PartialDownload::remove_record(&dir, key, turn);
        Ok(CopyOutcome::Published(Box::new(CachedBlob {
            entry,
            file,
            path,
        })))
    });
    if !matches!(outcome, Ok(CopyOutcome::Published(_))) {
        space::release(share, PartialDownload::remove(&dir, key, turn))?;
    }
    outcome
}

/// Copies `size` bytes; returns the name of the file they are in, closed, and their SHA-256.
fn copy_hashing(from: &File, mut to: PartialDownload, size: u64) -> io::Result<(String, String)> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    let mut at = 0;
    let mut reported = Instant::now();
    while at < size {
        let want = piece
            .len()
            .min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let got = from.read_at(&mut piece[..want], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&piece[..got]);
        to.data.write_all_at(&piece[..got], at)?;
        at += got as u64;
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            to.record_progress(at)?;
        }
    }
    Ok((to.name.clone(), hostkit::hex::encode(&hasher.finalize())))
}
