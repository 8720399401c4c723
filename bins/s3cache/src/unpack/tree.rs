//! The directory that an archive is unpacked into. Every path is walked from its handle, component by component and
//! without following a link, so that an archive cannot leave it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use hostkit::dir::Dir;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, UtimensatFlags, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::sparse::DataSegment;
use super::symlinks;
use super::tar_reader::{MemberKind, TarMember, TarReader, UnpackError};
use crate::deadline::Deadline;

/// The limit of nested directories: removing them takes a handle each.
const DEPTH: usize = 128;
/// Linux's limit of a file name (bytes).
const NAME: usize = 255;
/// Memory for the modes and times of directories (bytes).
const REMEMBERED: usize = 32 << 20;
const BUFFER: usize = 128 << 10;

/// A path below the root whose directories are not symlinks. In order, a directory precedes its content.
type RealPath = Vec<OsString>;

pub(super) struct UnpackedTree<'a> {
    root: &'a Dir,
    deadline: &'a Deadline,
    /// Modes and times of directories, set last: a directory may be read-only although the archive has members in it.
    directories: BTreeMap<RealPath, (u32, Option<i64>)>,
    remembered: usize,
    buffer: Vec<u8>,
}

impl<'a> UnpackedTree<'a> {
    pub(super) fn new(root: &'a Dir, deadline: &'a Deadline) -> Self {
        Self {
            root,
            deadline,
            directories: BTreeMap::new(),
            remembered: 0,
            buffer: vec![0; BUFFER],
        }
    }

    /// Unpacks one member, replacing an earlier member of the same name.
    pub(super) fn add<R: Read>(
        &mut self,
        archive: &mut TarReader<R>,
        member: &TarMember,
    ) -> Result<(), UnpackError> {
        let path = &member.path;
        let mut parts = components(path)?;
        let Some(name) = parts.pop() else {
            return match member.kind {
                // The target directory itself keeps its own mode.
                MemberKind::Directory => Ok(()),
                _ => Err(UnpackError::archive(path, "not a file name")),
            };
        };
        let ResolvedDirectory {
            dir,
            mut real,
            links,
        } = self.walk(path, &parts, MissingDirectory::Create)?;
        real.push(name.clone());
        if links.contains(&real) {
            let reason = "it replaces a symlink that it leads through";
            return Err(UnpackError::archive(path, reason));
        }
        let failed = UnpackError::write(path);
        match &member.kind {
            MemberKind::Directory => self.directory(member, &dir, real),
            MemberKind::File { segments, size } => {
                let file = self.place(path, &dir, &real, || dir.create_new(&name, member.mode))?;
                self.write(archive, path, &file, segments, *size)?;
                set_time(&file, member.mtime).map_err(failed)
            }
            MemberKind::Symlink(target) => {
                let target = OsStr::from_bytes(target);
                if target.is_empty() {
                    return Err(UnpackError::archive(path, "a symlink without a target"));
                }
                self.place(path, &dir, &real, || dir.symlink(target, &name))?;
                let (unchanged, time) = times(member.mtime);
                utimensat(
                    &dir,
                    name.as_os_str(),
                    &unchanged,
                    &time,
                    UtimensatFlags::NoFollowSymlink,
                )
                .map_err(|error| failed(error.into()))
            }
            MemberKind::HardLink(target) => self.hard_link(path, target, &dir, &real),
        }
    }

    fn directory(
        &mut self,
        member: &TarMember,
        dir: &Dir,
        real: RealPath,
    ) -> Result<(), UnpackError> {
        let (path, name) = (&member.path, &real[real.len() - 1]);
        let failed = UnpackError::write(path);
        if !is_directory(dir, name).map_err(failed)? {
            self.place(path, dir, &real, || match dir.stat(name) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => dir.create_child(name, 0o700).map(drop),
            })?;
        }
        self.remembered += real.iter().map(|part| part.len() + 32).sum::<usize>() + 128;
        if self.remembered > REMEMBERED {
            return Err(UnpackError::archive(
                path,
                "the archive has too many directories",
            ));
        }
        self.directories.insert(real, (member.mode, member.mtime));
        Ok(())
    }

    fn hard_link(
        &mut self,
        path: &[u8],
        target: &[u8],
        dir: &Dir,
        real: &RealPath,
    ) -> Result<(), UnpackError> {
        let refuse = || {
            let reason = "a hard link to something that is not an earlier file of the archive";
            UnpackError::archive(path, reason)
        };
        let mut parts = components(target)?;
        let source = parts.pop().ok_or_else(refuse)?;
        let walked = self.walk(path, &parts, MissingDirectory::Refuse)?;
        let (from, mut from_real) = (walked.dir, walked.real);
        from_real.push(source.clone());
        let is_itself = from_real == *real;
        // Anything but a directory is a file or symlink of this run, and symlinks are checked at the end.
        match is_directory(&from, &source) {
            Ok(_) if is_itself && from.stat(&source).is_ok() => return Ok(()),
            Ok(false) if from.stat(&source).is_ok() => {}
            Err(error) => return Err(UnpackError::write(path)(error)),
            Ok(_) => return Err(refuse()),
        }
        let name = &real[real.len() - 1];
        self.place(path, dir, real, || from.link_to(&source, dir, name))
    }

    /// Creates a file or link, after removing what an earlier member has created there.
    fn place<T>(
        &mut self,
        path: &[u8],
        dir: &Dir,
        real: &RealPath,
        make: impl Fn() -> io::Result<T>,
    ) -> Result<T, UnpackError> {
        let failed = UnpackError::write(path);
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map_err(failed),
        }
        let name = &real[real.len() - 1];
        let removed = match dir.remove_file(name) {
            Err(error) if error.raw_os_error() == Some(Errno::EISDIR as i32) => {
                self.directories.remove(real);
                dir.remove_dir(name)
            }
            other => other,
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                let reason = "a directory that is not empty is already there";
                Err(UnpackError::archive(path, reason))
            }
            other => other.and_then(|()| make()).map_err(failed),
        }
    }

    fn write<R: Read>(
        &mut self,
        archive: &mut TarReader<R>,
        path: &[u8],
        mut file: &File,
        segments: &[DataSegment],
        size: u64,
    ) -> Result<(), UnpackError> {
        let failed = UnpackError::write(path);
        let mut at = 0;
        for (offset, length) in segments {
            if *length == 0 {
                // It only marks the end of the file.
                continue;
            }
            if *offset != at {
                file.seek(SeekFrom::Start(*offset)).map_err(&failed)?;
            }
            at = offset + length;
            let mut left = *length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                let read = archive.read(&mut self.buffer[..most])?;
                file.write_all(&self.buffer[..read]).map_err(&failed)?;
                left -= read as u64;
            }
        }
        if at < size {
            file.set_len(size).map_err(&failed)?;
        }
        Ok(())
    }

    /// Opens the directory that `parts` of `path` lead to. As tar does, it follows a symlink of an earlier member if
    /// that is relative and has no `..`: such a symlink leads further down.
    fn walk(
        &self,
        path: &[u8],
        parts: &[OsString],
        missing: MissingDirectory,
    ) -> Result<ResolvedDirectory, UnpackError> {
        let (refuse, failed) = (
            |reason: &'static str| Err(UnpackError::archive(path, reason)),
            UnpackError::write(path),
        );
        let mut rest: Vec<OsString> = parts.iter().rev().cloned().collect();
        let mut dir = self.root.child(".").map_err(&failed)?;
        let (mut real, mut links) = (RealPath::new(), Vec::new());
        while let Some(name) = rest.pop() {
            if real.len() >= DEPTH {
                return refuse("directories are nested too deep");
            }
            dir = match dir.child(&name) {
                Ok(child) => child,
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::ENOENT => match missing {
                        MissingDirectory::Create => {
                            dir.create_child(&name, 0o755).map_err(&failed)?
                        }
                        MissingDirectory::Refuse => {
                            return refuse("its directory is not an earlier member");
                        }
                    },
                    Errno::ELOOP | Errno::ENOTDIR => {
                        let Some(target) = dir.read_link(&name).map_err(&failed)? else {
                            return refuse("a component of its path is a file");
                        };
                        let Ok(through) = components(target.as_bytes()) else {
                            return refuse(
                                "its path has a symlink that is absolute or contains `..`",
                            );
                        };
                        if links.len() >= symlinks::HOPS {
                            return refuse("its path has too many symlinks");
                        }
                        links.push([real.as_slice(), &[name]].concat());
                        rest.extend(through.into_iter().rev());
                        continue;
                    }
                    _ => return Err(failed(error)),
                },
            };
            real.push(name);
        }
        Ok(ResolvedDirectory { dir, real, links })
    }

    /// Checks that no symlink leads out of the tree, and sets modes and times of directories.
    pub(super) fn finish(self) -> Result<(), UnpackError> {
        symlinks::check_symlinks(self.root, self.deadline)?;
        // Children first: the mode of a directory may forbid access to them.
        for (real, (mode, mtime)) in self.directories.iter().rev() {
            self.deadline.check()?;
            let path: PathBuf = real.iter().collect();
            let set = || {
                let mut dir = self.root.child(".")?;
                for name in real {
                    dir = dir.child(name)?;
                }
                set_time(&dir, *mtime)?;
                dir.set_mode(*mode)
            };
            set().map_err(UnpackError::write(path.as_os_str().as_bytes()))?;
        }
        Ok(())
    }
}

/// Whether `name` is a directory itself.
fn is_directory(dir: &Dir, name: &OsStr) -> io::Result<bool> {
    match dir.stat(name) {
        Ok(found) => Ok(found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The directory that a path leads to.
struct ResolvedDirectory {
    dir: Dir,
    /// Its path without symlinks.
    real: RealPath,
    /// The symlinks on the way.
    links: Vec<RealPath>,
}

/// What to do about a missing directory.
#[derive(Clone, Copy)]
enum MissingDirectory {
    Create,
    Refuse,
}

/// The components of a path. An absolute path, `..`, or a component that is too long is rejected.
fn components(path: &[u8]) -> Result<Vec<OsString>, UnpackError> {
    let refuse = |reason| Err(UnpackError::archive(path, reason));
    let mut names = Vec::new();
    if path.starts_with(b"/") {
        return refuse("the path leads out of the directory");
    }
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refuse("the path leads out of the directory"),
            _ if name.len() > NAME => return refuse("a component is too long"),
            _ => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    if names.len() > DEPTH {
        return refuse("directories are nested too deep");
    }
    Ok(names)
}

fn times(mtime: Option<i64>) -> (TimeSpec, TimeSpec) {
    let unchanged = TimeSpec::UTIME_OMIT;
    (
        unchanged,
        mtime.map_or(unchanged, |mtime| TimeSpec::new(mtime, 0)),
    )
}

fn set_time(file: impl AsFd, mtime: Option<i64>) -> io::Result<()> {
    let (unchanged, time) = times(mtime);
    Ok(futimens(file, &unchanged, &time)?)
}
