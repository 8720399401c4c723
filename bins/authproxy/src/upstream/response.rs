//! Reads a response of upstream: its head, and its body (RFC 9112 sections 4 to 7).
//!
//! Strict wherever framing could be ambiguous: after an invalid response the connection is not used again.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::Frame;
use hyper::ext::ReasonPhrase;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::http::response::Parts;
use hyper::{Method, Response, StatusCode};

/// The longest head, and the longest trailers.
const MAX_HEAD: usize = 64 << 10;
/// Most heads fit into this many lines.
const USUAL_LINES: usize = 100;
/// The most lines of a head or of trailers. HTTP has no limit, and real responses exceed the usual 100.
const MAX_LINES: usize = 1000;
/// The longest chunk size line, with extensions.
const MAX_CHUNK_LINE: usize = 1024;
/// Data up to this size is copied, so that its buffer can be reused.
const MAX_COPY: usize = 4 << 10;

/// A response that is not HTTP, or ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidResponse(pub(super) &'static str);

pub(super) struct ResponseHead {
    pub(super) parts: Parts,
    pub(super) body: BodyDecoder,
    /// Whether the connection can carry another response.
    pub(super) keep_alive: bool,
}

/// The state of reading a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyDecoder {
    /// This many bytes are left.
    Length(u64),
    /// Before a chunk size line.
    ChunkLine,
    /// This many bytes of a chunk are left.
    Chunk(u64),
    /// Before the CR LF behind a chunk.
    ChunkEnd,
    Trailers,
    /// The body ends with the connection.
    Close,
    Complete,
}

/// The next part of a body.
pub(super) enum BodyPiece {
    Frame(Frame<Bytes>),
    End,
    /// The input is incomplete.
    NeedMore,
}

/// Removes the head of the final response from the input; returns None while it is incomplete. Informational responses
/// before it are dropped, except 101. `headers` is a map to reuse.
pub(super) fn read_head(
    input: &mut BytesMut,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Option<ResponseHead>, InvalidResponse> {
    loop {
        let parser = httparse::ParserConfig::default();
        let (mut few, mut many) = ([const { MaybeUninit::uninit() }; USUAL_LINES], Vec::new());
        let mut read = httparse::Response::new(&mut []);
        let mut parsed = parser.parse_response_with_uninit_headers(&mut read, input, &mut few);
        if parsed == Err(httparse::Error::TooManyHeaders) {
            many.resize(MAX_LINES, MaybeUninit::uninit());
            read = httparse::Response::new(&mut []);
            parsed = parser.parse_response_with_uninit_headers(&mut read, input, &mut many);
        }
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
            Ok(_) => return Err(InvalidResponse("longer than 64 KiB")),
            Err(error) => return Err(InvalidResponse(parse_error_message(error))),
        };
        let code = read.code.unwrap_or_default();
        if (100..200).contains(&code) && code != 101 {
            input.advance(length);
            continue;
        }
        let status =
            StatusCode::from_u16(code).map_err(|_| InvalidResponse("invalid status code"))?;
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = status;
        let reason = read.reason.unwrap_or_default();
        if status.canonical_reason() != Some(reason)
            && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
        {
            parts.extensions.insert(reason);
        }
        let is_1_1 = read.version == Some(1);
        // One allocation that all values share.
        let bytes = Bytes::copy_from_slice(&input[..length]);
        headers.clear();
        parts.headers = std::mem::take(headers);
        let mut framing = ResponseFraming::default();
        for line in &*read.headers {
            let name = HeaderName::from_bytes(line.name.as_bytes())
                .map_err(|_| InvalidResponse("invalid header name"))?;
            let start = line.value.as_ptr() as usize - input.as_ptr() as usize;
            let value = bytes.slice(start..start + line.value.len());
            let value = HeaderValue::from_maybe_shared(value)
                .map_err(|_| InvalidResponse("invalid header value"))?;
            if framing.read_header(&name, &value)? {
                parts.headers.append(name, value);
            }
        }
        input.advance(length);
        let body = framing.body(status, method)?;
        // RFC 9112 6.1: a connection on which HTTP/1.0 used a transfer coding is not reused.
        let is_reusable = body != BodyDecoder::Close
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !framing.may_have_unexpected_body(body, status)
            && (is_1_1 || !framing.is_encoded());
        return Ok(Some(ResponseHead {
            parts,
            body,
            keep_alive: is_reusable && !framing.close && (is_1_1 || framing.keep_alive),
        }));
    }
}

const fn parse_error_message(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "invalid header name",
        httparse::Error::HeaderValue => "invalid header value",
        httparse::Error::NewLine => "invalid end of line",
        httparse::Error::Status => "invalid status code",
        httparse::Error::Token => "invalid status line",
        httparse::Error::TooManyHeaders => "more than 1000 headers",
        httparse::Error::Version => "not HTTP/1.0 or HTTP/1.1",
    }
}

/// The framing headers of a response.
#[derive(Debug, Default)]
struct ResponseFraming {
    length: Option<u64>,
    chunked: bool,
    /// A transfer coding other than `chunked`.
    other_coding: bool,
    close: bool,
    keep_alive: bool,
}

impl ResponseFraming {
    /// Reads one header; returns whether to keep it. Headers of this connection only, and a repeated length, are
    /// dropped.
    fn read_header(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
    ) -> Result<bool, InvalidResponse> {
        if *name == CONTENT_LENGTH {
            let length = parse_length(value.as_bytes())?;
            return match self.length.replace(length) {
                None => Ok(true),
                Some(before) if before == length => Ok(false),
                Some(_) => Err(InvalidResponse("different values of Content-Length")),
            };
        }
        if *name == TRANSFER_ENCODING {
            for coding in value.as_bytes().split(|byte| *byte == b',') {
                if self.chunked {
                    return Err(InvalidResponse("a transfer coding after chunked"));
                }
                self.chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
                self.other_coding |= !self.chunked;
            }
            return Ok(false);
        }
        if *name == CONNECTION {
            let mut has_other = false;
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                match option {
                    _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                    _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                    _ => has_other = true,
                }
            }
            // Options that name a header or a protocol are for `headers`.
            return Ok(has_other);
        }
        Ok(true)
    }

    fn is_encoded(&self) -> bool {
        self.chunked || self.other_coding
    }

    /// Whether a response that must not have a body may have one. gunicorn sends the application's body in response to
    /// HEAD, too: on a reused connection it would be read as the response to another client's request.
    fn may_have_unexpected_body(&self, body: BodyDecoder, status: StatusCode) -> bool {
        let is_bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        let is_empty = match self.length {
            Some(length) => length == 0,
            None => is_bodiless && !self.is_encoded(),
        };
        body == BodyDecoder::Complete && !is_empty
    }

    /// RFC 9112 section 6.3.
    fn body(&self, status: StatusCode, method: &Method) -> Result<BodyDecoder, InvalidResponse> {
        let encoded = self.is_encoded();
        if encoded && self.length.is_some() {
            return Err(InvalidResponse("both Content-Length and Transfer-Encoding"));
        }
        let is_bodiless = status.is_informational()
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
            || *method == Method::HEAD;
        Ok(match self.length {
            _ if is_bodiless => BodyDecoder::Complete,
            Some(0) => BodyDecoder::Complete,
            Some(length) => BodyDecoder::Length(length),
            // Other codings are not passed on, so the client could not decode the body.
            None if self.chunked && !self.other_coding => BodyDecoder::ChunkLine,
            None if encoded => return Err(InvalidResponse("a transfer coding other than chunked")),
            None => BodyDecoder::Close,
        })
    }
}

fn parse_length(value: &[u8]) -> Result<u64, InvalidResponse> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    number
        .and_then(|number| number.parse().ok())
        .ok_or(InvalidResponse("invalid Content-Length"))
}

impl BodyDecoder {
    pub(super) fn is_complete(self) -> bool {
        self == Self::Complete
    }

    /// Removes the next part of the body from the input.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<BodyPiece, InvalidResponse> {
        loop {
            match self {
                Self::Complete => return Ok(BodyPiece::End),
                _ if input.is_empty() => return Ok(BodyPiece::NeedMore),
                Self::Length(left) => {
                    let data = take_data(input, left);
                    if *left == 0 {
                        *self = Self::Complete;
                    }
                    return Ok(BodyPiece::Frame(Frame::data(data)));
                }
                Self::Close => {
                    let mut all = u64::MAX;
                    return Ok(BodyPiece::Frame(Frame::data(take_data(input, &mut all))));
                }
                Self::Chunk(left) => {
                    let data = take_data(input, left);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(BodyPiece::Frame(Frame::data(data)));
                }
                // The parser reads a missing number as zero.
                Self::ChunkLine if !input[0].is_ascii_hexdigit() => {
                    return Err(InvalidResponse("invalid chunk size"));
                }
                Self::ChunkLine => match httparse::parse_chunk_size(input) {
                    Ok(httparse::Status::Complete((line, size))) if line <= MAX_CHUNK_LINE => {
                        input.advance(line);
                        *self = match size {
                            0 => Self::Trailers,
                            size => Self::Chunk(size),
                        };
                    }
                    Ok(httparse::Status::Partial) if input.len() < MAX_CHUNK_LINE => {
                        return Ok(BodyPiece::NeedMore);
                    }
                    _ => return Err(InvalidResponse("invalid chunk size")),
                },
                Self::ChunkEnd => match input.first_chunk() {
                    Some(b"\r\n") => {
                        input.advance(2);
                        *self = Self::ChunkLine;
                    }
                    None if input[0] == b'\r' => return Ok(BodyPiece::NeedMore),
                    _ => return Err(InvalidResponse("a chunk does not end after its size")),
                },
                Self::Trailers => {
                    let Some(trailers) = read_trailers(input)? else {
                        return Ok(BodyPiece::NeedMore);
                    };
                    *self = Self::Complete;
                    if !trailers.is_empty() {
                        return Ok(BodyPiece::Frame(Frame::trailers(trailers)));
                    }
                }
            }
        }
    }
}

/// Removes up to `left` bytes from the input.
fn take_data(input: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(input.len());
    *left -= length as u64;
    if length > MAX_COPY {
        return input.split_to(length).freeze();
    }
    let data = Bytes::copy_from_slice(&input[..length]);
    input.advance(length);
    data
}

fn read_trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, InvalidResponse> {
    let mut lines = vec![httparse::EMPTY_HEADER; MAX_LINES];
    let (length, lines) = match httparse::parse_headers(input, &mut lines) {
        Ok(httparse::Status::Complete(parsed)) if parsed.0 <= MAX_HEAD => parsed,
        Ok(httparse::Status::Partial) if input.len() < MAX_HEAD => return Ok(None),
        _ => return Err(InvalidResponse("invalid trailers")),
    };
    let mut trailers = HeaderMap::new();
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_bytes(line.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(InvalidResponse("invalid trailer"));
        };
        trailers.append(name, value);
    }
    input.advance(length);
    Ok(Some(trailers))
}

/// The body of a fuzz target: any bytes as a response. How they are split into reads makes no difference, and an
/// incomplete response is never taken for a complete one.
pub fn fuzz_response(bytes: &[u8]) {
    for method in [Method::GET, Method::HEAD] {
        let whole = read_split(bytes, bytes.len().max(1), &method);
        assert_eq!(whole, read_split(bytes, 1, &method), "byte by byte");
        assert_eq!(whole, read_split(bytes, 7, &method), "in pieces of seven");
    }
}

/// Status, body and keep-alive of a response that arrives in parts of `step` bytes; None if it is incomplete at the end
/// of the connection.
fn read_split(
    bytes: &[u8],
    step: usize,
    method: &Method,
) -> Result<Option<(StatusCode, Vec<u8>, bool)>, InvalidResponse> {
    let mut input = BytesMut::new();
    let mut pieces = bytes.chunks(step);
    let mut more = |input: &mut BytesMut| {
        let piece = pieces.next().unwrap_or_default();
        input.extend_from_slice(piece);
        !piece.is_empty()
    };
    let mut head = loop {
        match read_head(&mut input, method, &mut HeaderMap::new())? {
            Some(head) => break head,
            None if !more(&mut input) => return Ok(None),
            None => {}
        }
    };
    let mut body = Vec::new();
    loop {
        match head.body.next(&mut input)? {
            BodyPiece::Frame(frame) => body.extend(frame.into_data().unwrap_or_default()),
            BodyPiece::NeedMore if more(&mut input) => {}
            BodyPiece::NeedMore if head.body != BodyDecoder::Close => return Ok(None),
            BodyPiece::NeedMore | BodyPiece::End => {
                return Ok(Some((head.parts.status, body, head.keep_alive)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
