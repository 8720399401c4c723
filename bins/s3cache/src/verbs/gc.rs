//! `s3cache gc`: removes garbage, and evicts what exceeds the limits; as root, for every user.

use std::io;
use std::time::Duration;

use hostkit::dir::Dir;
use hostkit::units::{format_size, parse_duration};
use hostkit::{Exit, Failure, clock, stdout};
use nix::sys::statvfs::fstatvfs;
use serde_json::json;
use tracing::warn;

use super::{format_count, io_failure, usable_shares};
use crate::cache::eviction::{EvictionMode, RECENT, evict_blob, is_recent, remove_dead_partials};
use crate::cache::gc::{EvictionCandidate, FreedSpace, by_age, sweep};
use crate::cache::process_references::ProcessReferences;
use crate::cache::repair::repair;
use crate::cache::usage::ShareUsage;
use crate::cache::{CacheShare, pex_root, space};
use crate::settings::Settings;
use crate::unpack;

#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    /// Also remove artifacts not used for this long, even within the last hour; less than 1h also removes unpacked
    /// pexes that were started less than an hour ago
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Print what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Collects garbage.
///
/// # Errors
/// The disk fails (exit 74); the shares of other users are collected nevertheless.
pub(crate) fn run(args: &GcArgs, settings: &Settings) -> Result<Exit, Failure> {
    let (shares, mut failed) = usable_shares(settings)?;
    if shares.is_empty() {
        return failed.map_or(Ok(Exit::OK), Err);
    }
    if settings.total_max_size < u64::MAX && !nix::unistd::geteuid().is_root() {
        warn!("--total-max-size has no effect unless gc runs as root");
    }
    let mut round = GcRun::new(args, settings, &shares);
    let mut check = |share: &CacheShare, done: io::Result<()>| {
        if let Err(error) = done {
            failed.get_or_insert_with(|| io_failure(share, error));
        }
    };
    for (at, share) in shares.iter().enumerate() {
        check(share, round.sweep(at));
    }
    round
        .check_keep_free()
        .map_err(|error| io_failure(&shares[0], error))?;
    for (at, share) in shares.iter().enumerate() {
        check(share, round.make_room(at));
    }
    let all: Vec<&CacheShare> = shares.iter().collect();
    for candidate in by_age(&all) {
        check(candidate.share, round.evict(&candidate));
    }
    for (at, share) in shares.iter().enumerate() {
        check(share, round.finish(at));
        round.report(at)?;
    }
    failed.map_or(Ok(Exit::OK), Err)
}

/// One collection. Freed and used bytes count the same files: artifacts, partial downloads, quarantined blobs, failure
/// records and unpacked pexes.
struct GcRun<'a> {
    args: &'a GcArgs,
    settings: &'a Settings,
    shares: &'a [CacheShare],
    mode: EvictionMode,
    in_use: ProcessReferences,
    /// The limit of all shares together (bytes).
    total_max: u64,
    /// To be kept free on the filesystem (bytes).
    keep_free: u64,
    /// Bytes used by each share.
    held: Vec<u64>,
    freed: Vec<FreedSpace>,
}

impl<'a> GcRun<'a> {
    fn new(args: &'a GcArgs, settings: &'a Settings, shares: &'a [CacheShare]) -> Self {
        Self {
            args,
            settings,
            shares,
            mode: if args.dry_run {
                EvictionMode::DryRun
            } else {
                EvictionMode::Remove
            },
            in_use: ProcessReferences::default(),
            // Other users see only their own share.
            total_max: match nix::unistd::geteuid().is_root() {
                true => settings.total_max_size,
                false => u64::MAX,
            },
            keep_free: settings.keep_free,
            held: vec![0; shares.len()],
            freed: vec![FreedSpace::default(); shares.len()],
        }
    }

    /// Whether a limit is exceeded (of a share, of all shares, or of the disk), after `freed` more bytes of the share
    /// are gone.
    fn is_over(&self, at: usize, freed: u64) -> io::Result<bool> {
        let (mine, all) = (self.held[at], self.held.iter().sum::<u64>());
        let more = match self.mode {
            EvictionMode::Remove => 0,
            EvictionMode::DryRun => freed,
        };
        Ok(mine.saturating_sub(freed) > self.settings.max_size
            || all.saturating_sub(freed) > self.total_max
            || self.free()?.saturating_add(more) < self.keep_free)
    }

    /// Free bytes on the filesystem, after what a dry run would have removed.
    fn free(&self) -> io::Result<u64> {
        let free = free_bytes(self.settings)?;
        Ok(match self.mode {
            EvictionMode::Remove => free,
            EvictionMode::DryRun => self
                .freed
                .iter()
                .fold(free, |free, more| free.saturating_add(more.bytes)),
        })
    }

    /// Ignores `keep_free` when evicting everything would not reach it.
    fn check_keep_free(&mut self) -> io::Result<()> {
        let (free, held) = (self.free()?, self.held.iter().sum());
        if let Some(why) = space::cannot_keep_free(free, held, self.keep_free, 0) {
            warn!(
                error = why,
                "nothing is evicted for --keep-free, which cannot be reached"
            );
            self.keep_free = 0;
        }
        Ok(())
    }

    fn count(&mut self, at: usize, bytes: u64) {
        self.freed[at].bytes += bytes;
        self.held[at] = self.held[at].saturating_sub(bytes);
    }

    /// Removes garbage of a share.
    fn sweep(&mut self, at: usize) -> io::Result<()> {
        let share = &self.shares[at];
        if self.mode == EvictionMode::Remove {
            repair(share);
            share.tolerate_foreign(unpack::remove_abandoned(share))?;
        }
        self.held[at] = share.tolerate_foreign(ShareUsage::of(share))?.held();
        let freed = sweep(share, self.args.max_age, self.mode)?;
        self.freed[at].entries += freed.entries;
        self.count(at, freed.bytes);
        Ok(())
    }

    /// Removes what goes before artifacts when a limit is exceeded: quarantined blobs and abandoned downloads of any
    /// age, then unpacked pexes, which can be restored without the network.
    fn make_room(&mut self, at: usize) -> io::Result<()> {
        let share = &self.shares[at];
        if self.is_over(at, 0)? {
            // An unreadable /proc is not the doing of the share's owner: it fails for other users' shares too.
            self.in_use.pids_by_name()?;
            let dead = remove_dead_partials(share, |_| Duration::ZERO, self.mode);
            let mut bytes = share.tolerate_foreign(dead)?;
            if self.mode == EvictionMode::DryRun {
                // The sweep has already counted the old ones.
                bytes = bytes.saturating_sub(self.freed[at].bytes);
            }
            self.count(at, bytes);
        }
        let spare = self.args.max_age.map_or(RECENT, |max| max.min(RECENT));
        let enough = |freed| Ok(!self.is_over(at, freed)?);
        let pruned = pex_root::prune(share, &self.in_use, self.mode, spare, enough);
        let pruned = share.tolerate_foreign(pruned)?;
        self.freed[at].pexes += pruned.pexes;
        self.count(at, pruned.bytes);
        Ok(())
    }

    /// Evicts a blob that is too old, or that was not used recently when a limit is exceeded.
    fn evict(&mut self, candidate: &EvictionCandidate<'_>) -> io::Result<()> {
        let (share, blob) = (candidate.share, &candidate.blob);
        let position = self.shares.iter().position(|found| found.uid == share.uid);
        let Some(at) = position else { return Ok(()) };
        let now = clock::now();
        let unused = now.duration_since(blob.used).unwrap_or_default();
        let expired = self.args.max_age.is_some_and(|max| unused > max);
        if !expired && (is_recent(blob.used, now) || !self.is_over(at, 0)?) {
            return Ok(());
        }
        let removed = match evict_blob(share, blob, &self.in_use, self.mode) {
            // A fetch that needed room evicted it first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            other => other?,
        };
        if removed {
            self.freed[at].blobs += 1;
            self.count(at, blob.size);
        }
        Ok(())
    }

    /// Removes the entries of evicted blobs, and corrects the counters.
    fn finish(&mut self, at: usize) -> io::Result<()> {
        if self.mode == EvictionMode::Remove {
            let share = &self.shares[at];
            self.freed[at].entries += sweep(share, None, self.mode)?.entries;
            let counted = space::recount(share).map(Some);
            if let Some(held) = share.tolerate_foreign(counted)? {
                self.held[at] = held.total();
            }
        }
        Ok(())
    }

    fn report(&self, at: usize) -> Result<(), Failure> {
        let (uid, freed, used) = (self.shares[at].uid, self.freed[at], self.held[at]);
        if self.args.json {
            return stdout::print_json(
                &json!({"uid": uid, "blobs": freed.blobs, "unpacked_pexes": freed.pexes, "entries": freed.entries,
                "freed_bytes": freed.bytes, "used_bytes": used, "dry_run": self.args.dry_run}),
            );
        }
        let would = if self.args.dry_run {
            "would free"
        } else {
            "freed"
        };
        stdout::print_line(format_args!(
            "uid {uid}: {would} {} ({}, {}), {} in use",
            format_size(freed.bytes),
            format_count(freed.blobs, "artifact", "artifacts"),
            format_count(freed.pexes, "unpacked pex", "unpacked pexes"),
            format_size(used),
        ))
    }
}

fn free_bytes(settings: &Settings) -> io::Result<u64> {
    let found = fstatvfs(&Dir::open(&settings.cache_dir)?)?;
    Ok(found.blocks_available() * found.fragment_size())
}
