//! Sources: the SOURCE argument of the command line, and whether its name can ever get another content.

use std::path::{Path, PathBuf};

use hostkit::dir::NAME_MAX;
use hostkit::{Exit, Failure};
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use url::Url;

/// The place where an artifact is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactSource {
    /// `http://` or `https://`.
    Http(Url),
    /// `s3://bucket/key`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key, without a leading slash.
        key: String,
    },
    /// `file:///path`.
    File(PathBuf),
}

impl ArtifactSource {
    /// Parses `https://`, `http://`, `s3://bucket/key`, `file:///path`, or `bucket/key` (s3).
    ///
    /// # Errors
    /// It has none of these forms (exit 2).
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(
                Exit::USAGE,
                format!("{}: {why}", hostkit::mask::mask_url(text)),
            )
            .remedy("write https://host/path, s3://bucket/key, bucket/key or file:///path")
        };
        if text.trim_start_matches("s3://").starts_with("arn:") {
            return Err(wrong("an ARN is not a source").remedy(
                "name the bucket, s3://bucket/key, or the access point by its alias, s3://name-...-s3alias/key",
            ));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.starts_with(['.', '/']) {
                let failure = wrong("a path is not a source");
                return Err(match std::path::absolute(text) {
                    Ok(path) => failure.remedy(format!("write file://{}", path.display())),
                    Err(_) => failure,
                });
            }
            return Self::s3(text).ok_or_else(|| wrong("not a source"));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => {
                let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(wrong(
                        "credentials in a URL are visible to every process of the host",
                    )
                    .remedy("put them into ~/.netrc"));
                }
                Ok(Self::Http(url))
            }
            "s3" => Self::s3(rest).ok_or_else(|| wrong("missing bucket or key")),
            "file" => {
                let path = Path::new(rest.strip_prefix("localhost").unwrap_or(rest));
                if path.is_absolute() {
                    Ok(Self::File(path.to_owned()))
                } else {
                    Err(wrong("the path is not absolute"))
                }
            }
            other => Err(wrong(&format!("unknown scheme {other:?}"))),
        }
    }

    fn s3(text: &str) -> Option<Self> {
        let (bucket, key) = text.split_once('/')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let valid = !bucket.is_empty()
            && bucket.chars().all(plain)
            && !key.is_empty()
            && !key.contains('\0');
        valid.then(|| Self::S3 {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The last component of the path: the file name in the cache.
    ///
    /// # Errors
    /// It is not a valid file name (exit 2).
    pub fn name(&self) -> Result<String, Failure> {
        let path = match self {
            Self::Http(url) => url.path().to_owned(),
            Self::S3 { key, .. } => key.clone(),
            Self::File(path) => path.to_string_lossy().into_owned(),
        };
        let mut name = path.rsplit('/').next().unwrap_or_default().to_owned();
        // Percent-encoding triples bytes. Only a name that would be too long is decoded, because existing caches have
        // the others.
        if matches!(self, Self::Http(_))
            && name.len() > NAME_MAX
            && let Ok(decoded) = percent_decode_str(&name).decode_utf8()
        {
            name = decoded.into_owned();
        }
        if name.is_empty()
            || name == "."
            || name == ".."
            || name.contains('/')
            || name.chars().any(char::is_control)
        {
            return Err(Failure::new(
                Exit::USAGE,
                format!("{self} does not end in a valid file name"),
            )
            .remedy("name one artifact, not a directory"));
        }
        if name.len() > NAME_MAX {
            let text = format!("{self}: its name has {} bytes", name.len());
            return Err(Failure::new(Exit::USAGE, text).remedy(format!(
                "publish it under a name of at most {NAME_MAX} bytes, the limit of file systems"
            )));
        }
        Ok(name)
    }

    /// The same source with `suffix` appended to its path.
    #[must_use]
    pub(crate) fn with_suffix(&self, suffix: &str) -> Self {
        match self {
            Self::Http(url) => {
                let mut url = url.clone();
                let path = format!("{}{suffix}", url.path());
                url.set_path(&path);
                Self::Http(url)
            }
            Self::S3 { bucket, key } => Self::S3 {
                bucket: bucket.clone(),
                key: format!("{key}{suffix}"),
            },
            Self::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push(suffix);
                Self::File(path.into())
            }
        }
    }

    /// The index key: SHA-256 in hex of the source without the signature of a presigned URL. `service` distinguishes
    /// equal buckets of different S3 services; it is empty for other sources. Call `Settings::index_key` instead, which
    /// knows the service.
    #[must_use]
    pub(crate) fn index_key(&self, service: &str) -> String {
        let text = match self {
            Self::Http(url) => crate::presigned_url::identity(url),
            Self::S3 { bucket, key } => format!("s3://{bucket}/{key}\n{service}"),
            Self::File(path) => format!("file://{}", path.display()),
        };
        hostkit::hex::encode(&Sha256::digest(text.as_bytes()))
    }
}

/// For people, with secrets masked.
impl std::fmt::Display for ArtifactSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(url) => f.write_str(&hostkit::mask::mask_url(url.as_str())),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// Whether the content of a file name never changes: it has, between separators, 7 to 64 hex digits with a letter (40
/// or 64 digits need none), or a version `-v?N(.N)+` that no SNAPSHOT, latest or dev follows.
#[must_use]
pub fn is_immutable(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .any(is_hash)
        || has_version(name)
}

/// Whether a word looks like a git hash or another digest, whole or abbreviated.
#[must_use]
pub fn is_hash(word: &str) -> bool {
    let hex = (7..=64).contains(&word.len()) && hostkit::hex::is_hex(word);
    hex && (matches!(word.len(), 40 | 64) || word.bytes().any(|b| b.is_ascii_alphabetic()))
}

fn has_version(name: &str) -> bool {
    name.match_indices('-').any(|(at, _)| {
        let rest = &name[at + 1..];
        let rest = rest.strip_prefix('v').unwrap_or(rest);
        let length = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let version = rest[..length].trim_end_matches('.');
        let numbers = version
            .split('.')
            .filter(|number| !number.is_empty())
            .count();
        if numbers < 2 || version.split('.').any(str::is_empty) {
            return false;
        }
        let after = rest[version.len()..]
            .trim_start_matches(['-', '.', '_', '+'])
            .to_ascii_lowercase();
        !["snapshot", "latest", "dev"]
            .iter()
            .any(|word| after.starts_with(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn name_of_any_source_is_one_file_name(text in "((https?|s3|file)://)?[a-z0-9./%?@:-]{0,40}\\PC{0,20}") {
            if let Ok(name) = ArtifactSource::parse(&text).and_then(|source| source.name()) {
                proptest::prop_assert!(!name.is_empty() && !name.contains('/') && name != "." && name != "..");
            }
        }
    }

    #[test]
    fn every_form_of_source_is_parsed() {
        for (text, shown, name) in [
            (
                "https://repo:7443/pex/a-1.pex",
                "https://repo:7443/pex/a-1.pex",
                "a-1.pex",
            ),
            (
                "http://repo/a.pex?X-Amz-Signature=s",
                "http://repo/a.pex?X-Amz-Signature=***",
                "a.pex",
            ),
            ("s3://builds/pex/a.pex", "s3://builds/pex/a.pex", "a.pex"),
            ("builds/pex/a.pex", "s3://builds/pex/a.pex", "a.pex"),
            ("file:///srv/pex/a.pex", "file:///srv/pex/a.pex", "a.pex"),
        ] {
            let source = ArtifactSource::parse(text).unwrap();
            assert_eq!(source.to_string(), shown);
            assert_eq!(source.name().unwrap(), name);
        }
    }

    #[test]
    fn name_length_is_limited_after_decoding() {
        let umlauts = |number: usize| "\u{e4}".repeat(number);
        let name = |text: &str| ArtifactSource::parse(text).unwrap().name();
        for (text, expected) in [
            (
                format!("https://h/{}", "a".repeat(255)),
                Ok("a".repeat(255)),
            ),
            (
                format!("https://h/{}", umlauts(42)),
                Ok("%C3%A4".repeat(42)),
            ),
            (format!("https://h/{}", umlauts(127)), Ok(umlauts(127))),
            (format!("b/{}", umlauts(127)), Ok(umlauts(127))),
            (
                format!("https://h/{}", umlauts(128)),
                Err("its name has 256 bytes"),
            ),
            (
                format!("b/{}", "a".repeat(256)),
                Err("its name has 256 bytes"),
            ),
            (
                format!("https://h/{}%2F..%2Fx", umlauts(50)),
                Err("a valid file name"),
            ),
        ] {
            match (name(&text), expected) {
                (Ok(name), Ok(expected)) => assert_eq!(name, expected),
                (Err(failure), Err(expected)) => {
                    assert!(failure.to_string().contains(expected), "{failure}")
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn invalid_source_is_rejected_with_valid_forms() {
        for text in [
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/builds/a.pex",
            "s3://arn:aws:s3:::builds/a.pex",
            "./a.pex",
            "/a.pex",
            "a.pex",
            "ftp://h/a",
            "s3://bucket",
            "s3://bucket/",
            "file://relative/x",
            "",
            "b u/x",
        ] {
            let failure = ArtifactSource::parse(text).unwrap_err();
            assert_eq!(failure.exit(), Exit::USAGE, "{text}");
        }
        let failure = ArtifactSource::parse("s3://arn:aws:s3:eu-west-1:1:accesspoint/builds/a.pex");
        assert!(failure.unwrap_err().to_string().contains("s3alias"));
        let failure = ArtifactSource::parse("/srv/a.pex").unwrap_err().to_string();
        assert!(failure.ends_with("write file:///srv/a.pex"), "{failure}");
        let failure = ArtifactSource::parse("https://me:hunter2@h/a.pex")
            .unwrap_err()
            .to_string();
        assert!(
            failure.contains(".netrc") && !failure.contains("hunter2"),
            "{failure}"
        );
        assert!(
            ArtifactSource::parse("https://h/pex/")
                .unwrap()
                .name()
                .is_err()
        );
    }

    #[test]
    fn sidecar_path_has_suffix() {
        for (text, expected) in [
            ("https://h/p/a.pex", "https://h/p/a.pex.sha256"),
            ("b/k", "s3://b/k.sha256"),
            ("file:///p/a", "file:///p/a.sha256"),
        ] {
            assert_eq!(
                ArtifactSource::parse(text)
                    .unwrap()
                    .with_suffix(".sha256")
                    .to_string(),
                expected
            );
        }
    }

    #[test]
    fn immutable_names_are_recognized() {
        for name in [
            "eightball-60a43ef-trusty_x86_64.pex",
            "eightball-0123456789012345678901234567890123456789-trusty_x86_64.pex",
            "consumer-1.2.3.jar",
            "consumer-v1.2-standalone.jar",
            "tool_DEADBEEF01.tar.gz",
        ] {
            assert!(is_immutable(name), "{name}");
        }
        for name in [
            "eightball-trusty_x86_64.pex",
            "eightball.pex",
            "eightball-60a43e-trusty_x86_64.pex",
            "eightball-1234567-trusty_x86_64.pex",
            "eightball-SOMEGITHASH-trusty_x86_64.pex",
            "consumer-1.2.3-SNAPSHOT.jar",
            "consumer-1.2.dev4.jar",
            "consumer-1.2-latest.jar",
            "consumer-2.jar",
            "consumer1.2.jar",
        ] {
            assert!(!is_immutable(name), "{name}");
        }
    }

    #[test]
    fn index_keys_match_earlier_releases() {
        for (text, service, key) in [
            (
                "https://repo:7443/pex/a-1.pex",
                "",
                "f7ca3a5b1c94f0d3f74d6e4d1f3e931501c94dabbc8be6f39e1d0ab203fc2e2c",
            ),
            (
                "http://repo/a.pex?versionId=1",
                "",
                "09deec7edc8e58689ccccdc991aef2de7237256b76fb32d7bb1fc5de39b7160e",
            ),
            (
                // Earlier releases used one key for all services.
                "s3://builds/pex/a.pex",
                "aws",
                "62ceffc75a8d998cd3c240ed4b4e6cc7ef4c14f9251c08610bea4294950c3dc2",
            ),
            (
                "s3://builds/pex/a.pex",
                "http://127.0.0.1:9000",
                "44ad54d6c6a751849c2d489c4c547cf8e4e3afbe0cb282d650c9fd4a6bea6b87",
            ),
            (
                "file:///srv/pex/a.pex",
                "",
                "1e85819af39aada8400edb424a971433ebd6600bf185b692aa761cf37546e4e2",
            ),
        ] {
            assert_eq!(
                ArtifactSource::parse(text).unwrap().index_key(service),
                key,
                "{text}"
            );
        }
    }
}
