//! `key new --into`, `key list`, `key revoke`, `key rotate`: keys of a file that is in use.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use hostkit_tests::authproxy::AuthproxyProcess;
use hostkit_tests::host::{TmpfsMount, is_root, run_as};
use hostkit_tests::permissions::hash_key;
use hostkit_tests::upstream::RecordingUpstream;
use hostkit_tests::upstream::parser::ParserProfile;
use hostkit_tests::{CommandOutcome, find_program, or_skip, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::key::secret_of;
use super::{authproxy, check, parsed, run};

/// A file of keys in a directory of its own.
struct KeyListFile {
    directory: TempDir,
    path: PathBuf,
}

impl KeyListFile {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.yaml");
        std::fs::write(&path, text).unwrap();
        Self { directory, path }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    /// Runs `authproxy key VERB` on it.
    fn key(&self, verb: &[&str]) -> CommandOutcome {
        let flag = if verb[0] == "new" {
            "--into"
        } else {
            "--acl-file"
        };
        let path = self.path.to_str().unwrap();
        run(authproxy(&[&["key"], verb, &[flag, path]].concat()), "")
    }

    fn ids(&self) -> Vec<String> {
        let listed = parsed(&self.key(&["list", "--json"]).exits(0));
        let listed = listed.as_array().unwrap().iter();
        listed
            .map(|key| key["id"].as_str().unwrap().to_owned())
            .collect()
    }

    fn check_key(&self, key: &str, code: i32) -> CommandOutcome {
        check(&["--acl-file", self.path.to_str().unwrap()], &[], key).exits(code)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn entry(id: &str, key: &str) -> String {
    format!(
        "- id: {id}  # of {id}\n  sha256: {}\n  rights: [read]\n",
        hash_key(key)
    )
}

#[test]
fn keys_are_added_listed_rotated_and_revoked_in_file() {
    let file = KeyListFile::new(&format!(
        "# Ours.\nkeys:\n{}{}",
        entry("bob", "bob's"),
        entry("alice", "first")
    ));
    let new = file
        .key(&[
            "new",
            "--id=carol",
            "--right=read,stats",
            "--path=/stats",
            "--expires=2999-01-01",
        ])
        .exits(0);
    let carol = secret_of(&new.stderr).to_owned();
    assert_eq!(
        new.stdout,
        format!(
            "added carol {} to {}\n",
            &hash_key(&carol)[..8],
            file.path.display()
        )
    );
    file.check_key(&carol, 0);
    assert!(
        !file.text().contains("hk_")
            && file
                .text()
                .starts_with("# Ours.\nkeys:\n- id: bob  # of bob\n")
    );
    let listed = file.key(&["list"]).exits(0).stdout;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(
        lines,
        [
            "ID     SHA256    RIGHTS      EXPIRES               ONLY".to_owned(),
            format!("bob    {}  read        never", &hash_key("bob's")[..8]),
            format!("alice  {}  read        never", &hash_key("first")[..8]),
            format!(
                "carol  {}  read,stats  2999-01-01T00:00:00Z  paths=/stats",
                &hash_key(&carol)[..8]
            ),
        ]
    );

    let rotated = file
        .key(&["rotate", "alice", "--keep", "24h", "--json"])
        .exits(0);
    let second = secret_of(&rotated.stderr).to_owned();
    let outcome = parsed(&rotated);
    assert_eq!(
        (&outcome["entry"]["id"], &outcome["entry"]["sha256"]),
        (&json!("alice"), &json!(hash_key(&second)))
    );
    let old = file.check_key("first", 0);
    let end = format!("expires: {}\n", outcome["keep_until"].as_str().unwrap());
    assert!(old.stdout.contains(&end), "{}", old.stdout);
    assert!(
        file.check_key(&second, 0)
            .stdout
            .contains("expires: never\n")
    );
    assert!(
        file.text().contains("- id: alice  # of alice\n"),
        "{}",
        file.text()
    );
    assert_eq!(file.ids(), ["bob", "alice", "alice", "carol"]);
    // A second rotation: the first key keeps its shorter expiry, the last one none.
    let third = secret_of(&file.key(&["rotate", "alice", "--keep=0"]).exits(0).stderr).to_owned();
    assert!(file.check_key("first", 77).stdout.contains("expired_key"));
    file.check_key(&second, 77);
    file.check_key(&third, 0);

    let short = &hash_key("first")[..8];
    let revoked = file.key(&["revoke", short]).exits(0);
    assert_eq!(revoked.stdout, format!("revoked alice {short}\n"));
    file.key(&["revoke", "alice", "--json"]).exits(0);
    assert!(file.check_key(&third, 77).stdout.contains("unknown_key"));
    assert_eq!(file.ids(), ["bob", "carol"]);
    let nothing = file.key(&["revoke", "alice"]).exits(66).logs("keys.yaml");
    assert!(nothing.stdout.is_empty());
    file.key(&["revoke", "bob"]).exits(0);
    file.key(&["revoke", "carol"]).exits(0);
    assert_eq!(file.text(), "# Ours.\nkeys: []\n");
    file.key(&["new"]).exits(0);
    assert_eq!(file.ids().len(), 1);
    assert_eq!(file.names(), ["keys.yaml"], "no temporary file is left");
}

#[test]
fn rotation_keeps_expiry_of_key() {
    let file = KeyListFile::new("");
    std::fs::remove_file(&file.path).unwrap();
    // A missing file is created, for its owner and group.
    let new = file
        .key(&[
            "new",
            "--id=a",
            "--expires=2099-01-01",
            "--host=example.com",
        ])
        .exits(0);
    assert_eq!(
        file.path.metadata().unwrap().permissions().mode() & 0o7777,
        0o640
    );
    file.check_key(secret_of(&new.stderr), 0);
    let next = file.key(&["rotate", "a"]).exits(0);
    let outcome = file.check_key(secret_of(&next.stderr), 0).stdout;
    assert!(
        outcome.contains("hosts: example.com\n")
            && outcome.contains("expires: 2099-01-01T00:00:00Z\n"),
        "{outcome}"
    );
    let over = KeyListFile::new(&format!(
        "keys:\n{}  expires: 2001-01-01\n",
        entry("a", "key")
    ));
    let before = over.text();
    let refused = over.key(&["rotate", "a"]).exits(66).logs("has expired");
    assert!(!refused.stderr.contains("hk_"));
    assert_eq!(over.text(), before);
}

#[test]
fn edit_keeps_owner_mode_acl_and_links() {
    if !is_root() {
        hostkit_tests::skip("owners of files", "this is not root");
        return;
    }
    let Some(setfacl) = or_skip("setfacl", find_program("setfacl")) else {
        return;
    };
    let file = KeyListFile::new(&format!("keys:\n{}", entry("a", "key")));
    std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o604)).unwrap();
    chown(&file.path, Some(1234), Some(1235)).unwrap();
    let set = Command::new(setfacl)
        .args(["-m", "u:1236:r"])
        .arg(&file.path)
        .status()
        .unwrap();
    assert!(set.success());
    let access = || {
        let outcome = Command::new("getfacl")
            .args(["-cpn"])
            .arg(&file.path)
            .output()
            .unwrap();
        let metadata = file.path.metadata().unwrap();
        let shown = String::from_utf8(outcome.stdout).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode(), shown)
    };
    let before = access();
    assert!(before.3.contains("user:1236:r--"), "{}", before.3);
    let link = file.directory.path().join("link.yaml");
    symlink("keys.yaml", &link).unwrap();
    let new = ["key", "new", "--id=b", "--into", link.to_str().unwrap()];
    run(authproxy(&new), "").exits(0);
    file.key(&["rotate", "a"]).exits(0);
    file.key(&["revoke", "b"]).exits(0);
    assert_eq!(access(), before);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(file.ids(), ["a", "a"]);

    // Another user with write access to the directory cannot keep the owner.
    std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(
        file.directory.path(),
        std::fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let Some(mut stranger) = or_skip(
        "another user",
        run_as(1237, hostkit_tests::bin("authproxy")),
    ) else {
        return;
    };
    stranger
        .args(["key", "revoke", "a", "--acl-file"])
        .arg(&file.path);
    run(stranger, "").exits(73).logs("as the owner of the file");
    assert_eq!(file.ids(), ["a", "a"]);
    assert_eq!(file.names().len(), 2, "{:?}", file.names());
}

#[test]
fn new_key_fills_empty_file_and_rejects_dangling_symlink() {
    for before in ["", "\n", "# Ours.", "# Ours.\n\n"] {
        let file = KeyListFile::new(before);
        std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(0o604)).unwrap();
        let new = file.key(&["new", "--id=a"]).exits(0);
        file.check_key(secret_of(&new.stderr), 0);
        assert!(file.text().starts_with(before), "{}", file.text());
        let mode = file.path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o604);
    }
    // The file that a link names may be on a disk that is not mounted yet: a new one there would hide it.
    let file = KeyListFile::new("");
    std::fs::remove_file(&file.path).unwrap();
    symlink("away/keys.yaml", &file.path).unwrap();
    file.key(&["new"])
        .exits(78)
        .logs("the target of this symlink is missing");
    assert!(file.path.is_symlink());
    assert_eq!(file.names(), ["keys.yaml"]);
}

#[test]
fn edit_on_full_disk_fails_and_changes_nothing() {
    let Some(disk) = or_skip("tmpfs", TmpfsMount::mount(64 << 10)) else {
        return;
    };
    let path = disk.path().join("keys.yaml");
    let text = format!("keys:\n{}", entry("a", "key"));
    std::fs::write(&path, &text).unwrap();
    let fill = std::fs::write(disk.path().join("fill"), [0; 64 << 10]);
    assert!(fill.is_err(), "the disk has room");
    // Every verb accepts the flag.
    for verb in [&["new"][..], &["rotate", "a"], &["revoke", "a"]] {
        let line = [&["key"], verb, &["--into", path.to_str().unwrap()]].concat();
        let refused = run(authproxy(&line), "").exits(73).logs("free some space");
        assert!(!refused.stderr.contains("hk_"), "{}", refused.stderr);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn file_that_is_invalid_or_not_line_based_is_not_edited() {
    let one = entry("a", "key");
    for (text, code, says) in [
        (
            format!("# This file is managed by Puppet.\nkeys:\n{one}"),
            77,
            "managed by Puppet",
        ),
        (
            format!("# MANAGED BY PUPPET: do not edit\nkeys:\n{one}"),
            77,
            "managed by Puppet",
        ),
        (
            format!("keys:\n{one}- {{idd: b}}\n"),
            78,
            "unknown key `idd`",
        ),
        (
            json!({"keys": [{"id": "a", "sha256": hash_key("key"), "rights": []}]}).to_string(),
            78,
            "lines of their own",
        ),
    ] {
        let file = KeyListFile::new(&text);
        for verb in [&["new"][..], &["revoke", "a"], &["rotate", "a"]] {
            let refused = file.key(verb).exits(code).logs(says);
            assert!(!refused.stderr.contains("hk_"), "{}", refused.stderr);
            assert_eq!(
                (file.text(), file.names()),
                (text.clone(), vec!["keys.yaml".to_owned()])
            );
        }
    }
    let managed = KeyListFile::new(&format!("# Managed by Puppet\nkeys:\n{one}"));
    assert_eq!(managed.ids(), ["a"], "it can be listed");
    for verb in [&["revoke", "a"][..], &["list"]] {
        let missing = KeyListFile::new("");
        std::fs::remove_file(&missing.path).unwrap();
        missing
            .key(verb)
            .exits(78)
            .logs("`authproxy key new --into FILE`");
    }
}

#[test]
fn concurrent_edits_lose_no_key() {
    let file = KeyListFile::new("keys: []\n");
    let running: Vec<_> = (0..8)
        .map(|number| {
            let mut command = authproxy(&["key", "new", "--id"]);
            command
                .arg(format!("id{number}"))
                .arg("--into")
                .arg(&file.path);
            std::thread::spawn(move || run(command, ""))
        })
        .collect();
    for one in running {
        one.join().unwrap().exits(0);
    }
    let mut ids = file.ids();
    ids.sort();
    assert_eq!(
        ids,
        ["id0", "id1", "id2", "id3", "id4", "id5", "id6", "id7"]
    );
}

#[test]
fn daemon_accepts_both_keys_during_rotation_and_neither_after_revocation() {
    let backend = RecordingUpstream::start(ParserProfile::ALL[0]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.yaml");
    std::fs::write(&path, "keys: []\n").unwrap();
    let acl = format!("--acl-file={}", path.display());
    let server = format!("--server={}", backend.url());
    let proxy = AuthproxyProcess::start(&[&server, "--right=read", &acl]);
    let on = |path: &Path, verb: &[&str]| {
        let flag = if verb[0] == "new" {
            "--into"
        } else {
            "--acl-file"
        };
        run(
            authproxy(&[&["key"], verb, &[flag, path.to_str().unwrap()]].concat()),
            "",
        )
        .exits(0)
    };
    let first = on(&path, &["new", "--id=alice"]);
    let first = secret_of(&first.stderr);
    let status = |key: &str| proxy.get_with_key("/", key).status;
    wait_until("the new key is accepted", || status(first) == 200);
    let second = on(&path, &["rotate", "alice"]);
    let second = secret_of(&second.stderr);
    wait_until("the next key is accepted", || status(second) == 200);
    assert_eq!(status(first), 200);
    on(&path, &["revoke", "alice"]);
    wait_until("neither key is accepted", || {
        status(first) == 403 && status(second) == 403
    });
    let status: Value = proxy.status();
    assert_eq!(
        status["permissions"]["file"]["rejected"], 0,
        "the file is always complete"
    );
}
