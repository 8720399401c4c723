//! The common library of the hostkit tools: flags, logs, exit codes, errors, configuration files, files and locks.
//!
//! Without features it is as light as the smallest tool needs; `config` adds YAML, `follow` adds file watching.

pub mod admin;
pub mod backoff;
pub mod cli;
pub mod clock;
#[cfg(feature = "config")]
pub mod config;
pub mod dir;
pub mod env;
pub mod exit;
pub mod failure;
pub mod file;
#[cfg(feature = "follow")]
pub mod file_watcher;
pub mod health;
pub mod hex;
pub mod http;
pub mod listen;
pub mod log;
pub mod mask;
pub mod metrics;
pub mod nagios;
pub mod printable;
pub mod runtime;
pub mod shutdown;
pub mod stdout;
#[cfg(feature = "config")]
pub mod suggestion;
pub mod thread;
#[cfg(feature = "tls")]
pub mod tls;
pub mod units;
#[cfg(feature = "zookeeper")]
pub mod zookeeper;

pub use exit::Exit;
pub use failure::Failure;

/// Entry points for fuzzing; not part of the interface.
#[doc(hidden)]
pub mod testing {
    #[cfg(feature = "zookeeper")]
    pub use crate::zookeeper::payload::fuzz_member_payload;
}

/// The version of every tool of this build, with the git hash it was built from: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("HOSTKIT_GIT_HASH"),
    ")"
);
