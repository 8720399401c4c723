//! Bytes from somebody who is not trusted: another user of the host has the artifact already, and the store vouches
//! for its digest. They are copied while they are hashed, so that their owner cannot change what was checked.

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

/// How often those who watch hear of progress.
const REPORT: Duration = Duration::from_millis(200);

/// Takes the artifact from another user's part of the cache, if one has it and the store vouches for its digest.
///
/// # Errors
/// The store cannot say what it vouches for.
pub(crate) async fn copy_from_untrusted(
    cache: &HostCache,
    download: &mut ArtifactDownload<'_>,
    key: &str,
    lead: &mut LeaderLock,
) -> Result<Option<CachedBlob>, Failure> {
    let foreign = cache.foreign();
    if foreign.is_empty() {
        return Ok(None);
    }
    let mut meta = download
        .head()
        .await
        .map_err(|error| error.into_failure(download.source))?;
    let vouched = match download.vouched().await? {
        Some(vouched) => Some(vouched),
        None => match meta.as_ref().and_then(|meta| meta.checksum) {
            Some(ObjectChecksum::Sha256(sha256)) => Some(ExpectedDigest {
                sha256: hostkit::hex::encode(&sha256),
                by: "store",
            }),
            _ => None,
        },
    };
    let Some(vouched) = vouched else {
        return Ok(None);
    };
    let candidates: Vec<(u32, File)> = foreign
        .iter()
        .filter_map(|share| Some((share.uid, open(share, &vouched.sha256).ok()??)))
        .collect();
    if !candidates.is_empty() && meta.is_none() {
        // A server that cannot say is asked by the GET that follows.
        let asked = download.store.head(download.source, None);
        let asked = timeout(download.settings.stall_timeout, asked).await;
        meta = asked.ok().and_then(Result::ok).map(HeadResponse::into_meta);
    }
    // Their length is what they say: reading, or making room for, any other than the object's is what they would like.
    let Some(size) = meta.as_ref().and_then(|meta| meta.size) else {
        return Ok(None);
    };
    for (uid, theirs) in candidates {
        if theirs.metadata().map(|found| found.len()).ok() != Some(size) {
            warn!(uid, "another user's copy has another length: ignored");
            continue;
        }
        let etag = meta.as_ref().and_then(|meta| meta.etag.clone());
        match take(cache, theirs, size, &vouched, download, key, lead, etag).await {
            Ok(CopyOutcome::Published(blob)) => {
                info!(source = %download.source, uid, "taken from another user of this host, digest compared");
                return Ok(Some(*blob));
            }
            Ok(CopyOutcome::DigestMismatch) => warn!(
                uid,
                sha256 = vouched.sha256,
                "another user's copy is not what it says: ignored"
            ),
            // The download finds no room either, and says so.
            Ok(CopyOutcome::NoRoom) => return Ok(None),
            Err(error) => warn!(uid, %error, "cannot take another user's copy"),
        }
    }
    Ok(None)
}

/// Opens a blob of somebody who may have put anything there: no symlink is followed and a FIFO is not waited for.
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

/// What came of one candidate.
enum CopyOutcome {
    Published(Box<CachedBlob>),
    DigestMismatch,
    NoRoom,
}

#[allow(
    clippy::too_many_arguments,
    reason = "one call, and each of them is one thing the copy is made of"
)]
async fn take(
    cache: &HostCache,
    theirs: File,
    size: u64,
    vouched: &ExpectedDigest,
    download: &ArtifactDownload<'_>,
    key: &str,
    lead: &mut LeaderLock,
    etag: Option<String>,
) -> io::Result<CopyOutcome> {
    let share = &cache.own;
    let dir = share.records("partial")?;
    let bounds = SpaceLimits {
        max_size: download.settings.max_size,
        keep_free: download.settings.keep_free,
        recent: download.recent,
    };
    // The lock of this turn is held: what lies there was left by a process that is gone.
    let turn = lead.adopting(share, key)?;
    space::release(share, PartialDownload::remove(&dir, key, turn))?;
    let partial = PartialDownload::create(&dir, key, turn)?;
    match space::reserve(share, bounds, &partial.data, 0, size) {
        Ok(Ok(())) => {}
        other => {
            PartialDownload::remove(&dir, key, turn);
            return other.map(|_| CopyOutcome::NoRoom);
        }
    }
    // In a thread of its own, so that a deadline and a signal are heard.
    let copied = tokio::task::spawn_blocking(move || copy_hashing(&theirs, partial, size)).await;
    let taken = copied.map_err(io::Error::other).and_then(|copied| {
        let (name, sha256) = copied?;
        // Nobody has it open for writing any more.
        let file = dir.open_file(&name)?;
        if sha256 != vouched.sha256
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
        let by = Some(vouched.by.to_owned());
        let mut entry = new_entry(download.source, download.name, &summary, etag, by, stamp);
        let path = share.publish(&dir, &name, &file, key, &mut entry)?;
        PartialDownload::remove_record(&dir, key, turn);
        Ok(CopyOutcome::Published(Box::new(CachedBlob {
            entry,
            file,
            path,
        })))
    });
    if !matches!(taken, Ok(CopyOutcome::Published(_))) {
        space::release(share, PartialDownload::remove(&dir, key, turn))?;
    }
    taken
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
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            to.arrived(at)?;
        }
    }
    Ok((to.name.clone(), hostkit::hex::encode(&hasher.finalize())))
}
