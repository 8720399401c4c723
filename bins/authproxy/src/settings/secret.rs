//! The file with the secret that entries in memcached are signed with, or with two of them while it is changed.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::SigningSecret;
use super::validate::{SettingError, wrong};

/// The shortest secret, in bytes: 128 bits.
const MIN_SECRET: usize = 16;
/// The longest, in bytes; a file that is longer is another file.
const MAX_SECRET: u64 = 4096;

/// A secret file as it was found.
pub(super) enum SecretFile {
    /// The secrets, that which signs first, and what should be done about the file.
    Secrets(Vec<SigningSecret>, Option<String>),
    /// The file does not exist or cannot be read.
    Missing(std::io::Error),
}

/// Reads secrets. White space around them does not count. Access is a matter of the file's mode and ACL: a process
/// that can read it may use it, and only its owner may write it.
///
/// # Errors
/// The file is one that must not be used.
pub(super) fn read(path: &Path) -> Result<SecretFile, SettingError> {
    let shown = path.display();
    let opened = hostkit::file::open_regular(path).and_then(|file| {
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(MAX_SECRET + 1).read_to_end(&mut bytes)?;
        Ok((metadata, bytes))
    });
    let (metadata, bytes) = match opened {
        Ok(read) => read,
        Err(error) => return Ok(SecretFile::Missing(error)),
    };
    let mode = metadata.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(wrong(
            format!(
                "{shown} can be written by others (mode {:04o})",
                mode & 0o7777
            ),
            "chmod go-w it, and make a new secret",
        ));
    }
    if bytes.len() as u64 > MAX_SECRET {
        return Err(wrong(
            format!("{shown} is longer than {MAX_SECRET} bytes"),
            "is it the right file?",
        ));
    }
    let secrets = split_secrets(bytes.trim_ascii());
    if secrets.iter().any(|secret| secret.len() < MIN_SECRET) {
        return Err(wrong(
            format!("a secret in {shown} is shorter than {MIN_SECRET} bytes"),
            "make one with `openssl rand -hex 32`, the same for all hosts",
        ));
    }
    let warning = (mode & 0o004 != 0).then(|| {
        format!("{shown} is readable by every user of this host, and its readers can forge entries: chmod o-r it")
    });
    // A line too many would go unnoticed: other hosts have no such secret, and nothing is shared.
    let warning = warning.or_else(|| {
        let is_text = bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
        let lines = bytes.trim_ascii().split(|byte| *byte == b'\n').count();
        (is_text && secrets.len() == 1 && lines > 1).then(|| {
            format!("the {lines} lines of {shown} are one secret: while it is changed, leave two, the new and the old one")
        })
    });
    let secrets = secrets
        .into_iter()
        .map(|secret| SigningSecret(secret.to_vec()));
    Ok(SecretFile::Secrets(secrets.collect(), warning))
}

/// Two lines of visible characters are two secrets. Everything else is one, whatever bytes are in it.
fn split_secrets(text: &[u8]) -> Vec<&[u8]> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines: Vec<&[u8]> = lines.collect();
    let is_visible = |line: &&[u8]| line.iter().all(u8::is_ascii_graphic);
    match lines.as_slice() {
        [_, _] if lines.iter().all(is_visible) => lines,
        _ => vec![text],
    }
}
