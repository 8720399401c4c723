//! Checks whether a tar or gzip artifact is complete while its bytes stream by: checksums and lengths, in bounded
//! memory, without unpacking. What tar(1) and gzip(1) read without an error passes, and so does what only they could
//! check.

pub(crate) mod gzip;
pub(crate) mod header;
mod tar;

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use crate::unpack::ArchiveKind;
use gzip::GzipReader;
use header::{BLOCK, is_header};

const BUFFER: usize = 64 << 10;

/// The magic numbers of compressed archives, as tar(1) recognizes them.
const COMPRESSED: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", GZIP),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x9d", "compress"),
    (b"LZIP", "lzip"),
    (b"\x89LZO", "lzop"),
    (b"\xffLZMA", "lzma"),
    (b"\x5d\0\0", "lzma"),
];
const GZIP: &str = "gzip";

/// The content of an artifact, detected by its bytes as tar(1) does, not by its name.
pub(crate) enum ArchiveContent<R> {
    Plain(Chain<Cursor<Vec<u8>>, R>),
    Gzip(Box<GzipReader<Chain<Cursor<Vec<u8>>, R>>>),
    /// Compressed with a program that is not supported.
    Unsupported(&'static str),
}

/// Detects the compression of an artifact.
///
/// # Errors
/// Reading failed, or it should be a tar and is neither that nor compressed.
pub(crate) fn open<R: BufRead>(kind: ArchiveKind, mut bytes: R) -> io::Result<ArchiveContent<R>> {
    let mut block = [0; BLOCK];
    let got = fill(&mut bytes, &mut block)?;
    let whole = Cursor::new(block[..got].to_vec()).chain(bytes);
    let is_tar = got == BLOCK && (is_header(&block) || kind == ArchiveKind::Tar && is_zero(&block));
    Ok(match compression(&block) {
        _ if kind == ArchiveKind::Gz => ArchiveContent::Gzip(Box::new(GzipReader::new(whole))),
        _ if is_tar => ArchiveContent::Plain(whole),
        Some(GZIP) => ArchiveContent::Gzip(Box::new(GzipReader::new(whole))),
        Some(program) => ArchiveContent::Unsupported(program),
        // Its reader reports the error.
        None if kind == ArchiveKind::Tgz => ArchiveContent::Gzip(Box::new(GzipReader::new(whole))),
        None => return Err(invalid("it is not a tar archive")),
    })
}

/// The program that writes the magic number of a block.
fn compression(block: &[u8]) -> Option<&'static str> {
    let mut known = COMPRESSED.iter();
    known.find_map(|(magic, program)| block.starts_with(magic).then_some(*program))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Reads an archive to the end of what can be checked.
///
/// # Errors
/// It is damaged or not of this kind, or reading failed.
pub fn check(kind: ArchiveKind, bytes: impl BufRead) -> io::Result<()> {
    match open(kind, bytes)? {
        ArchiveContent::Plain(mut bytes) => tar::check(&mut bytes),
        ArchiveContent::Gzip(bytes) => {
            let mut bytes = BufReader::with_capacity(BUFFER, bytes);
            if kind != ArchiveKind::Gz {
                tar::check(&mut bytes)?;
            }
            // The checksum is at the end.
            skip(&mut bytes, u64::MAX).map(|_| ())
        }
        ArchiveContent::Unsupported(_) => Ok(()),
    }
}

/// Fills a block, or reads the rest when there is less.
pub(crate) fn fill(bytes: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < block.len() {
        match bytes.read(&mut block[got..]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// Skips up to `length` bytes; returns how many were skipped.
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
