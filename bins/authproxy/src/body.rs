//! Bodies on their way through: the client's to the server, and the server's to the client.
//!
//! Owns both streams, the limit on a request's body, and the end of the record. A chunk is handed on as it came, and
//! the next one is not asked for before it is gone: what is under way of an exchange is bounded, and never on a disk.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::conn::Client;
use crate::deadline::Turn;
use crate::headers;
use crate::lifecycle::Phase;
use crate::proxy::Entry;
use crate::refusal::{Refusal, Truncation};
use crate::upstream::{Exchange, Truncated};

/// A body that ends before its end. Why is known elsewhere.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body was cut short")]
pub(crate) struct Cut;

/// What a server is sent.
pub(crate) struct ToServer(Option<FromClient>);

struct FromClient {
    incoming: Incoming,
    client: Arc<Client>,
    /// How much more may come.
    left: u64,
}

impl ToServer {
    /// The body of a client's request, of `limit` bytes at most.
    pub(crate) fn new(incoming: Incoming, client: &Arc<Client>, limit: Option<u64>) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        Self(Some(FromClient {
            incoming,
            client: Arc::clone(client),
            left: limit.unwrap_or(u64::MAX),
        }))
    }
}

impl Body for ToServer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let flow = &body.client.flow;
        let Poll::Ready(frame) = Pin::new(&mut body.incoming).poll_frame(cx) else {
            flow.turn(Turn::Client);
            return Poll::Pending;
        };
        flow.turn(Turn::Server);
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => pass(frame),
            Some(Err(_)) => {
                if let Some(refusal) = body.client.watch.body_fault() {
                    flow.fail(refusal);
                }
                return Poll::Ready(Some(Err(Cut)));
            }
        };
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        if length > body.left {
            flow.fail(Refusal::LargeBody);
            return Poll::Ready(Some(Err(Cut)));
        }
        body.left -= length;
        flow.receive(length);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|body| body.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |body| body.incoming.size_hint())
    }
}

/// What goes on of a piece: all of it, but trailers only as far as `headers` lets them.
fn pass(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::trailers(trailers);
    }
    frame
}

/// What a client is sent.
pub(crate) struct ToClient {
    source: Source,
    /// Handed on when the last byte is with hyper, or nobody wants it any more.
    entry: Entry,
}

enum Source {
    /// An answer of our own.
    Ours(Bytes),
    /// The server's.
    Server(Exchange),
    /// It was cut short.
    Cut,
    /// It has ended.
    Gone,
}

impl ToClient {
    /// An answer of our own.
    pub(crate) const fn ours(bytes: Bytes, entry: Entry) -> Self {
        Self {
            source: Source::Ours(bytes),
            entry,
        }
    }

    /// The server's answer.
    pub(crate) fn server(exchange: Exchange, entry: Entry) -> Self {
        let source = if exchange.is_whole() {
            Source::Gone
        } else {
            Source::Server(exchange)
        };
        Self { source, entry }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let exchange = match &mut self.source {
            Source::Gone => return Poll::Ready(None),
            Source::Cut => return Poll::Ready(Some(Err(Cut))),
            Source::Ours(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Gone;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::Server(exchange) => exchange,
        };
        match ready!(exchange.poll_frame(cx, &self.entry.client().flow)) {
            Some(Ok(frame)) => {
                self.entry.client().flow.body();
                if exchange.is_whole() {
                    self.source = Source::Gone;
                }
                Poll::Ready(Some(Ok(pass(frame))))
            }
            Some(Err(truncated)) => {
                self.source = Source::Cut;
                self.entry.cut(truncated);
                // hyper drops what it has not written yet when a body fails: what has come is written first.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.source = Source::Gone;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for ToClient {
    fn drop(&mut self) {
        if let Source::Server(exchange) = &self.source
            && !exchange.is_whole()
        {
            let client = self.entry.client();
            let cause = client.aborted().unwrap_or_else(|| match client.phase() {
                Phase::Ending => Truncation::Drained,
                _ => Truncation::ClientClosed,
            });
            self.entry.cut(Truncated::from(cause));
        }
    }
}

impl Body for ToClient {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let polled = self.poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(record) = self.entry.record()
        {
            record.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Gone => true,
            Source::Cut => false,
            Source::Ours(bytes) => bytes.is_empty(),
            Source::Server(exchange) => exchange.is_whole(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Gone => SizeHint::with_exact(0),
            Source::Cut => SizeHint::default(),
            Source::Ours(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Server(exchange) => exchange.size_hint(),
        }
    }
}
