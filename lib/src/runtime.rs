//! Starting a tokio runtime. Owns what is said when the system does not have what one needs.

use std::io;
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use crate::{Exit, Failure};

/// Descriptors that must be free for a runtime and what runs on it. A runtime takes five: an epoll, an eventfd, and a
/// pair of sockets for signals, of which each runtime has one end more. The rest is for files and connections.
const DESCRIPTORS: usize = 24;

/// Builds the runtime that `builder` describes.
///
/// # Errors
/// As [`check_open_files`]; or the system gives none (exit 1).
pub fn build(builder: &mut Builder) -> Result<Runtime, Failure> {
    // tokio panics when it cannot make the pair of sockets (`tokio::signal::unix`).
    check_open_files()?;
    builder.build().map_err(not_started)
}

/// Makes sure that there are descriptors for a runtime: without them, what is there cannot be opened and seems absent.
///
/// # Errors
/// The process may not open enough files (exit 74).
pub fn check_open_files() -> Result<(), Failure> {
    let reserve = || {
        let (first, _second) = UnixStream::pair()?;
        let others = std::iter::repeat_with(|| first.try_clone()).take(DESCRIPTORS - 2);
        others.collect::<io::Result<Vec<_>>>().map(drop)
    };
    reserve().map_err(not_started)
}

/// Raises the soft limit of open files to `wanted`, as far as the hard limit allows. Returns the limit in force.
pub fn raise_open_files(wanted: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return wanted;
    };
    let raised = wanted.min(hard);
    if soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        return raised;
    }
    soft
}

fn not_started(error: io::Error) -> Failure {
    Failure::new(Exit::FAILED, "cannot start a runtime").because(error)
}
