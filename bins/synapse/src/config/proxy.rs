//! The `haproxy` section of a service, and whether its servers must have names.

use super::context::{Context, Kind, Map};
use super::discovery::name;
use super::keys;
use super::lines::{self, Raw};
use super::pattern::{Pattern, placeholders, without_placeholders};
use super::service::Around;
use super::tree::Node;
use crate::keywords::Section;
use crate::model::{safe_name, shown};
use crate::settings::{CookieValue, Line, Order, Proxy};

/// What a `haproxy` section says.
pub(super) struct Written {
    /// `None` when it is disabled.
    pub(super) proxy: Option<Proxy>,
    /// `server_port_override`.
    pub(super) port_override: Option<u16>,
}

/// Reads the section. `None` is one that is no map.
pub(super) fn read(
    context: &mut Context,
    around: &Around<'_>,
    pattern: &Pattern,
    node: &Node<'_>,
    path: String,
) -> Option<Written> {
    let map = Map::open(context, &keys::PROXY, node, path)?;
    let disabled = map.flag(context, "disabled", false);
    let port_override = map.number(context, "server_port_override", 1..=65535);
    if port_override.is_some() {
        let message = format!(
            "`{}` is the older spelling",
            map.name("server_port_override")
        );
        let remedy = "write `backend_port_override` in the service";
        context.push(Kind::Note, map.at("server_port_override"), message, remedy);
    }
    let port = port(context, pattern, &map);
    let frontend = own_lines(context, pattern, &map, "frontend");
    let backend = own_lines(context, pattern, &map, "backend");
    let listen = own_lines(context, pattern, &map, "listen");
    // The section's own lines stand first, as Synapse has them.
    let mut frontend = lines::of(context, &frontend, &map.name("frontend"), Section::Frontend);
    let mut backend = lines::of(context, &backend, &map.name("backend"), Section::Backend);
    let (front, back) = lines::listen(context, &listen, &map.name("listen"));
    frontend.extend(front);
    backend.extend(back);
    let backend_name = backend_name(context, pattern, &map);
    let order = match map.text(context, "backend_order") {
        Some("asc") => Order::Asc,
        Some("desc") => Order::Desc,
        Some("no_shuffle") => Order::NoShuffle,
        None | Some("shuffle") => Order::Shuffle,
        Some(other) => {
            ignored(
                context,
                &map,
                "backend_order",
                other,
                "asc, desc, no_shuffle or shuffle",
            );
            Order::Shuffle
        }
    };
    let cookie_value = match map.text(context, "cookie_value_method") {
        Some("hash") => CookieValue::Hash,
        None | Some("name") => CookieValue::Name,
        Some(other) => {
            ignored(context, &map, "cookie_value_method", other, "name or hash");
            CookieValue::Name
        }
    };
    let proxy = Proxy {
        port,
        bind_address: map.text(context, "bind_address").map(str::to_owned),
        bind_options: map.text(context, "bind_options").map(str::to_owned),
        server_options: server_options(context, pattern, &map),
        frontend,
        backend,
        shared_frontend: shared_frontend(context, around, pattern, &map),
        backend_name,
        backend_order: order,
        cookie_value,
        use_nerve_weights: map.flag(context, "use_nerve_weights", around.use_nerve_weights),
    };
    Some(Written {
        proxy: (!disabled).then_some(proxy),
        port_override,
    })
}

fn ignored(context: &mut Context, map: &Map<'_, '_>, key: &'static str, text: &str, words: &str) {
    let message = format!(
        "`{}` is `{}`, which Synapse ignores",
        map.name(key),
        shown(text)
    );
    context.push(
        Kind::Ignored,
        map.value_at(key),
        message,
        format!("write {words}"),
    );
}

fn own_lines<'t>(
    context: &mut Context,
    pattern: &Pattern,
    map: &Map<'t, '_>,
    key: &'static str,
) -> Vec<Raw<'t>> {
    let lines = lines::read(context, map, key);
    for line in &lines {
        pattern.check(context, line);
    }
    lines
}

fn port(context: &mut Context, pattern: &Pattern, map: &Map<'_, '_>) -> Option<Option<u16>> {
    let node = map.raw("port")?;
    if pattern.per_match() {
        let message = format!("`{}` in a service per match", map.name("port"));
        let remedy = "all of them would bind it: leave it out and use `shared_frontend`";
        context.error(map.at("port"), message, remedy);
    }
    if node.is_null() {
        if map.get("bind_address").is_none() {
            let message = format!("`{}` is null", map.name("port"));
            let remedy = "write a port, or a unix socket as `bind_address`";
            context.error(node.at, message, remedy);
        }
        return Some(None);
    }
    map.number(context, "port", 1..=65535).map(Some)
}

fn backend_name(context: &mut Context, pattern: &Pattern, map: &Map<'_, '_>) -> Option<String> {
    if !pattern.per_match() {
        return name(context, map, "backend_name");
    }
    let text = map.text(context, "backend_name")?;
    let at = map.value_at("backend_name");
    if !safe_name(&without_placeholders(text)) {
        let message = format!("`{}` is `{}`", map.name("backend_name"), shown(text));
        let remedy = "HAProxy takes letters, digits and -_.: in names";
        context.error(at, message, remedy);
    }
    if let Some(missing) = pattern.lacking(text) {
        let message = format!("`{}` does not name the {missing}", map.name("backend_name"));
        let remedy = format!("write %{{{missing}}} into it, so that no two backends share a name");
        context.error(at, message, remedy);
    }
    Some(text.to_owned())
}

fn server_options(context: &mut Context, pattern: &Pattern, map: &Map<'_, '_>) -> Option<Line> {
    let text = map.text(context, "server_options")?;
    let at = map.value_at("server_options");
    for word in placeholders(text).filter(|word| !pattern.allows(word)) {
        let message = format!("`%{{{}}}` in `{}`", shown(word), map.name("server_options"));
        let remedy = "write %{host}, %{port} or %{name}";
        context.error(at, message, remedy);
    }
    // Ruby's own escape for a percent sign.
    let text = text.replace("%%", "%");
    let line = Raw { text: &text, at };
    Some(line.line(context))
}

fn shared_frontend(
    context: &mut Context,
    around: &Around<'_>,
    pattern: &Pattern,
    map: &Map<'_, '_>,
) -> Vec<Line> {
    let lines = own_lines(context, pattern, map, "shared_frontend");
    if !around.shared_frontend && !lines.is_empty() {
        let message = format!(
            "`{}` without a top-level one: Synapse leaves the lines out",
            map.name("shared_frontend")
        );
        let remedy = "add `haproxy.shared_frontend` with its bind line";
        context.push(Kind::Dropped, map.at("shared_frontend"), message, remedy);
        return Vec::new();
    }
    lines::of(
        context,
        &lines,
        &map.name("shared_frontend"),
        Section::Frontend,
    )
}

/// Why each member must be a server of its own name, if it must: all slots of a template share their options, among
/// them one cookie.
pub(super) fn named(proxy: &Proxy) -> Option<String> {
    let because = |what: &str, line: &Line| match &line.place {
        Some(place) => format!("{what}: `{}` ({place})", line.text),
        None => format!("{what}: `{}`", line.text),
    };
    if let Some(line) = &proxy.server_options {
        if placeholders(&line.text).any(|word| matches!(word, "host" | "port" | "name")) {
            return Some(because("server options of each its own", line));
        }
        if let Some(word) = own_word(&line.text) {
            return Some(because(word, line));
        }
    }
    proxy.backend.iter().find_map(|line| {
        let first = line
            .text
            .split_ascii_whitespace()
            .next()
            .unwrap_or_default();
        let word = match first {
            "cookie" => Some("cookie"),
            "use-server" => Some("use-server"),
            "server" | "default-server" | "server-template" => own_word(&line.text),
            _ => None,
        };
        word.map(|word| because(word, line))
    })
}

/// A server option that ties a server to its name.
fn own_word(options: &str) -> Option<&'static str> {
    options
        .split_ascii_whitespace()
        .find_map(|word| match word {
            "cookie" => Some("cookie"),
            "track" => Some("track"),
            _ => None,
        })
}
