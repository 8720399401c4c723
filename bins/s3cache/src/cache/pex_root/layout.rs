//! The layout of a `PEX_ROOT` of pex 2: pexes and venvs by the pex's hash, and shared parts, which their symlinks lead
//! to.
//!
//! ```text
//! unzipped_pexes/<n>/<pex hash>/{PEX-INFO,.last-access,...}
//! venvs/<n>/<pex hash>/<contents>/{PEX-INFO,.last-access,...}
//! venvs/<n>/s/<short>/venv -> ../../<pex hash>/<contents>
//! bootstraps/<n>/<hash>, user_code/<n>/<hash>, installed_wheels/<n>/<hash>/<wheel>
//! interpreters/<n>/<hash>/<hash>/<hash>/INTERP-INFO   properties of an interpreter, those of venvs included
//! ```
//!
//! `<n>` is the version of each directory's format; releases before 2.20 had none.

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

/// Directories of single pexes.
const PEXES: [&str; 2] = ["unzipped_pexes", "venvs"];
/// Directories of shared parts.
const PARTS: [&str; 3] = ["bootstraps", "user_code", "installed_wheels"];
/// The name of the file that describes an interpreter.
const INTERPRETER: &str = "INTERP-INFO";
/// Its size limit (bytes).
const INTERPRETER_LIMIT: u64 = 1 << 20;
/// The depth limit of the search for it.
const INTERPRETER_DEPTH: usize = 5;
/// The suffix of a directory that is being removed: it is renamed first, so that no pex finds half of it.
pub(super) const TRASH: &str = ".hostkit-trash";
/// The suffix of a directory that a pex is unpacking to, until it is complete.
const WORK: &str = ".work";
/// A directory that was last written before this is abandoned.
const WORK_AGE: Duration = Duration::from_secs(24 * 3600);

/// A directory below the `PEX_ROOT`.
#[derive(Debug, Clone)]
pub(super) struct UnpackedDirectory {
    /// The names of the directories above it.
    parents: Vec<String>,
    pub(super) name: String,
}

impl UnpackedDirectory {
    /// The names of the directories above it and its own.
    fn path(&self) -> Vec<String> {
        [self.parents.as_slice(), std::slice::from_ref(&self.name)].concat()
    }

    fn child(&self, name: &str) -> Self {
        Self {
            parents: self.path(),
            name: name.to_owned(),
        }
    }

    /// Opens the directory that contains it.
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
    /// Its hash.
    pub(super) hash: String,
    /// Its directories.
    pub(super) directories: Vec<UnpackedDirectory>,
    /// Its last start, as recorded by pex.
    pub(super) used: SystemTime,
    /// The shared parts that it needs; `None` when they are unknown, or unpacking is not complete.
    pub(super) parts: Option<HashSet<String>>,
}

/// The content of a `PEX_ROOT`.
#[derive(Debug, Default)]
pub(super) struct PexRootLayout {
    pub(super) pexes: Vec<UnpackedPex>,
    parts: Vec<(String, UnpackedDirectory)>,
    /// Parts that are symlinks to other parts.
    aliases: HashMap<String, HashSet<String>>,
    /// The short names of venvs, which are used in the `#!` lines of their scripts, and the hashes of their pexes.
    short_names: Vec<(UnpackedDirectory, String)>,
    /// Descriptions of interpreters of venvs, and the hashes in them, including that of their pex.
    interpreters: Vec<(UnpackedDirectory, HashSet<String>)>,
    /// Directories whose removal was interrupted.
    pub(super) trash: Vec<UnpackedDirectory>,
    /// A directory that was written within this time is still being unpacked to.
    work_span: Duration,
    /// The hashes of pexes and parts that are being unpacked.
    pub(super) unpacking: HashSet<String>,
}

/// Whether a name is a hash of pex.
pub(super) fn is_hash(name: &str) -> bool {
    (40..=64).contains(&name.len()) && hostkit::hex::is_hex(name)
}

/// When a file was last written.
pub(super) fn written(found: &FileStat) -> SystemTime {
    let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Whether a pex is unpacking to a directory of this name. pex shortens long names by a digest.
pub(super) fn is_work(name: &str) -> bool {
    let shortened = name.rsplit_once("...");
    name.ends_with(WORK) || shortened.is_some_and(|(_, digest)| is_hash(digest))
}

impl PexRootLayout {
    /// Reads the root. Pexes without a lease may be unpacking meanwhile: what is renamed or removed during the read is
    /// left out. A directory that was written within `work_span` is still being unpacked to.
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

    /// Notes a directory that is being unpacked to, or was left by a killed pex or removal, and returns whether it is
    /// one. `hash` is that of its pex or part.
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
                    directories: Vec::new(),
                    used: SystemTime::UNIX_EPOCH,
                    parts: Some(HashSet::new()),
                });
                let last = self.pexes.len() - 1;
                &mut self.pexes[last]
            }
        };
        pex.directories.push(place);
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
                self.short_names.extend(hash.map(|hash| (place, hash)));
            }
        }
        Ok(())
    }

    /// The directories with the short names of a pex's venvs.
    pub(super) fn short_names(&self, hash: &str) -> impl Iterator<Item = &UnpackedDirectory> {
        let mine = self.short_names.iter().filter(move |(_, of)| of == hash);
        mine.map(|(place, _)| place)
    }

    /// Takes out a pex; returns its directories, those that refer to it first.
    pub(super) fn take(&mut self, hash: &str) -> Vec<UnpackedDirectory> {
        let mut directories: Vec<UnpackedDirectory> = self.short_names(hash).cloned().collect();
        let of_venvs = self
            .interpreters
            .extract_if(.., |(_, hashes)| hashes.contains(hash));
        directories.extend(of_venvs.map(|(place, _)| place));
        let of_pex = self.pexes.extract_if(.., |pex| pex.hash == hash);
        directories.extend(of_pex.flat_map(|pex| pex.directories));
        directories
    }

    /// Takes out the parts that no pex needs. None while needs are unknown: a pex does not list its parts, or one of
    /// the `running` pexes is still unpacking.
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

/// The hashes in a text.
fn hashes(path: &[u8]) -> impl Iterator<Item = String> {
    let names = path.split(|byte| !byte.is_ascii_alphanumeric());
    names
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| is_hash(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests;
