//! Limits of file names, and the names of temporary files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// The longest file name of common file systems, in bytes.
pub const NAME_MAX: usize = 255;
/// The part of it that makes the name of a temporary file unique, in bytes.
const UNIQUE_SUFFIX: usize = 64;

/// The prefix of the names of temporary files beside `name`: a dot and as much of the name as leaves room for a unique
/// suffix, so that even a file with the longest possible name can be replaced.
#[must_use]
pub fn temporary_prefix(name: &OsStr) -> OsString {
    let length = name.len().min(NAME_MAX - UNIQUE_SUFFIX);
    let mut prefix = OsString::from(".");
    prefix.push(OsStr::from_bytes(&name.as_bytes()[..length]));
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::{Dir, Durability};

    #[test]
    fn file_with_the_longest_name_is_replaced() {
        let temp = assert_fs::TempDir::new().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let name = "n".repeat(NAME_MAX);
        for _ in 0..2 {
            dir.write_atomic(&name, b"x", 0o644, Durability::Process)
                .unwrap();
        }
        assert_eq!(dir.entries().unwrap().count(), 1);
    }
}
