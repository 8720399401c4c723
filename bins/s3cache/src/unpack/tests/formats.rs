//! Tars of several writers: sparse files, repeated members, and records that must be supported.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::Command;

use tar::EntryType;

use super::makers::HeaderEdits;
use super::*;

/// Unpacks, and returns where to.
fn unpacked(bytes: &[u8]) -> Result<(tempfile::TempDir, PathBuf), Failure> {
    let temp = tempfile::tempdir().unwrap();
    let target = temp.path().join("app");
    unpack(&file(bytes), "a.tar", "11", &target).map(|()| (temp, target))
}

/// Packs with an installed program; `None` without it.
fn pack(dir: &Path, program: &str, args: &[&str]) -> Option<Vec<u8>> {
    let packed = Command::new(program).args(args).current_dir(dir).output();
    let packed = packed.ok().filter(|output| output.status.success());
    if packed.is_none() {
        let required = std::env::var_os("HOSTKIT_REQUIRE_SYSTEM").is_some();
        assert!(!required, "{program} {args:?} failed, or is not installed");
        eprintln!("SKIP {program} {args:?}: not installed, or not of this kind");
    }
    packed.map(|output| output.stdout)
}

#[test]
fn sparse_files_of_every_format_are_restored() {
    let from = tempfile::tempdir().unwrap();
    let name = format!("holes-{}", "n".repeat(120));
    let holes = File::create(from.path().join(&name)).unwrap();
    for piece in 0..60u64 {
        holes
            .write_all_at(&[piece as u8 + 1; 5000], piece << 16)
            .unwrap();
    }
    holes.set_len(100 << 16).unwrap();
    File::create(from.path().join("empty"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    std::fs::write(from.path().join("after"), "after").unwrap();
    let packers: &[(&str, &[&str])] = &[
        ("tar", &["-cSf", "-", "--format=gnu", "."]),
        (
            "tar",
            &["-cSf", "-", "--format=pax", "--sparse-version=0.0", "."],
        ),
        (
            "tar",
            &["-cSf", "-", "--format=pax", "--sparse-version=0.1", "."],
        ),
        (
            "tar",
            &["-cSf", "-", "--format=pax", "--sparse-version=1.0", "."],
        ),
        ("tar", &["-cf", "-", "--format=pax", "."]),
        (
            "bsdtar",
            &["--read-sparse", "--format=pax", "-cf", "-", "."],
        ),
        ("bsdtar", &["--format=gnutar", "-cf", "-", "."]),
        (
            "python3",
            &[
                "-c",
                "import sys,tarfile; t=tarfile.open(fileobj=sys.stdout.buffer,mode='w|'); t.add('.')",
            ],
        ),
    ];
    for (program, args) in packers {
        let Some(bytes) = pack(from.path(), program, args) else {
            continue;
        };
        let (_temp, app) = unpacked(&bytes).unwrap_or_else(|error| panic!("{args:?}: {error:?}"));
        let mut names: Vec<_> = std::fs::read_dir(&app)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [MARKER, "after", "empty", &name], "{args:?}");
        for name in ["after", "empty", &name] {
            let (was, is) = (
                std::fs::read(from.path().join(name)),
                std::fs::read(app.join(name)),
            );
            assert!(was.unwrap() == is.unwrap(), "{program} {args:?}: {name}");
        }
        if args[0].contains('S') {
            let blocks = app.join("empty").metadata().unwrap().blocks();
            assert_eq!(blocks, 0, "{args:?}: holes stay holes");
        }
    }
}

/// Records of an extended header.
type PaxFields<'a> = &'a [(&'a str, &'a str)];

/// A member after an extended header with these records.
fn extended(
    kind: EntryType,
    records: PaxFields<'_>,
    header: HeaderEdits<'_>,
    body: &[u8],
) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let records: Vec<_> = records
        .iter()
        .map(|(key, value)| (*key, value.as_bytes()))
        .collect();
    builder
        .append_pax_extensions(records.iter().copied())
        .unwrap();
    let mut member = tar::Header::new_ustar();
    member.set_path("d/f").unwrap();
    member.set_entry_type(kind);
    member.set_size(body.len() as u64);
    member.set_mode(0o644);
    for (at, bytes) in header {
        member.as_mut_bytes()[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    member.set_cksum();
    builder.append(&member, body).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn records_that_change_data_are_supported_or_rejected() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let long = "x/".repeat(90) + "name\nof two lines";
    // As star writes it: a shorter prefix, times, and its name at the end.
    let star: HeaderEdits<'_> = &[
        (345, b"prefix"),
        (476, b"00000001750 "),
        (488, b"00000001750 "),
        (508, b"tar\0"),
    ];
    let attributes = [
        ("mtime", "1.5"),
        ("comment", "a\nb=c"),
        ("SCHILY.xattr.user.a", "\n1 x=y\n"),
    ];
    let stars = [
        ("hdrcharset", "BINARY"),
        ("SCHILY.ino", "7"),
        ("LIBARCHIVE.xattr.a", "eA"),
    ];
    let read: &[(PaxFields<'_>, HeaderEdits<'_>, &str)] = &[
        (&[("path", "other")], &[], "other"),
        (&[("path", &long)], &[], &long),
        (&[("size", "4")], &[(124, b"00000000000")], "d/f"),
        (&[("size", "4")], &[(124, b"77777777777")], "d/f"),
        (&[], &[(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x04")], "d/f"),
        (&[], star, "prefix/d/f"),
        (&attributes, &[], "d/f"),
        (&stars, &[], "d/f"),
    ];
    for (records, header, path) in read {
        let packed = extended(Regular, records, header, b"body");
        let (_temp, app) =
            unpacked(&packed).unwrap_or_else(|error| panic!("{records:?} {error:?}"));
        let found = std::fs::read(app.join(path)).unwrap();
        assert_eq!(found, b"body", "{records:?} {header:?}");
    }
    let refused: &[(EntryType, PaxFields<'_>, HeaderEdits<'_>)] = &[
        (Regular, &[("SCHILY.realsize", "9")], &[]),
        (Regular, &[("SCHILY.offset", "9")], &[]),
        (Regular, &[("SCHILY.filetype", "sparse")], &[]),
        (Regular, &[("GNU.dumpdir", "Yx")], &[]),
        (Regular, &[("GNU.volume.offset", "9")], &[]),
        (Regular, &[("GNU.new", "")], &[]),
        (Regular, &[("hdrcharset", "ISO-IR 8859 1 1998")], &[]),
        (Regular, &[("path", "")], &[]),
        (Regular, &[("path", "a\0b")], &[]),
        (Regular, &[("size", "-1")], &[]),
        (Regular, &[("size", "99999999999999999999")], &[]),
        (Regular, &[("size", "1000000")], &[]),
        // Maps that are out of order, too long, too short, of another count, or of an unknown format.
        (
            Regular,
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.map", "6,4"),
            ],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.map", "0,3"),
            ],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.map", "0,4"),
            ],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.map", "4,2,0,2"),
            ],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numbytes", "4"),
                ("GNU.sparse.offset", "0"),
            ],
            &[],
        ),
        (
            Regular,
            &[("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "0,4")],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.major", "2"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "4"),
            ],
            &[],
        ),
        (
            Regular,
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "4"),
            ],
            &[],
        ),
        (
            Directory,
            &[("GNU.sparse.size", "0"), ("GNU.sparse.numblocks", "0")],
            &[],
        ),
        // Data on a directory, types of other programs, invalid numbers.
        (Directory, &[], &[]),
        (Symlink, &[], &[(157, b"t")]),
        (Link, &[], &[(157, b"t")]),
        (EntryType::new(b'D'), &[], &[]),
        (EntryType::new(b'M'), &[], &[]),
        (EntryType::new(b'N'), &[], &[]),
        (EntryType::new(b'X'), &[], &[]),
        (EntryType::new(b'?'), &[], &[]),
        (EntryType::GNUSparse, &[], &[]),
        (
            Regular,
            &[],
            &[(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")],
        ),
        (Regular, &[], &[(124, b"\x80\x01\0\0\0\0\0\0\0\0\0\x04")]),
        (Regular, &[], &[(124, b"+4\0")]),
        (Regular, &[], &[(100, b"rw-\0")]),
        (Regular, &[], &[(0, b"d/f/\0")]),
    ];
    for (kind, records, header) in refused {
        let failure = unpacked(&extended(*kind, records, header, b"body")).unwrap_err();
        assert_eq!(
            failure.exit(),
            Exit::CORRUPT,
            "{kind:?} {records:?} {header:?}"
        );
    }
}

#[test]
fn global_header_with_path_is_rejected() {
    let global = |record: &[u8]| {
        let mut bytes = extended(EntryType::Regular, &[("x", "y")], &[], b"body");
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_size(record.len() as u64);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes[512..512 + record.len()].copy_from_slice(record);
        unpacked(&bytes)
    };
    // As git archive writes it.
    let (_temp, app) = global(b"19 comment=0123456\n").unwrap();
    assert_eq!(std::fs::read(app.join("d/f")).unwrap(), b"body");
    for record in [
        &b"9 path=x\n"[..],
        b"9 size=1\n",
        b"17 GNU.sparse.a=\n",
        b"8 path=x\n",
    ] {
        assert_eq!(
            global(record).unwrap_err().exit(),
            Exit::CORRUPT,
            "{record:?}"
        );
    }
}

#[test]
fn last_member_of_one_name_wins() {
    use EntryType::{Directory, Link, Regular, Symlink};
    type TarEntry<'a> = (&'a str, EntryType, &'a str, &'a str);
    let cases: &[(&[TarEntry<'_>], &str, &str)] = &[
        (
            &[("f", Regular, "", "one"), ("f", Regular, "", "two")],
            "f",
            "two",
        ),
        (
            &[
                ("f", Regular, "", "one"),
                ("g", Link, "f", ""),
                ("f", Regular, "", "two"),
            ],
            "g",
            "one",
        ),
        (
            &[
                ("f", Regular, "", "one"),
                ("g", Regular, "", "two"),
                ("g", Link, "f", ""),
            ],
            "g",
            "one",
        ),
        (
            &[("f", Regular, "", "one"), ("f", Link, "./f", "")],
            "f",
            "one",
        ),
        (
            &[
                ("f", Regular, "", "one"),
                ("f", Directory, "", ""),
                ("f/x", Regular, "", "two"),
            ],
            "f/x",
            "two",
        ),
        (
            &[("d", Directory, "", ""), ("d", Regular, "", "two")],
            "d",
            "two",
        ),
        (
            &[
                ("t", Regular, "", "one"),
                ("s", Symlink, "t", ""),
                ("s", Regular, "", "two"),
            ],
            "t",
            "one",
        ),
        (
            &[
                ("t", Regular, "", "one"),
                ("s", Regular, "", "two"),
                ("s", Symlink, "t", ""),
            ],
            "s",
            "one",
        ),
        (
            &[
                ("lib", Symlink, "lib64", ""),
                ("lib64/", Directory, "", ""),
                ("lib/x", Regular, "", "one"),
            ],
            "lib64/x",
            "one",
        ),
        (
            &[
                ("r/", Directory, "", ""),
                ("s", Symlink, "r", ""),
                ("s", Directory, "", ""),
                ("s/x", Regular, "", "one"),
            ],
            "s/x",
            "one",
        ),
    ];
    for (members, path, content) in cases {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, link, body) in *members {
            raw(&mut builder, path, *kind, link, body.as_bytes());
        }
        let (_temp, app) = unpacked(&builder.into_inner().unwrap()).unwrap();
        assert_eq!(
            std::fs::read_to_string(app.join(path)).unwrap(),
            *content,
            "{members:?}"
        );
    }
}

#[test]
fn directories_have_modes_and_times_of_archive() {
    // Only the owner may write, whatever the umask is.
    let modes = [
        ("open", 0o755, 0o755),
        ("wide", 0o7777, 0o755),
        ("read", 0o555, 0o555),
        ("none", 0, 0),
    ];
    let packed = archive(|tar| {
        for (name, mode, _) in modes {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            header.set_mode(mode);
            header.set_mtime(1_000_000);
            tar.append_data(&mut header, name, &b""[..]).unwrap();
            raw(tar, &format!("{name}/in/file"), EntryType::Regular, "", b"");
        }
    });
    let temp = tempfile::tempdir().unwrap();
    let app = temp.path().join("app");
    unpack(&packed, "a.tar", "11", &app).unwrap();
    for (name, _, mode) in modes {
        let found = app.join(name).metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (mode, 1_000_000));
    }
    let other = archive(|tar| raw(tar, "other", EntryType::Regular, "", b""));
    unpack(&other, "b.tar", "22", &app).unwrap();
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(app.join("other").exists());
}
