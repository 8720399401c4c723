//! Which files are taken, and which one is in force.

use hostkit::Exit;
use tempfile::TempDir;

use super::*;

fn entry(id: &str, key: &str) -> String {
    let sha256 = KeyHash::of(key.as_bytes());
    format!("- {{id: {id}, sha256: {sha256}, rights: [all]}}\n")
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    std::fs::write(&path, text).unwrap();
    (temp, path)
}

fn refused(text: &str) -> String {
    let (_temp, path) = file(text);
    let failure = AclFile::open(&path).unwrap_err();
    assert_eq!(failure.exit(), Exit::CONFIG);
    let said = failure.to_string();
    assert!(said.contains("acl.yaml") && !said.contains('\n'), "{said}");
    said
}

#[test]
fn keys_are_found_by_their_hash_with_all_they_have() {
    let hash = KeyHash::of(b"one");
    let text = format!(
        "keys:\n\
         - id: eightball\n  sha256: {}\n  rights: [all, write]\n  hosts: [\"*.Example.com\"]\n  paths: [/a/]\n  \
         methods: [GET]\n  expires: 2027-01-31\n{}",
        hash.to_string().to_uppercase(),
        entry("eightball", "its next one"),
    );
    let (_temp, path) = file(&text);
    let acl = AclFile::open(&path).unwrap();
    let grant = acl.get(&hash).unwrap();
    assert_eq!(
        *grant,
        Grant {
            id: "eightball".to_owned(),
            rights: vec!["all".to_owned(), "write".to_owned()],
            hosts: vec!["*.example.com".to_owned()],
            paths: vec!["/a".to_owned()],
            methods: vec!["GET".to_owned()],
            expires: Some(1_801_353_600),
        }
    );
    let next = acl.get(&KeyHash::of(b"its next one")).unwrap();
    assert_eq!(next.id, "eightball", "two keys may be of one owner");
    assert_eq!(acl.get(&KeyHash::of(b"three")), None);
    assert_eq!(acl.status().entries, 2);
}

#[test]
fn a_file_without_keys_is_a_file() {
    let (_temp, path) = file("keys: []\n");
    assert_eq!(AclFile::open(&path).unwrap().status().entries, 0);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let one = entry("one", "one");
    for (text, expected) in [
        (String::new(), "unexpected end of file"),
        ("keys:\n".to_owned(), "a list of keys"),
        (
            "kyes: []\n".to_owned(),
            ":1:1: unknown key `kyes`: did you mean `keys`?",
        ),
        (
            format!("keys:\n{}", one.replace("rights", "right")),
            ":2:87: unknown key `right`: did you mean `rights`?",
        ),
        (format!("keys:\n{}", one.replace("id: one, ", "")), "id"),
        (
            format!("keys:\n{}", one.replace("one", "two words")),
            ":2:8: `id`: \"two words\" is no name",
        ),
        (
            format!("keys:\n{}", one.replace(", rights: [all]", "")),
            "rights",
        ),
        (format!("keys:\n{}", one.replace("[all]", "all")), ":2:"),
        (
            format!("keys:\n{}", one.replace("[all]", "[all], paths: [a]")),
            "begin with a slash",
        ),
        (
            format!("keys:\n{}", one.replace("[all]", "[all], expires: soon")),
            "no time",
        ),
        (format!("keys:\n{one}- \n"), ":3:"),
        (
            format!("keys:\n{one}{}", entry("two", "one")),
            "the key of \"two\" is that of \"one\", too",
        ),
        (format!("keys:\n{one}\nkeys: []\n"), "keys"),
        (format!("keys:\n{one}  ["), ":3:"),
        ("keys: [\u{0}]".to_owned(), "acl.yaml"),
    ] {
        let said = refused(&text);
        assert!(said.contains(expected), "{text}: {said}");
    }
}

#[test]
fn a_key_in_the_place_of_its_hash_is_not_told() {
    let said = refused("keys:\n- {id: one, sha256: hk_verysecretkey, rights: [all]}\n");
    assert!(said.contains(":2:") && !said.contains("secret"), "{said}");
}

#[test]
fn what_is_not_there_or_no_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    for path in [temp.path().join("acl.yaml"), temp.path().to_owned()] {
        let failure = AclFile::open(&path).unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG);
        assert!(failure.to_string().contains(path.to_str().unwrap()));
    }
}

#[test]
fn only_another_text_that_is_valid_takes_the_place() {
    let (_temp, path) = file(&format!("keys:\n{}", entry("one", "one")));
    let acl = AclFile::open(&path).unwrap();
    let known = |key: &str| acl.get(&KeyHash::of(key.as_bytes())).is_some();
    let counts = || (acl.status().loaded, acl.status().refused);
    acl.reread();
    assert_eq!(counts(), (1, 0), "the same text");

    std::fs::write(&path, "keys:\n- id: ").unwrap();
    acl.reread();
    acl.reread();
    assert!(known("one"));
    assert_eq!(counts(), (1, 1), "refused once");
    let first = acl.status().trouble.unwrap();
    std::fs::remove_file(&path).unwrap();
    acl.reread();
    assert!(known("one"));
    assert_eq!(counts(), (1, 2));
    assert_ne!(acl.status().trouble.unwrap(), first);

    std::fs::write(&path, format!("keys:\n{}", entry("one", "one"))).unwrap();
    acl.reread();
    assert_eq!((counts(), acl.status().trouble), ((1, 2), None));
    let before = acl.status().sha256;
    std::fs::write(&path, format!("keys:\n{}", entry("two", "two"))).unwrap();
    acl.reread();
    assert!(known("two") && !known("one"));
    assert_eq!(counts(), (2, 2));
    assert_ne!(acl.status().sha256, before);
}

#[test]
fn more_keys_than_a_configuration_has_lines() {
    let mut text = "keys:\n".to_owned();
    for number in 0..40_000 {
        text.push_str(&entry("many", &number.to_string()));
    }
    let (_temp, path) = file(&text);
    assert_eq!(AclFile::open(&path).unwrap().status().entries, 40_000);
}
