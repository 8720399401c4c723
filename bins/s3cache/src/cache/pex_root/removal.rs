//! Removes directories of a `PEX_ROOT` and counts the bytes freed: pex hard-links files between directories, and a file
//! is freed with its last link.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::Dir;

use super::LEASES;
use super::layout::{TRASH, UnpackedDirectory, is_work, written};
use crate::cache::eviction::{EvictionMode, is_within};
use crate::cache::gc::{MAX_DEPTH, bytes_of, for_each_file, tree_bytes};

/// The removals of one run, or of a dry run.
pub(super) struct PexRemoval<'a> {
    root: &'a Dir,
    mode: EvictionMode,
    pub(super) freed: u64,
    /// Read at the first removal: it walks over thousands of files.
    census: Option<PexRootCensus>,
}

/// The files below the root before the first removal.
#[derive(Default)]
struct PexRootCensus {
    /// Their total length (bytes).
    bytes: u64,
    /// Inode -> links below the root that are not removed yet.
    links: HashMap<u64, u64>,
}

impl PexRootCensus {
    fn of(root: &Dir) -> io::Result<Self> {
        let mut census = Self::default();
        for_each_file(root, 0, &mut |found| {
            let links = census.links.entry(found.st_ino).or_insert(0);
            *links += 1;
            if *links == 1 {
                census.bytes += bytes_of(found);
            }
        })?;
        Ok(census)
    }
}

impl<'a> PexRemoval<'a> {
    pub(super) fn new(root: &'a Dir, mode: EvictionMode) -> Self {
        Self {
            root,
            mode,
            freed: 0,
            census: None,
        }
    }

    pub(super) fn remove(&mut self, place: &UnpackedDirectory) -> io::Result<()> {
        match self.remove_whole(place) {
            Err(error) if is_interference(&error) => Ok(()),
            other => other,
        }
    }

    fn remove_whole(&mut self, place: &UnpackedDirectory) -> io::Result<()> {
        let parent = place.parent(self.root)?;
        let freed = self.unlinked(&parent.child(&place.name)?)?;
        if self.mode == EvictionMode::Remove {
            let mut name = place.name.clone();
            if !name.ends_with(TRASH) {
                name = format!("{name}{TRASH}");
                // A kill during the removal must not leave half a pex under its name.
                parent.rename(&place.name, &parent, &name)?;
            }
            parent.remove_all(name)?;
        }
        self.freed += freed;
        Ok(())
    }

    fn census(&mut self) -> io::Result<&mut PexRootCensus> {
        match &mut self.census {
            Some(census) => Ok(census),
            census @ None => Ok(census.insert(PexRootCensus::of(self.root)?)),
        }
    }

    /// The bytes that removing a directory frees.
    fn unlinked(&mut self, dir: &Dir) -> io::Result<u64> {
        let census = self.census()?;
        let mut bytes = 0;
        for_each_file(
            dir,
            0,
            &mut |found| match census.links.get_mut(&found.st_ino) {
                Some(left) if *left > 1 => *left -= 1,
                _ => bytes += bytes_of(found),
            },
        )?;
        Ok(bytes)
    }

    /// Removes everything but the leases; nothing while a pex without a lease is unpacking to a directory that was
    /// written within `work_span`.
    pub(super) fn remove_rest(&mut self, work_span: Duration) -> io::Result<()> {
        if has_work(self.root, work_span, clock::now(), 0) {
            return Ok(());
        }
        let leases = self.root.child(LEASES).and_then(|dir| tree_bytes(&dir));
        // Walking again would count the links of a dry run twice.
        self.freed = self.census()?.bytes.saturating_sub(leases.unwrap_or(0));
        if self.mode == EvictionMode::Remove {
            for entry in self.root.entries()? {
                let (name, _) = entry?;
                if name != LEASES {
                    match self.root.remove_all(name) {
                        Err(error) if is_interference(&error) => {}
                        other => other?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether another process removed it first or is writing to it: earlier releases of pexrun take no lease. The next
/// removal finds what is left.
fn is_interference(error: &io::Error) -> bool {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    matches!(error.kind(), NotFound | DirectoryNotEmpty)
}

/// Whether a pex was unpacking to any directory within `span`, at any depth: unknown layouts have other directories.
fn has_work(dir: &Dir, span: Duration, now: SystemTime, depth: usize) -> bool {
    depth <= MAX_DEPTH
        && dir
            .entries()
            .into_iter()
            .flatten()
            .flatten()
            .any(|(name, is_dir)| {
                let work = || {
                    let found = dir.stat(&name);
                    found.is_ok_and(|found| is_within(span, written(&found), now))
                };
                is_dir
                    && (name.to_str().is_some_and(is_work) && work()
                        || dir
                            .child(&name)
                            .is_ok_and(|child| has_work(&child, span, now, depth + 1)))
            })
}
