//! Impostors: a FIFO, socket, symlink or directory where the share should have a file or directory, by accident or to
//! keep gc of root from working. Opening one does not block (`hostkit::dir`), no process can have recorded or locked
//! anything in it, so it counts as missing, and gc removes it.

use std::fs::File;
use std::io;

use hostkit::dir::Dir;
use nix::sys::stat::SFlag;
use tracing::warn;

use super::share::{CacheShare, FORMAT};
use super::{pex_root, space};

/// `None` when the file does not exist.
pub(super) fn existing<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Opens a directory; `None` when it is missing or an impostor.
pub(super) fn existing_folder(parent: &Dir, name: &str) -> io::Result<Option<Dir>> {
    match parent.child(name) {
        Err(_) if is_impostor(parent, name, SFlag::S_IFDIR) => Ok(None),
        opened => existing(opened),
    }
}

/// Opens a file; `None` when it is missing or an impostor.
pub(super) fn existing_file(parent: &Dir, name: &str) -> io::Result<Option<File>> {
    match parent.open_file(name) {
        Err(_) if is_impostor(parent, name, SFlag::S_IFREG) => Ok(None),
        opened => existing(opened),
    }
}

/// Whether a file of another type has this name.
pub(super) fn is_impostor(parent: &Dir, name: &str, kind: SFlag) -> bool {
    let found = parent.stat(name);
    found.is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() != kind.bits())
}

/// The type that a name should have.
#[derive(Clone, Copy)]
enum ExpectedKind {
    File,
    Folder(fn(&str) -> ExpectedKind),
    Anything,
}

/// Removes all impostors of a share, with a warning for each.
pub(crate) fn repair(share: &CacheShare) {
    repair_folder(share.dir(), in_share);
}

fn repair_folder(dir: &Dir, expected: fn(&str) -> ExpectedKind) {
    // The work that needs an unreadable directory reports it.
    for (name, is_dir) in dir.entries().into_iter().flatten().flatten() {
        let Some(name) = name.to_str() else { continue };
        let kind = match expected(name) {
            ExpectedKind::Anything => continue,
            ExpectedKind::File => SFlag::S_IFREG,
            ExpectedKind::Folder(below) if is_dir => {
                if let Ok(child) = dir.child(name) {
                    repair_folder(&child, below);
                }
                continue;
            }
            ExpectedKind::Folder(_) => SFlag::S_IFDIR,
        };
        if !is_impostor(dir, name, kind) {
            continue;
        }
        let path = dir.path().join(name);
        let path = path.display();
        match dir.remove_all(name) {
            Ok(()) => warn!(%path, "removed an entry of the wrong type from the cache"),
            Err(error) => {
                warn!(%path, %error, "cannot remove an entry of the wrong type from the cache");
            }
        }
    }
}

fn in_share(name: &str) -> ExpectedKind {
    match name {
        "blobs" => ExpectedKind::Folder(in_blobs),
        "index" | "locks" => ExpectedKind::Folder(|name| in_format(name, in_records)),
        "partial" | "unpacking" => {
            ExpectedKind::Folder(|name| in_format(name, |_| ExpectedKind::File))
        }
        "pex-root" => ExpectedKind::Folder(in_pex_root),
        _ => ExpectedKind::Anything,
    }
}

/// Directories of other formats belong to other versions.
fn in_format(name: &str, below: fn(&str) -> ExpectedKind) -> ExpectedKind {
    match name {
        FORMAT => ExpectedKind::Folder(below),
        _ => ExpectedKind::Anything,
    }
}

fn in_records(name: &str) -> ExpectedKind {
    match name {
        space::USED_COUNTER | space::UNPACKED_COUNTER | space::SPACE_LOCK => ExpectedKind::File,
        _ if name.len() == 2 => ExpectedKind::Folder(|_| ExpectedKind::File),
        _ => ExpectedKind::Anything,
    }
}

/// The names of a blob are evicted with it, whatever their type.
fn in_blobs(name: &str) -> ExpectedKind {
    match name.len() {
        2 => ExpectedKind::Folder(|_| ExpectedKind::Folder(|_| ExpectedKind::Anything)),
        _ => ExpectedKind::Anything,
    }
}

fn in_pex_root(name: &str) -> ExpectedKind {
    match name {
        pex_root::LEASES => ExpectedKind::Folder(|_| ExpectedKind::File),
        _ => ExpectedKind::Anything,
    }
}
