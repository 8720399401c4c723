//! A request as the server gets it: the head, and a body in the framing that the head says.
//!
//! Where the body ends is said by what is written here and by nothing that a client has sent: its own `Content-Length` and
//! `Transfer-Encoding` end at the gate.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::Method;
use hyper::body::{Body as _, Frame};
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use hyper::http::request::Parts;

use super::connection::MOST;
use crate::body::{IncompleteBody, RequestBody};

/// What is left to be sent of a body.
pub(super) struct RequestWriter {
    body: RequestBody,
    framing: RemainingBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemainingBody {
    /// So many bytes are left.
    Length(u64),
    Chunked,
    /// Nothing is left.
    Complete,
}

impl RequestWriter {
    pub(super) fn new(body: RequestBody) -> Self {
        let framing = match body.size_hint().exact() {
            _ if body.is_end_stream() => RemainingBody::Complete,
            Some(length) => RemainingBody::Length(length),
            None => RemainingBody::Chunked,
        };
        Self { body, framing }
    }

    /// Whether everything was handed out.
    pub(super) fn is_complete(&self) -> bool {
        self.framing == RemainingBody::Complete
    }

    /// Writes the head.
    pub(super) fn head(&self, parts: &Parts, to: &mut BytesMut) {
        to.reserve(1024);
        to.put_slice(parts.method.as_str().as_bytes());
        to.put_u8(b' ');
        let target = parts.uri.path_and_query();
        to.put_slice(target.map_or("/", |target| target.as_str()).as_bytes());
        to.put_slice(b" HTTP/1.1\r\n");
        for (name, value) in &parts.headers {
            if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
                line(name.as_str(), value.as_bytes(), to);
            }
        }
        match self.framing {
            RemainingBody::Length(length) => {
                line("content-length", length.to_string().as_bytes(), to);
            }
            RemainingBody::Chunked => line("transfer-encoding", b"chunked", to),
            // Some servers answer 411 where a length could be.
            RemainingBody::Complete if takes_body(&parts.method) => {
                line("content-length", b"0", to)
            }
            RemainingBody::Complete => {}
        }
        if self.is_last(&parts.method) {
            line("connection", b"close", to);
        }
        to.put_slice(b"\r\n");
    }

    /// Whether a request has to be the last of its connection: it has a body where none is expected. A server that does not
    /// read it would read it as the next request, which was never judged.
    pub(super) fn is_last(&self, method: &Method) -> bool {
        self.framing != RemainingBody::Complete && !takes_body(method)
    }

    /// Hands out what has come of the body, up to a bound.
    ///
    /// # Errors
    /// The body breaks off.
    pub(super) fn fill(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut BytesMut,
    ) -> Result<(), IncompleteBody> {
        while self.framing != RemainingBody::Complete && to.len() < MOST {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return Ok(());
            };
            match frame.transpose()? {
                Some(frame) => self.frame(frame, to)?,
                None => self.end(None, to)?,
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame<Bytes>, to: &mut BytesMut) -> Result<(), IncompleteBody> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end(frame.trailers_ref(), to),
        };
        match &mut self.framing {
            RemainingBody::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(IncompleteBody)?;
                to.put_slice(&data);
                if *left == 0 {
                    self.framing = RemainingBody::Complete;
                }
            }
            // A chunk of nothing would be the last one.
            RemainingBody::Chunked if data.is_empty() => {}
            RemainingBody::Chunked => {
                to.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
                to.put_slice(&data);
                to.put_slice(b"\r\n");
            }
            RemainingBody::Complete => return Err(IncompleteBody),
        }
        Ok(())
    }

    fn end(
        &mut self,
        trailers: Option<&HeaderMap>,
        to: &mut BytesMut,
    ) -> Result<(), IncompleteBody> {
        if let RemainingBody::Length(_) = self.framing {
            return Err(IncompleteBody);
        }
        to.put_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            line(name.as_str(), value.as_bytes(), to);
        }
        to.put_slice(b"\r\n");
        self.framing = RemainingBody::Complete;
        Ok(())
    }
}

fn line(name: &str, value: &[u8], to: &mut BytesMut) {
    to.put_slice(name.as_bytes());
    to.put_slice(b": ");
    to.put_slice(value);
    to.put_slice(b"\r\n");
}

/// Whether a body has a meaning in requests of this method (RFC 9110 section 8.6).
fn takes_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}
