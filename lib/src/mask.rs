//! Masking of secrets in URLs that are printed, logged or stored.

/// Replaces the user information and the query values of a URL by `***`. A presigned S3 URL carries its signature in
/// the query, and no query value is needed to recognise an artifact.
#[must_use]
pub fn mask_url(text: &str) -> String {
    let (head, query) = match text.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (text, None),
    };
    let mut shown = match head.split_once("://") {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert_eq!(mask_url(text), expected);
        }
    }
}
