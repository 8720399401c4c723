//! ACL files that are replaced under load, written in place, invalid and removed.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use authproxy::testing::{AclFile, PermissionsBackend as _};
use hostkit_tests::permissions::{PermissionsServer, write_acl_file};
use hostkit_tests::wait_until;
use serde_json::json;

use super::{PATIENCE, block_on, hash, servers};

/// Stops the other thread, also when this one panics.
struct StopGuard<'a>(&'a AtomicBool);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls `swap` repeatedly while keys are looked up; the key `always` must be known at every moment.
fn replace_under_load(file: &Arc<AclFile>, mut swap: impl FnMut(usize)) {
    let (done, looked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _done = StopGuard(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let always = file.get(&hash("always"));
                looked.fetch_add(1, Ordering::Relaxed);
                if always.is_none() {
                    // The other thread would wait for ever.
                    return;
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        runtime.spawn(Arc::clone(file).follow());
        for turn in 1..=30 {
            let before = looked.load(Ordering::Relaxed);
            swap(turn);
            let newest = hash(&format!("turn-{turn}"));
            wait_until("the newest file is loaded", || file.get(&newest).is_some());
            wait_until("keys are looked up", || {
                looked.load(Ordering::Relaxed) > before
            });
        }
        runtime.shutdown_background();
    });
    assert!(file.get(&hash("always")).is_some());
}

fn write(path: &Path, turn: usize) {
    let newest = format!("turn-{turn}");
    write_acl_file(path, &[("always", &["all"]), (&newest, &["all"])]);
}

#[test]
fn replaced_acl_file_is_reloaded_without_denials() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    write(&path, 0);
    let file = Arc::new(AclFile::open(&path).unwrap());
    replace_under_load(&file, |turn| write(&path, turn));
    assert_eq!(file.status().rejected, 0);
}

#[test]
fn acl_file_behind_swapped_symlink_is_reloaded() {
    // As Kubernetes mounts it: acl.yaml -> ..data/acl.yaml, ..data -> ..version
    let temp = tempfile::tempdir().unwrap();
    let link = |target: &Path, name: &str| {
        let part = temp.path().join("part");
        std::os::unix::fs::symlink(target, &part).unwrap();
        std::fs::rename(part, temp.path().join(name)).unwrap();
    };
    let publish = |turn: usize| {
        let version = temp.path().join(format!("..{turn}"));
        std::fs::create_dir(&version).unwrap();
        write(&version.join("acl.yaml"), turn);
        link(&version, "..data");
        if let Some(before) = turn.checked_sub(1) {
            std::fs::remove_dir_all(temp.path().join(format!("..{before}"))).unwrap();
        }
    };
    publish(0);
    link(Path::new("..data/acl.yaml"), "acl.yaml");
    let file = Arc::new(AclFile::open(&temp.path().join("acl.yaml")).unwrap());
    replace_under_load(&file, publish);
}

#[test]
fn removed_or_invalid_acl_file_keeps_last_keys() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    write(&path, 0);
    let file = Arc::new(AclFile::open(&path).unwrap());
    replace_under_load(&file, |turn| {
        let refused = file.status().rejected;
        match turn % 3 {
            0 => std::fs::remove_file(&path).unwrap(),
            1 => std::fs::write(&path, "keys:\n- {id: half").unwrap(),
            _ => std::fs::write(&path, "").unwrap(),
        }
        wait_until("the file is rejected", || file.status().rejected > refused);
        assert!(file.status().error.is_some());
        write(&path, turn);
    });
    assert_eq!(file.status().error, None);
}

#[test]
fn acl_file_written_in_place_is_read_when_complete() {
    let temp = tempfile::tempdir().unwrap();
    let (path, whole) = (temp.path().join("acl.yaml"), temp.path().join("whole"));
    let text = |turn: usize| {
        write(&whole, turn);
        // `always` is last: the first half is a list without it.
        let text = std::fs::read_to_string(&whole).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys = value["keys"].as_array().unwrap();
        (
            format!("keys:\n- {}\n", keys[1]),
            format!("- {}\n", keys[0]),
        )
    };
    let (first, second) = text(0);
    std::fs::write(&path, first + &second).unwrap();
    let file = Arc::new(AclFile::open(&path).unwrap());
    replace_under_load(&file, |turn| {
        if turn == 1 {
            // The file is read once more when the watch starts, even during a write.
            return write(&path, turn);
        }
        let (first, second) = text(turn);
        let mut out = std::fs::File::create(&path).unwrap();
        out.write_all(first.as_bytes()).unwrap();
        // Enough time to read it.
        std::thread::sleep(Duration::from_millis(20));
        out.write_all(second.as_bytes()).unwrap();
    });
}

#[test]
fn server_and_file_give_equal_grants() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("acl.yaml");
    let scopes = json!({"hosts": ["[::1]", "A.b"], "paths": ["/%61/"], "methods": ["GET"], "expires": "2027-01-31"});
    let mut entry = json!({"id": "good", "sha256": hash("good").to_string(), "rights": ["all"]});
    let mut answer = json!({"id": "good", "rights": ["all"]});
    for (name, value) in scopes.as_object().unwrap() {
        entry[name] = value.clone();
        answer[name] = value.clone();
    }
    std::fs::write(&path, json!({ "keys": [entry] }).to_string()).unwrap();
    let file = AclFile::open(&path).unwrap();
    let acl = PermissionsServer::start();
    acl.add_key("good", answer);
    let found = block_on(async { servers(&[acl.url()], PATIENCE).look_up(hash("good")).await });
    let grant = file.get(&hash("good"));
    assert!(grant.is_some());
    assert_eq!(grant, found.unwrap().grant);
}
