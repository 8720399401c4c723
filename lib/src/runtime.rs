//! Starting a tokio runtime. Owns what is said when the system does not have what one needs.

use std::io;
use std::os::unix::net::UnixStream;

use tokio::runtime::{Builder, Runtime};

use crate::{Exit, Failure};

/// Builds the runtime that `builder` describes.
///
/// # Errors
/// The process may not open enough files, or the system gives none (exit 1).
pub fn build(builder: &mut Builder) -> Result<Runtime, Failure> {
    reserve().and_then(|()| builder.build()).map_err(|error| {
        Failure::new(Exit::FAILED, "cannot start a runtime")
            .remedy(
                "allow this process at least 64 open files: `ulimit -n` in a shell, LimitNOFILE= \
                 in a unit of systemd",
            )
            .because(error)
    })
}

/// Finds out whether there are as many descriptors as a runtime takes: an epoll, an eventfd, and a pair of sockets for
/// signals, of which each runtime has one end more. tokio panics when the pair cannot be made
/// (`tokio::signal::unix`), so that it has to be known before.
fn reserve() -> io::Result<()> {
    let pairs = [UnixStream::pair()?, UnixStream::pair()?];
    let _fifth = pairs[0].0.try_clone()?;
    Ok(())
}
