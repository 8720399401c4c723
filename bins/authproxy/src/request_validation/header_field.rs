//! One header line: its grammar, and the names that matter for framing or identity. Which lines may occur together is
//! `request_head`'s.

use super::byte_class;

pub(super) struct HeaderField<'a> {
    pub(super) name: &'a [u8],
    /// Without white space around it.
    pub(super) value: &'a [u8],
}

impl<'a> HeaderField<'a> {
    /// Parses a line without its CR LF. The caller has excluded control characters other than tabs.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let (name, rest) = line.split_at(byte_class::token_length(line));
        match (name, rest) {
            // RFC 9112 5.2: some servers still join such a line with the one before it.
            ([], [b' ' | b'\t', ..]) => Err("a header continues on a second line"),
            ([], [b':', ..]) => Err("a header has no name"),
            // RFC 9112 5.1: some servers drop the space, some the header.
            (_, [b' ' | b'\t', ..]) => Err("white space between a header's name and the colon"),
            (_, []) => Err("a header has no colon"),
            (name, [b':', value @ ..]) => Ok(Self {
                name,
                value: trim(value),
            }),
            _ => Err("invalid character in a header's name"),
        }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Whether a server that turns headers into variables (CGI, WSGI, PHP) takes this name for `name`, which has only
    /// letters and hyphens: such servers replace hyphens, and other special characters, by underscores.
    pub(super) fn resembles(&self, name: &str) -> bool {
        self.name.len() == name.len() && self.prefix_resembles(name)
    }

    fn prefix_resembles(&self, name: &str) -> bool {
        let same = |(own, other): (&u8, &u8)| {
            own.eq_ignore_ascii_case(other) || (*other == b'-' && !own.is_ascii_alphanumeric())
        };
        self.name.len() >= name.len() && self.name.iter().zip(name.as_bytes()).all(same)
    }

    /// Whether the name is allowed in trailers (RFC 9110 6.5.1): some servers merge trailers into the headers, where it
    /// could change framing, routing or the client's identity.
    pub(super) fn is_allowed_trailer(&self) -> bool {
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
            && !PREFIXES.iter().any(|prefix| self.prefix_resembles(prefix))
    }
}

/// Removes OWS (RFC 9110 5.6.3) at both ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = bytes {
        bytes = inner;
    }
    bytes
}
