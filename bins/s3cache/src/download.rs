//! One download by the process that leads it: plan the parts, run the engine, verify, publish. Where the bytes go, and
//! whether there is room for them, is `destination`'s.

mod destination;
mod vouching;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use hostkit::failure::is_out_of_resources;
use hostkit::{Exit, Failure, clock};
use tracing::{info, warn};

use crate::cache::entry::Stamp;
use crate::cache::evict::Recent;
use crate::cache::partial::{Done, Partial};
use crate::cache::space::{self, Bounds};
use crate::cache::{Blob, Cache, Entry};
use crate::copy::{Placing, cannot_write};
use crate::engine::{self, Job, Options};
use crate::fetch::{found, shown};
use crate::flight::TURNS;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::sink::{Shape, Sink, SinkThread, Summary, Target};
use crate::source::Source;
use crate::store::{Checksum, Crc, Kind, Meta, ObjectStore, Reply, StoreError};
use crate::unpack;
use crate::verify::{self, Vouched};
use destination::Destination;

/// So often a download begins anew when the object is replaced under it, or the stream breaks.
const RESTARTS: u32 = 3;

/// Everything a download needs to know.
pub struct Download<'a> {
    /// Where from.
    pub store: Rc<dyn ObjectStore>,
    /// What.
    pub source: &'a Source,
    /// Its file name.
    pub name: &'a str,
    /// How.
    pub settings: &'a Settings,
    /// The digest the caller demands.
    pub sha256: Option<&'a str>,
    /// What becomes of recently used blobs when the cache is full.
    pub recent: Recent,
    /// What is known of it already.
    pub meta: Option<Meta>,
    /// The digest somebody vouches for, once it was looked for: one look per fetch.
    pub vouched: Option<Option<Vouched>>,
}

/// How a download into the cache ended.
pub enum Landed {
    /// In the cache.
    Published(Box<Blob>),
    /// All is there and verified, but the cache could not take it.
    Loose {
        /// The open file.
        file: File,
        /// Its length (bytes).
        size: u64,
    },
    /// The cache cannot hold it; nothing was fetched.
    NoRoom(String),
}

/// How an object is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In ranges over several connections, where the store can.
    Ranges,
    /// In one answer.
    OneStream,
}

/// What stopped an attempt.
enum Stop {
    Store(StoreError),
    /// The one stream of an object without ranges broke: it cannot be continued, but begun anew.
    Stream(StoreError),
    NoRoom(String),
    Fail(Failure),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A verified file.
struct Arrived {
    target: Target,
    summary: Summary,
    meta: Meta,
}

impl Download<'_> {
    /// Downloads into the caller's share of the cache.
    ///
    /// # Errors
    /// The store failed, the bytes are not what they should be, or the disk failed.
    pub async fn into_cache(
        &mut self,
        cache: &Cache,
        key: &str,
        turn: u32,
    ) -> Result<Landed, Failure> {
        let share = &cache.own;
        let disk = |error: io::Error| {
            Failure::new(Exit::IO, format!("cannot write to {}", shown(share))).because(error)
        };
        let bounds = Bounds {
            max_size: self.settings.max_size,
            keep_free: self.settings.keep_free,
            recent: self.recent,
        };
        let arrived = match self
            .attempts(&Destination::Share {
                share,
                cache,
                key,
                turn,
                bounds,
            })
            .await
        {
            Ok(arrived) => arrived,
            Err(Stop::NoRoom(why)) => return Ok(Landed::NoRoom(why)),
            // The cache's disk failed or filled up on the way: what is there is in the way of others.
            Err(Stop::Store(error)) if error.kind == Kind::Disk => {
                if let Ok(dir) = share.records("partial") {
                    let _ = space::release(share, Partial::remove(&dir, key, turn));
                }
                return Ok(Landed::NoRoom(error.to_string()));
            }
            Err(Stop::Store(error) | Stop::Stream(error)) => {
                return Err(error.into_failure(self.source));
            }
            Err(Stop::Fail(failure)) => return Err(failure),
        };
        let size = arrived.summary.size;
        let file_name = arrived
            .target
            .record
            .as_ref()
            .map(|record| record.name.clone())
            .unwrap_or_default();
        let Ok(dir) = share.records("partial") else {
            // Somebody removed the cache.
            self.verify(&arrived).await?;
            let file = arrived.target.data;
            return Ok(Landed::Loose { file, size });
        };
        if let Err(failure) = self.verify(&arrived).await {
            let _ = space::release(share, Partial::remove(&dir, key, turn));
            return Err(failure);
        }
        let Ok(file) = dir.open_file(&file_name) else {
            let file = arrived.target.data;
            return Ok(Landed::Loose { file, size });
        };
        let mut entry = self.entry(&arrived, &file).map_err(disk)?;
        // The kernel executes no file that somebody has open for writing: from here on nobody has.
        drop(arrived);
        match share.publish(&dir, &file_name, &file, key, &mut entry) {
            Ok(path) => {
                for turn in 0..TURNS {
                    Partial::remove_record(&dir, key, turn);
                }
                Ok(Landed::Published(Box::new(Blob { entry, file, path })))
            }
            Err(error) if is_out_of_resources(&error) => Err(disk(error)),
            Err(error) => {
                warn!(%error, "cannot publish in {}: going on without the cache", shown(share));
                let _ = space::release(share, Partial::remove(&dir, key, turn));
                Ok(Landed::Loose { file, size })
            }
        }
    }

    /// Downloads straight to its destination.
    ///
    /// # Errors
    /// As [`Download::into_cache`]; a full disk is exit 73.
    pub async fn into_place(&mut self, target: &Path, mode: u32) -> Result<(), Failure> {
        let placing = Placing::new(target, mode)?;
        match self.attempts(&Destination::File(&placing.file)).await {
            Ok(arrived) => {
                self.verify(&arrived).await?;
                placing.place()
            }
            Err(Stop::Store(error)) if error.kind == Kind::Disk => Err(cannot_write(
                target,
                io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32),
            )),
            Err(Stop::Store(error) | Stop::Stream(error)) => Err(error.into_failure(self.source)),
            Err(Stop::NoRoom(why)) => Err(Failure::new(Exit::CANNOT_CREATE, why)),
            Err(Stop::Fail(failure)) => Err(failure),
        }
    }

    /// What the store says of the object, asked once, when the store says more than its answers to GET do.
    ///
    /// # Errors
    /// What the store said.
    pub async fn head(&mut self) -> Result<Option<Meta>, StoreError> {
        if self.meta.is_none() && self.store.wants_head() {
            self.meta = Some(found(self.store.head(self.source, None).await?));
        }
        Ok(self.meta.clone())
    }

    /// The answer to a request for the first missing part of what an earlier process left, unless the object has become
    /// another one or the store says by a HEAD what it is.
    async fn continued(
        &self,
        job: &Job,
        into: &Destination<'_>,
    ) -> Result<Option<(Meta, Reply)>, StoreError> {
        if self.store.wants_head() {
            return Ok(None);
        }
        let Some((header, missing)) = into.left(self.settings.part_size) else {
            return Ok(None);
        };
        let (start, length) = header.part(missing);
        match job
            .first(Some((start, start + length - 1)), Some(&header.etag))
            .await
        {
            Ok(reply) => {
                let meta = reply.meta.clone();
                let same = reply.partial
                    && reply.offset == start
                    && meta.etag.as_ref() == Some(&header.etag)
                    && meta.size == Some(header.size);
                Ok(same.then_some((meta, reply)))
            }
            Err(error) if error.kind == Kind::Transient => Err(error),
            // What was left belongs to another object, or to a lie about this one: it is asked about from its start.
            Err(_) => Ok(None),
        }
    }

    async fn attempts(&mut self, into: &Destination<'_>) -> Result<Arrived, Stop> {
        let mut restarts = 0;
        let mut way = Way::Ranges;
        loop {
            let stopped = match self.attempt(into, way).await {
                Err(Stop::Stream(error)) => error,
                Err(Stop::Store(error)) if error.kind == Kind::Changed => error,
                other => return other,
            };
            restarts += 1;
            if restarts > RESTARTS {
                if way == Way::OneStream || stopped.kind != Kind::Changed {
                    return Err(Stop::Store(stopped));
                }
                warn!(source = %self.source, "its ranges do not fit together, as from servers that tag equal bytes differently or know no ranges: fetching it as one stream");
                (restarts, way) = (0, Way::OneStream);
            }
            info!(source = %self.source, "{stopped}: beginning anew");
            self.meta = None;
            tokio::time::sleep(Duration::from_millis(100) * restarts).await;
        }
    }

    /// The whole object in one answer, which is consistent in itself whatever other answers say. A checksum of the store
    /// counts only if it is about the very same object.
    async fn whole(&mut self, job: &Job) -> Result<(Meta, Option<Reply>), StoreError> {
        let known = self.head().await?.unwrap_or_default();
        let reply = job.first(None, None).await?;
        let mut meta = reply.meta.clone();
        if known.etag.is_some() && known.etag == meta.etag {
            meta.checksum = known.checksum;
        }
        Ok((meta, Some(reply)))
    }

    /// How the object begins to arrive by ranges: what identifies it, and the answer to the first request.
    async fn begin(
        &mut self,
        job: &Job,
        into: &Destination<'_>,
    ) -> Result<(Meta, Option<Reply>), StoreError> {
        // S3 says everything in a HEAD; any other store in the answer to the first range.
        let known = self
            .head()
            .await?
            .filter(|meta| meta.size.is_some() && meta.strong_etag().is_some());
        Ok(match (known, self.continued(job, into).await?) {
            (_, Some((meta, reply))) => (meta, Some(reply)),
            (Some(meta), None) if self.store.wants_head() => (meta, None),
            _ => {
                let probe = self.settings.part_size.unwrap_or(engine::PART_SIZE);
                let mut reply = job.first(Some((0, probe - 1)), None).await?;
                let whole = !reply.partial || reply.meta.size.is_some_and(|size| size <= probe);
                if !whole && (reply.meta.strong_etag().is_none() || reply.meta.size.is_none()) {
                    // Nothing would tell parts of one object from those of another: take it in one piece.
                    reply = job.first(None, None).await?;
                }
                (reply.meta.clone(), Some(reply))
            }
        })
    }

    async fn attempt(&mut self, into: &Destination<'_>, way: Way) -> Result<Arrived, Stop> {
        let options = Options {
            connections: self.settings.connections,
            max_rate: self.settings.max_rate,
            stall_timeout: self.settings.stall_timeout,
        };
        let job = Rc::new(Job::new(self.store.clone(), self.source.clone(), options));
        let (meta, first) = match way {
            Way::Ranges => self.begin(&job, into).await?,
            Way::OneStream => self.whole(&job).await?,
        };
        let ranged = meta.size.is_some()
            && meta.strong_etag().is_some()
            && first.as_ref().is_none_or(|reply| reply.partial);
        let size = meta.size.filter(|_| ranged || first.is_some());
        let part_size = if ranged {
            engine::part_size(size.unwrap_or(0), self.settings.part_size)
        } else {
            u64::MAX / 2
        };
        let crc = match meta.checksum {
            Some(Checksum::Crc(crc, _)) => crc,
            _ => Crc::default(),
        };
        let shape = Shape {
            size,
            part_size,
            crc,
            archive: unpack::kind(self.name),
        };
        let (target, done) = into.open(shape, ranged.then_some(&meta), self.settings.max_rate)?;
        let reserved = size.unwrap_or(0);
        let ran = self
            .transfer(&job, shape, ranged, &meta, first, target, done, into)
            .await;
        if ran.is_err() && !ranged {
            into.abandon(reserved);
        }
        let (target, summary) = ran?;
        Ok(Arrived {
            target,
            summary,
            meta,
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one call, and each of them is one thing the transfer is made of"
    )]
    async fn transfer(
        &self,
        job: &Rc<Job>,
        shape: Shape,
        ranged: bool,
        meta: &Meta,
        first: Option<Reply>,
        target: Target,
        done: Vec<Done>,
        into: &Destination<'_>,
    ) -> Result<(Target, Summary), Stop> {
        let room = target.data.try_clone().map_err(StoreError::disk)?;
        let (sink, thread) = Sink::start(target, shape, &done).map_err(StoreError::disk)?;
        let arrived = sink.arrived();
        let shown = tokio::task::spawn_local({
            let mut progress = Progress::new(&self.source.to_string(), "fetching");
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    progress.show(
                        arrived.load(std::sync::atomic::Ordering::Relaxed),
                        shape.size,
                    );
                }
            }
        });
        let result = match first {
            Some(reply) if !ranged => {
                let mut reserved = shape.size.unwrap_or(0);
                job.stream(reply, &sink, |end| {
                    if end > reserved {
                        // Without a length room is asked for in steps.
                        let want = end.max(reserved + reserved.clamp(1 << 20, 64 << 20));
                        into.reserve(&room, reserved, want)?;
                        reserved = want;
                    }
                    Ok(())
                })
                .await
                .map(|_| ())
                .map_err(|mut error| match error.kind {
                    Kind::Transient => {
                        error.message = format!("the transfer broke: {}", error.message);
                        Stop::Stream(error)
                    }
                    _ => Stop::Store(error),
                })
            }
            first => {
                let size = shape.size.unwrap_or(0);
                let parts: VecDeque<(u64, u64, u64)> = (0..size.div_ceil(shape.part_size).max(1))
                    .filter(|part| !done.iter().any(|done| done.part == *part))
                    .map(|part| {
                        (
                            part,
                            part * shape.part_size,
                            size.min((part + 1) * shape.part_size),
                        )
                    })
                    .collect();
                job.ranges(meta, parts, first, &sink)
                    .await
                    .map_err(Stop::from)
            }
        };
        shown.abort();
        drop(sink);
        match (result, ended(thread).await) {
            (Ok(()), Ok((summary, target))) => {
                if shape.size.is_none() {
                    target
                        .data
                        .set_len(summary.size)
                        .map_err(StoreError::disk)?;
                }
                Ok((target, summary))
            }
            // The thread's error is the cause of the engine's, except when it only noticed that the engine stopped.
            (_, Err(error)) if error.kind() != io::ErrorKind::Interrupted => {
                Err(StoreError::disk(error).into())
            }
            (Err(stop), _) => Err(stop),
            (Ok(()), Err(error)) => Err(StoreError::disk(error).into()),
        }
    }

    async fn verify(&mut self, arrived: &Arrived) -> Result<(), Failure> {
        let vouched = self.vouched().await?;
        let crc = match arrived.meta.checksum {
            Some(Checksum::Crc(crc, _)) => crc,
            _ => Crc::default(),
        };
        verify::digests(
            self.source,
            &arrived.summary,
            crc,
            arrived.meta.checksum,
            vouched.as_ref(),
        )?;
        match &arrived.summary.broken {
            Some(why) => Err(verify::broken(self.source, self.name, why)),
            None => verify::zip(self.source, self.name, &arrived.target.data),
        }
    }

    fn entry(&self, arrived: &Arrived, file: &File) -> io::Result<Entry> {
        let by_store = arrived.meta.checksum.is_some().then(|| "store".to_owned());
        let vouched = self
            .vouched
            .clone()
            .flatten()
            .map(|vouched| vouched.by.to_owned());
        Ok(new_entry(
            self.source,
            self.name,
            &arrived.summary,
            arrived.meta.etag.clone(),
            vouched.or(by_store),
            Stamp::of(&file.metadata()?),
        ))
    }
}

/// An index entry for bytes that are there now.
pub(crate) fn new_entry(
    source: &Source,
    name: &str,
    summary: &Summary,
    etag: Option<String>,
    vouched: Option<String>,
    stamp: Stamp,
) -> Entry {
    Entry {
        source: source.to_string(),
        name: name.to_owned(),
        sha256: summary.sha256.clone(),
        size: summary.size,
        etag,
        fetched: clock::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        fetch_id: format!(
            "{:x}-{:x}",
            clock::since_boot().as_nanos(),
            std::process::id()
        ),
        vouched,
        pex: None,
        stamp,
    }
}

/// Waits for the sink's thread without holding up the runtime.
async fn ended(thread: SinkThread) -> io::Result<(Summary, Target)> {
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .map_err(io::Error::other)?
        .unwrap_or_else(|_| Err(io::Error::other("the writing thread failed")))
}
