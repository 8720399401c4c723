//! The steps of one fetch: look the artifact up, revalidate it, follow the leader or lead and download, verify,
//! publish. Owns the order of these steps; each step has its own module.

mod cached_copy;

use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use hostkit::failure::is_out_of_resources;
use hostkit::{Exit, Failure, clock, shutdown};
use tokio::task::LocalSet;
use tracing::{debug, info, warn};

use crate::cache::eviction::RecentPolicy;
use crate::cache::{self, CachedBlob, HostCache, IndexEntry, LookupResult};
use crate::deadline::Deadline;
use crate::digest::Sha256Hex;
use crate::download::{ArtifactDownload, DownloadOutcome};
use crate::settings::{Freshness, Settings};
use crate::single_flight::{self, SingleFlightOutcome};
use crate::source::{ArtifactSource, is_immutable};
use crate::store::{self, HeadResponse, ObjectMeta, ObjectStore, StoreError, StoreErrorKind};
use crate::untrusted_copy;
use cached_copy::check_sidecar;

pub(crate) use cached_copy::fetch_and_use;

/// What to fetch, and what it must be.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The artifact.
    pub source: ArtifactSource,
    /// The digest it must have.
    pub sha256: Option<Sha256Hex>,
    /// Target and mode of a download past the cache, for when the cache cannot hold the artifact. Without it, that is
    /// an error.
    pub bypass: Option<(PathBuf, u32)>,
}

/// How the cache served a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    /// From the cache, without a request.
    Hit,
    /// From the cache, after the store confirmed that it is current.
    Revalidated,
    /// From the cache, because the store cannot be reached.
    Stale,
    /// From the cache, fetched by another process while this one waited.
    Coalesced,
    /// Copied from an untrusted user's share, after its digest was compared with one that the store vouches for.
    VerifiedCopy,
    /// From the store.
    Miss,
}

impl CacheResult {
    /// Its name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Coalesced => "coalesced",
            Self::VerifiedCopy => "verified-copy",
            Self::Miss => "miss",
        }
    }
}

/// An artifact that is on this host.
#[derive(Debug)]
pub enum LocalArtifact {
    /// In the cache, open, with a lease that lasts as long as the file is open.
    Cached(Box<CachedBlob>),
    /// Verified, but only in this open file: publishing it to the cache failed after the download.
    Unpublished {
        /// The file, which has no name any more or is removed by gc.
        file: File,
        /// Its length (bytes).
        size: u64,
    },
    /// At the target of [`FetchRequest::bypass`]: the cache could not hold it.
    Bypassed,
}

/// Fetches an artifact to this host.
///
/// # Errors
/// The documented exit codes; no partial file is left under a final name.
pub fn fetch(
    request: &FetchRequest,
    settings: &Settings,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    fetch_unless(request, settings, &settings.deadline(&request.source), None)
}

/// Fetches an artifact, but does not use the cached copy `broken`.
fn fetch_unless(
    request: &FetchRequest,
    settings: &Settings,
    deadline: &Deadline,
    broken: Option<&IndexEntry>,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let name = request.source.name()?;
    let key = settings.index_key(&request.source)?;
    let cache = HostCache::open(settings);
    let revalidate = match settings.freshness {
        Freshness::ByName => !is_immutable(&name),
        Freshness::Revalidate => true,
        Freshness::Immutable | Freshness::Offline => false,
    };
    // Read before the lookup: entries that appear from now on are new.
    let before: Vec<IndexEntry> = match &cache {
        Ok(cache)
            if revalidate
                || request.sha256.is_some()
                || settings.require_sidecar
                || broken.is_some() =>
        {
            let entries = cache.shares().map(|share| share.entry(&key));
            entries.filter_map(Result::ok).collect()
        }
        _ => Vec::new(),
    };
    let found = match &cache {
        Ok(cache) => cache.lookup(&key),
        Err(unusable) => cache::lookup(unusable.readable.iter(), &key),
    };
    let was_corrupt = matches!(found, LookupResult::Corrupt(_));
    let mut cached = found
        .hit()
        .filter(|blob| broken.is_none_or(|broken| broken.fetch_id != blob.entry.fetch_id));
    if cached.as_ref().is_some_and(|blob| {
        request
            .sha256
            .as_ref()
            .is_some_and(|sha256| *sha256 != blob.entry.sha256)
    }) {
        debug!("cached copy does not have the required digest");
        cached = None;
    }
    let offline = settings.freshness == Freshness::Offline;
    let lacking = |exit, why: &str| {
        hostkit::runtime::check_open_files()?;
        Err(Failure::new(exit, format!("{}: {why}", request.source))
            .remedy("fetch it once without --offline"))
    };
    match cached {
        Some(blob) if offline && request.lacks_sidecar(settings, &blob.entry) => lacking(
            Exit::UNAVAILABLE,
            "the cached copy was not verified by a sidecar when it was fetched",
        ),
        Some(blob) if !revalidate && !request.lacks_sidecar(settings, &blob.entry) => {
            Ok((LocalArtifact::Cached(Box::new(blob)), CacheResult::Hit))
        }
        None if offline && was_corrupt => lacking(
            Exit::CORRUPT,
            "the cached copy is corrupt, and the cache has no other copy",
        ),
        None if offline => lacking(Exit::UNAVAILABLE, "not in the cache"),
        cached => run_until_deadline(deadline, async {
            fetch_online(
                &FetchContext {
                    request,
                    settings,
                    name: &name,
                    key: &key,
                    cache: cache.as_ref(),
                    revalidate,
                },
                cached,
                before,
            )
            .await
        }),
    }
}

/// Looks an artifact up in the cache without revalidation. One without a required sidecar is not found.
#[must_use]
pub fn find_cached(source: &ArtifactSource, settings: &Settings) -> Option<CachedBlob> {
    // An invalid configuration is reported by the fetch that follows.
    let key = settings.index_key(source).ok()?;
    let found = match HostCache::open(settings) {
        Ok(cache) => cache.lookup(&key),
        Err(unusable) => cache::lookup(unusable.readable.iter(), &key),
    };
    found
        .hit()
        .filter(|blob| !settings.lacks_sidecar(&blob.entry))
}

/// Runs a future on a runtime until the deadline or a signal. After it, a signal ends this process at once.
///
/// # Errors
/// As the future; the deadline is over (exit 75), or a signal arrived.
pub(crate) fn run_until_deadline<T>(
    deadline: &Deadline,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // tokio panics when it cannot start its first blocking thread; that thread is then kept alive.
    hostkit::thread::check_spawn().map_err(|error| {
        Failure::new(Exit::IO, "cannot start a thread for the fetch").because(error)
    })?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().thread_keep_alive(deadline.left());
    let runtime = hostkit::runtime::build(&mut builder)?;
    let mut signalled = Box::pin(shutdown::wait_for_signal());
    let done = LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            done = tokio::time::timeout(deadline.left(), work) => done.unwrap_or_else(|_| Err(deadline.failure())),
            signal = &mut signalled => Err(match signal {
                Ok(signal) => Failure::interrupted(signal),
                Err(error) => Failure::new(Exit::FAILED, "cannot listen for signals").because(error),
            }),
        }
    });
    if done
        .as_ref()
        .is_err_and(|failure| failure.signal().is_some())
    {
        // A blocking thread may still be reading or writing: do not wait for it.
        runtime.shutdown_background();
        return done;
    }
    // The signal handlers stay installed, and copying gigabytes may follow.
    let listener = hostkit::thread::spawn(move || {
        if let Ok(signal) = runtime.block_on(signalled) {
            shutdown::terminate_by_signal(signal);
        }
    });
    match listener {
        Ok(_) => done,
        Err(error) => done
            .and_then(|_| Err(Failure::new(Exit::IO, "cannot listen for signals").because(error))),
    }
}

struct FetchContext<'a> {
    request: &'a FetchRequest,
    settings: &'a Settings,
    name: &'a str,
    key: &'a str,
    cache: Result<&'a HostCache, &'a cache::CacheUnusable>,
    /// Whether a cached copy is used only if it is current.
    revalidate: bool,
}

/// `before` are the index entries at the time of the lookup, the one of `cached` among them.
async fn fetch_online(
    context: &FetchContext<'_>,
    cached: Option<CachedBlob>,
    mut before: Vec<IndexEntry>,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let source = &context.request.source;
    let store = store::open(source, &context.settings.access, context.settings.timeout).await?;
    let store: Rc<dyn ObjectStore> = store.into();
    let mut download = ArtifactDownload {
        store: store.clone(),
        source,
        name: context.name,
        settings: context.settings,
        sha256: context.request.sha256.as_deref(),
        recent: match context.request.bypass {
            Some(_) => RecentPolicy::Keep,
            None => RecentPolicy::Evict,
        },
        meta: None,
        expected: None,
    };
    let cached = match cached {
        Some(blob) => match check_sidecar(context, &mut download, blob).await? {
            Ok(blob) if context.revalidate => Some(blob),
            Ok(blob) => {
                return Ok((
                    LocalArtifact::Cached(Box::new(blob)),
                    CacheResult::Revalidated,
                ));
            }
            Err(other) => {
                before.push(*other);
                None
            }
        },
        None => None,
    };
    if let Some(blob) = cached {
        match revalidate(
            &*store,
            source,
            blob.entry.etag.as_deref(),
            context.settings.stall_timeout,
        )
        .await
        {
            Ok(HeadResponse::NotModified) => {
                return Ok((
                    LocalArtifact::Cached(Box::new(blob)),
                    CacheResult::Revalidated,
                ));
            }
            Ok(HeadResponse::Found(found)) => download.meta = Some(found),
            Err(error) if error.kind == StoreErrorKind::Transient => {
                warn!(%source, %error, because = cause(&error), "revalidation failed; using the cached copy, which may be outdated");
                return Ok((LocalArtifact::Cached(Box::new(blob)), CacheResult::Stale));
            }
            // A server that rejects HEAD is handled by the GET that follows.
            Err(error) if error.kind == StoreErrorKind::Permanent => {
                debug!(%error, "revalidation failed; fetching")
            }
            Err(error) => return Err(error.into_failure(source)),
        }
        before.push(blob.entry);
    }
    // Another user's entry may already be of the store's current version.
    let current = download.meta.as_ref().and_then(ObjectMeta::strong_etag);
    before.retain(|entry| current.is_none() || entry.etag.as_deref() != current);
    if let Some(sha256) = &context.request.sha256 {
        before.retain(|entry| entry.sha256 != *sha256);
    }
    let known: Vec<String> = before.into_iter().map(|entry| entry.fetch_id).collect();
    let cache = match context.cache {
        Ok(cache) => cache,
        Err(unusable) => {
            return bypass(
                context,
                &mut download,
                BypassReason::CacheUnusable(unusable.to_string()),
            )
            .await;
        }
    };
    let mut lead =
        match single_flight::lead_or_follow(cache, source, context.key, &known, context.settings)
            .await?
        {
            SingleFlightOutcome::Coalesced(blob) => {
                if context
                    .request
                    .sha256
                    .as_ref()
                    .is_some_and(|sha256| *sha256 != blob.entry.sha256)
                {
                    return Err(Failure::new(
                        Exit::CORRUPT,
                        format!("{source}: SHA-256 is {}", blob.entry.sha256),
                    )
                    .remedy(
                        "it differs from --sha256: correct the flag, or publish the artifact again",
                    ));
                }
                return match check_sidecar(context, &mut download, *blob).await? {
                    Ok(blob) => Ok((
                        LocalArtifact::Cached(Box::new(blob)),
                        CacheResult::Coalesced,
                    )),
                    Err(other) => Err(Failure::new(
                        Exit::CORRUPT,
                        format!("{source}: SHA-256 is {}", other.sha256),
                    )
                    .remedy("it differs from its sidecar: publish both again")),
                };
            }
            SingleFlightOutcome::Leader(lead) => lead,
            SingleFlightOutcome::LockFailed(error) if is_out_of_resources(&error) => {
                let lock = format!("{source}: cannot lock in {}", cache.own.display_path());
                return Err(Failure::new(Exit::IO, lock).because(error));
            }
            SingleFlightOutcome::LockFailed(error) => {
                let why = format!("cannot lock in {}: {error}", cache.own.display_path());
                return bypass(context, &mut download, BypassReason::CacheUnusable(why)).await;
            }
        };
    let began = clock::since_boot();
    let result =
        match untrusted_copy::copy_from_untrusted(cache, &mut download, context.key, &mut lead)
            .await
        {
            Ok(Some(blob)) => {
                return Ok((
                    LocalArtifact::Cached(Box::new(blob)),
                    CacheResult::VerifiedCopy,
                ));
            }
            Ok(None) => {
                download
                    .download_to_cache(cache, context.key, lead.turn)
                    .await
            }
            Err(failure) => Err(failure),
        };
    match result {
        Ok(DownloadOutcome::Published(blob)) => {
            let took = clock::since_boot().saturating_sub(began);
            info!(%source, bytes = blob.entry.size, ms = took.as_millis() as u64, sha256 = blob.entry.sha256, "fetched");
            Ok((LocalArtifact::Cached(blob), CacheResult::Miss))
        }
        Ok(DownloadOutcome::Unpublished { file, size }) => {
            Ok((LocalArtifact::Unpublished { file, size }, CacheResult::Miss))
        }
        Ok(DownloadOutcome::NoRoom(why)) => {
            // The followers do not find room either: let each one bypass the cache at once.
            drop(lead);
            bypass(context, &mut download, BypassReason::NoRoom(why)).await
        }
        Err(failure) => {
            // A digest that only this caller requires does not concern the others.
            if context.request.sha256.is_none() {
                single_flight::record_failure(&cache.own, context.key, &failure);
            }
            Err(failure)
        }
    }
}

/// Why the cache cannot hold an artifact.
enum BypassReason {
    /// It cannot be created, read or written by this user.
    CacheUnusable(String),
    /// It or its disk is full.
    NoRoom(String),
}

/// Downloads straight to the target, because the cache cannot hold the artifact.
async fn bypass(
    context: &FetchContext<'_>,
    download: &mut ArtifactDownload<'_>,
    why: BypassReason,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let source = &context.request.source;
    let (why, remedy) = match why {
        BypassReason::CacheUnusable(why) => (
            why,
            "name a cache of this user with --cache-dir, or correct the owner of this one",
        ),
        BypassReason::NoRoom(why) => (
            why,
            "make room in the cache (--max-size, --keep-free, the disk), or name another with --cache-dir",
        ),
    };
    let Some((target, mode)) = &context.request.bypass else {
        return Err(Failure::new(Exit::CANNOT_CREATE, format!("{source}: {why}")).remedy(remedy));
    };
    warn!(%source, why, target = %target.display(), "bypassing the cache: fetching straight to the target");
    download.download_to_file(target, *mode).await?;
    Ok((LocalArtifact::Bypassed, CacheResult::Miss))
}

/// Checks whether the cached copy is current. One retry only, because the cached copy is a fallback.
async fn revalidate(
    store: &dyn ObjectStore,
    source: &ArtifactSource,
    etag: Option<&str>,
    patience: Duration,
) -> Result<HeadResponse, StoreError> {
    let silent = || StoreError::new(StoreErrorKind::Transient, "no response in time");
    let attempt = || async {
        tokio::time::timeout(patience, store.head(source, etag))
            .await
            .unwrap_or_else(|_| Err(silent()))
    };
    match attempt().await {
        Err(error) if error.kind == StoreErrorKind::Transient => attempt().await,
        other => other,
    }
}

fn cause(error: &StoreError) -> String {
    error
        .source
        .as_ref()
        .map(|source| source.to_string())
        .unwrap_or_default()
}
