//! Cached copies that are not good enough: they turn out broken when used, or lack a required sidecar.

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

/// Fetches an artifact and uses it, within one deadline. A cached copy that turns out to be broken (an earlier s3cache
/// verified less) is quarantined and fetched again, once. An intact copy that `use_artifact` refuses stays.
///
/// # Errors
/// As [`fetch`](super::fetch) and `use_artifact`.
pub(crate) fn fetch_and_use<T>(
    request: &FetchRequest,
    settings: &Settings,
    mut use_artifact: impl FnMut(&LocalArtifact, &Deadline) -> Result<T, Failure>,
) -> Result<(T, CacheResult), Failure> {
    let deadline = settings.deadline(&request.source);
    let (artifact, result) = fetch_unless(request, settings, &deadline, None)?;
    let failure = match use_artifact(&artifact, &deadline) {
        Ok(used) => return Ok((used, result)),
        Err(failure) => failure,
    };
    let broken = match artifact {
        LocalArtifact::Cached(blob)
            if failure.exit() == Exit::CORRUPT
                && matches!(
                    result,
                    CacheResult::Hit | CacheResult::Revalidated | CacheResult::Stale
                )
                && settings.freshness != Freshness::Offline
                && !is_intact(&request.source, &blob) =>
        {
            blob.entry
        }
        _ => return Err(failure),
    };
    warn!(source = %request.source, error = %failure, "cached copy is broken and was quarantined; fetching it again");
    let key = settings.index_key(&request.source)?;
    if let Ok(cache) = HostCache::open(settings)
        && (cache.own.entry(&key)).is_ok_and(|entry| entry.fetch_id == broken.fetch_id)
        && let Err(error) = cache.own.quarantine(&key, &broken)
    {
        warn!(%error, "cannot quarantine the cached copy");
    }
    let (artifact, result) = fetch_unless(request, settings, &deadline, Some(&broken))?;
    Ok((use_artifact(&artifact, &deadline)?, result))
}

/// Whether a cached copy passes the checks of a fetch: fetching it again would bring the same bytes.
fn is_intact(source: &ArtifactSource, blob: &CachedBlob) -> bool {
    let (entry, file) = (&blob.entry, &blob.file);
    verification::check_archive(source, &entry.name, file).is_ok()
        && digest::of_file(file, entry.size).is_ok_and(|sha256| sha256 == entry.sha256)
}

impl FetchRequest {
    /// Whether a cached copy lacks the required sidecar. A digest that the caller names replaces the sidecar.
    pub(super) fn lacks_sidecar(&self, settings: &Settings, entry: &IndexEntry) -> bool {
        self.sha256.is_none() && settings.lacks_sidecar(entry)
    }
}

/// Compares a cached copy that lacks a required sidecar with the sidecar that is published now, and records the result.
/// `Err` is the entry of a copy that differs.
pub(super) async fn check_sidecar(
    context: &FetchContext<'_>,
    download: &mut ArtifactDownload<'_>,
    mut blob: CachedBlob,
) -> Result<Result<CachedBlob, Box<IndexEntry>>, Failure> {
    if !context.request.lacks_sidecar(context.settings, &blob.entry) {
        return Ok(Ok(blob));
    }
    let expected = download.expected_digest().await?;
    match expected.filter(|expected| expected.sha256 == blob.entry.sha256) {
        Some(expected) => {
            blob.entry.verified_by = Some(expected.verified_by.to_owned());
            if let Some(own) = context.cache.ok().map(|cache| &cache.own)
                && (own.entry(context.key)).is_ok_and(|entry| entry.fetch_id == blob.entry.fetch_id)
            {
                // Without this record the next run only compares again.
                let _ = own.write_entry(context.key, &blob.entry);
            }
            Ok(Ok(blob))
        }
        None => Ok(Err(Box::new(blob.entry))),
    }
}
