//! Verifies downloaded bytes: digests that the caller, the sidecar or the store requires, and the structure of
//! archives.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use hostkit::{Exit, Failure};

use crate::archive;
use crate::digest::Sha256Hex;
use crate::sink::DownloadSummary;
use crate::source::ArtifactSource;
use crate::store::{CrcKind, ObjectChecksum};
use crate::unpack;

/// The digest that an artifact must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedDigest {
    pub sha256: Sha256Hex,
    /// Where it comes from: `flag`, `sidecar` or `store`.
    pub verified_by: &'static str,
}

/// Compares the downloaded bytes with the store's checksum, if its kind was computed, and with the expected digest.
///
/// # Errors
/// They differ (exit 65).
pub(crate) fn compare_digests(
    source: &ArtifactSource,
    summary: &DownloadSummary,
    crc: CrcKind,
    declared: Option<ObjectChecksum>,
    expected: Option<&ExpectedDigest>,
) -> Result<(), Failure> {
    let differs = |kind: &str, expected: &str, found: &str| {
        Failure::new(
            Exit::CORRUPT,
            format!("{source}: {kind} is {found}, expected {expected}"),
        )
        .remedy("publish it again, or correct the digest; nothing was cached")
    };
    match declared {
        Some(ObjectChecksum::Sha256(expected))
            if hostkit::hex::encode(&expected) != summary.sha256 =>
        {
            return Err(differs(
                "SHA-256",
                &format!("{} (by S3)", hostkit::hex::encode(&expected)),
                &summary.sha256,
            ));
        }
        Some(ObjectChecksum::Crc(kind, expected)) if kind == crc && expected != summary.crc => {
            return Err(differs(
                kind.name(),
                &format!("{expected:x} (by S3)"),
                &format!("{:x}", summary.crc),
            ));
        }
        _ => {}
    }
    match expected {
        Some(expected) if expected.sha256 != summary.sha256 => {
            let by = match expected.verified_by {
                "flag" => "--sha256",
                "sidecar" => "its sidecar",
                other => other,
            };
            Err(differs(
                "SHA-256",
                &format!("{} (by {by})", expected.sha256),
                &summary.sha256,
            ))
        }
        _ => Ok(()),
    }
}

/// Checks a file that is an archive by its name: tar and gzip to the end, a zip by its directory.
///
/// # Errors
/// It is broken (exit 65), or cannot be read (exit 74).
pub(crate) fn check_archive(
    source: &ArtifactSource,
    name: &str,
    file: &File,
) -> Result<(), Failure> {
    let Some(kind) = unpack::archive_kind(name) else {
        return check_zip(source, name, file);
    };
    let mut reader = file
        .try_clone()
        .map_err(|error| unreadable(source, error))?;
    io::Seek::rewind(&mut reader).map_err(|error| unreadable(source, error))?;
    match archive::check(kind, BufReader::with_capacity(256 << 10, reader)) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error().is_some() => Err(unreadable(source, error)),
        Err(error) => Err(broken_archive(source, name, &error.to_string())),
    }
}

/// Checks that a `.pex` or `.jar` has a readable central directory, which is at the end of a zip. An ELF binary passes.
///
/// # Errors
/// It is neither (exit 65), or cannot be read (exit 74).
pub(crate) fn check_zip(source: &ArtifactSource, name: &str, file: &File) -> Result<(), Failure> {
    let extension = Path::new(name)
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    if !matches!(extension, "pex" | "jar") {
        return Ok(());
    }
    let unreadable = |error| unreadable(source, error);
    let mut reader = file.try_clone().map_err(unreadable)?;
    io::Seek::rewind(&mut reader).map_err(unreadable)?;
    let mut magic = Vec::new();
    reader
        .by_ref()
        .take(4)
        .read_to_end(&mut magic)
        .map_err(unreadable)?;
    if magic == *b"\x7fELF" {
        return Ok(());
    }
    io::Seek::rewind(&mut reader).map_err(unreadable)?;
    match zip::ZipArchive::new(BufReader::new(reader)) {
        Ok(archive) if !archive.is_empty() => Ok(()),
        Ok(_) => Err(broken_archive(source, name, "it is empty")),
        Err(error) => Err(broken_archive(source, name, &error.to_string())),
    }
}

/// The failure of an archive whose content does not match its name.
pub(crate) fn broken_archive(source: &ArtifactSource, name: &str, why: &str) -> Failure {
    let extension = name.rsplit('.').next().unwrap_or_default();
    Failure::new(
        Exit::CORRUPT,
        format!("{source} is not a readable .{extension}: {why}"),
    )
    .remedy("publish a complete file; nothing was cached")
}

fn unreadable(source: &ArtifactSource, error: io::Error) -> Failure {
    Failure::new(Exit::IO, format!("cannot read the downloaded {source}")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// An empty entry and a central directory: the smallest zip with a file in it.
    fn zip() -> Vec<u8> {
        let mut bytes = Vec::new();
        let local = [b"PK\x03\x04\x0a\0".as_slice(), &[0; 20], b"\x01\0\0\0a"].concat();
        let central = [
            b"PK\x01\x02\x0a\0\x0a\0".as_slice(),
            &[0; 20],
            b"\x01\0",
            &[0; 16],
            b"a",
        ]
        .concat();
        bytes.extend(&local);
        bytes.extend(&central);
        bytes.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        bytes.extend(u32::try_from(central.len()).unwrap().to_le_bytes());
        bytes.extend(u32::try_from(local.len()).unwrap().to_le_bytes());
        bytes.extend(b"\0\0");
        bytes
    }

    fn check(name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check_archive(&ArtifactSource::parse("b/a.pex").unwrap(), name, &file)
    }

    #[test]
    fn complete_archives_pass_and_others_fail() {
        let whole = zip();
        assert!(check("a.pex", &whole).is_ok());
        assert!(
            check("a.jar", &[b"#!/bin/sh\n", whole.as_slice()].concat()).is_ok(),
            "a prefix is what makes it run"
        );
        assert!(check("a.pex", b"\x7fELF and so on").is_ok());
        assert!(check("a.txt", b"anything").is_ok());
        for bad in [&whole[..whole.len() - 5], b"<html>", b""] {
            assert_eq!(check("a.pex", bad).unwrap_err().exit(), Exit::CORRUPT);
        }
    }

    #[test]
    fn every_declared_digest_must_match() {
        let source = ArtifactSource::parse("b/a").unwrap();
        let summary = DownloadSummary {
            sha256: "aa".repeat(32),
            size: 1,
            crc: 7,
            broken: None,
        };
        let check = |declared, expected: Option<&ExpectedDigest>| {
            compare_digests(&source, &summary, CrcKind::Crc32, declared, expected)
        };
        assert!(check(None, None).is_ok());
        assert!(check(Some(ObjectChecksum::Sha256([0xaa; 32])), None).is_ok());
        assert!(check(Some(ObjectChecksum::Sha256([0xab; 32])), None).is_err());
        assert!(check(Some(ObjectChecksum::Crc(CrcKind::Crc32, 7)), None).is_ok());
        assert!(check(Some(ObjectChecksum::Crc(CrcKind::Crc32, 8)), None).is_err());
        let wrong = ExpectedDigest {
            sha256: "bb".repeat(32),
            verified_by: "sidecar",
        };
        let failure = check(None, Some(&wrong)).unwrap_err();
        assert_eq!(failure.exit(), Exit::CORRUPT);
        assert!(failure.to_string().contains("(by its sidecar)"));
    }
}
