//! Entries as they were written, and as anybody on the network would like them.

use super::*;

const SETTINGS: settings::CacheSettings = settings::CacheSettings {
    entries: 10,
    allowed: Duration::from_secs(60),
    denied: Duration::from_secs(10),
    error: Duration::from_secs(1),
    stale: Duration::from_secs(600),
};

fn signer(prefix: &str, secret: &[u8]) -> Signer {
    Signer::new(prefix, &settings::SigningSecret(secret.to_vec())).unwrap()
}

fn ours() -> Signer {
    signer("eightball", b"0123456789abcdef")
}

fn kept(grant: bool, ttl: u64) -> Kept {
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
    Kept::of(grant, Duration::from_secs(ttl), Duration::ZERO, &SETTINGS)
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Versions of authproxy that are on a host at the same time share entries. What is expected here was computed by hand,
/// with Python's hmac, from the description of an entry: it changes only together with the version in the name.
#[test]
fn entry_has_the_name_and_bytes_that_all_versions_agree_on() {
    let key = KeyHash::of(b"k");
    assert_eq!(
        ours().name(&key).0,
        "eightball:1:eae7e9bf257f7dadf2e5418e0c06dc028334a3400fa2f976621d0ed746cc753f"
    );
    let tag = "3fdecee8935392aab49d920a2def910f8b86e68a31287857306e60ba53f65281";
    let tag: KeyHash = tag.parse().unwrap();
    let payload = br#"{"issued":1000000,"ttl":10000,"grant":{"id":"alice","rights":["all"],"hosts":["*.example.com"],"methods":["GET"],"expires":"2030-03-17T17:46:40Z"}}"#;
    let entry = [b"1", &tag.bytes()[..], payload].concat();
    assert_eq!(ours().seal(&key, &kept(true, 10), at(1_000)), Some(entry));
}

#[test]
fn an_entry_says_what_was_put_in_and_ages() {
    let key = KeyHash::of(b"k");
    for grant in [true, false] {
        let whole = kept(grant, 10);
        let entry = ours().seal(&key, &whole, at(1_000)).unwrap();
        let open = |now| ours().open(&key, &entry, &SETTINGS, at(now));
        assert_eq!(open(1_000), Some((1_000_000, whole.clone())));
        let later = open(1_009).unwrap().1;
        assert_eq!(later.grant, whole.grant);
        assert_eq!(
            (later.due, later.fresh),
            (Duration::ZERO, Duration::from_secs(1))
        );
        // Over; a grant is still good for when the engine fails, and then for nothing.
        assert_eq!(open(1_010).is_some(), grant);
        if grant {
            let stale = open(1_010).unwrap().1;
            assert_eq!((stale.fresh, stale.stale), (Duration::ZERO, SETTINGS.stale));
        }
        assert_eq!(open(1_610), None);
    }
}

#[test]
fn the_reader_decides_how_long_it_believes() {
    let key = KeyHash::of(b"k");
    let entry = ours().seal(&key, &kept(true, 3_600), at(1_000)).unwrap();
    let (_, read) = ours().open(&key, &entry, &SETTINGS, at(1_001)).unwrap();
    assert_eq!(read.fresh, SETTINGS.allowed - Duration::from_secs(1));
    let nobody = ours().seal(&key, &kept(false, 3_600), at(1_000)).unwrap();
    let (_, read) = ours().open(&key, &nobody, &SETTINGS, at(1_000)).unwrap();
    assert_eq!((read.fresh, read.stale), (SETTINGS.denied, SETTINGS.denied));
}

#[test]
fn clocks_may_differ_by_a_minute() {
    let key = KeyHash::of(b"k");
    let entry = ours().seal(&key, &kept(true, 30), at(1_060)).unwrap();
    let (_, read) = ours().open(&key, &entry, &SETTINGS, at(1_000)).unwrap();
    assert_eq!(
        read.fresh,
        Duration::from_secs(30),
        "not longer than it was given for"
    );
    assert_eq!(ours().open(&key, &entry, &SETTINGS, at(999)), None);
}

#[test]
fn every_bit_counts() {
    let key = KeyHash::of(b"k");
    let entry = ours().seal(&key, &kept(true, 60), at(1_000)).unwrap();
    for bit in 0..entry.len() * 8 {
        let mut other = entry.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            ours().open(&key, &other, &SETTINGS, at(1_000)),
            None,
            "bit {bit}"
        );
    }
    for cut in 0..entry.len() {
        assert_eq!(
            ours().open(&key, &entry[..cut], &SETTINGS, at(1_000)),
            None,
            "{cut} bytes"
        );
    }
    let longer = [&entry[..], b" "].concat();
    assert_eq!(ours().open(&key, &longer, &SETTINGS, at(1_000)), None);
}

#[test]
fn an_entry_counts_only_where_it_was_put() {
    let key = KeyHash::of(b"k");
    let entry = ours().seal(&key, &kept(true, 60), at(1_000)).unwrap();
    for (what, signer, key) in [
        ("another key", ours(), KeyHash::of(b"j")),
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
        assert_ne!(signer.name(&key), ours().name(&KeyHash::of(b"k")), "{what}");
    }
    // Not what a name is signed with, either: the name stands in memcached, beside the entry.
    let (name, _) = ours().name(&key);
    let tag: Vec<u8> = (0..TAG)
        .map(|at| u8::from_str_radix(&name[name.len() - 64 + 2 * at..][..2], 16).unwrap())
        .collect();
    let forged = [&[VERSION][..], &tag, b""].concat();
    assert_eq!(ours().open(&key, &forged, &SETTINGS, at(1_000)), None);
}

#[test]
fn names_fit_memcached_and_say_nothing_of_the_key() {
    let key = KeyHash::of(b"k");
    let longest = "p".repeat(LONGEST_PREFIX);
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
        &"p".repeat(LONGEST_PREFIX + 1),
    ] {
        let secret = settings::SigningSecret(b"0123456789abcdef".to_vec());
        assert!(Signer::new(wrong, &secret).is_err(), "{wrong}");
    }
    assert!(
        !format!("{:?}", ours()).contains("48"),
        "no secret is shown"
    );
}
