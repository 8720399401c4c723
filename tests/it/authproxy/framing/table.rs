//! Invalid requests: 400, the connection is closed, and the upstream receives nothing of them.

use hostkit_tests::authproxy::{RawResponse, exchange_bytes};
use hostkit_tests::wait_until;

use super::bytes::{encode_latin1, head, trailing_request};
use super::{FramingRig, STRICT, find_violations};

const LINE: &str = "POST /refused HTTP/1.1";

/// Header lines after `Host` and the key, and the bytes after the head. Together they are invalid.
const FRAMINGS: &[(&[&str], &str)] = &[
    (
        &["Content-Length: 5", "Transfer-Encoding: chunked"],
        "0\r\n\r\n",
    ),
    (
        &["Transfer-Encoding: chunked", "Content-Length: 5"],
        "0\r\n\r\n",
    ),
    (
        &["Transfer-Encoding: chunked", "Content-Length: 0"],
        "0\r\n\r\n",
    ),
    (&["Content-Length: 4", "Content-Length: 5"], "abcde"),
    (&["Content-Length: 4", "Content-Length: 4"], "abcd"),
    (&["Content-Length: 4", "content-length: 0"], "abcd"),
    (&["Content-Length: 4, 4"], "abcd"),
    (&["Content-Length: 4,5"], "abcd"),
    (&["Content-Length: +4"], "abcd"),
    (&["Content-Length: -4"], "abcd"),
    (&["Content-Length: 0x4"], "abcd"),
    (&["Content-Length: 4 4"], "abcd"),
    (&["Content-Length: 4;"], "abcd"),
    (&["Content-Length: 4.0"], "abcd"),
    (&["Content-Length: 04"], "abcd"),
    (&["Content-Length: 1e1"], "abcdefghij"),
    (&["Content-Length: four"], "abcd"),
    (&["Content-Length: \"4\""], "abcd"),
    (&["Content-Length:"], ""),
    (&["Content-Length: ,"], ""),
    (&["Content-Length: 18446744073709551616"], ""),
    (&["Content-Length: 99999999999999999999999999999999"], ""),
    (&["Content-Length: \u{b2}"], "ab"),
    (
        &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        "0\r\n\r\n",
    ),
    (
        &["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        "0\r\n\r\n",
    ),
    (
        &["Transfer-Encoding: identity", "Transfer-Encoding: chunked"],
        "0\r\n\r\n",
    ),
    (&["Transfer-Encoding: chunked, chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: chunked, gzip"], "0\r\n\r\n"),
    (&["Transfer-Encoding: chunked, identity"], "0\r\n\r\n"),
    (&["Transfer-Encoding: gzip"], ""),
    (&["Transfer-Encoding: identity"], ""),
    (&["Transfer-Encoding:"], ""),
    (&["Transfer-Encoding: ,chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: xchunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: chunked;q=1"], "0\r\n\r\n"),
    (&["Transfer-Encoding: \"chunked\""], "0\r\n\r\n"),
    (&["Transfer-Encoding: chunked\u{b}"], "0\r\n\r\n"),
    (&["Transfer-Encoding: \u{b}chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: chun\tked"], "0\r\n\r\n"),
    (&["Transfer-Encoding: chunked\u{85}"], "0\r\n\r\n"),
    (&["Transfer-Encoding : chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding\t: chunked"], "0\r\n\r\n"),
    (&["Transfer-Encoding:", " chunked"], "0\r\n\r\n"),
    (&["X: y", " Transfer-Encoding: chunked"], "0\r\n\r\n"),
    (&["Content-Length : 4"], "abcd"),
    (&["Content-Length:", "\t4"], "abcd"),
    (&["Content_Length: 4"], "abcd"),
    (&["Transfer_Encoding: chunked"], "0\r\n\r\n"),
    (&["Connection: Content-Length", "Content-Length: 4"], "abcd"),
    (
        &[
            "Connection: close, transfer-encoding",
            "Transfer-Encoding: chunked",
        ],
        "0\r\n\r\n",
    ),
];

/// Header lines that are invalid on their own.
const HEADERS: &[&str] = &[
    "X: y\r\n folded",
    "X: y\r\n\tfolded",
    "X: y\nbare: feed",
    "X: y\rbare: return",
    "X: \0",
    "X\0: y",
    "X: a\u{1}b",
    "X: a\u{7f}b",
    "X : y",
    "X\t: y",
    " X: y",
    "X y",
    "X",
    ": y",
    "X y: z",
    "X(y): z",
    "X\u{b}: y",
    "X\u{85}: y",
    "X\u{a0}: y",
    "Host: other",
    "Host: x",
    "host: other",
];

/// Request lines, all with a valid key in a header.
const LINES: &[&str] = &[
    "GET  /refused HTTP/1.1",
    "GET /refused  HTTP/1.1",
    "GET\t/refused HTTP/1.1",
    "GET /refused\tHTTP/1.1",
    " GET /refused HTTP/1.1",
    "GET /refused HTTP/1.1 ",
    "GET /refused HTTP/1.1 x",
    "GET /re fused HTTP/1.1",
    "GET /refused",
    "GET HTTP/1.1",
    "GET",
    "GET /refused HTTP/1.10",
    "GET /refused HTTP/01.1",
    "GET /refused HTTP/2.0",
    "GET /refused HTTP/0.9",
    "GET /refused HTTP/1,1",
    "GET /refused http/1.1",
    "GET /refused HTTPS/1.1",
    "G(T /refused HTTP/1.1",
    "GET /refused\0 HTTP/1.1",
    "GET /ref\u{b}used HTTP/1.1",
    "GET /ref\rused HTTP/1.1",
    "GET refused HTTP/1.1",
    "GET http://other/refused HTTP/1.1",
    "GET * HTTP/1.1",
];

/// Bodies after a chunked head. The upstream may have received the head, but no end.
const CHUNKS: &[&str] = &[
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\r\nabc\r\n0\n\r\n",
    "3\r\nabc\r\n0\r\n\n",
    "3\rabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "\t3\r\nabc\r\n0\r\n\r\n",
    "3g\r\nabc\r\n0\r\n\r\n",
    "3 3\r\nabc\r\n0\r\n\r\n",
    "three\r\nabc\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    ";x\r\nabc\r\n0\r\n\r\n",
    "10000000000000000\r\nabc\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n",
    "100000000000000003\r\nabc\r\n0\r\n\r\n",
    "3;x\nabc\r\n0\r\n\r\n",
    "3;x\ry\r\nabc\r\n0\r\n\r\n",
    "3;x\0\r\nabc\r\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nabc0\r\n\r\n",
    "3\r\nabc\r\r\n0\r\n\r\n",
    "3\r\nabc\r\n\r\n0\r\n\r\n",
    "3\r\nabcXX0\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\n X: y\r\n\r\n",
    "0\r\nX: y\r\n folded\r\n\r\n",
    "0\r\nX: \0\r\n\r\n",
    "0\r\nno colon\r\n\r\n",
    "0\r\nContent-Length: 4\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "0\r\nHost: other\r\n\r\n",
];

/// Sends a case and a request after it, which must not be served; returns the only response.
#[track_caller]
fn expect_rejection(rig: &FramingRig, case: &str) -> RawResponse {
    let all = encode_latin1(&format!("{case}{}", trailing_request("table")));
    let bytes = exchange_bytes(rig.proxy.port(), &all);
    let text = String::from_utf8_lossy(&bytes);
    let answers = text.lines().filter(|line| line.starts_with("HTTP/1."));
    let answers = answers.count();
    let answer = RawResponse::parse(&bytes).unwrap_or_else(|| panic!("no answer to {case:?}"));
    assert_eq!((answer.status, answers), (400, 1), "{case:?}: {answer:?}");
    let word = answer.reason();
    assert_eq!(
        word.as_deref(),
        Some("invalid_request"),
        "{case:?}: {answer:?}"
    );
    answer
}

/// A head with a host, the key and more, and the bytes after it.
fn head_with_key(line: &str, more: &[&str], body: &str) -> String {
    let mut headers = vec!["Host: x", "X-API-Key: valid-key"];
    headers.extend(more);
    head(line, &headers) + body
}

#[test]
fn ambiguous_framing_is_rejected() {
    let rig = FramingRig::start(STRICT);
    for (headers, body) in FRAMINGS {
        expect_rejection(&rig, &head_with_key(LINE, headers, body));
    }
    for transfer in ["chunked", "identity"] {
        let old = "POST /refused HTTP/1.0";
        let headers = [
            &format!("Transfer-Encoding: {transfer}"),
            "Connection: keep-alive",
        ];
        expect_rejection(&rig, &head_with_key(old, &headers, "0\r\n\r\n"));
    }
    assert!(rig.backend.requests().is_empty());
}

#[test]
fn invalid_request_heads_are_rejected() {
    let rig = FramingRig::start(STRICT);
    for header in HEADERS {
        expect_rejection(&rig, &head_with_key("GET /refused HTTP/1.1", &[header], ""));
        // The same before all other headers.
        let first = head(
            "GET /refused HTTP/1.1",
            &[header, "Host: x", "X-API-Key: valid-key"],
        );
        expect_rejection(&rig, &first);
    }
    for line in LINES {
        expect_rejection(&rig, &head_with_key(line, &[], ""));
    }
    let line = "GET /refused HTTP/1.1";
    expect_rejection(&rig, &head(line, &["X-API-Key: valid-key"]));
    let right = head_with_key(line, &[], "");
    expect_rejection(&rig, &right.replace("\r\n", "\n"));
    for (end, _) in right.match_indices("\r\n") {
        let bare = format!("{}{}", &right[..end], &right[end + 1..]);
        expect_rejection(&rig, &bare);
    }
    assert!(rig.backend.requests().is_empty());
}

#[test]
fn malformed_chunks_end_request_and_connection() {
    let rig = FramingRig::start(STRICT);
    for chunks in CHUNKS {
        expect_rejection(
            &rig,
            &head_with_key(LINE, &["Transfer-Encoding: chunked"], chunks),
        );
    }
    wait_until("the forwarded request is aborted", || {
        rig.backend
            .seen()
            .iter()
            .all(|seen| seen.reading.whole().is_empty())
    });
    assert_eq!(find_violations(&rig.backend), [""; 0]);
}

#[test]
fn valid_requests_are_forwarded_complete() {
    let rig = FramingRig::start(STRICT);
    let chunked = &["Transfer-Encoding: Chunked"][..];
    let right: &[(&str, &[&str], &str, &str)] = &[
        ("POST /a HTTP/1.1", &["Content-Length: 4"], "abcd", "abcd"),
        ("POST /b HTTP/1.1", &["content-length:\t4 "], "abcd", "abcd"),
        ("POST /c HTTP/1.1", &["Content-Length: 0"], "", ""),
        (
            "POST /d HTTP/1.1",
            chunked,
            "3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
            "abcd",
        ),
        (
            "POST /e HTTP/1.1",
            chunked,
            "0A\r\n0\r\n\r\nGET /\r\n000\r\n\r\n",
            "0\r\n\r\nGET /",
        ),
        (
            "PUT /f HTTP/1.1",
            chunked,
            "4\r\nabcd\r\n0\r\nX-Sum: y\r\n\r\n",
            "abcd",
        ),
        ("GET /g HTTP/1.1", &["Content-Length: 4"], "abcd", "abcd"),
        ("DELETE /h?x=%00 HTTP/1.1", &[], "", ""),
        ("GET /i HTTP/1.1", &["X: \u{e9}"], "", ""),
    ];
    let mut all = String::new();
    for (line, headers, body, _) in right {
        all.push_str(&head_with_key(line, headers, body));
    }
    // Pipelined, too.
    let bytes = exchange_bytes(
        rig.proxy.port(),
        &encode_latin1(&(all + &trailing_request("right"))),
    );
    let answers = String::from_utf8_lossy(&bytes);
    assert_eq!(
        answers.matches("HTTP/1.1 200 OK").count(),
        right.len() + 1,
        "{answers}"
    );
    let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
    for request in rig.backend.requests() {
        seen.push((request.line, request.body));
    }
    for (line, _, _, body) in right {
        assert!(
            seen.contains(&((*line).to_owned(), body.as_bytes().to_vec())),
            "{line}: {seen:?}"
        );
    }
    assert_eq!(find_violations(&rig.backend), [""; 0]);
}
