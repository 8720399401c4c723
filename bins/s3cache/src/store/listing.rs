//! Whether a reply is a whole listing of S3. The SDK skips what it cannot read of one, such as its second half.

use xmlparser::{ElementEnd, Token, Tokenizer};

/// How deep its elements may nest. Those of S3 do three deep.
const DEPTH_LIMIT: usize = 16;

/// Why a reply is not a listing.
#[derive(Debug, thiserror::Error)]
pub(super) enum MalformedListing {
    #[error("it is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    #[error("it is not XML")]
    Syntax(#[from] xmlparser::Error),
    #[error("its elements do not match one another")]
    Nesting,
    #[error("it is not a ListBucketResult")]
    Root,
}

/// Checks that `reply` is one well-formed ListBucketResult.
pub(super) fn check(reply: &[u8]) -> Result<(), MalformedListing> {
    let mut open = Vec::new();
    let mut has_root = false;
    for token in Tokenizer::from(std::str::from_utf8(reply)?) {
        match token? {
            Token::ElementStart { prefix, local, .. } => {
                if open.is_empty() && (has_root || local.as_str() != "ListBucketResult") {
                    return Err(MalformedListing::Root);
                }
                if open.len() == DEPTH_LIMIT {
                    return Err(MalformedListing::Nesting);
                }
                has_root = true;
                open.push((prefix.as_str(), local.as_str()));
            }
            Token::ElementEnd { end, .. } => {
                let is_match = match end {
                    ElementEnd::Open => true,
                    ElementEnd::Empty => open.pop().is_some(),
                    ElementEnd::Close(prefix, local) => {
                        open.pop() == Some((prefix.as_str(), local.as_str()))
                    }
                };
                if !is_match {
                    return Err(MalformedListing::Nesting);
                }
            }
            _ => {}
        }
    }
    match (has_root, open.is_empty()) {
        (false, _) => Err(MalformedListing::Root),
        (true, false) => Err(MalformedListing::Nesting),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_listing_is_one() {
        let deep = format!("<ListBucketResult>{}", "<a>".repeat(100));
        for (reply, expected) in [
            ("<ListBucketResult/>", "ok"),
            (
                "<?xml version='1.0'?>\n<!-- c --><ListBucketResult xmlns=\"u\"><Contents><Key>a&amp;b</Key>\
                 </Contents><Prefix/></ListBucketResult>\n",
                "ok",
            ),
            (
                "<s:ListBucketResult xmlns:s='u'></s:ListBucketResult>",
                "ok",
            ),
            ("", "it is not a ListBucketResult"),
            ("<html><br></html>", "it is not a ListBucketResult"),
            (
                "<Error><Code>Busy</Code></Error>",
                "it is not a ListBucketResult",
            ),
            ("sign in first", "it is not XML"),
            (
                "<ListBucketResult><Contents><Ke",
                "its elements do not match one another",
            ),
            (
                "<ListBucketResult><Key>a<b></ListBucketResult>",
                "its elements do not match one another",
            ),
            (
                "<ListBucketResult><Key>a</Key>",
                "its elements do not match one another",
            ),
            (&deep, "its elements do not match one another"),
        ] {
            let found = check(reply.as_bytes())
                .map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            assert_eq!(found, expected, "{reply}");
        }
        assert!(check(b"<ListBucketResult>\xff").is_err());
    }
}
