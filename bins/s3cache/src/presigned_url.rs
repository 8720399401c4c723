//! The identity of the object that a URL names, without the signature: presigned URLs of one object differ each time.

use url::Url;

/// The query parameters of one way to sign a URL.
struct SigningScheme {
    /// Each must be present once.
    required: &'static [&'static str],
    /// Each may be present once.
    optional: &'static [&'static str],
}

/// The known schemes. Names are compared case-insensitively.
const SCHEMES: &[SigningScheme] = &[
    // https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    SigningScheme {
        required: &[
            "X-Amz-Algorithm",
            "X-Amz-Credential",
            "X-Amz-Date",
            "X-Amz-Expires",
            "X-Amz-SignedHeaders",
            "X-Amz-Signature",
        ],
        optional: &[
            "X-Amz-Security-Token",
            "X-Amz-Content-Sha256",
            "X-Amz-Region-Set",
        ],
    },
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html
    SigningScheme {
        required: &["AWSAccessKeyId", "Expires", "Signature"],
        optional: &["X-Amz-Security-Token"],
    },
    // https://cloud.google.com/storage/docs/authentication/signatures, version 4 and version 2
    SigningScheme {
        required: &[
            "X-Goog-Algorithm",
            "X-Goog-Credential",
            "X-Goog-Date",
            "X-Goog-Expires",
            "X-Goog-SignedHeaders",
            "X-Goog-Signature",
        ],
        optional: &[],
    },
    SigningScheme {
        required: &["GoogleAccessId", "Expires", "Signature"],
        optional: &[],
    },
    // https://learn.microsoft.com/rest/api/storageservices/create-service-sas, user delegation included; then with a
    // stored access policy; then of an account.
    SigningScheme {
        required: &["sv", "sr", "sp", "se", "sig"],
        optional: &[
            "st", "sip", "spr", "ses", "sdd", "si", "skoid", "sktid", "skt", "ske", "sks", "skv",
            "saoid", "suoid", "scid",
        ],
    },
    SigningScheme {
        required: &["sv", "sr", "si", "sig"],
        optional: &["st", "se", "sp", "sip", "spr", "ses", "sdd"],
    },
    SigningScheme {
        required: &["sv", "ss", "srt", "sp", "se", "sig"],
        optional: &["st", "sip", "spr", "ses"],
    },
];

impl SigningScheme {
    /// Whether the query has this whole scheme, and no parameter of it twice.
    fn signs(&self, names: &[&str]) -> bool {
        let count = |name: &&str| names.iter().filter(|found| is_same(found, name)).count();
        self.required.iter().all(|name| count(name) == 1)
            && self.optional.iter().all(|name| count(name) <= 1)
    }

    fn has(&self, name: &str) -> bool {
        let mut names = self.required.iter().chain(self.optional);
        names.any(|known| is_same(known, name))
    }
}

fn is_same(left: &str, right: &str) -> bool {
    left.eq_ignore_ascii_case(right)
}

fn name(pair: &str) -> &str {
    pair.split_once('=').map_or(pair, |(name, _)| name)
}

/// The URL without a complete signature. A URL without one is not changed, so that its cache key stays the same.
pub(crate) fn identity(url: &Url) -> String {
    let pairs: Vec<&str> = url.query().unwrap_or_default().split('&').collect();
    let names: Vec<&str> = pairs.iter().map(|pair| name(pair)).collect();
    let Some(scheme) = SCHEMES.iter().find(|scheme| scheme.signs(&names)) else {
        return url.to_string();
    };
    let others: Vec<&str> = pairs
        .into_iter()
        .filter(|pair| !scheme.has(name(pair)))
        .collect();
    let mut unsigned = url.clone();
    unsigned.set_query((!others.is_empty()).then(|| others.join("&")).as_deref());
    unsigned.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=3600&X-Amz-SignedHeaders=host";

    fn identified(text: &str) -> String {
        identity(&Url::parse(text).unwrap())
    }

    #[test]
    fn identity_of_presigned_url_has_no_signature() {
        for (query, left) in [
            (format!("{V4}&X-Amz-Signature=s"), ""),
            (format!("{V4}&X-Amz-Security-Token=t&X-Amz-Signature=s"), ""),
            (format!("versionId=7&{V4}&x-amz-signature=s"), "?versionId=7"),
            (format!("{V4}&versionId=7&X-Amz-Signature=s&x-id=GetObject"), "?versionId=7&x-id=GetObject"),
            ("AWSAccessKeyId=A&Signature=s%2B&Expires=1".into(), ""),
            ("GoogleAccessId=g&Expires=1&Signature=s&generation=3".into(), "?generation=3"),
            ("X-Goog-Algorithm=a&X-Goog-Credential=c&X-Goog-Date=d&X-Goog-Expires=1&X-Goog-SignedHeaders=h&X-Goog-Signature=s".into(), ""),
            ("sv=2022-11-02&st=a&se=b&sr=b&sp=r&spr=https&sig=s".into(), ""),
            ("snapshot=1&sv=2022-11-02&ss=b&srt=o&sp=r&se=b&sig=s".into(), "?snapshot=1"),
            ("sv=2022-11-02&sr=c&si=policy&sig=s".into(), ""),
        ] {
            assert_eq!(identified(&format!("https://h/p/a.pex?{query}")), format!("https://h/p/a.pex{left}"), "{query}");
        }
    }

    #[test]
    fn incomplete_or_repeated_signature_is_part_of_identity() {
        for query in [
            V4,
            "X-Amz-Signature=s",
            "Expires=1&Signature=s",
            "AWSAccessKeyId=A&Signature=s&Expires=1&Expires=2",
            "sv=1&sig=s",
            "sp=1&se=2&sr=3",
            "versionId=7",
            "a=1&&b",
            "",
        ] {
            let text = format!("https://h/p/a.pex?{query}");
            assert_eq!(identified(&text), text);
        }
    }

    proptest! {
        #[test]
        fn identity_depends_on_everything_but_the_signature(
            scheme in 0..SCHEMES.len(),
            others in prop::collection::vec("v[a-z]{0,3}(=[a-zA-Z0-9%]{0,4})?", 0..4),
            values in prop::collection::vec("[a-zA-Z0-9%+/-]{0,6}", 9),
            places in prop::collection::vec(any::<prop::sample::Index>(), 9),
            optional in any::<bool>(),
        ) {
            let scheme = &SCHEMES[scheme];
            let mut signed = others.clone();
            let more = scheme.optional.iter().take(usize::from(optional));
            for ((name, value), place) in scheme.required.iter().chain(more).zip(values).zip(places) {
                signed.insert(place.index(signed.len() + 1), format!("{name}={value}"));
            }
            let query = if others.is_empty() { String::new() } else { format!("?{}", others.join("&")) };
            let plain = Url::parse(&format!("https://h/p{query}")).unwrap();
            prop_assert_eq!(identity(&plain), plain.to_string());
            prop_assert_eq!(identified(&format!("https://h/p?{}", signed.join("&"))), plain.to_string());
        }
    }
}
