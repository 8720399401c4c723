//! Reading the members of a grant, each checked and brought into the form in which it is kept. The one place for it:
//! the ACL file, the answers of engines and what memcached kept are all read through it.

use serde::de::Error;
use serde::{Deserialize as _, Deserializer};

use super::expiry;
use crate::scope;

/// The longest list of a grant.
const LIST: usize = 256;
/// The longest name.
const NAME: usize = 128;

/// Whether a text is safe in a header, a log line and a metric: 1 to 128 visible ASCII characters.
///
/// # Errors
/// It is not; the message says what is allowed.
pub(crate) fn name(text: String) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let shown: String = text.chars().take(40).collect();
        return Err(format!(
            "{shown:?} is no name: it has 1 to {NAME} ASCII characters, none of them a space"
        ));
    }
    Ok(text)
}

/// A right: a name without commas, which separate rights on a command line.
pub(crate) fn right(text: String) -> Result<String, String> {
    if text.contains(',') {
        return Err(format!("{text:?} is no right: it has a comma"));
    }
    name(text)
}

/// A method: a token (RFC 9110 section 9.1). One with a small letter is almost certainly a mistake, and would fit no
/// request.
pub(crate) fn method(text: String) -> Result<String, String> {
    let token =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if text.is_empty() || text.len() > 32 || !text.bytes().all(token) {
        let shown: String = text.chars().take(40).collect();
        return Err(format!("{shown:?} is no method: write it like GET"));
    }
    Ok(text)
}

pub(crate) fn id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    name(String::deserialize(from)?).map_err(Error::custom)
}

pub(crate) fn rights<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    checked(Vec::deserialize(from)?, right)
}

pub(crate) fn hosts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    restriction(from, |text| scope::normalize_host_pattern(&text))
}

pub(crate) fn paths<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    restriction(from, |text| scope::normalize_path_prefix(&text))
}

pub(crate) fn methods<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    restriction(from, method)
}

pub(crate) fn expires<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    match Option::<String>::deserialize(from)? {
        Some(text) => expiry::parse(&text).map(Some).map_err(Error::custom),
        None => Ok(None),
    }
}

/// A list of what a key is restricted to. `null` is no restriction, as an empty list is.
fn restriction<'de, D: Deserializer<'de>>(
    from: D,
    valid: impl Fn(String) -> Result<String, String>,
) -> Result<Vec<String>, D::Error> {
    checked(Option::deserialize(from)?.unwrap_or_default(), valid)
}

fn checked<E: Error>(
    texts: Vec<String>,
    valid: impl Fn(String) -> Result<String, String>,
) -> Result<Vec<String>, E> {
    if texts.len() > LIST {
        return Err(E::custom(format!(
            "a list of {}: at most {LIST} are allowed",
            texts.len()
        )));
    }
    let valid: Result<Vec<String>, String> = texts.into_iter().map(valid).collect();
    let mut valid = valid.map_err(E::custom)?;
    // There may be a million of them.
    valid.shrink_to_fit();
    Ok(valid)
}
