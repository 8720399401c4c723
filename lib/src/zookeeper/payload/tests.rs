//! Payloads that people and programs write, and those that nobody should.

use proptest::prelude::*;

use super::*;

/// As Aurora's executor writes it.
const AURORA: &str = r#"{"status": "ALIVE", "shard": 1,
    "serviceEndpoint": {"host": "agent03.example.com", "port": 31616},
    "additionalEndpoints": {"aurora": {"host": "agent03.example.com", "port": 31616},
                            "http": {"host": "agent03.example.com", "port": 31616},
                            "health": {"host": "agent03.example.com", "port": 31707}}}"#;

fn parse(format: MemberFormat, payload: &str) -> Result<Member, MemberError> {
    read(
        format,
        "member_0000000042",
        payload.as_bytes(),
        &StringInterner::default(),
    )
}

fn member(format: MemberFormat, payload: &str) -> Member {
    parse(format, payload).unwrap()
}

fn refused(format: MemberFormat, payload: &[u8]) -> MemberErrorKind {
    read(format, "x", payload, &StringInterner::default())
        .unwrap_err()
        .kind
}

#[test]
fn what_auroras_executor_writes() {
    let member = member(MemberFormat::ServerSet, AURORA);
    assert_eq!((member.sequence, member.shard), (Some(42), Some(1)));
    assert!(member.alive());
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
fn every_status_of_the_enumeration_and_none() {
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
        assert!(!member.alive());
    }
    assert_eq!(
        member(MemberFormat::ServerSet, "{}").status,
        MemberStatus::Unknown
    );
}

#[test]
fn a_port_is_kept_as_what_it_is() {
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
fn what_nerve_writes() {
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
    assert!(member.alive());
}

#[test]
fn a_name_that_carries_its_payload() {
    let payload = r#"{"host":"10.0.3.7","port":3000,"name":"???>>>"}"#;
    let padded = BASE64.encode(payload);
    assert!(
        padded.contains(['_', '-']),
        "the test wants the whole alphabet: {padded}"
    );
    for encoded in [padded.as_str(), padded.trim_end_matches('=')] {
        let name = format!("base64_{}_{encoded}_0000000007", encoded.len());
        let child = read_name(MemberFormat::Nerve, &name, &StringInterner::default()).unwrap();
        let member = child.unwrap();
        assert_eq!(member.sequence, Some(7));
        assert_eq!(
            member.nerve.as_ref().unwrap().name.as_deref(),
            Some("???>>>")
        );
        assert_eq!(
            read_name(MemberFormat::ServerSet, &name, &StringInterner::default()),
            None
        );
    }
    // Not of that form: an ordinary child that happens to be called so.
    for name in [
        "base64_",
        "base64_x_e30=_1",
        "base64_99_e30=_1",
        "base64_3_\u{e9}\u{e9}",
    ] {
        assert_eq!(
            read_name(MemberFormat::Nerve, name, &StringInterner::default()),
            None,
            "{name}"
        );
    }
    let broken = read_name(
        MemberFormat::Nerve,
        "base64_4_****_0000000001",
        &StringInterner::default(),
    );
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
}

#[test]
fn what_cannot_be_read_is_refused_with_its_reason() {
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
            refused(MemberFormat::Nerve, payload),
            MemberErrorKind::Malformed,
            "{payload:?}"
        );
    }
    let endpoint = r#"{"serviceEndpoint": {"port": 1}}"#;
    assert_eq!(
        refused(MemberFormat::ServerSet, endpoint.as_bytes()),
        MemberErrorKind::Malformed
    );
    let large = format!(r#"{{"host": "{}"}}"#, "h".repeat(PAYLOAD));
    assert_eq!(
        refused(MemberFormat::Nerve, large.as_bytes()),
        MemberErrorKind::Oversized
    );
}

#[test]
fn there_are_only_so_many_endpoints() {
    let ports = |count: usize| {
        let all: Vec<String> = (0..count)
            .map(|index| format!(r#""p{index}": {{"host": "h", "port": 1}}"#))
            .collect();
        format!(r#"{{"additionalEndpoints": {{{}}}}}"#, all.join(","))
    };
    let most = member(MemberFormat::ServerSet, &ports(ENDPOINTS));
    assert_eq!(most.additional.len(), ENDPOINTS);
    let more = ports(ENDPOINTS + 1);
    assert_eq!(
        refused(MemberFormat::ServerSet, more.as_bytes()),
        MemberErrorKind::Malformed
    );
}

#[test]
fn texts_are_shared_and_forgotten_with_the_last_member() {
    let names = StringInterner::default();
    let one = read(MemberFormat::ServerSet, "a", AURORA.as_bytes(), &names).unwrap();
    let two = read(MemberFormat::ServerSet, "b", AURORA.as_bytes(), &names).unwrap();
    let host = |member: &Member| Arc::clone(&member.endpoint(None).unwrap().host);
    assert!(Arc::ptr_eq(&host(&one), &host(&two)));
    drop((one, two));
    for index in 0..5000 {
        names.get(&index.to_string());
    }
    assert!(names.0.lock().unwrap().texts.len() <= 1024);
}

/// Text that is nearly a registration.
fn nearly() -> impl Strategy<Value = String> {
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
    fn any_bytes_are_a_member_or_refused(bytes: Vec<u8>) {
        fuzz_member_payload(&bytes);
    }

    #[test]
    fn anything_like_a_registration_is_a_member_or_refused(text in nearly()) {
        fuzz_member_payload(text.as_bytes());
    }

    #[test]
    fn names_that_carry_any_payload(payload: Vec<u8>, cut in 0usize..400) {
        let encoded = BASE64.encode(&payload);
        fuzz_member_payload(format!("base64_{cut}_{encoded}_0000000001").as_bytes());
        fuzz_member_payload(format!("base64_{}_{encoded}_0000000001", encoded.len()).as_bytes());
    }

    #[test]
    fn what_aurora_could_write_is_read_back(host in "\\PC{1,40}", port: u16, shard: u32) {
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
