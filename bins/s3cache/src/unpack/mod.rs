//! `--unpack-to`: unpacks a tar, tgz or gz artifact as a stream, completely or not at all, without leaving the
//! directory.

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

pub(crate) use scratch::remove_abandoned;

/// The file that records which artifact a directory was unpacked from, so that a later run knows that it may be
/// replaced.
const MARKER: &str = ".s3cache-unpacked";
/// The size limit of a marker (bytes).
const MARKER_LIMIT: u64 = 256;
/// How often moving the new directory into place is tried, while other processes change the target.
const ATTEMPTS: u32 = 16;

/// The kind of an archive, by the name of the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// A tar archive.
    Tar,
    /// A compressed tar archive.
    Tgz,
    /// One compressed file.
    Gz,
}

/// The kind of archive that a name has.
#[must_use]
pub(crate) fn archive_kind(name: &str) -> Option<ArchiveKind> {
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

/// Rejects an artifact that cannot be unpacked before it is fetched.
///
/// # Errors
/// The name has no known suffix (exit 2).
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    match archive_kind(name) {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Exit::USAGE,
            format!("{name} is not a .tar, .tar.gz, .tgz or .gz"),
        )
        .remedy("use --copy-to")),
    }
}

/// Unpacks an open artifact into `target`, which is missing, empty, or from an earlier run. The same content again
/// changes nothing. `share` records which directory is being filled, for `remove_abandoned`.
///
/// # Errors
/// The archive is broken or would write elsewhere (exit 65), it cannot be read (exit 74), the directory cannot be
/// created (exit 73), or the deadline is over (exit 75). `target` is then unchanged.
pub fn unpack(
    blob: &File,
    name: &str,
    sha256: &str,
    target: &Path,
    share: Option<&CacheShare>,
    deadline: &Deadline,
) -> Result<(), Failure> {
    let cannot = |error: io::Error| crate::copy::write_failure(target, error);
    let parent = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let base = target.file_name().ok_or_else(|| {
        Failure::new(
            Exit::CANNOT_CREATE,
            format!("{} is not the name of a directory", target.display()),
        )
        .remedy("name the directory to create")
    })?;
    let parent = Dir::open(parent).map_err(cannot)?;
    if let TargetState::AlreadyUnpacked = TargetState::find(&parent, base, sha256, target)? {
        return Ok(());
    }
    let scratch = ScratchDirectory::make(&parent, base, share).map_err(cannot)?;
    fill(blob, name, sha256, &scratch.root, deadline).map_err(|error| match error {
        UnpackError::Deadline(_) => deadline.failure(),
        UnpackError::Archive { .. } => Failure::new(Exit::CORRUPT, format!("cannot unpack {name}"))
            .remedy("publish a complete archive that stays within its directory; no files were unpacked")
            .because(error),
        UnpackError::Read(error) => Failure::new(Exit::IO, format!("cannot read {name}"))
            .remedy("check the disk of the cache")
            .because(error),
        UnpackError::Write { ref source, .. } => {
            let code = source.raw_os_error();
            let same = code.map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
            cannot(same).because(error)
        }
    })?;
    swap_in(&scratch, &parent, base, sha256, target)
}

/// The state of the target directory.
enum TargetState {
    /// Nothing, or an empty directory.
    Empty,
    /// This artifact, unpacked.
    AlreadyUnpacked,
    /// Another artifact, unpacked by s3cache.
    Replaceable(Dir),
}

impl TargetState {
    /// # Errors
    /// It has other content (exit 73).
    fn find(parent: &Dir, base: &OsStr, sha256: &str, target: &Path) -> Result<Self, Failure> {
        let cannot = |error: io::Error| crate::copy::write_failure(target, error);
        let dir = match parent.child(base) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Empty),
            other => other.map_err(cannot)?,
        };
        if dir.entries().map_err(cannot)?.next().is_none() {
            return Ok(Self::Empty);
        }
        // Only a small file of hex digits counts: with an earlier s3cache, archives could contain their own marker, as
        // a link to anywhere.
        let marker = dir.read(MARKER, MARKER_LIMIT).unwrap_or_default();
        match marker.trim_ascii() {
            marker if marker == sha256.as_bytes() && !marker.is_empty() => {
                Ok(Self::AlreadyUnpacked)
            }
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

/// Moves the new directory into place, replacing an old one atomically.
fn swap_in(
    scratch: &ScratchDirectory<'_>,
    parent: &Dir,
    base: &OsStr,
    sha256: &str,
    target: &Path,
) -> Result<(), Failure> {
    let cannot = |error: io::Error| crate::copy::write_failure(target, error);
    let exchange = || {
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(parent, scratch.name.as_os_str(), parent, base, flags)
    };
    for _ in 0..ATTEMPTS {
        match TargetState::find(parent, base, sha256, target)? {
            // Another process was faster.
            TargetState::AlreadyUnpacked => return Ok(()),
            // A plain rename replaces an empty directory only.
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
                    // Another directory was created in between, and must not be removed.
                    exchange().map_err(|error| cannot(error.into()))?;
                }
                Err(Errno::ENOENT) => {}
                Err(Errno::EINVAL | Errno::ENOSYS) => {
                    return Err(Failure::new(
                        Exit::CANNOT_CREATE,
                        format!(
                            "cannot replace {}: its filesystem cannot exchange directories",
                            target.display()
                        ),
                    )
                    .remedy("remove it first"));
                }
                Err(error) => return Err(cannot(error.into())),
            },
        }
    }
    Err(cannot(io::ErrorKind::AlreadyExists.into()))
}

/// Unpacks into an empty directory, and writes the marker.
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
    let kind = archive_kind(name).unwrap_or(ArchiveKind::Tar);
    match layers::open(kind, reader)? {
        // A few compressed bytes can expand to very many.
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
            let reason = format!("compressed with {program}: only gzip is supported");
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
