//! One header line: its grammar, and the names that decide where a request ends or whose it is.
//!
//! Owns what a single line may be. Which lines may stand together is `head`'s.

use super::byte_class;

/// A header line in its two parts.
pub(super) struct HeaderField<'a> {
    pub(super) name: &'a [u8],
    /// Without the white space around it.
    pub(super) value: &'a [u8],
}

impl<'a> HeaderField<'a> {
    /// Takes a line without its CR LF, which has no control characters but tabs.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let (name, rest) = line.split_at(byte_class::token(line));
        match (name, rest) {
            // RFC 9112 5.2: some recipients still join such a line with the one before it.
            ([], [b' ' | b'\t', ..]) => Err("a header continues on a second line"),
            ([], [b':', ..]) => Err("a header has no name"),
            // RFC 9112 5.1: some recipients drop the space, some the header.
            (_, [b' ' | b'\t', ..]) => {
                Err("white space stands between a header's name and the colon")
            }
            (_, []) => Err("a header has no colon"),
            (name, [b':', value @ ..]) => Ok(Self {
                name,
                value: trim(value),
            }),
            _ => Err("a header's name has a character that none may have"),
        }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Whether a server that makes variables of headers (CGI, WSGI, PHP) takes this name for that one, which has only
    /// letters and hyphens: those servers turn the hyphen, and everything else that is odd, into an underscore.
    pub(super) fn resembles(&self, name: &str) -> bool {
        self.name.len() == name.len() && self.begins_like(name)
    }

    fn begins_like(&self, name: &str) -> bool {
        let same = |(own, other): (&u8, &u8)| {
            own.eq_ignore_ascii_case(other) || (*other == b'-' && !own.is_ascii_alphanumeric())
        };
        self.name.len() >= name.len() && self.name.iter().zip(name.as_bytes()).all(same)
    }

    /// Whether this may stand behind a chunked body (RFC 9110 6.5.1): some servers merge trailers into the headers, and
    /// there it would decide where the body ends, where the request goes, or who sent it.
    pub(super) fn is_trailer(&self) -> bool {
        const NAMES: &[&str] = &[
            "authorization",
            "connection",
            "content-encoding",
            "content-length",
            "content-range",
            "content-type",
            "cookie",
            "expect",
            "forwarded",
            "host",
            "keep-alive",
            "proxy-authorization",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "x-api-key",
            "x-real-ip",
            "x-request-id",
        ];
        const PREFIXES: &[&str] = &["x-auth-", "x-forwarded-"];
        !NAMES.iter().any(|name| self.resembles(name))
            && !PREFIXES.iter().any(|prefix| self.begins_like(prefix))
    }
}

/// Without spaces and tabs at both ends: OWS of RFC 9110 5.6.3.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = bytes {
        bytes = inner;
    }
    bytes
}
