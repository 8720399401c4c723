//! Valid entries, and entries that an attacker could write.

use super::*;

const SETTINGS: settings::CacheSettings = settings::CacheSettings {
    entries: 10,
    allowed: Duration::from_secs(60),
    denied: Duration::from_secs(10),
    error: Duration::from_secs(1),
    stale: Duration::from_secs(600),
};

fn signer(prefix: &str, secret: &[u8]) -> EntrySigner {
    EntrySigner::new(prefix, &settings::SigningSecret(secret.to_vec())).unwrap()
}

fn our_signer() -> EntrySigner {
    signer("eightball", b"0123456789abcdef")
}

fn cached(grant: bool, ttl: u64) -> CachedResult {
    let grant = grant.then(|| {
        Arc::new(Grant {
            id: "alice".to_owned(),
            rights: vec!["all".to_owned()],
            hosts: vec!["*.example.com".to_owned()],
            paths: Vec::new(),
            methods: vec!["GET".to_owned()],
            expires: Some(1_900_000_000),
        })
    });
    CachedResult::with_age(grant, Duration::from_secs(ttl), Duration::ZERO, &SETTINGS)
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Different versions of authproxy share entries. The expected bytes were computed with Python's hmac from the description
/// of an entry: they change only together with the version in the name.
#[test]
fn entry_has_the_name_and_bytes_that_all_versions_agree_on() {
    let key = KeyHash::of(b"k");
    assert_eq!(
        our_signer().name(&key).0,
        "eightball:1:eae7e9bf257f7dadf2e5418e0c06dc028334a3400fa2f976621d0ed746cc753f"
    );
    let tag = "3fdecee8935392aab49d920a2def910f8b86e68a31287857306e60ba53f65281";
    let tag: KeyHash = tag.parse().unwrap();
    let payload = br#"{"issued":1000000,"ttl":10000,"grant":{"id":"alice","rights":["all"],"hosts":["*.example.com"],"methods":["GET"],"expires":"2030-03-17T17:46:40Z"}}"#;
    let entry = [b"1", &tag.bytes()[..], payload].concat();
    assert_eq!(
        our_signer().seal(&key, &cached(true, 10), at(1_000)),
        Some(entry)
    );
}

#[test]
fn opened_entry_has_its_content_and_age() {
    let key = KeyHash::of(b"k");
    for grant in [true, false] {
        let whole = cached(grant, 10);
        let entry = our_signer().seal(&key, &whole, at(1_000)).unwrap();
        let open = |now| our_signer().open(&key, &entry, &SETTINGS, at(now));
        assert_eq!(open(1_000), Some((1_000_000, whole.clone())));
        let later = open(1_009).unwrap().1;
        assert_eq!(later.grant, whole.grant);
        assert_eq!(
            (later.refresh_in, later.expires_in),
            (Duration::ZERO, Duration::from_secs(1))
        );
        // Expired; a grant can still be served while the backend fails, and not later.
        assert_eq!(open(1_010).is_some(), grant);
        if grant {
            let stale = open(1_010).unwrap().1;
            assert_eq!(
                (stale.expires_in, stale.stale_for),
                (Duration::ZERO, SETTINGS.stale)
            );
        }
        assert_eq!(open(1_610), None);
    }
}

#[test]
fn ttls_of_reader_limit_ttl_of_entry() {
    let key = KeyHash::of(b"k");
    let entry = our_signer()
        .seal(&key, &cached(true, 3_600), at(1_000))
        .unwrap();
    let (_, read) = our_signer()
        .open(&key, &entry, &SETTINGS, at(1_001))
        .unwrap();
    assert_eq!(read.expires_in, SETTINGS.allowed - Duration::from_secs(1));
    let unknown = our_signer()
        .seal(&key, &cached(false, 3_600), at(1_000))
        .unwrap();
    let (_, read) = our_signer()
        .open(&key, &unknown, &SETTINGS, at(1_000))
        .unwrap();
    assert_eq!(
        (read.expires_in, read.stale_for),
        (SETTINGS.denied, SETTINGS.denied)
    );
}

#[test]
fn entry_is_valid_with_clocks_up_to_a_minute_apart() {
    let key = KeyHash::of(b"k");
    let entry = our_signer()
        .seal(&key, &cached(true, 30), at(1_060))
        .unwrap();
    let (_, read) = our_signer()
        .open(&key, &entry, &SETTINGS, at(1_000))
        .unwrap();
    assert_eq!(
        read.expires_in,
        Duration::from_secs(30),
        "not longer than its ttl"
    );
    assert_eq!(our_signer().open(&key, &entry, &SETTINGS, at(999)), None);
}

#[test]
fn entry_with_any_bit_or_length_changed_is_invalid() {
    let key = KeyHash::of(b"k");
    let entry = our_signer()
        .seal(&key, &cached(true, 60), at(1_000))
        .unwrap();
    for bit in 0..entry.len() * 8 {
        let mut other = entry.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            our_signer().open(&key, &other, &SETTINGS, at(1_000)),
            None,
            "bit {bit}"
        );
    }
    for cut in 0..entry.len() {
        assert_eq!(
            our_signer().open(&key, &entry[..cut], &SETTINGS, at(1_000)),
            None,
            "{cut} bytes"
        );
    }
    let longer = [&entry[..], b" "].concat();
    assert_eq!(our_signer().open(&key, &longer, &SETTINGS, at(1_000)), None);
}

#[test]
fn entry_is_valid_only_for_its_key_prefix_and_secret() {
    let key = KeyHash::of(b"k");
    let entry = our_signer()
        .seal(&key, &cached(true, 60), at(1_000))
        .unwrap();
    for (what, signer, key) in [
        ("another key", our_signer(), KeyHash::of(b"j")),
        (
            "another prefix",
            signer("eightbal", b"0123456789abcdef"),
            key,
        ),
        (
            "another secret",
            signer("eightball", b"0123456789abcdeg"),
            key,
        ),
    ] {
        assert_eq!(
            signer.open(&key, &entry, &SETTINGS, at(1_000)),
            None,
            "{what}"
        );
        assert_ne!(
            signer.name(&key),
            our_signer().name(&KeyHash::of(b"k")),
            "{what}"
        );
    }
    // The HMAC of the name, which is visible in memcached, is not a valid tag either.
    let (name, _) = our_signer().name(&key);
    let tag = hex::decode(&name[name.len() - 2 * TAG_LENGTH..]).unwrap();
    let forged = [&[VERSION][..], &tag, b""].concat();
    assert_eq!(our_signer().open(&key, &forged, &SETTINGS, at(1_000)), None);
}

#[test]
fn name_fits_memcached_and_hides_the_key() {
    let key = KeyHash::of(b"k");
    let longest = "p".repeat(MAX_PREFIX_LENGTH);
    let (name, _) = signer(&longest, b"0123456789abcdef").name(&key);
    assert!(
        name.len() <= 250 && name.bytes().all(|byte| byte.is_ascii_graphic()),
        "{name}"
    );
    assert!(name.starts_with(&format!("{longest}:1:")) && !name.contains(&key.to_string()));
    for wrong in [
        "a b",
        "a\r\nflush_all",
        "ü",
        &"p".repeat(MAX_PREFIX_LENGTH + 1),
    ] {
        let secret = settings::SigningSecret(b"0123456789abcdef".to_vec());
        assert!(EntrySigner::new(wrong, &secret).is_err(), "{wrong}");
    }
    assert!(
        !format!("{:?}", our_signer()).contains("48"),
        "the secret is not shown"
    );
}
