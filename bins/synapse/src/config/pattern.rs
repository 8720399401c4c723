//! Services whose discovery path is a pattern: `%{role}`, `%{environment}` and `%{job}` in names and lines.

use super::context::Context;
use super::lines::Raw;
use super::tree::At;
use crate::settings::Discovery;

/// What the last three components of a path are called, in their order (Aurora's announcer).
const WORDS: [&str; 3] = ["role", "environment", "job"];

const ALL: &str = "%{role}, %{environment} and %{job}";

/// Whether every match of a service's path is a service of its own.
pub(super) struct Pattern {
    per_match: bool,
    /// The placeholders that tell two matches apart.
    needed: Vec<&'static str>,
}

impl Pattern {
    /// What `name` and `discovery` make of the service.
    pub(super) fn of(context: &mut Context, name: &str, at: At, discovery: &Discovery) -> Self {
        let mut pattern = Self {
            per_match: false,
            needed: Vec::new(),
        };
        for word in placeholders(name) {
            pattern.per_match = true;
            if !WORDS.contains(&word) {
                let message = format!("`%{{{word}}}` in the name of a service");
                context.error(at, message, format!("a name may hold {ALL}"));
            }
        }
        if !pattern.per_match {
            return pattern;
        }
        let parts: Vec<&str> = match discovery {
            Discovery::Zookeeper(zookeeper) => zookeeper.path.split('/').skip(1).collect(),
            _ => Vec::new(),
        };
        let (root, job) = parts.split_at(parts.len().saturating_sub(WORDS.len()));
        if job.len() < WORDS.len() || root.contains(&"*") || !job.contains(&"*") {
            let message = format!("`{name}` is a service per match, and its path is not a pattern");
            let remedy = "write `method: zookeeper` and a path like /aurora/*/prod/*, which ends in role, environment and job";
            context.error(at, message, remedy);
        }
        for (part, word) in job.iter().zip(WORDS) {
            if *part == "*" {
                pattern.needed.push(word);
            }
        }
        if let Some(missing) = pattern.lacking(name) {
            let message = format!("the path has any {missing}, and `{name}` does not name it");
            let remedy =
                format!("write %{{{missing}}} into the name, so that no two services share one");
            context.error(at, message, remedy);
        }
        pattern
    }

    pub(super) fn per_match(&self) -> bool {
        self.per_match
    }

    /// A placeholder that two matches need and `text` does not have.
    pub(super) fn lacking(&self, text: &str) -> Option<&'static str> {
        let has = |word: &str| placeholders(text).any(|known| known == word);
        self.needed.iter().copied().find(|word| !has(word))
    }

    /// Reports a line with a placeholder that nothing would fill.
    pub(super) fn check(&self, context: &mut Context, line: &Raw<'_>) {
        if self.per_match {
            return;
        }
        if let Some(word) = placeholders(line.text).find(|word| WORDS.contains(word)) {
            let message = format!("`%{{{word}}}` in a service that is not one per match");
            let remedy = format!("only where the service's name holds {ALL} can its lines do so");
            context.error(line.at, message, remedy);
        }
    }

    /// The words that server options may hold in `%{..}`.
    pub(super) fn allows(&self, word: &str) -> bool {
        matches!(word, "port" | "host" | "name") || self.per_match && WORDS.contains(&word)
    }
}

/// What stands in each `%{..}` of a text.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split("%{")
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(word, _)| word))
}

/// The text without its `%{..}`.
pub(super) fn without_placeholders(text: &str) -> String {
    let mut bare = String::new();
    for (number, part) in text.split("%{").enumerate() {
        match part.split_once('}') {
            // Any letter will do in the place of what is filled in later.
            Some((_, rest)) if number > 0 => {
                bare.push('x');
                bare.push_str(rest);
            }
            _ => bare.push_str(part),
        }
    }
    bare
}
