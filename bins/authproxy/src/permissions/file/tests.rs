//! Valid and invalid ACL files, and which text is in force.

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

fn rejection(text: &str) -> String {
    let (_temp, path) = file(text);
    let failure = AclFile::open(&path).unwrap_err();
    assert_eq!(failure.exit(), Exit::CONFIG);
    let error = failure.to_string();
    assert!(
        error.contains("acl.yaml") && !error.contains('\n'),
        "{error}"
    );
    error
}

#[test]
fn key_is_found_by_hash_with_its_whole_grant() {
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
    assert_eq!(next.id, "eightball", "two keys may have one id");
    assert_eq!(acl.get(&KeyHash::of(b"three")), None);
    assert_eq!(acl.status().entries, 2);
}

#[test]
fn empty_list_of_keys_is_valid() {
    let (_temp, path) = file("keys: []\n");
    assert_eq!(AclFile::open(&path).unwrap().status().entries, 0);
}

#[test]
fn error_names_line_column_and_cause() {
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
            ":2:8: `id`: invalid name \"two words\"",
        ),
        (
            format!("keys:\n{}", one.replace(", rights: [all]", "")),
            "rights",
        ),
        (format!("keys:\n{}", one.replace("[all]", "all")), ":2:"),
        (
            format!("keys:\n{}", one.replace("[all]", "[all], paths: [a]")),
            "it must begin with a slash",
        ),
        (
            format!("keys:\n{}", one.replace("[all]", "[all], expires: soon")),
            "invalid time",
        ),
        (format!("keys:\n{one}- \n"), ":3:"),
        (
            format!("keys:\n{one}{}", entry("two", "one")),
            "duplicate key: \"one\" and \"two\" have the same sha256",
        ),
        (format!("keys:\n{one}\nkeys: []\n"), "keys"),
        (format!("keys:\n{one}  ["), ":3:"),
        ("keys: [\u{0}]".to_owned(), "acl.yaml"),
    ] {
        let error = rejection(&text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn error_does_not_show_key_in_place_of_its_hash() {
    let error = rejection("keys:\n- {id: one, sha256: hk_verysecretkey, rights: [all]}\n");
    assert!(
        error.contains(":2:") && !error.contains("secret"),
        "{error}"
    );
}

#[test]
fn missing_file_or_directory_is_rejected() {
    let temp = tempfile::tempdir().unwrap();
    for path in [temp.path().join("acl.yaml"), temp.path().to_owned()] {
        let failure = AclFile::open(&path).unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG);
        assert!(failure.to_string().contains(path.to_str().unwrap()));
    }
}

#[test]
fn only_valid_changed_text_replaces_the_one_in_force() {
    let (_temp, path) = file(&format!("keys:\n{}", entry("one", "one")));
    let acl = AclFile::open(&path).unwrap();
    let has_key = |key: &str| acl.get(&KeyHash::of(key.as_bytes())).is_some();
    let counts = || (acl.status().loaded, acl.status().rejected);
    acl.reread();
    assert_eq!(counts(), (1, 0), "the same text");

    std::fs::write(&path, "keys:\n- id: ").unwrap();
    acl.reread();
    acl.reread();
    assert!(has_key("one"));
    assert_eq!(counts(), (1, 1), "counted once");
    let first = acl.status().error.unwrap();
    std::fs::remove_file(&path).unwrap();
    acl.reread();
    assert!(has_key("one"));
    assert_eq!(counts(), (1, 2));
    assert_ne!(acl.status().error.unwrap(), first);

    std::fs::write(&path, format!("keys:\n{}", entry("one", "one"))).unwrap();
    acl.reread();
    assert_eq!((counts(), acl.status().error), ((1, 2), None));
    let before = acl.status().sha256;
    std::fs::write(&path, format!("keys:\n{}", entry("two", "two"))).unwrap();
    acl.reread();
    assert!(has_key("two") && !has_key("one"));
    assert_eq!(counts(), (2, 2));
    assert_ne!(acl.status().sha256, before);
}

#[test]
fn file_with_40000_keys_is_loaded() {
    let mut text = "keys:\n".to_owned();
    for number in 0..40_000 {
        text.push_str(&entry("many", &number.to_string()));
    }
    let (_temp, path) = file(&text);
    assert_eq!(AclFile::open(&path).unwrap().status().entries, 40_000);
}
