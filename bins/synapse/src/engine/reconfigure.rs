//! A new configuration while running: what is new is followed, what is gone is dropped, what is the same goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hostkit::clock;
use sd_notify::NotifyState;

use super::Engine;
use super::news;
use super::runtime::Link;
use crate::config;
use crate::journal::{Entry, Kind};
use crate::render::Renderer;
use crate::settings::{Service, Settings};
use crate::watcher::expand;

/// Lies beside the state file while somebody accepts a configuration by its hash: `synapse reload --force`.
pub(crate) const ACCEPT: &str = "accept";

impl Engine {
    /// Reads the configuration again. A bad one is refused, logged and counted, and the old one stays in force.
    pub(super) async fn reconfigure(&mut self) {
        // systemd wants to know when the reload began (`Type=notify-reload`).
        let mut begun = vec![NotifyState::Reloading];
        begun.extend(NotifyState::monotonic_usec_now());
        let _ = sd_notify::notify(&begun);
        let mut sources = self.sources.clone();
        let lenient = self.lenient;
        let loaded = tokio::task::spawn_blocking(move || {
            sources.clusters = config::shared_clusters()?;
            config::load(&sources, lenient)
        })
        .await;
        let refusal = match loaded {
            Ok(Ok((settings, findings))) => {
                for finding in findings {
                    tracing::warn!("{finding}");
                }
                let hash = settings.hash.clone();
                let refusal = self.accept(settings).err();
                refusal.map(|why| (hash, why))
            }
            Ok(Err(failure)) => {
                let causes = failure.causes();
                let why = if causes.is_empty() {
                    failure.to_string()
                } else {
                    format!("{failure}; {}", causes.join("; "))
                };
                Some((String::new(), why))
            }
            Err(error) => Some((String::new(), error.to_string())),
        };
        self.told.reads += 1;
        self.told.refused.clone_from(&refusal);
        self.files.mark(clock::since_boot());
        match refusal {
            None => {
                self.metrics.config_reloads.with(&["ok"]).inc();
                tracing::info!(
                    services = self.settings.services.len(),
                    "configuration loaded"
                );
                self.note(Kind::Config, |entry| Entry {
                    cause: Some("loaded".to_owned()),
                    ..entry
                });
            }
            Some((_, why)) => {
                self.metrics.config_reloads.with(&["refused"]).inc();
                self.note(Kind::Config, |entry| Entry {
                    cause: Some("refused".to_owned()),
                    detail: Some(why.clone()),
                    ..entry
                });
                self.trouble(format!(
                    "the new configuration is refused, the old one stays in force: {why}"
                ));
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    fn accept(&mut self, settings: Settings) -> Result<(), String> {
        let old: Vec<&str> = self
            .settings
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        if settings.state_file != self.settings.state_file {
            return Err("state_file_path cannot change while synapse runs: restart it".to_owned());
        }
        if let Some(why) = removes_too_much(&old, &settings) {
            let accept = super::beside(&settings, ACCEPT);
            let accepted = std::fs::read_to_string(&accept).unwrap_or_default();
            if accepted.trim() != settings.hash {
                return Err(format!(
                    "{why}: if that is meant, run `synapse reload --force`"
                ));
            }
            // It has served its purpose; another configuration needs another word.
            let _ = std::fs::remove_file(&accept);
        }
        self.apply(settings);
        Ok(())
    }

    /// Follows these settings instead.
    pub(super) fn apply(&mut self, settings: Settings) {
        let now = clock::since_boot();
        let settings = Arc::new(settings);
        let old = std::mem::replace(&mut self.settings, Arc::clone(&settings));
        if old.haproxy != settings.haproxy {
            self.renderer = Renderer::new(&settings.haproxy);
            if old.haproxy.sockets != settings.haproxy.sockets
                || old.haproxy.do_socket != settings.haproxy.do_socket
            {
                self.links = Link::all(&settings.haproxy);
            }
        }
        self.context.clusters.clone_from(&settings.clusters);
        self.guard.configure(settings.guard.clone());
        self.reopen(Some(&old));
        let wanted: BTreeMap<&str, &Service> = settings
            .services
            .iter()
            .map(|service| (service.name.as_str(), &**service))
            .collect();
        let gone: Vec<String> = self
            .entries
            .keys()
            .filter(|name| !wanted.contains_key(name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            self.entries.remove(&name);
            let of_entry: Vec<String> = self
                .tracked
                .values()
                .filter(|tracked| tracked.entry == name)
                .map(|tracked| tracked.service.name.clone())
                .collect();
            for service in of_entry {
                self.drop_service(&service);
            }
        }
        let mut again = BTreeSet::new();
        for service in &settings.services {
            match self.entries.get_mut(&service.name) {
                Some(entry) if entry.follows(service) && old.clusters == settings.clusters => {
                    entry.service = Arc::clone(service);
                }
                _ => {
                    let entry = news::Entry::new(Arc::clone(service), &self.context, &self.bell);
                    self.entries.insert(service.name.clone(), entry);
                }
            }
            self.introduce(service);
            again.insert(service.name.clone());
        }
        self.structure.try_again();
        self.structure.suspect("configuration");
        self.take_news(now, &again);
        self.files.mark(now);
    }

    /// Makes a configured service known before anything was found for it: with what was last known good.
    pub(super) fn introduce(&mut self, service: &Arc<Service>) {
        let now = clock::since_boot();
        if expand::many(service) {
            return;
        }
        if self.tracked.contains_key(&service.name) {
            let service = self.as_generated(Arc::clone(service), None);
            if let Some(tracked) = self.tracked.get_mut(&service.name) {
                tracked.reconfigure(service);
            }
            return;
        }
        let kept = self.state.services.remove(&service.name);
        let text = kept
            .as_ref()
            .and_then(|kept| kept.generator_config.as_deref());
        let generated = self.as_generated(Arc::clone(service), text);
        let mut tracked = super::Tracked::new(generated, service.name.clone());
        if let Some(kept) = &kept {
            tracked.restore(kept, now);
        }
        self.remember(&tracked, now);
        self.tracked.insert(service.name.clone(), tracked);
        self.mark(&service.name, now);
    }

    /// A service of the file as its registry has it.
    pub(super) fn as_generated(&mut self, local: Arc<Service>, text: Option<&str>) -> Arc<Service> {
        let (settings, tracked) = (&self.settings, &self.tracked);
        self.generated
            .service(settings, tracked, self.lenient, local, text)
    }

    /// Drops a service that is configured no longer.
    pub(super) fn drop_service(&mut self, name: &str) {
        if let Some(tracked) = self.tracked.remove(name) {
            let mut kept = tracked.state();
            kept.unconfigured_ms = None;
            kept.generator_config = self.generated.text(name);
            self.state.services.insert(name.to_owned(), Arc::new(kept));
        }
        self.by_name.remove(name);
        self.guard.forget(name);
        self.generated.forget(name);
        self.prober.aim(name, BTreeMap::new());
        self.told.rejects.remove(name);
        self.metrics.forget_service(name);
        self.metrics.forget_source(name);
        self.structure.suspect("service removed");
        self.files.mark(clock::since_boot());
    }
}

/// Why a configuration removes more of the services `old` than its own limit allows; `None` when it does not.
pub(super) fn removes_too_much(old: &[&str], settings: &Settings) -> Option<String> {
    let stays = |name: &&&str| {
        settings
            .services
            .iter()
            .any(|service| service.name == **name)
    };
    let removed = old.len() - old.iter().filter(stays).count();
    let limit = usize::from(settings.max_removed_services);
    // Of a few services one may always go.
    if removed <= 1 || removed * 100 <= old.len() * limit {
        return None;
    }
    Some(format!(
        "it removes {removed} of {} services, more than max_removed_services ({limit} %)",
        old.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(names: &[&str]) -> Settings {
        let service = |name: &&str| crate::watcher::testing::service(name);
        Settings {
            services: names.iter().map(|name| Arc::new(service(name))).collect(),
            max_removed_services: 25,
            ..Settings::default()
        }
    }

    #[test]
    fn a_few_services_may_go_and_many_may_not() {
        let old = ["a", "b", "c", "d", "e", "f", "g", "h"];
        assert_eq!(removes_too_much(&old, &settings(&old)), None);
        assert_eq!(removes_too_much(&old, &settings(&old[2..])), None);
        let why = removes_too_much(&old, &settings(&old[3..])).unwrap();
        assert!(why.contains("3 of 8"), "{why}");
        assert!(removes_too_much(&old, &settings(&["x"])).is_some());
        assert_eq!(
            removes_too_much(&["a"], &settings(&["b"])),
            None,
            "the only one may be replaced"
        );
        assert_eq!(removes_too_much(&[], &settings(&["b"])), None);
    }
}
