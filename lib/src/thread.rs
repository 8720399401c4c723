//! Starting threads. `std::thread::spawn` panics if the system refuses one, as it does when the user has too many
//! processes.

use std::error::Error;
use std::path::Path;
use std::thread::{Builder, JoinHandle, yield_now};
use std::{fmt, io};

/// How often to check whether the kernel has removed an ended thread.
const MAX_CHECKS: u32 = 10_000;

/// The system refused to start a thread.
#[derive(Debug)]
pub struct ThreadSpawnError(io::Error);

impl fmt::Display for ThreadSpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot start a thread")
    }
}

impl Error for ThreadSpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl From<ThreadSpawnError> for io::Error {
    fn from(error: ThreadSpawnError) -> Self {
        Self::other(error)
    }
}

/// Starts a thread.
///
/// # Errors
/// The system refuses a thread.
pub fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadSpawnError> {
    Builder::new().spawn(work).map_err(ThreadSpawnError)
}

/// Checks that a thread can be started, before a library starts one that panics otherwise.
///
/// # Errors
/// The system refuses a thread.
pub fn check_spawn() -> Result<(), ThreadSpawnError> {
    if let Ok(id) = spawn(nix::unistd::gettid)?.join() {
        // It counts until the kernel has removed it, a moment after its end.
        let task = format!("/proc/self/task/{id}");
        let checks = (0..MAX_CHECKS).take_while(|_| Path::new(&task).exists());
        checks.for_each(|_| yield_now());
    }
    Ok(())
}
