//! Extended headers of the next member. Records that change how data is read are implemented or rejected; all others
//! (times, owners, attributes) are ignored, as by the first readers of tar.

use super::sparse::{NUMBERS, PaxMap};
use super::tar_reader::{PATH_LIMIT, TOO_LONG, UnpackError};

/// The extended headers before a member.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ExtendedHeaders {
    path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// The size as star repeats it; it differs for a sparse file.
    pub real_size: Option<u64>,
    pub sparse: Option<PaxMap>,
}

impl ExtendedHeaders {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The path of the member; that of a sparse file has a record of its own.
    pub(super) fn take_path(&mut self) -> Option<Vec<u8>> {
        let sparse = self.sparse.as_mut().and_then(|map| map.name.take());
        sparse.or_else(|| self.path.take())
    }

    pub(super) fn set_path(&mut self, path: Vec<u8>) -> Result<(), UnpackError> {
        let path = Some(check_path(path)?);
        set(&mut self.path, b"path", path)
    }

    pub(super) fn set_link(&mut self, link: Vec<u8>) -> Result<(), UnpackError> {
        let link = Some(check_name(link)?);
        set(&mut self.link, b"linkpath", link)
    }

    /// Adds the records of an extended header. The last of several records with one key counts. Readers differ about
    /// several headers, so those must not contradict one another.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let mut new = Self::default();
        for record in PaxRecords(bytes) {
            let (key, value) = record?;
            match key {
                b"path" => new.path = Some(check_path(value.to_vec())?),
                // Writers set an empty one for members that are not links.
                b"linkpath" => new.link = Some(check_name(value.to_vec())?),
                b"size" => new.size = Some(decimal(key, value)?),
                b"SCHILY.realsize" => new.real_size = Some(decimal(key, value)?),
                _ => match key.strip_prefix(b"GNU.sparse.") {
                    Some(rest) => new.sparse_record(key, rest, value)?,
                    None => check(key, value)?,
                },
            }
        }
        set(&mut self.path, b"path", new.path)?;
        set(&mut self.link, b"linkpath", new.link)?;
        set(&mut self.size, b"size", new.size)?;
        set(&mut self.real_size, b"SCHILY.realsize", new.real_size)?;
        set(&mut self.sparse, b"GNU.sparse", new.sparse)
    }

    fn sparse_record(&mut self, key: &[u8], rest: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let map = self.sparse.get_or_insert_default();
        match rest {
            b"major" => set(&mut map.major, key, Some(decimal(key, value)?)),
            b"minor" => set(&mut map.minor, key, Some(decimal(key, value)?)),
            b"name" => set(&mut map.name, key, Some(check_path(value.to_vec())?)),
            b"size" | b"realsize" => set(&mut map.size, key, Some(decimal(key, value)?)),
            b"numblocks" => set(&mut map.blocks, key, Some(decimal(key, value)?)),
            b"offset" | b"numbytes" => {
                let expected = map.numbers.len() % 2 == usize::from(rest == b"numbytes");
                if !expected || map.numbers.len() >= NUMBERS {
                    return Err(broken(key));
                }
                map.numbers.push(decimal(key, value)?);
                Ok(())
            }
            b"map" if map.numbers.is_empty() => {
                for part in value.split(|byte| *byte == b',') {
                    if map.numbers.len() >= NUMBERS {
                        return Err(broken(key));
                    }
                    map.numbers.push(decimal(key, part)?);
                }
                Ok(())
            }
            _ => Err(broken(key)),
        }
    }

    /// Reads a global header. One with a path or size is rejected, because all members would get it.
    pub(super) fn check_global(bytes: &[u8]) -> Result<(), UnpackError> {
        for record in PaxRecords(bytes) {
            match record? {
                (key @ (b"path" | b"linkpath" | b"size"), _) => return Err(broken(key)),
                (key, value) => check(key, value)?,
            }
        }
        Ok(())
    }
}

/// Rejects a record that may change how members are read: `GNU` and `SCHILY` (star) define such records.
fn check(key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
    let harmless = match key {
        b"hdrcharset" => matches!(value, b"BINARY" | b"ISO-IR 10646 2000 UTF-8"),
        b"GNU.volume.label" => true,
        _ => match key.strip_prefix(b"SCHILY.") {
            Some(
                b"dev" | b"ino" | b"nlink" | b"devmajor" | b"devminor" | b"fflags" | b"archtype"
                | b"release",
            ) => true,
            Some(rest) => [&b"xattr."[..], b"acl.", b"volhdr."]
                .iter()
                .any(|harmless| rest.starts_with(harmless)),
            None => !key.starts_with(b"GNU."),
        },
    };
    if harmless { Ok(()) } else { Err(broken(key)) }
}

fn broken(key: &[u8]) -> UnpackError {
    UnpackError::archive(key, "an unsupported extended header record")
}

/// Sets a value that is unset or equal.
fn set<T: PartialEq>(
    slot: &mut Option<T>,
    key: &[u8],
    value: Option<T>,
) -> Result<(), UnpackError> {
    if slot.is_some() && value.is_some() && *slot != value {
        let reason = "extended headers of one member contradict one another";
        return Err(UnpackError::archive(key, reason));
    }
    *slot = value.or(slot.take());
    Ok(())
}

/// Readers differ about an empty path.
fn check_path(path: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    if path.is_empty() {
        return Err(UnpackError::archive(
            &path,
            "an extended header without a name",
        ));
    }
    check_name(path)
}

fn check_name(name: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    let reason = match name.len() {
        _ if name.contains(&0) => "a NUL in a path",
        PATH_LIMIT.. => TOO_LONG,
        _ => return Ok(name),
    };
    Err(UnpackError::archive(
        &name[..name.len().min(PATH_LIMIT)],
        reason,
    ))
}

fn decimal(key: &[u8], value: &[u8]) -> Result<u64, UnpackError> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| broken(key))
}

/// The records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record. NUL pads them.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> PaxRecords<'a> {
    fn take(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().position(|byte| *byte == b' ')?;
        let length = decimal(b"", &self.0[..space]).ok()?;
        let (record, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = text.iter().position(|byte| *byte == b'=')?;
        self.0 = rest;
        Some((&text[..equals], &text[equals + 1..]))
    }
}

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), UnpackError>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.0, [] | [0, ..]) {
            return None;
        }
        let record = self.take();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| UnpackError::archive(b"the archive", "a broken extended header")))
    }
}
