//! What a declaration of keys is, and what is made of it: suggestions and the operator's reference. The declarations
//! themselves are in [`super::keys`].

use hostkit::suggestion::nearest;

use super::keys::SECTIONS;

/// The keys of one kind of map.
pub(super) struct Section {
    /// Where such maps stand, for people.
    pub(super) path: &'static str,
    /// What such a map is.
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What its value looks like.
    pub(super) shape: &'static str,
    /// What holds without it; empty for a key that has no default.
    pub(super) default: &'static str,
    /// What it says.
    pub(super) doc: &'static str,
    pub(super) origin: Origin,
}

/// Who reads a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Synapse has it.
    Synapse,
    /// Synapse has it; here it changes nothing.
    Unused,
    /// Only we have it.
    Ours,
}

impl Section {
    /// What to write in the place of an unknown key.
    pub(super) fn instead_of(&self, wrong: &str) -> String {
        let names = || self.keys.iter().map(|key| key.name);
        match nearest(wrong, names()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => {
                let elsewhere: Vec<&str> = SECTIONS
                    .iter()
                    .filter(|section| section.keys.iter().any(|key| key.name == wrong))
                    .map(|section| section.path)
                    .collect();
                if elsewhere.is_empty() {
                    format!("the keys are {}", names().collect::<Vec<_>>().join(", "))
                } else {
                    format!("it belongs to {}", elsewhere.join(" or "))
                }
            }
        }
    }
}

/// The reference of all keys, in Markdown: for the operator's page.
#[must_use]
pub fn reference() -> String {
    let mut page = String::new();
    for section in SECTIONS {
        page.push_str(&format!("### {}\n\n{}\n\n", section.path, section.doc));
        page.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let mark = match key.origin {
                Origin::Synapse => "",
                Origin::Unused => " Accepted; changes nothing.",
                Origin::Ours => " *(new)*",
            };
            let default = match key.default {
                "" => String::new(),
                default => format!("`{default}`"),
            };
            page.push_str(&format!(
                "| `{}` | {} | {default} | {}.{mark} |\n",
                key.name,
                key.shape.replace('|', "\\|"),
                key.doc.replace('|', "\\|"),
            ));
        }
        page.push('\n');
    }
    page
}
