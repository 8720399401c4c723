//! Single-flight across processes: of all processes that want one artifact, one leads and fetches it, the followers
//! wait.
//!
//! The leader holds the `flock` of `<key>.<turn>`, which the kernel releases however the leader ends. Turn 0 is the
//! normal one. When a leader stalls or is slower than the minimum rate, a follower takes over by locking turn 1, and so
//! on. Uids that trust each other lock each other's files too, in ascending order of uid. Each process creates its own
//! file before it looks for others', so that of two processes at least one sees the other's.

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

/// How often a follower tries the lock: a dead leader is replaced within a tenth of a second.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The most turns. When the store itself is slow, taking over does not help.
pub(crate) const MAX_TURNS: u32 = 3;
/// The time limit of a leader that has all bytes and only fsyncs, as a multiple of the stall limit.
const FINISHING_FACTOR: u32 = 5;
/// Turns from here on copy from an untrusted share: leader `n` copies as turn `COPY_TURNS + n`.
const COPY_TURNS: u32 = 90;

/// The result of [`lead_or_follow`].
pub(crate) enum SingleFlightOutcome {
    /// This process leads.
    Leader(LeaderLock),
    /// Another process has fetched the artifact meanwhile.
    Coalesced(Box<CachedBlob>),
    /// No lock can be taken in the cache.
    LockFailed(io::Error),
}

/// The locks of a leader, held until it is dropped.
pub(crate) struct LeaderLock {
    pub turn: u32,
    _locks: Vec<File>,
    copy_lock: Option<File>,
}

impl LeaderLock {
    /// Locks the turn under which an untrusted user's bytes are copied: its files are not removed by gc while this
    /// leader lives.
    pub(crate) fn lock_copy_turn(&mut self, share: &CacheShare, key: &str) -> io::Result<u32> {
        let turn = COPY_TURNS + self.turn;
        if self.copy_lock.is_none() {
            let name = format!("{key}.{turn}");
            self.copy_lock = share.prefix_dir("locks", key)?.try_lock(&name, 0o600)?;
        }
        match self.copy_lock {
            Some(_) => Ok(turn),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Why the last leader failed, for its followers. On disk: field names must not change.
#[derive(Serialize, Deserialize)]
struct FailureRecord {
    /// Time since boot (milliseconds).
    at: u64,
    exit: u8,
    message: String,
}

fn failure_record_name(key: &str) -> String {
    format!("{key}.failed")
}

/// Waits until this process leads or the artifact is cached. `outdated` are the fetch ids of entries that do not count.
///
/// # Errors
/// The leader failed in a way in which this process would fail too.
pub(crate) async fn lead_or_follow(
    cache: &HostCache,
    source: &ArtifactSource,
    key: &str,
    outdated: &[String],
    settings: &Settings,
) -> Result<SingleFlightOutcome, Failure> {
    let started = clock::since_boot();
    let mut turn = 0;
    let mut monitor = LeaderMonitor::new();
    let mut progress: Option<TransferProgress> = None;
    let mut waited = false;
    loop {
        if let Some(blob) = fetched_since(cache, key, outdated) {
            return Ok(SingleFlightOutcome::Coalesced(Box::new(blob)));
        }
        let locks = match acquire(cache, key, turn) {
            Ok(locks) => locks,
            Err(error) => return Ok(SingleFlightOutcome::LockFailed(error)),
        };
        if let Some(locks) = locks {
            // The leader may have ended between the lookup and the lock.
            if let Some(blob) = fetched_since(cache, key, outdated) {
                return Ok(SingleFlightOutcome::Coalesced(Box::new(blob)));
            }
            if let Some(failure) = waited
                .then(|| recorded_failure(cache, key, source, started))
                .flatten()
            {
                return Err(failure);
            }
            return Ok(SingleFlightOutcome::Leader(LeaderLock {
                turn,
                _locks: locks,
                copy_lock: None,
            }));
        }
        if !waited {
            waited = true;
            info!(%source, "another process is fetching the artifact; waiting");
        }
        if let Some(leader) = monitor.poll(cache, key, turn, settings) {
            let bar = progress
                .get_or_insert_with(|| TransferProgress::new(&source.to_string(), "waiting for"));
            bar.show(leader.arrived, leader.size);
            if leader.too_slow && turn + 1 < MAX_TURNS {
                warn!(%source, turn, "leader is stalled or too slow; taking over");
                turn += 1;
                monitor = LeaderMonitor::new();
                continue;
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn fetched_since(cache: &HostCache, key: &str, outdated: &[String]) -> Option<CachedBlob> {
    // Reading the entry is cheap; hashing a blob whose stamp changed is not, and comes only after it.
    let newer = |share: &&CacheShare| {
        share
            .entry(key)
            .is_ok_and(|entry| !outdated.contains(&entry.fetch_id))
    };
    crate::cache::lookup(cache.shares().filter(newer), key).hit()
}

/// Takes the lock of every trusted uid, or none of them.
fn acquire(cache: &HostCache, key: &str, turn: u32) -> io::Result<Option<Vec<File>>> {
    let name = format!("{key}.{turn}");
    let mode = if cache.mutual_trust { 0o644 } else { 0o600 };
    // Created before the others' files are read_at for.
    let made = cache
        .own
        .prefix_dir("locks", key)?
        .open_or_create(&name, mode)?;
    let mut shares: Vec<&CacheShare> = vec![&cache.own];
    if cache.mutual_trust {
        // It may have been created before its owner trusted other uids.
        fchmod(&made, Mode::from_bits_truncate(mode))?;
        shares.extend(cache.trusted_shares());
        shares.sort_by_key(|share| share.uid);
    }
    let mut locks = Vec::new();
    for share in shares {
        let Ok(shelf) = share.prefix_dir("locks", key) else {
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

/// Records why the leader failed, if its followers would fail the same way.
pub(crate) fn record_failure(share: &CacheShare, key: &str, failure: &Failure) {
    if ![Exit::NOT_FOUND, Exit::UNAVAILABLE, Exit::CORRUPT].contains(&failure.exit()) {
        return;
    }
    let record = FailureRecord {
        at: u64::try_from(clock::since_boot().as_millis()).unwrap_or(u64::MAX),
        exit: failure.exit().code(),
        message: failure.to_string(),
    };
    if let (Ok(dir), Ok(bytes)) = (share.record_dir("partial"), serde_json::to_vec(&record)) {
        // Without a record the followers find out on their own.
        let _ = dir.write_atomic(
            &failure_record_name(key),
            &bytes,
            0o644,
            Durability::Process,
        );
    }
}

fn recorded_failure(
    cache: &HostCache,
    key: &str,
    source: &ArtifactSource,
    since: Duration,
) -> Option<Failure> {
    let shares = if cache.mutual_trust {
        cache.shares().collect()
    } else {
        vec![&cache.own]
    };
    shares.into_iter().find_map(|share| {
        let bytes = share
            .record_dir("partial")
            .ok()?
            .read(failure_record_name(key), 64 << 10)
            .ok()?;
        let record: FailureRecord = serde_json::from_slice(&bytes).ok()?;
        // A record from the future was written before the host booted.
        let at = Duration::from_millis(record.at);
        (since.as_millis() <= at.as_millis() && at <= clock::since_boot()).then(|| {
            info!(%source, "leader failed");
            Failure::new(Exit::from_code(record.exit), record.message)
        })
    })
}

/// The state of a leader as its followers see it.
struct LeaderProgress {
    arrived: u64,
    size: Option<u64>,
    too_slow: bool,
}

/// Measures the progress of a leader.
struct LeaderMonitor {
    read_at: Option<Instant>,
    since: Instant,
    arrived: u64,
}

impl LeaderMonitor {
    const READ_INTERVAL: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self {
            read_at: None,
            since: Instant::now(),
            arrived: 0,
        }
    }

    /// Reads the leader's record, at most every [`Self::READ_INTERVAL`].
    fn poll(
        &mut self,
        cache: &HostCache,
        key: &str,
        turn: u32,
        settings: &Settings,
    ) -> Option<LeaderProgress> {
        let now = Instant::now();
        if self
            .read_at
            .is_some_and(|read_at| now - read_at < Self::READ_INTERVAL)
        {
            return None;
        }
        self.read_at = Some(now);
        let shares = if cache.mutual_trust {
            cache.shares().collect()
        } else {
            vec![&cache.own]
        };
        let record = shares
            .into_iter()
            .flat_map(|share| [turn, COPY_TURNS + turn].map(|turn| (share, turn)))
            .filter_map(|(share, turn)| {
                partial_download::read_record(&share.record_dir("partial").ok()?, key, turn).ok()
            })
            .max_by_key(|record| record.arrived)
            .unwrap_or_default();
        let size = record.header.as_ref().map(|header| header.size);
        // A leader itself takes one stall timeout to notice a silent connection.
        let stall_limit = settings.stall_timeout * 2;
        let finishing = size.is_some_and(|size| record.arrived >= size);
        let stall_limit = if finishing {
            stall_limit * FINISHING_FACTOR
        } else {
            stall_limit
        };
        let mut too_slow = false;
        if now - self.since >= stall_limit {
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
