//! Unpacking as a user other than root: read-only directories, and leftovers of killed runs.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink,
};
use std::path::{Path, PathBuf};

use hostkit_tests::host::{TmpfsMount, run_as};
use hostkit_tests::or_skip;
use hostkit_tests::origin::OriginServer;

use super::{ANN, BOB, CommandOutcome, HostUsers};

/// A tar of directories that their owner may not write or read, and of a file of a MiB after them.
fn pack_directories(users: &HostUsers) -> Vec<u8> {
    let script = "mkdir -p in/none/in in/read && echo text | tee in/none/file in/read/file >in/none/in/file \
        && head -c 1048576 /dev/zero >in/zeros && chmod 555 in/none/in in/read && chmod 0 in/none \
        && tar -C in --sort=name -cf packed.tar . \
        && tar -C in --sort=name -P --transform='s,^./zeros,../zeros,' -cf escaping.tar . && rm -r in";
    let packed = users.host.program("bash").args(["-c", script]).status();
    assert!(packed.unwrap().success());
    users.host.read("packed.tar")
}

/// Hidden names in the home of a user: temporary ones.
fn hidden_files(users: &HostUsers, uid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(users.home(uid)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.filter(|path| name(path).starts_with('.')).collect()
}

fn records(users: &HostUsers, uid: u32) -> usize {
    let records = fs::read_dir(users.share(uid, "unpacking/v1"));
    records.map_or(0, Iterator::count)
}

#[test]
fn read_only_directories_are_unpacked_replaced_and_removed() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let origin = OriginServer::start();
    let tar = pack_directories(&users);
    origin.put("/a-1.1.tar", tar.clone());
    origin.put("/a-1.2.tar", [tar, vec![0; 512]].concat());
    origin.put("/a-1.3.tar", users.host.read("escaping.tar"));
    let unpack = |name: &str| users.run(ANN, &[&origin.url(name), "--unpack-to=out"]);
    let mode = |path: &str| users.home(ANN).join(path).metadata().unwrap().mode() & 0o7777;
    for name in ["/a-1.1.tar", "/a-1.2.tar"] {
        unpack(name).exits(0);
        assert_eq!((mode("out/read"), mode("out/none")), (0o555, 0), "{name}");
        let file = fs::read(users.home(ANN).join("out/none/in/file")).unwrap();
        assert_eq!(file, b"text\n", "{name}");
        assert_eq!(hidden_files(&users, ANN), Vec::<PathBuf>::new(), "{name}");
    }
    unpack("/a-1.3.tar").exits(65).logs("a-1.3.tar");
    assert_eq!(hidden_files(&users, ANN), Vec::<PathBuf>::new());
    assert_eq!(records(&users, ANN), 0);
}

/// Unpacks in the home of `uid` until the kernel kills it for the size of the last file.
fn run_until_killed(users: &HostUsers, uid: u32, url: &str) -> CommandOutcome {
    users.run(uid, &[url]).exits(0);
    let mut command = run_as(uid, "prlimit").unwrap();
    users.host.set_clean_environment(&mut command);
    command
        .args(["--fsize=65536", "--core=0"])
        .arg(users.program())
        .args([url, "--unpack-to=out"])
        .args(users.host.own_flags())
        .env("HOME", users.home(uid))
        .current_dir(users.home(uid));
    command.output().unwrap().into()
}

#[test]
fn gc_removes_leftovers_of_killed_runs() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let origin = OriginServer::start();
    origin.put("/a-1.1.tar", pack_directories(&users));
    let url = origin.url("/a-1.1.tar");
    for (uid, collector) in [(ANN, ANN), (BOB, 0), (0, 0)] {
        run_until_killed(&users, uid, &url).exits(-25);
        let left = hidden_files(&users, uid);
        assert_eq!((left.len(), records(&users, uid)), (1, 1), "{left:?}");
        assert!(left[0].join("read").exists());
        users.run(collector, &["gc"]).exits(0);
        assert_eq!(
            hidden_files(&users, uid),
            Vec::<PathBuf>::new(),
            "{uid} {collector}"
        );
        assert_eq!(records(&users, uid), 0, "{uid} {collector}");
    }
    // Or the next run with the same target.
    run_until_killed(&users, ANN, &url).exits(-25);
    users.run(ANN, &[&url, "--unpack-to=out"]).exits(0);
    assert_eq!(hidden_files(&users, ANN), Vec::<PathBuf>::new());
}

/// A directory named like one that is being filled.
fn make_directory(path: &Path, owner: u32) -> PathBuf {
    DirBuilder::new().mode(0o755).create(path).unwrap();
    fs::write(path.join("file"), "kept").unwrap();
    for path in [path, &path.join("file")] {
        chown(path, Some(owner), Some(owner)).unwrap();
    }
    path.to_owned()
}

#[test]
fn cleanup_record_removes_only_files_its_owner_could_remove() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let root_only = users.home(0).join(".root.s3cache-1-a");
    let at = |uid, name: &str| users.home(uid).join(name);
    symlink(users.home(ANN), at(BOB, "ann")).unwrap();
    let kept = [
        // Of others, also through a link.
        make_directory(&at(ANN, ".out.s3cache-1-a"), ANN),
        make_directory(&at(ANN, ".out.s3cache-2-a"), BOB),
        make_directory(&root_only, 0),
        // Other names.
        make_directory(&at(BOB, "documents"), BOB),
        make_directory(&at(BOB, ".hidden"), BOB),
    ];
    let records = kept.iter().cloned().chain([
        at(BOB, "ann/.out.s3cache-1-a"),
        PathBuf::from("/"),
        PathBuf::from(".x.s3cache-1-a"),
        PathBuf::from("/nothing/.x.s3cache-1-a/.."),
    ]);
    for (number, path) in records.enumerate() {
        let record = format!("unpacking/v1/{number}");
        users.write(BOB, &record, path.as_os_str().as_encoded_bytes());
    }
    fs::set_permissions(users.share(BOB, ""), Permissions::from_mode(0o755)).unwrap();
    users.run(0, &["gc"]).exits(0);
    for path in kept {
        assert!(path.join("file").exists(), "{}", path.display());
    }
}

#[test]
fn full_disk_is_73_and_leaves_no_file() {
    let Some(users) = HostUsers::new() else {
        return;
    };
    let Some(small) = or_skip("a small filesystem", TmpfsMount::mount(512 << 10)) else {
        return;
    };
    let origin = OriginServer::start();
    origin.put("/a-1.1.tar", pack_directories(&users));
    let out = format!("--unpack-to={}", small.path().join("out").display());
    let outcome = users.run(ANN, &[&origin.url("/a-1.1.tar"), &out]).exits(73);
    outcome
        .logs("free some space there")
        .logs("No space left")
        .logs("zeros");
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
}
