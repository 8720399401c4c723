//! Unpacked pexes (`PEX_ROOT`): the lease of each one that runs, and removing the least recently used ones that do not.
//!
//! ```text
//! pex-root/.leases/<sha256 of the build>   the pex's hash; a shared flock while it runs, its time is the last start
//! pex-root/.leases/gate                    shared while a lease is taken, exclusive while unpacked pexes are removed
//! ```
//!
//! A removal excludes starts by the gate, for the time it takes: a pex that starts finds either all that it has unpacked
//! or nothing, and unpacks itself again. pexes of earlier releases of pexrun hold a shared lock on the root alone; their
//! age decides, and what running processes name.

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

/// The folder of leases.
pub(super) const LEASES: &str = ".leases";
/// The lock that keeps starts and removals apart.
const GATE: &str = "gate";
/// What the lease of a pex holds that has no hash.
const NO_HASH: &str = "-";
/// The longest that a start waits for a removal.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a removal waits for starts, each of which takes less than a millisecond.
const PRUNE_PATIENCE: Duration = Duration::from_secs(1);
/// How often the gate is tried until then.
const POLL: Duration = Duration::from_millis(5);
/// A pex that no lease tells of is left alone for so long after its last start.
const UNLEASED_AGE: Duration = Duration::from_secs(24 * 3600);
/// A directory to which a pex that took no lease is unpacking is left alone for so long after it was last written, even
/// when nothing else is spared.
const WORK_SPAN: Duration = Duration::from_secs(5 * 60);

/// Takes the lease of a build that is about to run: what it unpacks, or has unpacked before, stays for as long as the
/// files returned are open. `sha256` is the digest of the build, `file` the build itself.
///
/// # Errors
/// As open(2) and flock(2); `TimedOut` when unpacked pexes are being removed for longer than a start waits.
pub fn lease(root: &Dir, sha256: &str, file: &File) -> io::Result<[File; 2]> {
    // gc of releases that know no leases removes all or, while this is held, nothing.
    let whole = File::from(root.as_fd().try_clone_to_owned()?);
    let leases = root.create_child(LEASES, 0o700)?;
    let gate = leases.open_or_create(GATE, 0o600)?;
    if !wait(START_PATIENCE, || try_lock_shared(&whole))?
        || !wait(START_PATIENCE, || try_lock_shared(&gate))?
    {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "unpacked pexes are being removed, and that does not end",
        ));
    }
    let mut lease = leases.open_or_create(sha256, 0o600)?;
    // Exclusively it is taken only by those who hold the gate.
    try_lock_shared(&lease)?;
    if lease.metadata()?.len() == 0 {
        // Where there is none that is written down too, so that no later start reads the whole zip directory. Nothing at
        // all is removed while such a lease is held.
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
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// What was removed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PruneSummary {
    /// Unpacked pexes.
    pub pexes: u64,
    /// Bytes, shared parts included, and a file with several links once.
    pub bytes: u64,
}

/// Removes unpacked pexes of a share that do not run and were last started at least `spare` ago, the least recently
/// started first, and the parts that no other pex needs, until `enough` says so of the bytes freed. `spare` is for
/// programs that gave up their lease and are named by nothing that processes show.
///
/// # Errors
/// As unlinkat(2), and what `enough` returns.
pub(crate) fn prune(
    share: &CacheShare,
    in_use: &ProcessReferences,
    act: EvictionMode,
    spare: Duration,
    enough: impl Fn(u64) -> io::Result<bool>,
) -> io::Result<PruneSummary> {
    let Ok(root) = share.dir().child("pex-root") else {
        return Ok(PruneSummary::default());
    };
    let Some(closed) = close(share, &root)? else {
        info!(
            uid = share.uid,
            "pexes are being started: unpacked pexes are left alone"
        );
        return Ok(PruneSummary::default());
    };
    let leases = PexLeases::read(&root)?;
    let work_span = spare.max(WORK_SPAN);
    let mut layout = PexRootLayout::read(&root, work_span)?;
    let (mut pexes, mut removal) = (0, PexRemoval::new(&root, act));
    for place in std::mem::take(&mut layout.trash) {
        removal.remove(&place)?;
    }
    while !enough(removal.freed)? {
        let named = in_use.named()?;
        let parts = if leases.unknown {
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
            leases.are_free(pex, closed.idle, spare)
                && !used.contains(pex.hash.as_str())
                && !layout.unpacking.contains(&pex.hash)
        });
        let oldest = free.min_by_key(|pex| leases.last_start(pex));
        let Some(hash) = oldest.map(|pex| pex.hash.clone()) else {
            break;
        };
        if act == EvictionMode::Remove {
            info!(pex = hash, "unpacked pex removed");
        }
        pexes += 1;
        for place in layout.take(&hash) {
            removal.remove(&place)?;
        }
    }
    // What pexes share besides, such as what they know of interpreters, or what another layout has.
    let idle = closed.idle && layout.pexes.is_empty() && leases.are_all_free(spare);
    if idle && !enough(removal.freed)? {
        removal.remove_rest(work_span)?;
    }
    let bytes = removal.freed + leases.forget(&root, &layout, act, spare);
    Ok(PruneSummary { pexes, bytes })
}

/// The pexes that run: leased, named by a process although it may have closed the lease, or, where a process has a part
/// mapped that none of these needs, all that need it.
fn used<'a>(
    layout: &'a PexRootLayout,
    leases: &PexLeases,
    is_named: impl Fn(&str) -> bool,
) -> HashSet<&'a str> {
    let named = |pex: &&UnpackedPex| {
        leases.running.contains(&pex.hash)
            || is_named(&pex.hash)
            || layout.shorts(&pex.hash).any(|place| is_named(&place.name))
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

/// No pex is started while this exists.
struct StartBarrier {
    /// Whether no program that pexrun started is running.
    idle: bool,
    _locks: [Option<File>; 2],
}

/// Closes the gate; `None` when pexes are being started all the time.
fn close(share: &CacheShare, root: &Dir) -> io::Result<Option<StartBarrier>> {
    let whole = File::from(root.as_fd().try_clone_to_owned()?);
    // pexrun holds it shared across exec.
    let idle = try_lock_exclusive(&whole)?;
    let mut gate = None;
    if let Some(leases) = existing_folder(root, LEASES)? {
        let closed = wait(PRUNE_PATIENCE, || {
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

/// The leases of a root.
#[derive(Debug, Default)]
struct PexLeases {
    /// The hashes of pexes that run.
    running: HashSet<String>,
    /// Whether something runs of which the hash is not known.
    unknown: bool,
    /// The last start of each pex, by its hash, and of those without one.
    started: HashMap<String, SystemTime>,
    /// The files of leases that are free, and their hashes.
    free: Vec<(String, String)>,
}

impl PexLeases {
    fn read(root: &Dir) -> io::Result<Self> {
        let mut leases = Self::default();
        // What cannot be read may be held: only what is not there is free.
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
                (false, false) => leases.unknown = true,
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
            && !self.unknown
            && !starts.any(|start| is_within(spare, *start, now))
    }

    fn last_start(&self, pex: &UnpackedPex) -> SystemTime {
        let leased = self.started.get(&pex.hash).copied();
        leased.map_or(pex.used, |leased| leased.max(pex.used))
    }

    /// Whether no lease protects a pex, and its last start was at least `spare` ago. Where no lease tells of it, an
    /// earlier release may have started it: it is left alone for a while, unless nothing runs at all.
    fn are_free(&self, pex: &UnpackedPex, idle: bool, spare: Duration) -> bool {
        let (started, now) = (self.last_start(pex), clock::now());
        let is_recent = |start: &SystemTime| is_within(spare, *start, now);
        // It may be the one that has no hash in its lease.
        let recent = is_recent(&started) || self.started.get(NO_HASH).is_some_and(is_recent);
        if recent || self.unknown || self.running.contains(&pex.hash) {
            return false;
        }
        let age = now.duration_since(started);
        idle || self.started.contains_key(&pex.hash) || age.is_ok_and(|age| age > UNLEASED_AGE)
    }

    /// Removes the files of free leases on pexes that are gone, but not before their last start was `spare` ago; returns
    /// the bytes freed.
    fn forget(
        &self,
        root: &Dir,
        layout: &PexRootLayout,
        act: EvictionMode,
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
            // Left behind it costs a file of 40 bytes.
            if act == EvictionMode::DryRun || dir.remove_file(name).is_ok() {
                freed += bytes;
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests;
