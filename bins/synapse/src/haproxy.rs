//! Everything that talks to HAProxy: its runtime API, its file, its reloads.
//!
//! Owns the protocols and the order of operations that loses no request. What should stand in HAProxy, and when, is
//! decided elsewhere.

pub mod apply;
pub mod bind;
pub mod bindings;
pub mod check;
pub mod command;
pub mod doctor;
pub(crate) mod files;
pub mod info;
pub mod limits;
pub mod live;
pub mod outcome;
pub mod owner;
pub mod processes;
pub mod quarantine;
pub mod reload;
pub mod server_state;
pub mod socket;
pub mod spawn;
pub mod verify;
pub mod version;

pub use apply::{Change, Deadlines, apply, keep_in_step};
pub use command::{Reply, Server};
pub use info::{Info, Processes};
pub use live::Live;
pub use outcome::{Applied, ApplyError, Cause, Outcome, Step};
pub use reload::Way;
pub use socket::{Socket, SocketError};
pub use version::{Features, Version};

/// The environment variable in HAProxy that says which structure it loaded: a `setenv` line of `global` sets it.
pub const STRUCTURE: &str = "HOSTKIT_STRUCTURE";
