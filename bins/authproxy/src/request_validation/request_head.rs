//! The head of a request, line by line as it arrives.
//!
//! Owns the request line, which headers may occur together, and the framing that they declare. Every line is validated
//! once, when its CR LF has arrived, so the error does not depend on how the head was split into packets.

use std::ops::Range;

use super::authority::is_authority;
use super::byte_class;
use super::header_field::{HeaderField, trim};
use crate::request_error::RequestError;

/// The most header lines of a head, and of trailers: hyper's limit.
pub(super) const MAX_LINES: usize = 100;

/// IANA's registry of methods (RFC 9110 section 16.1). Methods are case-sensitive, yet some servers read `post` as
/// `POST`, to which other rules may apply.
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

/// The state of scanning a head. Offsets are from its first byte.
pub(super) struct HeadScanner {
    /// No line ends before here except validated ones.
    scanned: usize,
    /// The start of the incomplete line.
    line_start: usize,
    /// The number of validated lines.
    lines: usize,
    http_1_0: bool,
    has_host: bool,
    /// The authority of a target in absolute form.
    authority: Option<Range<usize>>,
    body: Option<BodyFraming>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    Length(u64),
    Chunked,
}

/// A valid head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CompleteHead {
    /// Includes the empty line.
    pub(super) length: usize,
    pub(super) body: BodyFraming,
}

impl HeadScanner {
    pub(super) const fn new() -> Self {
        Self {
            scanned: 0,
            line_start: 0,
            lines: 0,
            http_1_0: false,
            has_host: false,
            authority: None,
            body: None,
        }
    }

    /// Continues with a head. The bytes begin with the head and are at least those of the call before; returns None
    /// while they do not have its end.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        limit: usize,
    ) -> Result<Option<CompleteHead>, RequestError> {
        let within = &bytes[..bytes.len().min(limit)];
        while let Some(end) = byte_class::find_line_end(within, &mut self.scanned)
            .map_err(RequestError::InvalidRequest)?
        {
            let line = self.line_start..end;
            self.line_start = self.scanned;
            match self.lines {
                0 => self.scan_request_line(within, line)?,
                _ if line.is_empty() => return self.finish().map(Some),
                1..=MAX_LINES => self.scan_header(within, &within[line])?,
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
    fn scan_request_line(&mut self, bytes: &[u8], at: Range<usize>) -> Result<(), RequestError> {
        let line = &bytes[at.clone()];
        let (method, rest) = line.split_at(byte_class::token_length(line));
        let (false, [b' ', rest @ ..]) = (method.is_empty(), rest) else {
            return invalid("the request line does not begin with a method and one space");
        };
        if method == b"CONNECT" {
            return Err(RequestError::NotImplemented);
        }
        if method.iter().any(u8::is_ascii_lowercase)
            && METHODS
                .iter()
                .any(|name| method.eq_ignore_ascii_case(name.as_bytes()))
        {
            return invalid("a standard method must be in upper case");
        }
        let target = at.end - rest.len();
        let length = match rest {
            [b'/', ..] => byte_class::path_and_query_length(rest),
            [b'*', ..] if method == b"OPTIONS" => 1,
            _ => self.scan_absolute_target(rest, target)?,
        };
        match &rest[length..] {
            b" HTTP/1.1" => Ok(()),
            b" HTTP/1.0" => {
                self.http_1_0 = true;
                Ok(())
            }
            [b' ', ..] => {
                invalid("the request line does not end with one space and HTTP/1.1 or HTTP/1.0")
            }
            [] => invalid("the request line has no version"),
            [b'#', ..] => invalid("the request target has a fragment"),
            _ => invalid("the request target has a character that must be percent-encoded"),
        }
    }

    /// A target in absolute form (RFC 9112 3.2.2); returns its length.
    fn scan_absolute_target(&mut self, target: &[u8], at: usize) -> Result<usize, RequestError> {
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
            return invalid("the request target has no valid host");
        }
        self.authority = Some(at + prefix..at + prefix + authority);
        Ok(prefix + authority + byte_class::path_and_query_length(&rest[authority..]))
    }

    fn scan_header(&mut self, bytes: &[u8], line: &[u8]) -> Result<(), RequestError> {
        let field = HeaderField::parse(line).map_err(RequestError::InvalidRequest)?;
        match field.name.len() {
            4 if field.is("host") => self.scan_host(bytes, field.value),
            10 if field.is("connection") => check_connection(field.value),
            14 if field.is("content-length") => self.scan_content_length(field.value),
            17 if field.is("transfer-encoding") => self.scan_transfer_encoding(field.value),
            14 | 17
                if field.resembles("content-length") || field.resembles("transfer-encoding") =>
            {
                invalid("a header's name resembles Content-Length or Transfer-Encoding")
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 3.2: exactly one; 3.2.2: equal to the target's authority, if that has one. An empty Host is for targets
    /// without an authority, which no http URL is.
    fn scan_host(&mut self, bytes: &[u8], value: &[u8]) -> Result<(), RequestError> {
        if std::mem::replace(&mut self.has_host, true) {
            return invalid("Host was sent more than once");
        }
        if !is_authority(value) {
            return invalid("the Host header is not HOST or HOST:PORT");
        }
        match &self.authority {
            Some(target) if !bytes[target.clone()].eq_ignore_ascii_case(value) => {
                invalid("Host and the request target name different hosts")
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 6.2, 6.3: one decimal number. Leading zeros are invalid because some servers read them as octal, and
    /// numbers above 63 bits because some servers use signed integers.
    fn scan_content_length(&mut self, value: &[u8]) -> Result<(), RequestError> {
        match self.body {
            Some(BodyFraming::Length(_)) => {
                return invalid("Content-Length was sent more than once");
            }
            Some(BodyFraming::Chunked) => return invalid(BOTH_LENGTHS),
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
            return invalid("Content-Length is not a decimal number");
        };
        self.body = Some(BodyFraming::Length(length.unsigned_abs()));
        Ok(())
    }

    /// RFC 9112 6.1, 7: only `chunked` is supported by every HTTP/1.1 server.
    fn scan_transfer_encoding(&mut self, value: &[u8]) -> Result<(), RequestError> {
        match self.body {
            Some(BodyFraming::Length(_)) => return invalid(BOTH_LENGTHS),
            Some(BodyFraming::Chunked) => {
                return invalid("Transfer-Encoding was sent more than once");
            }
            None => {}
        }
        if self.http_1_0 {
            return invalid("HTTP/1.0 has no Transfer-Encoding");
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return invalid("Transfer-Encoding is not chunked");
        }
        self.body = Some(BodyFraming::Chunked);
        Ok(())
    }

    fn finish(&self) -> Result<CompleteHead, RequestError> {
        if !self.has_host {
            return invalid("missing Host");
        }
        Ok(CompleteHead {
            length: self.line_start,
            body: self.body.unwrap_or(BodyFraming::Length(0)),
        })
    }
}

/// RFC 9112 6.1, 6.3: servers differ over which one counts.
const BOTH_LENGTHS: &str = "Content-Length and Transfer-Encoding were both sent";

fn invalid<T>(rule: &'static str) -> Result<T, RequestError> {
    Err(RequestError::InvalidRequest(rule))
}

/// RFC 9110 7.6.1: the headers that Connection names are for this hop only. A proxy that strips a framing header would
/// make the next server guess.
fn check_connection(value: &[u8]) -> Result<(), RequestError> {
    let framing: [&[u8]; 3] = [b"content-length", b"host", b"transfer-encoding"];
    let mut options = value.split(|byte| *byte == b',').map(trim);
    if options.any(|option| framing.iter().any(|name| option.eq_ignore_ascii_case(name))) {
        return invalid("Connection names a framing header");
    }
    Ok(())
}
