//! The two configuration files of the AWS tools: read once, for s3cache and for the SDK.

use std::collections::HashMap;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use aws_config::profile::ProfileSet;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_types::os_shim_internal::{Env, Fs};
use hostkit::{Exit, Failure};

use crate::environment::EnvironmentVariables;

/// The longest file that is read (bytes).
const FILE_LIMIT: u64 = 1 << 20;

/// An AWS configuration file and its text, which is empty when the file does not exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProfileFile {
    pub path: PathBuf,
    /// May contain secret keys.
    pub text: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ProfileFiles {
    /// `~/.aws/config`.
    pub config: ProfileFile,
    /// `~/.aws/credentials`.
    pub credentials: ProfileFile,
}

impl ProfileFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// A file that a variable names cannot be read, or one is not UTF-8 (exit 78).
    pub(crate) fn read(env: &EnvironmentVariables) -> Result<Self, Failure> {
        Ok(Self {
            config: read(env, "AWS_CONFIG_FILE", "~/.aws/config")?,
            credentials: read(env, "AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")?,
        })
    }

    /// Both for the SDK, which then reads no file itself.
    #[must_use]
    pub(crate) fn for_sdk(&self) -> EnvConfigFiles {
        EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Config, &self.config.text)
            .with_contents(EnvConfigFileKind::Credentials, &self.credentials.text)
            .build()
    }

    /// Parses both with the SDK's own parser. The paths are only for its errors.
    pub(super) fn parse(&self, profile: &str) -> Result<ProfileSet, Failure> {
        let (config, credentials) = (&self.config, &self.credentials);
        let files = EnvConfigFiles::builder()
            .with_file(EnvConfigFileKind::Config, &config.path)
            .with_file(EnvConfigFileKind::Credentials, &credentials.path)
            .build();
        let texts = [config, credentials].map(|file| {
            let path = file.path.clone().into_os_string();
            (path, file.text.clone().into_bytes())
        });
        let (fs, env) = (Fs::from_raw_map(texts.into()), Env::from(HashMap::new()));
        let loading = aws_config::profile::load(&fs, &env, &files, Some(profile.to_owned().into()));
        // It is ready at once: the texts are in memory.
        match pin!(loading).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(parsed) => parsed.map_err(|error| {
                Failure::new(Exit::CONFIG, "cannot parse the AWS configuration files")
                    .remedy("correct the line, or name another file with AWS_CONFIG_FILE")
                    .because(error)
            }),
            Poll::Pending => Err(Failure::new(
                Exit::FAILED,
                "the AWS configuration was not parsed at once",
            )),
        }
    }
}

fn read(env: &EnvironmentVariables, variable: &str, default: &str) -> Result<ProfileFile, Failure> {
    let named = env.get(variable);
    let path = expand_home(env, named.unwrap_or(default));
    let unreadable = |error: Error| {
        Failure::new(Exit::CONFIG, format!("cannot read {}", path.display()))
            .remedy(format!(
                "make it a readable file of at most 1 MiB, or name another with {variable}"
            ))
            .because(error)
    };
    let text = match hostkit::file::read(&path, FILE_LIMIT) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        // The home directory of another user.
        Err(error) if named.is_none() && error.kind() == ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), "cannot read the AWS configuration file; continuing without it");
            Vec::new()
        }
        Err(error) => return Err(unreadable(error)),
    };
    let text = String::from_utf8(text).map_err(|error| unreadable(Error::other(error)))?;
    Ok(ProfileFile { path, text })
}

fn expand_home(env: &EnvironmentVariables, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), env.get("HOME")) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{S3Access, S3Overrides};
    use super::*;

    #[test]
    fn unreadable_or_invalid_file_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("config");
        let read = |variable: &str, path: &Path| {
            let path = path.to_str().unwrap().to_owned();
            ProfileFiles::read(&[(variable.to_owned(), path)].into_iter().collect())
        };
        let home = temp.path().join(".aws");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("config"), "[default]\nregion = r\n").unwrap();
        assert!(
            read("HOME", temp.path())
                .unwrap()
                .config
                .text
                .contains("region")
        );
        assert_eq!(
            read("AWS_CONFIG_FILE", &path).unwrap().config.text,
            "",
            "a missing file is empty"
        );
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read("AWS_CONFIG_FILE", &path).is_err(), "not a text");
        std::fs::write(&path, vec![b' '; FILE_LIMIT as usize + 1]).unwrap();
        assert!(
            read("AWS_SHARED_CREDENTIALS_FILE", &path).is_err(),
            "too long"
        );
        assert!(read("AWS_CONFIG_FILE", temp.path()).is_err(), "a directory");
        std::fs::write(&path, "[default]\nno equals sign\n").unwrap();
        let files = read("AWS_CONFIG_FILE", &path).unwrap();
        let failure = S3Access::resolve(
            S3Overrides::default(),
            &EnvironmentVariables::default(),
            files,
        )
        .unwrap_err();
        let causes = failure.causes().join(" ");
        assert!(
            causes.contains("line 2") && causes.contains(path.to_str().unwrap()),
            "{causes}"
        );
    }
}
