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

use crate::cache::entry::Stamp;
use crate::cache::partial::Partial;
use crate::cache::space::{self, Bounds};
use crate::cache::{Blob, Cache, Share};
use crate::digest;
use crate::download::{Download, new_entry};
use crate::fetch::found;
use crate::flight::Lead;
use crate::sink::Summary;
use crate::store::Checksum;
use crate::verify::{self, Vouched};

/// How often those who watch hear of progress.
const REPORT: Duration = Duration::from_millis(200);

/// Takes the artifact from another user's part of the cache, if one has it and the store vouches for its digest.
///
/// # Errors
/// The store cannot say what it vouches for.
pub async fn from_others(
    cache: &Cache,
    download: &mut Download<'_>,
    key: &str,
    lead: &mut Lead,
) -> Result<Option<Blob>, Failure> {
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
            Some(Checksum::Sha256(sha256)) => Some(Vouched {
                sha256: digest::hex(&sha256),
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
        meta = asked.ok().and_then(Result::ok).map(found);
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
            Ok(Taken::Adopted(blob)) => {
                info!(source = %download.source, uid, "taken from another user of this host, digest compared");
                return Ok(Some(*blob));
            }
            Ok(Taken::Differs) => warn!(
                uid,
                sha256 = vouched.sha256,
                "another user's copy is not what it says: ignored"
            ),
            // The download finds no room either, and says so.
            Ok(Taken::NoRoom) => return Ok(None),
            Err(error) => warn!(uid, %error, "cannot take another user's copy"),
        }
    }
    Ok(None)
}

/// Opens a blob of somebody who may have put anything there: no symlink is followed and a FIFO is not waited for.
fn open(share: &Share, sha256: &str) -> io::Result<Option<File>> {
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
enum Taken {
    Adopted(Box<Blob>),
    Differs,
    NoRoom,
}

#[allow(
    clippy::too_many_arguments,
    reason = "one call, and each of them is one thing the copy is made of"
)]
async fn take(
    cache: &Cache,
    theirs: File,
    size: u64,
    vouched: &Vouched,
    download: &Download<'_>,
    key: &str,
    lead: &mut Lead,
    etag: Option<String>,
) -> io::Result<Taken> {
    let share = &cache.own;
    let dir = share.records("partial")?;
    let bounds = Bounds {
        max_size: download.settings.max_size,
        keep_free: download.settings.keep_free,
        recent: download.recent,
    };
    // The lock of this turn is held: what lies there was left by a process that is gone.
    let turn = lead.adopting(share, key)?;
    space::release(share, Partial::remove(&dir, key, turn))?;
    let partial = Partial::create(&dir, key, turn)?;
    match space::reserve(share, bounds, &partial.data, 0, size) {
        Ok(Ok(())) => {}
        other => {
            Partial::remove(&dir, key, turn);
            return other.map(|_| Taken::NoRoom);
        }
    }
    // In a thread of its own, so that a deadline and a signal are heard.
    let copied = tokio::task::spawn_blocking(move || copy_hashing(&theirs, partial, size)).await;
    let taken = copied.map_err(io::Error::other).and_then(|copied| {
        let (name, sha256) = copied?;
        // Nobody has it open for writing any more.
        let file = dir.open_file(&name)?;
        if sha256 != vouched.sha256
            || verify::archive(download.source, download.name, &file).is_err()
        {
            return Ok(Taken::Differs);
        }
        let summary = Summary {
            sha256,
            size,
            crc: 0,
            broken: None,
        };
        let stamp = Stamp::of(&file.metadata()?);
        let by = Some(vouched.by.to_owned());
        let mut entry = new_entry(download.source, download.name, &summary, etag, by, stamp);
        let path = share.publish(&dir, &name, &file, key, &mut entry)?;
        Partial::remove_record(&dir, key, turn);
        Ok(Taken::Adopted(Box::new(Blob { entry, file, path })))
    });
    if !matches!(taken, Ok(Taken::Adopted(_))) {
        space::release(share, Partial::remove(&dir, key, turn))?;
    }
    taken
}

/// Copies `size` bytes; returns the name of the file they are in, closed, and their SHA-256.
fn copy_hashing(from: &File, mut to: Partial, size: u64) -> io::Result<(String, String)> {
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
    Ok((to.name.clone(), digest::hex(&hasher.finalize())))
}
