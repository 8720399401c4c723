//! Directories by handle: symlinks, atomic files, locks and limits.

use super::*;

fn scratch() -> (tempfile::TempDir, Dir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    (temp, dir)
}

#[test]
fn temporary_file_of_a_killed_process_is_removed() {
    let (temp, dir) = scratch();
    for name in [".a.7-1f.tmp", ".a.b.7-1f.tmp", ".a.txt.tmp", "a"] {
        std::fs::write(temp.path().join(name), "x").unwrap();
    }
    dir.sweep("a").unwrap();
    let mut left: Vec<_> = dir
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().0)
        .collect();
    left.sort();
    assert_eq!(left, [".a.b.7-1f.tmp", ".a.txt.tmp", "a"]);
}

#[test]
fn atomic_write_to_a_device_is_rejected() {
    let (temp, dir) = scratch();
    let null = nix::sys::stat::makedev(1, 3);
    let made = nix::sys::stat::mknod(
        &temp.path().join("null"),
        SFlag::S_IFCHR,
        Mode::S_IRWXU,
        null,
    );
    if made.is_err() {
        eprintln!("SKIP devices: not root, or mknod is not permitted");
        return;
    }
    let error = dir
        .write_atomic("null", b"x", 0o640, Durability::Process)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let kind = dir.stat("null").unwrap().st_mode & SFlag::S_IFMT.bits();
    assert_eq!(kind, SFlag::S_IFCHR.bits());
    assert_eq!(dir.entries().unwrap().count(), 1);
}

#[test]
fn atomic_write_sets_the_mode_and_leaves_no_temporary_file() {
    let (temp, dir) = scratch();
    for bytes in [&b"old"[..], b"new"] {
        dir.write_atomic("f", bytes, 0o640, Durability::Crash)
            .unwrap();
    }
    assert_eq!(std::fs::read(temp.path().join("f")).unwrap(), b"new");
    assert_eq!(dir.stat("f").unwrap().st_mode & 0o7777, 0o640);
    assert_eq!(dir.entries().unwrap().count(), 1);
}

#[test]
fn symlinks_are_not_followed() {
    let (temp, dir) = scratch();
    std::fs::create_dir(temp.path().join("d")).unwrap();
    std::fs::write(temp.path().join("f"), "x").unwrap();
    std::os::unix::fs::symlink("d", temp.path().join("to-d")).unwrap();
    std::os::unix::fs::symlink("f", temp.path().join("to-f")).unwrap();
    assert!(dir.child("to-d").is_err());
    assert!(dir.open_file("to-f").is_err());
    assert!(dir.open_or_create("to-f", 0o600).is_err());
    assert!(dir.open_file("f").is_ok());
}

#[test]
fn removal_of_a_tree_does_not_follow_symlinks() {
    let (temp, dir) = scratch();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("keep"), "x").unwrap();
    std::fs::create_dir_all(temp.path().join("t/sub")).unwrap();
    std::fs::write(temp.path().join("t/sub/f"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path(), temp.path().join("t/link")).unwrap();
    dir.remove_all("t").unwrap();
    assert!(dir.stat("t").is_err());
    assert!(outside.path().join("keep").exists());
}

#[test]
fn lock_excludes_until_its_file_is_closed() {
    let (_temp, dir) = scratch();
    let held = dir.try_lock("l", 0o600).unwrap().unwrap();
    assert!(dir.try_lock("l", 0o600).unwrap().is_none());
    drop(held);
    assert!(dir.try_lock("l", 0o600).unwrap().is_some());
}

#[test]
fn fifo_is_rejected_without_waiting() {
    let (temp, dir) = scratch();
    nix::unistd::mkfifo(&temp.path().join("p"), Mode::S_IRWXU).unwrap();
    assert_eq!(
        dir.open_file("p").unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn file_over_the_limit_is_rejected() {
    let (temp, dir) = scratch();
    std::fs::write(temp.path().join("f"), "12345").unwrap();
    assert_eq!(dir.read("f", 5).unwrap(), b"12345");
    assert!(dir.read("f", 4).is_err());
}
