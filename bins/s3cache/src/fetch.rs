//! The whole way of one artifact: look it up, ask whether it is current, wait for whoever fetches it or fetch it,
//! verify, publish. Owns the order of these steps; each step is elsewhere.

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
use cached_copy::vouch;

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

/// Gets an artifact onto this host.
///
/// # Errors
/// Everything that can go wrong, with the documented exit codes; nothing half-written is left.
pub fn fetch(
    want: &FetchRequest,
    settings: &Settings,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    fetch_unless(want, settings, &settings.deadline(&want.source), None)
}

/// Gets an artifact onto this host, but not from the cached copy `broken`.
fn fetch_unless(
    want: &FetchRequest,
    settings: &Settings,
    deadline: &Deadline,
    broken: Option<&IndexEntry>,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let name = want.source.name()?;
    let key = settings.index_key(&want.source)?;
    let cache = HostCache::open(settings);
    let revalidate = match settings.freshness {
        Freshness::ByName => !is_immutable(&name),
        Freshness::Revalidate => true,
        Freshness::Immutable | Freshness::Offline => false,
    };
    // Read before the lookup: what others fetch from now on is new.
    let before: Vec<IndexEntry> = match &cache {
        Ok(cache)
            if revalidate
                || want.sha256.is_some()
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
        want.sha256
            .as_ref()
            .is_some_and(|sha256| *sha256 != blob.entry.sha256)
    }) {
        debug!("the cached copy has another digest than the one asked for");
        cached = None;
    }
    let offline = settings.freshness == Freshness::Offline;
    let lacking = |exit, why: &str| {
        hostkit::runtime::check_open_files()?;
        Err(Failure::new(exit, format!("{}: {why}", want.source))
            .remedy("fetch it once without --offline"))
    };
    match cached {
        Some(blob) if offline && want.lacks_sidecar(settings, &blob.entry) => lacking(
            Exit::UNAVAILABLE,
            "it is in the cache, but no sidecar vouched for it when it was fetched",
        ),
        Some(blob) if !revalidate && !want.lacks_sidecar(settings, &blob.entry) => {
            Ok((LocalArtifact::Cached(Box::new(blob)), CacheResult::Hit))
        }
        None if offline && was_corrupt => lacking(
            Exit::CORRUPT,
            "the cached copy was corrupt, and there is no other in the cache",
        ),
        None if offline => lacking(Exit::UNAVAILABLE, "it is not in the cache"),
        cached => run_until_deadline(deadline, async {
            fetch_online(
                &FetchContext {
                    want,
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

/// Looks an artifact up in the cache, without asking whether it is current. One without a sidecar that is required is
/// not found.
#[must_use]
pub fn find_cached(source: &ArtifactSource, settings: &Settings) -> Option<CachedBlob> {
    // A configuration that cannot be used is reported by the fetch that follows.
    let key = settings.index_key(source).ok()?;
    let found = match HostCache::open(settings) {
        Ok(cache) => cache.lookup(&key),
        Err(unusable) => cache::lookup(unusable.readable.iter(), &key),
    };
    found
        .hit()
        .filter(|blob| !settings.lacks_sidecar(&blob.entry))
}

/// Runs the part that needs the network: until the deadline, and only until a signal asks this process to stop. From then on a
/// signal ends this process at once.
///
/// # Errors
/// As the future, and those two.
pub(crate) fn run_until_deadline<T>(
    deadline: &Deadline,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // tokio panics when it has no thread for what blocks and gets none: it keeps the first one.
    hostkit::thread::check_spawn().map_err(|error| {
        Failure::new(Exit::IO, "cannot start what a fetch needs").because(error)
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
        // A thread that reads or writes may take its time; nobody waits for it any more.
        runtime.shutdown_background();
        return done;
    }
    // The signals stay caught, and a copy of gigabytes may follow.
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
    want: &'a FetchRequest,
    settings: &'a Settings,
    name: &'a str,
    key: &'a str,
    cache: Result<&'a HostCache, &'a cache::CacheUnusable>,
    /// Whether a cached copy is used only if it is current.
    revalidate: bool,
}

/// `before` are the entries that were there when the cache was asked, the one of `cached` among them.
async fn fetch_online(
    ask: &FetchContext<'_>,
    cached: Option<CachedBlob>,
    mut before: Vec<IndexEntry>,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let source = &ask.want.source;
    let store = store::open(source, &ask.settings.access, ask.settings.timeout).await?;
    let store: Rc<dyn ObjectStore> = store.into();
    let mut download = ArtifactDownload {
        store: store.clone(),
        source,
        name: ask.name,
        settings: ask.settings,
        sha256: ask.want.sha256.as_deref(),
        recent: match ask.want.bypass {
            Some(_) => RecentPolicy::Keep,
            None => RecentPolicy::Evict,
        },
        meta: None,
        vouched: None,
    };
    let cached = match cached {
        Some(blob) => match vouch(ask, &mut download, blob).await? {
            Ok(blob) if ask.revalidate => Some(blob),
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
            ask.settings.stall_timeout,
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
                warn!(%source, because = cause(&error), "{error}: using the cached copy, which may be outdated");
                return Ok((LocalArtifact::Cached(Box::new(blob)), CacheResult::Stale));
            }
            // A server that knows no HEAD is asked by the GET that follows.
            Err(error) if error.kind == StoreErrorKind::Permanent => {
                debug!(%error, "cannot ask whether it changed: fetching it")
            }
            Err(error) => return Err(error.into_failure(source)),
        }
        before.push(blob.entry);
    }
    // Another user's entry may be just what the origin has now.
    let current = download.meta.as_ref().and_then(ObjectMeta::strong_etag);
    before.retain(|entry| current.is_none() || entry.etag.as_deref() != current);
    if let Some(sha256) = &ask.want.sha256 {
        before.retain(|entry| entry.sha256 != *sha256);
    }
    let known: Vec<String> = before.into_iter().map(|entry| entry.fetch_id).collect();
    let cache = match ask.cache {
        Ok(cache) => cache,
        Err(unusable) => {
            return bypass(
                ask,
                &mut download,
                BypassReason::CacheUnusable(unusable.to_string()),
            )
            .await;
        }
    };
    let mut lead =
        match single_flight::lead_or_follow(cache, source, ask.key, &known, ask.settings).await? {
            SingleFlightOutcome::Coalesced(blob) => {
                if ask
                    .want
                    .sha256
                    .as_ref()
                    .is_some_and(|sha256| *sha256 != blob.entry.sha256)
                {
                    return Err(Failure::new(
                        Exit::CORRUPT,
                        format!("{source}: SHA-256 is {}", blob.entry.sha256),
                    )
                    .remedy("it differs from --sha256; correct one of them"));
                }
                return match vouch(ask, &mut download, *blob).await? {
                    Ok(blob) => Ok((
                        LocalArtifact::Cached(Box::new(blob)),
                        CacheResult::Coalesced,
                    )),
                    Err(other) => Err(Failure::new(
                        Exit::CORRUPT,
                        format!("{source}: SHA-256 is {}", other.sha256),
                    )
                    .remedy("it differs from its sidecar; publish both again")),
                };
            }
            SingleFlightOutcome::Leader(lead) => lead,
            SingleFlightOutcome::LockFailed(error) if is_out_of_resources(&error) => {
                let lock = format!("{source}: cannot lock in {}", cache.own.display_path());
                return Err(Failure::new(Exit::IO, lock).because(error));
            }
            SingleFlightOutcome::LockFailed(error) => {
                let why = format!("cannot lock in {}: {error}", cache.own.display_path());
                return bypass(ask, &mut download, BypassReason::CacheUnusable(why)).await;
            }
        };
    let began = clock::since_boot();
    let result =
        match untrusted_copy::copy_from_untrusted(cache, &mut download, ask.key, &mut lead).await {
            Ok(Some(blob)) => {
                return Ok((
                    LocalArtifact::Cached(Box::new(blob)),
                    CacheResult::VerifiedCopy,
                ));
            }
            Ok(None) => download.download_to_cache(cache, ask.key, lead.turn).await,
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
            // Those who wait find no room either: let each go its own way at once.
            drop(lead);
            bypass(ask, &mut download, BypassReason::NoRoom(why)).await
        }
        Err(failure) => {
            // A digest that only this caller demands says nothing to the others.
            if ask.want.sha256.is_none() {
                single_flight::record_failure(&cache.own, ask.key, &failure);
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

/// Fetches straight to the destination, because the cache cannot hold it.
async fn bypass(
    ask: &FetchContext<'_>,
    download: &mut ArtifactDownload<'_>,
    why: BypassReason,
) -> Result<(LocalArtifact, CacheResult), Failure> {
    let source = &ask.want.source;
    let (why, remedy) = match why {
        BypassReason::CacheUnusable(why) => (
            why,
            "name one that belongs to this user with --cache-dir, or correct its owner",
        ),
        BypassReason::NoRoom(why) => (
            why,
            "make room in the cache (--max-size, --keep-free, the disk), or name another with --cache-dir",
        ),
    };
    let Some((target, mode)) = &ask.want.bypass else {
        return Err(Failure::new(Exit::CANNOT_CREATE, format!("{source}: {why}")).remedy(remedy));
    };
    warn!(%source, "{why}: fetching straight to {}", target.display());
    download.download_to_file(target, *mode).await?;
    Ok((LocalArtifact::Bypassed, CacheResult::Miss))
}

/// Asks whether the cached copy is current; one short second attempt, because a cached copy is there to fall back on.
async fn revalidate(
    store: &dyn ObjectStore,
    source: &ArtifactSource,
    etag: Option<&str>,
    patience: Duration,
) -> Result<HeadResponse, StoreError> {
    let silent = || StoreError::new(StoreErrorKind::Transient, "no answer in time");
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
