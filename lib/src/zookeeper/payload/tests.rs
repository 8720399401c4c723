//! Valid, invalid and hostile payloads.

use proptest::prelude::*;

use super::*;

/// A payload of Aurora's executor.
const AURORA: &str = r#"{"status": "ALIVE", "shard": 1,
    "serviceEndpoint": {"host": "agent03.example.com", "port": 31616},
    "additionalEndpoints": {"aurora": {"host": "agent03.example.com", "port": 31616},
                            "http": {"host": "agent03.example.com", "port": 31616},
                            "health": {"host": "agent03.example.com", "port": 31707}}}"#;

fn parse(format: MemberFormat, payload: &str) -> Result<Member, MemberError> {
    decode_payload(
        format,
        "member_0000000042",
        payload.as_bytes(),
        &StringInterner::default(),
    )
}

fn member(format: MemberFormat, payload: &str) -> Member {
    parse(format, payload).unwrap()
}

fn error_kind(format: MemberFormat, payload: &[u8]) -> MemberErrorKind {
    decode_payload(format, "x", payload, &StringInterner::default())
        .unwrap_err()
        .kind
}

#[test]
fn server_set_payload_of_auroras_executor_is_decoded() {
    let member = member(MemberFormat::ServerSet, AURORA);
    assert_eq!((member.sequence, member.shard), (Some(42), Some(1)));
    assert!(member.is_alive());
    assert_eq!(
        member.endpoint(None).unwrap(),
        &MemberEndpoint {
            host: "agent03.example.com".into(),
            port: MemberPort::Number(31616)
        }
    );
    assert_eq!(
        member.endpoint(Some("health")).unwrap().port,
        MemberPort::Number(31707)
    );
    assert_eq!(member.endpoint(Some("private")), None);
}

#[test]
fn status_outside_the_enumeration_is_unknown() {
    for (text, status) in [
        (r#""DEAD""#, MemberStatus::Dead),
        (r#""STOPPING""#, MemberStatus::Stopping),
        (r#""WARNING""#, MemberStatus::Warning),
        (r#""alive""#, MemberStatus::Unknown),
        ("7", MemberStatus::Unknown),
        ("null", MemberStatus::Unknown),
    ] {
        let member = member(MemberFormat::ServerSet, &format!(r#"{{"status": {text}}}"#));
        assert_eq!(member.status, status, "{text}");
        assert!(!member.is_alive());
    }
    assert_eq!(
        member(MemberFormat::ServerSet, "{}").status,
        MemberStatus::Unknown
    );
}

#[test]
fn invalid_port_is_classified() {
    for (text, port) in [
        ("0", MemberPort::Number(0)),
        ("65535", MemberPort::Number(65535)),
        ("65536", MemberPort::OutOfRange),
        ("-1", MemberPort::OutOfRange),
        ("80.5", MemberPort::OutOfRange),
        (r#""80""#, MemberPort::NotANumber),
        ("[80]", MemberPort::NotANumber),
        ("null", MemberPort::NotANumber),
    ] {
        let payload = format!(r#"{{"host": "h", "port": {text}}}"#);
        let found = member(MemberFormat::Nerve, &payload)
            .service
            .as_ref()
            .unwrap()
            .port;
        assert_eq!(found, port, "{text}");
        assert_eq!(found.get().is_some(), text == "65535");
    }
    let without = member(MemberFormat::Nerve, r#"{"host": "h"}"#);
    assert_eq!(
        without.service.as_ref().unwrap().port,
        MemberPort::NotANumber
    );
}

#[test]
fn nerve_payload_is_decoded() {
    let member = member(
        MemberFormat::Nerve,
        r#"{"host":"10.0.3.7","port":3000,"name":"i-0abc","weight":10,"haproxy_server_options":"backup",
            "haproxy_server_id":7,"labels":{"az":"us-east-1a","rack":12,"odd":null},"unknown":{"deep":[[]]}}"#,
    );
    let expected = NerveAttributes {
        name: Some("i-0abc".to_owned()),
        weight: Some(10),
        options: Some("backup".to_owned()),
        server_id: Some(7),
        labels: [("az", "us-east-1a"), ("rack", "12")]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into(),
    };
    assert_eq!(member.nerve.as_deref(), Some(&expected));
    assert!(member.is_alive());
}

#[test]
fn name_with_payload_is_decoded() {
    let payload = r#"{"host":"10.0.3.7","port":3000,"name":"???>>>"}"#;
    let padded = BASE64.encode(payload);
    assert!(
        padded.contains(['_', '-']),
        "the test wants the whole alphabet: {padded}"
    );
    for encoded in [padded.as_str(), padded.trim_end_matches('=')] {
        let name = format!("base64_{}_{encoded}_0000000007", encoded.len());
        let child = decode_name(MemberFormat::Nerve, &name, &StringInterner::default()).unwrap();
        let member = child.unwrap();
        assert_eq!(member.sequence, Some(7));
        assert_eq!(
            member.nerve.as_ref().unwrap().name.as_deref(),
            Some("???>>>")
        );
        assert_eq!(
            decode_name(MemberFormat::ServerSet, &name, &StringInterner::default()),
            None
        );
    }
    // Not of that form: an ordinary child.
    for name in [
        "base64_",
        "base64_x_e30=_1",
        "base64_99_e30=_1",
        "base64_3_\u{e9}\u{e9}",
    ] {
        assert_eq!(
            decode_name(MemberFormat::Nerve, name, &StringInterner::default()),
            None,
            "{name}"
        );
    }
    let broken = decode_name(
        MemberFormat::Nerve,
        "base64_4_****_0000000001",
        &StringInterner::default(),
    );
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
}

#[test]
fn invalid_payload_is_rejected_with_its_kind() {
    let deep = format!("{}1{}", r#"{"status":"#.repeat(1000), "}".repeat(1000));
    let thrift = b"\x0c\x00\x01\x0b\x00\x01\x00\x00\x00\x04host\x08\x00\x02\x00\x00\x7a\x69\x00";
    for payload in [
        b"".as_slice(),
        b"  ",
        b"null",
        b"[\"ALIVE\"]",
        b"{",
        b"{\"host\": \"\xff\"}",
        b"{\"host\": 7}",
        b"{} {}",
        thrift,
        deep.as_bytes(),
    ] {
        assert_eq!(
            error_kind(MemberFormat::Nerve, payload),
            MemberErrorKind::Malformed,
            "{payload:?}"
        );
    }
    let endpoint = r#"{"serviceEndpoint": {"port": 1}}"#;
    assert_eq!(
        error_kind(MemberFormat::ServerSet, endpoint.as_bytes()),
        MemberErrorKind::Malformed
    );
    let large = format!(r#"{{"host": "{}"}}"#, "h".repeat(MAX_PAYLOAD_BYTES));
    assert_eq!(
        error_kind(MemberFormat::Nerve, large.as_bytes()),
        MemberErrorKind::Oversized
    );
}

#[test]
fn payload_with_too_many_endpoints_is_malformed() {
    let ports = |count: usize| {
        let all: Vec<String> = (0..count)
            .map(|index| format!(r#""p{index}": {{"host": "h", "port": 1}}"#))
            .collect();
        format!(r#"{{"additionalEndpoints": {{{}}}}}"#, all.join(","))
    };
    let most = member(MemberFormat::ServerSet, &ports(MAX_ENDPOINTS));
    assert_eq!(most.additional.len(), MAX_ENDPOINTS);
    let more = ports(MAX_ENDPOINTS + 1);
    assert_eq!(
        error_kind(MemberFormat::ServerSet, more.as_bytes()),
        MemberErrorKind::Malformed
    );
}

#[test]
fn strings_are_shared_and_freed_with_the_last_member() {
    let interner = StringInterner::default();
    let one = decode_payload(MemberFormat::ServerSet, "a", AURORA.as_bytes(), &interner).unwrap();
    let two = decode_payload(MemberFormat::ServerSet, "b", AURORA.as_bytes(), &interner).unwrap();
    let host = |member: &Member| Arc::clone(&member.endpoint(None).unwrap().host);
    assert!(Arc::ptr_eq(&host(&one), &host(&two)));
    drop((one, two));
    for index in 0..5000 {
        interner.intern(&index.to_string());
    }
    assert!(interner.0.lock().unwrap().texts.len() <= 1024);
}

/// Text that is almost a registration.
fn almost_a_registration() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just(r#""status""#.to_owned()),
        Just(r#""serviceEndpoint""#.to_owned()),
        Just(r#""additionalEndpoints""#.to_owned()),
        Just(r#""labels""#.to_owned()),
        Just(r#""host""#.to_owned()),
        Just(r#""port""#.to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "[{}\\[\\],:\" ]{1,3}",
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| format!("{{{}", words.concat()))
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_rejected(bytes: Vec<u8>) {
        fuzz_member_payload(&bytes);
    }

    #[test]
    fn any_almost_registration_is_decoded_or_rejected(text in almost_a_registration()) {
        fuzz_member_payload(text.as_bytes());
    }

    #[test]
    fn any_name_with_payload_is_decoded_or_rejected(payload: Vec<u8>, cut in 0usize..400) {
        let encoded = BASE64.encode(&payload);
        fuzz_member_payload(format!("base64_{cut}_{encoded}_0000000001").as_bytes());
        fuzz_member_payload(format!("base64_{}_{encoded}_0000000001", encoded.len()).as_bytes());
    }

    #[test]
    fn any_payload_of_aurora_round_trips(host in "\\PC{1,40}", port: u16, shard: u32) {
        let payload = serde_json::json!({
            "status": "ALIVE", "shard": shard,
            "serviceEndpoint": {"host": host, "port": port},
            "additionalEndpoints": {"http": {"host": host, "port": port}},
        });
        let member = member(MemberFormat::ServerSet, &payload.to_string());
        prop_assert_eq!(member.shard, Some(shard));
        let endpoint = member.endpoint(Some("http")).unwrap();
        prop_assert_eq!((&*endpoint.host, endpoint.port), (host.as_str(), MemberPort::Number(port)));
    }
}
