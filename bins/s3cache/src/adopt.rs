//! Bytes from somebody who is not trusted: another user of the host has the artifact already, and the store vouches
//! for its digest. They are copied while they are hashed, so that their owner cannot change what was checked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use hostkit::Failure;
use hostkit::dir::Dir;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::cache::entry::Stamp;
use crate::cache::partial::Partial;
use crate::cache::space::{self, Bounds};
use crate::cache::{Blob, Cache, Share};
use crate::digest;
use crate::download::{Download, new_entry};
use crate::sink::Summary;
use crate::store::Checksum;
use crate::verify::{self, Vouched};

/// The turn number under which adopted bytes come in; no leader has it.
const TURN: u32 = 99;

/// Takes the artifact from another user's part of the cache, if one has it and the store vouches for its digest.
///
/// # Errors
/// The store cannot say what it vouches for.
pub async fn from_others(
    cache: &Cache,
    download: &mut Download<'_>,
    key: &str,
) -> Result<Option<Blob>, Failure> {
    let foreign = cache.foreign();
    if foreign.is_empty() {
        return Ok(None);
    }
    let meta = download
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
    for share in foreign {
        let Ok(Some(theirs)) = open(&share, &vouched.sha256) else {
            continue;
        };
        let etag = meta.as_ref().and_then(|meta| meta.etag.clone());
        match take(cache, &theirs, &vouched, download, key, etag) {
            Ok(Some(blob)) => {
                info!(source = %download.source, uid = share.uid, "taken from another user of this host, digest compared");
                return Ok(Some(blob));
            }
            Ok(None) => warn!(
                uid = share.uid,
                sha256 = vouched.sha256,
                "another user's copy is not what it says: ignored"
            ),
            Err(error) => warn!(uid = share.uid, %error, "cannot take another user's copy"),
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

fn take(
    cache: &Cache,
    theirs: &File,
    vouched: &Vouched,
    download: &Download<'_>,
    key: &str,
    etag: Option<String>,
) -> io::Result<Option<Blob>> {
    let share = &cache.own;
    let dir = share.records("partial")?;
    let bounds = Bounds {
        max_size: download.settings.max_size,
        keep_free: download.settings.keep_free,
    };
    let size = theirs.metadata()?.len();
    let partial = Partial::create(&dir, key, TURN)?;
    let taken = (|| {
        if space::reserve(share, bounds, &partial.data, 0, size)?.is_err()
            || copy_hashing(theirs, &partial.data, size)? != vouched.sha256
        {
            return Ok(None);
        }
        if verify::archive(download.source, download.name, &partial.data).is_err() {
            return Ok(None);
        }
        let summary = Summary {
            sha256: vouched.sha256.clone(),
            size,
            crc: 0,
        };
        let stamp = Stamp::of(&partial.data.metadata()?);
        let mut entry = new_entry(
            download.source,
            download.name,
            &summary,
            etag,
            Some(vouched.by.to_owned()),
            stamp,
        );
        let file = dir.open_file(&partial.name)?;
        let name = partial.name.clone();
        drop(partial);
        let path = share.publish(&dir, &name, &file, key, &mut entry)?;
        Partial::remove_record(&dir, key, TURN);
        Ok(Some(Blob { entry, file, path }))
    })();
    if !matches!(taken, Ok(Some(_))) {
        Partial::remove(&dir, key, TURN);
        space::release(share, size)?;
    }
    taken
}

fn copy_hashing(from: &File, to: &File, size: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    let mut at = 0;
    while at < size {
        let want = piece
            .len()
            .min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let got = from.read_at(&mut piece[..want], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&piece[..got]);
        to.write_all_at(&piece[..got], at)?;
        at += got as u64;
    }
    Ok(digest::hex(&hasher.finalize()))
}
