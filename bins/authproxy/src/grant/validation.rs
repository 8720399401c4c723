//! Validates and normalizes the members of a grant, for the ACL file, backend responses and memcached entries alike.

use serde::de::Error;
use serde::{Deserialize as _, Deserializer};

use super::expiry;
use crate::scope;

const MAX_LIST_LENGTH: usize = 256;
const MAX_NAME_LENGTH: usize = 128;

/// A name that is safe in a header, a log line and a metric label.
pub(crate) fn validate_name(text: String) -> Result<String, String> {
    if text.is_empty()
        || text.len() > MAX_NAME_LENGTH
        || !text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        let shown: String = text.chars().take(40).collect();
        return Err(format!(
            "invalid name {shown:?}: use 1 to {MAX_NAME_LENGTH} visible ASCII characters without spaces"
        ));
    }
    Ok(text)
}

/// A right is a name without commas, which separate rights on a command line.
pub(crate) fn validate_right(text: String) -> Result<String, String> {
    if text.contains(',') {
        return Err(format!("invalid right {text:?}: commas are not allowed"));
    }
    validate_name(text)
}

/// A method is a token (RFC 9110 section 9.1). Lower case is almost certainly a mistake: it would match no request.
pub(crate) fn validate_method(text: String) -> Result<String, String> {
    let token =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if text.is_empty() || text.len() > 32 || !text.bytes().all(token) {
        let shown: String = text.chars().take(40).collect();
        return Err(format!("invalid method {shown:?}: write it as GET"));
    }
    Ok(text)
}

pub(crate) fn deserialize_id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    validate_name(String::deserialize(from)?).map_err(Error::custom)
}

pub(crate) fn deserialize_rights<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    validate_list(Vec::deserialize(from)?, validate_right)
}

pub(crate) fn deserialize_hosts<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    deserialize_restriction(from, |text| scope::normalize_host_pattern(&text))
}

pub(crate) fn deserialize_paths<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    deserialize_restriction(from, |text| scope::normalize_path_prefix(&text))
}

pub(crate) fn deserialize_methods<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<String>, D::Error> {
    deserialize_restriction(from, validate_method)
}

pub(crate) fn deserialize_expires<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u64>, D::Error> {
    match Option::<String>::deserialize(from)? {
        Some(text) => expiry::parse_expiry(&text).map(Some).map_err(Error::custom),
        None => Ok(None),
    }
}

/// `null` means the same as an empty list: no restriction.
fn deserialize_restriction<'de, D: Deserializer<'de>>(
    from: D,
    validate: impl Fn(String) -> Result<String, String>,
) -> Result<Vec<String>, D::Error> {
    validate_list(Option::deserialize(from)?.unwrap_or_default(), validate)
}

fn validate_list<E: Error>(
    texts: Vec<String>,
    validate: impl Fn(String) -> Result<String, String>,
) -> Result<Vec<String>, E> {
    if texts.len() > MAX_LIST_LENGTH {
        return Err(E::custom(format!(
            "a list of {} entries: at most {MAX_LIST_LENGTH} are allowed",
            texts.len()
        )));
    }
    let list: Result<Vec<String>, String> = texts.into_iter().map(validate).collect();
    let mut list = list.map_err(E::custom)?;
    // An ACL file may have a million grants.
    list.shrink_to_fit();
    Ok(list)
}
