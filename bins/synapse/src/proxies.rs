//! `proxies.json`: which job stands behind which HAProxy proxy, for programs that read HAProxy's statistics.
//!
//! Owns the format; `/status` shows the same. A proxy that was not made for a service is not in it.

use std::collections::BTreeMap;
use std::io;

use hostkit::dir::{Dir, Durability};
use serde::{Deserialize, Serialize};

use crate::model::Job;
use crate::render::Rendered;

/// The file's name, beside the state file.
pub const FILE: &str = "proxies.json";

/// Larger than any such file, in bytes.
const LIMIT: u64 = 16 << 20;

/// By the name of the proxy; a frontend and a backend of one name are one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proxies(pub BTreeMap<String, ProxyJob>);

/// What stands behind a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyJob {
    /// The service it was made for.
    pub service: String,
    /// HAProxy's mode.
    pub mode: Mode,
    /// The job key; `None` where the source of the service's members knows no jobs.
    pub job: Option<Job>,
}

/// HAProxy's mode of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// HTTP: statistics have responses by status.
    Http,
    /// TCP.
    Tcp,
}

impl Proxies {
    /// Those of a render; `job` knows the job of a service.
    #[must_use]
    pub fn of(rendered: &Rendered, job: impl Fn(&str) -> Option<Job>) -> Self {
        let entries = rendered.proxies().map(|proxy| {
            let entry = ProxyJob {
                service: proxy.service.to_string(),
                mode: if proxy.http { Mode::Http } else { Mode::Tcp },
                job: job(&proxy.service),
            };
            (proxy.name.clone(), entry)
        });
        Self(entries.collect())
    }

    /// Writes the file if that changes it. Says whether it did.
    ///
    /// # Errors
    /// As [`Dir::write_atomic`].
    pub fn write(&self, dir: &Dir) -> io::Result<bool> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        if dir.read(FILE, LIMIT).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        dir.write_atomic(FILE, &bytes, 0o644, Durability::Process)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Roster;
    use crate::render::tests::slotted;
    use crate::render::{Input, Renderer};
    use crate::settings::{Haproxy, Line};

    #[test]
    fn every_proxy_of_a_service_leads_to_its_job() {
        let mut web = slotted("web");
        let proxy = web.haproxy.as_mut().unwrap();
        proxy.backend_name = Some("web-servers".to_owned());
        proxy.backend.push(Line {
            text: "mode http".to_owned(),
            place: None,
        });
        let plain = slotted("plain");
        let roster = Roster::default();
        let inputs = [&web, &plain].map(|service| Input {
            service,
            roster: &roster,
            revision: 0,
        });
        let rendered = Renderer::new(&Haproxy::default()).render(&inputs);
        let job = Job {
            cluster: Some("east".to_owned()),
            role: "www-data".to_owned(),
            environment: "prod".to_owned(),
            name: "eightball".to_owned(),
        };
        let proxies = Proxies::of(&rendered, |service| (service == "web").then(|| job.clone()));
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(proxies.write(&dir).unwrap());
        assert!(!proxies.write(&dir).unwrap());
        let written = std::fs::read(temp.path().join(FILE)).unwrap();
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&written).unwrap(),
            serde_json::json!({
                "plain": {"service": "plain", "mode": "tcp", "job": null},
                "web": {"service": "web", "mode": "tcp", "job": job},
                "web-servers": {"service": "web", "mode": "http", "job": {
                    "cluster": "east", "role": "www-data", "environment": "prod", "name": "eightball",
                }},
            })
        );
        assert_eq!(
            serde_json::from_slice::<Proxies>(&written).unwrap(),
            proxies
        );
    }
}
