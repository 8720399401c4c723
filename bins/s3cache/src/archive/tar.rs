//! Walks over the headers of a tar: their checksums, and that every member has all its bytes. Reads v7, ustar, GNU and
//! PAX, and ends where tar(1) ends: at a block of zeros, or at the end of the file between two members.

use std::io::{self, BufRead, Read as _};

use super::header::{BLOCK, is_header, unsigned};
use super::{compression, fill, invalid, is_zero, skip};

/// The size limit of a PAX header (bytes).
const PAX_LIMIT: u64 = 1 << 20;

/// Reads a tar to its end, or to the first member that readers of tar interpret differently.
///
/// # Errors
/// A header is damaged, a member is incomplete, or reading failed.
pub(super) fn check(bytes: &mut impl BufRead) -> io::Result<()> {
    let mut at = 0;
    // The length of the next member from a PAX header.
    let mut stated = None;
    loop {
        let mut block = [0; BLOCK];
        let got = fill(bytes, &mut block)?;
        let first = at == 0;
        // No bytes at all, within gzip, are an empty archive.
        let ended = if got < BLOCK {
            !first || got == 0
        } else {
            is_zero(&block)
        };
        if ended {
            return Ok(());
        }
        if !is_header(&block) {
            // Compressed twice.
            if first && compression(&block).is_some() {
                return Ok(());
            }
            return Err(invalid(if first {
                "it is not a tar archive".to_owned()
            } else {
                format!("the header at byte {at} is damaged")
            }));
        }
        let name = name(&block);
        let size = unsigned(&block[124..136])
            .ok_or_else(|| invalid(format!("{name} has an invalid size")))?;
        let member = at;
        at += BLOCK as u64;
        let size = match block[156] {
            b'x' | b'X' | b'g' if size > PAX_LIMIT => return Ok(()),
            kind @ (b'x' | b'X' | b'g') => {
                let mut records = Vec::new();
                bytes.by_ref().take(size).read_to_end(&mut records)?;
                if records.len() as u64 != size {
                    return Err(cut_short(&name, member));
                }
                let length = pax_size(&records)
                    .map_err(|()| invalid(format!("the PAX header at byte {member} is damaged")))?;
                match (kind, length) {
                    // A length for all following members: no tool writes that, and readers differ.
                    (b'g', Some(_)) => return Ok(()),
                    (b'g', None) => {}
                    (_, length) => stated = length.or(stated),
                }
                let padding = padded(size)? - size;
                if skip(bytes, padding)? != padding {
                    return Err(cut_short(&name, member));
                }
                at += padded(size)?;
                continue;
            }
            // Long names of GNU tar; the member itself follows.
            b'K' | b'L' => size,
            kind => {
                let size = stated.take().unwrap_or(size);
                match kind {
                    // No data, whatever the size is (POSIX: allocated space, or unspecified).
                    b'2'..=b'6' => 0,
                    // Writers differ in whether the data of a hard link follows.
                    b'1' if size > 0 => return Ok(()),
                    // A directory as v7 wrote it, or a file with data: readers differ.
                    b'0' | b'7' | 0 if size > 0 && is_named_directory(&block) => return Ok(()),
                    _ => size,
                }
            }
        };
        if block[156] == b'S' {
            let mut more = block[482] != 0;
            while more {
                if fill(bytes, &mut block)? < BLOCK {
                    return Err(cut_short(&name, member));
                }
                at += BLOCK as u64;
                more = block[504] != 0;
            }
        }
        let length = padded(size)?;
        if skip(bytes, length)? != length {
            return Err(cut_short(&name, member));
        }
        at = at.saturating_add(length);
    }
}

fn cut_short(name: &str, member: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("it ends within {name}, which begins at byte {member}"),
    )
}

/// A length in whole blocks.
fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
        .ok_or_else(|| invalid("a member is longer than any file"))
}

fn name_field(block: &[u8; BLOCK]) -> &[u8] {
    let field = &block[..100];
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

fn is_named_directory(block: &[u8; BLOCK]) -> bool {
    name_field(block).ends_with(b"/")
}

/// The beginning of the name, for messages.
fn name(block: &[u8; BLOCK]) -> String {
    format!("{:?}", String::from_utf8_lossy(name_field(block)))
}

/// The `size` among PAX records, each `LENGTH KEY=VALUE
/// `; the last one counts. NUL pads them.
fn pax_size(mut records: &[u8]) -> Result<Option<u64>, ()> {
    let mut size = None;
    while !matches!(records, [] | [0, ..]) {
        let space = records.iter().position(|byte| *byte == b' ').ok_or(())?;
        let length: usize = decimal(&records[..space])?;
        let record = records.get(space + 1..length).ok_or(())?;
        let record = record.strip_suffix(b"\n").ok_or(())?;
        if let Some(value) = record.strip_prefix(b"size=") {
            size = Some(decimal(value)?);
        }
        records = &records[length..];
    }
    Ok(size)
}

fn decimal<T: std::str::FromStr>(digits: &[u8]) -> Result<T, ()> {
    let text = std::str::from_utf8(digits).map_err(|_| ())?;
    text.parse().map_err(|_| ())
}
