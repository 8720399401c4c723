//! The renderer: settings and members in, `haproxy.cfg` out. Pure: it reads no file, no clock and no socket.
//!
//! The file is a list of pieces, one per service, which are kept from one render to the next: a change of one service of
//! a thousand writes a thousandth of the file anew. [`Rendered::structure`] is a hash of all that a running HAProxy takes
//! up only by a reload; who stands in which server slot is not in it.
//!
//! Nothing that a registry says can add a line or a directive: what is not safe is left out and found
//! ([`Rendered::findings`]), and so is a service whose proxies' names are not fit or not free.

mod head;
mod piece;
mod servers;
mod stanza;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use hostkit::hex;
use sha2::{Digest as _, Sha256};

use crate::membership::Roster;
use crate::settings::{Haproxy, Place, Service};

pub use head::{Injected, NOTICE};
pub use piece::Finding;
pub use servers::{MAX_SLOTS, server_name, slots_for, split_weight};
pub use stanza::{Kind, Membership, ProxyName};

use head::{Head, Kinds, MARK};
use piece::Piece;
use stanza::Stanza;

/// The section that all services share.
const SHARED: &str = "frontend shared-frontend";

/// The environment variable of HAProxy that says which structure it has loaded (`show env` of the runtime API).
pub const STRUCTURE_VARIABLE: &str = "HOSTKIT_STRUCTURE";

/// A service to write.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The service, with placeholders of patterns filled in; names are unique.
    pub service: &'a Service,
    /// Its servers: as many slots as the roster is long.
    pub roster: &'a Roster,
    /// A number that is another one whenever the service or the roster is.
    pub revision: u64,
}

/// Writes the file, and remembers what it wrote.
#[derive(Debug)]
pub struct Renderer {
    haproxy: Haproxy,
    head: Head,
    shared: Option<Arc<Piece>>,
    shared_findings: Vec<Finding>,
    written: HashMap<String, Written>,
}

/// What a service became at a revision: nothing when HAProxy has nothing of it, a finding when it cannot be written.
#[derive(Debug)]
struct Written {
    revision: u64,
    stanza: Result<Option<Arc<Stanza>>, Finding>,
}

impl Renderer {
    /// A renderer for these settings; others need another one.
    #[must_use]
    pub fn new(haproxy: &Haproxy) -> Self {
        let head = Head::new(haproxy);
        let mut shared_findings = Vec::new();
        let shared = haproxy.shared_frontend.as_ref().map(|lines| {
            let mut piece = Piece::of(None);
            piece.head("", None);
            piece.head(SHARED, None);
            piece.written(SHARED, lines, &mut shared_findings);
            if haproxy.inject {
                let http = head::mode(lines).unwrap_or(head.defaults.http);
                stanza::idle_close(&mut piece, lines, http, &head.defaults);
            }
            Arc::new(piece)
        });
        Self {
            haproxy: haproxy.clone(),
            head,
            shared,
            shared_findings,
            written: HashMap::new(),
        }
    }

    /// The file for these services, in their order. Those whose revision is that of the last render are not written
    /// again, and those that are not there any more are forgotten.
    #[must_use]
    pub fn render(&mut self, services: &[Input<'_>]) -> Rendered {
        let mut findings = self.head.findings.clone();
        findings.extend_from_slice(&self.shared_findings);
        let mut taken = self.head.taken.clone();
        if self.shared.is_some() {
            taken
                .entry("shared-frontend".to_owned())
                .or_default()
                .frontend = true;
        }
        let mut written = HashMap::with_capacity(services.len());
        let mut stanzas = Vec::with_capacity(services.len());
        for input in services {
            let kept = self.written.remove_entry(&input.service.name);
            let kept = kept.filter(|(_, written)| written.revision == input.revision);
            let (name, entry) = kept.unwrap_or_else(|| {
                let entry = Written {
                    revision: input.revision,
                    stanza: self.write(input),
                };
                (input.service.name.clone(), entry)
            });
            match &entry.stanza {
                Ok(None) => {}
                Ok(Some(stanza)) => match claim(&mut taken, stanza, input.service) {
                    None => {
                        findings.extend_from_slice(&stanza.findings);
                        stanzas.push(Arc::clone(stanza));
                    }
                    Some(finding) => findings.push(finding),
                },
                Err(finding) => findings.push(finding.clone()),
            }
            written.insert(name, entry);
        }
        self.written = written;
        self.assemble(stanzas, findings)
    }

    fn write(&self, input: &Input<'_>) -> Result<Option<Arc<Stanza>>, Finding> {
        let defaults = &self.head.defaults;
        let stanza = stanza::write(input.service, input.roster, &self.haproxy, defaults)?;
        Ok(stanza.map(Arc::new))
    }

    fn assemble(&self, stanzas: Vec<Arc<Stanza>>, findings: Vec<Finding>) -> Rendered {
        let mut hash = Sha256::new();
        for piece in [
            Some(&self.head.global),
            Some(&self.head.rest),
            self.shared.as_ref(),
        ] {
            let text = piece.map_or("", |piece| piece.text.as_str());
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        for stanza in &stanzas {
            hash.update(stanza.structure);
        }
        let structure = hex::encode(&hash.finalize());

        let mut pieces = Vec::with_capacity(stanzas.len() + 4);
        let mut injected = self.head.injected.clone();
        pieces.push(Arc::clone(&self.head.global));
        if self.haproxy.inject {
            let line = format!("setenv {STRUCTURE_VARIABLE} {structure}");
            let mut piece = Piece::of(None);
            piece.line(&format!("{line} {MARK}"), None);
            pieces.push(Arc::new(piece));
            injected.push(Injected {
                section: "global".to_owned(),
                line,
            });
        }
        if stanzas.iter().any(|stanza| stanza.retries) {
            injected.extend(stanza::RETRY.map(|line| Injected {
                section: "every backend in mode http without retry-on".to_owned(),
                line: line.to_owned(),
            }));
        }
        pieces.push(Arc::clone(&self.head.rest));
        pieces.extend(stanzas.iter().map(|stanza| Arc::clone(&stanza.own)));
        if let Some(shared) = &self.shared {
            pieces.push(Arc::clone(shared));
            pieces.extend(stanzas.iter().filter_map(|stanza| stanza.shared.clone()));
        }
        Rendered {
            structure,
            injected,
            findings,
            pieces,
            stanzas,
        }
    }
}

/// Takes the names of a service's proxies, or says who has one of them.
fn claim(
    taken: &mut BTreeMap<String, Kinds>,
    stanza: &Stanza,
    service: &Service,
) -> Option<Finding> {
    let clash = stanza.proxies.iter().find(|proxy| {
        taken
            .get(&proxy.name)
            .is_some_and(|kinds| match proxy.kind {
                Kind::Frontend => kinds.frontend,
                Kind::Backend => kinds.backend,
            })
    });
    if let Some(proxy) = clash {
        return Some(Finding {
            service: Some(Arc::clone(&proxy.service)),
            place: Some(service.place.clone()),
            text: format!(
                "left out: the name `{}` belongs to another service or to an extra section",
                proxy.name
            ),
        });
    }
    for proxy in &stanza.proxies {
        let kinds = taken.entry(proxy.name.clone()).or_default();
        kinds.frontend |= proxy.kind == Kind::Frontend;
        kinds.backend |= proxy.kind == Kind::Backend;
    }
    None
}

/// Where a line of the file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The service it was written for.
    pub service: Option<Arc<str>>,
    /// The line of the configuration behind it; that of the service where it has none of its own.
    pub place: Option<Place>,
}

/// The file, in pieces that it shares with the renderer.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// SHA-256, in hex, of what a running HAProxy takes up only by a reload.
    pub structure: String,
    /// What was added for hitless operation.
    pub injected: Vec<Injected>,
    /// What was left out, and what is missing.
    pub findings: Vec<Finding>,
    pieces: Vec<Arc<Piece>>,
    stanzas: Vec<Arc<Stanza>>,
}

impl Rendered {
    /// Writes the file. Unbuffered, one write per service.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl io::Write) -> io::Result<()> {
        self.chunks()
            .try_for_each(|text| out.write_all(text.as_bytes()))
    }

    /// The file, piece by piece; each ends in a line feed.
    pub fn chunks(&self) -> impl Iterator<Item = &str> + Clone {
        self.pieces.iter().map(|piece| piece.text.as_str())
    }

    /// The file as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.chunks().collect()
    }

    /// Where a line of the file (from 1, as HAProxy's alerts count) comes from; `None` beyond its end.
    #[must_use]
    pub fn origin(&self, line: usize) -> Option<Origin> {
        let mut line = line.checked_sub(1)?;
        for piece in &self.pieces {
            if line < piece.lines {
                return Some(Origin {
                    service: piece.service.clone(),
                    place: piece.place(line).cloned(),
                });
            }
            line -= piece.lines;
        }
        None
    }

    /// The proxies that were made for services, in the order of the file.
    pub fn proxies(&self) -> impl Iterator<Item = &ProxyName> {
        self.stanzas.iter().flat_map(|stanza| &stanza.proxies)
    }

    /// The services that are in the file, each with how its members change.
    pub fn services(&self) -> impl Iterator<Item = (&str, Membership)> {
        self.stanzas
            .iter()
            .filter_map(|stanza| Some((stanza.own.service.as_deref()?, stanza.membership)))
    }

    /// What a service's own sections hold, for a difference between two renders.
    #[must_use]
    pub fn stanza(&self, service: &str) -> Option<&str> {
        let found = self
            .stanzas
            .iter()
            .find(|stanza| stanza.own.service.as_deref() == Some(service));
        found.map(|stanza| stanza.own.text.as_str())
    }
}

#[cfg(test)]
pub(crate) mod tests;
