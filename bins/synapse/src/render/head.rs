//! What stands before the services: `global`, `defaults`, extra sections, and the lines that hitless operation needs
//! where they are missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::settings::{Haproxy, Line};

use super::piece::{Finding, Piece};
use super::words;

/// The first line of the file. No time in it: the file changes only when its content does.
pub const NOTICE: &str =
    "# Written by synapse, which overwrites changes: make them in its configuration.";

/// What marks lines that nobody wrote.
pub(super) const MARK: &str = "# added by synapse";

/// How long a worker may outlive its reload. Long enough for downloads, short enough that a day of reloads does not
/// leave a host full of workers.
const HARD_STOP: &str = "10m";

/// A line that synapse added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// Kind and name of the section.
    pub section: String,
    /// The line, without its mark.
    pub line: String,
}

/// What a proxy gets from the `defaults` in force where it stands.
#[derive(Debug, Clone)]
pub(super) struct Defaults {
    /// `mode`.
    pub(super) http: bool,
    /// Whether synapse added `option idle-close-on-response` to them; `None` when the user has decided.
    pub(super) idle_close: Option<bool>,
    /// Whether `retry-on` is set: then the user has decided.
    pub(super) retry_on: bool,
    /// Whether `cookie` is set.
    pub(super) cookie: bool,
    /// `balance`.
    pub(super) balance: Option<String>,
    /// Whether `default-server` is set.
    pub(super) default_server: bool,
}

/// Which kinds of proxies have a name; a name may be both, once each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) frontend: bool,
    pub(super) backend: bool,
}

/// The sections before the services, as pieces; between the two belongs the line that says the structure.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) global: Arc<Piece>,
    pub(super) rest: Arc<Piece>,
    pub(super) defaults: Defaults,
    /// Names that services cannot have.
    pub(super) taken: BTreeMap<String, Kinds>,
    pub(super) findings: Vec<Finding>,
    pub(super) injected: Vec<Injected>,
}

impl Head {
    pub(super) fn new(haproxy: &Haproxy) -> Self {
        let mut findings = Vec::new();
        let mut injected = Vec::new();
        let mut add = |piece: &mut Piece, section: &str, lines: Vec<String>| {
            for line in lines {
                piece.line(&format!("{line} {MARK}"), None);
                injected.push(Injected {
                    section: section.to_owned(),
                    line,
                });
            }
        };

        let mut global = Piece::of(None);
        global.head(NOTICE, None);
        global.head("", None);
        global.head("global", None);
        global.written("global", &haproxy.global, &mut findings);
        if haproxy.inject {
            add(&mut global, "global", for_global(haproxy, &mut findings));
        }

        let mut rest = Piece::of(None);
        rest.head("", None);
        rest.head("defaults", None);
        rest.written("defaults", &haproxy.defaults, &mut findings);
        if haproxy.inject {
            let lines = for_defaults(haproxy, &haproxy.defaults, &mut findings);
            add(&mut rest, "defaults", lines);
        }
        let mut defaults = Defaults::of(&haproxy.defaults);
        let mut taken: BTreeMap<String, Kinds> = BTreeMap::new();
        for (title, lines) in &haproxy.extra_sections {
            let words = words::words(&title.text);
            if words.is_empty() || !words::one_line(&title.text) {
                let text = crate::model::shown(&title.text);
                findings.push(Finding {
                    service: None,
                    place: title.place.clone(),
                    text: format!("left out of extra_sections: `{text}` begins no section"),
                });
                continue;
            }
            let section = words.join(" ");
            rest.head("", None);
            rest.head(&title.text, title.place.as_ref());
            rest.written(&section, lines, &mut findings);
            if words[0] == "defaults" {
                // Everything after it takes these.
                defaults = Defaults::of(lines);
                if haproxy.inject {
                    let lines = for_defaults(haproxy, lines, &mut findings);
                    add(&mut rest, &section, lines);
                }
            }
            if let Some(name) = words.get(1) {
                let kinds = taken.entry(name.clone()).or_default();
                kinds.frontend |= matches!(words[0].as_str(), "frontend" | "listen");
                kinds.backend |= matches!(words[0].as_str(), "backend" | "listen");
            }
        }
        Self {
            global: Arc::new(global),
            rest: Arc::new(rest),
            defaults,
            taken,
            findings,
            injected,
        }
    }
}

impl Defaults {
    fn of(lines: &[Line]) -> Self {
        let http = mode(lines).is_some_and(|http| http);
        Self {
            http,
            idle_close: match says_idle_close(lines) {
                true => None,
                false => Some(http),
            },
            retry_on: said(lines, &["retry-on"]).is_some(),
            cookie: said(lines, &["cookie"]).is_some(),
            balance: words::last_value(texts(lines), "balance"),
            default_server: said(lines, &["default-server"]).is_some(),
        }
    }
}

/// Whether the lines say `mode http`; `None` when they do not say.
pub(super) fn mode(lines: &[Line]) -> Option<bool> {
    words::last_value(texts(lines), "mode").map(|mode| mode == "http")
}

/// Whether the lines switch `option idle-close-on-response` on or off.
pub(super) fn says_idle_close(lines: &[Line]) -> bool {
    said(lines, &["option", "idle-close-on-response"]).is_some()
}

/// The last line that holds these words first.
pub(super) fn said<'a>(lines: &'a [Line], keyword: &[&str]) -> Option<&'a Line> {
    lines
        .iter()
        .rev()
        .find(|line| words::says(&line.text, keyword))
}

fn texts(lines: &[Line]) -> impl Iterator<Item = &str> {
    lines.iter().map(|line| line.text.as_str())
}

fn for_global(haproxy: &Haproxy, findings: &mut Vec<Finding>) -> Vec<String> {
    let mut missing = Vec::new();
    for socket in &haproxy.sockets {
        let Some(path) = words::quoted(socket) else {
            findings.push(unwritable("socket", &socket.display().to_string()));
            continue;
        };
        let own = haproxy.global.iter().find(|line| {
            let words = words::words(&line.text);
            let address = words.get(2).map(|address| {
                let path = address.strip_prefix("unix@").unwrap_or(address);
                socket.as_os_str() == path
            });
            words::says(&line.text, &["stats", "socket"]) && address == Some(true)
        });
        let Some(own) = own else {
            missing.push(format!(
                "stats socket {path} mode 600 level admin expose-fd listeners"
            ));
            continue;
        };
        let words = words::words(&own.text);
        // A master keeps the listeners itself.
        let handed_over = haproxy.master_socket.is_some();
        for (needed, given) in [
            (["level", "admin"], false),
            (["expose-fd", "listeners"], handed_over),
        ] {
            if !given && !words.windows(2).any(|pair| pair == needed) {
                findings.push(Finding {
                    service: None,
                    place: own.place.clone(),
                    text: format!("`stats socket {path}` needs `{}`: add it", needed.join(" ")),
                });
            }
        }
    }
    let state_file = &haproxy.server_state_file;
    match (
        said(&haproxy.global, &["server-state-file"]),
        words::quoted(state_file),
    ) {
        (Some(own), path) => {
            if words::words(&own.text).get(1) != state_file.to_str().map(str::to_owned).as_ref() {
                let path = path.unwrap_or_default();
                findings.push(Finding {
                    service: None,
                    place: own.place.clone(),
                    text: format!(
                        "synapse keeps the state of servers in {path}, which this line does not \
                         name: remove the line, or name that file"
                    ),
                });
            }
        }
        (None, Some(path)) => missing.push(format!("server-state-file {path}")),
        (None, None) if state_file.as_os_str().is_empty() => {}
        (None, None) => {
            findings.push(unwritable(
                "server_state_file",
                &state_file.display().to_string(),
            ));
        }
    }
    if said(&haproxy.global, &["hard-stop-after"]).is_none() {
        missing.push(format!("hard-stop-after {HARD_STOP}"));
    }
    missing
}

fn for_defaults(haproxy: &Haproxy, lines: &[Line], findings: &mut Vec<Finding>) -> Vec<String> {
    let mut missing = Vec::new();
    let states = words::quoted(&haproxy.server_state_file).is_some();
    match said(lines, &["load-server-state-from-file"]) {
        None if states => missing.push("load-server-state-from-file global".to_owned()),
        Some(own) if words::words(&own.text).get(1).map(String::as_str) != Some("global") => {
            findings.push(Finding {
                service: None,
                place: own.place.clone(),
                text: "after a reload, servers that are down get requests until a check fails: \
                       make this `load-server-state-from-file global`"
                    .to_owned(),
            });
        }
        _ => {}
    }
    let redispatch = said(lines, &["option", "redispatch"]);
    if let Some(own) = redispatch
        && words::words(&own.text) == ["option", "redispatch"]
    {
        findings.push(Finding {
            service: None,
            place: own.place.clone(),
            text: "a request that meets a member that has just died meets it again, a second apart, until the last \
                   retry: make this `option redispatch 1`"
                .to_owned(),
        });
    }
    if redispatch.is_none() {
        // From the first retry on: a retry on the same server waits a second first.
        missing.push("option redispatch 1".to_owned());
        // Half of a job may quit at once. Until HAProxy has heard of it, its default of 3 runs out of luck; asking the
        // next server takes no time.
        if said(lines, &["retries"]).is_none() {
            missing.push("retries 10".to_owned());
        }
    }
    if mode(lines) == Some(true) && !says_idle_close(lines) {
        missing.push("option idle-close-on-response".to_owned());
    }
    missing
}

fn unwritable(key: &str, path: &str) -> Finding {
    let path = crate::model::shown(path);
    Finding {
        service: None,
        place: None,
        text: format!("{key} `{path}` cannot be written into HAProxy's file: choose another path"),
    }
}
