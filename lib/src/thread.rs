//! Starting threads: the system refuses one when the user has too many processes, which `std::thread::spawn` panics at.

use std::error::Error;
use std::path::Path;
use std::thread::{Builder, JoinHandle, yield_now};
use std::{fmt, io};

/// How often it is looked whether the kernel has removed an ended thread.
const LOOKS: u32 = 10_000;

/// A thread could not be started.
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
/// The system gives none.
pub fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadSpawnError> {
    Builder::new().spawn(work).map_err(ThreadSpawnError)
}

/// Makes sure that a thread can be started, before a library starts one that panics when it cannot.
///
/// # Errors
/// The system gives none.
pub fn check_spawn() -> Result<(), ThreadSpawnError> {
    if let Ok(id) = spawn(nix::unistd::gettid)?.join() {
        // It counts until the kernel has removed it, a moment after it has ended.
        let task = format!("/proc/self/task/{id}");
        let looks = (0..LOOKS).take_while(|_| Path::new(&task).exists());
        looks.for_each(|_| yield_now());
    }
    Ok(())
}
