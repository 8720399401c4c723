//! What stands in HAProxy now: `show servers state` (management guide, "server-state file" version 1), and how many
//! connections and sessions a server has.
//!
//! `show servers state` costs a seventh of `show stat`; sessions are asked for one server at a time.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::shown;

/// One server as HAProxy has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The backend's name.
    pub backend: String,
    /// The backend's id, which `show stat` is asked with.
    pub backend_id: u32,
    /// The server's name.
    pub server: String,
    /// Its id within the backend.
    pub id: u32,
    /// Its address; `None` while its name is not resolved.
    pub address: Option<IpAddr>,
    /// Its port; 0 when it has none of its own.
    pub port: u16,
    /// What it was told.
    pub admin: AdminBits,
    /// What it is.
    pub operation: Operation,
    /// The weight in force, 0 to 256.
    pub weight: u16,
    /// The weight of the file.
    pub initial_weight: u16,
    /// The last result of its check.
    pub check: CheckResult,
    /// Whether a check is configured and switched on.
    pub checked: bool,
}

impl Live {
    /// `backend/server`, as commands name it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.backend, self.server)
    }

    /// Whether it gets new requests.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(self.operation, Operation::Running | Operation::Starting)
            && self.admin.word() == crate::membership::Admin::Ready
            && self.weight > 0
    }
}

/// `srv_admin_state`: why a server is in maintenance or drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdminBits(pub u8);

impl AdminBits {
    const FORCED_MAINT: u8 = 0x01;
    const INHERITED_MAINT: u8 = 0x02;
    const CONFIG_MAINT: u8 = 0x04;
    const FORCED_DRAIN: u8 = 0x08;
    const INHERITED_DRAIN: u8 = 0x10;
    const UNRESOLVED: u8 = 0x20;

    /// `set server .. state maint` put it there.
    #[must_use]
    pub const fn forced_maint(self) -> bool {
        self.0 & Self::FORCED_MAINT != 0
    }

    /// The server it tracks is in maintenance.
    #[must_use]
    pub const fn inherited_maint(self) -> bool {
        self.0 & Self::INHERITED_MAINT != 0
    }

    /// Its line says `disabled`. That alone keeps nothing in maintenance: the bit stays when it is made ready.
    #[must_use]
    pub const fn disabled_in_file(self) -> bool {
        self.0 & Self::CONFIG_MAINT != 0
    }

    /// Its name did not resolve.
    #[must_use]
    pub const fn unresolved(self) -> bool {
        self.0 & Self::UNRESOLVED != 0
    }

    /// What it comes to.
    #[must_use]
    pub const fn word(self) -> crate::membership::Admin {
        use crate::membership::Admin;
        if self.0 & (Self::FORCED_MAINT | Self::INHERITED_MAINT | Self::UNRESOLVED) != 0 {
            Admin::Maint
        } else if self.0 & (Self::FORCED_DRAIN | Self::INHERITED_DRAIN) != 0 {
            Admin::Drain
        } else {
            Admin::Ready
        }
    }
}

/// `srv_op_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Down.
    Stopped,
    /// Up, and its weight still grows (`slowstart`).
    Starting,
    /// Up.
    Running,
    /// Up for those it already serves.
    Stopping,
}

/// `srv_check_result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    /// None yet, or none ever.
    Unknown,
    /// It says nothing about the server (a check that was stopped).
    Neutral,
    /// It failed.
    Failed,
    /// It passed.
    Passed,
}

/// The reply is not what this version of the format is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "HAProxy's reply has `{line}` where {expected} was expected: is this a version from 2.4 to 3.x?"
)]
pub struct Malformed {
    expected: &'static str,
    line: String,
}

/// The columns that are read, in the order of [`columns`].
const COLUMNS: [&str; 12] = [
    "be_id",
    "be_name",
    "srv_id",
    "srv_name",
    "srv_addr",
    "srv_op_state",
    "srv_admin_state",
    "srv_uweight",
    "srv_iweight",
    "srv_check_result",
    "srv_check_state",
    "srv_port",
];

/// Reads the reply to `show servers state`.
///
/// # Errors
/// As [`rows`].
pub fn servers(text: &str) -> Result<Vec<Live>, Malformed> {
    rows(text)?.map(|row| Ok(row?.1)).collect()
}

/// The same one by one, with their lines: a thousand services have so many that the list would be larger than all else.
///
/// # Errors
/// Another version of the format, or a line that does not fit its heading.
pub fn rows(
    text: &str,
) -> Result<impl Iterator<Item = Result<(&str, Live), Malformed>>, Malformed> {
    let mut lines = text.lines();
    expect(lines.next(), "1", "format version 1")?;
    let header = lines.next().unwrap_or_default();
    let header: Vec<&str> = header.trim_start_matches("# ").split(' ').collect();
    let position = |name: &str| header.iter().position(|column| *column == name);
    let Some(places) = COLUMNS
        .iter()
        .map(|name| position(name))
        .collect::<Option<Vec<_>>>()
    else {
        return Err(malformed("the heading of a server-state file", text));
    };
    let rows = lines.filter(|line| !line.is_empty());
    Ok(rows.map(move |line| {
        let live = row(line, &places).ok_or_else(|| malformed("a server", line))?;
        Ok((line, live))
    }))
}

fn row(line: &str, places: &[usize]) -> Option<Live> {
    let words: Vec<&str> = line.split(' ').collect();
    let mut values = places.iter().map(|place| words.get(*place).copied());
    let mut next = || values.next().flatten();
    let backend_id = next()?.parse().ok()?;
    let backend = next()?.to_owned();
    let id = next()?.parse().ok()?;
    let server = next()?.to_owned();
    let address = next()?.parse().ok();
    let operation = match next()? {
        "0" => Operation::Stopped,
        "1" => Operation::Starting,
        "2" => Operation::Running,
        "3" => Operation::Stopping,
        _ => return None,
    };
    Some(Live {
        backend,
        backend_id,
        server,
        id,
        address,
        operation,
        admin: AdminBits(next()?.parse().ok()?),
        weight: next()?.parse().ok()?,
        initial_weight: next()?.parse().ok()?,
        check: match next()? {
            "1" => CheckResult::Neutral,
            "2" => CheckResult::Failed,
            // 4: it passed, and asks for no new sessions (http-check disable-on-404).
            "3" | "4" => CheckResult::Passed,
            _ => CheckResult::Unknown,
        },
        // Configured (2) and enabled (4); a paused one (8) is that of a server in maintenance.
        checked: next()?.parse::<u8>().ok()? & 0x6 == 0x6,
        port: next()?.parse().ok()?,
    })
}

/// Connections to a server, whoever they serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// The ids of the backend and of the server within it, which statistics are asked by.
    pub ids: (u32, u32),
    /// In use by a request, or set aside for one client.
    pub used: u64,
    /// Idle, and any request may use one.
    pub idle: u64,
}

/// Reads the reply to `show backend`: the names of all backends, those without servers too.
pub fn backends(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Reads the reply to `show servers conn`: by `backend/server`.
///
/// # Errors
/// A line that does not fit its heading.
pub fn connections(text: &str) -> Result<HashMap<String, Connections>, Malformed> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let names: Vec<&str> = header.trim_start_matches("# ").split(' ').collect();
    let position = |name: &str| names.iter().position(|column| *column == name);
    let places = (
        position("bkid/svid"),
        position("used_cur"),
        position("idle_cur"),
    );
    let (Some(ids), Some(used), Some(idle)) = places else {
        return Err(malformed("the heading of `show servers conn`", header));
    };
    let rows = lines.filter(|line| !line.is_empty());
    rows.map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |place: usize| words.get(place)?.parse().ok();
        let connections = || {
            let (backend, server) = words.get(ids)?.split_once('/')?;
            Some(Connections {
                ids: (backend.parse().ok()?, server.parse().ok()?),
                used: number(used)?,
                idle: number(idle)?,
            })
        };
        let found = connections().ok_or_else(|| malformed("a server's connections", line))?;
        Ok((words[0].to_owned(), found))
    })
    .collect()
}

/// The current sessions in the reply to `show stat <backend id> 4 <server id>`: a CSV heading and one line; `None` when
/// there is no such server.
///
/// # Errors
/// A line that does not fit its heading.
pub fn sessions(text: &str) -> Result<Option<u64>, Malformed> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let mut names = header.trim_start_matches("# ").split(',');
    let Some(place) = names.position(|name| name == "scur") else {
        return Err(malformed("the heading of `show stat`", header));
    };
    let Some(line) = lines.find(|line| !line.is_empty()) else {
        return Ok(None);
    };
    let value = line.split(',').nth(place).and_then(|n| n.parse().ok());
    value.map_or_else(|| Err(malformed("a server's line", line)), |n| Ok(Some(n)))
}

fn expect(line: Option<&str>, wanted: &str, what: &'static str) -> Result<(), Malformed> {
    match line {
        Some(line) if line == wanted => Ok(()),
        other => Err(malformed(what, other.unwrap_or_default())),
    }
}

fn malformed(expected: &'static str, text: &str) -> Malformed {
    Malformed {
        expected,
        line: shown(text.lines().next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Admin;
    use proptest::prelude::*;

    const HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight \
        srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
        srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port \
        srv_check_addr srv_agent_addr srv_agent_port\n";

    #[test]
    fn servers_are_read() {
        let text = format!(
            "{HEADER}3 b 1 slot1 127.0.0.1 2 4 50 1 1 6 3 3 6 0 0 0 - 8081 - 0 0 - - 0\n\
             3 b 2 slot2 ::1 0 5 1 1 1 1 0 0 14 0 0 0 - 1 - 0 0 - - 0\n\
             4 t 1 x - 0 32 1 1 1 1 0 0 0 0 0 0 host.example 80 - 0 0 - - 0\n\n"
        );
        let found = servers(&text).unwrap();
        assert_eq!(found[0].name(), "b/slot1");
        assert_eq!((found[0].backend_id, found[0].id), (3, 1));
        assert_eq!(found[0].address, Some("127.0.0.1".parse().unwrap()));
        assert_eq!((found[0].port, found[0].weight), (8081, 50));
        assert_eq!(found[0].admin.word(), Admin::Ready);
        assert!(found[0].admin.disabled_in_file() && !found[0].admin.forced_maint());
        assert_eq!(found[0].check, CheckResult::Passed);
        assert!(found[0].serves() && found[0].checked);
        assert_eq!(found[1].admin.word(), Admin::Maint);
        assert!(!found[1].serves());
        assert_eq!(found[2].address, None);
        assert!(found[2].admin.unresolved());
        assert!(!found[2].checked);
    }

    #[test]
    fn a_column_more_changes_nothing() {
        let text = "1\n# new be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight \
                    srv_iweight srv_check_result srv_check_state srv_port\n\
                    9 3 b 1 s 10.0.0.1 3 8 1 1 0 0 80\n";
        let found = servers(text).unwrap();
        assert_eq!(found[0].port, 80);
        assert_eq!(found[0].admin.word(), Admin::Drain);
        assert_eq!(found[0].operation, Operation::Stopping);
    }

    #[test]
    fn what_is_not_a_server_is_refused() {
        for text in ["", "2\n", "Can't find backend.\n", "1\n# be_id be_name\n"] {
            assert!(servers(text).is_err(), "{text:?}");
        }
        let error = servers(&format!("{HEADER}3 b 1 slot1 127.0.0.1 2\n")).unwrap_err();
        assert!(
            error.to_string().contains("`3 b 1 slot1 127.0.0.1 2`"),
            "{error}"
        );
    }

    #[test]
    fn connections_are_read() {
        let text = "# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb \
                    idle_lim idle_cur idle_per_thr[2]\n\
                    b/slot1 3/1 127.0.0.1 8080 - 5000 1 4 2 0 0 -1 7 3 4\n";
        let expected = Connections {
            ids: (3, 1),
            used: 1,
            idle: 7,
        };
        assert_eq!(connections(text).unwrap()["b/slot1"], expected);
        assert!(connections("Can't find backend.\n").is_err());
    }

    #[test]
    fn sessions_are_read() {
        let head = "# pxname,svname,qcur,qmax,scur,smax\n";
        assert_eq!(sessions(&format!("{head}b,s,0,0,12,20\n\n")), Ok(Some(12)));
        assert_eq!(sessions(head), Ok(None));
        assert!(sessions("No such proxy.\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = servers(&text);
            let _ = servers(&format!("{HEADER}{text}"));
            let _ = connections(&text);
            let _ = connections(&format!("# a bkid/svid used_cur idle_cur\n{text}"));
            let _ = sessions(&text);
            let _ = sessions(&format!("# a,scur\n{text}"));
        }

        #[test]
        fn a_server_comes_back_as_it_was(
            backend in "[a-zA-Z0-9_.:-]{1,20}", server in "[a-zA-Z0-9_.:-]{1,20}", port: u16, weight in 0u16..=256,
            admin in 0u8..0x40, address: std::net::Ipv4Addr,
        ) {
            let line = format!("3 {backend} 1 {server} {address} 2 {admin} {weight} 1 1 6 3 3 6 0 0 0 - {port} - 0 0 - - 0");
            let found = servers(&format!("{HEADER}{line}\n")).unwrap();
            prop_assert_eq!(found[0].name(), format!("{backend}/{server}"));
            prop_assert_eq!((found[0].port, found[0].weight, found[0].admin.0), (port, weight, admin));
            prop_assert_eq!(found[0].address, Some(IpAddr::V4(address)));
        }
    }
}
