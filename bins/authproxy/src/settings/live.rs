//! The settings that SIGHUP replaces, read by every request without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::SiteSettings;

/// The current site settings, shared by all threads.
#[derive(Debug, Clone)]
pub(crate) struct LiveSettings(Arc<PublishedSettings>);

#[derive(Debug)]
struct PublishedSettings {
    /// Counts replacements.
    version: AtomicU64,
    site: Mutex<Arc<SiteSettings>>,
}

impl LiveSettings {
    /// Settings that are current until [`LiveSettings::replace`].
    #[must_use]
    pub(crate) fn new(site: Arc<SiteSettings>) -> Self {
        Self(Arc::new(PublishedSettings {
            version: AtomicU64::new(0),
            site: Mutex::new(site),
        }))
    }

    /// Replaces the settings; requests in progress keep theirs.
    pub(crate) fn replace(&self, site: Arc<SiteSettings>) {
        *self.0.site.lock().unwrap_or_else(PoisonError::into_inner) = site;
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// The current settings.
    #[must_use]
    pub(crate) fn get(&self) -> Arc<SiteSettings> {
        let site = self.0.site.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&site)
    }

    /// A view for a connection or a thread.
    #[must_use]
    pub(crate) fn view(&self) -> SettingsView {
        // In this order a replacement in between is found by the next call of `site`.
        let version = self.0.version.load(Ordering::Acquire);
        SettingsView {
            live: self.clone(),
            version,
            site: self.get(),
        }
    }
}

/// The current settings, at the cost of one atomic load while they do not change.
#[derive(Debug, Clone)]
pub(crate) struct SettingsView {
    live: LiveSettings,
    version: u64,
    site: Arc<SiteSettings>,
}

impl SettingsView {
    /// The current settings.
    pub(crate) fn site(&mut self) -> &Arc<SiteSettings> {
        let current = self.live.0.version.load(Ordering::Acquire);
        if current != self.version {
            self.version = current;
            self.site = self.live.get();
        }
        &self.site
    }
}
