//! The secret of a shared cache: which jobs can read it, and how it is rotated without a gap.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use hostkit_tests::host::is_root;
use hostkit_tests::{CommandOutcome, bin, find_program, or_skip, skip};

use super::*;

const OLD: &[u8] = b"the secret of last year";
const NEW: &[u8] = b"the secret of this year";

#[test]
fn hosts_share_entries_during_secret_rotation() {
    let (before, during, after) = (&[OLD][..], &[NEW, OLD][..], &[NEW][..]);
    // Which hosts find the entries of which other hosts.
    for (writer, reader, finds) in [
        (before, during, true),
        (during, during, true),
        (during, after, true),
        (after, during, true),
        // With only the new secret, before all hosts have it, entries are not shared, and requests still succeed.
        (before, after, false),
        (during, before, false),
    ] {
        // Whether the first host that looks finds an entry: it stores the result of its own query.
        let is_found = || {
            let world = CacheFixture::new(1)?;
            world.engine.add_key(key(1));
            world.store_in_memcached(&world.host_with_secrets(SETTINGS, writer), key(1), true);
            let asked = world.engine.request_count();
            let host = world.host_with_secrets(SETTINGS, reader);
            assert_eq!(world.lookup(&host, key(1)), Some(true));
            assert_eq!(host.snapshot().invalid_entries, 0);
            Some(world.engine.request_count() == asked)
        };
        match (is_found(), finds) {
            (None, _) => return,
            (Some(found), false) => assert!(!found, "{reader:?}"),
            // A memcached that takes longer than 10 ms here counts as a miss.
            (Some(false), true) => wait_until("the entry is found", || is_found() == Some(true)),
            (Some(true), true) => {}
        }
    }
}

#[test]
fn purge_during_rotation_removes_entries_of_both_secrets() {
    let Some(world) = CacheFixture::new(1) else {
        return;
    };
    world.engine.add_key(key(1));
    for secret in [OLD, NEW] {
        world.store_in_memcached(&world.host_with(SETTINGS, secret), key(1), true);
    }
    assert_eq!(world.entry_names().len(), 2);
    let host = world.host_with_secrets(SETTINGS, &[NEW, OLD]);
    assert_eq!(world.lookup(&host, key(1)), Some(true));
    world.purge(&host, &PurgeTarget::Key(key(1)));
    wait_until("both entries are deleted", || {
        world.yield_to_background();
        world.entry_names().is_empty()
    });
}

/// A job as thermos starts it: the user and group of its role, and the supplementary groups of the role (`os.setgroups`
/// before `os.setgid` and `os.setuid` in its process.py).
fn job(uid: u32, groups: &str, secret: &Path) -> CommandOutcome {
    let keys = secret.with_file_name("keys.yaml");
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.arg(format!("--groups={groups}")),
    };
    command
        .arg(bin("authproxy"))
        .args([
            "--check",
            "--port=1",
            "--server=unix:/s",
            "--right=read",
            "--cache=1",
        ])
        .arg("--memcache-servers=h")
        .arg(format!("--acl-file={}", keys.display()))
        .arg(format!("--cache-secret-file={}", secret.display()))
        .output()
        .unwrap()
        .into()
}

#[test]
fn role_reads_secret_through_supplementary_group_or_acl() {
    const ROLE: u32 = 61_001;
    const GROUP: u32 = 61_002;
    if !is_root() {
        return skip("jobs of a role", "this is not root");
    }
    let Some(setfacl) = or_skip("setfacl", find_program("setfacl")) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(directory.path().join("keys.yaml"), "keys: []\n").unwrap();
    let secret = directory.path().join("secret");
    let (reads, denied) = ("memcached: h:11211", "setfacl -m u:ROLE:r");
    for (mode, acl, groups, says) in [
        (0o640, "", "61002", reads),
        (0o640, "", "7,61002,9", reads),
        (0o640, "", "7", denied),
        (0o640, "", "", denied),
        (0o600, "", "61002", denied),
        // The mask of an ACL takes the place of the group's mode.
        (0o600, "u:61001:r", "", reads),
        (0o640, "u:61003:r", "", denied),
        (0o600, "g:61004:r", "61004", reads),
        // Write access lets a user choose the secret.
        (
            0o600,
            "u:61001:rw",
            "",
            "can be written by others (mode 0660)",
        ),
        (0o660, "", "61002", "can be written by others (mode 0660)"),
    ] {
        std::fs::write(&secret, OLD).unwrap();
        chown(&secret, Some(0), Some(GROUP)).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        if !acl.is_empty() {
            let set = Command::new(&setfacl)
                .args(["-m", acl])
                .arg(&secret)
                .status();
            assert!(set.unwrap().success(), "{acl}");
        }
        let outcome = job(ROLE, groups, &secret);
        let message = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(message.contains(says), "{mode:o} {acl} {groups}: {message}");
        assert_eq!(
            outcome.code,
            if says == reads { 0 } else { 78 },
            "{message}"
        );
        std::fs::remove_file(&secret).unwrap();
    }
}
