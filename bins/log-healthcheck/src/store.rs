//! The state file: locked, read, replaced. A sandbox's disk is full sooner or later, so nothing here is an error that
//! ends a check.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostkit::clock;
use hostkit::dir::{Dir, Durability};

use crate::state::{BYTES, State};

/// How long another check is waited for. One that takes longer reads gigabytes.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is asked whether it is done.
const POLL: Duration = Duration::from_millis(5);
/// Anybody may read it.
const MODE: u32 = 0o644;

/// Where the state is kept.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    name: String,
}

/// The state file while a check has it.
#[derive(Debug)]
pub struct Session {
    directory: io::Result<Dir>,
    name: String,
    /// The lock; `Ok(None)` when another check has it for too long.
    lock: io::Result<Option<File>>,
}

impl Store {
    /// The state file `path`.
    ///
    /// # Errors
    /// `path` cannot be the name of a file; the message says so.
    pub fn new(path: &Path) -> Result<Self, String> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(format!("{} is not the name of a file", path.display()));
        };
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Ok(Self {
            directory: parent.unwrap_or(Path::new(".")).to_owned(),
            name: name.to_owned(),
        })
    }

    /// Takes the lock, for which another check is waited, but not for long.
    #[must_use]
    pub fn open(&self) -> Session {
        let directory = Dir::open(&self.directory);
        let lock = match &directory {
            Ok(directory) => lock(directory, &self.name),
            // Told by `directory`.
            Err(_) => Ok(None),
        };
        Session {
            directory,
            name: self.name.clone(),
            lock,
        }
    }
}

fn lock(directory: &Dir, name: &str) -> io::Result<Option<File>> {
    let start = clock::since_boot();
    loop {
        let locked = directory.try_lock(name, MODE)?;
        if locked.is_some() || clock::since_boot().saturating_sub(start) > PATIENCE {
            return Ok(locked);
        }
        std::thread::sleep(POLL);
    }
}

impl Session {
    /// The state that was saved last, if it is one.
    #[must_use]
    pub fn load(&self) -> Option<State> {
        let directory = self.directory.as_ref().ok()?;
        let state = State::parse(&directory.read(&self.name, BYTES).ok()?);
        if state.is_none() && matches!(self.lock, Ok(Some(_))) {
            // What a check that was killed has left would otherwise stay.
            let _ = directory.sweep(&self.name);
        }
        state
    }

    /// Saves the state. On a full disk the room that it has already is used.
    ///
    /// # Errors
    /// It cannot be written, or another check has it.
    pub fn save(self, state: &State) -> io::Result<()> {
        let directory = self.directory?;
        if let Ok(None) = self.lock {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another check holds it",
            ));
        }
        let text = state.text();
        // Without a lock too: the file may be another user's in a directory of ours.
        let replaced =
            directory.write_atomic(&self.name, text.as_bytes(), MODE, Durability::Process);
        let (Err(error), Ok(Some(file))) = (&replaced, &self.lock) else {
            return replaced;
        };
        let room = file.metadata()?.blocks() * 512;
        if error.kind() != io::ErrorKind::StorageFull || room < text.len() as u64 {
            return replaced;
        }
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)
    }
}
