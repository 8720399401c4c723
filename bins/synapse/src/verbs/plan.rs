//! `synapse plan`: what would change now, by runtime API or by reload, and why.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use hostkit::{Exit, Failure, stdout};
use serde_json::{Value, json};

use super::observe::{self, Seen};
use super::table;
use crate::engine::{Tracked, by_backend, changes};
use crate::haproxy::info::environment;
use crate::haproxy::reload::Way;
use crate::haproxy::socket::Socket;
use crate::planner::{Change, Op};
use crate::render::{Membership, Rendered, STRUCTURE_VARIABLE};
use crate::settings::{Servers, Settings};

/// Lines of a difference that are shown of one service.
const SHOWN: usize = 40;

/// Prints the plan.
///
/// # Errors
/// stdout cannot be written.
pub async fn run(settings: &Settings, wait: Duration, as_json: bool) -> Result<Exit, Failure> {
    let seen = observe::observe(settings, None, wait).await;
    let rendered = observe::render(settings, &seen.tracked);
    let structure = Structure::compare(settings, &rendered, &seen).await;
    let membership: BTreeMap<&str, Membership> = rendered.services().collect();
    let runtime = runtime(&seen, &membership);
    if as_json {
        return print_json(&seen, &rendered, &structure, &runtime).map(|()| Exit::OK);
    }
    for silence in seen.silences() {
        stdout::print_line(format_args!(
            "! {silence}: what was last known good is used"
        ))?;
    }
    for (name, tracked) in &seen.tracked {
        if let Some(trouble) = &tracked.trouble {
            stdout::print_line(format_args!("! {name}: {trouble}"))?;
        }
    }
    if let Err(why) = &seen.live {
        stdout::print_line(format_args!("! HAProxy cannot be asked: {why}"))?;
    }
    stdout::print_line(structure.line())?;
    for (_, difference) in &structure.differences {
        stdout::print_line(difference.trim_end())?;
    }
    if runtime.is_empty() {
        stdout::print_line("runtime: nothing to tell HAProxy")?;
    } else {
        stdout::print_line("runtime:")?;
        let mut rows = table(["server", "change", "member"]);
        for (name, change) in &runtime {
            let tracked = &seen.tracked[name];
            let server = format!("{}/{}", tracked.backend(), change.server);
            rows.add_row([server, words(change), member(tracked, &change.server)]);
        }
        stdout::print_line(rows.trim_fmt())?;
    }
    let mut rows = table(["service", "members", "ready", "servers", "changed by"]);
    for (name, tracked) in &seen.tracked {
        rows.add_row([
            name.clone(),
            tracked.table.taken().to_string(),
            tracked.ready().to_string(),
            servers(tracked),
            by(membership.get(name.as_str()).copied()).to_owned(),
        ]);
    }
    stdout::print_line("")?;
    stdout::print_line(rows.trim_fmt())?;
    if !rendered.injected.is_empty() {
        stdout::print_line("\nadded for hitless operation (`inject: false` leaves them out):")?;
        let mut injected: Vec<_> = rendered.injected.iter().collect();
        injected.sort_by(|a, b| b.section.cmp(&a.section));
        for injected in injected {
            stdout::print_line(format_args!("  {}: {}", injected.section, injected.line))?;
        }
    }
    for finding in &rendered.findings {
        stdout::print_line(format_args!(
            "! {}: {}",
            finding.service.as_deref().unwrap_or("haproxy"),
            finding.text
        ))?;
    }
    Ok(Exit::OK)
}

/// What only a reload changes.
struct Structure {
    /// What HAProxy says it has loaded; `None` where it does not say.
    loaded: Option<String>,
    wanted: String,
    /// By service (`""` is what stands before them), the lines that differ from the file.
    differences: Vec<(String, String)>,
    /// There is no file yet.
    missing: bool,
    /// Whether synapse reloads HAProxy.
    by_itself: bool,
}

impl Structure {
    async fn compare(settings: &Settings, rendered: &Rendered, seen: &Seen) -> Self {
        let loaded = match settings.haproxy.sockets.first() {
            Some(path) if seen.live.is_ok() => Socket::new(path)
                .ask(&format!("show env {STRUCTURE_VARIABLE}"))
                .await
                .ok()
                .and_then(|reply| environment(STRUCTURE_VARIABLE, &reply)),
            _ => None,
        };
        let old = settings
            .haproxy
            .config_file
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        let mut differences = Vec::new();
        if let Some(old) = &old {
            let (old, new) = (sections(old), sections(&rendered.text()));
            let heads = new
                .keys()
                .chain(old.keys().filter(|head| !new.contains_key(*head)));
            for head in heads {
                let lines = difference(old.get(head), new.get(head));
                if !lines.is_empty() {
                    differences.push((head.clone(), format!("  {head}\n{lines}")));
                }
            }
        }
        let kept = seen
            .state
            .loaded
            .as_ref()
            .map(|loaded| loaded.structure.clone());
        Self {
            loaded: loaded.or(kept),
            wanted: rendered.structure.clone(),
            differences,
            missing: old.is_none(),
            by_itself: settings.haproxy.do_reloads && Way::of(&settings.haproxy).is_some(),
        }
    }

    fn reload(&self) -> bool {
        self.loaded.as_ref() != Some(&self.wanted)
    }

    fn line(&self) -> String {
        let why = match &self.loaded {
            _ if !self.reload() => return "reload: no; HAProxy has this structure".to_owned(),
            _ if self.missing => "there is no file yet",
            None => "HAProxy does not say what it has loaded",
            Some(_) => "HAProxy has another structure",
        };
        if self.by_itself {
            format!("reload: yes; {why}")
        } else {
            format!(
                "reload: needed, by somebody else (`do_reloads` is false, or no way is configured); {why}"
            )
        }
    }
}

/// The lines of a file by the head of their section.
fn sections(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut head = String::new();
    for line in text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        if line.starts_with(char::is_whitespace) {
            sections
                .entry(head.clone())
                .or_default()
                .push(line.trim().to_owned());
        } else {
            head = line.trim().to_owned();
            sections.entry(head.clone()).or_default();
        }
    }
    sections
}

/// What is removed and what is added, in that order; empty when nothing is.
fn difference(old: Option<&Vec<String>>, new: Option<&Vec<String>>) -> String {
    let none = Vec::new();
    let (before, after) = (old.unwrap_or(&none), new.unwrap_or(&none));
    let removed = before
        .iter()
        .filter(|line| !after.contains(line))
        .map(|line| format!("    - {line}\n"));
    let added = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(|line| format!("    + {line}\n"));
    let lines: Vec<String> = removed.chain(added).collect();
    match (old, new) {
        (Some(_), None) => "    - the whole section\n".to_owned(),
        (None, Some(_)) if lines.is_empty() => "    + the whole section\n".to_owned(),
        _ if lines.len() > SHOWN => {
            let more = lines.len() - SHOWN;
            format!("{}    ... and {more} more lines\n", lines[..SHOWN].concat())
        }
        _ => lines.concat(),
    }
}

fn runtime(seen: &Seen, membership: &BTreeMap<&str, Membership>) -> Vec<(String, Change)> {
    let Ok(live) = &seen.live else {
        return Vec::new();
    };
    let live = live.iter().cloned().map(Ok::<_, Infallible>);
    let Ok(held) = by_backend(live, seen.backends.iter().map(String::as_str));
    seen.tracked
        .iter()
        .flat_map(|(name, tracked)| {
            let found = changes(tracked, membership.get(name.as_str()).copied(), &held);
            found.into_iter().map(|change| (name.clone(), change))
        })
        .collect()
}

fn words(change: &Change) -> String {
    let word = |op: &Op| match op {
        Op::Address(address, port) => {
            format!("address {}", std::net::SocketAddr::new(*address, *port))
        }
        Op::Weight(weight) => format!("weight {weight}"),
        Op::State(admin) => admin.word().to_owned(),
        Op::Add(address, port) => format!("add {}", std::net::SocketAddr::new(*address, *port)),
        Op::Delete => "delete".to_owned(),
    };
    change.ops.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn member(tracked: &Tracked, server: &str) -> String {
    let found = tracked
        .server_names()
        .into_iter()
        .find(|(name, _)| name == server);
    found.map_or_else(
        || "none".to_owned(),
        |(_, resident)| resident.backend.source.to_string(),
    )
}

fn servers(tracked: &Tracked) -> String {
    match &tracked.service.servers {
        Servers::Slots => format!("{} slots", tracked.table.capacity()),
        Servers::Named(why) => format!("named: {why}"),
    }
}

const fn by(membership: Option<Membership>) -> &'static str {
    match membership {
        Some(Membership::Slots) => "runtime API",
        Some(Membership::Dynamic) => "runtime API (add server, del server)",
        Some(Membership::Static) => "reload",
        None => "not in HAProxy",
    }
}

fn print_json(
    seen: &Seen,
    rendered: &Rendered,
    structure: &Structure,
    runtime: &[(String, Change)],
) -> Result<(), Failure> {
    let membership: BTreeMap<&str, Membership> = rendered.services().collect();
    let services: serde_json::Map<String, Value> = seen
        .tracked
        .iter()
        .map(|(name, tracked)| {
            let value = json!({
                "members": tracked.table.taken(),
                "ready": tracked.ready(),
                "servers": servers(tracked),
                "changed_by": by(membership.get(name.as_str()).copied()),
                "trouble": tracked.trouble,
            });
            (name.clone(), value)
        })
        .collect();
    stdout::print_json(&json!({
        "reload": structure.reload(),
        "structure": {"loaded": structure.loaded, "wanted": structure.wanted},
        "differences": structure.differences.iter().map(|(head, lines)| json!({"section": head, "lines": lines})).collect::<Vec<_>>(),
        "runtime": runtime.iter().map(|(service, change)| json!({
            "service": service, "server": change.server, "change": words(change),
        })).collect::<Vec<_>>(),
        "services": services,
        "injected": rendered.injected.iter().map(|line| json!({"section": line.section, "line": line.line})).collect::<Vec<_>>(),
        "findings": rendered.findings.iter().map(|finding| json!({"service": finding.service.as_deref(), "text": finding.text})).collect::<Vec<_>>(),
        "silent": seen.silent.iter().map(|(service, why)| json!({"service": service, "why": why})).collect::<Vec<_>>(),
        "haproxy": seen.live.as_ref().err(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_sections_and_lines() {
        let old =
            sections("# c\nglobal\n\ta\n\nbackend x\n\tserver a\n\tserver b\nbackend gone\n\tz\n");
        let new = sections("global\n\ta\n\nbackend x\n\tserver b\n\tserver c\nbackend new\n");
        let lines = |head: &str| difference(old.get(head), new.get(head));
        assert_eq!(lines("global"), "");
        assert_eq!(lines("backend x"), "    - server a\n    + server c\n");
        assert_eq!(lines("backend gone"), "    - the whole section\n");
        assert_eq!(lines("backend new"), "    + the whole section\n");
    }
}
