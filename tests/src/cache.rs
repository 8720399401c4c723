//! Prepares the cache directory for tests.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Moves the last use of every blob below a `blobs` directory into the past, because recently used blobs are protected.
/// Their order is kept.
pub fn age_blobs(blobs: &Path, by: Duration) {
    let directories = |path: &Path| {
        let entries = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    for shelf in directories(blobs) {
        for folder in directories(&shelf) {
            for entry in fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    let accessed = entry.metadata().unwrap().accessed().unwrap() - by;
                    let file = File::open(entry.path()).unwrap();
                    file.set_times(FileTimes::new().set_accessed(accessed))
                        .unwrap();
                }
            }
            let modified = folder.metadata().unwrap().modified().unwrap() - by;
            File::open(&folder).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// Moves the last start of every unpacked pex below a `PEX_ROOT` into the past, because recently started ones are
/// protected. Their order is kept.
pub fn age_unpacked(root: &Path, by: Duration) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            age_unpacked(&path, by);
        } else if root.ends_with(".leases")
            || path.ends_with(".last-access")
            || path.ends_with("PEX-INFO")
        {
            let modified = entry.metadata().unwrap().modified().unwrap() - by;
            File::open(&path).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// Creates below a `PEX_ROOT` what a pex of this hash would unpack, with a lease that no process holds. Returns the
/// directory.
pub fn unpack_pex(root: &Path, hash: &str, bytes: usize) -> PathBuf {
    let directory = root.join("unzipped_pexes/4").join(hash);
    fs::create_dir_all(&directory).unwrap();
    for (name, content) in [
        ("PEX-INFO", &b"{}"[..]),
        (".last-access", b""),
        ("file", &vec![7; bytes]),
    ] {
        fs::write(directory.join(name), content).unwrap();
    }
    fs::create_dir_all(root.join(".leases")).unwrap();
    fs::write(root.join(".leases").join(hash), hash).unwrap();
    directory
}
