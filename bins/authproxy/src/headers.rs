//! Headers.

/// Whether a header says who the client is.
#[must_use]
pub fn is_identity(name: &str) -> bool {
    name.starts_with("x-auth-")
}
