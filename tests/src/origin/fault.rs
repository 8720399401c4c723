//! The faults of an origin, and the combined effect of several on one request.

use std::time::Duration;

use super::wire::BodyEnd;

/// One fault of one path. Faults of a body do not affect requests that are answered without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginFault {
    /// Closes the connection after this many bytes of a body whose full length was announced.
    Truncate(u64),
    /// Sends nothing after this many bytes of a body, and keeps the connection open.
    Stall(u64),
    /// Resets the connection (TCP RST) after this many bytes of a body. Bytes in transit may be lost with it.
    Reset(u64),
    /// Answers every request with this status, and with `Retry-After` in seconds if given.
    Status { code: u16, retry_after: Option<u64> },
    /// Falsifies the length of the object by this many bytes: in `Content-Length` of a whole body and of HEAD, and as
    /// the total in `Content-Range`. A body announced longer than it is ends with the connection.
    WrongLength(i64),
    /// Inverts the byte at this offset of the object; the `ETag` is that of the true object.
    FlipByte(u64),
    /// After this many requests, replaces the object by one of the same length (every byte inverted) with another
    /// `ETag`.
    SwapAfter(u64),
    /// Paces the body.
    Slow {
        /// Body bytes per second on each connection.
        bytes_per_second: u64,
    },
    /// Delays every response by this much.
    Latency(Duration),
    /// Ignores `Range`: the response is 200 with the whole object.
    NoRanges,
    /// Sends no `ETag`, and ignores conditions on it.
    NoEtag,
    /// Sends a weak `ETag`, which never satisfies `If-Match`.
    WeakEtag,
    /// Answers every second request like another server behind this address, with a different `ETag` for the same
    /// bytes.
    OtherTags,
    /// Sends no `ETag` with a range that does not begin the object, and ignores conditions on it.
    UntaggedLaterRanges,
    /// Ignores a range that does not begin the object: the response is 200 with the whole object.
    NoLaterRanges,
    /// Sends no `Content-Length`, and ignores `Range`.
    Chunked,
    /// Answers 302 with this `Location`.
    Redirect(String),
    /// Answers 405 to HEAD.
    RefuseHead,
    /// Answers this status to HEAD, as a URL that is signed for GET does.
    HeadStatus(u16),
}

#[derive(Debug)]
pub(super) struct ActiveFault {
    pub(super) fault: OriginFault,
    /// How many more requests it applies to; `None` for all.
    pub(super) left: Option<u64>,
    /// Requests since it was set.
    pub(super) seen: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EtagStrength {
    Strong,
    Weak,
    /// Strong, but different from that of other requests.
    Other,
    None,
}

/// The special treatment of a range that does not begin the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaterRange {
    Untagged,
    Whole,
}

/// All faults of one request.
#[derive(Debug)]
pub(super) struct FaultPlan {
    pub(super) latency: Duration,
    pub(super) status: Option<(u16, Option<u64>)>,
    pub(super) redirect: Option<String>,
    pub(super) head_status: Option<u16>,
    pub(super) ranges: bool,
    pub(super) later_range: Option<LaterRange>,
    pub(super) tags: EtagStrength,
    pub(super) chunked: bool,
    pub(super) length_delta: i64,
    pub(super) cut: Option<(u64, BodyEnd)>,
    pub(super) flip: Option<u64>,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) swap: bool,
}

impl FaultPlan {
    /// Applies the faults of a path to one more request, and counts it.
    pub(super) fn take(faults: &mut Vec<ActiveFault>, head: bool) -> Self {
        let mut plan = Self {
            latency: Duration::ZERO,
            status: None,
            redirect: None,
            head_status: None,
            ranges: true,
            later_range: None,
            tags: EtagStrength::Strong,
            chunked: false,
            length_delta: 0,
            cut: None,
            flip: None,
            bytes_per_second: None,
            swap: false,
        };
        for active in faults.iter_mut() {
            active.seen += 1;
            if head == active.fault.concerns_head() || !active.fault.needs_method() {
                plan.add(active);
                if let Some(left) = &mut active.left {
                    *left -= 1;
                }
            }
        }
        faults.retain(|active| active.left != Some(0) && !(plan.swap && active.fault.swaps()));
        plan
    }

    fn add(&mut self, active: &ActiveFault) {
        match &active.fault {
            OriginFault::Truncate(bytes) => self.cut = Some((*bytes, BodyEnd::Close)),
            OriginFault::Stall(bytes) => self.cut = Some((*bytes, BodyEnd::Stall)),
            OriginFault::Reset(bytes) => self.cut = Some((*bytes, BodyEnd::Reset)),
            OriginFault::Status { code, retry_after } => self.status = Some((*code, *retry_after)),
            OriginFault::WrongLength(delta) => self.length_delta = *delta,
            OriginFault::FlipByte(offset) => self.flip = Some(*offset),
            OriginFault::SwapAfter(requests) => self.swap = active.seen > *requests,
            OriginFault::Slow { bytes_per_second } => {
                self.bytes_per_second = Some(*bytes_per_second)
            }
            OriginFault::Latency(delay) => self.latency = *delay,
            OriginFault::NoRanges => self.ranges = false,
            OriginFault::NoEtag => self.tags = EtagStrength::None,
            OriginFault::WeakEtag => self.tags = EtagStrength::Weak,
            OriginFault::OtherTags if active.seen.is_multiple_of(2) => {
                self.tags = EtagStrength::Other
            }
            OriginFault::OtherTags => {}
            OriginFault::UntaggedLaterRanges => self.later_range = Some(LaterRange::Untagged),
            OriginFault::NoLaterRanges => self.later_range = Some(LaterRange::Whole),
            OriginFault::Chunked => (self.chunked, self.ranges) = (true, false),
            OriginFault::Redirect(location) => self.redirect = Some(location.clone()),
            OriginFault::RefuseHead => self.head_status = Some(405),
            OriginFault::HeadStatus(code) => self.head_status = Some(*code),
        }
    }
}

impl OriginFault {
    /// Whether it applies only to bodies or only to HEAD: other requests do not count.
    const fn needs_method(&self) -> bool {
        matches!(
            self,
            Self::Truncate(_)
                | Self::Stall(_)
                | Self::Reset(_)
                | Self::FlipByte(_)
                | Self::Slow { .. }
                | Self::RefuseHead
                | Self::HeadStatus(_)
        )
    }

    const fn concerns_head(&self) -> bool {
        matches!(self, Self::RefuseHead | Self::HeadStatus(_))
    }

    const fn swaps(&self) -> bool {
        matches!(self, Self::SwapAfter(_))
    }
}
