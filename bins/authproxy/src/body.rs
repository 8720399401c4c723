//! The streams of both bodies: the client's to upstream, and the response's to the client.
//!
//! Owns the limit on a request body and the end of the record. A chunk is passed on before the next one is read, so the
//! memory of an exchange is bounded, and nothing is written to disk.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::connection::ClientConnection;
use crate::deadline::ActiveParty;
use crate::headers;
use crate::lifecycle::LifecyclePhase;
use crate::proxy::ActiveRequest;
use crate::request_error::{RequestError, TruncationReason};
use crate::upstream::{TruncatedResponse, UpstreamExchange};

/// A truncated body. The reason is recorded elsewhere.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("truncated body")]
pub(crate) struct IncompleteBody;

/// The request body that upstream gets.
pub(crate) struct RequestBody(Option<ClientBody>);

struct ClientBody {
    incoming: Incoming,
    client: Arc<ClientConnection>,
    /// Bytes that are still allowed.
    left: u64,
}

impl RequestBody {
    pub(crate) fn new(
        incoming: Incoming,
        client: &Arc<ClientConnection>,
        limit: Option<u64>,
    ) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        Self(Some(ClientBody {
            incoming,
            client: Arc::clone(client),
            left: limit.unwrap_or(u64::MAX),
        }))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = IncompleteBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let activity = &body.client.activity;
        let Poll::Ready(frame) = Pin::new(&mut body.incoming).poll_frame(cx) else {
            activity.set_active_party(ActiveParty::Client);
            return Poll::Pending;
        };
        activity.set_active_party(ActiveParty::Upstream);
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => filter_frame(frame),
            Some(Err(_)) => {
                if let Some(error) = body.client.validation.body_error() {
                    activity.fail(error);
                }
                return Poll::Ready(Some(Err(IncompleteBody)));
            }
        };
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        if length > body.left {
            activity.fail(RequestError::BodyTooLarge);
            return Poll::Ready(Some(Err(IncompleteBody)));
        }
        body.left -= length;
        activity.add_received(length);
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

/// Removes trailers that `headers` does not pass on.
fn filter_frame(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::filter_trailers(trailers);
    }
    frame
}

/// The response body that a client gets.
pub(crate) struct ResponseBody {
    source: ResponseSource,
    /// Dropped when hyper has taken the last byte, or drops the body.
    active: ActiveRequest,
}

enum ResponseSource {
    Local(Bytes),
    Upstream(UpstreamExchange),
    Truncated,
    Ended,
}

impl ResponseBody {
    /// The body of a response of authproxy itself.
    pub(crate) const fn local(bytes: Bytes, active: ActiveRequest) -> Self {
        Self {
            source: ResponseSource::Local(bytes),
            active,
        }
    }

    pub(crate) fn upstream(exchange: UpstreamExchange, active: ActiveRequest) -> Self {
        let source = if exchange.is_complete() {
            ResponseSource::Ended
        } else {
            ResponseSource::Upstream(exchange)
        };
        Self { source, active }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        let exchange = match &mut self.source {
            ResponseSource::Ended => return Poll::Ready(None),
            ResponseSource::Truncated => return Poll::Ready(Some(Err(IncompleteBody))),
            ResponseSource::Local(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = ResponseSource::Ended;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            ResponseSource::Upstream(exchange) => exchange,
        };
        match ready!(exchange.poll_frame(cx, &self.active.client().activity)) {
            Some(Ok(frame)) => {
                self.active.client().activity.begin_response_body();
                if exchange.is_complete() {
                    self.source = ResponseSource::Ended;
                }
                Poll::Ready(Some(Ok(filter_frame(frame))))
            }
            Some(Err(truncated)) => {
                self.source = ResponseSource::Truncated;
                self.active.truncate(truncated);
                // hyper drops unwritten bytes when a body fails, so they are written first.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.source = ResponseSource::Ended;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let ResponseSource::Upstream(exchange) = &self.source
            && !exchange.is_complete()
        {
            let client = self.active.client();
            let reason = client
                .abort_reason()
                .unwrap_or_else(|| match client.phase() {
                    LifecyclePhase::Aborting => TruncationReason::DrainTimeout,
                    _ => TruncationReason::ClientClosed,
                });
            self.active.truncate(TruncatedResponse::from(reason));
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = IncompleteBody;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncompleteBody>>> {
        let polled = self.poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(record) = self.active.record()
        {
            record.bytes_out += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            ResponseSource::Ended => true,
            ResponseSource::Truncated => false,
            ResponseSource::Local(bytes) => bytes.is_empty(),
            ResponseSource::Upstream(exchange) => exchange.is_complete(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            ResponseSource::Ended => SizeHint::with_exact(0),
            ResponseSource::Truncated => SizeHint::default(),
            ResponseSource::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            ResponseSource::Upstream(exchange) => exchange.size_hint(),
        }
    }
}
