//! The part of the settings that follows SIGHUP, as those see it who look at it for every request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::SiteSettings;

/// The site in force, shared by all threads.
#[derive(Debug, Clone)]
pub struct LiveSettings(Arc<PublishedSettings>);

#[derive(Debug)]
struct PublishedSettings {
    /// Counts replacements.
    version: AtomicU64,
    site: Mutex<Arc<SiteSettings>>,
}

impl LiveSettings {
    /// The site that is in force until [`LiveSettings::replace`].
    #[must_use]
    pub fn new(site: Arc<SiteSettings>) -> Self {
        Self(Arc::new(PublishedSettings {
            version: AtomicU64::new(0),
            site: Mutex::new(site),
        }))
    }

    /// From now on another site is in force; requests under way keep theirs.
    pub fn replace(&self, site: Arc<SiteSettings>) {
        *self.0.site.lock().unwrap_or_else(PoisonError::into_inner) = site;
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// The site in force.
    #[must_use]
    pub fn get(&self) -> Arc<SiteSettings> {
        let site = self.0.site.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&site)
    }

    /// An eye on it for a connection or a thread.
    #[must_use]
    pub fn view(&self) -> SettingsView {
        // In this order a replacement in between is seen by the next look.
        let seen = self.0.version.load(Ordering::Acquire);
        SettingsView {
            live: self.clone(),
            seen,
            site: self.get(),
        }
    }
}

/// The site in force, at the cost of one atomic load while nothing changes.
#[derive(Debug, Clone)]
pub struct SettingsView {
    live: LiveSettings,
    seen: u64,
    site: Arc<SiteSettings>,
}

impl SettingsView {
    /// The site in force.
    pub fn site(&mut self) -> &Arc<SiteSettings> {
        let version = self.live.0.version.load(Ordering::Acquire);
        if version != self.seen {
            self.seen = version;
            self.site = self.live.get();
        }
        &self.site
    }
}
