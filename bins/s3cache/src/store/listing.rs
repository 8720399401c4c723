//! Checks that a response is a complete listing of S3, and that a listing ends. The SDK skips what it cannot parse,
//! such as a missing second half.

use xmlparser::{ElementEnd, Token, Tokenizer};

/// The limit of nested elements. S3 nests three deep.
const DEPTH_LIMIT: usize = 16;

/// Why a response is not a listing.
#[derive(Debug, thiserror::Error)]
pub(super) enum MalformedListing {
    #[error("it is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    #[error("it is not XML")]
    Syntax(#[from] xmlparser::Error),
    #[error("its elements are not balanced")]
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

/// Detects that the continuation tokens of a listing repeat, however long the cycle, by remembering one of them: each
/// remembered token is compared with twice as many as the one before (Brent's algorithm).
#[derive(Debug, Default)]
pub(super) struct TokenCycle {
    remembered: Option<String>,
    compared: u64,
    limit: u64,
}

impl TokenCycle {
    /// Whether the next token was seen before.
    pub(super) fn is_closed_by(&mut self, token: &str) -> bool {
        if self.remembered.as_deref() == Some(token) {
            return true;
        }
        self.compared += 1;
        if self.compared > self.limit {
            self.remembered = Some(token.to_owned());
            (self.compared, self.limit) = (0, self.limit * 2 + 1);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn repeated_continuation_token_is_detected(before in 0..40_u32, round in 1..40_u32) {
            let mut tokens = TokenCycle::default();
            let all = (0..before).chain((before..before + round).cycle());
            let ends = all.take(500).position(|token| tokens.is_closed_by(&token.to_string()));
            proptest::prop_assert!(ends.is_some_and(|at| at as u32 >= before + round));
            let mut tokens = TokenCycle::default();
            proptest::prop_assert!(!(0..1000).any(|token| tokens.is_closed_by(&token.to_string())));
        }
    }

    #[test]
    fn incomplete_listing_is_malformed() {
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
                "its elements are not balanced",
            ),
            (
                "<ListBucketResult><Key>a<b></ListBucketResult>",
                "its elements are not balanced",
            ),
            (
                "<ListBucketResult><Key>a</Key>",
                "its elements are not balanced",
            ),
            (&deep, "its elements are not balanced"),
        ] {
            let found = check(reply.as_bytes())
                .map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            assert_eq!(found, expected, "{reply}");
        }
        assert!(check(b"<ListBucketResult>\xff").is_err());
    }
}
