//! Every case whole, byte by byte, and split anywhere.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::SUBSTITUTE_HEAD;
use super::cases::{CHUNKED, EXTENSION, INVALID_BODIES, INVALID_HEADS, VALID_BODIES, VALID_HEADS};
use super::{LIMIT, ValidationOutcome, validate};
use crate::request_error::RequestError;

fn invalid_head(error: RequestError) -> ValidationOutcome {
    ValidationOutcome {
        passed: SUBSTITUTE_HEAD.to_vec(),
        head_error: Some(error),
        body_error: None,
    }
}

fn valid(passed: impl Into<Vec<u8>>) -> ValidationOutcome {
    ValidationOutcome {
        passed: passed.into(),
        head_error: None,
        body_error: None,
    }
}

fn expand(text: &str) -> String {
    match text.strip_suffix('@') {
        Some(start) => format!("{start}Host: a\r\n\r\n"),
        None => text.to_owned(),
    }
}

/// Complete valid requests.
fn messages() -> Vec<Vec<u8>> {
    let heads = VALID_HEADS.iter().map(|text| expand(text));
    let bodies = VALID_BODIES
        .iter()
        .map(|text| text.replacen('~', CHUNKED, 1));
    heads.chain(bodies).map(String::into_bytes).collect()
}

/// Bytes of a client, and their outcome.
fn cases() -> Vec<(Vec<u8>, ValidationOutcome)> {
    let mut cases = Vec::new();
    for bytes in messages() {
        cases.push((bytes.clone(), valid(bytes)));
    }
    for (text, rule) in INVALID_HEADS {
        // Bytes behind an invalid head, complete or not, do not matter.
        cases.push((
            expand(text).into_bytes(),
            invalid_head(RequestError::InvalidRequest(rule)),
        ));
    }
    for (text, rule) in INVALID_BODIES {
        let (passed, _) = text.split_once('|').unwrap();
        let outcome = ValidationOutcome {
            passed: [CHUNKED, passed].concat().into_bytes(),
            head_error: None,
            body_error: Some(RequestError::InvalidRequest(rule)),
        };
        cases.push((
            [CHUNKED, &text.replace('|', "")].concat().into_bytes(),
            outcome,
        ));
    }
    let get = "GET / HTTP/1.1\r\nHost: a\r\n";
    cases.push((
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_vec(),
        invalid_head(RequestError::NotImplemented),
    ));
    // One empty line before a request is dropped; the second one is that of the next request.
    cases.push((
        format!("\r\n{get}\r\n\r\n{get}\r\n").into_bytes(),
        valid(format!("{get}\r\n{get}\r\n")),
    ));
    // Several messages, and a partial one.
    let chunked = VALID_BODIES.last().unwrap().replacen('~', CHUNKED, 1);
    let three = [VALID_BODIES[0], &chunked[..], VALID_HEADS[0]].concat();
    cases.push(([&three, "GET / HT"].concat().into_bytes(), valid(three)));
    // Each limit, and one more.
    let long = |length: usize| format!("{get}X: {}\r\n\r\n", "x".repeat(length - get.len() - 7));
    cases.push((long(LIMIT).into_bytes(), valid(long(LIMIT))));
    cases.push((
        long(LIMIT + 1).into_bytes(),
        invalid_head(RequestError::HeadTooLarge),
    ));
    cases.push((
        vec![b'a'; LIMIT + 1],
        invalid_head(RequestError::HeadTooLarge),
    ));
    let many = |lines: usize| format!("{get}{}\r\n", "a:\r\n".repeat(lines - 1));
    cases.push((many(100).into_bytes(), valid(many(100))));
    cases.push((
        many(101).into_bytes(),
        invalid_head(RequestError::HeadTooLarge),
    ));
    let trailers = |lines: usize| format!("{CHUNKED}0\r\n{}", "a:\r\n".repeat(lines));
    cases.push((
        format!("{}\r\n", trailers(100)).into_bytes(),
        valid(trailers(100) + "\r\n"),
    ));
    let body_error = |passed: String, error| ValidationOutcome {
        passed: passed.into_bytes(),
        head_error: None,
        body_error: Some(error),
    };
    cases.push((
        trailers(101).into_bytes(),
        body_error(trailers(100), RequestError::HeadTooLarge),
    ));
    let trailer = |length: usize| format!("{CHUNKED}0\r\nX: {}\r\n\r\n", "x".repeat(length - 7));
    cases.push((trailer(LIMIT).into_bytes(), valid(trailer(LIMIT))));
    // The empty line exceeds the limit.
    let passed = trailer(LIMIT + 1).trim_end_matches("\r\n").to_owned() + "\r\n";
    cases.push((
        trailer(LIMIT + 1).into_bytes(),
        body_error(passed, RequestError::HeadTooLarge),
    ));
    let extension = |length: usize| format!("1;{}\r\na\r\n", "x".repeat(length - 1));
    cases.push((
        format!("{CHUNKED}0000000000000001;{}\r\n", "x".repeat(255)).into_bytes(),
        valid(format!("{CHUNKED}0000000000000001;{}\r\n", "x".repeat(255))),
    ));
    cases.push((
        format!("{CHUNKED}0000000000000001;{}\r\n", "x".repeat(256)).into_bytes(),
        body_error(
            CHUNKED.to_owned(),
            RequestError::InvalidRequest("the line of a chunk's size is too long"),
        ),
    ));
    let extensions = [CHUNKED, &extension(256).repeat(32)].concat();
    cases.push((extensions.clone().into_bytes(), valid(extensions.clone())));
    let one_more = extensions.clone() + &extension(1);
    cases.push((
        one_more.into_bytes(),
        body_error(extensions, RequestError::InvalidRequest(EXTENSION)),
    ));
    cases
}

fn check_outcome(bytes: &[u8], pieces: Vec<Vec<u8>>, space: usize, expected: &ValidationOutcome) {
    let found = validate(pieces, space);
    assert_eq!(&found, expected, "{:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn every_case_in_one_piece_has_its_outcome() {
    for (bytes, expected) in cases() {
        check_outcome(&bytes, vec![bytes.clone()], 8192, &expected);
    }
}

#[test]
fn every_case_byte_by_byte_has_its_outcome() {
    for (bytes, expected) in cases() {
        let pieces = || bytes.iter().map(|byte| vec![*byte]).collect();
        check_outcome(&bytes, pieces(), 8192, &expected);
        check_outcome(&bytes, pieces(), 1, &expected);
    }
}

#[test]
fn every_case_in_two_pieces_has_its_outcome() {
    for (bytes, expected) in cases().into_iter().filter(|(bytes, _)| bytes.len() < 300) {
        for at in 1..bytes.len() {
            let (one, two) = bytes.split_at(at);
            check_outcome(&bytes, vec![one.to_vec(), two.to_vec()], 8192, &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequence_of_cases_in_any_pieces_has_its_outcome(
        before in prop::collection::vec(select(messages()), 0..3),
        last in select(cases()),
        cuts: Vec<Index>,
        space in prop_oneof![1_usize..64, Just(8192)],
    ) {
        let mut bytes = before.concat();
        let passed = [&bytes[..], &last.1.passed].concat();
        bytes.extend(last.0);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| bytes[cut[0]..cut[1]].to_vec());
        let pieces = pieces.filter(|piece| !piece.is_empty()).collect();
        check_outcome(&bytes, pieces, space, &ValidationOutcome { passed, ..last.1 });
    }
}
