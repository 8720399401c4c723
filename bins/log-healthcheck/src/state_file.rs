//! The state file: locking, reading, replacing. A sandbox's disk is full sooner or later, so no error here ends a
//! check.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::clock;
use hostkit::dir::{Dir, Durability};

use crate::check_state::{CheckState, MAX_STATE_BYTES};

/// The time to wait for another check. A longer one reads gigabytes.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
/// The interval between attempts to lock.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Readable by all users.
const FILE_MODE: u32 = 0o644;

/// The path of the state file.
#[derive(Debug)]
pub(crate) struct StateFile {
    directory: PathBuf,
    name: String,
}

/// The state file, locked by a check.
#[derive(Debug)]
pub(crate) struct StateFileLock {
    directory: io::Result<Dir>,
    name: String,
    /// The lock; `Ok(None)` after a timeout.
    lock: io::Result<Option<File>>,
}

impl StateFile {
    ///
    /// # Errors
    /// `path` has no file name.
    pub(crate) fn new(path: &Path) -> Result<Self, String> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(format!("{}: not a file name", path.display()));
        };
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self {
            directory: parent.unwrap_or(Path::new(".")).to_owned(),
            name: name.to_owned(),
        })
    }

    /// Locks the state file, waiting briefly for another check.
    pub(crate) fn lock(&self) -> StateFileLock {
        let directory = Dir::open(&self.directory);
        let lock = match &directory {
            Ok(directory) => acquire_lock(directory, &self.name),
            // Reported with `directory`.
            Err(_) => Ok(None),
        };
        StateFileLock {
            directory,
            name: self.name.clone(),
            lock,
        }
    }
}

fn acquire_lock(directory: &Dir, name: &str) -> io::Result<Option<File>> {
    let start = clock::since_boot();
    loop {
        let locked = directory.try_lock(name, FILE_MODE)?;
        if locked.is_some() || clock::since_boot().saturating_sub(start) > LOCK_TIMEOUT {
            return Ok(locked);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

impl StateFileLock {
    /// The saved state, if it is valid.
    pub(crate) fn load(&self) -> Option<CheckState> {
        let directory = self.directory.as_ref().ok()?;
        let state = CheckState::parse(&directory.read(&self.name, MAX_STATE_BYTES).ok()?);
        if state.is_none() && matches!(self.lock, Ok(Some(_))) {
            // Removes temporary files of a killed check.
            let _ = directory.sweep(&self.name);
        }
        state
    }

    /// Saves the state. On a full disk the blocks already allocated are overwritten.
    ///
    /// # Errors
    /// The file cannot be written, or another check holds the lock.
    pub(crate) fn save(self, state: &CheckState) -> io::Result<()> {
        let directory = self.directory?;
        if let Ok(None) = self.lock {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "locked by another check",
            ));
        }
        let text = state.to_text();
        // Even without a lock: the file may be another user's in a directory of ours.
        let replaced =
            directory.write_atomic(&self.name, text.as_bytes(), FILE_MODE, Durability::Process);
        let (Err(error), Ok(Some(file))) = (&replaced, &self.lock) else {
            return replaced;
        };
        let allocated = file.metadata()?.blocks() * 512;
        if error.kind() != io::ErrorKind::StorageFull || allocated < text.len() as u64 {
            return replaced;
        }
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }
}
