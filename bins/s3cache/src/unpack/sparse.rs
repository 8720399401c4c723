//! The maps of sparse files, in any of GNU's formats.

use std::io::Read;

use super::tar_reader::{TarReader, UnpackError};

/// The most numbers in the map of one file, two for each segment.
pub(super) const NUMBERS: usize = 1 << 18;

pub(super) const UNREADABLE: &str = "a sparse file whose map cannot be read";

/// Offset and length of data.
pub(super) type DataSegment = (u64, u64);

/// The segments of a file of `size` bytes, from pairs of offset and length. `None` when they are out of order, overlap,
/// exceed the file, or do not take up the `stored` bytes exactly.
pub(super) fn segments(numbers: &[u64], size: u64, stored: u64) -> Option<Vec<DataSegment>> {
    i64::try_from(size).ok()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    let mut segments = Vec::with_capacity(pairs.len());
    let (mut at, mut sum) = (0, 0u64);
    for [offset, length] in pairs {
        if *offset < at {
            return None;
        }
        at = offset.checked_add(*length).filter(|end| *end <= size)?;
        sum = sum.checked_add(*length)?;
        segments.push((*offset, *length));
    }
    (rest.is_empty() && sum == stored).then_some(segments)
}

/// The records of extended headers about a sparse file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PaxMap {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub blocks: Option<u64>,
    /// Offset and length in turn.
    pub numbers: Vec<u64>,
}

impl PaxMap {
    /// The map and the size of the file. Format 1.0 has the map before the data, 0.0 and 0.1 in the header.
    pub(super) fn resolve<R: Read>(
        self,
        archive: &mut TarReader<R>,
        path: &[u8],
    ) -> Result<(Vec<u64>, u64), UnpackError> {
        let numbers = match (self.major, self.minor) {
            (None, None) if self.blocks.is_some() => Some(self.numbers),
            (Some(1), Some(0)) if self.numbers.is_empty() && self.blocks.is_none() => {
                read_map(archive)?
            }
            _ => None,
        };
        numbers
            .filter(|numbers| {
                self.blocks
                    .is_none_or(|blocks| blocks == numbers.len() as u64 / 2)
            })
            .zip(self.size)
            .ok_or_else(|| UnpackError::archive(path, UNREADABLE))
    }
}

/// Reads decimal numbers, one per line, the first of which is the number of pairs, and the rest of their block.
fn read_map<R: Read>(archive: &mut TarReader<R>) -> Result<Option<Vec<u64>>, UnpackError> {
    let (mut numbers, mut count, mut digits) = (Vec::new(), None, Vec::new());
    while let Some(block) = archive.data_block()? {
        for byte in block {
            if byte.is_ascii_digit() && digits.len() < 20 {
                digits.push(byte);
                continue;
            }
            let text = std::str::from_utf8(&digits).ok().filter(|_| byte == b'\n');
            let Some(number) = text.and_then(|text| text.parse::<u64>().ok()) else {
                return Ok(None);
            };
            digits.clear();
            match count {
                None if number > NUMBERS as u64 / 2 => return Ok(None),
                None => count = Some(number as usize * 2),
                Some(_) => numbers.push(number),
            }
            if count == Some(numbers.len()) {
                return Ok(Some(numbers));
            }
        }
    }
    Ok(None)
}
