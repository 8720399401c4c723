//! The server-state file: what keeps a server that is DOWN from being UP again after a reload (management guide,
//! "server-state-file").
//!
//! HAProxy (2.6) lets that file win where it should not: it takes the *port* of a server from there and the *address*
//! from its configuration, so that a line about a slot's former occupant makes an endpoint that nobody ever announced;
//! and a new occupant would inherit DOWN. Therefore only lines about servers that are where the configuration says
//! are written, and everything else starts as the configuration has it. What is on disk must be renewed with every
//! change of the configuration: a stale one bites at the next boot.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;

use super::bindings::is_section;
use super::live;
use crate::membership::Admin;

/// A file without servers. An empty one would earn a warning.
const EMPTY: &str = "1\n";

/// The lines of `dump`, a reply to `show servers state`, that agree with every one of `texts`, configurations: with the
/// old and the new one while either may be started, or with the only one. Of the backends in `ours` the configuration
/// decides whether a server is in maintenance and what it weighs; of others what was set at run time stays.
///
/// What is no such reply comes to no lines, and a line that is no server is left out.
#[must_use]
pub fn reconcile(dump: &str, texts: &[&str], ours: &BTreeSet<String>) -> String {
    let files: Vec<Declared<'_>> = texts
        .iter()
        .map(|text| Declared::read(std::iter::once(*text)))
        .collect();
    let mut kept = Vec::new();
    // Writing to memory does not fail.
    let _ = write(&mut kept, dump, &files, ours);
    String::from_utf8(kept).unwrap_or_default()
}

/// The same, written line by line: all of it may be larger than everything else in memory.
pub(crate) fn write(
    out: &mut dyn io::Write,
    dump: &str,
    files: &[Declared<'_>],
    ours: &BTreeSet<String>,
) -> io::Result<()> {
    let Ok(rows) = live::rows(dump) else {
        return out.write_all(EMPTY.as_bytes());
    };
    for line in dump.lines().take(2) {
        writeln!(out, "{line}")?;
    }
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut current = None;
    for (row, server) in rows.flatten() {
        let own = ours.contains(&server.backend);
        if current.as_ref() != Some(&server.backend) {
            sections = files
                .iter()
                .map(|file| file.section(&server.backend))
                .collect();
            current = Some(server.backend.clone());
        }
        let found: Option<Vec<&Line<'_>>> = sections
            .iter()
            .map(|section| section.find(&server.server))
            .collect();
        let Some(found) = found else { continue };
        let fqdn = row.split(' ').nth(FQDN).unwrap_or_default();
        if !found.iter().all(|line| line.agrees(&server, fqdn, own)) {
            continue;
        }
        match found.last().and_then(|line| line.weight).filter(|_| own) {
            Some(weight) => {
                let weight = weight.to_string();
                let mut words: Vec<&str> = row.split(' ').collect();
                words[UWEIGHT] = &weight;
                writeln!(out, "{}", words.join(" "))?;
            }
            None => writeln!(out, "{row}")?,
        }
    }
    Ok(())
}

/// The place of `srv_uweight` in a line of version 1.
const UWEIGHT: usize = 7;
/// The place of `srv_fqdn`.
const FQDN: usize = 17;

/// What a configuration says of servers: the lines about them, by backend.
#[derive(Debug, Default)]
pub(crate) struct Declared<'a> {
    /// Each with whether `default-server` before it says `disabled`.
    backends: HashMap<&'a str, (bool, Vec<&'a str>)>,
}

/// The servers of one backend.
#[derive(Debug, Default)]
struct Section<'a> {
    servers: HashMap<&'a str, Line<'a>>,
    templates: Vec<Template<'a>>,
}

/// A `server-template` line: servers `prefix<low>` to `prefix<high>`.
#[derive(Debug)]
struct Template<'a> {
    prefix: &'a str,
    range: (u32, u32),
    line: Line<'a>,
}

/// What one server's line says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line<'a> {
    host: &'a str,
    port: Option<u16>,
    disabled: bool,
    weight: Option<u16>,
}

impl<'a> Line<'a> {
    fn read(address: &'a str, options: &[&str], disabled: bool) -> Self {
        let bare = address.split_once('@').map_or(address, |(_, rest)| rest);
        let (host, port) = match bare.rsplit_once(':') {
            // `host:` and `host:+1` have no port of their own.
            Some((host, port)) => (host, port.parse().ok()),
            None => (bare, None),
        };
        let weight = options.windows(2).find(|pair| pair[0] == "weight");
        Self {
            host: host.trim_matches(['[', ']']),
            port,
            disabled: says_disabled(options).unwrap_or(disabled),
            weight: weight.and_then(|pair| pair[1].parse().ok()),
        }
    }

    fn agrees(&self, live: &live::Live, fqdn: &str, own: bool) -> bool {
        let here = match self.host.parse::<IpAddr>() {
            Ok(address) => live.address == Some(address),
            Err(_) => fqdn == self.host,
        };
        let maintained = live.admin.word() == Admin::Maint;
        here && self.port.unwrap_or_default() == live.port && (!own || maintained == self.disabled)
    }
}

fn says_disabled(options: &[&str]) -> Option<bool> {
    let last = options
        .iter()
        .rfind(|word| ["disabled", "enabled"].contains(word));
    last.map(|word| *word == "disabled")
}

/// The words of a line, less its comment.
fn words(line: &str) -> Vec<&str> {
    let line = line.split(" #").next().unwrap_or_default();
    line.split_ascii_whitespace().collect()
}

impl<'a> Declared<'a> {
    /// Reads a configuration in pieces of whole lines.
    pub(crate) fn read(text: impl Iterator<Item = &'a str>) -> Self {
        let (mut found, mut backend) = (Self::default(), None);
        let mut defaults = false;
        for line in text.flat_map(str::lines) {
            let words = words(line);
            match words[..] {
                [section, ..] if is_section(section) => {
                    let proxy = ["backend", "listen"].contains(&section);
                    backend = words.get(1).copied().filter(|_| proxy);
                    if section == "defaults" {
                        defaults = false;
                    }
                    if let Some(backend) = backend {
                        found.backends.entry(backend).or_default().0 = defaults;
                    }
                }
                ["default-server", ..] if backend.is_none() => {
                    defaults = says_disabled(&words[1..]).unwrap_or(defaults);
                }
                ["default-server" | "server" | "server-template", ..] => {
                    if let Some(backend) = backend {
                        found.backends.entry(backend).or_default().1.push(line);
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn section(&self, backend: &str) -> Section<'a> {
        let mut section = Section::default();
        let Some((defaults, lines)) = self.backends.get(backend) else {
            return section;
        };
        let mut inherited = *defaults;
        for line in lines {
            let words = words(line);
            match words[..] {
                ["default-server", ..] => {
                    inherited = says_disabled(&words[1..]).unwrap_or(inherited);
                }
                ["server", name, address, ..] => {
                    let line = Line::read(address, &words[3..], inherited);
                    section.servers.insert(name, line);
                }
                ["server-template", prefix, numbers, address, ..] => {
                    let (low, high) = numbers.split_once('-').unwrap_or(("1", numbers));
                    if let (Ok(low), Ok(high)) = (low.parse(), high.parse()) {
                        section.templates.push(Template {
                            prefix,
                            range: (low, high),
                            line: Line::read(address, &words[4..], inherited),
                        });
                    }
                }
                _ => {}
            }
        }
        section
    }
}

impl Section<'_> {
    fn find(&self, server: &str) -> Option<&Line<'_>> {
        self.servers.get(server).or_else(|| {
            let template = self.templates.iter().find(|template| {
                let number = server.strip_prefix(template.prefix);
                let number = number.and_then(|digits| digits.parse::<u32>().ok());
                number.is_some_and(|number| (template.range.0..=template.range.1).contains(&number))
            });
            template.map(|template| &template.line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight \
        srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
        srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port \
        srv_check_addr srv_agent_addr srv_agent_port\n";

    fn row(server: &str, address: &str, port: u16, admin: u8, weight: u16) -> String {
        format!(
            "3 b 1 {server} {address} 0 {admin} {weight} 1 1 8 2 0 6 0 0 0 - {port} - 0 0 - - 0\n"
        )
    }

    fn kept(rows: &str, texts: &[&str], ours: bool) -> Vec<String> {
        let ours = ours.then(|| "b".to_owned()).into_iter().collect();
        let text = reconcile(&format!("{HEADER}{rows}\n"), texts, &ours);
        let rows = text.strip_prefix(HEADER).unwrap().lines();
        rows.map(|row| row.split(' ').nth(3).unwrap().to_owned())
            .collect()
    }

    const FILE: &str = "defaults\n mode http\nbackend b\n server slot1 10.0.0.1:80 check weight 5\n \
        server slot2 10.0.0.2:80 check disabled\n server slot6 [fd00::1]:80\n server name host.example:80\n \
        server-template slot 3-5 127.0.0.1:1 disabled\n";

    #[test]
    fn only_servers_that_are_where_the_file_says_are_kept() {
        let rows = [
            row("slot1", "10.0.0.1", 80, 4, 5),
            row("slot1", "10.0.0.1", 81, 4, 5),
            row("slot1", "10.0.0.9", 80, 4, 5),
            row("slot3", "127.0.0.1", 1, 5, 1),
            row("slot5", "127.0.0.1", 31000, 5, 1),
            row("slot6", "fd00::1", 80, 0, 1),
            row("slot7", "127.0.0.1", 1, 5, 1),
        ];
        assert_eq!(
            kept(&rows.concat(), &[FILE], true),
            ["slot1", "slot3", "slot6"]
        );
        let older = FILE.replace("10.0.0.1:80", "10.0.0.3:80");
        assert_eq!(
            kept(&rows.concat(), &[&older, FILE], true),
            ["slot3", "slot6"]
        );
    }

    #[test]
    fn our_servers_are_in_maintenance_when_the_file_says_so() {
        let rows = row("slot1", "10.0.0.1", 80, 1, 5) + &row("slot2", "10.0.0.2", 80, 4, 1);
        assert!(kept(&rows, &[FILE], true).is_empty());
        assert_eq!(kept(&rows, &[FILE], false), ["slot1", "slot2"]);
    }

    #[test]
    fn our_servers_weigh_what_the_file_says() {
        let ours = BTreeSet::from(["b".to_owned()]);
        let dump = format!("{HEADER}{}\n", row("slot1", "10.0.0.1", 80, 0, 77));
        assert!(reconcile(&dump, &[FILE], &ours).contains(" slot1 10.0.0.1 0 0 5 1 "));
        assert!(reconcile(&dump, &[FILE], &BTreeSet::new()).contains(" slot1 10.0.0.1 0 0 77 1 "));
    }

    #[test]
    fn a_server_with_a_name_is_known_by_it() {
        let named = |fqdn: &str| {
            row("name", "10.9.9.9", 80, 0, 1).replace(" - 80 ", &format!(" {fqdn} 80 "))
        };
        assert_eq!(kept(&named("host.example"), &[FILE], false), ["name"]);
        assert!(kept(&named("other.example"), &[FILE], false).is_empty());
    }

    #[test]
    fn default_server_lines_count() {
        let file = "defaults\n default-server disabled\nbackend b\n server slot1 10.0.0.1:80\n server slot2 10.0.0.2:80 enabled\n";
        let rows = row("slot1", "10.0.0.1", 80, 5, 1) + &row("slot2", "10.0.0.2", 80, 0, 1);
        assert_eq!(kept(&rows, &[file], true), ["slot1", "slot2"]);
    }

    #[test]
    fn what_is_no_reply_comes_to_nothing() {
        assert_eq!(reconcile("", &[FILE], &BTreeSet::new()), EMPTY);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(dump: String, text: String, line in "(server|server-template|default-server)[ a-z0-9:.@-]{0,30}") {
            let text = format!("backend b\n{line}\n{text}");
            let _ = reconcile(&format!("{HEADER}{dump}"), &[&text], &BTreeSet::new());
        }
    }
}
