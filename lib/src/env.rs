//! Environment variables: an empty one is an unset one, for every tool and every name.

use std::ffi::{OsStr, OsString};

/// The value of a variable that is set and not empty.
#[must_use]
pub fn var_os(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The value of a variable that is set, not empty, and UTF-8.
#[must_use]
pub fn var(name: &str) -> Option<String> {
    var_os(name)?.into_string().ok()
}
