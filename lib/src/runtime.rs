//! Starting a tokio runtime, and the file descriptors it needs.

use std::io;
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use crate::{Exit, Failure};

/// Descriptors that must be free for a runtime and the work on it. A runtime takes five: an epoll, an eventfd, and a
/// pair of sockets for signals, one end of which is duplicated per runtime. The rest is for files and connections.
const MIN_FREE_DESCRIPTORS: usize = 24;
/// Descriptors that connections leave to everything else: without one a probe fails, and a changed file is not read.
const RESERVED_DESCRIPTORS: usize = 64;

/// Builds the runtime that `builder` describes.
///
/// # Errors
/// As [`check_open_files`]; or the system refuses the runtime (exit 1).
pub fn build(builder: &mut Builder) -> Result<Runtime, Failure> {
    // tokio panics if it cannot create the socket pair (`tokio::signal::unix`).
    check_open_files()?;
    builder.build().map_err(start_failure)
}

/// Checks that there are descriptors for a runtime: without them existing files cannot be opened and seem absent.
///
/// # Errors
/// Too few open files are allowed (exit 74).
pub fn check_open_files() -> Result<(), Failure> {
    let reserve = || {
        let (first, _second) = UnixStream::pair()?;
        let others = std::iter::repeat_with(|| first.try_clone()).take(MIN_FREE_DESCRIPTORS - 2);
        others.collect::<io::Result<Vec<_>>>().map(drop)
    };
    reserve().map_err(start_failure)
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

/// Raises the soft limit of open files for `wanted` connections. Returns how many may be open at once, at most `wanted`.
pub fn limit_connections(wanted: usize) -> usize {
    let limit = raise_open_files((wanted + RESERVED_DESCRIPTORS) as u64);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    limit
        .saturating_sub(RESERVED_DESCRIPTORS)
        .clamp(1, wanted.max(1))
}

fn start_failure(error: io::Error) -> Failure {
    Failure::new(Exit::FAILED, "cannot start a runtime").because(error)
}
