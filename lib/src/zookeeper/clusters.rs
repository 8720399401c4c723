//! Cluster names. The ZooKeeper path of a job does not contain its cluster, so every tool reads the names from one
//! file, `/etc/hostkit/clusters.yaml`.
//!
//! ```yaml
//! clusters:
//! - name: east
//!   hosts: [zk1.east:2181, zk2.east:2181, zk3.east:2181]
//!   root: /aurora                          # the default
//!   digest_file: /etc/hostkit/zookeeper.digest
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, Deserializer, Error as _, SeqAccess, Visitor};

use super::{Ensemble, path_pattern};
use crate::{Exit, Failure, config};

/// Aurora's default root path.
const DEFAULT_ROOT: &str = "/aurora";

const MAX_DIGEST_BYTES: u64 = 4096;

/// A cluster's name is a metric tag and a part of job keys.
const MAX_NAME_LENGTH: usize = 64;

/// The configured clusters, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuroraClusters(Vec<AuroraCluster>);

/// A name for the jobs below a root path of an ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuroraCluster {
    /// The first part of job keys.
    pub name: String,
    /// The ensemble in which its jobs are announced, with the credentials to read them.
    pub ensemble: Ensemble,
    /// The parent of `role/environment/job` (default `/aurora`).
    pub root: String,
}

/// `cluster/role/environment/job`, as in Aurora's client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    cluster: String,
    role: String,
    environment: String,
    job: String,
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            role,
            environment,
            job,
        } = self;
        write!(f, "{cluster}/{role}/{environment}/{job}")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClustersFile {
    #[serde(default)]
    clusters: AuroraClusters,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterEntry {
    name: String,
    hosts: Vec<String>,
    root: Option<String>,
    chroot: Option<String>,
    digest: Option<String>,
    digest_file: Option<PathBuf>,
}

impl AuroraClusters {
    /// Reads `/etc/hostkit/clusters.yaml` and its drop-ins, or `explicit` instead. Without a file there are no
    /// clusters.
    ///
    /// # Errors
    /// A file is unreadable or invalid (exit 78); the message names the file or the cluster.
    pub fn load(explicit: Option<&Path>) -> Result<Self, Failure> {
        let raw: ClustersFile = config::load("clusters", explicit, None)?;
        Ok(raw.clusters)
    }

    /// Iterates over the clusters.
    pub fn iter(&self) -> std::slice::Iter<'_, AuroraCluster> {
        self.0.iter()
    }

    /// The job key of a path; `None` unless a cluster is configured for its ensemble and root.
    #[must_use]
    pub fn job(&self, ensemble: &Ensemble, path: &str) -> Option<JobKey> {
        let of_ensemble = self
            .iter()
            .filter(|cluster| cluster.ensemble.is_same_ensemble(ensemble));
        of_ensemble.filter_map(|cluster| cluster.job(path)).next()
    }
}

/// Validated during deserialization, so that an error names file and line.
impl<'de> Deserialize<'de> for AuroraClusters {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ClustersVisitor;
        impl<'de> Visitor<'de> for ClustersVisitor {
            type Value = AuroraClusters;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of clusters")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AuroraClusters, A::Error> {
                let mut clusters: Vec<AuroraCluster> = Vec::new();
                while let Some(cluster) = list.next_element::<AuroraCluster>()? {
                    if let Some(why) = clusters.iter().find_map(|known| cluster.conflict(known)) {
                        return Err(A::Error::custom(config_error(&cluster.name, &why)));
                    }
                    clusters.push(cluster);
                }
                Ok(AuroraClusters(clusters))
            }
            fn visit_unit<E: de::Error>(self) -> Result<AuroraClusters, E> {
                Ok(AuroraClusters::default())
            }
        }
        from.deserialize_any(ClustersVisitor)
    }
}

impl<'de> Deserialize<'de> for AuroraCluster {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        ClusterEntry::deserialize(from)?
            .validate()
            .map_err(|failure| {
                let causes = failure.causes().into_iter();
                let texts: Vec<String> =
                    std::iter::once(failure.to_string()).chain(causes).collect();
                D::Error::custom(texts.join(": "))
            })
    }
}

impl AuroraCluster {
    /// The reason why the two cannot both be configured.
    fn conflict(&self, other: &Self) -> Option<String> {
        if self.name == other.name {
            return Some("is defined twice".to_owned());
        }
        let same = self.root == other.root && self.ensemble == other.ensemble;
        same.then(|| format!("has the ensemble and the root of cluster `{}`", other.name))
    }

    /// The job key of a path of the form `<root>/<role>/<environment>/<job>`.
    #[must_use]
    pub fn job(&self, path: &str) -> Option<JobKey> {
        let root = if self.root == "/" { "" } else { &self.root };
        let rest = path.strip_prefix(root)?.strip_prefix('/')?;
        let mut names = rest.split('/').map(str::to_owned);
        let key = JobKey {
            cluster: self.name.clone(),
            role: names.next()?,
            environment: names.next()?,
            job: names.next()?,
        };
        let empty = [&key.role, &key.environment, &key.job].contains(&&String::new());
        (names.next().is_none() && !empty).then_some(key)
    }
}

impl ClusterEntry {
    fn validate(self) -> Result<AuroraCluster, Failure> {
        let name = self.name;
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME_LENGTH || !name.bytes().all(is_allowed) {
            return Err(config_error(&name, "has an invalid name")
                .remedy("use 1 to 64 letters, digits, `-`, `_` and `.`"));
        }
        let root = self.root.unwrap_or_else(|| DEFAULT_ROOT.to_owned());
        if root != "/" {
            path_pattern::validate_path(&root).map_err(|why| {
                config_error(
                    &name,
                    &format!("has an invalid root `{}`: {why}", root.escape_debug()),
                )
            })?;
        }
        let digest = match (self.digest, self.digest_file) {
            (Some(_), Some(_)) => {
                return Err(
                    config_error(&name, "has both `digest` and `digest_file`").remedy("keep one")
                );
            }
            (digest, None) => digest,
            (None, Some(file)) => Some(read_digest(&name, &file)?),
        };
        let ensemble = Ensemble::new(self.hosts, self.chroot.as_deref(), digest.as_deref())
            .map_err(|failure| {
                config_error(&name, "has an invalid ensemble").because(failure.to_string())
            })?;
        Ok(AuroraCluster {
            name,
            ensemble,
            root,
        })
    }
}

fn read_digest(name: &str, file: &Path) -> Result<String, Failure> {
    let unreadable = |error| {
        let why = format!("has an unreadable digest_file {}", file.display());
        config_error(name, &why).because(error)
    };
    let text = crate::file::read(file, MAX_DIGEST_BYTES).map_err(unreadable)?;
    let text = String::from_utf8(text).map_err(|error| unreadable(io::Error::other(error)))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn config_error(name: &str, why: &str) -> Failure {
    Failure::new(
        Exit::CONFIG,
        format!("cluster `{}` {why}", name.escape_debug()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<AuroraClusters, Failure> {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("clusters.yaml");
        std::fs::write(&file, text).unwrap();
        AuroraClusters::load(Some(&file))
    }

    #[test]
    fn path_of_a_configured_cluster_has_a_job_key() {
        let clusters = load(
            "clusters:\n\
             - {name: east, hosts: [zk2, 'zk1:2181']}\n\
             - {name: east-test, hosts: [zk1, zk2], root: /test/aurora, digest: 'me:secret'}\n\
             - {name: west, hosts: [zk9], chroot: /site, root: /}\n",
        )
        .unwrap();
        let east = Ensemble::new(["zk1", "zk2"], None, None).unwrap();
        let west = Ensemble::new(["zk9"], Some("/site"), None).unwrap();
        let key = |ensemble, path| clusters.job(ensemble, path).map(|key| key.to_string());
        assert_eq!(
            key(&east, "/aurora/www/prod/eightball").as_deref(),
            Some("east/www/prod/eightball")
        );
        assert_eq!(
            key(&east, "/test/aurora/www/prod/eightball").as_deref(),
            Some("east-test/www/prod/eightball")
        );
        assert_eq!(
            key(&west, "/www/prod/j").as_deref(),
            Some("west/www/prod/j")
        );
        for path in [
            "/aurora/www/prod",
            "/aurora/www/prod/j/k",
            "/aurorax/a/b/c",
            "/aurora//b/c",
        ] {
            assert_eq!(key(&east, path), None, "{path}");
        }
        let other = Ensemble::new(["zk9"], None, None).unwrap();
        assert_eq!(key(&other, "/www/prod/j"), None, "another chroot");
    }

    #[test]
    fn digest_is_read_from_digest_file() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("digest");
        std::fs::write(&file, "me:secret\n").unwrap();
        let text = format!(
            "clusters: [{{name: a, hosts: [zk], digest_file: {}}}]",
            file.display()
        );
        let clusters = load(&text).unwrap();
        let expected = Ensemble::new(["zk"], None, Some("me:secret")).unwrap();
        assert_eq!(clusters.iter().next().unwrap().ensemble, expected);
    }

    #[test]
    fn error_names_the_cluster_file_and_line() {
        for (text, expected) in [
            (
                "[{name: a, hosts: []}]",
                "cluster `a` has an invalid ensemble",
            ),
            (
                "[{name: a, hosts: [x], root: aurora}]",
                "cluster `a` has an invalid root `aurora`",
            ),
            (
                "[{name: 'a b', hosts: [x]}]",
                "cluster `a b` has an invalid name",
            ),
            (
                "[{name: a, hosts: [x]}, {name: a, hosts: [zk]}]",
                "cluster `a` is defined twice",
            ),
            (
                "[{name: a, hosts: [x]}, {name: b, hosts: [x]}]",
                "cluster `b` has the ensemble",
            ),
            (
                "[{name: a, hosts: [x], digest: 'u:p', digest_file: /f}]",
                "both `digest`",
            ),
            (
                "[{name: a, hosts: [x], digest_file: /nowhere/f}]",
                "/nowhere/f",
            ),
            (
                "[{name: a, hosts: [x], chrot: /x}]",
                "did you mean `chroot`?",
            ),
        ] {
            let failure = load(&format!("# Ours.\nclusters: {text}\n")).unwrap_err();
            assert_eq!(failure.exit(), Exit::CONFIG);
            assert!(failure.to_string().contains(expected), "{failure}");
            let place = failure.to_string().contains("clusters.yaml:2:");
            assert!(place, "{failure}");
        }
    }
}
