//! Archives as common tools write them, and damaged ones.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::deadline::Deadline;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn is_whole(kind: ArchiveKind, bytes: &[u8]) -> bool {
    check(kind, bytes).is_ok()
}

/// The output of a shell script in a directory with a file, a long name, a sparse file and links.
fn made(script: &str) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let tree = "set -e -o pipefail; mkdir -p d; seq 3000 >d/f; ln -s f d/s; ln d/f d/h; truncate -s 1M d/hole; \
        echo x >>d/hole; touch d/$(printf 'n%.0s' {1..180}) d/é; ";
    let done = Command::new("bash")
        .args(["-c", &format!("{tree}{script}")])
        .current_dir(temp.path())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{script}");
    done.stdout
}

#[test]
fn tar_accepted_by_gnu_tar_passes() {
    for script in [
        "tar c d",
        "tar c --format=gnu d",
        "tar c --format=posix d",
        "tar c --format=ustar --exclude='nnn*' d",
        "tar c --format=v7 --exclude='nnn*' d",
        "tar cS --format=gnu d",
        "tar cS --format=posix --sparse-version=0.0 d",
        "tar cS --format=posix --sparse-version=0.1 d",
        "tar cS --format=posix --sparse-version=1.0 d",
        "tar c --label=volume d",
        "tar c --format=posix --pax-option=globexthdr.name=g,comment=all d",
        "tar c -g snapshot d",
        "tar cf a.tar d; tar rf a.tar d/f; cat a.tar",
        "tar c -T /dev/null",
        // No end of archive, one block of it, and arbitrary bytes after it.
        "tar c -b1 d | head -c -1024",
        "tar c -b1 d | head -c -512",
        "tar c d; echo more",
        "tar c -b1 d | head -c -1024; echo more",
    ] {
        let tar = made(script);
        check(ArchiveKind::Tar, tar.as_slice()).unwrap_or_else(|error| panic!("{script}: {error}"));
        check(ArchiveKind::Tgz, gzip(&tar).as_slice())
            .unwrap_or_else(|error| panic!("{script}: {error}"));
    }
    for script in ["tar cz d", "tar cj d", "tar cJ d"] {
        // tar(1) detects the compression by content; these kinds are not unpacked here.
        assert!(is_whole(ArchiveKind::Tar, &made(script)), "{script}");
    }
}

#[test]
fn damaged_tar_is_rejected_with_position() {
    let tar = made("tar c -b1 d");
    let at = |tar: &[u8]| check(ArchiveKind::Tar, tar).unwrap_err().to_string();
    assert!(at(b"").contains("not a tar archive"));
    assert!(at(b"<html>Sign in</html>").contains("not a tar archive"));
    assert!(at(&[b'x'; 2048]).contains("not a tar archive"));
    // Within the data of the last member, and within its padding.
    let data = made("tar c -b1 d/f");
    for length in [data.len() - 1025, 1000, 512] {
        assert!(
            at(&data[..length]).contains("ends within \"d/f\""),
            "{length}"
        );
    }
    let mut header = tar.clone();
    header[512] ^= 1;
    assert!(
        at(&header).contains("byte 512 is damaged"),
        "{}",
        at(&header)
    );
    let mut pax = made("tar c --format=posix d/f");
    pax[512] = b'x';
    assert!(at(&pax).contains("PAX header at byte 0"));
}

#[test]
fn padding_after_gzip_is_ignored() {
    let one = gzip(b"words\n");
    for (what, bytes, whole) in [
        ("one member", one.clone(), true),
        (
            "several members",
            [one.clone(), gzip(b""), one.clone()].concat(),
            true,
        ),
        ("padding", [one.clone(), vec![0; 700]].concat(), true),
        (
            "trailing bytes",
            [one.as_slice(), b"\0\0junk"].concat(),
            true,
        ),
        (
            "half a magic number that goes on otherwise",
            [one.as_slice(), b"\x1fx"].concat(),
            true,
        ),
        (
            "half a magic number",
            [one.as_slice(), b"\x1f"].concat(),
            false,
        ),
        (
            "half a member",
            [one.as_slice(), &one[..12]].concat(),
            false,
        ),
        (
            "an unknown method",
            [one.as_slice(), b"\x1f\x8b\x09\0\0\0\0\0\0\0"].concat(),
            false,
        ),
        ("no checksum", one[..one.len() - 1].to_vec(), false),
        ("nothing", Vec::new(), false),
    ] {
        assert_eq!(is_whole(ArchiveKind::Gz, &bytes), whole, "{what}");
        // Independent of the piece size.
        let pieces = BufReader::with_capacity(1, bytes.as_slice());
        assert_eq!(
            check(ArchiveKind::Gz, pieces).is_ok(),
            whole,
            "{what}, bytewise"
        );
        let mut gzip = Command::new("gzip");
        let mut gzip = (gzip.arg("-t").stdin(Stdio::piped()).stderr(Stdio::null()))
            .spawn()
            .unwrap();
        let _ = gzip.stdin.take().unwrap().write_all(&bytes);
        let code = gzip.wait().unwrap().code();
        // 2 is a warning: trailing garbage ignored.
        assert_eq!(
            matches!(code, Some(0 | 2)),
            whole,
            "{what}: gzip says {code:?}"
        );
    }
    let page = check(ArchiveKind::Gz, b"words\n".as_slice()).unwrap_err();
    assert!(page.to_string().contains("not gzip data"), "{page}");
}

#[test]
fn gzip_checksum_after_end_of_tar_is_compared() {
    let mut tgz = gzip(&made("tar c d"));
    assert!(is_whole(ArchiveKind::Tgz, &tgz));
    let checksum = tgz.len() - 8;
    tgz[checksum] ^= 1;
    assert!(!is_whole(ArchiveKind::Tgz, &tgz));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn archive_that_can_be_unpacked_passes(
        format in 0usize..4,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        static TARS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let tars = TARS.get_or_init(|| {
            ["--format=v7", "--format=gnu", "--format=posix", "-S --format=posix --sparse-version=1.0"]
                .map(|format| made(&format!("tar c -b1 {format} d/hole d/s d/f")))
                .into()
        });
        let mut tar = tars[format].clone();
        for (at, byte) in edits {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        if cut {
            tar.truncate(length.index(tar.len()));
        }
        let temp = tempfile::tempdir().unwrap();
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(&tar).unwrap();
        let deadline = Deadline::new("a.tar", Duration::from_secs(3600));
        let out = temp.path().join("out");
        if crate::unpack::unpack(&blob, "a.tar", "11", &out, None, &deadline).is_ok() {
            prop_assert!(is_whole(ArchiveKind::Tar, &tar));
        }
    }

    #[test]
    fn truncated_or_changed_gzip_is_rejected(
        bytes in proptest::collection::vec(any::<u8>(), 1..2000),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let whole = gzip(&bytes);
        prop_assert!(is_whole(ArchiveKind::Gz, &whole));
        prop_assert!(!is_whole(ArchiveKind::Gz, &whole[..at.index(whole.len())]));
        // Time, operating system and compression level are not covered by a checksum.
        let at = 10 + at.index(whole.len() - 10);
        let mut changed = whole;
        changed[at] ^= 1 << bit;
        prop_assert!(!is_whole(ArchiveKind::Gz, &changed));
    }
}
