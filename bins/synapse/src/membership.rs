//! Server slots: who stands in which, and in which phase. The types that the renderer and the runtime API share.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::Backend;

pub mod table;

/// One HAProxy server and who stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupant {
    /// The member.
    pub backend: Arc<Backend>,
    /// Its address; a slot is only filled when the host is resolved.
    pub address: IpAddr,
    /// HAProxy's weight, 0 to 256; `None` leaves what `server_options` say.
    pub weight: Option<u16>,
    /// What HAProxy is told of it.
    pub admin: Admin,
}

/// The administrative state of a server (HAProxy management guide, `set server .. state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// Gets requests as its checks allow.
    Ready,
    /// Gets no new sessions; what it has may end.
    Drain,
    /// Gets nothing and is not checked.
    Maint,
}

impl Admin {
    /// HAProxy's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// What stands in HAProxy for one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster {
    /// For server slots: entry `n` is `slot<n+1>`, `None` is free. For named servers: all of them, none is `None`.
    pub servers: Vec<Option<Occupant>>,
    /// How many more slots there are behind these, all of them free.
    pub free: usize,
}
