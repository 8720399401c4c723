//! Leases, evictions and quarantines of the blobs of one share.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::cache::eviction::{evict_blob, remove_blob};
use crate::cache::space;

/// A share with one blob.
fn share_with_blob() -> (tempfile::TempDir, CacheShare, String) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = Dir::open(temp.path()).unwrap();
    let share = CacheShare::open(&root, nix::unistd::geteuid().as_raw(), true).unwrap();
    let sha256 = "ab".repeat(32);
    let shelf = share.dir.child("blobs").unwrap();
    let dir = shelf.create_child("ab", 0o755).unwrap();
    let dir = dir.create_child(&sha256, 0o755).unwrap();
    std::fs::write(dir.path().join("job"), "job").unwrap();
    (temp, share, sha256)
}

#[test]
fn blob_locked_by_eviction_is_leased_or_missed() {
    for left in [true, false] {
        let (_temp, share, sha256) = share_with_blob();
        let (evicting, path) = share.open_blob(&sha256, "job").unwrap();
        assert!(try_lock_exclusive(&evicting).unwrap());
        let leased = std::thread::scope(|scope| {
            let start = scope.spawn(|| share.lease_blob(&sha256, "job"));
            // Over as soon as the other thread has the file open, whatever the order of what follows.
            while !start.is_finished() && opened(&path) < 2 {
                std::thread::yield_now();
            }
            if !left {
                std::fs::remove_file(&path).unwrap();
            }
            evicting.unlock().unwrap();
            start.join().unwrap()
        });
        assert_eq!(leased.is_ok(), left);
        if left {
            assert!(!try_lock_exclusive(&evicting).unwrap(), "it has a lease");
            let removed = remove_blob(
                &share,
                &sha256,
                &ProcessReferences::default(),
                EvictionMode::Remove,
            );
            assert!(!removed.unwrap());
        }
    }
}

/// How many descriptors of this process have a file open.
fn opened(path: &std::path::Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target == path).count()
}

#[test]
fn blob_used_after_selection_is_not_evicted() {
    let (_temp, share, sha256) = share_with_blob();
    let mut chosen = space::blobs(&share).unwrap().remove(0);
    let used = chosen.used;
    chosen.used -= Duration::from_secs(1);
    for act in [EvictionMode::DryRun, EvictionMode::Remove] {
        assert!(!evict_blob(&share, &chosen, &ProcessReferences::default(), act).unwrap());
    }
    chosen.used = used;
    assert!(
        evict_blob(
            &share,
            &chosen,
            &ProcessReferences::default(),
            EvictionMode::Remove
        )
        .unwrap()
    );
    assert!(share.open_blob(&sha256, "job").is_err());
}

#[test]
fn corrupt_blob_loses_all_names() {
    for quarantined_before in [false, true] {
        let (_temp, share, sha256) = share_with_blob();
        let folder = share.blob_dir(&sha256).unwrap();
        for name in ["other", "third"] {
            folder.link("job", name).unwrap();
        }
        // Another file, published since under another name.
        std::fs::write(folder.path().join("sound"), "sound").unwrap();
        let partial = share.record_dir("partial").unwrap();
        let bad = partial.path().join(format!("{sha256}.bad"));
        if quarantined_before {
            // As an earlier release left it: renaming one link of a file to another does nothing.
            std::fs::hard_link(folder.path().join("third"), &bad).unwrap();
        }
        for (key, name) in
            [("ab", "job"), ("cd", "other")].map(|(key, name)| (key.repeat(32), name))
        {
            let entry: IndexEntry = serde_json::from_value(serde_json::json!({
                "source": "s", "name": name, "sha256": sha256, "size": 3, "etag": null, "fetched": 0, "fetch_id": "",
                "vouched": null, "stamp": FileStamp::of(&std::fs::metadata(folder.path().join("sound")).unwrap()),
            }))
            .unwrap();
            share.write_entry(&key, &entry).unwrap();
            let found = share.lookup(&key).unwrap();
            match name {
                "job" => assert!(matches!(found, LookupResult::Corrupt(_)), "{found:?}"),
                _ => assert!(
                    matches!(found, LookupResult::Miss),
                    "it went with the first name: {found:?}"
                ),
            }
        }
        let left: Vec<_> = folder
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().0)
            .collect();
        assert_eq!(left, ["sound"]);
        assert_eq!(std::fs::read(&bad).unwrap(), b"job");
    }
}
