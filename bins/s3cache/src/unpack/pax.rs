//! Extended headers: what they say about the next member. Records that change how data is read are understood or
//! refused; all others (times, owners, attributes) are left out, as they were by tar's first readers.

use super::archive::{PATH_LIMIT, UnpackError};
use super::sparse::PaxMap;

/// What stands before a member about it.
#[derive(Debug, Default)]
pub(super) struct Extension {
    path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub sparse: Option<PaxMap>,
}

impl Extension {
    pub(super) fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.size.is_none() && self.sparse.is_none()
    }

    /// The path of the member; that of a sparse file stands in a record of its own.
    pub(super) fn take_path(&mut self) -> Option<Vec<u8>> {
        let sparse = self.sparse.as_mut().and_then(|map| map.name.take());
        sparse.or_else(|| self.path.take())
    }

    pub(super) fn set_path(&mut self, path: Vec<u8>) -> Result<(), UnpackError> {
        set_name(&mut self.path, path)
    }

    pub(super) fn set_link(&mut self, link: Vec<u8>) -> Result<(), UnpackError> {
        set_name(&mut self.link, link)
    }

    /// Adds the records of an extended header.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        for record in Records(bytes) {
            let (key, value) = record?;
            match key {
                b"path" => self.set_path(value.to_vec())?,
                b"linkpath" => self.set_link(value.to_vec())?,
                b"size" => set(&mut self.size, key, decimal(key, value)?)?,
                _ => match key.strip_prefix(b"GNU.sparse.") {
                    Some(rest) => self.sparse_record(key, rest, value)?,
                    None => check(key, value)?,
                },
            }
        }
        Ok(())
    }

    fn sparse_record(&mut self, key: &[u8], rest: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let map = self.sparse.get_or_insert_default();
        match rest {
            b"major" => set(&mut map.major, key, decimal(key, value)?),
            b"minor" => set(&mut map.minor, key, decimal(key, value)?),
            b"name" => set_name(&mut map.name, value.to_vec()),
            b"size" | b"realsize" => set(&mut map.size, key, decimal(key, value)?),
            b"numblocks" => set(&mut map.blocks, key, decimal(key, value)?),
            b"offset" | b"numbytes" => {
                if map.numbers.len() % 2 != usize::from(rest == b"numbytes") {
                    return Err(broken(key));
                }
                map.numbers.push(decimal(key, value)?);
                Ok(())
            }
            b"map" if map.numbers.is_empty() => {
                let numbers = value.split(|byte| *byte == b',');
                let numbers: Result<_, _> = numbers.map(|part| decimal(key, part)).collect();
                map.numbers = numbers?;
                Ok(())
            }
            _ => Err(broken(key)),
        }
    }

    /// Reads a header that concerns all members after it. One that names or measures them is refused: they would all
    /// be the same.
    pub(super) fn check_global(bytes: &[u8]) -> Result<(), UnpackError> {
        for record in Records(bytes) {
            match record? {
                (key @ (b"path" | b"linkpath" | b"size"), _) => return Err(broken(key)),
                (key, value) => check(key, value)?,
            }
        }
        Ok(())
    }
}

/// Refuses a record that may change how members are read. `GNU` and `SCHILY` (star) have such ones, known and to come.
fn check(key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
    let harmless = match key {
        b"hdrcharset" => matches!(value, b"BINARY" | b"ISO-IR 10646 2000 UTF-8"),
        b"GNU.volume.label" => true,
        _ => match key.strip_prefix(b"SCHILY.") {
            Some(
                b"dev" | b"ino" | b"nlink" | b"devmajor" | b"devminor" | b"fflags" | b"archtype"
                | b"release",
            ) => true,
            Some(rest) => rest.starts_with(b"xattr.") || rest.starts_with(b"acl."),
            None => !key.starts_with(b"GNU."),
        },
    };
    if harmless { Ok(()) } else { Err(broken(key)) }
}

fn broken(key: &[u8]) -> UnpackError {
    UnpackError::archive(key, "an extended header record that is not understood here")
}

fn set<T>(slot: &mut Option<T>, key: &[u8], value: T) -> Result<(), UnpackError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(broken(key)),
    }
}

/// A name comes once: readers differ in which of two counts, and in what an empty one means.
fn set_name(slot: &mut Option<Vec<u8>>, name: Vec<u8>) -> Result<(), UnpackError> {
    let reason = match slot {
        Some(_) => "an extended header names the member again",
        None if name.is_empty() || name.contains(&0) => "an extended header without a name",
        None if name.len() >= PATH_LIMIT => "a path of over 4095 bytes",
        None => {
            *slot = Some(name);
            return Ok(());
        }
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

/// The records `LENGTH KEY=VALUE\n`, where LENGTH counts the whole record.
struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
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

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), UnpackError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| UnpackError::archive(b"the archive", "a broken extended header")))
    }
}
