//! An answer as the server sends it: the head, and the pieces of its body (RFC 9112 sections 4 to 7).
//!
//! Owns the reading. Strict where a mistake would make two answers of one or one of two: after anything that is not HTTP
//! nothing of the connection is believed.

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
const HEAD: usize = 64 << 10;
/// As many lines as most heads have at most, and the most lines of a head or of trailers. HTTP has no limit, and real
/// answers have more than the hundred that most clients allow for.
const LINES: usize = 100;
const MOST_LINES: usize = 1000;
/// The longest line before a chunk.
const CHUNK_LINE: usize = 1024;
/// Pieces up to this size are copied: the buffer that they came in can then be used again.
const SMALL: usize = 4 << 10;

/// What is not HTTP, or cannot be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct InvalidResponse(pub(super) &'static str);

/// A head.
pub(super) struct ResponseHead {
    pub(super) parts: Parts,
    pub(super) body: BodyDecoder,
    /// The connection may carry another answer after this one.
    pub(super) keeps: bool,
}

/// What is left to be read of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyDecoder {
    /// So many bytes are left.
    Length(u64),
    /// A line with the size of a chunk comes next.
    ChunkLine,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The end of the line behind a chunk comes next.
    ChunkEnd,
    /// Trailers come next, or the end of there being none.
    Trailers,
    /// Everything up to the end of the connection is.
    Close,
    /// Nothing is left.
    Complete,
}

/// What came of a body.
pub(super) enum BodyPiece {
    Frame(Frame<Bytes>),
    /// It was whole before.
    End,
    /// Not enough has come.
    NeedMore,
}

/// Takes the head of the final answer off what has come; none when it is not whole yet. Informational answers before it
/// are dropped, but for 101. `headers` is a map to use again.
///
/// # Errors
/// It is no HTTP.
pub(super) fn head(
    input: &mut BytesMut,
    method: &Method,
    headers: &mut HeaderMap,
) -> Result<Option<ResponseHead>, InvalidResponse> {
    loop {
        let parser = httparse::ParserConfig::default();
        let (mut few, mut many) = ([const { MaybeUninit::uninit() }; LINES], Vec::new());
        let mut read = httparse::Response::new(&mut []);
        let mut parsed = parser.parse_response_with_uninit_headers(&mut read, input, &mut few);
        if parsed == Err(httparse::Error::TooManyHeaders) {
            many.resize(MOST_LINES, MaybeUninit::uninit());
            read = httparse::Response::new(&mut []);
            parsed = parser.parse_response_with_uninit_headers(&mut read, input, &mut many);
        }
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= HEAD => length,
            Ok(httparse::Status::Partial) if input.len() < HEAD => return Ok(None),
            Ok(_) => return Err(InvalidResponse("longer than 64 KiB")),
            Err(error) => return Err(InvalidResponse(invalid(error))),
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
        // In one piece, of which all values are parts.
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
        // RFC 9112 6.1: where a server of HTTP/1.0 speaks of a transfer coding, its connection is not used again.
        let keeps = body != BodyDecoder::Close
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !framing.may_have_body_still(body, status)
            && (is_1_1 || !framing.is_encoded());
        return Ok(Some(ResponseHead {
            parts,
            body,
            keeps: keeps && !framing.close && (is_1_1 || framing.keep_alive),
        }));
    }
}

/// What httparse has found.
const fn invalid(error: httparse::Error) -> &'static str {
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

/// What a head says of the end of its message and of the connection.
#[derive(Debug, Default)]
struct ResponseFraming {
    length: Option<u64>,
    chunked: bool,
    /// Codings before `chunked`, or without it: where the body ends is then the connection's end.
    coded: bool,
    close: bool,
    keep_alive: bool,
}

impl ResponseFraming {
    /// Takes a line in; whether it is to be kept. What is only about this message on this connection, and a repeated
    /// length, is not.
    fn read_header(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
    ) -> Result<bool, InvalidResponse> {
        if *name == CONTENT_LENGTH {
            let length = length(value.as_bytes())?;
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
                self.coded |= !self.chunked;
            }
            return Ok(false);
        }
        if *name == CONNECTION {
            let mut names = false;
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                match option {
                    _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                    _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                    _ => names = true,
                }
            }
            // Only what names a header, or another protocol, has to be seen by others.
            return Ok(names);
        }
        Ok(true)
    }

    /// Whether the head names a transfer coding.
    fn is_encoded(&self) -> bool {
        self.chunked || self.coded
    }

    /// Whether an answer has no body, yet its head is that of one with a body. gunicorn sends what the application
    /// returns, after HEAD, too: on a kept connection that would be read as the answer to the next request, which is that
    /// of another client.
    fn may_have_body_still(&self, body: BodyDecoder, status: StatusCode) -> bool {
        let has_none = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        let is_empty = match self.length {
            Some(length) => length == 0,
            None => has_none && !self.is_encoded(),
        };
        body == BodyDecoder::Complete && !is_empty
    }

    /// How the body is framed (RFC 9112 section 6.3).
    fn body(&self, status: StatusCode, method: &Method) -> Result<BodyDecoder, InvalidResponse> {
        let encoded = self.is_encoded();
        if encoded && self.length.is_some() {
            return Err(InvalidResponse("both Content-Length and Transfer-Encoding"));
        }
        let without = status.is_informational()
            || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
            || *method == Method::HEAD;
        Ok(match self.length {
            _ if without => BodyDecoder::Complete,
            Some(0) => BodyDecoder::Complete,
            Some(length) => BodyDecoder::Length(length),
            // What is coded otherwise would lose its coding on the way, which the client could not undo.
            None if self.chunked && !self.coded => BodyDecoder::ChunkLine,
            None if encoded => return Err(InvalidResponse("a transfer coding other than chunked")),
            None => BodyDecoder::Close,
        })
    }
}

/// A number of bytes: digits and nothing else.
fn length(value: &[u8]) -> Result<u64, InvalidResponse> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    number
        .and_then(|number| number.parse().ok())
        .ok_or(InvalidResponse("invalid Content-Length"))
}

impl BodyDecoder {
    /// Whether nothing is left.
    pub(super) fn is_complete(self) -> bool {
        self == Self::Complete
    }

    /// Takes the next piece off what has come.
    ///
    /// # Errors
    /// It is no HTTP.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<BodyPiece, InvalidResponse> {
        loop {
            match self {
                Self::Complete => return Ok(BodyPiece::End),
                _ if input.is_empty() => return Ok(BodyPiece::NeedMore),
                Self::Length(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Self::Complete;
                    }
                    return Ok(BodyPiece::Frame(Frame::data(data)));
                }
                Self::Close => {
                    let mut all = u64::MAX;
                    return Ok(BodyPiece::Frame(Frame::data(take(input, &mut all))));
                }
                Self::Chunk(left) => {
                    let data = take(input, left);
                    if *left == 0 {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(BodyPiece::Frame(Frame::data(data)));
                }
                // The parser takes no digits for a zero.
                Self::ChunkLine if !input[0].is_ascii_hexdigit() => {
                    return Err(InvalidResponse("invalid chunk size"));
                }
                Self::ChunkLine => match httparse::parse_chunk_size(input) {
                    Ok(httparse::Status::Complete((line, size))) if line <= CHUNK_LINE => {
                        input.advance(line);
                        *self = match size {
                            0 => Self::Trailers,
                            size => Self::Chunk(size),
                        };
                    }
                    Ok(httparse::Status::Partial) if input.len() < CHUNK_LINE => {
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
                    let Some(trailers) = trailers(input)? else {
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

/// Takes up to so many bytes off what has come.
fn take(input: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(input.len());
    *left -= length as u64;
    if length > SMALL {
        return input.split_to(length).freeze();
    }
    let data = Bytes::copy_from_slice(&input[..length]);
    input.advance(length);
    data
}

fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, InvalidResponse> {
    let mut lines = vec![httparse::EMPTY_HEADER; MOST_LINES];
    let (length, lines) = match httparse::parse_headers(input, &mut lines) {
        Ok(httparse::Status::Complete(parsed)) if parsed.0 <= HEAD => parsed,
        Ok(httparse::Status::Partial) if input.len() < HEAD => return Ok(None),
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

/// The body of a fuzz target: any bytes as what a server sends. However they are cut into pieces, the same answer is read,
/// and one that is not whole is never taken for it.
pub fn fuzz(bytes: &[u8]) {
    for method in [Method::GET, Method::HEAD] {
        let whole = read(bytes, bytes.len().max(1), &method);
        assert_eq!(whole, read(bytes, 1, &method), "byte by byte");
        assert_eq!(whole, read(bytes, 7, &method), "in pieces of seven");
    }
}

/// The status, the body and whether the connection is kept of an answer that comes in pieces of `step` bytes; none when
/// it is not whole at the end of the connection.
fn read(
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
        match head(&mut input, method, &mut HeaderMap::new())? {
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
                return Ok(Some((head.parts.status, body, head.keeps)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
