//! `file_output`: one JSON file per service with its members, as Synapse writes them, for programs that are no HAProxy.
//!
//! Owns the `*.json` files in its directory that hold such lists, and nothing else there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use hostkit::dir::{Dir, Durability};
use hostkit::{Exit, Failure};
use serde::{Deserialize, Serialize};

use crate::model::{self, Backend};

/// No list of members is longer, in bytes; a file that is was not written by us.
const LIMIT: u64 = 64 << 20;

/// The directory that the files are in.
#[derive(Debug)]
pub struct FileOutput {
    dir: Dir,
}

/// A member under the names that Synapse gives its fields. What is not known is `null`, as there.
#[derive(Serialize)]
struct Entry<'a> {
    name: Option<Cow<'a, str>>,
    host: &'a str,
    port: u16,
    id: Option<u64>,
    weight: Option<u16>,
    haproxy_server_options: Option<&'a str>,
    labels: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    haproxy_server_id: Option<u32>,
}

/// What makes a list of members recognisable.
#[derive(Deserialize)]
struct Known {
    #[serde(rename = "host")]
    _host: String,
    #[serde(rename = "port")]
    _port: u16,
}

impl FileOutput {
    /// Opens the directory, and makes it (0755) when it is missing.
    ///
    /// # Errors
    /// It cannot be made or opened (exit 73).
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let dir = Dir::create_all(path, 0o755).map_err(|error| {
            let what = format!("cannot use file_output directory {}", path.display());
            Failure::new(Exit::CANNOT_CREATE, what)
                .remedy("give synapse the right to write there, or name another directory")
                .because(error)
        })?;
        Ok(Self { dir })
    }

    /// Writes the members of a service, by age and endpoint, if that changes the file. Says whether it did.
    ///
    /// # Errors
    /// The name is none of a service, or the file cannot be written (exit 74); then the old file is still there.
    pub fn write(&self, service: &str, backends: &[Arc<Backend>]) -> Result<bool, Failure> {
        let file = format!("{service}.json");
        self.replace(service, &file, backends).map_err(|error| {
            let path = self.dir.path().join(model::shown(&file));
            Failure::new(Exit::IO, format!("cannot write {}", path.display())).because(error)
        })
    }

    fn replace(&self, service: &str, file: &str, backends: &[Arc<Backend>]) -> io::Result<bool> {
        if !model::safe_name(service) {
            let why = "letters, digits and -_.: make the name of a service";
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        let mut sorted: Vec<&Backend> = backends.iter().map(|backend| &**backend).collect();
        sorted.sort_by_key(|backend| (backend.id, &backend.host, backend.port));
        let entries: Vec<Entry<'_>> = sorted.into_iter().map(Entry::of).collect();
        let bytes = serde_json::to_vec(&entries)?;
        if self.dir.read(file, LIMIT).is_ok_and(|old| old == bytes) {
            return Ok(false);
        }
        // Not fsynced: whatever a power cut leaves is compared, and replaced, at the next start.
        self.dir
            .write_atomic(file, &bytes, 0o644, Durability::Process)?;
        Ok(true)
    }

    /// Removes the lists of services other than these, and returns their names. A file that holds no list of members
    /// stays, whatever it is called.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed (exit 74).
    pub fn prune(&self, services: &BTreeSet<&str>) -> Result<Vec<String>, Failure> {
        let mut removed = Vec::new();
        let pruned = self.dir.entries().and_then(|entries| {
            for entry in entries {
                let (name, is_dir) = entry?;
                let Some(service) = name.to_str().and_then(|name| name.strip_suffix(".json"))
                else {
                    continue;
                };
                let ours = !is_dir && model::safe_name(service) && !services.contains(service);
                if ours && self.holds_members(&name.to_string_lossy()) {
                    self.dir.remove_file(&name)?;
                    removed.push(service.to_owned());
                }
            }
            Ok(())
        });
        pruned.map_err(|error| {
            let what = format!("cannot tidy {}", self.dir.path().display());
            Failure::new(Exit::IO, what).because(error)
        })?;
        Ok(removed)
    }

    fn holds_members(&self, file: &str) -> bool {
        self.dir
            .read(file, LIMIT)
            .is_ok_and(|bytes| serde_json::from_slice::<Vec<Known>>(&bytes).is_ok())
    }
}

impl<'a> Entry<'a> {
    fn of(backend: &'a Backend) -> Self {
        Self {
            name: backend.name(),
            host: &backend.host,
            port: backend.port,
            id: backend.id,
            weight: backend.weight,
            haproxy_server_options: backend.rare.options.as_deref(),
            labels: Some(&backend.rare.labels).filter(|labels| !labels.is_empty()),
            haproxy_server_id: backend.rare.server_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn backend(host: &str, id: u64) -> Backend {
        let mut backend = Backend::new(host, 80, "test").unwrap();
        backend.id = Some(id);
        backend
    }

    #[test]
    fn a_file_has_synapses_keys_and_is_written_only_when_it_changes() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("made/below");
        let output = FileOutput::open(&path).unwrap();
        let mut first = backend("10.0.0.1", 2);
        first.weight = Some(5);
        first.rare.edit(|rare| rare.name = Some("web".into()));
        first.rare.edit(|rare| rare.options = Some("backup".into()));
        first.rare.edit(|rare| rare.server_id = Some(9));
        first
            .rare
            .edit(|rare| rare.labels = [("az".to_owned(), "b".to_owned())].into());
        let second = backend("10.0.0.2", 1);
        let list = [Arc::new(first), Arc::new(second)];
        assert!(output.write("svc", &list).unwrap());
        let file = path.join("svc.json");
        let inode = fs::metadata(&file).unwrap().ino();
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            concat!(
                r#"[{"name":null,"host":"10.0.0.2","port":80,"id":1,"weight":null,"#,
                r#""haproxy_server_options":null,"labels":null},"#,
                r#"{"name":"web","host":"10.0.0.1","port":80,"id":2,"weight":5,"#,
                r#""haproxy_server_options":"backup","labels":{"az":"b"},"haproxy_server_id":9}]"#,
            )
        );
        assert!(
            !output
                .write("svc", &[list[1].clone(), list[0].clone()])
                .unwrap()
        );
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
        assert!(output.write("svc", &list[1..]).unwrap());
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn only_lists_of_services_that_are_gone_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let output = FileOutput::open(temp.path()).unwrap();
        for service in ["kept", "gone", "empty"] {
            output
                .write(service, &[Arc::new(backend("10.0.0.1", 1))])
                .unwrap();
        }
        output.write("empty", &[]).unwrap();
        for (file, text) in [
            ("package.json", r#"{"name":"x"}"#),
            ("list.json", r#"[{"name":"x"}]"#),
            ("members.txt", "[]"),
        ] {
            fs::write(temp.path().join(file), text).unwrap();
        }
        fs::create_dir(temp.path().join("dir.json")).unwrap();
        std::os::unix::fs::symlink("kept.json", temp.path().join("link.json")).unwrap();
        let mut removed = output.prune(&BTreeSet::from(["kept"])).unwrap();
        removed.sort();
        assert_eq!(removed, ["empty", "gone"]);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 6);
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let output = FileOutput::open(temp.path()).unwrap();
        for name in ["../x", "a/b", "", "a\0"] {
            assert!(output.write(name, &[]).is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}
