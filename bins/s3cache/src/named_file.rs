//! Files of certificates, keys and tokens, each with the setting that names it, for errors.

use std::io;
use std::io::ErrorKind::{FileTooLarge, InvalidInput};
use std::path::{Path, PathBuf};

use hostkit::{Exit, Failure};

/// The size limit (bytes). The certificates of a whole system take about 256 KiB.
const FILE_LIMIT: u64 = 1 << 20;

/// A file that a setting names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedFile {
    pub path: PathBuf,
    /// The flag, variable, or line of a file that names it.
    pub setting: String,
}

impl NamedFile {
    #[must_use]
    pub(crate) fn new(path: impl AsRef<Path>, setting: impl Into<String>) -> Self {
        let path = path.as_ref().to_owned();
        let setting = setting.into();
        Self { path, setting }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is not a readable regular file of at most 1 MiB (exit 78).
    pub(crate) fn read(&self) -> Result<Vec<u8>, Failure> {
        hostkit::file::read(&self.path, FILE_LIMIT).map_err(|error| self.unreadable(error))
    }

    /// Checks that a library can read the whole file. A missing file is left to the library to report.
    ///
    /// # Errors
    /// It is not a regular file, or longer than 1 MiB (exit 78).
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match hostkit::file::read(&self.path, FILE_LIMIT) {
            Err(error) if matches!(error.kind(), InvalidInput | FileTooLarge) => {
                Err(self.unreadable(error))
            }
            _ => Ok(()),
        }
    }

    fn unreadable(&self, error: io::Error) -> Failure {
        self.unusable("name a readable regular file of at most 1 MiB", error)
    }

    /// The failure of using the file (exit 78).
    pub(crate) fn unusable(
        &self,
        remedy: &str,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Failure {
        let path = self.path.display();
        Failure::new(Exit::CONFIG, format!("{}: cannot use {path}", self.setting))
            .remedy(remedy)
            .because(why)
    }
}
