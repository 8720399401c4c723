//! Whether a tar or gzip artifact is whole, decided while its bytes stream by: checksums and lengths in bounded memory.
//! Nothing is unpacked. What tar(1) and gzip(1) read without an error passes; what only they could judge passes too.

pub mod gzip;
mod tar;

use std::io::{self, BufRead, BufReader};

use crate::unpack::Kind;
use gzip::GzipReader;

/// Bytes decompressed at once.
const BUFFER: usize = 64 << 10;

/// Reads an archive to the end of what can be checked.
///
/// # Errors
/// It is damaged or not of this kind, or reading failed.
pub fn check(kind: Kind, mut bytes: impl BufRead) -> io::Result<()> {
    match kind {
        Kind::Tar => tar::check(&mut bytes),
        Kind::Tgz | Kind::Gz => {
            let mut bytes = BufReader::with_capacity(BUFFER, GzipReader::new(bytes));
            if kind == Kind::Tgz {
                tar::check(&mut bytes)?;
            }
            // The checksum stands at the end.
            skip(&mut bytes, u64::MAX).map(|_| ())
        }
    }
}

/// Reads past `length` bytes; returns how many of them there were.
fn skip(bytes: &mut impl BufRead, length: u64) -> io::Result<u64> {
    let mut left = length;
    while left > 0 {
        let piece = match bytes.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?.len(),
        };
        if piece == 0 {
            break;
        }
        let piece = piece.min(usize::try_from(left).unwrap_or(usize::MAX));
        bytes.consume(piece);
        left -= piece as u64;
    }
    Ok(length - left)
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests;
