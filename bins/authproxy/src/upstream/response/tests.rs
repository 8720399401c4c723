//! Responses as servers send them, in one read and in many.

use hyper::body::Frame;
use proptest::prelude::*;

use super::*;

/// A complete response, and the number of bytes behind it.
#[derive(Debug, PartialEq, Eq)]
struct ReadResponse {
    status: u16,
    body: Vec<u8>,
    trailers: usize,
    keep_alive: bool,
    left: usize,
}

/// Reads a response that arrives in parts of these lengths, repeated. None: it is incomplete when the connection ends.
fn read(
    bytes: &[u8],
    method: &Method,
    pieces: &[usize],
) -> Result<Option<ReadResponse>, InvalidResponse> {
    let mut input = BytesMut::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    let mut more = |input: &mut BytesMut| {
        let length = rest.len().min(*pieces.next().unwrap());
        input.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
        length > 0
    };
    let mut head = loop {
        match read_head(&mut input, method, &mut HeaderMap::new())? {
            Some(head) => break head,
            None if !more(&mut input) => return Ok(None),
            None => {}
        }
    };
    let (mut body, mut trailers) = (Vec::new(), 0);
    loop {
        match head.body.next(&mut input)? {
            BodyPiece::Frame(frame) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Err(frame) => trailers += frame.into_trailers().unwrap().len(),
            },
            BodyPiece::End => break,
            BodyPiece::NeedMore if more(&mut input) => {}
            BodyPiece::NeedMore if head.body == BodyDecoder::Close => break,
            BodyPiece::NeedMore => return Ok(None),
        }
    }
    while more(&mut input) {}
    Ok(Some(ReadResponse {
        status: head.parts.status.as_u16(),
        body,
        trailers,
        keep_alive: head.keep_alive,
        left: input.len(),
    }))
}

fn get(text: &str) -> Result<Option<ReadResponse>, InvalidResponse> {
    read(text.as_bytes(), &Method::GET, &[usize::MAX])
}

#[test]
fn every_framing_is_read() {
    for (text, body, trailers, keep_alive) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nok",
            "ok",
            0,
            true,
        ),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "", 0, true),
        (
            "HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: x, close\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            true,
        ),
        // HTTP/1.0 servers that send chunks all the same.
        (
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "ok",
            0,
            false,
        ),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "ok",
            0,
            false,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", "to the end", 0, false),
        (
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nto the end",
            "to the end",
            0,
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n",
            "ok",
            0,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n01\r\nk\r\n000\r\nA: b\r\nC: d\r\n\r\n",
            "ok",
            2,
            true,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", 0, true),
        (
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            "",
            0,
            true,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "ok",
            0,
            true,
        ),
    ] {
        let read = get(text).unwrap().unwrap_or_else(|| panic!("{text:?}"));
        let body = body.as_bytes().to_vec();
        let status = read.status;
        assert_eq!(
            read,
            ReadResponse {
                status,
                body,
                trailers,
                keep_alive,
                left: 0
            },
            "{text:?}"
        );
    }
}

#[test]
fn connection_is_not_reused_after_a_response_that_may_have_an_unexpected_body() {
    let (head, get) = (Method::HEAD, Method::GET);
    for (method, text, keep_alive) in [
        (
            &head,
            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n",
            false,
        ),
        (
            &head,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
        ),
        (&head, "HTTP/1.1 200 OK\r\n\r\n", false),
        (&head, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        (&head, "HTTP/1.1 304 Not Modified\r\n\r\n", true),
        (
            &get,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n",
            false,
        ),
        (
            &get,
            "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n",
            false,
        ),
        (
            &get,
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
        ),
        (
            &get,
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            true,
        ),
    ] {
        let read = read(text.as_bytes(), method, &[usize::MAX]);
        let read = read.unwrap().unwrap();
        assert_eq!(
            (read.keep_alive, read.body.len()),
            (keep_alive, 0),
            "{method} {text:?}"
        );
    }
}

#[test]
fn incomplete_response_is_never_taken_for_a_complete_one() {
    for text in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
    ] {
        assert_eq!(get(text), Ok(None), "{text:?}");
    }
}

#[test]
fn invalid_response_is_refused() {
    for text in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11112222333344445\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno header\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: b\r\n\r\n",
    ] {
        assert!(get(text).is_err(), "{text:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    assert!(get(&long).is_err());
    let many = "A: b\r\n".repeat(MAX_LINES + 1);
    assert!(get(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")).is_err());
    let trailers = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{many}\r\n");
    assert!(get(&trailers).is_err());
    let line = "1;".to_owned() + &"x".repeat(MAX_CHUNK_LINE);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(get(&format!("{chunked}{line}")).is_err());
}

#[test]
fn head_and_trailers_of_up_to_1000_lines_are_read() {
    for lines in [USUAL_LINES, USUAL_LINES + 1, 150, MAX_LINES - 1] {
        let lines = "A: b\r\n".repeat(lines);
        let text = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{lines}\r\n2\r\nok\r\n0\r\n{lines}\r\n"
        );
        let whole = get(&text).unwrap().unwrap();
        assert_eq!(whole.body, b"ok");
        assert_eq!(
            read(text.as_bytes(), &Method::GET, &[7, 100]),
            Ok(Some(whole))
        );
    }
}

#[test]
fn bytes_behind_a_response_stay_in_the_input() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 ";
    assert_eq!(get(text).unwrap().unwrap().left, 9);
    let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore";
    assert_eq!(get(text).unwrap().unwrap().left, 4);
}

#[test]
fn reason_phrase_and_headers_are_kept() {
    let text = "HTTP/1.1 299 Quite Fine\r\nA: 1\r\na:  2 \r\nB:\r\nC: caf\u{e9}\r\n\r\n";
    let mut input = BytesMut::from(text);
    let parts = read_head(&mut input, &Method::GET, &mut HeaderMap::new())
        .unwrap()
        .unwrap()
        .parts;
    let reason = parts.extensions.get::<ReasonPhrase>().unwrap();
    assert_eq!(reason.as_bytes(), b"Quite Fine");
    let lines: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let expected: [(&str, &[u8]); 4] = [
        ("a", b"1"),
        ("a", b"2"),
        ("b", b""),
        ("c", "caf\u{e9}".as_bytes()),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn large_data_is_passed_on_without_a_copy() {
    let mut input = BytesMut::from(vec![b'x'; MAX_COPY + 1].as_slice());
    let start = input.as_ptr();
    let mut body = BodyDecoder::Length(u64::MAX);
    let Ok(BodyPiece::Frame(frame)) = body.next(&mut input) else {
        panic!("no data")
    };
    let data = Frame::into_data(frame).unwrap();
    assert_eq!((data.as_ptr(), data.len()), (start, MAX_COPY + 1));
}

proptest! {
    #[test]
    fn splitting_a_response_into_reads_makes_no_difference(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
        chunked in any::<bool>(),
        trailer in any::<bool>(),
        behind in prop::collection::vec(any::<u8>(), 0..5),
        pieces in prop::collection::vec(1_usize..30, 1..8),
    ) {
        let whole: Vec<u8> = chunks.concat();
        let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
        if chunked {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in &chunks {
                bytes.extend(format!("{:X}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(if trailer { &b"0\r\nT: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
        } else {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", whole.len()).as_bytes());
            bytes.extend(&whole);
        }
        let end = bytes.len();
        bytes.extend(&behind);
        let expected = ReadResponse {
            status: 200,
            body: whole,
            trailers: usize::from(chunked && trailer),
            keep_alive: true,
            left: behind.len(),
        };
        prop_assert_eq!(read(&bytes, &Method::GET, &pieces), Ok(Some(expected)));
        // No prefix of it is complete.
        for cut in 0..end {
            prop_assert_eq!(read(&bytes[..cut], &Method::GET, &pieces), Ok(None));
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), start in 0_usize..4) {
        let starts = [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ];
        let mut all = starts[start].as_bytes().to_vec();
        all.extend(bytes);
        let _ = read(&all, &Method::GET, &[7, 1, 50]);
    }
}
