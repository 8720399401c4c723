//! Runtime commands that change servers, and what their replies mean (management guide, "set server", "add server").
//!
//! Pure. A command is built only from names, addresses and words that were checked, so that nothing can make two of one.
//!
//! What was learnt from 2.6 and shapes these:
//! * A slot is filled from maintenance: a server that was DOWN stays DOWN when only its address changes, but leaving
//!   maintenance makes it UP at once, and DOWN again with the first check that fails.
//! * A new address closes idle connections to the old one, but not those in use: they come back to the pool after it
//!   and then carry new requests to the *old* address. So a slot gets a new occupant only when [`Quiet`] says so.
//! * Weights outlast an occupant: filling always sets one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::live::Connections;
use super::version::Features;
use crate::membership::{Admin, Occupant};
use crate::model::{safe_name, safe_options, shown};

/// The greatest weight (`SRV_UWGHT_MAX`).
const WEIGHT: u16 = 256;

/// The name of a server in HAProxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    backend: String,
    name: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.name)
    }
}

/// Something that cannot stand in a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot stand in a runtime command: only letters, digits and -_.: can be in a name")]
pub struct Unsafe(String);

impl Server {
    /// The server `name` of `backend`.
    ///
    /// # Errors
    /// A name that HAProxy would not take, or that could end a command.
    pub fn new(backend: &str, name: &str) -> Result<Self, Unsafe> {
        for part in [backend, name] {
            if !safe_name(part) {
                return Err(Unsafe(shown(part)));
            }
        }
        Ok(Self {
            backend: backend.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The server's own name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it ready, draining or in maintenance.
    #[must_use]
    pub fn state(&self, admin: Admin) -> String {
        format!("set server {self} state {}", admin.word())
    }

    /// Gives it this weight, at most 256; `None` is that of the file.
    #[must_use]
    pub fn weight(&self, weight: Option<u16>) -> String {
        match weight {
            Some(weight) => format!("set server {self} weight {}", weight.min(WEIGHT)),
            None => format!("set server {self} weight 100%"),
        }
    }

    /// Points it there. Idle connections to where it pointed are closed.
    #[must_use]
    pub fn address(&self, address: IpAddr, port: u16) -> String {
        format!("set server {self} addr {address} port {port}")
    }

    /// Cuts what it still serves. Every request that is cut is a failed one.
    #[must_use]
    pub fn shutdown_sessions(&self) -> String {
        format!("shutdown sessions server {self}")
    }

    /// Adds a named server, which then serves. `options` are those of its line; those it cannot have at run time
    /// (`cookie`, `init-addr`, `resolvers`) are refused by HAProxy.
    ///
    /// # Errors
    /// Options that could end the command.
    pub fn add(
        &self,
        occupant: &Occupant,
        options: &str,
        features: Features,
    ) -> Result<Vec<String>, Unsafe> {
        if !safe_options(options) {
            return Err(Unsafe(shown(options)));
        }
        let endpoint = SocketAddr::new(occupant.address, occupant.backend.port);
        let options = options.trim();
        let separator = if options.is_empty() { "" } else { " " };
        let mut commands = experimental(features);
        commands.push(format!("add server {self} {endpoint}{separator}{options}"));
        // The words of a line, not of a value: `observe layer7` has no check, `check inter 2s` has.
        let mut words = options.split_ascii_whitespace();
        if features.dynamic_checks && words.any(|word| word == "check") {
            commands.push(format!("enable health {self}"));
        }
        if let Some(weight) = occupant.weight {
            commands.push(self.weight(Some(weight)));
        }
        if occupant.admin != Admin::Maint {
            commands.push(self.state(occupant.admin));
        }
        Ok(commands)
    }

    /// Removes a named server: [`Reply::Busy`] while it serves somebody.
    #[must_use]
    pub fn delete(&self, features: Features) -> Vec<String> {
        let mut commands = experimental(features);
        commands.push(self.state(Admin::Maint));
        commands.push(format!("del server {self}"));
        commands
    }
}

/// What must come first on a connection that adds or deletes servers.
fn experimental(features: Features) -> Vec<String> {
    let needed = features
        .experimental
        .then(|| "experimental-mode on".to_owned());
    needed.into_iter().collect()
}

/// What is asked to learn whether a slot may get a new occupant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// From `show servers conn`.
    pub connections: Connections,
    /// From `show stat`: with `http-reuse never` and in TCP mode a session holds a connection that
    /// `show servers conn` does not count.
    pub sessions: u64,
}

impl Quiet {
    /// Whether a new address leaves nobody with the old one. Idle connections do not count: the new address closes
    /// them. (What this cannot see: with `http-reuse never`, a client between two requests keeps its connection to the
    /// old occupant for as long as both stay.)
    #[must_use]
    pub const fn is_quiet(self) -> bool {
        self.connections.used == 0 && self.sessions == 0
    }
}

/// What a reply to one of these commands means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It was done, or there was nothing to do.
    Done,
    /// HAProxy has no such server, or no such backend: it runs another structure.
    Unknown,
    /// The server still has connections, or must be in maintenance first: again later.
    Busy,
    /// A server of this name is there.
    Exists,
    /// HAProxy will not; what it said.
    Refused(String),
}

impl Reply {
    /// The meaning of what [`super::Socket`] returned.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let text = text.trim();
        // `set server addr` tells what changed, even nothing.
        let told = [
            "IP changed from ",
            "port changed from ",
            "no need to change ",
            "New server registered.",
            "Server deleted.",
        ];
        if text.is_empty() || told.iter().any(|start| text.starts_with(start)) {
            return Self::Done;
        }
        match text {
            "No such server." | "No such backend." | "Can't find backend." => Self::Unknown,
            "Already exists a server with the same name in backend." => Self::Exists,
            _ if text.starts_with("Server still has connections")
                || text.starts_with("Only servers in maintenance mode") =>
            {
                Self::Busy
            }
            other => Self::Refused(shown(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::haproxy::Version;
    use crate::model::Backend;
    use proptest::prelude::*;

    fn occupant(address: &str, port: u16, weight: Option<u16>, admin: Admin) -> Occupant {
        Occupant {
            backend: Arc::new(Backend::new(address, port, "test").unwrap()),
            address: address.parse().unwrap(),
            weight,
            admin,
        }
    }

    #[test]
    fn a_server_is_told_where_and_how_much_and_what() {
        let slot = Server::new("b", "slot3").unwrap();
        let at = |address: &str| slot.address(address.parse().unwrap(), 31000);
        assert_eq!(
            at("10.0.0.1"),
            "set server b/slot3 addr 10.0.0.1 port 31000"
        );
        assert_eq!(at("fd00::1"), "set server b/slot3 addr fd00::1 port 31000");
        assert_eq!(slot.weight(Some(300)), "set server b/slot3 weight 256");
        assert_eq!(slot.weight(None), "set server b/slot3 weight 100%");
        assert_eq!(slot.state(Admin::Drain), "set server b/slot3 state drain");
    }

    #[test]
    fn servers_are_added_and_deleted_as_the_version_has_it() {
        let server = Server::new("b", "s1").unwrap();
        let ready = occupant("fd00::1", 80, None, Admin::Ready);
        let features = |minor| Features::of(Version(2, minor, 0));
        assert_eq!(
            server.add(&ready, "check inter 2s", features(6)).unwrap(),
            [
                "add server b/s1 [fd00::1]:80 check inter 2s",
                "enable health b/s1",
                "set server b/s1 state ready",
            ]
        );
        assert_eq!(
            server.add(&ready, "", features(4)).unwrap(),
            [
                "experimental-mode on",
                "add server b/s1 [fd00::1]:80",
                "set server b/s1 state ready",
            ]
        );
        assert_eq!(
            server.delete(features(6)),
            ["set server b/s1 state maint", "del server b/s1"]
        );
        assert!(server.add(&ready, "check; x", features(6)).is_err());
    }

    #[test]
    fn replies_are_understood() {
        for (text, expected) in [
            ("", Reply::Done),
            (
                "no need to change the addr, no need to change the port by 'stats socket command'",
                Reply::Done,
            ),
            (
                "IP changed from '127.0.0.1' to '::1', no need to change the port by 'stats socket command'",
                Reply::Done,
            ),
            ("New server registered.\n", Reply::Done),
            ("Server deleted.", Reply::Done),
            ("No such server.", Reply::Unknown),
            ("No such backend.", Reply::Unknown),
            (
                "Server still has connections attached to it, cannot remove it.",
                Reply::Busy,
            ),
            (
                "Only servers in maintenance mode can be deleted.",
                Reply::Busy,
            ),
            (
                "Already exists a server with the same name in backend.",
                Reply::Exists,
            ),
            (
                "Invalid addr '999.1.1.1' by 'stats socket command'",
                Reply::Refused("Invalid addr '999.1.1.1' by 'stats socket command'".to_owned()),
            ),
        ] {
            assert_eq!(Reply::of(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_name_or_option_makes_two_commands(backend: String, name: String, options: String) {
            let ready = occupant("10.0.0.1", 80, Some(1), Admin::Ready);
            if let Ok(server) = Server::new(&backend, &name) {
                let features = Features::of(Version(2, 6, 0));
                let mut commands = server.delete(features);
                commands.push(server.address(ready.address, 80));
                commands.push(server.weight(None));
                commands.extend(server.add(&ready, &options, features).unwrap_or_default());
                for command in commands {
                    prop_assert!(command.chars().all(|c| !c.is_control() && !";\\'\"<#".contains(c)), "{command:?}");
                }
            }
        }

        #[test]
        fn any_reply_is_understood_without_a_panic(text: String) {
            let _ = Reply::of(&text);
        }
    }
}
