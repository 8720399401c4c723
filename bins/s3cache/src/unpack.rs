//! `--unpack-to`: a tar, tgz or gz artifact as files. Streaming, nothing escapes the directory, all or nothing.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use hostkit::dir::{Dir, try_exclusive};
use hostkit::{Exit, Failure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Says which artifact a directory was unpacked from, so that a second run knows what it may replace.
const MARKER: &str = ".s3cache-unpacked";
/// So often another name is tried for the directory that is being filled.
const ATTEMPTS: u32 = 16;

/// What an artifact is unpacked as, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tar archive.
    Tar,
    /// A compressed one.
    Tgz,
    /// One compressed file.
    Gz,
}

/// What a file of this name is unpacked as, and verified as when it arrives.
#[must_use]
pub fn kind(name: &str) -> Option<Kind> {
    let name = name.to_ascii_lowercase();
    if name.ends_with(".tar") {
        Some(Kind::Tar)
    } else if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        Some(Kind::Tgz)
    } else if name.ends_with(".gz") {
        Some(Kind::Gz)
    } else {
        None
    }
}

/// Refuses what cannot be unpacked before anything is fetched.
///
/// # Errors
/// The name is of no kind that is unpacked (exit 2).
pub fn check(name: &str) -> Result<(), Failure> {
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
/// again changes nothing.
///
/// # Errors
/// The archive is broken or wants to write elsewhere (exit 65), or the directory cannot be made (exit 73). `target` is
/// then as it was.
pub fn unpack(blob: &File, name: &str, sha256: &str, target: &Path) -> Result<(), Failure> {
    let cannot = |error: io::Error| crate::copy::cannot_write(target, error);
    match occupied(target).map_err(cannot)? {
        Some(by) if by == sha256 => return Ok(()),
        Some(by) if by.is_empty() => {
            return Err(Failure::new(
                Exit::CANNOT_CREATE,
                format!("{} is not empty", target.display()),
            )
            .remedy("name a directory that is missing, empty, or was unpacked by s3cache"));
        }
        _ => {}
    }
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
    let prefix = format!(".{}.s3cache-", base.to_string_lossy());
    let (temp, _lock) = scratch(parent, &prefix).map_err(cannot)?;
    let unpacked = fill(blob, name, &temp).and_then(|()| {
        std::fs::write(temp.join(MARKER), format!("{sha256}\n")).map_err(cannot)?;
        swap_in(&temp, target).map_err(cannot)
    });
    // The unfinished one, or the one it replaced.
    let _ = std::fs::remove_dir_all(&temp);
    unpacked
}

/// Makes a directory beside the target, with a lock that says its maker lives, after removing those of the dead.
fn scratch(parent: &Path, prefix: &str) -> io::Result<(PathBuf, File)> {
    let parent = Dir::open(parent)?;
    let lock = |name: &OsStr| -> io::Result<Option<File>> {
        let made = File::from(parent.child(name)?.as_fd().try_clone_to_owned()?);
        Ok((try_exclusive(&made)? && parent.is_at(&made, name)?).then_some(made))
    };
    for (name, _) in parent.entries()?.flatten() {
        if name.to_string_lossy().starts_with(prefix)
            && let Ok(Some(_lock)) = lock(&name)
        {
            let _ = parent.remove_all(&name);
        }
    }
    for attempt in 0..=ATTEMPTS {
        let name = format!("{prefix}{}-{attempt}", std::process::id());
        let path = parent.path().join(&name);
        match std::fs::DirBuilder::new().mode(0o755).create(&path) {
            // Of a living process with our number, in a container that shares the directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        // Before it is locked it looks like a dead one's, and somebody may take it away.
        if let Ok(Some(lock)) = lock(OsStr::new(&name)) {
            return Ok((path, lock));
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether something is in the directory: the digest it was unpacked from, or nothing when it is not ours.
fn occupied(target: &Path) -> io::Result<Option<String>> {
    match std::fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => {
            return Err(io::Error::from_raw_os_error(Errno::ENOTDIR as i32));
        }
        Ok(_) => {}
    }
    if std::fs::read_dir(target)?.next().is_none() {
        return Ok(None);
    }
    Ok(Some(
        std::fs::read_to_string(target.join(MARKER))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default(),
    ))
}

/// Puts the new directory in place of the old one in one step, where there is an old one.
fn swap_in(temp: &Path, target: &Path) -> io::Result<()> {
    let mut attempt = 0;
    loop {
        let flags = RenameFlags::RENAME_EXCHANGE;
        let Err(error) = renameat2(AT_FDCWD, temp, AT_FDCWD, target, flags) else {
            return Ok(());
        };
        attempt += 1;
        // Nothing to exchange with, or a filesystem that cannot: a plain rename takes an empty directory's place.
        match std::fs::rename(temp, target) {
            // Somebody else has put theirs there in between.
            Err(_) if error == Errno::ENOENT && attempt < ATTEMPTS => {}
            other => return other,
        }
    }
}

fn fill(blob: &File, name: &str, into: &Path) -> Result<(), Failure> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied => {
            crate::copy::cannot_write(into, error)
        }
        _ => Failure::new(Exit::CORRUPT, format!("cannot unpack {name}"))
            .remedy("nothing was left; publish a whole one")
            .because(error),
    };
    let mut blob = blob.try_clone().map_err(broken)?;
    io::Seek::rewind(&mut blob).map_err(broken)?;
    let reader = BufReader::with_capacity(256 << 10, blob);
    match kind(name) {
        Some(Kind::Tar) => tar(reader, into).map_err(broken),
        Some(Kind::Tgz) => tar(MultiGzDecoder::new(reader), into).map_err(broken),
        Some(Kind::Gz) => {
            let stem = Path::new(name)
                .file_stem()
                .map(PathBuf::from)
                .unwrap_or_default();
            let mut file = File::create(into.join(stem)).map_err(broken)?;
            io::copy(&mut MultiGzDecoder::new(reader), &mut file).map_err(broken)?;
            Ok(())
        }
        None => check(name),
    }
}

fn tar(reader: impl Read, into: &Path) -> io::Result<()> {
    let refuse = |path: &Path, why: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {why}", path.display()),
        ))
    };
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(false);
    archive.set_overwrite(false);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if escapes(&path) {
            return refuse(&path, "the path leads out of the directory");
        }
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let link = entry
                .link_name()?
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default();
            // A symlink's target is relative to where it stands, a hard link's to the root.
            let from = if kind.is_symlink() {
                path.parent().unwrap_or(Path::new(""))
            } else {
                Path::new("")
            };
            if link.is_absolute() || !stays_within(&from.join(&link)) {
                return refuse(&path, "the link leads out of the directory");
            }
        } else if !(kind.is_file() || kind.is_dir() || kind.is_contiguous() || kind.is_gnu_sparse())
        {
            if kind.is_pax_global_extensions() {
                continue;
            }
            return refuse(&path, "neither a file, a directory nor a link");
        }
        if !entry.unpack_in(into)? {
            return refuse(&path, "the path leads out of the directory");
        }
    }
    // A tar whose end is missing reads as a shorter one; its last file then lacks bytes, which unpack_in notices.
    std::fs::set_permissions(into, std::fs::Permissions::from_mode(0o755))
}

fn escapes(path: &Path) -> bool {
    path.components().any(|part| {
        matches!(
            part,
            Component::ParentDir | Component::RootDir | Component::Prefix(_)
        )
    })
}

/// Whether a relative path with `..` in it never rises above where it began.
fn stays_within(path: &Path) -> bool {
    let mut depth = 0i64;
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth -= 1,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        file(&builder.into_inner().unwrap())
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Adds an entry whose path is written as it is, which the builder itself would refuse.
    fn raw(
        builder: &mut tar::Builder<Vec<u8>>,
        path: &str,
        kind: tar::EntryType,
        link: &str,
        body: &[u8],
    ) {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }

    #[test]
    fn a_tar_is_unpacked_and_replaced_by_another() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("app");
        let first = archive(|tar| raw(tar, "bin/run", tar::EntryType::Regular, "", b"one"));
        unpack(&first, "a.tar", "11", &target).unwrap();
        assert_eq!(std::fs::read(target.join("bin/run")).unwrap(), b"one");
        std::fs::write(target.join("kept"), "by the job").unwrap();
        unpack(&first, "a.tar", "11", &target).unwrap();
        assert!(
            target.join("kept").exists(),
            "the same content again changes nothing"
        );
        let second = archive(|tar| raw(tar, "other", tar::EntryType::Regular, "", b"two"));
        unpack(&second, "a.tar", "22", &target).unwrap();
        assert!(target.join("other").exists() && !target.join("bin").exists());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_ours_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("mine"), "x").unwrap();
        let tar = archive(|tar| raw(tar, "a", tar::EntryType::Regular, "", b"x"));
        assert_eq!(
            unpack(&tar, "a.tar", "11", temp.path()).unwrap_err().exit(),
            Exit::CANNOT_CREATE
        );
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_escapes_and_nothing_is_left() {
        use tar::EntryType::{Char, Fifo, Link, Regular, Symlink};
        for (path, kind, link) in [
            ("../evil", Regular, ""),
            ("/tmp/evil", Regular, ""),
            ("a/../../evil", Regular, ""),
            ("link", Symlink, "/etc/passwd"),
            ("link", Symlink, "../../etc/passwd"),
            ("d/link", Symlink, "../../etc"),
            ("link", Link, "../evil"),
            ("fifo", Fifo, ""),
            ("null", Char, ""),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let target = temp.path().join("app");
            let tar = archive(|tar| {
                raw(tar, "fine", Regular, "", b"x");
                raw(tar, path, kind, link, b"");
            });
            let failure = unpack(&tar, "a.tar", "11", &target).unwrap_err();
            assert_eq!(failure.exit(), Exit::CORRUPT, "{path} -> {link}");
            assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "{path}");
        }
    }

    #[test]
    fn links_within_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("app");
        let tar = archive(|tar| {
            raw(tar, "lib/one", tar::EntryType::Regular, "", b"x");
            raw(tar, "bin/two", tar::EntryType::Symlink, "../lib/one", b"");
        });
        unpack(&tar, "a.tar", "11", &target).unwrap();
        assert_eq!(std::fs::read(target.join("bin/two")).unwrap(), b"x");
    }

    #[test]
    fn gzip_alone_and_around_a_tar() {
        let gzip = |bytes: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let temp = tempfile::tempdir().unwrap();
        let packed = gzip(b"words\n");
        unpack(
            &file(&packed),
            "words.txt.gz",
            "11",
            &temp.path().join("gz"),
        )
        .unwrap();
        assert_eq!(
            std::fs::read(temp.path().join("gz/words.txt")).unwrap(),
            b"words\n"
        );
        let failure = unpack(
            &file(&packed[..packed.len() - 3]),
            "words.txt.gz",
            "11",
            &temp.path().join("no"),
        );
        assert_eq!(failure.unwrap_err().exit(), Exit::CORRUPT);
        assert!(!temp.path().join("no").exists());
        let mut builder = tar::Builder::new(Vec::new());
        raw(&mut builder, "a", tar::EntryType::Regular, "", b"x");
        unpack(
            &file(&gzip(&builder.into_inner().unwrap())),
            "a.tgz",
            "11",
            &temp.path().join("tgz"),
        )
        .unwrap();
        assert!(temp.path().join("tgz/a").exists());
    }
}
