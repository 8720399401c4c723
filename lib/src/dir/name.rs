//! Names of files: how long they may be, and those of temporary files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// The longest file name that file systems take, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// What is left of it for that which makes the name of a temporary file unique, in bytes.
const UNIQUE: usize = 64;

/// What the names of temporary files beside `name` begin with: a dot, and of a long name only as much as leaves room for
/// what makes them unique. A file whose name just fits can be replaced, too.
#[must_use]
pub fn temporary_prefix(name: &OsStr) -> OsString {
    let kept = name.len().min(NAME_MAX - UNIQUE);
    let mut prefix = OsString::from(".");
    prefix.push(OsStr::from_bytes(&name.as_bytes()[..kept]));
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::{Dir, Durability};

    #[test]
    fn a_file_whose_name_just_fits_is_replaced() {
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
