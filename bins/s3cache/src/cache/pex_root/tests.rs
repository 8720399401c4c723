//! Which unpacked pexes are removed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// An empty share, and the path of its root.
fn share() -> (tempfile::TempDir, CacheShare, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = Dir::open(temp.path()).unwrap();
    let share = CacheShare::open(&root, nix::unistd::geteuid().as_raw(), true).unwrap();
    let root = share.dir().path().join("pex-root");
    (temp, share, root)
}

fn write(path: &Path, text: &str, written: SystemTime) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    File::open(path).unwrap().set_modified(written).unwrap();
}

fn prune_all(share: &CacheShare, spare: Duration) -> PruneSummary {
    prune(
        share,
        &ProcessReferences::default(),
        EvictionMode::Remove,
        spare,
        |_| Ok(false),
    )
    .unwrap()
}

/// A directory that a pex has written to until `age` ago.
fn work_directory(path: &Path, age: Duration) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("file"), "half").unwrap();
    let written = clock::now() - age;
    File::open(path).unwrap().set_modified(written).unwrap();
}

#[test]
fn recently_started_pex_stays_unless_clock_was_set_back() {
    let hash = "ab".repeat(20);
    let now = clock::now();
    for (started, spare, left) in [
        (now, HOUR, true),
        (now - 59 * MINUTE, HOUR, true),
        (now - 61 * MINUTE, HOUR, false),
        (now + 59 * MINUTE, HOUR, true),
        (now + 61 * MINUTE, HOUR, false),
        (now - 11 * MINUTE, 10 * MINUTE, false),
        (now, Duration::ZERO, false),
    ] {
        // Either of these records the last start; the others are from the time of unpacking.
        let (info, lease) = (
            format!("unzipped_pexes/4/{hash}/PEX-INFO"),
            format!(".leases/{}", "ef".repeat(32)),
        );
        for (file, text) in [
            (format!("unzipped_pexes/4/{hash}/.last-access"), ""),
            (info.clone(), "{}"),
            (
                format!("venvs/4/{hash}/{}/.last-access", "cd".repeat(20)),
                "",
            ),
            (lease.clone(), &hash),
            // Nothing is known about the directories of a pex without a hash.
            (format!(".leases/{}", "0e".repeat(32)), NO_HASH),
        ] {
            let (_temp, share, root) = share();
            let unpacked = now - HOUR * 100;
            write(&root.join(&info), "{}", unpacked);
            write(&root.join(&lease), &hash, unpacked);
            // Files of an unknown layout follow the same rule.
            write(&root.join("other/file"), "shared", unpacked);
            write(&root.join(&file), text, started);
            let pruned = prune_all(&share, spare);
            let found = ["unzipped_pexes", "other"].map(|name| root.join(name).exists());
            let case = format!("{file}: {:?} ago, {spare:?}", now.duration_since(started));
            assert_eq!(found, [left; 2], "{case}");
            assert_eq!(pruned.pexes, u64::from(!left), "{case}");
        }
    }
}

#[test]
fn unknown_layout_stays_after_start_of_any_pex() {
    for (age, left) in [(HOUR / 2, true), (HOUR * 2, false)] {
        let (_temp, share, root) = share();
        write(
            &root.join("code/file"),
            "unpacked",
            clock::now() - HOUR * 100,
        );
        let lease = root.join(format!(".leases/{}", "ef".repeat(32)));
        write(&lease, NO_HASH, clock::now() - age);
        // The first run must not remove the records that the second one needs.
        for _ in 0..2 {
            prune_all(&share, HOUR);
            assert_eq!(root.join("code").exists(), left, "{age:?}");
            assert_eq!(lease.exists(), left, "{age:?}");
        }
    }
}

/// Earlier releases of pexrun continue without a lock while a removal holds it.
#[test]
fn work_directory_without_lease_stays_with_needed_parts() {
    let (hash, part) = ("ab".repeat(20), "cd".repeat(20));
    for place in [
        format!("unzipped_pexes/4/{hash}.lck.work"),
        format!("venvs/4/{hash}/{part}.lck.work"),
        format!("installed_wheels/3/{part}/six-1.0.whl.lck.work"),
        format!("interpreters/2/{part}/{part}.lck.work"),
        format!("isolated/0/{part}.lck.work"),
        format!("code/{part}.work"),
    ] {
        for (age, left) in [(MINUTE, true), (10 * MINUTE, false)] {
            let (_temp, share, root) = share();
            work_directory(&root.join(&place), age);
            let needed = root.join(format!("bootstraps/0/{part}/file"));
            write(&needed, "part", clock::now() - HOUR * 100);
            // Its hash is in the description of an interpreter, and another pex is removed.
            let other = "0f".repeat(20);
            let pex = root.join(format!("unzipped_pexes/4/{other}/PEX-INFO"));
            write(&pex, "{}", clock::now() - HOUR * 100);
            if place.starts_with("interpreters") {
                write(&root.join(&place).join("INTERP-INFO"), &other, clock::now());
                work_directory(&root.join(&place), age);
            }
            prune_all(&share, Duration::ZERO);
            assert!(!pex.exists(), "{place}");
            assert_eq!(
                root.join(&place).join("file").exists(),
                left,
                "{place}: {age:?}"
            );
            let parts_stay = left && !place.starts_with("isolated") && !place.starts_with("code");
            assert_eq!(needed.exists(), parts_stay, "{place}: {age:?}");
        }
    }
}

#[test]
fn missing_or_reused_directory_does_not_fail_removal() {
    let (_temp, _share, root) = share();
    let hash = "ab".repeat(20);
    write(
        &root.join(format!("unzipped_pexes/4/{hash}/PEX-INFO")),
        "{}",
        clock::now(),
    );
    let dir = Dir::open(&root).unwrap();
    let mut layout = PexRootLayout::read(&dir, HOUR).unwrap();
    let place = layout.take(&hash).remove(0);
    fs::remove_dir_all(root.join("unzipped_pexes")).unwrap();
    let mut removal = PexRemoval::new(&dir, EvictionMode::Remove);
    removal.remove(&place).unwrap();
    assert_eq!(removal.freed, 0);
}
