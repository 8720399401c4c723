//! Archives that tar(1) reads although it would not write them: they are verified and unpacked.

use std::os::unix::fs::MetadataExt as _;

use tar::EntryType::{self, Directory, Link, Regular, Symlink};

use super::*;
use crate::archive;

/// Bytes to put into a header, by offset.
pub(super) type HeaderEdits<'a> = &'a [(usize, &'a [u8])];

const MODE: usize = 100;
const SIZE: usize = 124;
const MTIME: usize = 136;
const LINK: usize = 157;

fn member(path: &str, kind: EntryType, edits: HeaderEdits<'_>, body: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    for (at, bytes) in edits {
        header.as_mut_bytes()[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    header.set_cksum();
    let mut bytes = [header.as_bytes(), body].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An extended header with one record.
pub(super) fn record(key: &str, value: &str) -> Vec<u8> {
    let text = format!(" {key}={value}\n");
    let digits = (1..)
        .find(|digits| (text.len() + digits).to_string().len() == *digits)
        .unwrap();
    let record = format!("{}{text}", text.len() + digits);
    member("x", EntryType::XHeader, &[], record.as_bytes())
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn file_d() -> Vec<u8> {
    member("d", Regular, &[], b"body")
}

#[test]
fn archive_of_unusual_writer_is_verified_and_unpacked() {
    let edited = |edits: HeaderEdits<'_>| tar(&[member("d", Regular, edits, b"body")]);
    let after = |first: Vec<u8>| tar(&[first, file_d()]);
    let nul = [0; 12];
    let twice = "14 path=first\n10 path=d\n";
    let rows = [
        ("a mode of NUL", edited(&[(MODE, &nul[..8])])),
        (
            "a mode and a time of NUL",
            edited(&[(MODE, &nul[..8]), (MTIME, &nul)]),
        ),
        ("a mode after a NUL", edited(&[(MODE, b"\x000644 \0\0")])),
        ("a negative time", edited(&[(MTIME, &[0xff; 12])])),
        (
            "a directory with a size",
            after(member("x/", Directory, &[(SIZE, b"00000010000\0")], b"")),
        ),
        (
            "a directory with a size of NUL",
            after(member("x/", Directory, &[(SIZE, &nul)], b"")),
        ),
        (
            "a symlink with a size",
            after(member(
                "x",
                Symlink,
                &[(SIZE, b"00000000001\0"), (LINK, b"d")],
                b"",
            )),
        ),
        (
            "the label of a volume",
            after(member("label", EntryType::new(b'V'), &[], b"")),
        ),
        (
            "a record that is padded",
            after(member(
                "x",
                EntryType::XHeader,
                &[],
                b"13 comment=a\n\0\0\0",
            )),
        ),
        (
            "one path in two headers",
            tar(&[
                member("L", EntryType::GNULongName, &[], b"d\0"),
                record("path", "d"),
                member("e", Regular, &[], b"body"),
            ]),
        ),
        (
            "two paths in one header",
            tar(&[
                member("x", EntryType::XHeader, &[], twice.as_bytes()),
                member("e", Regular, &[], b"body"),
            ]),
        ),
        (
            "an empty target of what is not a link",
            after(record("linkpath", "")),
        ),
        (
            "a long attribute",
            after(record("SCHILY.xattr.user.x", &"v".repeat(1_200_000))),
        ),
        ("star's size", after(record("SCHILY.realsize", "4"))),
        ("star's volume", after(record("SCHILY.volhdr.label", "x"))),
        ("half a block at the end", [file_d(), vec![0; 300]].concat()),
        (
            "a name like a compressed archive",
            tar(&[member("BZh", Regular, &[], b""), file_d()]),
        ),
    ];
    for (what, bytes) in rows {
        archive::check(ArchiveKind::Tar, bytes.as_slice())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let temp = tempfile::tempdir().unwrap();
        let app = temp.path().join("app");
        unpack(&file(&bytes), "a.tar", "11", &app)
            .unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(std::fs::read(app.join("d")).unwrap(), b"body", "{what}");
        if what == "a negative time" {
            assert_eq!(app.join("d").metadata().unwrap().mtime(), -1);
        }
    }
    // With the size of its target, whose data does not follow.
    let bytes = tar(&[
        file_d(),
        member("h", Link, &[(SIZE, b"00000000004\0"), (LINK, b"d")], b""),
        file_d(),
    ]);
    let temp = tempfile::tempdir().unwrap();
    unpack(&file(&bytes), "a.tar", "11", &temp.path().join("app")).unwrap();
    assert!(temp.path().join("app/h").exists());
}

#[test]
fn contradicting_extended_headers_are_rejected() {
    let long = member("L", EntryType::GNULongName, &[], b"other\0");
    for (what, first, second) in [
        ("a long name", long, record("path", "d")),
        ("a path", record("path", "other"), record("path", "d")),
        ("a size", record("size", "3"), record("size", "4")),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let bytes = tar(&[first, second, file_d()]);
        let failure = unpack(&file(&bytes), "a.tar", "11", &temp.path().join("app"));
        assert_eq!(failure.unwrap_err().exit(), Exit::CORRUPT, "{what}");
    }
}

#[test]
fn compression_is_detected_by_content() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let plain = tar(&[file_d()]);
    let text = "compressed with bzip2";
    for (name, bytes, arrives, refusal) in [
        ("a.tgz", plain.clone(), true, None),
        ("a.tar", gzip(&plain), true, None),
        ("a.tgz", gzip(b""), true, None),
        ("a.tgz", b"BZh91AY&SY".to_vec(), true, Some(text)),
        ("a.tar", b"BZh91AY&SY".to_vec(), true, Some(text)),
        ("a.tgz", vec![0; 10240], false, Some("not gzip data")),
        ("a.tgz", b"<html>".to_vec(), false, Some("not gzip data")),
        ("a.tgz", gzip(b"<html>"), false, Some("not a tar")),
        ("a.tar", gzip(&plain)[..40].to_vec(), false, Some("")),
        ("a.tar", Vec::new(), false, Some("not a tar archive")),
        ("d.gz", plain.clone(), false, Some("not gzip data")),
    ] {
        let checked = archive::check(archive_kind(name).unwrap(), bytes.as_slice());
        assert_eq!(checked.is_ok(), arrives, "{name} {refusal:?}: {checked:?}");
        let temp = tempfile::tempdir().unwrap();
        let unpacked = unpack(&file(&bytes), name, "11", &temp.path().join("app"));
        match (unpacked, refusal) {
            (Ok(()), None) => {}
            (Err(failure), Some(text)) => {
                assert_eq!(failure.exit(), Exit::CORRUPT, "{name}");
                assert!(format!("{failure:?}").contains(text), "{name}: {failure:?}");
            }
            (unpacked, _) => panic!("{name} {refusal:?}: {unpacked:?}"),
        }
    }
}
