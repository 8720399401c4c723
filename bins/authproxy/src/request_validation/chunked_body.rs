//! A chunked body (RFC 9112 7.1), piece by piece as it arrives.
//!
//! Owns the grammar of size lines, chunk ends and trailers, stricter than RFC 9112: no white space, and of extensions
//! only `;name=value` without quotes. hyper reads the chunks once more behind this and writes new ones for the server,
//! which never sees an extension.

use super::byte_class;
use super::header_field::HeaderField;
use super::request_head::LINES;
use crate::request_error::RequestError;

/// Digits of a size: 63 bits and zeros before it.
const DIGITS: usize = 16;
/// Bytes of extensions in one size line.
const EXTENSION: usize = 256;
/// Bytes of extensions in one body. hyper gives up a body at 16 KiB.
const EXTENSIONS: usize = 8 * 1024;
/// Bytes of trailers, at most. hyper gives up a body at 16 KiB.
const TRAILERS: usize = 8 * 1024;

/// How far a chunked body has been looked at.
pub(super) struct ChunkedScanner {
    next: ChunkStep,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Lines of trailers so far.
    lines: usize,
    /// Bytes that trailers may still have.
    room: usize,
}

enum ChunkStep {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

/// A piece of a body that is sound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValidPiece {
    /// Its length; 0 when more bytes are needed.
    pub(super) length: usize,
    /// The body ends with it.
    pub(super) last: bool,
}

impl ValidPiece {
    const NONE: Self = Self::of(0);

    const fn of(length: usize) -> Self {
        Self {
            length,
            last: false,
        }
    }
}

impl ChunkedScanner {
    /// A body that begins; its trailers have at most so many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            next: ChunkStep::Size,
            extensions: 0,
            lines: 0,
            room: limit.min(TRAILERS),
        }
    }

    /// The next piece: a whole line, or as much as there is of a chunk's data. The bytes begin where the piece before
    /// ended.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        match self.next {
            ChunkStep::Size => self.size(bytes),
            ChunkStep::Data(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.next = match left - length as u64 {
                    0 => ChunkStep::DataEnd,
                    left => ChunkStep::Data(left),
                };
                Ok(ValidPiece::of(length))
            }
            ChunkStep::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.next = ChunkStep::Size;
                    Ok(ValidPiece::of(2))
                }
                [] | [b'\r'] => Ok(ValidPiece::NONE),
                _ => Err(RequestError::InvalidRequest(
                    "a chunk does not end where its size says",
                )),
            },
            ChunkStep::Trailer => self.trailer(bytes),
        }
    }

    fn size(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        const LINE: usize = DIGITS + EXTENSION + 2;
        let within = &bytes[..bytes.len().min(LINE)];
        let Some(end) = line_end(within)? else {
            return match within.len() {
                LINE => Err(RequestError::InvalidRequest(
                    "the line of a chunk's size is too long",
                )),
                _ => Ok(ValidPiece::NONE),
            };
        };
        let line = &within[..end];
        let digits = line
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let (size, extension) = line.split_at(digits);
        let size = size_of(size).ok_or(RequestError::InvalidRequest(
            "a chunk's size is not a hexadecimal number",
        ))?;
        self.extensions += extension.len();
        if !is_extension(extension) || self.extensions > EXTENSIONS {
            return Err(RequestError::InvalidRequest(
                "a chunk has an extension other than ;name=value, or a long one",
            ));
        }
        self.next = match size {
            0 => ChunkStep::Trailer,
            size => ChunkStep::Data(size),
        };
        Ok(ValidPiece::of(end + 2))
    }

    fn trailer(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        let within = &bytes[..bytes.len().min(self.room)];
        let Some(end) = line_end(within)? else {
            return match within.len() < bytes.len() {
                true => Err(RequestError::HeadTooLarge),
                false => Ok(ValidPiece::NONE),
            };
        };
        if end > 0 {
            let field = HeaderField::parse(&within[..end]).map_err(RequestError::InvalidRequest)?;
            if !field.is_trailer() {
                return Err(RequestError::InvalidRequest(
                    "a trailer has a name that only a header may have",
                ));
            }
            if self.lines == LINES {
                return Err(RequestError::HeadTooLarge);
            }
        }
        self.lines += 1;
        self.room -= end + 2;
        Ok(ValidPiece {
            length: end + 2,
            last: end == 0,
        })
    }
}

fn line_end(bytes: &[u8]) -> Result<Option<usize>, RequestError> {
    byte_class::line_end(bytes, &mut 0).map_err(RequestError::InvalidRequest)
}

fn size_of(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.len() <= DIGITS)?;
    i64::from_str_radix(digits, 16).ok().map(i64::unsigned_abs)
}

fn is_extension(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [b';', rest @ ..] => rest
            .split(|byte| matches!(byte, b';' | b'='))
            .all(|part| byte_class::token(part) == part.len()),
        _ => false,
    }
}
