//! When a cached copy is not good enough: its use finds it broken, or the sidecar that is required never vouched for it.

use hostkit::{Exit, Failure};
use tracing::warn;

use super::{CacheResult, FetchContext, FetchRequest, LocalArtifact, fetch_unless};
use crate::cache::{CachedBlob, HostCache, IndexEntry};
use crate::deadline::Deadline;
use crate::digest;
use crate::download::ArtifactDownload;
use crate::settings::{Freshness, Settings};
use crate::source::ArtifactSource;
use crate::verification;

/// Fetches an artifact and uses it, within one deadline. A cached copy that its use finds broken, as one may be that an s3cache cached which
/// verified less, is put aside, and the artifact fetched again: once. An intact one whose content is refused stays.
///
/// # Errors
/// As [`fetch`](super::fetch) and the use.
pub(crate) fn fetch_and_use<T>(
    want: &FetchRequest,
    settings: &Settings,
    mut use_artifact: impl FnMut(&LocalArtifact, &Deadline) -> Result<T, Failure>,
) -> Result<(T, CacheResult), Failure> {
    let deadline = settings.deadline(&want.source);
    let (got, how) = fetch_unless(want, settings, &deadline, None)?;
    let failure = match use_artifact(&got, &deadline) {
        Ok(used) => return Ok((used, how)),
        Err(failure) => failure,
    };
    let broken = match got {
        LocalArtifact::Cached(blob)
            if failure.exit() == Exit::CORRUPT
                && matches!(
                    how,
                    CacheResult::Hit | CacheResult::Revalidated | CacheResult::Stale
                )
                && settings.freshness != Freshness::Offline
                && !is_intact(&want.source, &blob) =>
        {
            blob.entry
        }
        _ => return Err(failure),
    };
    warn!(source = %want.source, "{failure}: the cached copy is put aside, fetching it again");
    let key = settings.index_key(&want.source)?;
    if let Ok(cache) = HostCache::open(settings)
        && (cache.own.entry(&key)).is_ok_and(|entry| entry.fetch_id == broken.fetch_id)
        && let Err(error) = cache.own.quarantine(&key, &broken)
    {
        warn!(%error, "cannot put it aside");
    }
    let (got, how) = fetch_unless(want, settings, &deadline, Some(&broken))?;
    Ok((use_artifact(&got, &deadline)?, how))
}

/// Whether a cached copy passes what a fetch checks: another fetch would bring the same.
fn is_intact(source: &ArtifactSource, blob: &CachedBlob) -> bool {
    let (entry, file) = (&blob.entry, &blob.file);
    verification::check_archive(source, &entry.name, file).is_ok()
        && digest::of_file(file, entry.size).is_ok_and(|sha256| sha256 == entry.sha256)
}

impl FetchRequest {
    /// Whether a cached copy lacks the sidecar that is required; a digest that the caller names does as well.
    pub(super) fn lacks_sidecar(&self, settings: &Settings, entry: &IndexEntry) -> bool {
        self.sha256.is_none() && settings.lacks_sidecar(entry)
    }
}

/// Compares a cached copy that lacks a required sidecar with the one that is there now, and remembers it. `Err` is the
/// entry of a copy that differs.
pub(super) async fn vouch(
    ask: &FetchContext<'_>,
    download: &mut ArtifactDownload<'_>,
    mut blob: CachedBlob,
) -> Result<Result<CachedBlob, Box<IndexEntry>>, Failure> {
    if !ask.want.lacks_sidecar(ask.settings, &blob.entry) {
        return Ok(Ok(blob));
    }
    let vouched = download.vouched().await?;
    match vouched.filter(|vouched| vouched.sha256 == blob.entry.sha256) {
        Some(vouched) => {
            blob.entry.vouched = Some(vouched.by.to_owned());
            if let Some(own) = ask.cache.ok().map(|cache| &cache.own)
                && (own.entry(ask.key)).is_ok_and(|entry| entry.fetch_id == blob.entry.fetch_id)
            {
                // Without it the next run asks again, and that is all.
                let _ = own.write_entry(ask.key, &blob.entry);
            }
            Ok(Ok(blob))
        }
        None => Ok(Err(Box::new(blob.entry))),
    }
}
