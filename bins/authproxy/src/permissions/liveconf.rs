//! `--use-liveconf-aclserver`: permissions servers that a file names, reloaded on change.
//!
//! Owns the key `aclserver` of that file, a URL or a list of them; all other keys are ignored. `server` queries them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostkit::file_watcher::{self, FileWatcher, SharedInotify};
use hostkit::{Exit, Failure, config};
use serde::Deserialize;
use url::Url;

use super::load_tracker::LoadTracker;
use super::server::{DEADLINE, PermissionsServers};
use super::{BackendStatus, BackendUnavailable, PermissionsBackend};
use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;

const MAX_FILE_BYTES: u64 = 1 << 20;

/// The servers of the last valid text of a file.
#[derive(Debug)]
pub struct LiveconfBackend {
    path: PathBuf,
    state: Mutex<LiveconfState>,
}

#[derive(Debug, Default)]
struct LiveconfState {
    servers: Option<Arc<PermissionsServers>>,
    urls: Vec<Url>,
    loads: LoadTracker,
}

#[derive(Deserialize)]
struct LiveconfDocument {
    aclserver: Option<UrlOrList>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UrlOrList {
    Url(String),
    List(Vec<String>),
}

impl LiveconfBackend {
    /// Reads the file. A missing or invalid file is logged, but is not an error: it can be corrected later.
    pub fn open(path: &Path) -> Self {
        let liveconf = Self {
            path: path.to_owned(),
            state: Mutex::default(),
        };
        liveconf.reread();
        liveconf
    }

    /// Reloads the file whenever it changes.
    pub async fn follow(self: Arc<Self>) {
        let mut follow = FileWatcher::new(self.path.clone(), SharedInotify::default());
        loop {
            let liveconf = Arc::clone(&self);
            if follow.read(move |_| liveconf.reread()).await.is_none() {
                return;
            }
            follow.changed().await;
        }
    }

    fn reread(&self) {
        let (servers, current) = {
            let state = self.state();
            (state.servers.clone(), state.urls.clone())
        };
        // Without the lock: loading the certificate authorities takes a while.
        let read = read(&self.path).and_then(|urls| {
            if urls == current {
                return Ok(None);
            }
            let servers = PermissionsServers::with_previous(servers.as_deref(), &urls, DEADLINE)?;
            Ok(Some((urls, Arc::new(servers))))
        });
        let mut state = self.state();
        match read {
            Ok(Some((urls, servers))) => {
                let shown: Vec<String> = servers.status().into_iter().map(|one| one.url).collect();
                tracing::info!(
                    path = %self.path.display(),
                    servers = shown.join(" "),
                    "permissions servers loaded"
                );
                state.servers = Some(servers);
                state.urls = urls;
                state.loads.record_loaded();
            }
            Ok(None) => state.loads.record_unchanged(&self.path),
            Err(failure) => state.loads.record_rejected(&failure),
        }
    }

    pub fn status(&self) -> BackendStatus {
        let state = self.state();
        let servers = state.servers.as_ref();
        BackendStatus {
            file: Some(state.loads.status(&self.path, state.urls.len(), None)),
            servers: servers.map(|servers| servers.status()).unwrap_or_default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, LiveconfState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermissionsBackend for LiveconfBackend {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        let servers = {
            let state = self.state();
            let error = state.loads.error().unwrap_or_default();
            state
                .servers
                .clone()
                .ok_or_else(|| BackendUnavailable::new(PermissionsFailure::NotConfigured, error))?
        };
        servers.look_up(key).await
    }
}

/// The servers that a file names; at least one.
fn read(path: &Path) -> Result<Vec<Url>, Failure> {
    let invalid = |message: String| Failure::new(Exit::CONFIG, message);
    let text = file_watcher::read_text(path, MAX_FILE_BYTES).map_err(invalid)?;
    let parsed: Result<Option<LiveconfDocument>, _> = serde_saphyr::from_str(&text);
    let parsed = parsed.map_err(|error| config::explain(path, &error))?;
    let path = path.display();
    let texts = match parsed.and_then(|document| document.aclserver) {
        Some(UrlOrList::Url(text)) => vec![text],
        Some(UrlOrList::List(texts)) => texts,
        None => Vec::new(),
    };
    if texts.is_empty() {
        return Err(invalid(format!("missing `aclserver` in {path}"))
            .remedy("set it to the URL of a permissions server, or a list of URLs"));
    }
    let url = |text: &String| {
        let shown = hostkit::mask::mask_url(text);
        let url: Url = text
            .parse()
            .map_err(|error| invalid(format!("{path}: invalid URL {shown:?}: {error}")))?;
        Ok(url)
    };
    texts.iter().map(url).collect()
}

#[cfg(test)]
mod tests {
    use hostkit::Exit;

    use super::*;

    fn urls(text: &str) -> Result<Vec<String>, String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("liveconf.yaml");
        std::fs::write(&path, text).unwrap();
        match read(&path) {
            Ok(urls) => Ok(urls.iter().map(Url::to_string).collect()),
            Err(failure) => {
                assert_eq!(failure.exit(), Exit::CONFIG);
                Err(failure.to_string())
            }
        }
    }

    #[test]
    fn url_or_list_among_other_keys_is_read() {
        let one = vec!["http://a:81/".to_owned()];
        assert_eq!(
            urls("other: {x: [1]}\naclserver: http://a:81\n"),
            Ok(one.clone())
        );
        assert_eq!(urls("aclserver: [\"http://a:81/\"]\nmore: yes\n"), Ok(one));
        assert_eq!(
            urls("aclserver:\n- http://a/x\n- https://b\n")
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn file_without_valid_aclserver_is_rejected() {
        for (text, expected) in [
            ("", "liveconf.yaml"),
            ("other: 1\n", "missing `aclserver`"),
            ("aclserver:\n", "missing `aclserver`"),
            ("aclserver: []\n", "missing `aclserver`"),
            ("aclserver: nowhere\n", "invalid URL"),
            ("aclserver: {a: b}\n", ":1:"),
            ("aclserver: [\n", "liveconf.yaml:"),
        ] {
            let error = urls(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let error = urls("aclserver: 'http://me:secret@:x/'\n").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn invalid_change_keeps_servers_of_last_valid_text() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("liveconf.yaml");
        let liveconf = LiveconfBackend::open(&path);
        let summary = || {
            let status = liveconf.status();
            let file = status.file.unwrap();
            (
                status.servers.len(),
                file.loaded,
                file.rejected,
                file.error.is_some(),
            )
        };
        assert_eq!(summary(), (0, 0, 1, true), "missing");
        liveconf.reread();
        assert_eq!(summary(), (0, 0, 1, true), "counted once");
        std::fs::write(&path, "aclserver: [http://a, http://b]").unwrap();
        liveconf.reread();
        assert_eq!(summary(), (2, 1, 1, false));
        let before = liveconf.state().servers.clone().unwrap();
        std::fs::write(&path, "other: 1").unwrap();
        liveconf.reread();
        assert_eq!(summary(), (2, 1, 2, true));
        std::fs::write(&path, "aclserver: [http://a, http://b]").unwrap();
        liveconf.reread();
        assert_eq!(summary(), (2, 1, 2, false));
        assert!(Arc::ptr_eq(
            &before,
            liveconf.state().servers.as_ref().unwrap()
        ));
        std::fs::write(&path, "aclserver: ftp://a").unwrap();
        liveconf.reread();
        assert_eq!(summary(), (2, 1, 3, true));
    }
}
