//! The ways an origin can misbehave, and what several of them together mean for one request.

use std::time::Duration;

use super::wire::BodyEnd;

/// One misbehaviour of one path. Those that concern a body leave requests alone that are answered without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginFault {
    /// The connection is closed after this many bytes of a body whose full length was promised.
    Truncate(u64),
    /// After this many bytes of a body nothing more comes, and the connection stays open.
    Stall(u64),
    /// The connection is reset (TCP RST) after this many bytes of a body. Bytes still on their way may be lost with it.
    Reset(u64),
    /// Every request is answered with this status, and with `Retry-After` in seconds where it is given.
    Status {
        /// The HTTP status code.
        code: u16,
        /// The value of `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// The length of the object is wrong by this many bytes wherever it is told: in `Content-Length` of a whole body
    /// and of HEAD, and as the total in `Content-Range`. A body promised longer than it is ends with the connection.
    WrongLength(i64),
    /// The byte at this offset of the object is inverted on its way; the `ETag` is the true object's.
    FlipByte(u64),
    /// After this many requests the object is another one of the same length (every byte inverted) with another `ETag`.
    SwapAfter(u64),
    /// A body is paced.
    Slow {
        /// Body bytes per second on each connection.
        bytes_per_second: u64,
    },
    /// Nothing is answered for this long.
    Latency(Duration),
    /// `Range` is ignored: the answer is 200 with the whole object.
    NoRanges,
    /// No `ETag` is sent, and conditions on one are not looked at.
    NoEtag,
    /// The `ETag` is a weak one, which never satisfies `If-Match`.
    WeakEtag,
    /// Every second request is answered by another server behind this address, whose `ETag` of the same bytes differs.
    OtherTags,
    /// A range that does not begin the object carries no `ETag`, and conditions on one are not looked at.
    UntaggedLaterRanges,
    /// A range that does not begin the object is ignored: the answer is 200 with the whole object.
    NoLaterRanges,
    /// The body has no `Content-Length`; `Range` is ignored.
    Chunked,
    /// Answers 302 with this `Location`.
    Redirect(String),
    /// Answers 405 to HEAD.
    RefuseHead,
    /// Answers this status to HEAD, as a URL that is signed for GET does.
    HeadStatus(u16),
}

/// A fault that is set on a path.
#[derive(Debug)]
pub(super) struct ActiveFault {
    pub(super) fault: OriginFault,
    /// How many more requests it applies to; without end when `None`.
    pub(super) left: Option<u64>,
    /// Requests seen since it was set.
    pub(super) seen: u64,
}

/// What the strength of an `ETag` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EtagStrength {
    Strong,
    Weak,
    /// Strong, and not the one of the other requests.
    Other,
    None,
}

/// What is different for a range that does not begin the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaterRange {
    Untagged,
    Whole,
}

/// Everything that is to go wrong with one request.
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
    /// What the faults of a path do to one more request, which they are spent on.
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
    /// Whether it concerns only bodies, or only HEAD: other requests do not use it up.
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
