//! Trying every new `bind` before a reload does.
//!
//! A bind that cannot be had is not seen by `haproxy -c`, and a reload with one is an outage of two seconds for
//! everybody: the new process makes the old one let go of its listeners while it tries again.
//!
//! A socket that is bound and never listens disturbs nobody.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use socket2::{Domain, Protocol, Socket, Type};

use super::bindings::{At, Bind, Host};
use super::owner;

/// How long all of them together may take: only names take any time.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The longest path of a unix socket: 107 bytes, less what HAProxy appends while it binds (`.PID.tmp`).
const PATH: usize = 96;

/// A bind that HAProxy could not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot bind {bind} (line {}): {why}", bind.line)]
pub struct Conflict {
    /// Which.
    pub bind: Bind,
    /// Why not, and what to do.
    pub why: String,
}

/// Those of `new` that are not in `old`: all that a reload has to bind itself, as it is handed the others.
#[must_use]
pub fn added(old: &[Bind], new: &[Bind]) -> Vec<Bind> {
    let is_new = |bind: &&Bind| !old.iter().any(|other| other.same_place(bind));
    new.iter().filter(is_new).cloned().collect()
}

/// Tries what is new in `new` while HAProxy holds `old` (nothing, when it does not run). `as_us` says that the new
/// process will have our privileges: otherwise what is forbidden to us says nothing of it.
///
/// Blocks on names; returns at most one conflict for each bind.
#[must_use]
pub fn probe(old: &[Bind], new: &[Bind], as_us: bool) -> Vec<Conflict> {
    let tried = added(old, new);
    let conflicts = tried.iter().filter_map(|bind| {
        let beside = old.iter().any(|other| other.overlaps(bind));
        let why = try_bind(&bind.at, beside, as_us)?;
        let bind = bind.clone();
        Some(Conflict { bind, why })
    });
    conflicts.collect()
}

/// Why a place cannot be bound; `None` when it can, or it cannot be told.
fn try_bind(at: &At, beside: bool, as_us: bool) -> Option<String> {
    match at {
        At::Other(_) => None,
        At::Unix(path) => try_unix(path, beside, as_us),
        At::Tcp {
            host,
            port,
            foreign,
        } => {
            let addresses = match host {
                Host::Ip(ip) => vec![SocketAddr::new(*ip, *port)],
                Host::Both => vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port)],
                Host::Name(name) => match (name.as_str(), *port).to_socket_addrs() {
                    // HAProxy takes the first.
                    Ok(found) => found.take(1).collect(),
                    Err(error) => return Some(format!("{name} does not resolve: {error}")),
                },
            };
            let both = *host == Host::Both;
            addresses
                .into_iter()
                .find_map(|address| match try_tcp(address, both, beside) {
                    Ok(()) => None,
                    Err(error) => explain(&error, address, *foreign, as_us),
                })
        }
    }
}

/// Binds as HAProxy does: with SO_REUSEADDR, so that connections that linger are no obstacle. HAProxy sets
/// SO_REUSEPORT too, and would share a port with another program of its user that does: for us that is a conflict,
/// except beside what HAProxy itself holds.
fn try_tcp(address: SocketAddr, both: bool, beside: bool) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(beside)?;
    if address.is_ipv6() {
        socket.set_only_v6(!both)?;
    }
    socket.bind(&address.into())
}

fn explain(error: &io::Error, address: SocketAddr, foreign: bool, as_us: bool) -> Option<String> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => Some(match owner::of_port(address.ip(), address.port()) {
            Some((pid, program)) => {
                format!("process {pid} ({program}) holds the port: stop it, or choose another port")
            }
            None => {
                "another process holds the port: `ss -ltnp` as root says which; stop it, or choose another port"
                    .to_owned()
            }
        }),
        Some(Errno::EADDRNOTAVAIL) if foreign => None,
        Some(Errno::EADDRNOTAVAIL) => Some(format!(
            "this host has no address {}: correct it, add the address, or say `transparent`",
            address.ip()
        )),
        Some(Errno::EACCES) if as_us => Some(
            "permission denied: ports below net.ipv4.ip_unprivileged_port_start (1024) need root or CAP_NET_BIND_SERVICE"
                .to_owned(),
        ),
        Some(Errno::EACCES) => None,
        // No IPv6 here.
        Some(Errno::EAFNOSUPPORT) => Some("the kernel does not have this address family".to_owned()),
        _ => Some(error.to_string()),
    }
}

fn try_unix(path: &Path, ours: bool, as_us: bool) -> Option<String> {
    if path.as_os_str().len() > PATH {
        return Some(format!(
            "the path is longer than the {PATH} bytes HAProxy can bind"
        ));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Some(format!("{} is no directory: make it", directory.display()));
    }
    if as_us && access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Some(format!(
            "{} is not writable: give it to HAProxy's user",
            directory.display()
        ));
    }
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return None;
    };
    if !metadata.file_type().is_socket() {
        return Some("something that is no socket is there: remove it".to_owned());
    }
    // A socket that nobody listens at is what a process left behind: HAProxy replaces it.
    (!ours && UnixStream::connect(path).is_ok())
        .then(|| "another process listens there: stop it, or choose another path".to_owned())
}

/// The address to connect to in order to see that a bind listens: loopback for a wildcard.
#[must_use]
pub fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::bindings::binds;
    use std::net::TcpListener;

    fn of(lines: &[String]) -> Vec<Bind> {
        let lines: String = lines.iter().map(|line| format!(" bind {line}\n")).collect();
        binds(&format!("frontend f\n{lines}"))
    }

    fn why(old: &[String], new: &[String]) -> Vec<String> {
        let found = probe(&of(old), &of(new), true);
        found.iter().map(ToString::to_string).collect()
    }

    fn free() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn a_port_that_is_held_is_explained() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        for address in ["127.0.0.1", "*", "localhost", "ipv4@127.0.0.1"] {
            let found = why(&[], &[format!("{address}:{port}")]);
            let pid = format!("process {} (", std::process::id());
            assert!(found[0].contains(&pid), "{address}: {found:?}");
        }
        assert!(why(&[], &[format!("[::1]:{port}")]).is_empty());
        assert_eq!(why(&[], &[format!(":::{port} v4v6")]).len(), 1);
        assert!(why(&[], &[format!(":::{port}")]).is_empty(), "IPv6 only");
    }

    #[test]
    fn what_haproxy_holds_already_is_not_tried() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = holder.local_addr().unwrap().to_string();
        assert!(why(std::slice::from_ref(&at), std::slice::from_ref(&at)).is_empty());
        assert_eq!(why(&[], &[at]).len(), 1);
    }

    #[test]
    fn a_place_beside_what_haproxy_holds_is_tried_as_haproxy_does() {
        let port = free();
        let (wildcard, narrow) = (format!("*:{port}"), format!("127.0.0.1:{port}"));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        let address: SocketAddr = format!("0.0.0.0:{port}").parse().unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        assert!(
            why(
                std::slice::from_ref(&wildcard),
                std::slice::from_ref(&narrow)
            )
            .is_empty()
        );
        assert_eq!(why(&[], &[narrow]).len(), 1, "another program's");
    }

    #[test]
    fn addresses_of_other_hosts_are_explained() {
        let found = why(&[], &[format!("192.0.2.1:{}", free())]);
        assert!(
            found[0].contains("this host has no address 192.0.2.1"),
            "{found:?}"
        );
        assert!(why(&[], &[format!("192.0.2.1:{} transparent", free())]).is_empty());
        let found = why(&[], &[format!("nowhere.invalid:{}", free())]);
        assert!(found[0].contains("does not resolve"), "{found:?}");
    }

    #[test]
    fn unix_sockets_are_looked_at() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name).display().to_string();
        assert!(why(&[], &[path("free")]).is_empty());
        fs::write(path("file"), "").unwrap();
        assert!(why(&[], &[path("file")])[0].contains("no socket"));
        let listener = std::os::unix::net::UnixListener::bind(path("held")).unwrap();
        assert!(why(&[], &[path("held")])[0].contains("another process listens"));
        assert!(why(&[path("held")], &[path("held")]).is_empty());
        drop(listener);
        assert!(why(&[], &[path("held")]).is_empty(), "left behind");
        assert!(why(&[], &[path("no/where")])[0].contains("is no directory"));
        assert!(why(&[], &[path(&"x".repeat(100))])[0].contains("longer"));
    }
}
