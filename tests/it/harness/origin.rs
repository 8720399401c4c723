//! The origin: its regular responses, and each fault.

use std::time::{Duration, Instant};

use hostkit_tests::origin::{OriginFault, OriginServer};

use super::{ConnectionEnd, ConnectionResult, talk};

const PATH: &str = "/pex/a.pex";
const SIZE: usize = 300_000;

fn data() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 31 / 8) as u8).collect()
}

fn origin() -> OriginServer {
    let origin = OriginServer::start();
    origin.put(PATH, data());
    origin
}

fn get(origin: &OriginServer, headers: &[&str]) -> ConnectionResult {
    talk(origin.port(), "GET", PATH, headers)
}

/// The response under one fault.
fn under(fault: OriginFault) -> ConnectionResult {
    let origin = origin();
    origin.fault(PATH, fault);
    get(&origin, &[])
}

#[test]
fn origin_serves_objects_ranges_and_404() {
    let origin = origin();
    let whole = get(&origin, &[]);
    assert_eq!((whole.code, whole.end), (200, ConnectionEnd::Closed));
    assert_eq!(
        whole
            .head
            .to_lowercase()
            .matches("content-length: 300000")
            .count(),
        1
    );
    assert!(whole.body == data());

    let part = get(&origin, &["Range: bytes=100000-199999"]);
    assert_eq!(
        (part.code, part.header("content-range")),
        (206, Some("bytes 100000-199999/300000"))
    );
    assert!(part.body == data()[100_000..200_000]);
    assert!(get(&origin, &["Range: bytes=-5"]).body == data()[SIZE - 5..]);
    assert!(get(&origin, &["Range: bytes=299990-400000"]).body == data()[299_990..]);
    let outside = get(&origin, &["Range: bytes=300000-"]);
    assert_eq!(
        (outside.code, outside.header("content-range")),
        (416, Some("bytes */300000"))
    );

    let head = talk(origin.port(), "HEAD", PATH, &[]);
    assert_eq!(
        (head.code, head.header("content-length"), head.body.len()),
        (200, Some("300000"), 0)
    );
    assert_eq!(talk(origin.port(), "GET", "/other", &[]).code, 404);
    origin.remove(PATH);
    assert_eq!(get(&origin, &[]).code, 404);
    assert_eq!(origin.bodies(PATH), 4);
    assert_eq!(origin.bytes(PATH), 300_000 + 100_000 + 5 + 10);
}

#[test]
fn conditional_requests_are_decided_by_etag() {
    let origin = origin();
    let etag = get(&origin, &[]).header("etag").unwrap().to_owned();
    let not_again = format!("If-None-Match: \"other\", {etag}");
    let only = format!("If-Match: {etag}");
    let seen = get(&origin, &[&not_again]);
    assert_eq!(
        (seen.code, seen.header("etag"), seen.body.len()),
        (304, Some(etag.as_str()), 0)
    );
    assert_eq!(get(&origin, &[&only, "Range: bytes=0-9"]).code, 206);
    assert_ne!(origin.put(PATH, vec![1; 10]), etag);
    assert_eq!(get(&origin, &[&not_again]).code, 200);
    assert_eq!(get(&origin, &[&only]).code, 412);
    let date = get(&origin, &[])
        .header("last-modified")
        .unwrap()
        .to_owned();
    assert_eq!(
        get(&origin, &[&format!("If-Modified-Since: {date}")]).code,
        304
    );
}

#[test]
fn origin_records_and_counts_requests() {
    let origin = origin();
    origin.require_basic("Aladdin", "open sesame");
    assert_eq!(get(&origin, &["User-Agent: probe/1"]).code, 401);
    let basic = "Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    let seen = talk(
        origin.port(),
        "GET",
        "/pex/a.pex?x=1",
        &[basic, "Range: bytes=0-1", "If-Match: *"],
    );
    assert_eq!(seen.code, 206);
    origin.wait_requests(PATH, 2);
    let requests = origin.requests();
    assert_eq!(requests[0].user_agent.as_deref(), Some("probe/1"));
    assert_eq!(requests[1].query.as_deref(), Some("x=1"));
    assert_eq!(requests[1].range.as_deref(), Some("bytes=0-1"));
    assert_eq!(requests[1].if_match.as_deref(), Some("*"));
    assert!(
        requests[1]
            .authorization
            .as_deref()
            .unwrap()
            .starts_with("Basic QWx")
    );
    assert_eq!(
        (
            origin.connections(),
            origin.bodies(PATH),
            origin.bytes(PATH)
        ),
        (2, 1, 2)
    );
    origin.reset_counters();
    assert_eq!(
        (
            origin.connections(),
            origin.bodies(PATH),
            origin.bytes(PATH)
        ),
        (0, 0, 0)
    );
    assert!(origin.requests().is_empty());
}

#[test]
fn truncate_fault_cuts_body_at_given_byte() {
    for (fault, end) in [
        (OriginFault::Truncate(123_456), ConnectionEnd::Closed),
        (OriginFault::Reset(123_456), ConnectionEnd::Reset),
        (OriginFault::Stall(123_456), ConnectionEnd::Silent),
    ] {
        let seen = under(fault.clone());
        assert_eq!(seen.header("content-length"), Some("300000"), "{fault:?}");
        assert!(
            seen.body == data()[..123_456],
            "{fault:?}: {} bytes",
            seen.body.len()
        );
        assert_eq!(seen.end, end, "{fault:?}");
    }
    let nothing = under(OriginFault::Truncate(0));
    assert_eq!(
        (nothing.code, nothing.body.len(), nothing.end),
        (200, 0, ConnectionEnd::Closed)
    );
}

#[test]
fn truncate_fault_counts_from_response_start_and_expires() {
    let origin = origin();
    origin.fault_times(PATH, OriginFault::Truncate(10), 1);
    assert_eq!(talk(origin.port(), "HEAD", PATH, &[]).code, 200);
    assert!(get(&origin, &["Range: bytes=1000-1999"]).body == data()[1000..1010]);
    assert_eq!(get(&origin, &["Range: bytes=1000-1999"]).body.len(), 1000);
}

#[test]
fn status_fault_may_send_retry_after() {
    let seen = under(OriginFault::Status {
        code: 503,
        retry_after: Some(7),
    });
    assert_eq!((seen.code, seen.header("retry-after")), (503, Some("7")));
    let origin = origin();
    origin.fault_times(
        PATH,
        OriginFault::Status {
            code: 500,
            retry_after: None,
        },
        2,
    );
    assert_eq!([(); 3].map(|()| get(&origin, &[]).code), [500, 500, 200]);
}

#[test]
fn content_length_fault_differs_by_delta() {
    let longer = under(OriginFault::WrongLength(5));
    assert_eq!(
        (longer.header("content-length"), longer.body.len()),
        (Some("300005"), SIZE)
    );
    assert_eq!(longer.end, ConnectionEnd::Closed);
    let shorter = under(OriginFault::WrongLength(-5));
    assert_eq!(
        (shorter.header("content-length"), shorter.body.len()),
        (Some("299995"), SIZE - 5)
    );
    let origin = origin();
    origin.fault(PATH, OriginFault::WrongLength(5));
    let part = get(&origin, &["Range: bytes=0-9"]);
    assert_eq!(part.header("content-range"), Some("bytes 0-9/300005"));
    assert_eq!(
        (part.header("content-length"), part.body.len()),
        (Some("10"), 10)
    );
}

#[test]
fn flip_fault_changes_one_byte_under_true_etag() {
    let origin = origin();
    let etag = origin.put(PATH, data());
    origin.fault(PATH, OriginFault::FlipByte(200_000));
    let mut expected = data();
    expected[200_000] = !expected[200_000];
    let seen = get(&origin, &[]);
    assert!(seen.body == expected);
    assert_eq!(seen.header("etag"), Some(etag.as_str()));
    assert!(get(&origin, &["Range: bytes=199990-200010"]).body == expected[199_990..=200_010]);
    assert!(get(&origin, &["Range: bytes=200001-200010"]).body == expected[200_001..=200_010]);
}

#[test]
fn swap_fault_replaces_object_between_requests() {
    let origin = origin();
    let first = get(&origin, &[]).header("etag").unwrap().to_owned();
    origin.fault(PATH, OriginFault::SwapAfter(1));
    assert_eq!(get(&origin, &[]).header("etag"), Some(first.as_str()));
    let second = get(&origin, &["Range: bytes=0-99"]);
    assert_ne!(second.header("etag"), Some(first.as_str()));
    assert!(
        second
            .body
            .iter()
            .zip(data())
            .all(|(new, old)| *new == !old)
    );
    assert_eq!(get(&origin, &[&format!("If-Match: {first}")]).code, 412);
    assert_eq!(origin.object(PATH).unwrap().len(), SIZE);
    assert_eq!(
        get(&origin, &[]).header("etag"),
        second.header("etag"),
        "swapped once"
    );
}

#[test]
fn rate_and_latency_faults_are_applied() {
    let started = Instant::now();
    let seen = under(OriginFault::Slow {
        bytes_per_second: 600_000,
    });
    assert!(seen.body == data());
    assert!(
        started.elapsed() > Duration::from_millis(400),
        "{:?}",
        started.elapsed()
    );
    let started = Instant::now();
    assert_eq!(
        under(OriginFault::Latency(Duration::from_millis(200))).code,
        200
    );
    assert!(started.elapsed() >= Duration::from_millis(200));
}

#[test]
fn feature_faults_disable_ranges_head_and_etags() {
    let origin = origin();
    origin.fault(PATH, OriginFault::NoRanges);
    let seen = get(&origin, &["Range: bytes=0-9"]);
    assert_eq!(
        (seen.code, seen.header("accept-ranges"), seen.body.len()),
        (200, None, SIZE)
    );
    origin.fault(PATH, OriginFault::Chunked);
    let seen = get(&origin, &["Range: bytes=0-9"]);
    assert_eq!((seen.code, seen.header("content-length")), (200, None));
    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
    origin.fault(PATH, OriginFault::NoEtag);
    assert_eq!(get(&origin, &["If-Match: \"x\""]).header("etag"), None);
    origin.fault(PATH, OriginFault::WeakEtag);
    let weak = get(&origin, &[]).header("etag").unwrap().to_owned();
    assert!(weak.starts_with("W/\""), "{weak}");
    assert_eq!(get(&origin, &[&format!("If-None-Match: {weak}")]).code, 304);
    assert_eq!(get(&origin, &[&format!("If-Match: {weak}")]).code, 412);
    origin.fault(PATH, OriginFault::OtherTags);
    let [one, other, again] =
        [(); 3].map(|()| get(&origin, &[]).header("etag").unwrap().to_owned());
    assert!(
        one == again && one != other && !other.starts_with("W/"),
        "{one} {other}"
    );
    let seen = |range: &str| {
        let seen = get(&origin, &[range, "If-Match: \"x\""]);
        (seen.code, seen.header("etag").is_some())
    };
    for (fault, expected) in [
        (
            OriginFault::UntaggedLaterRanges,
            [(412, true), (206, false)],
        ),
        (OriginFault::NoLaterRanges, [(412, true), (412, true)]),
    ] {
        origin.fault(PATH, fault);
        assert_eq!(["Range: bytes=0-9", "Range: bytes=5-9"].map(seen), expected);
    }
    let whole = get(&origin, &["Range: bytes=5-9"]);
    assert_eq!((whole.code, whole.body.len()), (200, SIZE));
    origin.fault(PATH, OriginFault::HeadStatus(403));
    assert_eq!(talk(origin.port(), "HEAD", PATH, &[]).code, 403);
    origin.fault(PATH, OriginFault::RefuseHead);
    assert_eq!(
        (
            talk(origin.port(), "HEAD", PATH, &[]).code,
            get(&origin, &[]).code
        ),
        (405, 200)
    );
    origin.fault(PATH, OriginFault::Redirect("/elsewhere".to_owned()));
    let seen = get(&origin, &[]);
    assert_eq!(
        (seen.code, seen.header("location")),
        (302, Some("/elsewhere"))
    );
    origin.clear_faults();
    assert_eq!(get(&origin, &["Range: bytes=0-9"]).code, 206);
}

#[test]
fn several_faults_apply_together() {
    let origin = origin();
    origin.faults(
        PATH,
        [
            OriginFault::Chunked,
            OriginFault::Truncate(1000),
            OriginFault::NoEtag,
        ],
    );
    let seen = get(&origin, &[]);
    assert_eq!(
        (seen.header("etag"), seen.header("content-length")),
        (None, None)
    );
    assert!(
        !seen.body.ends_with(b"0\r\n\r\n"),
        "the last chunk is missing"
    );
}

#[test]
fn dropped_origin_refuses_connections() {
    let origin = origin();
    let port = origin.port();
    drop(origin);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
