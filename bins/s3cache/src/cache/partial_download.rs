//! Partial downloads: a data file and a record of its verified parts, so that a killed fetch is continued.
//!
//! The record is a header line of JSON, then `p <part> <crc>` for every finished part and, now and then, `b <bytes>`
//! for the followers. It is only appended to, and a line torn by a kill is ignored.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use hostkit::dir::Dir;
use serde::{Deserialize, Serialize};

use crate::store::CrcKind;

/// The size limit of a record (bytes): it has a line per part and one per second.
const RECORD_LIMIT: u64 = 16 << 20;

/// The object that a partial download belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialHeader {
    /// The object's strong entity tag: parts of different versions are never mixed.
    pub etag: String,
    /// The object's length (bytes).
    pub size: u64,
    /// Bytes per part; the last one may be shorter.
    pub part_size: u64,
    /// The CRC of each part: `crc32`, `crc32c` or `crc64nvme`.
    pub crc: String,
    /// The leader's rate limit (bytes per second).
    pub max_rate: Option<u64>,
}

impl PartialHeader {
    /// The number of parts.
    #[must_use]
    pub fn parts(&self) -> u64 {
        self.size.div_ceil(self.part_size).max(1)
    }

    /// First byte and length of a part.
    #[must_use]
    pub fn part(&self, index: u64) -> (u64, u64) {
        let start = index * self.part_size;
        (start, self.part_size.min(self.size - start))
    }
}

/// A finished part and its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinishedPart {
    /// Its number, from 0.
    pub part: u64,
    /// The CRC of its bytes.
    pub crc: u64,
}

/// A data file and its record, open for their one writer.
#[derive(Debug)]
pub(crate) struct PartialDownload {
    /// Name of the data file in the folder of partial downloads.
    pub name: String,
    /// The bytes so far, at their offsets; holes are zero.
    pub data: File,
    record: File,
}

fn data_name(key: &str, turn: u32) -> String {
    format!("{key}.{turn}.data")
}

fn record_name(key: &str, turn: u32) -> String {
    format!("{key}.{turn}.record")
}

impl PartialDownload {
    /// Creates an empty one, in place of what a dead process left.
    pub(crate) fn create(dir: &Dir, key: &str, turn: u32) -> io::Result<Self> {
        let (name, record) = (data_name(key, turn), record_name(key, turn));
        for stale in [&record, &name] {
            match dir.remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self {
            data: dir.create_new(&name, 0o644)?,
            record: dir.create_new(&record, 0o644)?,
            name,
        })
    }

    /// Writes the header of the record.
    pub(crate) fn write_header(&mut self, header: &PartialHeader) -> io::Result<()> {
        let mut line = serde_json::to_vec(header)?;
        line.push(b'\n');
        self.record.write_all(&line)
    }

    /// Records a finished part.
    pub(crate) fn record_part(&mut self, done: FinishedPart) -> io::Result<()> {
        self.record
            .write_all(format!("p {} {:x}\n", done.part, done.crc).as_bytes())
    }

    /// Records the number of bytes that have arrived, for the followers.
    pub(crate) fn record_progress(&mut self, bytes: u64) -> io::Result<()> {
        self.record.write_all(format!("b {bytes}\n").as_bytes())
    }

    /// Takes over what a dead process left of a download of the same object, with a new record. Returns the parts that
    /// were recorded as finished and whose CRC is right.
    #[must_use]
    pub(crate) fn take_over(
        dir: &Dir,
        key: &str,
        turn: u32,
        header: &PartialHeader,
        crc: CrcKind,
    ) -> Option<(Self, Vec<FinishedPart>)> {
        let found = read_record(dir, key, turn).ok()?;
        let name = data_name(key, turn);
        let data = dir.open_or_create(&name, 0o644).ok()?;
        if !found.matches(header) || data.metadata().ok()?.len() != header.size {
            return None;
        }
        let done = verified(&data, &found, header, crc, &[]);
        dir.remove_file(record_name(key, turn)).ok()?;
        let record = dir.create_new(record_name(key, turn), 0o644).ok()?;
        Some((Self { name, data, record }, done))
    }

    /// Removes the files of a partial download; returns the length of its data (bytes).
    pub(crate) fn remove(dir: &Dir, key: &str, turn: u32) -> u64 {
        let length = dir
            .stat(data_name(key, turn))
            .map_or(0, |found| u64::try_from(found.st_size).unwrap_or(0));
        // gc removes what cannot be removed now.
        let _ = dir.remove_file(data_name(key, turn));
        let _ = dir.remove_file(record_name(key, turn));
        length
    }

    /// Removes only the record: the data has become a blob.
    pub(crate) fn remove_record(dir: &Dir, key: &str, turn: u32) {
        let _ = dir.remove_file(record_name(key, turn));
    }
}

/// The record of a partial download.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PartialRecord {
    pub header: Option<PartialHeader>,
    /// Parts recorded as finished.
    pub done: Vec<FinishedPart>,
    /// Bytes arrived, as last recorded.
    pub arrived: u64,
}

pub(crate) fn read_record(dir: &Dir, key: &str, turn: u32) -> io::Result<PartialRecord> {
    Ok(parse_record(
        &dir.read(record_name(key, turn), RECORD_LIMIT)?,
    ))
}

/// Parses a record. Whatever the bytes are, only complete lines of the three known forms count.
#[must_use]
pub fn parse_record(bytes: &[u8]) -> PartialRecord {
    let mut record = PartialRecord::default();
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    for (number, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
        if number == 0 {
            record.header = serde_json::from_slice::<PartialHeader>(line)
                .ok()
                .filter(|header| header.part_size > 0);
            continue;
        }
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["p", part, crc] => {
                if let (Ok(part), Ok(crc)) = (part.parse(), u64::from_str_radix(crc, 16))
                    && record
                        .header
                        .as_ref()
                        .is_some_and(|header| part < header.parts())
                {
                    record.done.push(FinishedPart { part, crc });
                }
            }
            ["b", bytes] => record.arrived = bytes.parse().unwrap_or(record.arrived),
            _ => {}
        }
    }
    record
}

impl PartialRecord {
    /// Whether it is of the same version of the object, with the same part size.
    fn matches(&self, header: &PartialHeader) -> bool {
        self.header.as_ref().is_some_and(|found| {
            (&found.etag, found.size, found.part_size, &found.crc)
                == (&header.etag, header.size, header.part_size, &header.crc)
        })
    }
}

/// The recorded parts whose CRC is right, without those in `known`.
fn verified(
    data: &File,
    record: &PartialRecord,
    header: &PartialHeader,
    crc: CrcKind,
    known: &[FinishedPart],
) -> Vec<FinishedPart> {
    let mut verified: Vec<FinishedPart> = Vec::new();
    for done in &record.done {
        let (start, length) = header.part(done.part);
        let again = known
            .iter()
            .chain(&verified)
            .any(|known| known.part == done.part);
        if !again && crc_of(data, crc, start, length).is_ok_and(|found| found == done.crc) {
            verified.push(*done);
        }
    }
    verified
}

/// Copies into `to` the verified parts of another partial download of the same object that are not in `known`, and
/// returns them. Its process may be alive.
///
/// # Errors
/// Those of writing to `to`; what cannot be read is not copied.
pub(crate) fn copy_finished_parts(
    dir: &Dir,
    key: &str,
    turn: u32,
    header: &PartialHeader,
    crc: CrcKind,
    known: &[FinishedPart],
    to: &File,
) -> io::Result<Vec<FinishedPart>> {
    let Ok(record) = read_record(dir, key, turn) else {
        return Ok(Vec::new());
    };
    let Ok(from) = dir.open_file(data_name(key, turn)) else {
        return Ok(Vec::new());
    };
    if !record.matches(header) {
        return Ok(Vec::new());
    }
    let parts = verified(&from, &record, header, crc, known);
    for done in &parts {
        let (start, length) = header.part(done.part);
        crate::copy::copy_range(&from, to, start, length)?;
    }
    Ok(parts)
}

fn crc_of(file: &File, crc: CrcKind, start: u64, length: u64) -> io::Result<u64> {
    let mut digest = crc.digest();
    let mut piece = vec![0; 256 << 10];
    let mut at = 0;
    while at < length {
        let want = piece
            .len()
            .min(usize::try_from(length - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut piece[..want], start + at)?;
        digest.update(&piece[..want]);
        at += want as u64;
    }
    Ok(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> PartialHeader {
        PartialHeader {
            etag: "\"e\"".into(),
            size: 10,
            part_size: 4,
            crc: "crc64nvme".into(),
            max_rate: None,
        }
    }

    #[test]
    fn parts_cover_the_object() {
        let header = header();
        assert_eq!(
            (0..header.parts())
                .map(|part| header.part(part))
                .collect::<Vec<_>>(),
            [(0, 4), (4, 4), (8, 2)]
        );
    }

    #[test]
    fn only_parts_with_matching_crc_are_copied() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let crc = CrcKind::Crc64Nvme;
        let of = |bytes: &[u8]| {
            let mut digest = crc.digest();
            digest.update(bytes);
            digest.finalize()
        };
        let mut dead = PartialDownload::create(&dir, "k", 0).unwrap();
        dead.write_header(&header()).unwrap();
        dead.data.write_all_at(b"aaaabbbbcc", 0).unwrap();
        dead.record_part(FinishedPart {
            part: 0,
            crc: of(b"aaaa"),
        })
        .unwrap();
        dead.record_part(FinishedPart {
            part: 1,
            crc: of(b"XXXX"),
        })
        .unwrap();
        dead.record_progress(8).unwrap();
        dead.record.write_all(b"p 2 torn").unwrap();
        let next = PartialDownload::create(&dir, "k", 1).unwrap();
        let adopted = copy_finished_parts(&dir, "k", 0, &header(), crc, &[], &next.data).unwrap();
        assert_eq!(
            adopted.iter().map(|done| done.part).collect::<Vec<_>>(),
            [0]
        );
        let mut bytes = [0; 4];
        next.data.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"aaaa");
        assert_eq!(read_record(&dir, "k", 0).unwrap().arrived, 8);
        let other = PartialHeader {
            etag: "\"other\"".into(),
            ..header()
        };
        assert!(
            copy_finished_parts(&dir, "k", 0, &other, crc, &[], &next.data)
                .unwrap()
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_as_record(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut whole = serde_json::to_vec(&header()).unwrap();
            whole.push(b'\n');
            whole.extend(bytes);
            for done in parse_record(&whole).done {
                prop_assert!(done.part < 3);
            }
        }
    }
}
