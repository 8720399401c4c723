//! Services as registries have them: the last generator configuration that each registry said, and what it makes of the
//! service in the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Tracked;
use crate::config;
use crate::settings::{Service, Settings};

/// What registries say about how services are written.
#[derive(Debug, Default)]
pub(super) struct Generated(BTreeMap<String, Known>);

#[derive(Debug)]
struct Known {
    /// What the registry said last.
    text: String,
    /// The service as the file has it.
    local: Arc<Service>,
    /// What both together made that was right.
    service: Arc<Service>,
    /// The text that `service` comes from.
    of: Option<String>,
    /// What is wrong with `text`.
    trouble: Option<String>,
}

impl Generated {
    /// `local` as the registry has it. Without a `text` that is what it said last: a znode that is empty or gone
    /// says nothing, and only another text, of which `{}` is one, takes it back. A wrong one leaves the service as it was.
    pub(super) fn service(
        &mut self,
        settings: &Settings,
        tracked: &BTreeMap<String, Tracked>,
        lenient: bool,
        local: Arc<Service>,
        text: Option<&str>,
    ) -> Arc<Service> {
        let known = self.0.get(&local.name);
        let Some(text) = text.or(known.map(|known| known.text.as_str())) else {
            return local;
        };
        let same = known.filter(|known| known.local == local);
        if let Some(known) = same.filter(|known| known.of.as_deref() == Some(text)) {
            return Arc::clone(&known.service);
        }
        let (mut service, mut of) = same.map_or((Arc::clone(&local), None), |known| {
            (Arc::clone(&known.service), known.of.clone())
        });
        let before = known.and_then(|known| known.trouble.clone());
        let others = tracked.values().map(|tracked| &tracked.service);
        let trouble = match config::generated(settings, &local, others, text, lenient) {
            Ok((good, findings)) => {
                for finding in findings {
                    tracing::warn!(service = local.name, "{finding}");
                }
                (service, of) = (Arc::new(good), Some(text.to_owned()));
                None
            }
            Err(failure) => Some(format!(
                "what the registry says about it is wrong, so it stays as it is: {failure}"
            )),
        };
        if let Some(trouble) = trouble.as_ref().filter(|now| before.as_ref() != Some(*now)) {
            tracing::warn!(service = local.name, "{trouble}");
        }
        let known = Known {
            text: text.to_owned(),
            local,
            service: Arc::clone(&service),
            of,
            trouble,
        };
        self.0.insert(service.name.clone(), known);
        service
    }

    /// What is wrong with what the registry says about a service.
    pub(super) fn trouble(&self, service: &str) -> Option<&str> {
        self.0.get(service)?.trouble.as_deref()
    }

    /// What to remember of it over a restart.
    pub(super) fn text(&self, service: &str) -> Option<String> {
        Some(self.0.get(service)?.text.clone())
    }

    /// Forgets a service that is no more.
    pub(super) fn forget(&mut self, service: &str) {
        self.0.remove(service);
    }
}
