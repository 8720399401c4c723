//! Single flight across processes: of all that want one artifact, one leads and fetches, the others wait and watch.
//!
//! Leading is holding the `flock` of `<key>.<turn>`, which the kernel releases however the leader ends. Turn 0 is the
//! normal one. A leader that stalls, or is slower than the bound, is overtaken: one of the waiting takes turn 1, and so
//! on. Uids that trust each other lock each other's files too, in ascending order of uid; everybody makes its own file
//! before looking for others', so that of two processes one always sees the other's.

use std::fs::File;
use std::io;
use std::time::Duration;

use hostkit::dir::{Durability, try_lock_exclusive};
use hostkit::{Exit, Failure, clock};
use nix::sys::stat::{Mode, fchmod};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::cache::{CacheShare, CachedBlob, HostCache, partial_download};
use crate::progress::TransferProgress;
use crate::settings::Settings;
use crate::source::ArtifactSource;

/// How often the waiting look: a dead leader's place is taken within a tenth of a second.
const POLL: Duration = Duration::from_millis(20);
/// So often a leader may be overtaken. When the origin itself is slow, overtaking helps nobody.
pub(crate) const TURNS: u32 = 3;
/// A leader that has all bytes and only fsyncs is given so many times the patience.
const FINISHING: u32 = 5;
/// Turns from here on are those of leaders that copy what another user has: leader `n` as `ADOPTING + n`.
const ADOPTING: u32 = 90;

/// How the waiting ended.
pub(crate) enum SingleFlightOutcome {
    /// This process leads.
    Leader(LeaderLock),
    /// Another process has fetched the artifact meanwhile.
    Coalesced(Box<CachedBlob>),
    /// No lock can be taken in the cache.
    LockFailed(io::Error),
}

/// Leadership, for as long as it lives.
pub(crate) struct LeaderLock {
    /// Which turn.
    pub turn: u32,
    _locks: Vec<File>,
    adopting: Option<File>,
}

impl LeaderLock {
    /// The turn under which bytes of another user are copied: files of its own, which nobody collects before this
    /// leader is gone.
    ///
    /// # Errors
    /// As openat(2).
    pub(crate) fn adopting(&mut self, share: &CacheShare, key: &str) -> io::Result<u32> {
        let turn = ADOPTING + self.turn;
        if self.adopting.is_none() {
            let name = format!("{key}.{turn}");
            self.adopting = share.shelf("locks", key)?.try_lock(&name, 0o600)?;
        }
        match self.adopting {
            Some(_) => Ok(turn),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Why the last leader gave up, for those who waited for it.
#[derive(Serialize, Deserialize)]
struct FailureRecord {
    /// Time since boot (milliseconds).
    at: u64,
    exit: u8,
    message: String,
}

fn verdict_name(key: &str) -> String {
    format!("{key}.failed")
}

/// Waits until this process leads or the artifact is there. `known` are the fetches that were there before and are
/// outdated or not what is wanted: only another one counts.
///
/// # Errors
/// The leader that was waited for failed in a way this process would too.
pub(crate) async fn lead_or_follow(
    cache: &HostCache,
    source: &ArtifactSource,
    key: &str,
    known: &[String],
    settings: &Settings,
) -> Result<SingleFlightOutcome, Failure> {
    let started = clock::since_boot();
    let mut turn = 0;
    let mut watch = LeaderMonitor::new();
    let mut progress: Option<TransferProgress> = None;
    let mut waited = false;
    loop {
        if let Some(blob) = landed(cache, key, known) {
            return Ok(SingleFlightOutcome::Coalesced(Box::new(blob)));
        }
        let locks = match acquire(cache, key, turn) {
            Ok(locks) => locks,
            Err(error) => return Ok(SingleFlightOutcome::LockFailed(error)),
        };
        if let Some(locks) = locks {
            // Between the look and the lock the leader may have ended, well or badly.
            if let Some(blob) = landed(cache, key, known) {
                return Ok(SingleFlightOutcome::Coalesced(Box::new(blob)));
            }
            if let Some(failure) = waited
                .then(|| verdict(cache, key, source, started))
                .flatten()
            {
                return Err(failure);
            }
            return Ok(SingleFlightOutcome::Leader(LeaderLock {
                turn,
                _locks: locks,
                adopting: None,
            }));
        }
        if !waited {
            waited = true;
            info!(%source, "another process is fetching it: waiting");
        }
        if let Some(seen) = watch.look(cache, key, turn, settings) {
            let bar = progress
                .get_or_insert_with(|| TransferProgress::new(&source.to_string(), "waiting for"));
            bar.show(seen.arrived, seen.size);
            if seen.too_slow && turn + 1 < TURNS {
                warn!(%source, turn, "the process fetching it is stalled or too slow: overtaking it");
                turn += 1;
                watch = LeaderMonitor::new();
                continue;
            }
        }
        sleep(POLL).await;
    }
}

fn landed(cache: &HostCache, key: &str, known: &[String]) -> Option<CachedBlob> {
    // Reading the entry is cheap; hashing a blob whose stamp changed is not, and comes only after it.
    let newer = |share: &&CacheShare| {
        share
            .entry(key)
            .is_ok_and(|entry| !known.contains(&entry.fetch_id))
    };
    crate::cache::lookup(cache.shares().filter(newer), key).hit()
}

/// Takes the lock of every uid of the set, or none.
fn acquire(cache: &HostCache, key: &str, turn: u32) -> io::Result<Option<Vec<File>>> {
    let name = format!("{key}.{turn}");
    let mode = if cache.mutual { 0o644 } else { 0o600 };
    // Made before the others' are looked for.
    let made = cache.own.shelf("locks", key)?.open_or_create(&name, mode)?;
    let mut shares: Vec<&CacheShare> = vec![&cache.own];
    if cache.mutual {
        // It may be from a time when its owner was alone.
        fchmod(&made, Mode::from_bits_truncate(mode))?;
        shares.extend(cache.trusted());
        shares.sort_by_key(|share| share.uid);
    }
    let mut locks = Vec::new();
    for share in shares {
        let Ok(shelf) = share.shelf("locks", key) else {
            continue;
        };
        if share.own {
            match shelf.try_lock(&name, mode)? {
                Some(lock) => locks.push(lock),
                None => return Ok(None),
            }
        } else if let Ok(file) = shelf.open_file(&name) {
            if !try_lock_exclusive(&file)? {
                return Ok(None);
            }
            locks.push(file);
        }
    }
    Ok(Some(locks))
}

/// Writes down why the leader gave up, when those who wait would fail the same way.
pub(crate) fn record_failure(share: &CacheShare, key: &str, failure: &Failure) {
    if ![Exit::NOT_FOUND, Exit::UNAVAILABLE, Exit::CORRUPT].contains(&failure.exit()) {
        return;
    }
    let verdict = FailureRecord {
        at: u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX),
        exit: failure.exit().code(),
        message: failure.to_string(),
    };
    if let (Ok(dir), Ok(bytes)) = (share.records("partial"), serde_json::to_vec(&verdict)) {
        // Without it the waiting find out for themselves.
        let _ = dir.write_atomic(&verdict_name(key), &bytes, 0o644, Durability::Process);
    }
}

fn verdict(
    cache: &HostCache,
    key: &str,
    source: &ArtifactSource,
    since: Duration,
) -> Option<Failure> {
    let shares = if cache.mutual {
        cache.shares().collect()
    } else {
        vec![&cache.own]
    };
    shares.into_iter().find_map(|share| {
        let bytes = share
            .records("partial")
            .ok()?
            .read(verdict_name(key), 64 << 10)
            .ok()?;
        let verdict: FailureRecord = serde_json::from_slice(&bytes).ok()?;
        // One that is not from before now is from before the host booted.
        let at = Duration::from_millis(verdict.at);
        (since.as_millis() <= at.as_millis() && at <= clock::since_boot()).then(|| {
            info!(%source, "the process fetching it failed");
            Failure::new(Exit::from_code(verdict.exit), verdict.message)
        })
    })
}

/// What watching a leader shows.
struct LeaderProgress {
    arrived: u64,
    size: Option<u64>,
    too_slow: bool,
}

/// Watches how a leader gets on.
struct LeaderMonitor {
    looked: Option<Instant>,
    since: Instant,
    arrived: u64,
}

impl LeaderMonitor {
    /// How often the record is read.
    const LOOK: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self {
            looked: None,
            since: Instant::now(),
            arrived: 0,
        }
    }

    /// Looks at the leader's record, not more often than makes sense.
    fn look(
        &mut self,
        cache: &HostCache,
        key: &str,
        turn: u32,
        settings: &Settings,
    ) -> Option<LeaderProgress> {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now - looked < Self::LOOK) {
            return None;
        }
        self.looked = Some(now);
        let shares = if cache.mutual {
            cache.shares().collect()
        } else {
            vec![&cache.own]
        };
        let record = shares
            .into_iter()
            .flat_map(|share| [turn, ADOPTING + turn].map(|turn| (share, turn)))
            .filter_map(|(share, turn)| {
                partial_download::read_record(&share.records("partial").ok()?, key, turn).ok()
            })
            .max_by_key(|record| record.arrived)
            .unwrap_or_default();
        let size = record.header.as_ref().map(|header| header.size);
        // Twice what a leader itself takes to notice that a connection is silent.
        let patience = settings.stall_timeout * 2;
        let finishing = size.is_some_and(|size| record.arrived >= size);
        let patience = if finishing {
            patience * FINISHING
        } else {
            patience
        };
        let mut too_slow = false;
        if now - self.since >= patience {
            let bound = record
                .header
                .as_ref()
                .and_then(|header| header.max_rate)
                .map_or(u64::MAX, |rate| rate / 2);
            let rate = record.arrived.saturating_sub(self.arrived) as f64
                / (now - self.since).as_secs_f64();
            too_slow = rate < settings.min_rate.min(bound).max(1) as f64;
            (self.since, self.arrived) = (now, record.arrived);
        }
        Some(LeaderProgress {
            arrived: record.arrived,
            size,
            too_slow,
        })
    }
}
