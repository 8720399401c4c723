//! Builds the response to one request: conditions, ranges and headers, altered by the faults of the path.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};

use super::fault::{EtagStrength, FaultPlan, LaterRange};
use super::wire::{BodyEnd, OriginBody, SendPace, WireSignals};
use super::{OriginContext, OriginObject};

pub(super) fn answer(
    shared: &OriginContext,
    signals: Arc<WireSignals>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    plan: &FaultPlan,
) -> Response<OriginBody> {
    let reply = ResponseBuilder {
        shared,
        signals,
        path,
        head: method == Method::HEAD,
        plan,
    };
    if let Some((code, retry_after)) = plan.status {
        let mut response = reply.text(code, "injected failure\n");
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        return response;
    }
    if let Some(location) = &plan.redirect {
        let mut response = reply.text(302, "");
        set(&mut response, header::LOCATION, location);
        return response;
    }
    if let Some(code) = plan.head_status.filter(|_| reply.head) {
        return reply.text(code, "not this method\n");
    }
    if !(reply.head || method == Method::GET) {
        return reply.text(405, "not this method\n");
    }
    let authorization = text_of(headers, &header::AUTHORIZATION);
    let object = {
        let state = shared.state.lock().unwrap();
        if state.authorization.is_some() && state.authorization.as_deref() != authorization {
            drop(state);
            let mut response = reply.text(401, "authorization required\n");
            set(
                &mut response,
                header::WWW_AUTHENTICATE,
                "Basic realm=\"origin\"",
            );
            return response;
        }
        state.objects.get(path).cloned()
    };
    match object {
        Some(object) => reply.object(&object, headers),
        None => reply.text(404, "no such object\n"),
    }
}

struct ResponseBuilder<'a> {
    shared: &'a OriginContext,
    signals: Arc<WireSignals>,
    path: &'a str,
    head: bool,
    plan: &'a FaultPlan,
}

impl ResponseBuilder<'_> {
    fn object(&self, object: &OriginObject, headers: &HeaderMap) -> Response<OriginBody> {
        let range = text_of(headers, &header::RANGE);
        let later_range = self.plan.later_range.filter(|_| is_later(range));
        let etag = match self.plan.tags {
            _ if later_range == Some(LaterRange::Untagged) => None,
            EtagStrength::Strong => Some(object.etag.clone()),
            EtagStrength::Weak => Some(format!("W/{}", object.etag)),
            EtagStrength::Other => Some(object.etag.replacen('"', "\"other-", 1)),
            EtagStrength::None => None,
        };
        let mut response = match self.condition(etag.as_deref(), object, headers) {
            Some(code) => self.text(code, ""),
            None => self.body(
                object,
                range.filter(|_| later_range != Some(LaterRange::Whole)),
            ),
        };
        if let Some(etag) = etag {
            set(&mut response, header::ETAG, &etag);
        }
        set(&mut response, header::LAST_MODIFIED, &object.last_modified);
        response
    }

    /// The status that a condition of the request demands instead of the object.
    fn condition(
        &self,
        etag: Option<&str>,
        object: &OriginObject,
        headers: &HeaderMap,
    ) -> Option<u16> {
        if let (Some(etag), Some(wanted)) = (etag, text_of(headers, &header::IF_MATCH)) {
            let strong = matches!(self.plan.tags, EtagStrength::Strong | EtagStrength::Other);
            if wanted != "*" && !(strong && listed(wanted, etag)) {
                return Some(412);
            }
        }
        match (etag, text_of(headers, &header::IF_NONE_MATCH)) {
            (Some(etag), Some(known)) => (known == "*" || listed(known, etag)).then_some(304),
            _ => {
                let since = text_of(headers, &header::IF_MODIFIED_SINCE);
                (since == Some(object.last_modified.as_str())).then_some(304)
            }
        }
    }

    fn body(&self, object: &OriginObject, range: Option<&str>) -> Response<OriginBody> {
        let total = object.data.len() as u64;
        let outcome = total.saturating_add_signed(self.plan.length_delta);
        let range = range
            .filter(|_| self.plan.ranges && !self.head)
            .and_then(|text| parse(text, total));
        let (code, from, to) = match range {
            None => (200, 0, total),
            Some(RequestedRange::Outside) => {
                let mut response = self.text(416, "");
                set(
                    &mut response,
                    header::CONTENT_RANGE,
                    &format!("bytes */{outcome}"),
                );
                return response;
            }
            Some(RequestedRange::Bytes(from, to)) => (206, from, to),
        };
        let mut response = self.data(
            object.data.slice(from as usize..to as usize),
            from,
            code,
            outcome,
        );
        if code == 206 {
            let place = format!("bytes {from}-{}/{outcome}", to - 1);
            set(&mut response, header::CONTENT_RANGE, &place);
        }
        if self.plan.ranges {
            set(&mut response, header::ACCEPT_RANGES, "bytes");
        }
        set(
            &mut response,
            header::CONTENT_TYPE,
            "application/octet-stream",
        );
        response
    }

    fn data(&self, mut data: Bytes, from: u64, code: u16, outcome: u64) -> Response<OriginBody> {
        let length = if code == 200 {
            outcome
        } else {
            data.len() as u64
        };
        let mut end = if length > data.len() as u64 {
            BodyEnd::Close
        } else {
            BodyEnd::Clean
        };
        data.truncate(length as usize);
        if self.head {
            data.clear();
            end = BodyEnd::Clean;
        } else if let Some((bytes, cut)) = self.plan.cut
            && bytes < data.len() as u64
        {
            data.truncate(bytes as usize);
            end = cut;
        }
        let count = {
            let mut state = self.shared.state.lock().unwrap();
            if !self.head {
                *state.bodies.entry(self.path.to_owned()).or_default() += 1;
            }
            state.sent.entry(self.path.to_owned()).or_default().clone()
        };
        let mut response = Response::new(OriginBody {
            data,
            end,
            flip: self.plan.flip.and_then(|offset| offset.checked_sub(from)),
            pace: self.plan.bytes_per_second.map(SendPace::new),
            signals: self.signals.clone(),
            count,
        });
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        if !self.plan.chunked {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        response
    }

    /// A response without an object; its bytes are not counted.
    fn text(&self, code: u16, text: &'static str) -> Response<OriginBody> {
        let mut response = Response::new(OriginBody {
            data: Bytes::from_static(if self.head { b"" } else { text.as_bytes() }),
            end: BodyEnd::Clean,
            flip: None,
            pace: None,
            signals: self.signals.clone(),
            count: Arc::default(),
        });
        *response.status_mut() = StatusCode::from_u16(code).expect("a status code");
        if code != 304 {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, text.len().into());
        }
        response
    }
}

/// Whether a range does not begin the object.
fn is_later(range: Option<&str>) -> bool {
    range.is_some_and(|range| !range.starts_with("bytes=0-"))
}

enum RequestedRange {
    /// From the first offset up to, not including, the second.
    Bytes(u64, u64),
    Outside,
}

/// Parses a single byte range of an object of `total` bytes; any other is ignored.
fn parse(text: &str, total: u64) -> Option<RequestedRange> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (first, last) {
        ("", suffix) => (total.saturating_sub(suffix.parse().ok()?), total),
        (from, "") => (from.parse().ok()?, total),
        (from, last) => (
            from.parse().ok()?,
            last.parse::<u64>().ok()?.saturating_add(1).min(total),
        ),
    };
    Some(if from < to {
        RequestedRange::Bytes(from, to)
    } else {
        RequestedRange::Outside
    })
}

/// Whether a list of tags contains this one, weak or not.
fn listed(list: &str, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    list.split(',').any(|tag| bare(tag) == bare(etag))
}

pub(super) fn text_of<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn set(response: &mut Response<OriginBody>, name: header::HeaderName, value: &str) {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_str(value).expect("a header value"));
}
