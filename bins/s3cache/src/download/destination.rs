//! Where the bytes of a download go: to a share of the cache, with room reserved and interrupted downloads continued,
//! or straight to the target.

use std::fs::File;
use std::io;

use hostkit::{Exit, Failure};
use tracing::{debug, info};

use super::AttemptError;
use crate::cache::partial_download::{self, FinishedPart, PartialDownload, PartialHeader};
use crate::cache::space::{self, SpaceLimits};
use crate::cache::{CacheShare, HostCache};
use crate::single_flight::MAX_TURNS;
use crate::sink::{self, DownloadFile, PartLayout};
use crate::store::{ObjectMeta, StoreError, StoreErrorKind};
use crate::transfer;

pub(super) enum DownloadDestination<'a> {
    Cache {
        share: &'a CacheShare,
        cache: &'a HostCache,
        key: &'a str,
        turn: u32,
        bounds: SpaceLimits,
    },
    File(&'a File),
}

impl DownloadDestination<'_> {
    /// Opens the file to download to, reserves room, and takes over the parts of interrupted downloads.
    pub(super) fn open(
        &self,
        shape: PartLayout,
        resumable: Option<&ObjectMeta>,
        max_rate: Option<u64>,
    ) -> Result<(DownloadFile, Vec<FinishedPart>), AttemptError> {
        let (share, cache, key, turn) = match self {
            Self::File(file) => {
                let data = file.try_clone().map_err(StoreError::disk)?;
                data.set_len(0).map_err(StoreError::disk)?;
                return Ok((DownloadFile { data, record: None }, Vec::new()));
            }
            Self::Cache {
                share,
                cache,
                key,
                turn,
                ..
            } => (*share, *cache, *key, *turn),
        };
        let failed = |error: io::Error| out_of_room(share, error);
        let dir = share.record_dir("partial").map_err(failed)?;
        let header = resumable.and_then(|meta| sink::header(shape, meta.strong_etag()?, max_rate));
        let size = shape.size.unwrap_or(0);
        // This process holds the lock of the turn: files of that turn were left by a dead process.
        let left = header
            .as_ref()
            .and_then(|header| PartialDownload::take_over(&dir, key, turn, header, shape.crc));
        let (mut partial, mut done) = match left {
            Some(left) => left,
            None => {
                let freed = PartialDownload::remove(&dir, key, turn);
                let _ = space::release(share, freed);
                let partial = PartialDownload::create(&dir, key, turn)
                    .map_err(|error| out_of_room(share, error))?;
                if let Err(error) = self.reserve(&partial.data, 0, size) {
                    PartialDownload::remove(&dir, key, turn);
                    return Err(if error.kind == StoreErrorKind::Disk {
                        AttemptError::NoRoom(error.message)
                    } else {
                        error.into()
                    });
                }
                (partial, Vec::new())
            }
        };
        if let Some(header) = &header {
            partial
                .write_header(header)
                .map_err(|error| out_of_room(share, error))?;
            let others = cache
                .shares()
                .filter(|other| other.own || cache.mutual_trust);
            for (other, at) in others.flat_map(|other| (0..MAX_TURNS).map(move |at| (other, at))) {
                if (other.own && at == turn) || done.len() as u64 == header.parts() {
                    continue;
                }
                let Ok(dir) = other.record_dir("partial") else {
                    continue;
                };
                let known = done.clone();
                done.extend(
                    partial_download::copy_finished_parts(
                        &dir,
                        key,
                        at,
                        header,
                        shape.crc,
                        &known,
                        &partial.data,
                    )
                    .map_err(failed)?,
                );
            }
            if !done.is_empty() {
                info!(
                    parts = done.len(),
                    of = header.parts(),
                    "continuing an interrupted download"
                );
            }
        }
        let data = partial.data.try_clone().map_err(failed)?;
        Ok((
            DownloadFile {
                data,
                record: Some(partial),
            },
            done,
        ))
    }

    /// The header of an interrupted download of this artifact with the same part size, and its first missing part.
    pub(super) fn find_resumable(&self, configured: Option<u64>) -> Option<(PartialHeader, u64)> {
        let Self::Cache {
            share, key, turn, ..
        } = self
        else {
            return None;
        };
        let dir = share.record_dir("partial").ok()?;
        std::iter::once(*turn).chain(0..MAX_TURNS).find_map(|turn| {
            let record = partial_download::read_record(&dir, key, turn).ok()?;
            let header = record.header.filter(|header| {
                header.part_size == transfer::part_size(header.size, configured)
            })?;
            let done = |part: &u64| record.done.iter().any(|done| done.part == *part);
            let missing = (0..header.parts()).find(|part| !done(part))?;
            (missing > 0).then_some((header, missing))
        })
    }

    pub(super) fn reserve(&self, data: &File, have: u64, want: u64) -> Result<(), StoreError> {
        let Self::Cache { share, bounds, .. } = self else {
            return Ok(());
        };
        match space::reserve(share, *bounds, data, have, want) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(StoreError::new(StoreErrorKind::Disk, why)),
            Err(error) => Err(StoreError::disk(error)),
        }
    }

    /// Removes a partial download that cannot be continued.
    pub(super) fn remove_partial(&self, reserved: u64) {
        if let Self::Cache {
            share, key, turn, ..
        } = self
            && let Ok(dir) = share.record_dir("partial")
        {
            PartialDownload::remove(&dir, key, *turn);
            let _ = space::release(share, reserved);
            debug!("partial download removed: it cannot be continued");
        }
    }
}

/// A share that cannot be written is bypassed like a full one: the artifact matters more than the cache.
fn out_of_room(share: &CacheShare, error: io::Error) -> AttemptError {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            AttemptError::NoRoom(format!("the disk of {} is full", share.display_path()))
        }
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::QuotaExceeded => {
            AttemptError::NoRoom(format!("cannot write to {}: {error}", share.display_path()))
        }
        _ => AttemptError::Fail(
            Failure::new(
                Exit::IO,
                format!("cannot write to {}", share.display_path()),
            )
            .because(error),
        ),
    }
}
