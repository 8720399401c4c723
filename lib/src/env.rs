//! Environment variables. An empty variable counts as unset.

use std::ffi::{OsStr, OsString};

/// The value of a variable, unless it is unset or empty.
#[must_use]
pub fn var_os(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The value of a variable, unless it is unset, empty or not UTF-8.
#[must_use]
pub fn var(name: &str) -> Option<String> {
    var_os(name)?.into_string().ok()
}
