//! `--unpack-to`: a tar, tgz or gz artifact as files. Streaming, nothing escapes the directory, all or nothing.

mod extended_headers;
mod scratch;
mod sparse;
mod symlinks;
mod tar_reader;
mod tree;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::path::Path;

use hostkit::dir::Dir;
use hostkit::{Exit, Failure};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};

use crate::archive::{self as layers, ArchiveContent};
use crate::cache::CacheShare;
use crate::deadline::{Deadline, UntilDeadline};
use scratch::ScratchDirectory;
use tar_reader::{TarReader, UnpackError};
use tree::UnpackedTree;

pub(crate) use scratch::sweep;

/// The file that says which artifact a directory was unpacked from, so that a second run knows what it may replace.
const MARKER: &str = ".s3cache-unpacked";
/// A marker longer than this is not ours (bytes).
const MARKER_LIMIT: u64 = 256;
/// So often it is tried to put the new directory into its place, where other processes change that.
const ATTEMPTS: u32 = 16;

/// What an artifact is unpacked as, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A tar archive.
    Tar,
    /// A compressed one.
    Tgz,
    /// One compressed file.
    Gz,
}

/// What a file of this name is unpacked as, and verified as when it arrives.
#[must_use]
pub(crate) fn kind(name: &str) -> Option<ArchiveKind> {
    let name = name.to_ascii_lowercase();
    if name.ends_with(".tar") {
        Some(ArchiveKind::Tar)
    } else if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        Some(ArchiveKind::Tgz)
    } else if name.ends_with(".gz") {
        Some(ArchiveKind::Gz)
    } else {
        None
    }
}

/// Refuses what cannot be unpacked before anything is fetched.
///
/// # Errors
/// The name is of no kind that is unpacked (exit 2).
pub(crate) fn check(name: &str) -> Result<(), Failure> {
    match kind(name) {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Exit::USAGE,
            format!("{name} is not a .tar, .tar.gz, .tgz or .gz"),
        )
        .remedy("use --copy-to")),
    }
}

/// Unpacks an open artifact into `target`, which is missing, empty, or from an earlier run of ours. The same content
/// again changes nothing. `share` is where it is recorded which directory is being filled, for [`sweep`] to find.
///
/// # Errors
/// The archive is broken or wants to write elsewhere (exit 65), it cannot be read (exit 74), the directory cannot be made
/// (exit 73), or the deadline is over (exit 75). `target` is then as it was.
pub fn unpack(
    blob: &File,
    name: &str,
    sha256: &str,
    target: &Path,
    share: Option<&CacheShare>,
    deadline: &Deadline,
) -> Result<(), Failure> {
    let cannot = |error: io::Error| crate::copy::cannot_write(target, error);
    let parent = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let base = target.file_name().ok_or_else(|| {
        Failure::new(
            Exit::CANNOT_CREATE,
            format!("{} is not a directory's name", target.display()),
        )
        .remedy("name one")
    })?;
    let parent = Dir::open(parent).map_err(cannot)?;
    if let TargetState::UpToDate = TargetState::find(&parent, base, sha256, target)? {
        return Ok(());
    }
    let scratch = ScratchDirectory::make(&parent, base, share).map_err(cannot)?;
    fill(blob, name, sha256, &scratch.root, deadline).map_err(|error| match error {
        UnpackError::Deadline(_) => deadline.failure(),
        UnpackError::Archive { .. } => Failure::new(Exit::CORRUPT, format!("cannot unpack {name}"))
            .remedy("no files were unpacked; publish a complete archive that stays within its directory")
            .because(error),
        UnpackError::Read(error) => Failure::new(Exit::IO, format!("cannot read {name}"))
            .remedy("look at the disk of the cache")
            .because(error),
        UnpackError::Write { ref source, .. } => {
            let code = source.raw_os_error();
            let same = code.map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
            cannot(same).because(error)
        }
    })?;
    swap_in(&scratch, &parent, base, sha256, target)
}

/// What is at the place where a directory is wanted.
enum TargetState {
    /// Nothing, or an empty directory.
    Empty,
    /// This artifact, unpacked.
    UpToDate,
    /// Another artifact, unpacked by s3cache.
    Replaceable(Dir),
}

impl TargetState {
    /// # Errors
    /// Something else is there (exit 73).
    fn find(parent: &Dir, base: &OsStr, sha256: &str, target: &Path) -> Result<Self, Failure> {
        let cannot = |error: io::Error| crate::copy::cannot_write(target, error);
        let dir = match parent.child(base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Empty),
            other => other.map_err(cannot)?,
        };
        if dir.entries().map_err(cannot)?.next().is_none() {
            return Ok(Self::Empty);
        }
        // Only a file of our kind counts: an earlier s3cache let archives bring their own, as links to anywhere.
        let marker = dir.read(MARKER, MARKER_LIMIT).unwrap_or_default();
        match marker.trim_ascii() {
            marker if marker == sha256.as_bytes() && !marker.is_empty() => Ok(Self::UpToDate),
            marker if !marker.is_empty() && hostkit::hex::is_hex(marker) => {
                Ok(Self::Replaceable(dir))
            }
            _ => Err(Failure::new(
                Exit::CANNOT_CREATE,
                format!("{} is not empty", target.display()),
            )
            .remedy("name a directory that is missing, empty, or was unpacked by s3cache")),
        }
    }
}

/// Puts the new directory in place of the old one in one step, where there is an old one.
fn swap_in(
    scratch: &ScratchDirectory<'_>,
    parent: &Dir,
    base: &OsStr,
    sha256: &str,
    target: &Path,
) -> Result<(), Failure> {
    let cannot = |error: io::Error| crate::copy::cannot_write(target, error);
    let exchange = || {
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(parent, scratch.name.as_os_str(), parent, base, flags)
    };
    for _ in 0..ATTEMPTS {
        match TargetState::find(parent, base, sha256, target)? {
            // Another process was faster.
            TargetState::UpToDate => return Ok(()),
            // A plain rename takes an empty directory's place, and no other's.
            TargetState::Empty => match parent.rename(&scratch.name, parent, base) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) => {}
                other => return other.map_err(cannot),
            },
            TargetState::Replaceable(old) => match exchange() {
                Ok(()) => {
                    let old = old.metadata().map_err(cannot)?;
                    let got = parent.stat(&scratch.name).map_err(cannot)?;
                    if (got.st_dev, got.st_ino) == (old.st_dev, old.st_ino) {
                        return Ok(());
                    }
                    // Another directory had come in between, which is not to be removed.
                    exchange().map_err(|error| cannot(error.into()))?;
                }
                Err(Errno::ENOENT) => {}
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    return Err(Failure::new(
                        Exit::CANNOT_CREATE,
                        format!("{} cannot be exchanged on its filesystem", target.display()),
                    )
                    .remedy("remove it first"));
                }
                Err(error) => return Err(cannot(error.into())),
            },
        }
    }
    Err(cannot(io::ErrorKind::AlreadyExists.into()))
}

/// Unpacks into an empty directory, and marks it as unpacked from this artifact.
fn fill(
    blob: &File,
    name: &str,
    sha256: &str,
    root: &Dir,
    deadline: &Deadline,
) -> Result<(), UnpackError> {
    let mut blob = blob.try_clone()?;
    io::Seek::rewind(&mut blob)?;
    let bytes = UntilDeadline {
        bytes: blob,
        deadline,
    };
    let reader = BufReader::with_capacity(256 << 10, bytes);
    let kind = kind(name).unwrap_or(ArchiveKind::Tar);
    match layers::open(kind, reader)? {
        // A few compressed bytes may be very many.
        ArchiveContent::Gzip(bytes) if kind == ArchiveKind::Gz => {
            let mut reader = UntilDeadline { bytes, deadline };
            let stem = Path::new(name).file_stem().unwrap_or_default();
            let mut file = root
                .create_new(stem, 0o644)
                .map_err(UnpackError::write(stem.as_encoded_bytes()))?;
            copy(&mut reader, &mut file, stem)?;
        }
        ArchiveContent::Gzip(bytes) => tar(bytes, root, deadline)?,
        ArchiveContent::Plain(bytes) => tar(bytes, root, deadline)?,
        ArchiveContent::Unsupported(program) => {
            let reason = format!("compressed with {program}; only gzip is unpacked");
            return Err(UnpackError::archive(b"the archive", reason));
        }
    }
    let failed = UnpackError::write(MARKER.as_bytes());
    match root.create_new(MARKER, 0o644) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let reason = "s3cache's own marker cannot be a member";
            Err(UnpackError::archive(MARKER.as_bytes(), reason))
        }
        other => other
            .and_then(|mut marker| marker.write_all(format!("{sha256}\n").as_bytes()))
            .map_err(&failed),
    }?;
    root.set_mode(0o755).map_err(failed)
}

fn copy(from: &mut impl Read, to: &mut File, name: &OsStr) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to
                .write_all(&buffer[..read])
                .map_err(UnpackError::write(name.as_encoded_bytes()))?,
        }
    }
}

fn tar(bytes: impl Read, root: &Dir, deadline: &Deadline) -> Result<(), UnpackError> {
    let mut archive = TarReader::new(UntilDeadline { bytes, deadline });
    let mut tree = UnpackedTree::new(root, deadline);
    while let Some(member) = archive.next()? {
        tree.add(&mut archive, &member)?;
    }
    tree.finish()
}

#[cfg(test)]
mod tests;
