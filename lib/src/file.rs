//! Files named by a setting or a command line: only regular ones are opened, which never blocks, and reads are bounded.
//! For names below an open directory see `dir`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::makedev;

/// Opens a regular file, also through symlinks: opening a FIFO blocks, and opening a device may have side effects.
///
/// # Errors
/// As stat(2) and open(2); `InvalidInput` for anything that is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let special = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if !std::fs::metadata(path)?.is_file() {
        return Err(special());
    }
    // It may have been replaced since.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    file.metadata()?
        .is_file()
        .then_some(file)
        .ok_or_else(special)
}

/// The length of a regular file.
///
/// # Errors
/// As fstat(2); `InvalidData` for a file with contents and length 0, such as those of /proc.
pub fn length(file: &File) -> io::Result<u64> {
    // A file that is being written may get its first bytes between the two calls.
    for _ in 0..2 {
        let length = file.metadata()?.len();
        if length > 0 || file.read_at(&mut [0], 0)? == 0 {
            return Ok(length);
        }
    }
    let why = "it has content, but states a length of 0 as files of /proc do";
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Reads a regular file of at most `limit` bytes. `/dev/null` counts as an empty file.
///
/// # Errors
/// As [`open_regular`] and read(2); `FileTooLarge` for a longer one.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let found = std::fs::metadata(path)?;
    if found.file_type().is_char_device() && found.rdev() == makedev(1, 3) {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    open_regular(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let why = format!("longer than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bounded_regular_files_and_dev_null_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        std::fs::write(path("text"), "text").unwrap();
        std::fs::write(path("long"), "12345").unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (name, target) in [("link", "text"), ("zero", "/dev/zero"), ("to-fifo", "fifo")] {
            std::os::unix::fs::symlink(target, path(name)).unwrap();
        }
        for (name, expected) in [
            ("text", Ok(&b"text"[..])),
            ("link", Ok(b"text")),
            ("/dev/null", Ok(b"")),
            ("long", Err(io::ErrorKind::FileTooLarge)),
            ("fifo", Err(io::ErrorKind::InvalidInput)),
            ("to-fifo", Err(io::ErrorKind::InvalidInput)),
            ("socket", Err(io::ErrorKind::InvalidInput)),
            ("zero", Err(io::ErrorKind::InvalidInput)),
            (".", Err(io::ErrorKind::InvalidInput)),
            ("none", Err(io::ErrorKind::NotFound)),
        ] {
            let found = read(&path(name), 4);
            let found = found.as_deref().map_err(io::Error::kind);
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn file_that_has_bytes_never_has_length_0() {
        let temp = tempfile::tempdir().unwrap();
        for (text, expected) in [("", 0), ("text", 4)] {
            let path = temp.path().join("file");
            std::fs::write(&path, text).unwrap();
            assert_eq!(length(&open_regular(&path).unwrap()).unwrap(), expected);
        }
        let proc = open_regular(Path::new("/proc/version")).unwrap();
        assert_eq!(
            length(&proc).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
