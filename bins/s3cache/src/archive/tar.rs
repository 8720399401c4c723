//! The walk over the headers of a tar: their checksums, and that every member has all its bytes. Reads v7, ustar, GNU
//! and PAX, and ends where tar(1) ends: at a block of zeros, or where the file ends between two members.

use std::io::{self, BufRead, Read as _};

use super::{invalid, skip};

const BLOCK: usize = 512;
/// PAX headers longer than this are not read (bytes).
const PAX_LIMIT: u64 = 1 << 20;
/// What the compressed archives begin with that tar(1) reads whatever their name.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];

/// Reads a tar up to its end, or up to the first member that readers of tar do not agree about.
///
/// # Errors
/// A header is damaged, a member is incomplete, or reading failed.
pub(super) fn check(bytes: &mut impl BufRead) -> io::Result<()> {
    let mut at = 0;
    // The length of the next member, when a PAX header gives it.
    let mut stated = None;
    loop {
        let mut block = [0; BLOCK];
        let got = fill(bytes, &mut block)?;
        let first = at == 0;
        if first && COMPRESSED.iter().any(|magic| block.starts_with(magic)) {
            return Ok(());
        }
        if got < BLOCK && !first || got == BLOCK && block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if !is_header(&block) {
            return Err(invalid(if first {
                "it is not a tar archive".to_owned()
            } else {
                format!("the header at byte {at} is damaged")
            }));
        }
        let name = name(&block);
        let size = number(&block[124..136])
            .ok_or_else(|| invalid(format!("{name} has a length that is not a number")))?;
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
                    // A length for every member that follows: nothing writes that, and readers differ.
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
                // Whether the bytes of a hard link follow is something that writers do not agree about.
                if kind == b'1' && size > 0 {
                    return Ok(());
                }
                size
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

/// Reads a block, or what there is of one.
fn fill(bytes: &mut impl BufRead, block: &mut [u8; BLOCK]) -> io::Result<usize> {
    let mut got = 0;
    while got < BLOCK {
        match bytes.read(&mut block[got..]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// A length in whole blocks.
fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64)
        .ok_or_else(|| invalid("a member is longer than any file"))
}

/// Whether the checksum is right: the sum of all bytes, its own field taken as spaces. Old tars added signed bytes.
fn is_header(block: &[u8; BLOCK]) -> bool {
    let field = 148..156;
    let (mut plain, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if field.contains(&at) { b' ' } else { *byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    number(&block[field]).is_some_and(|sum| {
        let sum = i64::try_from(sum).unwrap_or(-1);
        sum == plain || sum == signed
    })
}

/// A number in octal, or in base 256 as GNU tar writes large ones.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest.iter().try_fold(0u64, |number, byte| {
            number.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| matches!(byte, b' ' | 0))
        .unwrap_or(digits.len());
    digits[..end].iter().try_fold(0u64, |number, digit| {
        let digit = (*digit as char).to_digit(8)?;
        number.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// The beginning of the name, for people.
fn name(block: &[u8; BLOCK]) -> String {
    let end = block.iter().position(|byte| *byte == 0).unwrap_or(100);
    format!("{:?}", String::from_utf8_lossy(&block[..end.min(100)]))
}

/// The `size` among PAX records, each `LENGTH KEY=VALUE\n`; the last one counts.
fn pax_size(mut records: &[u8]) -> Result<Option<u64>, ()> {
    let mut size = None;
    while !records.is_empty() {
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
