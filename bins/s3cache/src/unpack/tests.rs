//! Unpacked and rejected archives, and that no file is left outside the directory.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

mod formats;
mod hostile;
mod makers;

fn unpack(blob: &File, name: &str, sha256: &str, target: &Path) -> Result<(), Failure> {
    let deadline = Deadline::new(name, Duration::from_secs(3600));
    super::unpack(blob, name, sha256, target, None, &deadline)
}

fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> File {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    file(&builder.into_inner().unwrap())
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Adds an entry with a path that the builder itself would reject.
fn raw(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    link: &str,
    body: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(body.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    builder.append(&header, body).unwrap();
}

#[test]
fn tar_is_unpacked_and_replaced_by_another() {
    let temp = tempfile::tempdir().unwrap();
    let target = temp.path().join("app");
    let first = archive(|tar| raw(tar, "bin/run", tar::EntryType::Regular, "", b"one"));
    unpack(&first, "a.tar", "11", &target).unwrap();
    assert_eq!(std::fs::read(target.join("bin/run")).unwrap(), b"one");
    std::fs::write(target.join("kept"), "by the job").unwrap();
    unpack(&first, "a.tar", "11", &target).unwrap();
    assert!(
        target.join("kept").exists(),
        "the same content again changes nothing"
    );
    let second = archive(|tar| raw(tar, "other", tar::EntryType::Regular, "", b"two"));
    unpack(&second, "a.tar", "22", &target).unwrap();
    assert!(target.join("other").exists() && !target.join("bin").exists());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn directory_without_marker_is_kept() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("mine"), "x").unwrap();
    let tar = archive(|tar| raw(tar, "a", tar::EntryType::Regular, "", b"x"));
    assert_eq!(
        unpack(&tar, "a.tar", "11", temp.path()).unwrap_err().exit(),
        Exit::CANNOT_CREATE
    );
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn only_scratch_directories_are_removed_beside_target() {
    let left = [".app.s3cache-123-a5f", ".app.s3cache-123-1"];
    let kept = [
        ".app.s3cache-mybackup",
        ".app.s3cache-1",
        ".app.s3cache-1-old",
        ".other.s3cache-123-1",
    ];
    let temp = tempfile::tempdir().unwrap();
    for name in left.iter().chain(&kept) {
        std::fs::create_dir(temp.path().join(name)).unwrap();
    }
    let tar = archive(|tar| raw(tar, "a", tar::EntryType::Regular, "", b"x"));
    unpack(&tar, "a.tar", "11", &temp.path().join("app")).unwrap();
    for name in kept {
        assert!(temp.path().join(name).exists(), "{name}");
    }
    assert!(left.iter().all(|name| !temp.path().join(name).exists()));
}

#[test]
fn hostile_archive_leaves_nothing() {
    use tar::EntryType::{Char, Fifo, Link, Regular, Symlink};
    for (path, kind, link) in [
        ("../evil", Regular, ""),
        ("/tmp/evil", Regular, ""),
        ("a/../../evil", Regular, ""),
        ("link", Symlink, "/etc/passwd"),
        ("link", Symlink, "../../etc/passwd"),
        ("d/link", Symlink, "../../etc"),
        ("link", Link, "../evil"),
        ("fifo", Fifo, ""),
        ("null", Char, ""),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("app");
        let tar = archive(|tar| {
            raw(tar, "fine", Regular, "", b"x");
            raw(tar, path, kind, link, b"");
        });
        let failure = unpack(&tar, "a.tar", "11", &target).unwrap_err();
        assert_eq!(failure.exit(), Exit::CORRUPT, "{path} -> {link}");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "{path}");
    }
}

#[test]
fn links_within_directory_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    let target = temp.path().join("app");
    let tar = archive(|tar| {
        raw(tar, "lib/one", tar::EntryType::Regular, "", b"x");
        raw(tar, "bin/two", tar::EntryType::Symlink, "../lib/one", b"");
    });
    unpack(&tar, "a.tar", "11", &target).unwrap();
    assert_eq!(std::fs::read(target.join("bin/two")).unwrap(), b"x");
}

#[test]
fn gzip_and_tgz_are_unpacked() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let temp = tempfile::tempdir().unwrap();
    let packed = gzip(b"words\n");
    unpack(
        &file(&packed),
        "words.txt.gz",
        "11",
        &temp.path().join("gz"),
    )
    .unwrap();
    assert_eq!(
        std::fs::read(temp.path().join("gz/words.txt")).unwrap(),
        b"words\n"
    );
    let failure = unpack(
        &file(&packed[..packed.len() - 3]),
        "words.txt.gz",
        "11",
        &temp.path().join("no"),
    );
    assert_eq!(failure.unwrap_err().exit(), Exit::CORRUPT);
    assert!(!temp.path().join("no").exists());
    let mut builder = tar::Builder::new(Vec::new());
    raw(&mut builder, "a", tar::EntryType::Regular, "", b"x");
    unpack(
        &file(&gzip(&builder.into_inner().unwrap())),
        "a.tgz",
        "11",
        &temp.path().join("tgz"),
    )
    .unwrap();
    assert!(temp.path().join("tgz/a").exists());
}

#[test]
fn unpacking_past_deadline_fails_and_leaves_nothing() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut builder = tar::Builder::new(Vec::new());
    raw(&mut builder, "a", tar::EntryType::Regular, "", b"x");
    let tar = builder.into_inner().unwrap();
    let late = Deadline::new("s3://b/a", Duration::ZERO);
    for (name, bytes) in [
        ("a.tar", tar.clone()),
        ("a.tgz", gzip(&tar)),
        ("a.gz", gzip(b"x")),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("out");
        let failure = super::unpack(&file(&bytes), name, "11", &target, None, &late).unwrap_err();
        assert_eq!(failure.exit(), Exit::TRY_AGAIN, "{name}");
        let text = failure.to_string();
        assert!(text.starts_with("s3://b/a: not finished within"), "{text}");
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "{name}");
    }
    // Steps that read no more input check the deadline too.
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("f"), "").unwrap();
    let root = Dir::open(temp.path()).unwrap();
    let checked = symlinks::check_symlinks(&root, &late);
    assert!(
        matches!(checked, Err(UnpackError::Deadline(_))),
        "{checked:?}"
    );
}
