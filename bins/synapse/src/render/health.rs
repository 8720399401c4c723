//! What of HAProxy's state of servers outlives a reload: that a server is down. Everything else is in the file.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Columns of `show servers state`, version 1 (management guide).
const BACKEND: usize = 1;
const SERVER: usize = 3;
const ADDRESS: usize = 4;
const OPERATION: usize = 5;
const ADMIN: usize = 6;
const WEIGHT: usize = 7;
const INITIAL_WEIGHT: usize = 8;
const PORT: usize = 18;
const COLUMNS: usize = 25;

/// `srv_admin_state`: any maintenance or drain but `disabled` in the file (4), which run time may have lifted.
const AWAY: u32 = 0x7b;

/// The lines of `dump` of checked servers that are down and that the file, given in chunks, has with the same address
/// and port and lets take requests.
pub(super) fn carried<'a>(dump: &str, file: impl Iterator<Item = &'a str>) -> String {
    let mut carried = String::from("1\n");
    let mut down = HashMap::new();
    for line in dump.lines().map(str::trim_end) {
        if line.starts_with("# be_id ") {
            carried.push_str(line);
            carried.push('\n');
            continue;
        }
        let columns: Vec<&str> = line.split(' ').collect();
        if columns.len() < COLUMNS || columns[OPERATION] != "0" {
            continue;
        }
        let away = columns[ADMIN]
            .parse()
            .map_or(true, |admin: u32| admin & AWAY != 0);
        if let (false, Ok(ip), Ok(port)) = (away, columns[ADDRESS].parse(), columns[PORT].parse()) {
            let address = SocketAddr::new(ip, port);
            down.insert((columns[BACKEND], columns[SERVER]), (address, columns));
        }
    }
    if down.is_empty() {
        return carried;
    }
    for chunk in file {
        let mut backend = "";
        for line in chunk.lines() {
            if let Some(name) = line.strip_prefix("backend ") {
                backend = name;
            }
            let Some(server) = line.strip_prefix("\tserver ") else {
                continue;
            };
            let mut words = server.split(' ');
            let (Some(name), Some(address)) = (words.next(), words.next()) else {
                continue;
            };
            let Some((was, columns)) = down.get(&(backend, name)) else {
                continue;
            };
            let (mut checked, mut disabled) = (false, false);
            for word in words {
                checked |= word == "check";
                disabled |= word == "disabled";
            }
            if checked && !disabled && address.parse() == Ok(*was) {
                let mut columns = columns.clone();
                columns[ADMIN] = "0";
                columns[WEIGHT] = columns[INITIAL_WEIGHT];
                carried.push_str(&columns.join(" "));
                carried.push('\n');
            }
        }
    }
    carried
}
