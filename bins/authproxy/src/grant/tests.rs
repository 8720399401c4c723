//! Validation and normal form of grants.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(value: Value) -> Result<Grant, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn with(member: &str, value: Value) -> Value {
    let mut grant = json!({"id": "eightball", "rights": ["all"]});
    grant[member] = value;
    grant
}

#[test]
fn hash_is_64_hex_digits_in_either_case() {
    let hash = KeyHash::of(b"some key");
    let text = hash.to_string();
    assert_eq!(text.len(), 64);
    assert_eq!(text.parse(), Ok(hash));
    assert_eq!(text.to_uppercase().parse(), Ok(hash));
    for wrong in [
        "",
        "hk_secretsecretsecret",
        &text[1..],
        &format!("{text}0"),
        &format!("+{}", &text[1..]),
        &format!("{}é", &text[2..]),
        &format!("g{}", &text[1..]),
    ] {
        let error = wrong.parse::<KeyHash>().unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn members_are_normalized() {
    let grant = read(json!({
        "id": "eightball",
        "rights": ["all", "write"],
        "hosts": ["*.Example.com.", "[::1]"],
        "paths": ["/a/%62/", "/"],
        "methods": ["GET"],
        "expires": "2027-01-31T01:00:00+01:00",
        "unknown": "ignored",
    }))
    .unwrap();
    assert_eq!(grant.hosts, ["*.example.com", "::1"]);
    assert_eq!(grant.paths, ["/a/b", "/"]);
    assert_eq!(grant.expires, Some(1_801_353_600));
    let text = serde_json::to_string(&grant).unwrap();
    assert!(text.contains("2027-01-31T00:00:00Z"), "{text}");
    assert_eq!(serde_json::from_str::<Grant>(&text).unwrap(), grant);
}

#[test]
fn missing_empty_and_null_restrictions_are_equal() {
    let bare = read(json!({"id": "a", "rights": []})).unwrap();
    let empty = json!({"id": "a", "rights": [], "hosts": [], "paths": null, "methods": [], "expires": null});
    assert_eq!(read(empty).unwrap(), bare);
    let text = serde_json::to_string(&bare).unwrap();
    assert_eq!(text, r#"{"id":"a","rights":[]}"#);
}

#[test]
fn invalid_member_is_rejected() {
    let long = "x".repeat(129);
    for (member, value) in [
        ("id", json!("")),
        ("id", json!("two words")),
        ("id", json!("line\nbreak")),
        ("id", json!("é")),
        ("id", json!(long)),
        ("id", json!(7)),
        ("id", json!(null)),
        ("rights", json!("all")),
        ("rights", json!(null)),
        ("rights", json!([1])),
        ("rights", json!(["a,b"])),
        ("rights", json!([""])),
        ("rights", json!([long])),
        ("rights", json!(vec!["a"; 257])),
        ("hosts", json!(["http://a"])),
        ("hosts", json!("a")),
        ("paths", json!(["a"])),
        ("paths", json!(["/a/../b"])),
        ("methods", json!(["get"])),
        ("methods", json!(["GET "])),
        ("methods", json!([""])),
        ("expires", json!("tomorrow")),
        ("expires", json!(1_801_353_600)),
    ] {
        assert!(
            read(with(member, value.clone())).is_err(),
            "{member}: {value}"
        );
    }
    assert!(read(json!({"id": "a"})).is_err());
    assert!(read(json!({"rights": []})).is_err());
    assert!(serde_json::from_str::<Grant>(r#"{"id":"a","id":"b","rights":[]}"#).is_err());
}

#[test]
fn expiry_accepts_dates_offsets_and_fractions() {
    for (text, expected) in [
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01 00:00:10", 10),
        ("1970-01-02", 86_400),
        ("1970-01-01T00:00:10.999Z", 10),
        ("1970-01-01T02:00:10+02:00", 10),
        ("9999-12-31T23:59:59Z", 253_402_300_799),
        ("1970-01-01T00:00:00-00:30", 1800),
        ("1970-01-01T00:00:00+23:00", 0),
    ] {
        assert_eq!(parse_expiry(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        "never",
        "1969-07-20T20:17:40Z",
        "2027-02-30",
        "2027-13-01T00:00:00Z",
        "2027-01-31T00:00:00+25:00",
        "2027-01-31T00:00:00Z+01:00",
        "2027-01-31T00:00:00+1:00",
        "2027-01-31T00:00:00+é0",
        "27-01-31",
    ] {
        assert!(parse_expiry(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_an_expiry_or_an_error(text in ".{0,32}", time in "[0-9T:+Z.-]{0,30}") {
        let _ = (parse_expiry(&text), parse_expiry(&time));
    }

    #[test]
    fn serialized_grant_deserializes_to_itself(
        id in "[!-~]{1,128}",
        rights in prop::collection::vec("[!-+.-~]{1,12}", 0..4),
        hosts in prop::collection::vec("(\\*\\.)?[a-zA-Z0-9]{1,5}\\.[a-z]{2}", 0..4),
        paths in prop::collection::vec("(/[a-zA-Z0-9%]{1,5}){1,3}/?", 0..4),
        expires in prop::option::of(0u64..200_000_000_000),
    ) {
        let expires = expires.map(|seconds| {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(time).to_string()
        });
        let value = json!({"id": id, "rights": rights, "hosts": hosts, "paths": paths, "expires": expires});
        if let Ok(grant) = read(value) {
            let again = serde_json::to_value(&grant).unwrap();
            prop_assert_eq!(read(again).unwrap(), grant);
        }
    }
}
