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

/// The lines of `dump` of checked servers that are down and that the file has with the same address and port and lets
/// take requests. `backends` are its backends by name, each with the text it stands in.
pub(super) fn carried<'a>(
    dump: &str,
    backends: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut carried = String::from("1\n");
    let mut down: HashMap<&str, HashMap<&str, (SocketAddr, Vec<&str>)>> = HashMap::new();
    for line in dump.lines().map(str::trim_end) {
        if line.starts_with("# be_id ") {
            carried.push_str(line);
            carried.push('\n');
        }
        if line.split(' ').nth(OPERATION) != Some("0") {
            continue;
        }
        let columns: Vec<&str> = line.split(' ').collect();
        if columns.len() < COLUMNS {
            continue;
        }
        let admin = columns[ADMIN].parse().unwrap_or(AWAY);
        if let (0, Ok(ip), Ok(port)) = (
            admin & AWAY,
            columns[ADDRESS].parse(),
            columns[PORT].parse(),
        ) {
            let servers = down.entry(columns[BACKEND]).or_default();
            servers.insert(columns[SERVER], (SocketAddr::new(ip, port), columns));
        }
    }
    for (backend, text) in backends {
        let Some(servers) = down.get(backend) else {
            continue;
        };
        for line in text.lines() {
            let Some(server) = line.strip_prefix("\tserver ") else {
                continue;
            };
            let words: Vec<&str> = server.split(' ').collect();
            let [name, address, options @ ..] = words.as_slice() else {
                continue;
            };
            let Some((was, columns)) = servers.get(name) else {
                continue;
            };
            let takes_requests = options.contains(&"check") && !options.contains(&"disabled");
            if takes_requests && address.parse() == Ok(*was) {
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
