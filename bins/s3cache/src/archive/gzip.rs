//! Reading gzip as gzip(1) does: members in a row, and whatever follows the last one is padding.

use std::io::{self, BufRead, Chain, Read};

use flate2::bufread::GzDecoder;

use super::invalid;

/// What every member begins with.
const MAGIC: &[u8] = b"\x1f\x8b";

/// The decompressed bytes of all members. flate2's own reader of several members takes zeros behind the last one for a
/// broken member; tapes, and tools that fill up blocks, leave such zeros.
pub(crate) struct GzipReader<R> {
    member: Option<GzDecoder<Chain<&'static [u8], R>>>,
    /// Stands before a member, or before padding.
    rest: Option<R>,
    /// Whether a member was found.
    began: bool,
}

impl<R: BufRead> GzipReader<R> {
    /// Reads `bytes` from their start.
    pub(crate) fn new(bytes: R) -> Self {
        Self {
            member: None,
            rest: Some(bytes),
            began: false,
        }
    }

    /// Whether a member follows; its magic number is then consumed.
    fn begins(&self, rest: &mut R) -> io::Result<bool> {
        for (at, expected) in MAGIC.iter().enumerate() {
            match rest.fill_buf()?.first() {
                Some(byte) if byte == expected => rest.consume(1),
                None if at == 1 || !self.began => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) if !self.began => {
                    return Err(invalid(
                        "it is not gzip data; did a server on the way decompress it?",
                    ));
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(member) = &mut self.member {
                let got = member.read(buffer)?;
                if got > 0 || buffer.is_empty() {
                    return Ok(got);
                }
                // The decoder ends only after it has compared checksum and length.
                let ended = self.member.take();
                self.rest = ended.map(|member| member.into_inner().into_inner().1);
            }
            let Some(mut rest) = self.rest.take() else {
                return Ok(0);
            };
            if !self.begins(&mut rest)? {
                return Ok(0);
            }
            self.began = true;
            self.member = Some(GzDecoder::new(MAGIC.chain(rest)));
        }
    }
}
