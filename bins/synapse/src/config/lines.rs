//! Lines for HAProxy's configuration: read from lists, and given to the section that takes their keyword.

use super::context::{Context, Kind, Map};
use super::tree::{At, Node, Style, Value};
use crate::keywords::{self, Keyword, Lookup, Section};
use crate::settings::Line;

/// A line and where it stands, before it is a [`Line`].
pub(super) struct Raw<'t> {
    pub(super) text: &'t str,
    pub(super) at: At,
}

impl Raw<'_> {
    pub(super) fn line(&self, context: &Context) -> Line {
        Line {
            text: self.text.to_owned(),
            place: Some(context.place(self.at)),
        }
    }
}

/// The lines under a key: a list of texts, of which one may hold several lines.
pub(super) fn read<'t>(
    context: &mut Context,
    map: &Map<'t, '_>,
    key: &'static str,
) -> Vec<Raw<'t>> {
    let mut lines = Vec::new();
    let name = map.name(key);
    for node in map.list(context, key) {
        split(context, &name, node, &mut lines);
    }
    lines
}

/// The same for a list that is already at hand.
pub(super) fn read_list<'t>(context: &mut Context, name: &str, node: &'t Node<'_>) -> Vec<Raw<'t>> {
    let mut lines = Vec::new();
    match &node.value {
        Value::List(items) => {
            for item in items {
                split(context, name, item, &mut lines);
            }
        }
        _ if node.is_null() => {}
        _ => {
            let message = format!("`{name}` is {}, not a list", node.kind());
            context.error(node.at, message, "write a list of lines");
        }
    }
    lines
}

fn split<'t>(context: &mut Context, name: &str, node: &'t Node<'_>, lines: &mut Vec<Raw<'t>>) {
    let Value::Scalar(text, style) = &node.value else {
        let message = format!("a line of `{name}` is {}", node.kind());
        let remedy = "write it in quotes: a colon followed by a space makes a map of it";
        context.error(node.at, message, remedy);
        return;
    };
    // A literal block's place is that of its first line with anything in it.
    let blank = text.lines().take_while(|line| line.is_empty()).count();
    for (number, line) in text.lines().enumerate().skip(blank) {
        let mut at = node.at;
        if *style == Style::Literal {
            at.line = at
                .line
                .saturating_add(u32::try_from(number - blank).unwrap_or(u32::MAX));
        }
        if line.contains(|c: char| c.is_control() && c != '\t') {
            let message = format!("a line of `{name}` holds a control character");
            context.error(at, message, "take it out");
            continue;
        }
        lines.push(Raw {
            text: line.trim(),
            at,
        });
    }
}

/// Whether HAProxy skips the line.
pub(super) fn is_comment(line: &str) -> bool {
    line.is_empty() || line.starts_with('#')
}

/// Lines of `defaults`, which Synapse copies whatever they say.
pub(super) fn defaults(context: &mut Context, lines: &[Raw<'_>]) -> Vec<Line> {
    for line in lines {
        // `.if` and the like are HAProxy's own conditions.
        if !is_comment(line.text) && !line.text.starts_with('.') {
            check(
                context,
                line,
                "haproxy.defaults",
                &[Section::Defaults],
                Kind::Refused,
            );
        }
    }
    lines.iter().map(|line| line.line(context)).collect()
}

/// The lines that a frontend or a backend takes; others are dropped, as Synapse does.
pub(super) fn of(
    context: &mut Context,
    lines: &[Raw<'_>],
    name: &str,
    section: Section,
) -> Vec<Line> {
    let mut taken = Vec::new();
    for line in lines {
        if !is_comment(line.text) && check(context, line, name, &[section], Kind::Dropped).is_some()
        {
            taken.push(line.line(context));
        }
    }
    taken
}

/// `listen` lines: for the frontend, and for the backend.
pub(super) fn listen(
    context: &mut Context,
    lines: &[Raw<'_>],
    name: &str,
) -> (Vec<Line>, Vec<Line>) {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    for line in lines.iter().filter(|line| !is_comment(line.text)) {
        let both = [Section::Frontend, Section::Backend];
        if let Some(keyword) = check(context, line, name, &both, Kind::Dropped) {
            for (section, side) in both.into_iter().zip([&mut front, &mut back]) {
                if keyword.fits(section) {
                    side.push(line.line(context));
                }
            }
        }
    }
    (front, back)
}

/// The line's keyword, if one of the sections takes it.
fn check(
    context: &mut Context,
    line: &Raw<'_>,
    name: &str,
    sections: &[Section],
    kind: Kind,
) -> Option<Keyword> {
    let text = crate::model::shown(line.text);
    let fate = match kind {
        Kind::Dropped => "Synapse drops the line",
        _ => "Synapse copies the line and HAProxy refuses it",
    };
    match keywords::find(line.text) {
        Lookup::Known(keyword) if sections.iter().any(|section| keyword.fits(*section)) => {
            if let Some(why) = keyword.leaving() {
                let message = format!("`{}` in `{name}`", keyword.name);
                context.push(Kind::Note, line.at, message, why);
            }
            Some(keyword)
        }
        Lookup::Known(keyword) => {
            let takers: Vec<&str> = [Section::Defaults, Section::Frontend, Section::Backend]
                .into_iter()
                .filter(|section| keyword.fits(*section))
                .map(Section::word)
                .collect();
            let message = format!("`{text}` in `{name}`: {fate}");
            let remedy = format!("`{}` stands in {}", keyword.name, takers.join(", "));
            context.push(kind, line.at, message, remedy);
            None
        }
        Lookup::NoInverse(keyword) => {
            let message = format!("`{text}` in `{name}`: HAProxy refuses it");
            let remedy = format!("`{}` cannot be negated", keyword.name);
            context.push(kind, line.at, message, remedy);
            None
        }
        Lookup::Gone(version, remedy) => {
            let message = format!("`{text}` in `{name}`: HAProxy {version} took it away");
            context.push(kind, line.at, message, remedy);
            None
        }
        Lookup::Unknown(nearest) => {
            let message = format!("`{text}` in `{name}`: {fate}");
            let remedy = match nearest {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => "it begins with no keyword of HAProxy".to_owned(),
            };
            context.push(kind, line.at, message, remedy);
            None
        }
    }
}
