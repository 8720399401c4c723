//! Masking of secrets in URLs that are printed, logged or stored.

/// Replaces the user information and the query values of a URL by `***`. A presigned S3 URL carries its signature in
/// the query, and no query value is needed to recognise an artifact.
#[must_use]
pub fn mask_url(text: &str) -> String {
    let (head, query) = match text.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (text, None),
    };
    let mut shown = match head.split_once("://").or_else(|| split_http(head)) {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            match authority.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}://***@{host}{path}"),
                None => head.to_owned(),
            }
        }
        None => head.to_owned(),
    };
    if let Some(query) = query {
        let names: Vec<String> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((name, _)) => format!("{name}=***"),
                None => "***".to_owned(),
            })
            .collect();
        shown.push('?');
        shown.push_str(&names.join("&"));
    }
    shown
}

/// Scheme and rest of a URL without its slashes: parsers accept `https:user:password@host`.
fn split_http(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let is_http = ["http", "https"]
        .iter()
        .any(|name| scheme.eq_ignore_ascii_case(name));
    is_http.then(|| (scheme, rest.trim_start_matches(['/', '\\'])))
}

/// The same for a value that was refused, which need not be a URL: everything before its last `@` can be a password, as in
/// `user:password@host`.
#[must_use]
pub fn mask_refused(text: &str) -> String {
    let masked = mask_url(text);
    let Some((before, host)) = masked.rsplit_once('@') else {
        return masked;
    };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://***@{host}"),
        None => format!("***@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_value_is_masked_up_to_its_last_at_sign() {
        for (text, expected) in [
            ("user:pw@h:9000", "***@h:9000"),
            ("HTTPS://user:p/w@h/x", "HTTPS://***@h/x"),
            ("https://h/x,https://user:pw@g/y", "https://***@g/y"),
            ("https://h/p?a=b", "https://h/p?a=***"),
            ("minio:9000", "minio:9000"),
        ] {
            assert_eq!(mask_refused(text), expected);
        }
    }

    #[test]
    fn user_information_and_query_values_are_masked() {
        for (text, expected) in [
            ("https://h/p", "https://h/p"),
            ("https://user:pw@h:7443/p", "https://***@h:7443/p"),
            ("https://a@b:c@h/p@q", "https://***@h/p@q"),
            (
                "https://h/p?X-Amz-Signature=abc&token",
                "https://h/p?X-Amz-Signature=***&***",
            ),
            ("bucket/key", "bucket/key"),
            ("https:user:pw@h/p", "https://***@h/p"),
            ("HTTP:/\\user:pw@h/p", "HTTP://***@h/p"),
            ("https:h/p", "https:h/p"),
        ] {
            assert_eq!(mask_url(text), expected);
        }
    }
}
