//! Server lines: slots, and servers named after their members.
//!
//! A slot's line says who stands in it, so that the file alone comes up right after a crash; free slots are
//! `server-template` ranges. HAProxy numbers servers in the order of the file, so slot `n` keeps its id whoever stands in
//! it and however ranges are cut. What a slot's line says beyond address, weight and admin state is structure: a member
//! with options of its own (`backup`) makes its slot's line unlike the others, and only a reload can say so.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use hostkit::hex;
use sha1::Digest as _;
use sha1::Sha1;

use crate::membership::{Admin, Occupant, Roster};
use crate::model::{self, Backend};
use crate::settings::{CookieValue, Order};

use super::words::MAX_WORDS;

/// No service gets more slots than this.
pub const MAX_SLOTS: usize = 16_384;

/// How many slots a service should have: room for half as many members again, a power of two, 8 or more. It never
/// shrinks below `current` (0 before the first render) and grows when there is no longer that much room: then a service
/// grows while it is deployed, and not while it is updated, when those that leave still have their slots. `configured` is
/// what it begins with instead, and it grows only when fewer than an eighth and 2 of those are free.
#[must_use]
pub fn slots_for(members: usize, configured: Option<u16>, current: usize) -> usize {
    let (current, spare) = match configured {
        Some(slots) => {
            let current = current.max(slots.into());
            (current, current / 8)
        }
        None => (current, members.div_ceil(2)),
    };
    if current >= members + spare.max(2) {
        return current.min(MAX_SLOTS);
    }
    let wanted = members.min(MAX_SLOTS) * 3;
    let sized = wanted.div_ceil(2).next_power_of_two().max(8);
    sized.max(current).min(MAX_SLOTS)
}

/// The weight in a member's own options, and those options without it: a weight can be set at run time, others cannot.
#[must_use]
pub fn split_weight(options: &str) -> (Option<u16>, String) {
    let mut weight = None;
    let mut rest: Vec<&str> = Vec::new();
    let mut words = options.split_ascii_whitespace().peekable();
    while let Some(word) = words.next() {
        let value = words.peek().and_then(|value| value.parse().ok());
        match value.filter(|value| word == "weight" && *value <= 256) {
            Some(value) => {
                weight = Some(value);
                words.next();
            }
            None => rest.push(word),
        }
    }
    (weight, rest.join(" "))
}

/// What HAProxy calls a member in named mode: `[name_]host:port`, as Synapse does, with bytes that HAProxy refuses in a
/// registered name replaced by `_`. An underscore in the host becomes `..`, which no host holds: then no two endpoints
/// ever share a name.
#[must_use]
pub fn server_name(backend: &Backend) -> String {
    let mut name = String::with_capacity(backend.host.len() + 16);
    if let Some(registered) = backend.name().filter(|name| !name.is_empty()) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        let clean = registered.chars().take(128);
        name.extend(clean.map(|c| if allowed(c) { c } else { '_' }));
        name.push('_');
    }
    for (index, part) in backend.host.split('_').enumerate() {
        name.push_str(if index > 0 { ".." } else { "" });
        name.push_str(part);
    }
    let _ = write!(name, ":{}", backend.port);
    name
}

/// Server lines and what of them only a reload changes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Whole lines with their line ends.
    pub(super) text: String,
    pub(super) count: usize,
    pub(super) structure: String,
    /// Members left out, each with the reason.
    pub(super) refused: Vec<String>,
}

/// What a member adds to its line.
struct Own {
    weight: Option<u16>,
    options: String,
}

/// What of a member may be written; else why it is left out.
fn own(occupant: &Occupant, shared_words: usize) -> Result<Own, String> {
    let backend = &occupant.backend;
    if backend.port == 0 || occupant.weight.is_some_and(|weight| weight > 256) {
        return Err("its port or weight is out of range".to_owned());
    }
    let registered = backend.rare.options.as_deref().unwrap_or_default();
    if !model::safe_options(registered) {
        return Err("its options hold what a server line must not".to_owned());
    }
    let (weight, options) = split_weight(registered);
    let mut words = 0;
    for word in options.split(' ') {
        words += 1;
        if word == "id" {
            return Err("its options set a server id, which is not theirs".to_owned());
        }
    }
    // `server NAME ADDRESS id N cookie C .. weight W disabled`
    if words + shared_words + 10 > MAX_WORDS {
        return Err("its server line would have too many words".to_owned());
    }
    let weight = match occupant.admin {
        Admin::Drain => Some(0),
        _ => occupant.weight.or(weight),
    };
    Ok(Own { weight, options })
}

/// Finishes a server line whose name and address stand already.
fn finish(text: &mut String, options: &[&str], weight: Option<u16>, disabled: bool) {
    for options in options.iter().filter(|options| !options.is_empty()) {
        text.push(' ');
        text.push_str(options);
    }
    if let Some(weight) = weight {
        let _ = write!(text, " weight {weight}");
    }
    text.push_str(if disabled { " disabled\n" } else { "\n" });
}

fn left_out(occupant: &Occupant, why: &str) -> String {
    let endpoint = model::shown(&occupant.backend.endpoint());
    let source = model::shown(&occupant.backend.source.to_string());
    format!("member {endpoint} of {source} is left out: {why}")
}

/// The lines of server slots. `options` are those of all.
pub(super) fn slots(roster: &Roster, options: &str) -> Lines {
    let count = roster.servers.len() + roster.free;
    let mut lines = Lines::default();
    let shared_words = options.split_ascii_whitespace().count();
    let _ = writeln!(lines.structure, "slots {count} {options}");
    let mut free_from = 1;
    let free = |lines: &mut Lines, from: usize, to: usize| {
        if from <= to {
            let _ = write!(lines.text, "\tserver-template slot {from}-{to} 127.0.0.1:1");
            finish(&mut lines.text, &[options], None, true);
            lines.count += 1;
        }
    };
    for (slot, occupant) in (1..).zip(&roster.servers) {
        let Some(occupant) = occupant else { continue };
        let own = match own(occupant, shared_words) {
            Ok(own) => own,
            Err(why) => {
                lines.refused.push(left_out(occupant, &why));
                continue;
            }
        };
        free(&mut lines, free_from, slot - 1);
        free_from = slot + 1;
        let address = SocketAddr::new(occupant.address, occupant.backend.port);
        let _ = write!(lines.text, "\tserver slot{slot} {address}");
        let maint = occupant.admin == Admin::Maint;
        finish(&mut lines.text, &[options, &own.options], own.weight, maint);
        lines.count += 1;
        if !own.options.is_empty() {
            let _ = writeln!(lines.structure, "slot{slot} {}", own.options);
        }
    }
    free(&mut lines, free_from, count);
    lines
}

/// How named servers are written.
pub(super) struct Naming<'a> {
    pub(super) options: &'a str,
    pub(super) order: Order,
    pub(super) seed: u64,
    pub(super) cookie: Option<CookieValue>,
    pub(super) max_id: u32,
    /// Whether servers come and go at run time, and are no structure.
    pub(super) dynamic: bool,
}

/// The lines of servers that are named after their members.
pub(super) fn named<'a>(
    occupants: impl Iterator<Item = &'a Occupant>,
    naming: &Naming<'_>,
) -> Lines {
    let mut lines = Lines::default();
    let shared_words = naming.options.split_ascii_whitespace().count();
    let mut servers = Vec::new();
    for (place, occupant) in occupants.enumerate() {
        let own = if model::safe_host(&occupant.backend.host) {
            own(occupant, shared_words)
        } else {
            Err("its host is neither a name nor an address".to_owned())
        };
        match own {
            Ok(own) => servers.push((server_name(&occupant.backend), place, own, occupant)),
            Err(why) => lines.refused.push(left_out(occupant, &why)),
        }
    }
    // By name, so that neither ids nor the structure depend on the order in which members were found.
    servers.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    servers.dedup_by(|(second, .., occupant), (first, ..)| {
        let same = second == first;
        if same {
            let why = "another has its endpoint";
            lines.refused.push(left_out(occupant, why));
        }
        same
    });
    let _ = writeln!(lines.structure, "named {}", naming.options);
    let mut taken = BTreeSet::new();
    let ids = 1..=naming.max_id.max(1);
    let registered: Vec<Option<u32>> = servers
        .iter()
        .map(|(.., occupant)| occupant.backend.rare.server_id)
        .map(|id| id.filter(|id| ids.contains(id) && taken.insert(*id)))
        .collect();
    // All lines by name, and where each of them is.
    let mut text = String::new();
    let mut written = Vec::with_capacity(servers.len());
    for ((name, place, own, occupant), registered) in servers.iter().zip(registered) {
        let Some(id) = registered.or_else(|| free_id(name, naming.max_id, &mut taken)) else {
            let why = "no server id is left: raise max_server_id";
            lines.refused.push(left_out(occupant, why));
            continue;
        };
        let address = SocketAddr::new(occupant.address, occupant.backend.port);
        let cookie = match naming.cookie {
            None => String::new(),
            Some(CookieValue::Name) => format!("cookie {name}"),
            Some(CookieValue::Hash) => format!("cookie {}", hex::encode(&Sha1::digest(name))),
        };
        let options = expanded(naming.options, &occupant.backend, name);
        let options = [cookie.as_str(), &options, &own.options];
        if !naming.dynamic {
            let _ = writeln!(lines.structure, "{name} {id} {}", options.join(" "));
        }
        let from = text.len();
        let _ = write!(text, "\tserver {name} {address} id {id}");
        let maint = occupant.admin == Admin::Maint;
        finish(&mut text, &options, own.weight, maint);
        written.push((name, *place, from..text.len()));
    }
    match naming.order {
        Order::Asc => {}
        Order::Desc => written.reverse(),
        Order::NoShuffle => written.sort_by_key(|(_, place, _)| *place),
        Order::Shuffle => written.sort_by_cached_key(|(name, ..)| hashed(naming.seed, name)),
    }
    lines.count = written.len();
    lines.text.reserve_exact(text.len());
    for (.., line) in written {
        lines.text.push_str(&text[line]);
    }
    lines
}

/// The server id of a name: where its hash points, or the next free one from there. So it hardly ever depends on which
/// other members there are, and HAProxy keeps a member's place in consistent hashing and stick tables over reloads.
fn free_id(name: &str, max: u32, taken: &mut BTreeSet<u32>) -> Option<u32> {
    let max = max.max(1);
    let start = u32::try_from(hashed(0, name) % u64::from(max)).unwrap_or(0);
    let id = (0..max)
        .map(|step| (start + step) % max + 1)
        .find(|id| !taken.contains(id))?;
    taken.insert(id);
    Some(id)
}

/// The same number for the same name and seed, on every host and in every version: FNV-1a, and the finalizer of
/// MurmurHash3, because names differ in their last bytes. A hundred thousand names are hashed in one render.
fn hashed(seed: u64, name: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = seed.to_be_bytes();
    let fnv = bytes
        .iter()
        .chain(name.as_bytes())
        .fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
        });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// The options with `%{port}`, `%{host}`, `%{name}` and `%%` replaced.
fn expanded<'a>(options: &'a str, backend: &Backend, name: &str) -> Cow<'a, str> {
    if !options.contains('%') {
        return Cow::Borrowed(options);
    }
    let mut expanded = String::new();
    let mut rest = options;
    while let Some(at) = rest.find('%') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        let port = backend.port.to_string();
        let known = [
            ("%{port}", port.as_str()),
            ("%{host}", &backend.host),
            ("%{name}", name),
            ("%%", "%"),
        ];
        let found = known
            .into_iter()
            .find(|(placeholder, _)| rest.starts_with(placeholder));
        let (placeholder, value) = found.unwrap_or(("%", "%"));
        expanded.push_str(value);
        rest = &rest[placeholder.len()..];
    }
    expanded.push_str(rest);
    Cow::Owned(expanded)
}
