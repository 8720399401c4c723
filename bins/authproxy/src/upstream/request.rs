//! Writes a request to upstream: its head, and its body in the framing that the head declares.
//!
//! The framing is decided here: `Content-Length` and `Transfer-Encoding` of the client are never copied.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::Method;
use hyper::body::{Body as _, Frame};
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use hyper::http::request::Parts;

use super::connection::MAX_BUFFER;
use crate::body::{IncompleteBody, RequestBody};

pub(super) struct RequestWriter {
    body: RequestBody,
    remaining: RemainingBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RemainingBody {
    Length(u64),
    Chunked,
    Complete,
}

impl RequestWriter {
    pub(super) fn new(body: RequestBody) -> Self {
        let remaining = match body.size_hint().exact() {
            _ if body.is_end_stream() => RemainingBody::Complete,
            Some(length) => RemainingBody::Length(length),
            None => RemainingBody::Chunked,
        };
        Self { body, remaining }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.remaining == RemainingBody::Complete
    }

    pub(super) fn write_head(&self, parts: &Parts, to: &mut BytesMut) {
        to.reserve(1024);
        to.put_slice(parts.method.as_str().as_bytes());
        to.put_u8(b' ');
        let target = parts.uri.path_and_query();
        to.put_slice(target.map_or("/", |target| target.as_str()).as_bytes());
        to.put_slice(b" HTTP/1.1\r\n");
        for (name, value) in &parts.headers {
            if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
                write_line(name.as_str(), value.as_bytes(), to);
            }
        }
        match self.remaining {
            RemainingBody::Length(length) => {
                write_line("content-length", length.to_string().as_bytes(), to);
            }
            RemainingBody::Chunked => write_line("transfer-encoding", b"chunked", to),
            // Some servers respond 411 to such a method without a length.
            RemainingBody::Complete if expects_body(&parts.method) => {
                write_line("content-length", b"0", to)
            }
            RemainingBody::Complete => {}
        }
        if self.is_last(&parts.method) {
            write_line("connection", b"close", to);
        }
        to.put_slice(b"\r\n");
    }

    /// Whether a request has to be the last of its connection: it has a body where none is expected. A server that
    /// leaves the body unread would take it for the next request, which was never authorized.
    pub(super) fn is_last(&self, method: &Method) -> bool {
        self.remaining != RemainingBody::Complete && !expects_body(method)
    }

    /// Appends the body that has arrived, up to [`MAX_BUFFER`].
    pub(super) fn write_body(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut BytesMut,
    ) -> Result<(), IncompleteBody> {
        while self.remaining != RemainingBody::Complete && to.len() < MAX_BUFFER {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return Ok(());
            };
            match frame.transpose()? {
                Some(frame) => self.write_frame(frame, to)?,
                None => self.write_end(None, to)?,
            }
        }
        Ok(())
    }

    fn write_frame(
        &mut self,
        frame: Frame<Bytes>,
        to: &mut BytesMut,
    ) -> Result<(), IncompleteBody> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.write_end(frame.trailers_ref(), to),
        };
        match &mut self.remaining {
            RemainingBody::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(IncompleteBody)?;
                to.put_slice(&data);
                if *left == 0 {
                    self.remaining = RemainingBody::Complete;
                }
            }
            // An empty chunk would be the last one.
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

    fn write_end(
        &mut self,
        trailers: Option<&HeaderMap>,
        to: &mut BytesMut,
    ) -> Result<(), IncompleteBody> {
        if let RemainingBody::Length(_) = self.remaining {
            return Err(IncompleteBody);
        }
        to.put_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            write_line(name.as_str(), value.as_bytes(), to);
        }
        to.put_slice(b"\r\n");
        self.remaining = RemainingBody::Complete;
        Ok(())
    }
}

fn write_line(name: &str, value: &[u8], to: &mut BytesMut) {
    to.put_slice(name.as_bytes());
    to.put_slice(b": ");
    to.put_slice(value);
    to.put_slice(b"\r\n");
}

/// Whether requests of this method have a body (RFC 9110 section 8.6).
fn expects_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}
