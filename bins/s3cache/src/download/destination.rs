//! Where a download's bytes go: into a share of the cache, with room reserved and what earlier processes left taken
//! over, or straight to their destination. Owns the opening of that file, not what is written to it.

use std::fs::File;
use std::io;

use hostkit::{Exit, Failure};
use tracing::{debug, info};

use super::AttemptError;
use crate::cache::partial_download::{self, FinishedPart, PartialDownload, PartialHeader};
use crate::cache::space::{self, SpaceLimits};
use crate::cache::{CacheShare, HostCache};
use crate::single_flight::TURNS;
use crate::sink::{self, DownloadFile, PartLayout};
use crate::store::{ObjectMeta, StoreError, StoreErrorKind};
use crate::transfer;

/// What an attempt downloads to.
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
    /// Opens the file to download to, with room reserved and what is left of earlier attempts taken over.
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
        let dir = share.records("partial").map_err(failed)?;
        let header = resumable.and_then(|meta| sink::header(shape, meta.strong_etag()?, max_rate));
        let size = shape.size.unwrap_or(0);
        // We hold the lock of this turn: what lies there was left by a process that is gone.
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
                .begin(header)
                .map_err(|error| out_of_room(share, error))?;
            let others = cache.shares().filter(|other| other.own || cache.mutual);
            for (other, at) in others.flat_map(|other| (0..TURNS).map(move |at| (other, at))) {
                if (other.own && at == turn) || done.len() as u64 == header.parts() {
                    continue;
                }
                let Ok(dir) = other.records("partial") else {
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

    /// What an earlier process left of this artifact, cut as this one would: of which object, and the first part that is
    /// missing.
    pub(super) fn left(&self, settled: Option<u64>) -> Option<(PartialHeader, u64)> {
        let Self::Cache {
            share, key, turn, ..
        } = self
        else {
            return None;
        };
        let dir = share.records("partial").ok()?;
        std::iter::once(*turn).chain(0..TURNS).find_map(|turn| {
            let record = partial_download::read_record(&dir, key, turn).ok()?;
            let header = record
                .header
                .filter(|header| header.part_size == transfer::part_size(header.size, settled))?;
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

    /// Removes what an attempt that cannot be continued left.
    pub(super) fn abandon(&self, reserved: u64) {
        if let Self::Cache {
            share, key, turn, ..
        } = self
            && let Ok(dir) = share.records("partial")
        {
            PartialDownload::remove(&dir, key, *turn);
            let _ = space::release(share, reserved);
            debug!("removed what cannot be continued");
        }
    }
}

/// A share that cannot be written is gone around, like one that is full: the artifact is what matters.
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
