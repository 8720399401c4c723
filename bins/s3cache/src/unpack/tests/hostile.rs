//! Archives that try to leave their directory: handwritten ones, and random ones compared with the kernel's resolution.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tar::EntryType::{self, Directory, Link, Regular, Symlink};

use super::*;

type MemberList<'a> = &'a [(&'a str, EntryType, &'a str)];

fn packed(members: MemberList<'_>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link) in members {
        raw(&mut builder, path, *kind, link, b"");
    }
    builder.into_inner().unwrap()
}

/// Everything below a directory: kind, mode, content or target, and number of links.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut below = vec![root.to_owned()];
    while let Some(dir) = below.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let at = path.symlink_metadata().unwrap();
            let what = if at.is_dir() {
                below.push(path.clone());
                String::new()
            } else if at.is_symlink() {
                format!("-> {:?}", std::fs::read_link(&path).unwrap())
            } else {
                format!("{:?} {}", std::fs::read(&path).unwrap(), at.nlink())
            };
            let mode = if at.is_symlink() { 0 } else { at.mode() };
            let path = path.strip_prefix(root).unwrap().to_owned();
            found.insert(path, format!("{mode:o} {what}"));
        }
    }
    found
}

/// A directory with files that archives might reach, and the path to unpack to.
fn surroundings() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
    std::fs::create_dir(temp.path().join("in")).unwrap();
    for victim in ["victim", "a/b/victim", "in/victim"] {
        std::fs::write(temp.path().join(victim), "untouched").unwrap();
    }
    let target = temp.path().join("in/app");
    (temp, target)
}

/// Links below a directory that lead out of it, as the kernel resolves them.
fn leading_out(root: &Path) -> Vec<PathBuf> {
    let inside = root.canonicalize().unwrap();
    let out = |path: &PathBuf| path.canonicalize().is_ok_and(|to| !to.starts_with(&inside));
    let found = snapshot(root).into_keys().map(|path| root.join(path));
    found.filter(out).collect()
}

#[test]
fn archive_leading_out_through_symlinks_is_rejected() {
    let cases: &[MemberList<'_>] = &[
        // The marker as a link, directly, through a link and under other names.
        &[
            ("d", Directory, ""),
            ("d/l", Symlink, ".."),
            (MARKER, Symlink, "d/l/../victim"),
        ],
        &[(MARKER, Symlink, "nothing")],
        &[(MARKER, Regular, "")],
        &[("./.s3cache-unpacked/", Directory, "")],
        &[("l", Symlink, "."), ("l/.s3cache-unpacked", Regular, "")],
        &[("f", Regular, ""), (MARKER, Link, "f")],
        // Within the directory by its text, but not when resolved.
        &[
            ("a/b/c/l", Symlink, "../../.."),
            ("m", Symlink, "a/b/c/l/../../../../etc"),
        ],
        &[
            ("a/b/c", Directory, ""),
            ("m", Symlink, "l/../x"),
            ("l", Symlink, "a/.."),
        ],
        // Only because of later members.
        &[
            ("a/b", Directory, ""),
            ("s", Symlink, "a/b/../.."),
            ("a/b", Symlink, ".."),
        ],
        &[
            ("l", Symlink, "a"),
            ("a", Directory, ""),
            ("a", Symlink, "../a"),
        ],
        &[("s", Symlink, "missing/../../victim")],
        &[("s", Symlink, "file/../../victim"), ("file", Regular, "")],
        // Through a link that leads up, even within the directory.
        &[("d/l", Symlink, ".."), ("d/l/victim", Regular, "")],
        &[("d/l", Symlink, "../.."), ("d/l/victim", Regular, "")],
        &[("d/l", Symlink, "../.."), ("hard", Link, "d/l/victim")],
        &[("l", Symlink, "/etc"), ("hard", Link, "l/passwd")],
        &[("l", Symlink, "/etc")],
        // Hard links to anything but an earlier file.
        &[("d", Directory, ""), ("hard", Link, "d")],
        &[("hard", Link, "later"), ("later", Regular, "")],
        // In place of the link it leads through.
        &[("a", Symlink, "."), ("a/a", Directory, "")],
        &[
            ("a", Symlink, "b"),
            ("b", Symlink, "."),
            ("a/b", Regular, ""),
        ],
        // Names in use.
        &[("f", Regular, ""), ("f/x", Regular, "")],
        &[("d/x", Regular, ""), ("d", Regular, "")],
        &[
            ("a", Symlink, "b"),
            ("b", Symlink, "a"),
            ("a/x", Regular, ""),
        ],
    ];
    for members in cases {
        let (temp, target) = surroundings();
        let before = snapshot(temp.path());
        let unpacked = unpack(&file(&packed(members)), "a.tar", "11", &target);
        let failure = unpacked.expect_err(&format!("{members:?}"));
        assert_eq!(failure.exit(), Exit::CORRUPT, "{members:?}: {failure:?}");
        assert_eq!(snapshot(temp.path()), before, "{members:?}");
    }
}

#[test]
fn marker_that_is_not_small_file_is_ignored() {
    let tar = archive(|tar| raw(tar, "a", Regular, "", b"x"));
    for kind in [
        "link to what is endless",
        "link to a marker",
        "fifo",
        "long",
        "text",
    ] {
        let (temp, target) = surroundings();
        std::fs::create_dir(&target).unwrap();
        let marker = target.join(MARKER);
        match kind {
            "link to what is endless" => symlink("/dev/zero", &marker).unwrap(),
            "link to a marker" => {
                std::fs::write(temp.path().join("marker"), "11\n").unwrap();
                symlink("../../marker", &marker).unwrap();
            }
            "fifo" => nix::unistd::mkfifo(&marker, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "long" => std::fs::write(&marker, "1".repeat(1 << 20)).unwrap(),
            _ => std::fs::write(&marker, "not a digest").unwrap(),
        }
        let failure = unpack(&tar, "a.tar", "11", &target).unwrap_err();
        assert_eq!(failure.exit(), Exit::CANNOT_CREATE, "{kind}");
        assert!(marker.symlink_metadata().is_ok(), "{kind}");
    }
}

#[test]
fn unbounded_archives_are_rejected() {
    let deep = vec!["d"; 200].join("/");
    let mut refused = vec![
        archive(|tar| {
            tar.append_data(&mut header(Directory, 0), &deep, &b""[..])
                .unwrap()
        }),
        archive(|tar| {
            let long = "n".repeat(256);
            tar.append_data(&mut header(Regular, 0), &long, &b""[..])
                .unwrap()
        }),
    ];
    // A name and extended headers with a size of a gigabyte each, but hardly any data.
    for kind in [
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let mut header = header(kind, 1 << 30);
        header.set_cksum();
        refused.push(file(&[header.as_bytes().as_slice(), &[b'x'; 512]].concat()));
    }
    // Extended headers that are too long together.
    let comment = makers::record("comment", &"x".repeat(1_000_000));
    let end = packed(&[("f", Regular, "")]);
    refused.push(file(&[comment.repeat(9), end].concat()));
    for archive in refused {
        let (temp, target) = surroundings();
        let before = snapshot(temp.path());
        let failure = unpack(&archive, "a.tar", "11", &target).unwrap_err();
        assert_eq!(failure.exit(), Exit::CORRUPT, "{failure:?}");
        assert_eq!(snapshot(temp.path()), before);
    }
}

#[test]
fn too_long_symlink_chain_is_rejected_and_loop_is_not() {
    for (links, end, fine) in [(38, "d", true), (39, "../x", false), (60, "d", false)] {
        let mut members: Vec<_> = (0..links)
            .map(|link| (format!("l{link}"), format!("l{}", link + 1)))
            .collect();
        members.push((format!("l{links}"), ".".to_owned()));
        members.push(("z".to_owned(), format!("l0/{end}")));
        let members: Vec<_> = (members.iter())
            .map(|(path, to)| (path.as_str(), Symlink, to.as_str()))
            .collect();
        let (_temp, target) = surroundings();
        let unpacked = unpack(&file(&packed(&members)), "a.tar", "11", &target);
        assert_eq!(unpacked.is_ok(), fine, "{links} {end}: {unpacked:?}");
    }
    let (_temp, target) = surroundings();
    let round: MemberList<'_> = &[
        ("a", Symlink, "b/x"),
        ("b", Symlink, "a"),
        ("c", Symlink, "c"),
        ("d/e", Symlink, "../a/../d/e"),
    ];
    unpack(&file(&packed(round)), "a.tar", "11", &target).unwrap();
    let (_temp, target) = surroundings();
    let out: MemberList<'_> = &[("a", Symlink, "a"), ("z", Symlink, "a/../../victim")];
    unpack(&file(&packed(out)), "a.tar", "11", &target).unwrap_err();
}

fn header(kind: EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o755);
    header
}

/// A member: its path, what it is, and its content, mode or target.
#[derive(Debug, Clone)]
enum ArchivePart {
    File(String, u8),
    Directory(String, u32),
    Symlink(String, String),
    Link(String, String),
}

fn parts() -> impl Strategy<Value = Vec<ArchivePart>> {
    let name = || prop::sample::select(vec!["a", "b", "c", "l", "a", "b", "c", "l", MARKER]);
    let path = move || prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"));
    let step = prop::sample::select(vec!["a", "b", "c", "l", "..", "..", "victim", "."]);
    let up = prop::collection::vec(step, 1..6).prop_map(|names| names.join("/"));
    let target = prop_oneof![3 => path(), 3 => up, 1 => Just("/etc".to_owned())];
    // Only root can read the others.
    let seen = if nix::unistd::geteuid().is_root() {
        4
    } else {
        2
    };
    let mode = prop::sample::select([0o755, 0o777, 0o555, 0][..seen].to_vec());
    let part = prop_oneof![
        (path(), any::<u8>()).prop_map(|(path, byte)| ArchivePart::File(path, byte)),
        (path(), mode).prop_map(|(path, mode)| ArchivePart::Directory(path, mode)),
        (path(), target).prop_map(|(path, target)| ArchivePart::Symlink(path, target)),
        (path(), path()).prop_map(|(path, target)| ArchivePart::Link(path, target)),
    ];
    prop::collection::vec(part, 1..10)
}

fn pack(parts: &[ArchivePart]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for part in parts {
        let (path, kind, mode, link, body) = match part {
            ArchivePart::File(path, byte) => (path, Regular, 0o666, "", vec![*byte]),
            ArchivePart::Directory(path, mode) => (path, Directory, *mode, "", vec![]),
            ArchivePart::Symlink(path, target) => (path, Symlink, 0o777, target.as_str(), vec![]),
            ArchivePart::Link(path, target) => (path, Link, 0o644, target.as_str(), vec![]),
        };
        let mut header = header(kind, body.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_cksum();
        builder.append(&header, body.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The result of GNU tar; `None` when it refuses, or is not installed.
fn with_gnu_tar(bytes: &[u8], into: &Path) -> Option<BTreeMap<PathBuf, String>> {
    std::fs::create_dir_all(into).unwrap();
    let mut command = Command::new("sh");
    let script = "umask 022; exec tar --no-same-owner --no-same-permissions -xf - -C \"$0\"";
    command.args(["-c", script]).arg(into);
    let pipe = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = pipe.ok()?;
    // A refusal may close the pipe early.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    child.wait().unwrap().success().then(|| snapshot(into))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_stay_within_directory_and_match_gnu_tar(parts in parts()) {
        let (temp, target) = surroundings();
        let before = snapshot(temp.path());
        let bytes = pack(&parts);
        let unpacked = unpack(&file(&bytes), "a.tar", "11", &target);
        let elsewhere = tempfile::tempdir().unwrap();
        let theirs = nix::unistd::geteuid().is_root()
            .then(|| with_gnu_tar(&bytes, &elsewhere.path().join("1/2/3/4/5/6"))).flatten();
        match unpacked {
            Err(failure) => {
                prop_assert_eq!(failure.exit(), Exit::CORRUPT, "{:?}", failure);
                prop_assert_eq!(snapshot(temp.path()), before);
                let may_be_refused = parts.iter().any(|part| match part {
                    ArchivePart::Symlink(path, target) => {
                        path.contains(MARKER) || target.contains("..") || target.starts_with('/')
                    }
                    ArchivePart::File(path, _) | ArchivePart::Directory(path, _) | ArchivePart::Link(path, _) => path.contains(MARKER),
                });
                // tar removes the link, and creates a directory in its place.
                let may_be_refused = may_be_refused || format!("{failure:?}").contains("symlink that it leads through");
                prop_assert!(theirs.is_none() || may_be_refused, "{:?}", failure);
            }
            Ok(()) => {
                prop_assert_eq!(leading_out(&target), Vec::<PathBuf>::new());
                let mut ours = snapshot(&target);
                prop_assert!(ours.remove(Path::new(MARKER)).is_some());
                std::fs::rename(&target, elsewhere.path().join("app")).unwrap();
                prop_assert_eq!(snapshot(temp.path()), before);
                // GNU tar puts an empty file in place of such a link until the end, and then takes a file with the same
                // inode for it.
                let delayed = parts.iter().any(|part| {
                    matches!(part, ArchivePart::Symlink(_, to) if to.contains("..") || to.starts_with('/'))
                });
                if let Some(theirs) = theirs.filter(|_| !delayed) {
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }
}
