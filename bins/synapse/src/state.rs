//! What synapse must know after a restart with every registry away: members, who stands in which slot, what HAProxy
//! was last told. One JSON file, replaced atomically, with a lock beside it.
//!
//! Owns the file and the lock. When it is written, and what of it is still true, is the engine's to know. Nothing in it
//! is trusted more than a registration is: each member is checked again when it is read.

mod format;

use std::collections::BTreeMap;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hostkit::dir::{Dir, Durability};
use hostkit::{Exit, Failure};
use serde::{Deserialize, Serialize};

use crate::membership::Roster;
use crate::model::{Backend, Job};

/// Anyone may read what HAProxy's own file says too.
const MODE: u32 = 0o644;
/// The longest file that is read: twenty times that of a thousand services of a hundred members.
const LIMIT: u64 = 256 << 20;

/// Everything that is kept. A clone shares the services, so that one can be saved while the next is made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// What was known of each service, also of those that are configured no longer (until [`State::expire`]).
    pub services: BTreeMap<String, Arc<Service>>,
    /// What the running HAProxy has loaded; `None` before the first load.
    pub loaded: Option<Loaded>,
    /// SHA-256 of the configuration this was made with, in hex.
    pub config_hash: String,
    /// The names of the services of the last configuration that was accepted: what a reload is compared with.
    pub accepted: Vec<String>,
}

/// What is kept of a service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Service {
    /// The members that were last selected.
    pub members: Arc<Vec<Arc<Backend>>>,
    /// Who stood in which slot.
    pub roster: Arc<Roster>,
    /// Server slots in HAProxy's file; 0 for named servers.
    pub slots: u16,
    /// Since when it is configured no longer, in milliseconds since 1970; `None` while it is.
    pub unconfigured_ms: Option<u64>,
    /// The job behind it.
    pub job: Option<Job>,
    /// What the registry said about how it is written, as JSON text.
    pub generator_config: Option<String>,
}

/// What an HAProxy process has loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Hash of all that only a reload changes, in hex.
    pub structure: String,
    /// The process.
    pub pid: Option<u32>,
}

impl State {
    /// Removes services that have not been configured for `ttl`, and notes when the others ceased to be. `now` is wall
    /// time: where it has stepped back the time to live begins anew.
    pub fn expire(&mut self, now: SystemTime, ttl: Duration, is_configured: impl Fn(&str) -> bool) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = millis(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        self.services.retain(|name, service| {
            let since = match service.unconfigured_ms {
                _ if is_configured(name) => None,
                Some(since) if since <= now => Some(since),
                _ => Some(now),
            };
            if service.unconfigured_ms != since {
                Arc::make_mut(service).unconfigured_ms = since;
            }
            since.is_none_or(|since| now - since < millis(ttl))
        });
    }
}

/// The state file, locked: no other synapse uses it, and with it no other drives this HAProxy.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
    name: String,
    path: PathBuf,
    _lock: std::fs::File,
}

impl Store {
    /// Locks the state file (`<path>.lock`), which need not exist yet; its directory must.
    ///
    /// # Errors
    /// Another synapse has it (exit 75, naming its pid), or the directory is missing or cannot be written (exit 73).
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(
                Exit::CANNOT_CREATE,
                format!("cannot use the state file {}", path.display()),
            )
            .remedy("its directory must exist and belong to the user that synapse runs as")
            .because(error)
        };
        let (dir, name) = locate(path).map_err(cannot)?;
        let lock_name = format!("{name}.lock");
        let Some(mut lock) = dir.try_lock(&lock_name, MODE).map_err(cannot)? else {
            let pid = dir.read(&lock_name, 32).unwrap_or_default();
            let pid = std::str::from_utf8(&pid).unwrap_or_default().trim();
            return Err(Failure::new(
                Exit::TRY_AGAIN,
                format!(
                    "another synapse (pid {}) uses {}",
                    pid.parse::<u32>()
                        .map_or("unknown".to_owned(), |pid| pid.to_string()),
                    path.display()
                ),
            )
            .remedy("stop it, or configure another state file"));
        };
        let pid = format!("{}\n", std::process::id());
        lock.rewind()
            .and_then(|()| lock.set_len(0))
            .and_then(|()| lock.write_all(pid.as_bytes()))
            .map_err(cannot)?;
        Ok(Self {
            dir,
            name,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Reads the file. One that is missing is an empty state; one that cannot be understood is logged, moved aside to
    /// `<path>.corrupt`, and an empty state too: members are found again, a daemon that does not start finds none.
    #[must_use]
    pub fn load(&self) -> State {
        match read(&self.dir, &self.name) {
            Ok(state) => state,
            Err(Unread::Missing) => State::default(),
            Err(Unread::Io(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the state file: nothing is known");
                State::default()
            }
            Err(Unread::Content(problem)) => {
                let aside = format!("{}.corrupt", self.name);
                let moved = self.dir.rename(&self.name, &self.dir, &aside);
                tracing::warn!(
                    path = %self.path.display(),
                    aside,
                    moved = moved.is_ok(),
                    problem,
                    "the state file is of no use and was moved aside: nothing is known"
                );
                State::default()
            }
        }
    }

    /// Writes the file so that it survives a power cut. Blocks for as long as the disk takes, which for a thousand
    /// services of a hundred members is a tenth of a second and more: not on the thread that follows changes.
    ///
    /// # Errors
    /// The file cannot be written (exit 73); the old one stands.
    pub fn save(&self, state: &State) -> Result<(), Failure> {
        self.dir
            .write_atomic_with(&self.name, MODE, Durability::Crash, |out| {
                format::encode(state, out)
            })
            .map_err(|error| {
                Failure::new(
                    Exit::CANNOT_CREATE,
                    format!("cannot write the state file {}", self.path.display()),
                )
                .remedy("is the disk full? What was saved before stands")
                .because(error)
            })
    }
}

/// Reads a state file that another process may be using, and changes nothing: for verbs.
///
/// # Errors
/// The file cannot be read or understood (exit 66 when it is missing, else 65).
pub fn peek(path: &Path) -> Result<State, Failure> {
    let read = locate(path)
        .map_err(Unread::from)
        .and_then(|(dir, name)| read(&dir, &name));
    read.map_err(|unread| {
        let message = format!("cannot read the state file {}", path.display());
        match unread {
            Unread::Missing => Failure::new(Exit::NOT_FOUND, message)
                .remedy("has synapse run with this configuration?"),
            Unread::Io(error) => Failure::new(Exit::IO, message).because(error),
            Unread::Content(problem) => Failure::new(Exit::CORRUPT, message).because(problem),
        }
    })
}

/// The pid of the synapse that uses a state file; `None` when none does.
#[must_use]
pub fn holder(path: &Path) -> Option<u32> {
    let (dir, name) = locate(path).ok()?;
    let name = format!("{name}.lock");
    let lock = dir.open_file(&name).ok()?;
    // A shared lock is granted when nobody holds the exclusive one, and given back when the file is closed.
    if hostkit::dir::try_lock_shared(&lock).unwrap_or(true) {
        return None;
    }
    let pid = dir.read(&name, 32).ok()?;
    std::str::from_utf8(&pid).ok()?.trim().parse().ok()
}

/// Why there is no state.
enum Unread {
    Missing,
    Io(io::Error),
    Content(String),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io(error),
        }
    }
}

fn read(dir: &Dir, name: &str) -> Result<State, Unread> {
    format::decode(&dir.read(name, LIMIT)?).map_err(Unread::Content)
}

/// The directory of a file and its name there.
pub(crate) fn locate(path: &Path) -> io::Result<(Dir, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    Ok((Dir::open(parent)?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::format::tests::state;
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state.json");
        (temp, path)
    }

    #[test]
    fn what_was_saved_is_loaded_and_can_be_peeked_at() {
        let (_temp, path) = scratch();
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load(), State::default());
        assert_eq!(peek(&path).unwrap_err().exit(), Exit::NOT_FOUND);
        store.save(&state(3, 5)).unwrap();
        assert_eq!(store.load(), state(3, 5));
        assert_eq!(peek(&path).unwrap(), state(3, 5));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
    }

    #[test]
    fn a_second_synapse_is_refused_and_told_the_pid() {
        let (_temp, path) = scratch();
        let store = Store::open(&path).unwrap();
        let failure = Store::open(&path).unwrap_err();
        assert_eq!(failure.exit(), Exit::TRY_AGAIN);
        let pid = format!("(pid {})", std::process::id());
        assert!(failure.to_string().contains(&pid), "{failure}");
        drop(store);
        Store::open(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_of_no_use_is_moved_aside() {
        let newer = b"{\"version\":2,\"services\":[\"another shape\"]}";
        for bytes in [&b"{\"version\":1,\"serv"[..], b"", b"\xff\xfe", newer] {
            let (temp, path) = scratch();
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(peek(&path).unwrap_err().exit(), Exit::CORRUPT);
            let store = Store::open(&path).unwrap();
            assert_eq!(store.load(), State::default());
            assert!(!path.exists());
            let aside = std::fs::read(temp.path().join("state.json.corrupt")).unwrap();
            assert_eq!(aside, bytes);
            store.save(&state(1, 1)).unwrap();
            assert_eq!(store.load(), state(1, 1));
        }
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error_with_a_remedy() {
        let failure = Store::open(Path::new("/nowhere/state.json")).unwrap_err();
        assert_eq!(failure.exit(), Exit::CANNOT_CREATE);
        assert!(failure.to_string().contains("/nowhere/state.json"));
    }

    #[test]
    fn services_outlive_their_configuration_by_the_ttl() {
        let mut kept = state(2, 1);
        let ttl = Duration::from_secs(100);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let first = |name: &str| name == "service0";
        kept.expire(at(5000), ttl, first);
        kept.expire(at(5099), ttl, first);
        assert_eq!(kept.services.len(), 2);
        // The clock steps back: what is left of the time begins anew.
        kept.expire(at(1000), ttl, first);
        kept.expire(at(1099), ttl, first);
        assert_eq!(kept.services.len(), 2);
        // Configured again, and no longer.
        kept.expire(at(1099), ttl, |_| true);
        kept.expire(at(1150), ttl, first);
        kept.expire(at(1249), ttl, first);
        assert_eq!(kept.services.len(), 2);
        kept.expire(at(1250), ttl, first);
        assert!(kept.services.keys().eq(["service0"]));
    }
}
