//! Who holds a port: `/proc/net/tcp`, `/proc/net/tcp6` and the open files of processes (proc(5)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::processes;

/// How many bytes of a table are read: 100,000 connections are 15 MB.
const TABLE: usize = 32 << 20;

/// `TCP_LISTEN` in the tables' `st` column.
const LISTEN: &str = "0A";

/// The pid and program of who listens at `port` in a way that excludes `ip`; `None` when it cannot be told (another
/// user's process, seen by one who is not root).
#[must_use]
pub fn of_port(ip: IpAddr, port: u16) -> Option<(i32, String)> {
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let mut text = fs::read(table).unwrap_or_default();
        text.truncate(TABLE);
        inodes.extend(listeners(&String::from_utf8_lossy(&text), ip, port));
    }
    let targets: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if targets.is_empty() {
        return None;
    }
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| holds(*pid, &targets))?;
    Some((
        pid,
        processes::program(pid).unwrap_or_else(|| "?".to_owned()),
    ))
}

fn holds(pid: i32, targets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| {
            targets
                .iter()
                .any(|wanted| target.as_os_str() == &wanted[..])
        })
}

/// The inodes of sockets in a table that listen at `port` and on `ip` or a wildcard; a listener on one address is in
/// the way of a wildcard too.
fn listeners(table: &str, ip: IpAddr, port: u16) -> Vec<u64> {
    let rows = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, hex) = words.get(1)?.split_once(':')?;
        let listens = words.get(3) == Some(&LISTEN) && u16::from_str_radix(hex, 16).ok()? == port;
        let held = address_of(address)?;
        let meets = held == ip || held.is_unspecified() || ip.is_unspecified();
        (listens && meets)
            .then(|| words.get(9)?.parse().ok())
            .flatten()
    });
    rows.collect()
}

/// An address as the tables have it: 32-bit words in hex, each in the machine's byte order.
fn address_of(hex: &str) -> Option<IpAddr> {
    if !hex.is_ascii() {
        return None;
    }
    let word = |n: usize| {
        let digits = hex.get(n * 8..n * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_listener_of_this_process_is_found() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let (pid, _) = of_port(at.ip(), at.port()).unwrap();
            assert_eq!(u32::try_from(pid).unwrap(), std::process::id(), "{address}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read() {
        assert_eq!(
            address_of("0100007F"),
            Some(IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
        assert_eq!(
            address_of("00000000000000000000000001000000"),
            Some(IpAddr::V6(Ipv6Addr::LOCALHOST))
        );
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_a_panic(table: String, port: u16, hex in "[0-9A-F]{0,33}|\\PC{8}") {
            let _ = listeners(&table, IpAddr::V4(Ipv4Addr::LOCALHOST), port);
            let _ = address_of(&hex);
        }
    }
}
