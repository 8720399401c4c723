//! The whole way of one artifact: look it up, ask whether it is current, wait for whoever fetches it or fetch it,
//! verify, publish. Owns the order of these steps; each step is elsewhere.

mod reuse;

use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use hostkit::failure::is_out_of_resources;
use hostkit::{Exit, Failure, clock, shutdown};
use tokio::task::LocalSet;
use tracing::{debug, info, warn};

use crate::adopt;
use crate::cache::evict::Recent;
use crate::cache::{self, Blob, Cache, Entry, Lookup, Share};
use crate::deadline::Deadline;
use crate::digest::Hex;
use crate::download::{self, Download};
use crate::flight::{self, Boarding};
use crate::settings::{Freshness, Settings};
use crate::source::{Source, is_immutable};
use crate::store::{self, Head, Kind, Meta, ObjectStore, StoreError};
use reuse::vouch;

pub use reuse::fetch_and_use;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Want {
    /// The artifact.
    pub source: Source,
    /// The digest it must have.
    pub sha256: Option<Hex>,
    /// Where to put it, with which mode, when the cache cannot hold it. Without this, that is an error.
    pub bypass: Option<(PathBuf, u32)>,
}

/// Where the bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// From the cache, without asking anybody.
    Hit,
    /// From the cache, after the origin said it is current.
    Current,
    /// From the cache, because the origin cannot be reached.
    Stale,
    /// From the cache, fetched by another process while this one waited.
    Joined,
    /// From another user's part of the cache, after its digest was compared with what the store vouches for.
    Adopted,
    /// From the origin.
    Fetched,
}

impl How {
    /// One word for logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Joined => "joined",
            Self::Adopted => "adopted",
            Self::Fetched => "fetched",
        }
    }
}

/// An artifact that is on this host.
#[derive(Debug)]
pub enum Got {
    /// In the cache, open, with a lease that lasts as long as the file is open.
    Cached(Box<Blob>),
    /// Verified, but only in this open file: publishing it failed after all had arrived.
    Loose {
        /// The file, which has no name any more or will be collected.
        file: File,
        /// Its length (bytes).
        size: u64,
    },
    /// Where `Want::bypass` said: the cache could not hold it.
    Placed,
}

/// Gets an artifact onto this host.
///
/// # Errors
/// Everything that can go wrong, with the documented exit codes; nothing half-written is left.
pub fn fetch(want: &Want, settings: &Settings) -> Result<(Got, How), Failure> {
    fetch_unless(want, settings, &settings.deadline(&want.source), None)
}

/// Gets an artifact onto this host, but not from the cached copy `broken`.
fn fetch_unless(
    want: &Want,
    settings: &Settings,
    deadline: &Deadline,
    broken: Option<&Entry>,
) -> Result<(Got, How), Failure> {
    let name = want.source.name()?;
    let key = settings.index_key(&want.source)?;
    let cache = Cache::open(settings);
    let revalidate = match settings.freshness {
        Freshness::ByName => !is_immutable(&name),
        Freshness::Revalidate => true,
        Freshness::Immutable | Freshness::Offline => false,
    };
    // Read before the lookup: what others fetch from now on is new.
    let before: Vec<Entry> = match &cache {
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
    let was_corrupt = matches!(found, Lookup::Corrupt(_));
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
            Ok((Got::Cached(Box::new(blob)), How::Hit))
        }
        None if offline && was_corrupt => lacking(
            Exit::CORRUPT,
            "the cached copy was corrupt, and there is no other in the cache",
        ),
        None if offline => lacking(Exit::UNAVAILABLE, "it is not in the cache"),
        cached => run(deadline, async {
            online(
                &Ask {
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
pub fn cached(source: &Source, settings: &Settings) -> Option<Blob> {
    // A configuration that cannot be used is reported by the fetch that follows.
    let key = settings.index_key(source).ok()?;
    let found = match Cache::open(settings) {
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
pub fn run<T>(
    deadline: &Deadline,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // tokio panics when it has no thread for what blocks and gets none: it keeps the first one.
    hostkit::thread::check().map_err(|error| {
        Failure::new(Exit::IO, "cannot start what a fetch needs").because(error)
    })?;
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().thread_keep_alive(deadline.left());
    let runtime = hostkit::runtime::build(&mut builder)?;
    let mut signalled = Box::pin(shutdown::signalled());
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
            shutdown::die_of(signal);
        }
    });
    match listener {
        Ok(_) => done,
        Err(error) => done
            .and_then(|_| Err(Failure::new(Exit::IO, "cannot listen for signals").because(error))),
    }
}

struct Ask<'a> {
    want: &'a Want,
    settings: &'a Settings,
    name: &'a str,
    key: &'a str,
    cache: Result<&'a Cache, &'a cache::Unusable>,
    /// Whether a cached copy is used only if it is current.
    revalidate: bool,
}

/// `before` are the entries that were there when the cache was asked, the one of `cached` among them.
async fn online(
    ask: &Ask<'_>,
    cached: Option<Blob>,
    mut before: Vec<Entry>,
) -> Result<(Got, How), Failure> {
    let source = &ask.want.source;
    let store = store::open(source, &ask.settings.access, ask.settings.timeout).await?;
    let store: Rc<dyn ObjectStore> = store.into();
    let mut download = Download {
        store: store.clone(),
        source,
        name: ask.name,
        settings: ask.settings,
        sha256: ask.want.sha256.as_deref(),
        recent: match ask.want.bypass {
            Some(_) => Recent::Keep,
            None => Recent::Evict,
        },
        meta: None,
        vouched: None,
    };
    let cached = match cached {
        Some(blob) => match vouch(ask, &mut download, blob).await? {
            Ok(blob) if ask.revalidate => Some(blob),
            Ok(blob) => return Ok((Got::Cached(Box::new(blob)), How::Current)),
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
            Ok(Head::NotModified) => return Ok((Got::Cached(Box::new(blob)), How::Current)),
            Ok(Head::Found(found)) => download.meta = Some(found),
            Err(error) if error.kind == Kind::Transient => {
                warn!(%source, because = cause(&error), "{error}: using the cached copy, which may be outdated");
                return Ok((Got::Cached(Box::new(blob)), How::Stale));
            }
            // A server that knows no HEAD is asked by the GET that follows.
            Err(error) if error.kind == Kind::Fatal => {
                debug!(%error, "cannot ask whether it changed: fetching it")
            }
            Err(error) => return Err(error.into_failure(source)),
        }
        before.push(blob.entry);
    }
    // Another user's entry may be just what the origin has now.
    let current = download.meta.as_ref().and_then(Meta::strong_etag);
    before.retain(|entry| current.is_none() || entry.etag.as_deref() != current);
    if let Some(sha256) = &ask.want.sha256 {
        before.retain(|entry| entry.sha256 != *sha256);
    }
    let known: Vec<String> = before.into_iter().map(|entry| entry.fetch_id).collect();
    let cache = match ask.cache {
        Ok(cache) => cache,
        Err(unusable) => {
            return bypass(ask, &mut download, NotKept::Unusable(unusable.to_string())).await;
        }
    };
    let mut lead = match flight::board(cache, source, ask.key, &known, ask.settings).await? {
        Boarding::Landed(blob) => {
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
                Ok(blob) => Ok((Got::Cached(Box::new(blob)), How::Joined)),
                Err(other) => Err(Failure::new(
                    Exit::CORRUPT,
                    format!("{source}: SHA-256 is {}", other.sha256),
                )
                .remedy("it differs from its sidecar; publish both again")),
            };
        }
        Boarding::Lead(lead) => lead,
        Boarding::Refused(error) if is_out_of_resources(&error) => {
            let lock = format!("{source}: cannot lock in {}", shown(&cache.own));
            return Err(Failure::new(Exit::IO, lock).because(error));
        }
        Boarding::Refused(error) => {
            let why = format!("cannot lock in {}: {error}", shown(&cache.own));
            return bypass(ask, &mut download, NotKept::Unusable(why)).await;
        }
    };
    let began = clock::since_boot();
    let result = match adopt::from_others(cache, &mut download, ask.key, &mut lead).await {
        Ok(Some(blob)) => return Ok((Got::Cached(Box::new(blob)), How::Adopted)),
        Ok(None) => download.into_cache(cache, ask.key, lead.turn).await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(download::Landed::Published(blob)) => {
            let took = clock::since_boot().saturating_sub(began);
            info!(%source, bytes = blob.entry.size, ms = took.as_millis() as u64, sha256 = blob.entry.sha256, "fetched");
            Ok((Got::Cached(blob), How::Fetched))
        }
        Ok(download::Landed::Loose { file, size }) => Ok((Got::Loose { file, size }, How::Fetched)),
        Ok(download::Landed::NoRoom(why)) => {
            // Those who wait find no room either: let each go its own way at once.
            drop(lead);
            bypass(ask, &mut download, NotKept::NoRoom(why)).await
        }
        Err(failure) => {
            // A digest that only this caller demands says nothing to the others.
            if ask.want.sha256.is_none() {
                flight::record_failure(&cache.own, ask.key, &failure);
            }
            Err(failure)
        }
    }
}

/// Why the cache does not keep an artifact.
enum NotKept {
    /// It cannot be made, read or written by this user.
    Unusable(String),
    /// It or its disk is full.
    NoRoom(String),
}

/// Fetches straight to the destination, because the cache cannot hold it.
async fn bypass(
    ask: &Ask<'_>,
    download: &mut Download<'_>,
    why: NotKept,
) -> Result<(Got, How), Failure> {
    let source = &ask.want.source;
    let (why, remedy) = match why {
        NotKept::Unusable(why) => (
            why,
            "name one that belongs to this user with --cache-dir, or correct its owner",
        ),
        NotKept::NoRoom(why) => (
            why,
            "make room in the cache (--max-size, --keep-free, the disk), or name another with --cache-dir",
        ),
    };
    let Some((target, mode)) = &ask.want.bypass else {
        return Err(Failure::new(Exit::CANNOT_CREATE, format!("{source}: {why}")).remedy(remedy));
    };
    warn!(%source, "{why}: fetching straight to {}", target.display());
    download.into_place(target, *mode).await?;
    Ok((Got::Placed, How::Fetched))
}

/// Asks whether the cached copy is current; one short second attempt, because a cached copy is there to fall back on.
async fn revalidate(
    store: &dyn ObjectStore,
    source: &Source,
    etag: Option<&str>,
    patience: Duration,
) -> Result<Head, StoreError> {
    let silent = || StoreError::new(Kind::Transient, "no answer in time");
    let attempt = || async {
        tokio::time::timeout(patience, store.head(source, etag))
            .await
            .unwrap_or_else(|_| Err(silent()))
    };
    match attempt().await {
        Err(error) if error.kind == Kind::Transient => attempt().await,
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

/// What is known of an object that only a HEAD tells.
pub(crate) fn found(head: Head) -> Meta {
    match head {
        Head::Found(meta) => meta,
        Head::NotModified => Meta::default(),
    }
}

/// The share a uid publishes to, named in messages.
pub(crate) fn shown(share: &Share) -> String {
    share.dir().path().display().to_string()
}
