//! SHA-256 digests: in hex, and of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use hostkit::hex::{encode, is_hex};
use sha2::{Digest as _, Sha256};

/// A SHA-256 in lower-case hex: 64 characters.
pub(crate) type Sha256Hex = String;

/// Parses 64 hex digits of either case.
///
/// # Errors
/// It is not a SHA-256 in hex.
pub fn parse(text: &str) -> Result<Sha256Hex, String> {
    if text.len() == 64 && is_hex(text) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is 64 hex digits".to_owned())
    }
}

/// The SHA-256 of `length` bytes of an open file, from its start.
///
/// # Errors
/// As pread(2); `UnexpectedEof` when the file is shorter.
pub(crate) fn of_file(file: &File, length: u64) -> io::Result<Sha256Hex> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < length {
        let want = usize::try_from(length - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let got = file.read_at(&mut buffer[..want], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
    }
    Ok(encode(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digest_of_file_shorter_than_length_fails() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "abc").unwrap();
        let file = File::open(temp.path().join("f")).unwrap();
        assert_eq!(of_file(&file, 3).unwrap(), A);
        assert!(of_file(&file, 4).is_err());
    }
}
