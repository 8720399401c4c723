//! SHA-256 as people write it: hex, and the `.sha256` files that publish it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

/// A SHA-256 in lower-case hex: 64 characters.
pub type Hex = String;

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> Hex {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
            text
        })
}

/// Accepts 64 hex digits in either case.
///
/// # Errors
/// It is something else.
pub fn parse(text: &str) -> Result<Hex, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 is 64 hex digits".to_owned())
    }
}

/// Reads a sidecar: a bare digest, or lines of sha256sum(1) of which the one for `name` counts, or the only one.
#[must_use]
pub fn parse_sidecar(text: &str, name: &str) -> Option<Hex> {
    let lines: Vec<(Hex, &str)> = text
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let (digest, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            Some((
                parse(digest).ok()?,
                rest.trim_start().trim_start_matches('*'),
            ))
        })
        .collect();
    let named = lines
        .iter()
        .find(|(_, path)| path.rsplit('/').next() == Some(name));
    match (named, lines.as_slice()) {
        (Some((digest, _)), _) | (None, [(digest, _)]) => Some(digest.clone()),
        _ => None,
    }
}

/// The SHA-256 of `length` bytes of an open file, from its start.
///
/// # Errors
/// As pread(2); `UnexpectedEof` when the file is shorter.
pub fn of_file(file: &File, length: u64) -> io::Result<Hex> {
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
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const B: &str = "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34";

    #[test]
    fn sidecars_bare_and_as_sha256sum_writes_them() {
        for text in [
            A.to_owned(),
            format!("{A}\n"),
            format!("{A}  a.pex\n"),
            format!("{} *a.pex", A.to_uppercase()),
        ] {
            assert_eq!(parse_sidecar(&text, "a.pex").as_deref(), Some(A), "{text}");
        }
        let both = format!("{B}  dist/b.pex\n{A}  dist/a.pex\n");
        assert_eq!(parse_sidecar(&both, "a.pex").as_deref(), Some(A));
        assert_eq!(parse_sidecar(&both, "c.pex"), None);
        assert_eq!(parse_sidecar("<html>not found</html>", "a.pex"), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_sidecar_holds_what_is_read_from_it_is_a_digest_in_it(text in "([0-9a-fA-F]{62,66}[ *\\t]{0,3}[a-z./]{0,6}\\n?){0,4}\\PC{0,40}") {
            if let Some(found) = parse_sidecar(&text, "a.pex") {
                proptest::prop_assert!(parse(&found).is_ok());
                proptest::prop_assert!(text.to_ascii_lowercase().contains(&found));
            }
        }
    }

    #[test]
    fn a_file_shorter_than_said_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), "abc").unwrap();
        let file = File::open(temp.path().join("f")).unwrap();
        assert_eq!(of_file(&file, 3).unwrap(), A);
        assert!(of_file(&file, 4).is_err());
    }
}
