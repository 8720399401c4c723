//! Reads gzip as gzip(1) does: several members in a row, and padding after the last one.

use std::io::{self, BufRead, Chain, Read};

use flate2::bufread::GzDecoder;

use super::invalid;

/// The magic number of a member.
const MAGIC: &[u8] = b"\x1f\x8b";

/// The decompressed bytes of all members. flate2's own multi-member reader rejects zeros after the last member, which
/// tapes and block-based tools append.
pub(crate) struct GzipReader<R> {
    member: Option<GzDecoder<Chain<&'static [u8], R>>>,
    /// The input, before a member or padding.
    rest: Option<R>,
    began: bool,
}

impl<R: BufRead> GzipReader<R> {
    pub(crate) fn new(bytes: R) -> Self {
        Self {
            member: None,
            rest: Some(bytes),
            began: false,
        }
    }

    /// Whether a member follows; consumes its magic number.
    fn begins(&self, rest: &mut R) -> io::Result<bool> {
        for (at, expected) in MAGIC.iter().enumerate() {
            match rest.fill_buf()?.first() {
                Some(byte) if byte == expected => rest.consume(1),
                None if at == 1 || !self.began => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(_) if !self.began => {
                    return Err(invalid(
                        "it is not gzip data: a server or proxy may have decompressed it",
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
                // The decoder ends only after comparing checksum and length.
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
