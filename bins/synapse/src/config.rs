//! The configuration: files become [`Settings`], or a list of everything that is wrong with them.
//!
//! A Synapse configuration runs unchanged. Every key is declared in `keys`; what Synapse would drop, ignore or refuse is
//! an error, or with `lenient` a finding. Nothing here reads the network or starts anything.

mod binds;
mod context;
mod discovery;
mod files;
mod generated;
#[rustfmt::skip] // one key per line
mod keys;
mod lines;
mod names;
mod pattern;
mod plain;
mod proxy;
mod report;
mod schema;
mod service;
mod top;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostkit::zookeeper::clusters::{self, AuroraClusters};
use hostkit::{Exit, Failure};
use sha2::{Digest, Sha256};

pub use context::{Finding, Kind};
pub use generated::generated;
pub use report::{clusters_summary, report, summary};
pub use schema::reference;

use context::{Context, Map, join};
use files::File;
use service::Around;
use tree::{Node, Value};

use crate::settings::{Cluster, Service, Settings};

/// What a configuration is read from, beside the files themselves.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The one file to read: `--config`, or the variable `SYNAPSE_CONFIG`.
    pub file: Option<PathBuf>,
    /// Without it, where `synapse.yaml` and `synapse.d/*.yaml` are (/etc/hostkit).
    pub directory: PathBuf,
    /// The clusters that hostkit's tools share; those of the configuration come before them.
    pub clusters: Vec<Cluster>,
    /// The name of this host: servers are shuffled by it.
    pub host: String,
}

/// The clusters that hostkit's tools share, from `/etc/hostkit/clusters.yaml` and its drop-ins.
///
/// # Errors
/// A file cannot be read or is wrong (exit 78).
pub fn shared_clusters() -> Result<Vec<Cluster>, Failure> {
    clusters_of(None)
}

/// The clusters of a file, or the shared ones.
///
/// # Errors
/// A file cannot be read or is wrong (exit 78).
pub fn clusters_of(file: Option<&Path>) -> Result<Vec<Cluster>, Failure> {
    Ok(AuroraClusters::load(file)?.iter().map(shared).collect())
}

fn shared(cluster: &clusters::AuroraCluster) -> Cluster {
    let ensemble = &cluster.ensemble;
    Cluster {
        name: cluster.name.clone(),
        hosts: ensemble.hosts().to_vec(),
        root: cluster.root.clone(),
        chroot: ensemble.chroot().map(str::to_owned),
        digest: ensemble.digest().map(str::to_owned),
    }
}

/// Reads the configuration. What Synapse would drop, ignore or refuse is an error, or with `lenient` a finding.
///
/// # Errors
/// A file cannot be read, or does not say what it must (exit 78): the message lists every error with file, line and
/// column, up to 50 of them.
pub fn load(sources: &Sources, lenient: bool) -> Result<(Settings, Vec<Finding>), Failure> {
    let files = files::main(sources)?;
    let mut context = Context::new(lenient);
    let mut hash = Sha256::new();
    let mut root: Option<Node<'_>> = None;
    for file in &files {
        hash.update(&file.text);
        if let Some(node) = parse(&mut context, file) {
            match &mut root {
                Some(root) => tree::overlay(root, node),
                None => root = Some(node),
            }
        }
    }
    let Some(root) = root else {
        context.finish()?;
        let names: Vec<String> = files
            .iter()
            .map(|file| file.path.display().to_string())
            .collect();
        return Err(
            Failure::new(Exit::CONFIG, format!("{} is empty", names.join(", ")))
                .remedy("write at least `services` and `haproxy`"),
        );
    };
    let Some(map) = Map::open(&mut context, &keys::ROOT, &root, String::new()) else {
        context.finish()?;
        return Err(Failure::new(Exit::CONFIG, "the configuration is no map"));
    };
    let mut settings = top::read(&mut context, &map, &sources.clusters, &sources.host);
    let service_files = service_files(&mut context, &map)?;
    settings.services = services(&mut context, &map, &settings, &service_files, &mut hash);
    names::check(&mut context, &settings);
    if map.get("haproxy").is_some() {
        binds::check(&mut context, &settings);
    }
    // What writes nothing needs no watching.
    settings
        .services
        .retain(|service| service.haproxy.is_some() || service.file_output);
    settings.hash = hostkit::hex::encode(&hash.finalize());
    Ok((settings, context.finish()?))
}

/// One file as a tree. ERB would have run before YAML, so it is looked for in the text.
fn parse<'f>(context: &mut Context, file: &'f File) -> Option<Node<'f>> {
    let number = context.file(&file.path);
    if let Some(at) = file.text.find("<%") {
        let before = &file.text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let at = tree::At {
            file: number,
            line: u32::try_from(before.matches('\n').count() + 1).unwrap_or(u32::MAX),
            column: u16::try_from(before[line_start..].chars().count() + 1).unwrap_or(u16::MAX),
        };
        let remedy = "let what writes the file (Puppet, for one) fill it in";
        context.error(at, "`<%`: ERB is not run here", remedy);
        return None;
    }
    tree::parse(number, &file.text, context)
}

/// The files of `service_conf_dir`, which is relative to the file that names it.
fn service_files(context: &mut Context, map: &Map<'_, '_>) -> Result<Vec<File>, Failure> {
    let Some(directory) = map.text(context, "service_conf_dir") else {
        return Ok(Vec::new());
    };
    let at = map.value_at("service_conf_dir");
    let beside = context.place(at).file;
    let directory = beside.parent().unwrap_or(&beside).join(directory);
    match files::services(&directory)? {
        Some(files) => Ok(files),
        None => {
            let message = format!(
                "`service_conf_dir`: {} is no directory",
                directory.display()
            );
            context.error(at, message, "create it, or leave the key out");
            Ok(Vec::new())
        }
    }
}

fn services(
    context: &mut Context,
    map: &Map<'_, '_>,
    settings: &Settings,
    files: &[File],
    hash: &mut Sha256,
) -> Vec<Arc<Service>> {
    let around = Around {
        clusters: &settings.clusters,
        haproxy: map.get("haproxy").is_some(),
        shared_frontend: settings.haproxy.shared_frontend.is_some(),
        use_nerve_weights: settings.haproxy.use_nerve_weights,
        file_output: settings.file_output.is_some(),
    };
    let entries: &[tree::Entry<'_>] = match map.get("services") {
        None => &[],
        Some(Node {
            value: Value::Map(entries),
            ..
        }) => entries,
        Some(node) => {
            let message = format!("`services` is {}, not a map", node.kind());
            context.error(node.at, message, "write a map of services, by name");
            &[]
        }
    };
    let mut services = Vec::new();
    for entry in entries {
        if let Some(file) = files.iter().find(|file| file.service() == entry.key) {
            let message = format!(
                "`{}`: Synapse reads {} instead",
                join("services", &entry.key),
                file.path.display()
            );
            context.push(Kind::Ignored, entry.at, message, "leave one of them");
            continue;
        }
        let read = service::read(context, &around, &entry.key, entry.at, &entry.node);
        services.extend(read.into_iter().map(Arc::new));
    }
    for file in files {
        hash.update(&file.text);
        let Some(node) = parse(context, file) else {
            continue;
        };
        let read = service::read(context, &around, &file.service(), node.at, &node);
        services.extend(read.into_iter().map(Arc::new));
    }
    services
}

#[cfg(test)]
mod tests;
