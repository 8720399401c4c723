//! A head, line by line as it arrives: what is refused, and what follows it.
//!
//! Owns the request line, which headers may stand together, and where the body ends by them. Every line is judged once,
//! when its CR LF is there, so a head is refused for the same reason however it was cut into packets.

use std::ops::Range;

use super::authority::is_authority;
use super::byte_class;
use super::header_field::{HeaderField, trim};
use crate::request_error::RequestError;

/// Header lines in one head, and in the trailers of one body: what hyper takes.
pub(super) const LINES: usize = 100;

/// IANA's registry of methods (RFC 9110 section 16.1). Case matters in a method, yet there are servers that read it in
/// upper case, and a rule about `POST` would not be asked about the `post` that they take for it.
const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// How far a head has been looked at. Offsets are from its first byte.
pub(super) struct HeadScanner {
    /// No line ends before here but those that were judged.
    seen: usize,
    /// Where the line begins that is not complete.
    line: usize,
    /// Lines that were judged.
    lines: usize,
    http_1_0: bool,
    host: bool,
    /// The authority of a target in absolute form.
    authority: Option<Range<usize>>,
    body: Option<BodyFraming>,
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// Behind so many bytes.
    Length(u64),
    /// Behind the last chunk and its trailers.
    Chunked,
}

/// A head that is whole and sound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CompleteHead {
    /// Its length, with the empty line.
    pub(super) length: usize,
    pub(super) body: BodyFraming,
}

impl HeadScanner {
    /// A head of which nothing is here yet.
    pub(super) const fn new() -> Self {
        Self {
            seen: 0,
            line: 0,
            lines: 0,
            http_1_0: false,
            host: false,
            authority: None,
            body: None,
        }
    }

    /// Goes on with a head; the bytes begin where it does, and are at least those of the call before. None: its end is
    /// not among them.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        limit: usize,
    ) -> Result<Option<CompleteHead>, RequestError> {
        let within = &bytes[..bytes.len().min(limit)];
        while let Some(end) =
            byte_class::line_end(within, &mut self.seen).map_err(RequestError::InvalidRequest)?
        {
            let line = self.line..end;
            self.line = self.seen;
            match self.lines {
                0 => self.request_line(within, line)?,
                _ if line.is_empty() => return self.end().map(Some),
                1..=LINES => self.header(within, &within[line])?,
                _ => return Err(RequestError::HeadTooLarge),
            }
            self.lines += 1;
        }
        if within.len() < bytes.len() {
            return Err(RequestError::HeadTooLarge);
        }
        Ok(None)
    }

    /// RFC 9112 3: single spaces, nothing around them.
    fn request_line(&mut self, bytes: &[u8], at: Range<usize>) -> Result<(), RequestError> {
        let line = &bytes[at.clone()];
        let (method, rest) = line.split_at(byte_class::token(line));
        let (false, [b' ', rest @ ..]) = (method.is_empty(), rest) else {
            return malformed("the request line does not begin with a method and one space");
        };
        if method == b"CONNECT" {
            return Err(RequestError::NotImplemented);
        }
        if method.iter().any(u8::is_ascii_lowercase)
            && METHODS
                .iter()
                .any(|name| method.eq_ignore_ascii_case(name.as_bytes()))
        {
            return malformed("the method is a standard one in another case");
        }
        let target = at.end - rest.len();
        let length = match rest {
            [b'/', ..] => byte_class::path_and_query(rest),
            [b'*', ..] if method == b"OPTIONS" => 1,
            _ => self.absolute(rest, target)?,
        };
        match &rest[length..] {
            b" HTTP/1.1" => Ok(()),
            b" HTTP/1.0" => {
                self.http_1_0 = true;
                Ok(())
            }
            [b' ', ..] => {
                malformed("the request line does not end with one space and HTTP/1.1 or HTTP/1.0")
            }
            [] => malformed("the request line has no version"),
            [b'#', ..] => malformed("the request target has a fragment"),
            _ => malformed("the request target has a character that must be percent-encoded"),
        }
    }

    /// A target in absolute form (RFC 9112 3.2.2): how long it is.
    fn absolute(&mut self, target: &[u8], at: usize) -> Result<usize, RequestError> {
        let prefix = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|prefix| {
                target
                    .get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            })
            .ok_or(RequestError::InvalidRequest(
                "the request target is neither a path nor an http URL",
            ))?
            .len();
        let rest = &target[prefix..];
        let authority = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?' | b'#' | b' '))
            .unwrap_or(rest.len());
        if !is_authority(&rest[..authority]) {
            return malformed("the request target does not name a host");
        }
        self.authority = Some(at + prefix..at + prefix + authority);
        Ok(prefix + authority + byte_class::path_and_query(&rest[authority..]))
    }

    fn header(&mut self, bytes: &[u8], line: &[u8]) -> Result<(), RequestError> {
        let field = HeaderField::parse(line).map_err(RequestError::InvalidRequest)?;
        match field.name.len() {
            4 if field.is("host") => self.host(bytes, field.value),
            10 if field.is("connection") => connection(field.value),
            14 if field.is("content-length") => self.content_length(field.value),
            17 if field.is("transfer-encoding") => self.transfer_encoding(field.value),
            14 | 17
                if field.resembles("content-length") || field.resembles("transfer-encoding") =>
            {
                malformed("a header's name can be taken for Content-Length or Transfer-Encoding")
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 3.2: exactly one, and RFC 9112 3.2.2: the target's, where that has one. An empty one, which is for
    /// targets without an authority, fits no http URL.
    fn host(&mut self, bytes: &[u8], value: &[u8]) -> Result<(), RequestError> {
        if std::mem::replace(&mut self.host, true) {
            return malformed("Host was sent more than once");
        }
        if !is_authority(value) {
            return malformed("Host is not a host with or without a port");
        }
        match &self.authority {
            Some(target) if !bytes[target.clone()].eq_ignore_ascii_case(value) => {
                malformed("Host and the request target name different hosts")
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 6.2, 6.3: one decimal number. Zeros before it are refused because there are servers that read them as
    /// octal, and what does not fit into 63 bits because there are servers that count with a sign.
    fn content_length(&mut self, value: &[u8]) -> Result<(), RequestError> {
        match self.body {
            Some(BodyFraming::Length(_)) => {
                return malformed("Content-Length was sent more than once");
            }
            Some(BodyFraming::Chunked) => return malformed(BOTH),
            None => {}
        }
        let length = match value {
            b"0" => Some(0),
            [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|digits| digits.parse::<i64>().ok())
            }
            _ => None,
        };
        let Some(length) = length else {
            return malformed("Content-Length is not a decimal number");
        };
        self.body = Some(BodyFraming::Length(length.unsigned_abs()));
        Ok(())
    }

    /// RFC 9112 6.1, 7: `chunked` alone is what every HTTP/1.1 server knows.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), RequestError> {
        match self.body {
            Some(BodyFraming::Length(_)) => return malformed(BOTH),
            Some(BodyFraming::Chunked) => {
                return malformed("Transfer-Encoding was sent more than once");
            }
            None => {}
        }
        if self.http_1_0 {
            return malformed("HTTP/1.0 has no Transfer-Encoding");
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return malformed("Transfer-Encoding is not chunked");
        }
        self.body = Some(BodyFraming::Chunked);
        Ok(())
    }

    fn end(&self) -> Result<CompleteHead, RequestError> {
        if !self.host {
            return malformed("there is no Host");
        }
        Ok(CompleteHead {
            length: self.line,
            body: self.body.unwrap_or(BodyFraming::Length(0)),
        })
    }
}

/// RFC 9112 6.1, 6.3: recipients differ over which one counts.
const BOTH: &str = "Content-Length and Transfer-Encoding were both sent";

fn malformed<T>(rule: &'static str) -> Result<T, RequestError> {
    Err(RequestError::InvalidRequest(rule))
}

/// RFC 9110 7.6.1: what it names is for this hop only. A server's front that strips a header that frames the request, or
/// says whose it is, would leave the next one to guess.
fn connection(value: &[u8]) -> Result<(), RequestError> {
    let framing: [&[u8]; 3] = [b"content-length", b"host", b"transfer-encoding"];
    let mut options = value.split(|byte| *byte == b',').map(trim);
    if options.any(|option| framing.iter().any(|name| option.eq_ignore_ascii_case(name))) {
        return malformed("Connection names a header that frames the request");
    }
    Ok(())
}
