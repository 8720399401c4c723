//! All attacks, through authproxy and through a proxy that copies bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use hostkit_tests::authproxy::RawResponse;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{is_long_run, wait_limit};

use super::attacks::{self, AttackCase};
use super::bytes::{encode_latin1, trailing_request};
use super::sender::send_all;
use super::{FramingRig, STRICT, find_violations};

/// The bytes of a case, with its number in every path.
fn number_case(number: usize, case: &AttackCase) -> Vec<u8> {
    let text = case
        .text
        .replace("/smuggled", &format!("/smuggled-{number}"));
    encode_latin1(&(text + &trailing_request(&number.to_string())))
}

#[test]
fn no_attack_shows_any_parser_a_request_without_a_key() {
    let personalities = if is_long_run() {
        ParserProfile::ALL.to_vec()
    } else {
        vec![STRICT]
    };
    for personality in personalities {
        let rig = FramingRig::start(personality);
        let cases = attacks::all_cases(is_long_run());
        println!("{} attacks", cases.len());
        let bytes = cases.iter().enumerate();
        let bytes = bytes
            .map(|(number, case)| number_case(number, case))
            .collect();
        let mut passed = 0;
        for came in send_all(rig.proxy.port(), bytes, wait_limit()) {
            let case = &cases[came.case];
            assert!(came.closed, "still open: {case:?}");
            let answer = RawResponse::parse(&came.answer);
            passed += usize::from(answer.is_some_and(|answer| answer.status == 200));
        }
        assert_eq!(find_violations(&rig.backend), [""; 0]);
        let record = rig.backend.seen();
        let smuggled = record.iter().flat_map(|seen| &seen.reading.requests);
        let smuggled: BTreeSet<_> = smuggled
            .filter(|request| request.target().contains("smuggled"))
            .map(|request| &request.line)
            .collect();
        assert!(smuggled.is_empty(), "{smuggled:?}");
        // Otherwise nothing was tested.
        assert!(passed > 100, "only {passed} of {} passed", cases.len());
    }
}

/// Copies bytes both ways without inspection.
fn start_copier(backend: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", backend)).unwrap();
            let both = [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ];
            for (mut from, mut to) in both {
                thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut bytes) {
                        if to.write_all(&bytes[..read]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Read);
                });
            }
        }
    });
    port
}

#[test]
fn detector_finds_every_technique_without_authproxy() {
    let backend = RecordingUpstream::start(STRICT);
    let cases: Vec<AttackCase> = attacks::all_cases(false);
    let bytes = cases.iter().enumerate();
    let bytes = bytes
        .map(|(number, case)| number_case(number, case))
        .collect();
    send_all(
        start_copier(backend.port()),
        bytes,
        Duration::from_millis(200),
    );
    assert!(!find_violations(&backend).is_empty());
    // The profiles that saw the hidden request, by technique.
    let mut seen: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (at, connection) in backend.seen().iter().enumerate() {
        for request in &connection.reading.requests {
            let number = request.target().strip_prefix("/smuggled-");
            let number = number.and_then(|rest| rest.parse::<usize>().ok());
            if let Some(number) = number {
                let technique = cases[number].technique;
                let of_four = at % ParserProfile::ALL.len();
                seen.entry(technique).or_default().insert(of_four);
            }
        }
    }
    let techniques: BTreeSet<_> = cases.iter().map(|case| case.technique).collect();
    let missed: Vec<_> = techniques
        .iter()
        .filter(|one| !seen.contains_key(**one))
        .collect();
    assert!(missed.is_empty(), "not detected: {missed:?}: {seen:?}");
    // And one that only some profiles see.
    assert!(
        seen.values()
            .any(|profiles| profiles.len() < ParserProfile::ALL.len()),
        "{seen:?}"
    );
}
