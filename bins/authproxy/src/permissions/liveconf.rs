//! `--use-liveconf-aclserver`: permissions engines that a file names, followed as it changes.
//!
//! Owns the key `aclserver` of that file, a URL or a list of them. Its other keys are others'. Asking is `server`'s.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hostkit::file_watcher::{self, FileWatcher, SharedInotify};
use hostkit::{Exit, Failure, config};
use serde::Deserialize;
use url::Url;

use super::news::News;
use super::server::{DEADLINE, Servers};
use super::{BackendStatus, BackendUnavailable, PermissionsBackend};
use crate::grant::{BackendResponse, KeyHash};
use crate::request_error::PermissionsFailure;

/// A larger file is no configuration (bytes).
const LIMIT: u64 = 1 << 20;

/// The servers of a file; none before it has named any. Those of the last valid text stay when it breaks or goes.
#[derive(Debug)]
pub struct LiveconfBackend {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    servers: Option<Arc<Servers>>,
    urls: Vec<Url>,
    news: News,
}

#[derive(Deserialize)]
struct Text {
    aclserver: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl LiveconfBackend {
    /// Reads the file. That it is missing or wrong is logged and no error: it can be mended while this runs.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let liveconf = Self {
            path: path.to_owned(),
            state: Mutex::default(),
        };
        liveconf.reread();
        liveconf
    }

    /// Reads the file again whenever it changes, for ever.
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
        let (servers, known) = {
            let state = self.state();
            (state.servers.clone(), state.urls.clone())
        };
        // Without the lock: reading the certificate authorities takes a while.
        let read = read(&self.path).and_then(|urls| {
            if urls == known {
                return Ok(None);
            }
            let servers = Servers::like(servers.as_deref(), &urls, DEADLINE)?;
            Ok(Some((urls, Arc::new(servers))))
        });
        let mut state = self.state();
        match read {
            Ok(Some((urls, servers))) => {
                let shown: Vec<String> = servers.status().into_iter().map(|one| one.url).collect();
                let path = self.path.display();
                tracing::info!(servers = shown.join(" "), "{path} is in force");
                state.servers = Some(servers);
                state.urls = urls;
                state.news.taken();
            }
            Ok(None) => state.news.unchanged(&self.path),
            Err(failure) => state.news.refused(&failure),
        }
    }

    /// What is in force.
    #[must_use]
    pub fn status(&self) -> BackendStatus {
        let state = self.state();
        let servers = state.servers.as_ref();
        BackendStatus {
            file: Some(state.news.status(&self.path, state.urls.len(), None)),
            servers: servers.map(|servers| servers.status()).unwrap_or_default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermissionsBackend for LiveconfBackend {
    async fn look_up(&self, key: KeyHash) -> Result<BackendResponse, BackendUnavailable> {
        let servers = {
            let state = self.state();
            let trouble = state.news.trouble().unwrap_or_default();
            state.servers.clone().ok_or_else(|| {
                BackendUnavailable::new(PermissionsFailure::NotConfigured, trouble)
            })?
        };
        servers.look_up(key).await
    }
}

/// The servers that a file names.
///
/// # Errors
/// It cannot be read, is no YAML, or names none (exit 78).
fn read(path: &Path) -> Result<Vec<Url>, Failure> {
    let wrong = |what: String| Failure::new(Exit::CONFIG, what);
    let text = file_watcher::read_text(path, LIMIT).map_err(wrong)?;
    let parsed: Result<Option<Text>, _> = serde_saphyr::from_str(&text);
    let parsed = parsed.map_err(|error| config::explain(path, &error))?;
    let path = path.display();
    let texts = match parsed.and_then(|text| text.aclserver) {
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
        None => Vec::new(),
    };
    if texts.is_empty() {
        return Err(wrong(format!("{path} has no `aclserver`"))
            .remedy("name a permissions engine, or a list of them"));
    }
    let url = |text: &String| {
        let shown = hostkit::mask::mask_url(text);
        let url: Url = text
            .parse()
            .map_err(|error| wrong(format!("{path}: {shown:?} is no URL: {error}")))?;
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
    fn a_url_or_a_list_of_them_among_the_keys_of_others() {
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
    fn a_file_that_names_none_is_told_about() {
        for (text, expected) in [
            ("", "liveconf.yaml"),
            ("other: 1\n", "has no `aclserver`"),
            ("aclserver:\n", "has no `aclserver`"),
            ("aclserver: []\n", "has no `aclserver`"),
            ("aclserver: nowhere\n", "is no URL"),
            ("aclserver: {a: b}\n", ":1:"),
            ("aclserver: [\n", "liveconf.yaml:"),
        ] {
            let said = urls(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        let said = urls("aclserver: 'http://me:secret@:x/'\n").unwrap_err();
        assert!(!said.contains("secret"), "{said}");
    }

    #[test]
    fn the_servers_of_the_last_valid_text_stay() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("liveconf.yaml");
        let liveconf = LiveconfBackend::open(&path);
        let told = || {
            let status = liveconf.status();
            let file = status.file.unwrap();
            (
                status.servers.len(),
                file.loaded,
                file.refused,
                file.trouble.is_some(),
            )
        };
        assert_eq!(told(), (0, 0, 1, true), "missing");
        liveconf.reread();
        assert_eq!(told(), (0, 0, 1, true), "told once");
        std::fs::write(&path, "aclserver: [http://a, http://b]").unwrap();
        liveconf.reread();
        assert_eq!(told(), (2, 1, 1, false));
        let before = liveconf.state().servers.clone().unwrap();
        std::fs::write(&path, "other: 1").unwrap();
        liveconf.reread();
        assert_eq!(told(), (2, 1, 2, true));
        std::fs::write(&path, "aclserver: [http://a, http://b]").unwrap();
        liveconf.reread();
        assert_eq!(told(), (2, 1, 2, false));
        assert!(Arc::ptr_eq(
            &before,
            liveconf.state().servers.as_ref().unwrap()
        ));
        std::fs::write(&path, "aclserver: ftp://a").unwrap();
        liveconf.reread();
        assert_eq!(told(), (2, 1, 3, true));
    }
}
