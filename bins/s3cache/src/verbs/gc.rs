//! `s3cache gc`: removes garbage and what is over the bounds; as root, for every user.

use std::io;
use std::time::Duration;

use hostkit::dir::Dir;
use hostkit::units::{format_size, parse_duration};
use hostkit::{Exit, Failure, clock, stdout};
use nix::sys::statvfs::fstatvfs;
use serde_json::json;
use tracing::warn;

use super::{counted, disk, usable_shares};
use crate::cache::eviction::{EvictionMode, RECENT, evict_blob, is_recent, remove_dead_partials};
use crate::cache::gc::{EvictionCandidate, FreedSpace, by_age, sweep};
use crate::cache::process_references::ProcessReferences;
use crate::cache::repair::repair;
use crate::cache::usage::ShareUsage;
use crate::cache::{CacheShare, pex_root, space};
use crate::settings::Settings;
use crate::unpack;

/// Flags of `s3cache gc`.
#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    /// Also remove artifacts that were not used for so long, even those of the last hour; less than 1h also shortens
    /// the hour after their start for which unpacked pexes stay
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object per user
    #[arg(long)]
    json: bool,
}

/// Collects garbage.
///
/// # Errors
/// The disk fails (exit 74); the parts of other users are collected all the same.
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
            failed.get_or_insert_with(|| disk(share, error));
        }
    };
    for (at, share) in shares.iter().enumerate() {
        check(share, round.sweep(at));
    }
    round
        .check_keep_free()
        .map_err(|error| disk(&shares[0], error))?;
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

/// One collection. What is freed and what is held count the same: artifacts, partial downloads, quarantined blobs,
/// failure records and unpacked pexes.
struct GcRun<'a> {
    args: &'a GcArgs,
    settings: &'a Settings,
    shares: &'a [CacheShare],
    act: EvictionMode,
    in_use: ProcessReferences,
    /// The bound of all shares together (bytes).
    total_max: u64,
    /// What stays free on the filesystem (bytes).
    keep_free: u64,
    /// What each share holds (bytes).
    held: Vec<u64>,
    /// What each share was relieved of.
    freed: Vec<FreedSpace>,
}

impl<'a> GcRun<'a> {
    fn new(args: &'a GcArgs, settings: &'a Settings, shares: &'a [CacheShare]) -> Self {
        Self {
            args,
            settings,
            shares,
            act: if args.dry_run {
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

    /// Whether a share, all together or the disk are over a bound, after `freed` more bytes of the share are gone.
    fn is_over(&self, at: usize, freed: u64) -> io::Result<bool> {
        let (mine, all) = (self.held[at], self.held.iter().sum::<u64>());
        let more = match self.act {
            EvictionMode::Remove => 0,
            EvictionMode::DryRun => freed,
        };
        Ok(mine.saturating_sub(freed) > self.settings.max_size
            || all.saturating_sub(freed) > self.total_max
            || self.free()?.saturating_add(more) < self.keep_free)
    }

    /// What is free on the filesystem, or would be (bytes).
    fn free(&self) -> io::Result<u64> {
        let free = free_bytes(self.settings)?;
        Ok(match self.act {
            EvictionMode::Remove => free,
            EvictionMode::DryRun => self
                .freed
                .iter()
                .fold(free, |free, more| free.saturating_add(more.bytes)),
        })
    }

    /// Leaves `keep_free` alone when evicting everything would not reach it.
    fn check_keep_free(&mut self) -> io::Result<()> {
        let (free, held) = (self.free()?, self.held.iter().sum());
        if let Some(why) = space::cannot_keep_free(free, held, self.keep_free, 0) {
            warn!("{why}; nothing is evicted for it");
            self.keep_free = 0;
        }
        Ok(())
    }

    fn count(&mut self, at: usize, bytes: u64) {
        self.freed[at].bytes += bytes;
        self.held[at] = self.held[at].saturating_sub(bytes);
    }

    /// Removes what nobody needs any more.
    fn sweep(&mut self, at: usize) -> io::Result<()> {
        let share = &self.shares[at];
        if self.act == EvictionMode::Remove {
            repair(share);
            share.own_failures(unpack::sweep(share))?;
        }
        self.held[at] = share.own_failures(ShareUsage::of(share))?.held();
        let freed = sweep(share, self.args.max_age, self.act)?;
        self.freed[at].entries += freed.entries;
        self.count(at, freed.bytes);
        Ok(())
    }

    /// Removes what is given up before artifacts are, when a share is over a bound: quarantined blobs and dead downloads
    /// whatever their age, then unpacked pexes, which come back without the network.
    fn make_room(&mut self, at: usize) -> io::Result<()> {
        let share = &self.shares[at];
        if self.is_over(at, 0)? {
            // In another user's part too this is not its owner's doing.
            self.in_use.named()?;
            let dead = remove_dead_partials(share, |_| Duration::ZERO, self.act);
            let mut bytes = share.own_failures(dead)?;
            if self.act == EvictionMode::DryRun {
                // The sweep has counted the old ones of them.
                bytes = bytes.saturating_sub(self.freed[at].bytes);
            }
            self.count(at, bytes);
        }
        let spare = self.args.max_age.map_or(RECENT, |max| max.min(RECENT));
        let enough = |freed| Ok(!self.is_over(at, freed)?);
        let pruned = pex_root::prune(share, &self.in_use, self.act, spare, enough);
        let pruned = share.own_failures(pruned)?;
        self.freed[at].pexes += pruned.pexes;
        self.count(at, pruned.bytes);
        Ok(())
    }

    /// Evicts a blob if it is too old, or if its share is over a bound and it was not used just now.
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
        let removed = match evict_blob(share, blob, &self.in_use, self.act) {
            // A fetch that needed room was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            other => other?,
        };
        if removed {
            self.freed[at].blobs += 1;
            self.count(at, blob.size);
        }
        Ok(())
    }

    /// Removes the entries of what was evicted, and corrects the counters.
    fn finish(&mut self, at: usize) -> io::Result<()> {
        if self.act == EvictionMode::Remove {
            let share = &self.shares[at];
            self.freed[at].entries += sweep(share, None, self.act)?.entries;
            let counted = space::recount(share).map(Some);
            if let Some(held) = share.own_failures(counted)? {
                self.held[at] = held.total();
            }
        }
        Ok(())
    }

    fn report(&self, at: usize) -> Result<(), Failure> {
        let (uid, freed, held) = (self.shares[at].uid, self.freed[at], self.held[at]);
        if self.args.json {
            return stdout::print_json(
                &json!({"uid": uid, "blobs": freed.blobs, "bytes": freed.bytes, "entries": freed.entries,
                "unpacked": freed.pexes, "held": held, "dry_run": self.args.dry_run}),
            );
        }
        let would = if self.args.dry_run {
            "would free"
        } else {
            "freed"
        };
        stdout::print_line(format_args!(
            "uid {uid}: {would} {} ({}, {}), {} held",
            format_size(freed.bytes),
            counted(freed.blobs, "artifact", "artifacts"),
            counted(freed.pexes, "unpacked pex", "unpacked pexes"),
            format_size(held),
        ))
    }
}

fn free_bytes(settings: &Settings) -> io::Result<u64> {
    let found = fstatvfs(&Dir::open(&settings.cache_dir)?)?;
    Ok(found.blocks_available() * found.fragment_size())
}
