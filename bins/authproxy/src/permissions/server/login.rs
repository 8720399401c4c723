//! The user information of a URL, sent as Basic authentication (RFC 7617).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

/// The header of a URL that has a user or a password.
pub(super) fn header(url: &Url) -> Result<Option<HeaderValue>, &'static str> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = decoded(url.username());
    if user.contains(&b':') {
        return Err("its user has a colon");
    }
    let password = decoded(url.password().unwrap_or_default());
    let encoded = BASE64_STANDARD.encode([user, b":".to_vec(), password].concat());
    let mut value =
        HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| "its user cannot be sent")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A part of a URL without its percent-encoding; an invalid escape stands for itself.
pub(super) fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(url: &str) -> Option<String> {
        let value = header(&url.parse().unwrap()).unwrap()?;
        assert!(value.is_sensitive());
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn users_of_urls_are_sent_decoded() {
        assert_eq!(sent("http://h/"), None);
        // RFC 7617 section 2.
        let aladdin = Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned());
        assert_eq!(sent("http://Aladdin:open%20sesame@h/"), aladdin);
        assert_eq!(sent("http://Aladdin:open%20sesam%65@h/"), aladdin);
        assert!(header(&"http://a%3Ab:c@h/".parse().unwrap()).is_err());
        assert_eq!(decoded("100%+%2"), b"100%+%2");
    }
}
