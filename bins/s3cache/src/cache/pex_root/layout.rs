//! What pexes have unpacked below a `PEX_ROOT`, as pex 2 lays it out: pexes and venvs by the pex's hash, and parts that
//! several of them share, to which their symlinks lead.
//!
//! ```text
//! unzipped_pexes/<n>/<pex hash>/{PEX-INFO,.last-access,...}
//! venvs/<n>/<pex hash>/<contents>/{PEX-INFO,.last-access,...}
//! venvs/<n>/s/<short>/venv -> ../../<pex hash>/<contents>
//! bootstraps/<n>/<hash>, user_code/<n>/<hash>, installed_wheels/<n>/<hash>/<wheel>
//! interpreters/<n>/<hash>/<hash>/<hash>/INTERP-INFO   what is known of an interpreter, those of venvs among them
//! ```
//!
//! `<n>` is the version of each folder's format; releases before 2.20 had none.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

use hostkit::clock;
use hostkit::dir::Dir;
use nix::sys::stat::FileStat;

use super::pex_info::{self, PexInfo};
use crate::cache::eviction::is_within;
use crate::cache::repair::{existing, existing_folder};

/// Folders of what belongs to one pex.
const PEXES: [&str; 2] = ["unzipped_pexes", "venvs"];
/// Folders of what several pexes share.
const PARTS: [&str; 3] = ["bootstraps", "user_code", "installed_wheels"];
/// The name of the file that tells of an interpreter.
const INTERPRETER: &str = "INTERP-INFO";
/// One that is longer is not one (bytes).
const INTERPRETER_LIMIT: u64 = 1 << 20;
/// How far below their folder interpreters are, at most.
const INTERPRETER_DEPTH: usize = 5;
/// How the name of a directory ends that is being removed: renamed first, so that no pex finds half of it.
pub(super) const TRASH: &str = ".hostkit-trash";
/// How the name of a directory ends that a pex is unpacking to; it gets its own name when it is finished.
const WORK: &str = ".work";
/// One that was last written before this time is nobody's any more.
const WORK_AGE: Duration = Duration::from_secs(24 * 3600);

/// A directory below the root.
#[derive(Debug, Clone)]
pub(super) struct UnpackedDirectory {
    /// The names of the directories down to it.
    parents: Vec<String>,
    /// Its name.
    pub(super) name: String,
}

impl UnpackedDirectory {
    /// The names of the directories down to it, its own the last.
    fn path(&self) -> Vec<String> {
        [self.parents.as_slice(), std::slice::from_ref(&self.name)].concat()
    }

    /// A directory in it.
    fn child(&self, name: &str) -> Self {
        Self {
            parents: self.path(),
            name: name.to_owned(),
        }
    }

    /// Opens the directory that holds it.
    pub(super) fn parent(&self, root: &Dir) -> io::Result<Dir> {
        let mut dir = root.child(".")?;
        for name in &self.parents {
            dir = dir.child(name)?;
        }
        Ok(dir)
    }
}

/// An unpacked pex.
#[derive(Debug)]
pub(super) struct UnpackedPex {
    /// Its name for all that it unpacks.
    pub(super) hash: String,
    /// Its directories.
    pub(super) places: Vec<UnpackedDirectory>,
    /// When it was last started, as far as pex says.
    pub(super) used: SystemTime,
    /// The shared parts it needs; `None` when it does not say, or is not finished.
    pub(super) parts: Option<HashSet<String>>,
}

/// All that is unpacked.
#[derive(Debug, Default)]
pub(super) struct PexRootLayout {
    pub(super) pexes: Vec<UnpackedPex>,
    parts: Vec<(String, UnpackedDirectory)>,
    /// Parts that are symlinks to other parts.
    aliases: HashMap<String, HashSet<String>>,
    /// The short names of venvs, which stand in the `#!` lines of their scripts, and the pexes they belong to.
    shorts: Vec<(UnpackedDirectory, String)>,
    /// What is known of the interpreters of venvs, and the hashes in it, that of their pex among them.
    interpreters: Vec<(UnpackedDirectory, HashSet<String>)>,
    /// What an earlier run did not finish to remove.
    pub(super) trash: Vec<UnpackedDirectory>,
    /// A directory that was written within this time is still being unpacked to.
    work_span: Duration,
    /// The hashes of what is being unpacked: pexes, and parts of them.
    pub(super) unpacking: HashSet<String>,
}

/// Whether a name is a hash as pex writes them.
pub(super) fn is_hash(name: &str) -> bool {
    (40..=64).contains(&name.len()) && hostkit::hex::is_hex(name)
}

/// When something was last written, or read.
pub(super) fn written(found: &FileStat) -> SystemTime {
    let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Whether a name is that of a directory that a pex is unpacking to. pex puts a digest in place of what a file name has
/// no room for.
pub(super) fn is_work(name: &str) -> bool {
    let shortened = name.rsplit_once("...");
    name.ends_with(WORK) || shortened.is_some_and(|(_, digest)| is_hash(digest))
}

impl PexRootLayout {
    /// Reads the root. Pexes that took no lease may be unpacking themselves meanwhile: what is renamed or gone when its
    /// turn comes is left out. A directory that was written within `work_span` is still being unpacked to.
    pub(super) fn read(root: &Dir, work_span: Duration) -> io::Result<Self> {
        let mut layout = Self {
            work_span,
            ..Self::default()
        };
        for folder in PEXES.into_iter().chain(PARTS) {
            if let Some(dir) = existing_folder(root, folder)? {
                existing(layout.read_folder(&dir, vec![folder.to_owned()]))?;
            }
        }
        if let Some(dir) = existing_folder(root, "interpreters")? {
            existing(layout.read_interpreters(&dir, &["interpreters".to_owned()]))?;
        }
        Ok(layout)
    }

    /// Notes a directory that is being unpacked to, or that a killed pex or removal has left; says whether it is one.
    /// `hash` is that of the pex or part which it is for.
    fn is_unfinished(
        &mut self,
        dir: &Dir,
        place: &UnpackedDirectory,
        hash: Option<String>,
    ) -> bool {
        if place.name.ends_with(TRASH) {
            self.trash.push(place.clone());
            return true;
        }
        if !is_work(&place.name) {
            return false;
        }
        if let Ok(found) = dir.stat(&place.name) {
            let (written, now) = (written(&found), clock::now());
            if is_within(self.work_span, written, now) {
                self.unpacking.insert(hash.unwrap_or_default());
            } else if now.duration_since(written).is_ok_and(|age| age > WORK_AGE) {
                self.trash.push(place.clone());
            }
        }
        true
    }

    fn read_folder(&mut self, dir: &Dir, parents: Vec<String>) -> io::Result<()> {
        for entry in dir.entries()? {
            let (name, is_dir) = entry?;
            let Some(name) = name.to_str().filter(|_| is_dir) else {
                continue;
            };
            let place = UnpackedDirectory {
                parents: parents.clone(),
                name: name.to_owned(),
            };
            if self.is_unfinished(dir, &place, hashes(name.as_bytes()).next()) {
                continue;
            }
            let Some(child) = existing(dir.child(name))? else {
                continue;
            };
            let read = if is_hash(name) {
                match PEXES.contains(&parents[0].as_str()) {
                    true => self.read_pex(&child, place),
                    false => self.read_part(&child, place),
                }
            } else if name == "s" && parents[0] == "venvs" {
                self.read_shorts(&child, &place.path())
            } else if parents.len() == 1 && name.bytes().all(|byte| byte.is_ascii_digit()) {
                self.read_folder(&child, place.path())
            } else {
                Ok(())
            };
            existing(read)?;
        }
        Ok(())
    }

    fn read_pex(&mut self, dir: &Dir, place: UnpackedDirectory) -> io::Result<()> {
        let mut dirs = Vec::new();
        if place.parents[0] == "venvs" {
            for entry in dir.entries()? {
                let (name, is_dir) = entry?;
                let Some(name) = name.to_str().filter(|_| is_dir) else {
                    continue;
                };
                if !self.is_unfinished(dir, &place.child(name), Some(place.name.clone())) {
                    dirs.extend(existing(dir.child(name))?);
                }
            }
        } else {
            dirs.push(dir.child(".")?);
        }
        let hash = place.name.clone();
        let known = self.pexes.iter_mut().find(|pex| pex.hash == hash);
        let pex = match known {
            Some(pex) => pex,
            None => {
                self.pexes.push(UnpackedPex {
                    hash,
                    places: Vec::new(),
                    used: SystemTime::UNIX_EPOCH,
                    parts: Some(HashSet::new()),
                });
                let last = self.pexes.len() - 1;
                &mut self.pexes[last]
            }
        };
        pex.places.push(place);
        if dirs.is_empty() {
            pex.parts = None;
        }
        for dir in dirs {
            for name in [".last-access", pex_info::NAME] {
                if let Ok(found) = dir.stat(name) {
                    pex.used = pex.used.max(written(&found));
                }
            }
            let more = PexInfo::of_directory(&dir).map(PexInfo::parts);
            pex.parts = match (pex.parts.take(), more) {
                (Some(mut parts), Ok(more)) => {
                    parts.extend(more);
                    Some(parts)
                }
                _ => None,
            };
        }
        Ok(())
    }

    fn read_part(&mut self, dir: &Dir, place: UnpackedDirectory) -> io::Result<()> {
        if place.parents[0] == "installed_wheels" {
            for entry in dir.entries()? {
                let (name, is_dir) = entry?;
                if is_dir {
                    let name = name.to_string_lossy();
                    self.is_unfinished(dir, &place.child(&name), Some(place.name.clone()));
                } else if let Ok(target) = nix::fcntl::readlinkat(dir.as_fd(), name.as_os_str()) {
                    let aliases = self.aliases.entry(place.name.clone()).or_default();
                    aliases.extend(hashes(target.as_bytes()));
                }
            }
        }
        self.parts.push((place.name.clone(), place));
        Ok(())
    }

    fn read_interpreters(&mut self, dir: &Dir, path: &[String]) -> io::Result<()> {
        for entry in dir.entries()? {
            let (name, is_dir) = entry?;
            let Some(name) = name.to_str().filter(|_| is_dir) else {
                continue;
            };
            let place = UnpackedDirectory {
                parents: path.to_vec(),
                name: name.to_owned(),
            };
            if self.is_unfinished(dir, &place, None) {
                continue;
            }
            let Some(child) = existing(dir.child(name))? else {
                continue;
            };
            if let Ok(text) = child.read(INTERPRETER, INTERPRETER_LIMIT) {
                self.interpreters.push((place, hashes(&text).collect()));
            } else if path.len() < INTERPRETER_DEPTH {
                existing(self.read_interpreters(&child, &place.path()))?;
            }
        }
        Ok(())
    }

    fn read_shorts(&mut self, dir: &Dir, path: &[String]) -> io::Result<()> {
        for entry in dir.entries()? {
            let (short, is_dir) = entry?;
            let Some(short) = short.to_str().filter(|_| is_dir) else {
                continue;
            };
            let Some(child) = existing(dir.child(short))? else {
                continue;
            };
            let target = nix::fcntl::readlinkat(child.as_fd(), "venv").unwrap_or_default();
            let hash = hashes(target.as_bytes()).next();
            let place = UnpackedDirectory {
                parents: path.to_vec(),
                name: short.to_owned(),
            };
            if !self.is_unfinished(dir, &place, hash.clone()) {
                self.shorts.extend(hash.map(|hash| (place, hash)));
            }
        }
        Ok(())
    }

    /// The directories that give the venvs of a pex their short names.
    pub(super) fn shorts(&self, hash: &str) -> impl Iterator<Item = &UnpackedDirectory> {
        let mine = self.shorts.iter().filter(move |(_, of)| of == hash);
        mine.map(|(place, _)| place)
    }

    /// Takes a pex out; returns its places, those that name it first.
    pub(super) fn take(&mut self, hash: &str) -> Vec<UnpackedDirectory> {
        let mut places: Vec<UnpackedDirectory> = self.shorts(hash).cloned().collect();
        let of_venvs = self
            .interpreters
            .extract_if(.., |(_, hashes)| hashes.contains(hash));
        places.extend(of_venvs.map(|(place, _)| place));
        let of_pex = self.pexes.extract_if(.., |pex| pex.hash == hash);
        places.extend(of_pex.flat_map(|pex| pex.places));
        places
    }

    /// Takes out the parts that no pex needs. Nothing while it is not known what is needed: a pex does not say, or one
    /// of those that run (`running`) has not finished to unpack itself.
    pub(super) fn take_unneeded(
        &mut self,
        running: &HashSet<String>,
        is_used: impl Fn(&str) -> bool,
    ) -> Vec<UnpackedDirectory> {
        let mut needed = HashSet::new();
        for pex in &self.pexes {
            let Some(parts) = &pex.parts else {
                return Vec::new();
            };
            needed.extend(parts.iter().map(String::as_str));
        }
        let finished = |hash: &String| self.pexes.iter().any(|pex| pex.hash == *hash);
        if !self.unpacking.is_empty() || !running.iter().all(finished) {
            return Vec::new();
        }
        let targets: Vec<&String> = needed
            .iter()
            .filter_map(|hash| self.aliases.get(*hash))
            .flatten()
            .collect();
        needed.extend(targets.into_iter().map(String::as_str));
        let (keep, go) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition(|(hash, _)| needed.contains(hash.as_str()) || is_used(hash));
        self.parts = keep;
        go.into_iter().map(|(_, place)| place).collect()
    }
}

/// The hashes among the words of a text.
fn hashes(path: &[u8]) -> impl Iterator<Item = String> {
    let names = path.split(|byte| !byte.is_ascii_alphanumeric());
    names
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| is_hash(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests;
