//! Files that a user might put into its own part of the cache to attack others: root's gc, listings, and copies.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, chown, lchown, symlink};
use std::path::Path;
use std::time::Duration;

use hostkit_tests::cache::{age_blobs, age_unpacked, unpack_pex};
use hostkit_tests::origin::OriginServer;
use hostkit_tests::wait_until;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, mknod};

use super::super::single_flight::{FetchRun, days_ago};
use super::{
    ANN, BOB, HASH, HostUsers, bytes, every_file, publish_artifact, publish_sidecar, sha256,
};

#[test]
fn blob_with_false_length_causes_no_eviction_by_others() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let origin = OriginServer::start();
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
    // Sparse, and of a size that does not fit, or that fits only after all others are evicted.
    for (n, length) in [(3, 1 << 40), (4, 4 << 20), (5, 1 << 40)] {
        let (path, body) = (format!("/a-1.{n}"), bytes(1 << 20, n));
        let digest = sha256(&body);
        origin.put(&path, body.clone());
        publish_sidecar(&origin, &path, &body);
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
fn hostile_files_in_cache_stop_neither_gc_nor_listing() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, _) = publish_artifact();
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
    let old = days_ago(3);
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
        age_blobs(&blobs, Duration::from_secs(7200));
    }
    users.run(0, &["gc", "--max-size=1"]).exits(0);
    assert!(!garbage.exists(), "root's own garbage is removed");
    for uid in [0, ANN] {
        assert_eq!(every_file(&users.share(uid, "blobs")).len(), 0, "{uid}");
    }
    // Its owner harms only itself.
    let outcome = users.run(BOB, &["gc"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[derive(Debug, Clone, Copy)]
enum HostileEntry {
    Fifo,
    Socket,
    Symlink,
    Directory,
    Nothing,
}

impl HostileEntry {
    fn put(self, at: &Path) {
        let _ = std::fs::remove_file(at);
        let _ = std::fs::remove_dir_all(at);
        match self {
            Self::Fifo => nix::unistd::mkfifo(at, Mode::S_IRWXU).unwrap(),
            Self::Socket => mknod(at, SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap(),
            Self::Symlink => symlink("/dev/zero", at).unwrap(),
            Self::Directory => std::fs::create_dir_all(at.join("below")).unwrap(),
            Self::Nothing => return,
        }
        lchown(at, Some(ANN), Some(ANN)).unwrap();
    }
}

#[test]
fn hostile_entry_in_place_of_file_or_folder_is_removed_by_gc_of_root() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    let (hash, later, bound) = ("ab".repeat(20), Duration::from_secs(7200), "--max-size=60K");
    users.run(ANN, &[&origin.url(&path)]).exits(0);
    let mut locks = every_file(&users.share(ANN, "locks")).into_iter();
    let key = locks.find_map(|path| {
        let name = path.file_name()?.to_str()?;
        name.strip_suffix(".0").map(str::to_owned)
    });
    let key = key.unwrap();
    let shelf = &key[..2];
    use HostileEntry::{Directory, Fifo, Nothing, Socket, Symlink};
    let files = [Fifo, Socket, Symlink, Directory, Nothing];
    let folders = [Fifo, Socket, Symlink, Nothing];
    for (place, impostors) in [
        ("pex-root/.leases/gate", &files[..]),
        ("pex-root/.leases/other", &files[..]),
        (&*format!("pex-root/.leases/{hash}"), &files[..]),
        ("pex-root/.leases", &folders[..]),
        ("locks/v1/space", &files[..]),
        (&*format!("locks/v1/{shelf}/{key}.0"), &files[..]),
        (&*format!("locks/v1/{shelf}"), &folders[..]),
        ("locks/v1", &folders[..]),
        ("index/v1/held", &files[..]),
        ("index/v1/unpacked", &files[..]),
        (&*format!("index/v1/{shelf}/{key}"), &files[..]),
        ("index", &folders[..]),
        (&*format!("partial/v1/{key}.0.data"), &files[..]),
        (&*format!("partial/v1/{key}.0.record"), &files[..]),
        (&*format!("partial/v1/{key}.failed"), &files[..]),
        ("partial/v1", &folders[..]),
        ("partial", &folders[..]),
        ("unpacking", &folders[..]),
        ("blobs", &folders[..]),
        ("pex-root/unzipped_pexes/9", &folders[..]),
    ] {
        for impostor in impostors {
            let case = format!("{place}: {impostor:?}");
            for uid in [ANN, BOB] {
                users.run(uid, &[&origin.url(&path)]).exits(0);
                age_blobs(&users.share(uid, "blobs"), later);
            }
            let unpacked = unpack_pex(&users.share(ANN, "pex-root"), &hash, 100_000);
            age_unpacked(&users.share(ANN, "pex-root"), later);
            let place = users.share(ANN, place);
            impostor.put(&place);
            let outcome = users.run(0, &["gc", "--dry-run", "--json", bound]).exits(0);
            assert!(
                outcome.stdout.contains("\"unpacked_pexes\":1"),
                "{case}: {}",
                outcome.stdout
            );
            users.run(0, &["gc", bound]).exits(0);
            for uid in [ANN, BOB] {
                assert_eq!(
                    every_file(&users.share(uid, "blobs")).len(),
                    0,
                    "{case}: {uid}"
                );
            }
            assert!(!unpacked.exists(), "{case}: over the bound, and idle");
            let (outcome, copy) = users.get(ANN, &origin.url(&path));
            assert!(
                copy == body && !outcome.stderr.contains("WARN"),
                "{case}: {}",
                outcome.stderr
            );
            users.blob(ANN);
        }
    }
}

#[test]
fn folder_writable_by_others_is_reported_by_gc_of_root() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, _) = publish_artifact();
    for uid in [ANN, BOB] {
        users.run(uid, &[&origin.url(&path)]).exits(0);
        age_blobs(&users.share(uid, "blobs"), Duration::from_secs(7200));
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(users.share(ANN, ""), open).unwrap();
    let outcome = users.run(0, &["gc", "--max-size=1"]).exits(0);
    outcome
        .logs("cannot open this user's share")
        .logs("uid=20001");
    assert_eq!(every_file(&users.share(BOB, "blobs")).len(), 0);
    users
        .run(ANN, &["gc"])
        .exits(74)
        .logs("others can write to it");
    // Nor does root's own part prevent the collection of others.
    for uid in [0, BOB] {
        users.run(uid, &[&origin.url(&path)]).exits(0);
    }
    age_blobs(&users.share(BOB, "blobs"), Duration::from_secs(7200));
    let own = users.share(0, "partial");
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::write(&own, "").unwrap();
    let outcome = users.run(0, &["gc", "--max-size=1"]).exits(74);
    outcome.logs("its directory partial: Not a directory");
    assert_eq!(every_file(&users.share(BOB, "blobs")).len(), 0);
}

#[test]
fn cache_collected_by_root_stays_usable_for_owner() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    origin.remove(&path);
    users.run(ANN, &[&origin.url(&path)]).exits(66);
    let lock = every_file(&users.share(ANN, "locks"))
        .into_iter()
        .find(|lock| lock.to_string_lossy().ends_with(".0"))
        .unwrap();
    let name = lock.file_name().unwrap().to_str().unwrap();
    // A dead download whose lock was collected before it, and a part without any eviction.
    let data = format!("partial/v1/{name}.data");
    users.write(ANN, &data, b"dead");
    let old = days_ago(3);
    let file = File::options().write(true).open(users.share(ANN, &data));
    file.unwrap().set_modified(old).unwrap();
    std::fs::remove_file(&lock).unwrap();
    let _ = std::fs::remove_file(users.share(ANN, "locks/v1/space"));
    users.run(0, &["gc"]).exits(0);
    assert!(!users.share(ANN, &data).exists());
    origin.put(&path, body);
    let (outcome, _) = users.get(ANN, &origin.url(&path));
    assert!(!outcome.stderr.contains("WARN"), "{}", outcome.stderr);
    assert_eq!(users.blob(ANN).metadata().unwrap().uid(), ANN);
}

/// A process taken over while it copies another user's bytes, and the one that takes over, must not write each other's
/// files.
#[test]
fn process_stopped_while_copying_bytes_is_taken_over() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path) = (OriginServer::start(), format!("/job-{HASH}.bin"));
    let body = bytes(128 << 20, 5);
    origin.put(&path, body.clone());
    publish_sidecar(&origin, &path, &body);
    users.run(ANN, &[&origin.url(&path)]).exits(0);
    let start = |to: &str| {
        let copy_to = format!("--copy-to={to}");
        let args = [&origin.url(&path), copy_to.as_str(), "--stall-timeout=3"];
        FetchRun::start(&users.host, to, users.command(BOB, &args))
    };
    let arriving = || {
        let files = every_file(&users.share(BOB, "partial"));
        files
            .iter()
            .any(|file| file.to_string_lossy().ends_with(".data"))
    };
    let copied = || !every_file(&users.share(BOB, "blobs")).is_empty();
    // On a busy host it can finish before it is stopped.
    let first = loop {
        let first = start("first");
        wait_until("the copy has started", || arriving() || copied());
        first.signal(Signal::SIGSTOP);
        if !copied() {
            break first;
        }
        first.signal(Signal::SIGCONT);
        first.end().exits(0);
        users.run(BOB, &["rm", &origin.url(&path)]).exits(0);
    };
    let second = start("second").end().exits(0);
    first.signal(Signal::SIGCONT);
    first.end().exits(0);
    second.logs("taking over");
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
fn several_directory_names_of_one_uid_count_as_one_user() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let (origin, path, body) = publish_artifact();
    publish_sidecar(&origin, &path, &body);
    users.get(BOB, &origin.url(&path));
    let mut poison = body.clone();
    poison[1] ^= 1;
    std::fs::write(users.blob(BOB), poison).unwrap();
    for name in ["+20002", "020002", "0020002"] {
        let name = users.host.cache().join(name);
        std::fs::create_dir(&name).unwrap();
        chown(&name, Some(BOB), Some(BOB)).unwrap();
    }
    let (outcome, copy) = users.get(ANN, &origin.url(&path));
    assert_eq!(copy, body);
    assert_eq!(outcome.stderr.matches("its digest differs").count(), 1);
}
