//! The framing of a chunked body (RFC 9112 7.1), as it arrives.
//!
//! Stricter than RFC 9112: no white space, and only extensions of the form `;name=value` without quotes. `upstream`
//! writes new chunks, without extensions.

use super::byte_class;
use super::header_field::HeaderField;
use super::request_head::MAX_LINES;
use crate::request_error::RequestError;

/// Digits of a size: 63 bits, with leading zeros.
const MAX_SIZE_DIGITS: usize = 16;
/// Bytes of extensions in one size line.
const MAX_EXTENSION: usize = 256;
/// Bytes of extensions in one body; hyper fails at 16 KiB.
const MAX_EXTENSIONS: usize = 8 * 1024;
/// Bytes of trailers; hyper fails at 16 KiB.
const MAX_TRAILERS: usize = 8 * 1024;

/// The state of scanning a chunked body.
pub(super) struct ChunkedScanner {
    step: ChunkStep,
    /// Bytes of extensions so far.
    extensions: usize,
    trailer_lines: usize,
    /// Bytes of trailers that are still allowed.
    trailer_bytes_left: usize,
}

enum ChunkStep {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

/// A valid piece of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValidPiece {
    /// 0 when more bytes are needed.
    pub(super) length: usize,
    /// Whether the body ends with it.
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
    pub(super) fn new(max_trailers: usize) -> Self {
        Self {
            step: ChunkStep::Size,
            extensions: 0,
            trailer_lines: 0,
            trailer_bytes_left: max_trailers.min(MAX_TRAILERS),
        }
    }

    /// The next piece: a whole line, or data of a chunk. The bytes begin where the piece before ended.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        match self.step {
            ChunkStep::Size => self.scan_size(bytes),
            ChunkStep::Data(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.step = match left - length as u64 {
                    0 => ChunkStep::DataEnd,
                    left => ChunkStep::Data(left),
                };
                Ok(ValidPiece::of(length))
            }
            ChunkStep::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.step = ChunkStep::Size;
                    Ok(ValidPiece::of(2))
                }
                [] | [b'\r'] => Ok(ValidPiece::NONE),
                _ => Err(RequestError::InvalidRequest(
                    "a chunk does not end where its size says",
                )),
            },
            ChunkStep::Trailer => self.scan_trailer(bytes),
        }
    }

    fn scan_size(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        const LINE: usize = MAX_SIZE_DIGITS + MAX_EXTENSION + 2;
        let within = &bytes[..bytes.len().min(LINE)];
        let Some(end) = find_line_end(within)? else {
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
        let size = parse_size(size).ok_or(RequestError::InvalidRequest(
            "a chunk's size is not a hexadecimal number",
        ))?;
        self.extensions += extension.len();
        if !is_extension(extension) || self.extensions > MAX_EXTENSIONS {
            return Err(RequestError::InvalidRequest(
                "a chunk has an extension other than ;name=value, or a long one",
            ));
        }
        self.step = match size {
            0 => ChunkStep::Trailer,
            size => ChunkStep::Data(size),
        };
        Ok(ValidPiece::of(end + 2))
    }

    fn scan_trailer(&mut self, bytes: &[u8]) -> Result<ValidPiece, RequestError> {
        let within = &bytes[..bytes.len().min(self.trailer_bytes_left)];
        let Some(end) = find_line_end(within)? else {
            return match within.len() < bytes.len() {
                true => Err(RequestError::HeadTooLarge),
                false => Ok(ValidPiece::NONE),
            };
        };
        if end > 0 {
            let field = HeaderField::parse(&within[..end]).map_err(RequestError::InvalidRequest)?;
            if !field.is_allowed_trailer() {
                return Err(RequestError::InvalidRequest(
                    "a trailer has a name that only a header may have",
                ));
            }
            if self.trailer_lines == MAX_LINES {
                return Err(RequestError::HeadTooLarge);
            }
        }
        self.trailer_lines += 1;
        self.trailer_bytes_left -= end + 2;
        Ok(ValidPiece {
            length: end + 2,
            last: end == 0,
        })
    }
}

fn find_line_end(bytes: &[u8]) -> Result<Option<usize>, RequestError> {
    byte_class::find_line_end(bytes, &mut 0).map_err(RequestError::InvalidRequest)
}

fn parse_size(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.len() <= MAX_SIZE_DIGITS)?;
    i64::from_str_radix(digits, 16).ok().map(i64::unsigned_abs)
}

fn is_extension(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [b';', rest @ ..] => rest
            .split(|byte| matches!(byte, b';' | b'='))
            .all(|part| byte_class::token_length(part) == part.len()),
        _ => false,
    }
}
