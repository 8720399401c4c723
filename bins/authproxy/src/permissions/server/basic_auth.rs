//! The user information of a URL, sent as Basic authentication (RFC 7617).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

/// The `Authorization` header of a URL that has a user or a password.
pub(super) fn header(url: &Url) -> Result<Option<HeaderValue>, &'static str> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = percent_decode(url.username());
    if user.contains(&b':') {
        return Err("its user has a colon");
    }
    let password = percent_decode(url.password().unwrap_or_default());
    let encoded = BASE64_STANDARD.encode([user, b":".to_vec(), password].concat());
    let mut value =
        HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| "its user is not valid")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Decodes a part of a URL; an invalid escape stands for itself.
pub(super) fn percent_decode(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(url: &str) -> Option<String> {
        let value = header(&url.parse().unwrap()).unwrap()?;
        assert!(value.is_sensitive());
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn user_information_is_decoded_and_sent_as_basic_authentication() {
        assert_eq!(authorization("http://h/"), None);
        // RFC 7617 section 2.
        let aladdin = Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==".to_owned());
        assert_eq!(authorization("http://Aladdin:open%20sesame@h/"), aladdin);
        assert_eq!(authorization("http://Aladdin:open%20sesam%65@h/"), aladdin);
        assert!(header(&"http://a%3Ab:c@h/".parse().unwrap()).is_err());
        assert_eq!(percent_decode("100%+%2"), b"100%+%2");
    }
}
