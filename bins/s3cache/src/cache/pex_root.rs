//! Unpacked pexes (`PEX_ROOT`): the lease of each running one, and removing the least recently used of the others.
//!
//! ```text
//! pex-root/.leases/<sha256 of the build>   the pex's hash; a shared flock while it runs, its mtime is the last start
//! pex-root/.leases/gate                    shared while a lease is taken, exclusive while unpacked pexes are removed
//! ```
//!
//! The gate excludes starts during a removal: a starting pex finds either all that it has unpacked or nothing, and
//! unpacks itself again. Earlier releases of pexrun only hold a shared lock on the root; their pexes are protected by
//! age and by the paths that running processes refer to.

mod layout;
mod pex_info;
mod removal;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::{Dir, try_lock_exclusive, try_lock_shared};
use tracing::info;

use self::layout::{PexRootLayout, UnpackedPex, is_hash, written};
use self::pex_info::PexInfo;
use self::removal::PexRemoval;
use super::eviction::{EvictionMode, is_within};
use super::gc::bytes_of;
use super::process_references::ProcessReferences;
use super::repair::{existing_file, existing_folder};
use super::share::CacheShare;

pub(super) const LEASES: &str = ".leases";
/// The lock that excludes starts during a removal.
const GATE: &str = "gate";
/// The content of the lease of a pex that has no hash.
const NO_HASH: &str = "-";
/// The longest that a start waits for a removal.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a removal waits for starts, each of which takes less than a millisecond.
const PRUNE_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A pex without a lease is kept for this long after its last start.
const UNLEASED_AGE: Duration = Duration::from_secs(24 * 3600);
/// A directory that a pex without a lease is unpacking to is kept for this long after its last write, even by a removal
/// that keeps nothing else.
const WORK_SPAN: Duration = Duration::from_secs(5 * 60);

/// Takes the lease of a build that is about to run: its unpacked files stay for as long as the returned files are open.
/// `sha256` is the digest of the build, `file` the build itself.
///
/// # Errors
/// As open(2) and flock(2); `TimedOut` when a removal takes longer than a start waits.
pub fn lease(root: &Dir, sha256: &str, file: &File) -> io::Result<[File; 2]> {
    // While this is held, gc of releases without leases removes nothing.
    let whole = File::from(root.as_fd().try_clone_to_owned()?);
    let leases = root.create_child(LEASES, 0o700)?;
    let gate = leases.open_or_create(GATE, 0o600)?;
    if !wait(START_TIMEOUT, || try_lock_shared(&whole))?
        || !wait(START_TIMEOUT, || try_lock_shared(&gate))?
    {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the removal of unpacked pexes did not end in time",
        ));
    }
    let mut lease = leases.open_or_create(sha256, 0o600)?;
    // It is taken exclusively only while the gate is held.
    try_lock_shared(&lease)?;
    if lease.metadata()?.len() == 0 {
        // A missing hash is recorded too, so that later starts do not read the whole zip directory. While such a lease
        // is held, nothing is removed.
        let info = PexInfo::of_pex(file).unwrap_or_default();
        let hash = info.pex_hash.unwrap_or_else(|| NO_HASH.to_owned());
        lease.write_all(hash.as_bytes())?;
    }
    lease.set_modified(clock::now())?;
    Ok([whole, lease])
}

fn wait(patience: Duration, mut attempt: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let began = clock::since_boot();
    while !attempt()? {
        if clock::since_boot().saturating_sub(began) > patience {
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(true)
}

/// The result of a removal.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PruneSummary {
    /// Unpacked pexes removed.
    pub pexes: u64,
    /// Bytes freed, shared parts included; a file with several links counts once.
    pub bytes: u64,
}

/// Removes unpacked pexes that do not run and were last started at least `spare` ago, the least recently started first,
/// and the parts that no other pex needs, until `enough` returns true for the bytes freed. `spare` protects programs
/// that closed their lease and whose process shows no path of theirs.
///
/// # Errors
/// As unlinkat(2), and those of `enough`.
pub(crate) fn prune(
    share: &CacheShare,
    in_use: &ProcessReferences,
    mode: EvictionMode,
    spare: Duration,
    enough: impl Fn(u64) -> io::Result<bool>,
) -> io::Result<PruneSummary> {
    let Ok(root) = share.dir().child("pex-root") else {
        return Ok(PruneSummary::default());
    };
    let Some(barrier) = lock_gate(share, &root)? else {
        info!(
            uid = share.uid,
            "unpacked pexes kept: pexes are being started"
        );
        return Ok(PruneSummary::default());
    };
    let leases = PexLeases::read(&root)?;
    let work_span = spare.max(WORK_SPAN);
    let mut layout = PexRootLayout::read(&root, work_span)?;
    let (mut pexes, mut removal) = (0, PexRemoval::new(&root, mode));
    for place in std::mem::take(&mut layout.trash) {
        removal.remove(&place)?;
    }
    while !enough(removal.freed)? {
        let named = in_use.pids_by_name()?;
        let parts = if leases.has_unknown {
            Vec::new()
        } else {
            layout.take_unneeded(&leases.running, |hash| named.contains_key(hash))
        };
        if !parts.is_empty() {
            for place in parts {
                removal.remove(&place)?;
            }
            continue;
        }
        let used = used(&layout, &leases, |name| named.contains_key(name));
        let free = layout.pexes.iter().filter(|pex| {
            leases.is_removable(pex, barrier.idle, spare)
                && !used.contains(pex.hash.as_str())
                && !layout.unpacking.contains(&pex.hash)
        });
        let oldest = free.min_by_key(|pex| leases.last_start(pex));
        let Some(hash) = oldest.map(|pex| pex.hash.clone()) else {
            break;
        };
        if mode == EvictionMode::Remove {
            info!(pex = hash, "unpacked pex removed");
        }
        pexes += 1;
        for place in layout.take(&hash) {
            removal.remove(&place)?;
        }
    }
    // Files that all pexes share, such as the cache of interpreters, or files of an unknown layout.
    let idle = barrier.idle && layout.pexes.is_empty() && leases.are_all_free(spare);
    if idle && !enough(removal.freed)? {
        removal.remove_rest(work_span)?;
    }
    let bytes = removal.freed + leases.remove_free(&root, &layout, mode, spare);
    Ok(PruneSummary { pexes, bytes })
}

/// The hashes of pexes that run: leased, or referred to by a process that may have closed the lease. Where a process
/// maps a part that none of these needs, all pexes that need the part count.
fn used<'a>(
    layout: &'a PexRootLayout,
    leases: &PexLeases,
    is_named: impl Fn(&str) -> bool,
) -> HashSet<&'a str> {
    let named = |pex: &&UnpackedPex| {
        leases.running.contains(&pex.hash)
            || is_named(&pex.hash)
            || layout
                .short_names(&pex.hash)
                .any(|place| is_named(&place.name))
    };
    let (known, others): (Vec<_>, Vec<_>) = layout.pexes.iter().partition(named);
    let parts = |pex: &'a UnpackedPex| pex.parts.iter().flatten();
    let explained: HashSet<_> = known.iter().flat_map(|pex| parts(pex)).collect();
    let mapping = others.into_iter().filter(|pex| {
        let mut unexplained = parts(pex).filter(|part| !explained.contains(part));
        unexplained.any(|part| is_named(part))
    });
    let mapping = mapping.map(|pex| pex.hash.as_str());
    known
        .iter()
        .map(|pex| pex.hash.as_str())
        .chain(mapping)
        .collect()
}

/// Excludes starts of pexes while it exists.
struct StartBarrier {
    /// Whether no program that pexrun started is running.
    idle: bool,
    _locks: [Option<File>; 2],
}

/// Locks the gate; `None` when starts keep it locked.
fn lock_gate(share: &CacheShare, root: &Dir) -> io::Result<Option<StartBarrier>> {
    let whole = File::from(root.as_fd().try_clone_to_owned()?);
    // pexrun holds it shared across exec.
    let idle = try_lock_exclusive(&whole)?;
    let mut gate = None;
    if let Some(leases) = existing_folder(root, LEASES)? {
        let closed = wait(PRUNE_TIMEOUT, || {
            gate = share.try_lock(&leases, GATE)?;
            Ok(gate.is_some())
        });
        if !closed? {
            return Ok(None);
        }
    } else if !idle {
        // Only releases without leases have started pexes here, and one of them runs.
        return Ok(None);
    }
    Ok(Some(StartBarrier {
        idle,
        _locks: [idle.then_some(whole), gate.flatten()],
    }))
}

/// The leases of a `PEX_ROOT`.
#[derive(Debug, Default)]
struct PexLeases {
    running: HashSet<String>,
    /// Whether a pex without a known hash runs.
    has_unknown: bool,
    /// Hash -> last start; [`NO_HASH`] for pexes without one.
    started: HashMap<String, SystemTime>,
    /// Lease files that are not locked, and their hashes.
    free: Vec<(String, String)>,
}

impl PexLeases {
    fn read(root: &Dir) -> io::Result<Self> {
        let mut leases = Self::default();
        // A directory that cannot be read may contain held leases: only a missing one is free of them.
        let Some(dir) = existing_folder(root, LEASES)? else {
            return Ok(leases);
        };
        for entry in dir.entries()? {
            let (name, is_dir) = entry?;
            let Some(name) = name.to_str().filter(|name| !is_dir && *name != GATE) else {
                continue;
            };
            let Some(file) = existing_file(&dir, name)? else {
                continue;
            };
            let mut hash = String::new();
            let _ = (&file).take(64).read_to_string(&mut hash);
            let free = try_lock_exclusive(&file)?;
            match (free, is_hash(&hash)) {
                (false, false) => leases.has_unknown = true,
                (false, true) => {
                    leases.running.insert(hash.clone());
                }
                (true, _) => leases.free.push((name.to_owned(), hash.clone())),
            }
            if let Ok(found) = dir.stat(name) {
                let hash = match is_hash(&hash) {
                    true => hash,
                    false => NO_HASH.to_owned(),
                };
                let last = leases.started.entry(hash).or_insert(SystemTime::UNIX_EPOCH);
                *last = (*last).max(written(&found));
            }
        }
        Ok(leases)
    }

    /// Whether nothing runs, and nothing was started within `spare`.
    fn are_all_free(&self, spare: Duration) -> bool {
        let now = clock::now();
        let mut starts = self.started.values();
        self.running.is_empty()
            && !self.has_unknown
            && !starts.any(|start| is_within(spare, *start, now))
    }

    fn last_start(&self, pex: &UnpackedPex) -> SystemTime {
        let leased = self.started.get(&pex.hash).copied();
        leased.map_or(pex.used, |leased| leased.max(pex.used))
    }

    /// Whether no lease protects a pex, and its last start was at least `spare` ago. Without a lease file an earlier
    /// release may have started it: it is kept for [`UNLEASED_AGE`], unless nothing runs at all.
    fn is_removable(&self, pex: &UnpackedPex, idle: bool, spare: Duration) -> bool {
        let (started, now) = (self.last_start(pex), clock::now());
        let is_recent = |start: &SystemTime| is_within(spare, *start, now);
        // It may be the one without a hash in its lease.
        let recent = is_recent(&started) || self.started.get(NO_HASH).is_some_and(is_recent);
        if recent || self.has_unknown || self.running.contains(&pex.hash) {
            return false;
        }
        let age = now.duration_since(started);
        idle || self.started.contains_key(&pex.hash) || age.is_ok_and(|age| age > UNLEASED_AGE)
    }

    /// Removes the free lease files of removed pexes whose last start was at least `spare` ago; returns the bytes
    /// freed.
    fn remove_free(
        &self,
        root: &Dir,
        layout: &PexRootLayout,
        mode: EvictionMode,
        spare: Duration,
    ) -> u64 {
        let Ok(dir) = root.child(LEASES) else {
            return 0;
        };
        let (mut freed, now) = (0, clock::now());
        for (name, hash) in &self.free {
            if layout.pexes.iter().any(|pex| pex.hash == *hash) {
                continue;
            }
            let Ok(found) = dir.stat(name) else { continue };
            if is_within(spare, written(&found), now) {
                continue;
            }
            let bytes = bytes_of(&found);
            // A file that stays costs 40 bytes.
            if mode == EvictionMode::DryRun || dir.remove_file(name).is_ok() {
                freed += bytes;
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests;
