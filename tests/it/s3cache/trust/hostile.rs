//! What a user might put into its own part of the cache to hurt others: root's gc, those who list, those who take.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, chown};

use hostkit_tests::eventually;
use hostkit_tests::origin::Origin;
use nix::sys::signal::Signal;

use super::super::flight::{Run, before_now};
use super::{ANN, BOB, HASH, Users, bytes, every_file, published, sha256, vouch};

#[test]
fn a_blob_of_another_length_makes_nobody_make_room() {
    let Some(users) = Users::new() else { return };
    let origin = Origin::start();
    let bound = ["--max-size=4M", "--copy-to=out"];
    for n in 0..3 {
        let path = format!("/a-1.{n}");
        origin.put(&path, bytes(1 << 20, n));
        users
            .run(ANN, &[&origin.url(&path), bound[0], bound[1]])
            .exits(0);
    }
    let held = || -> u64 {
        let files = every_file(&users.share(ANN, "blobs"));
        files
            .iter()
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    assert_eq!(held(), 3 << 20);
    // Sparse, and of a size that does not fit, or that fits when everything else goes.
    for (n, length) in [(3, 1 << 40), (4, 4 << 20), (5, 1 << 40)] {
        let (path, body) = (format!("/a-1.{n}"), bytes(1 << 20, n));
        let digest = sha256(&body);
        origin.put(&path, body.clone());
        vouch(&origin, &path, &body);
        let trap = format!("blobs/{}/{digest}/a", &digest[..2]);
        users.write(BOB, &trap, b"");
        let trap = File::options().write(true).open(users.share(BOB, &trap));
        trap.unwrap().set_len(length).unwrap();
        users
            .run(ANN, &[&origin.url(&path), bound[0], bound[1]])
            .exits(0);
        assert!(std::fs::read(users.home(ANN).join("out")).unwrap() == body);
        let now = held();
        assert!((3 << 20..=4 << 20).contains(&now), "{now} held after {n}");
    }
}

#[test]
fn a_part_of_the_cache_full_of_traps_stops_neither_gc_nor_those_who_list() {
    let Some(users) = Users::new() else { return };
    let (origin, path, _) = published();
    for uid in [ANN, BOB, 0] {
        users.run(uid, &[&origin.url(&path)]).exits(0);
    }
    let key = "ab".repeat(32);
    let odd = format!("{}a", "\u{20ac}".repeat(21));
    assert_eq!(odd.len(), 64);
    for trap in [
        "index/v1/ab/x",
        &format!("index/v1/ab/{odd}"),
        &format!("index/v1/ab/{key}/a-directory"),
        "locks/v1/x",
        "locks/v1/ab/x",
        &format!("locks/v1/ab/{key}.0/a-directory"),
        &format!("partial/v1/{odd}.0.data"),
        &format!("partial/v1/{key}.0.data/a-directory"),
        "blobs/x/x/x",
        "blobs/ab/x/x",
        &format!("blobs/ab/{odd}/x"),
        &format!("blobs/ab/{key}/a-directory/x"),
        "pex-root/x",
    ] {
        users.write(BOB, trap, b"trap");
    }
    let pipe = users.share(BOB, &format!("locks/v1/ab/{}.0", "cd".repeat(32)));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut nested = users.share(BOB, "pex-root");
    for _ in 0..300 {
        nested.push("d");
    }
    std::fs::create_dir_all(&nested).unwrap();
    let garbage = users.share(0, "partial/v1/old.failed");
    std::fs::write(&garbage, "old").unwrap();
    let old = before_now(3);
    File::options()
        .write(true)
        .open(&garbage)
        .unwrap()
        .set_modified(old)
        .unwrap();
    let space = File::open(users.share(BOB, "locks/v1/space")).unwrap();
    space.lock().unwrap();
    for verb in ["ls", "stats"] {
        for uid in [0, ANN, BOB] {
            users.run(uid, &[verb]).exits(0);
        }
    }
    for uid in [0, ANN] {
        let blobs = users.share(uid, "blobs");
        hostkit_tests::cache::age_blobs(&blobs, std::time::Duration::from_secs(7200));
    }
    users.run(0, &["gc", "--max-size=1"]).exits(0);
    assert!(!garbage.exists(), "root's own garbage went");
    for uid in [0, ANN] {
        assert_eq!(every_file(&users.share(uid, "blobs")).len(), 0, "{uid}");
    }
    // Its owner is hurt by nothing but itself.
    let told = users.run(BOB, &["gc"]);
    assert!(!told.stderr.contains("panicked"), "{}", told.stderr);
}

#[test]
fn what_root_collects_stays_usable_for_its_owner() {
    let Some(users) = Users::new() else { return };
    let (origin, path, body) = published();
    origin.remove(&path);
    users.run(ANN, &[&origin.url(&path)]).exits(66);
    let lock = every_file(&users.share(ANN, "locks"))
        .into_iter()
        .find(|lock| lock.to_string_lossy().ends_with(".0"))
        .unwrap();
    let name = lock.file_name().unwrap().to_str().unwrap();
    // A dead download whose lock was collected before it, and a part in which no room was ever made.
    let data = format!("partial/v1/{name}.data");
    users.write(ANN, &data, b"dead");
    let old = before_now(3);
    let file = File::options().write(true).open(users.share(ANN, &data));
    file.unwrap().set_modified(old).unwrap();
    std::fs::remove_file(&lock).unwrap();
    let _ = std::fs::remove_file(users.share(ANN, "locks/v1/space"));
    users.run(0, &["gc"]).exits(0);
    assert!(!users.share(ANN, &data).exists());
    origin.put(&path, body);
    let (told, _) = users.get(ANN, &origin.url(&path));
    assert!(!told.stderr.contains("WARN"), "{}", told.stderr);
    assert_eq!(users.blob(ANN).metadata().unwrap().uid(), ANN);
}

/// The one who is overtaken while it copies another user's bytes, and the one who overtakes it, must not get into each
/// other's files.
#[test]
fn one_who_is_stopped_while_it_takes_bytes_is_overtaken_without_harm() {
    let Some(users) = Users::new() else { return };
    let (origin, path) = (Origin::start(), format!("/job-{HASH}.bin"));
    let body = bytes(128 << 20, 5);
    origin.put(&path, body.clone());
    vouch(&origin, &path, &body);
    users.run(ANN, &[&origin.url(&path)]).exits(0);
    let start = |to: &str| {
        let copy_to = format!("--copy-to={to}");
        let args = [&origin.url(&path), copy_to.as_str(), "--stall-timeout=3"];
        Run::start(&users.host, to, users.command(BOB, &args))
    };
    let arriving = || {
        let files = every_file(&users.share(BOB, "partial"));
        files
            .iter()
            .any(|file| file.to_string_lossy().ends_with(".data"))
    };
    let first = start("first");
    eventually("it copies", arriving);
    first.signal(Signal::SIGSTOP);
    let second = start("second").end().exits(0);
    first.signal(Signal::SIGCONT);
    first.end().exits(0);
    second.says("overtaking it");
    for to in ["first", "second"] {
        assert!(std::fs::read(users.home(BOB).join(to)).unwrap() == body);
    }
    assert_eq!(
        sha256(&std::fs::read(users.blob(BOB)).unwrap()),
        sha256(&body)
    );
    assert_eq!(origin.bytes(&path), body.len() as u64);
}

#[test]
fn many_names_of_one_user_are_one_user() {
    let Some(users) = Users::new() else { return };
    let (origin, path, body) = published();
    vouch(&origin, &path, &body);
    users.get(BOB, &origin.url(&path));
    let mut poison = body.clone();
    poison[1] ^= 1;
    std::fs::write(users.blob(BOB), poison).unwrap();
    for name in ["+20002", "020002", "0020002"] {
        let name = users.host.cache().join(name);
        std::fs::create_dir(&name).unwrap();
        chown(&name, Some(BOB), Some(BOB)).unwrap();
    }
    let (told, copy) = users.get(ANN, &origin.url(&path));
    assert_eq!(copy, body);
    assert_eq!(told.stderr.matches("not what it says").count(), 1);
}
