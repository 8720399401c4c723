//! What stands in place of a file or folder of a share and is something else: a FIFO, a socket, a symlink, a directory
//! where a file belongs. An accident made it, or the owner, to keep a share from gc of root. Opening it does not block
//! (`hostkit::dir`); no process can have recorded or locked anything in it. It counts as missing, and gc removes it.

use std::fs::File;
use std::io;

use hostkit::dir::Dir;
use nix::sys::stat::SFlag;
use tracing::warn;

use super::share::{CacheShare, FORMAT};
use super::{pex_root, space};

/// What was opened; `None` only when it is not there.
pub(super) fn existing<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Opens a folder; `None` when there is none at this name.
pub(super) fn existing_folder(parent: &Dir, name: &str) -> io::Result<Option<Dir>> {
    match parent.child(name) {
        Err(_) if is_impostor(parent, name, SFlag::S_IFDIR) => Ok(None),
        opened => existing(opened),
    }
}

/// Opens a file; `None` when there is none at this name.
pub(super) fn existing_file(parent: &Dir, name: &str) -> io::Result<Option<File>> {
    match parent.open_file(name) {
        Err(_) if is_impostor(parent, name, SFlag::S_IFREG) => Ok(None),
        opened => existing(opened),
    }
}

/// Whether something else than a thing of this kind stands at a name.
pub(super) fn is_impostor(parent: &Dir, name: &str, kind: SFlag) -> bool {
    let found = parent.stat(name);
    found.is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() != kind.bits())
}

/// What belongs at a name.
#[derive(Clone, Copy)]
enum ExpectedKind {
    File,
    Folder(fn(&str) -> ExpectedKind),
    Anything,
}

/// Removes all impostors of a share, with a warning for each. Without a share that can be read there is nothing to do.
pub(crate) fn repair(share: &CacheShare) {
    repair_folder(share.dir(), in_share);
}

fn repair_folder(dir: &Dir, expected: fn(&str) -> ExpectedKind) {
    // What cannot be read is reported by the work that needs it.
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
            Ok(()) => warn!(%path, "removed what stood in place of a part of the cache"),
            Err(error) => {
                warn!(%path, %error, "cannot remove what stands in place of a part of the cache");
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

/// Folders of another format are another version's.
fn in_format(name: &str, below: fn(&str) -> ExpectedKind) -> ExpectedKind {
    match name {
        FORMAT => ExpectedKind::Folder(below),
        _ => ExpectedKind::Anything,
    }
}

fn in_records(name: &str) -> ExpectedKind {
    match name {
        space::CACHED | space::UNPACKED | space::LOCK => ExpectedKind::File,
        _ if name.len() == 2 => ExpectedKind::Folder(|_| ExpectedKind::File),
        _ => ExpectedKind::Anything,
    }
}

/// The names of a blob are evicted with it, whatever they are.
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
