//! What registrations become: backends, or refusals that say why. Pure.

use std::sync::Arc;

use hostkit::zookeeper::{
    Member, MemberDecoder, MemberError, MemberErrorKind, MemberFormat, PathNode, ZnodeName,
};

use crate::model::{Backend, Discovered, Job, Reason, Reject, Source};
use crate::settings::{Cluster, Decode};
use crate::watcher::fields::Fields;

impl MemberDecoder for Decode {
    type Output = Result<Arc<Backend>, Arc<Reject>>;

    fn format(&self) -> MemberFormat {
        match self {
            Self::Nerve => MemberFormat::Nerve,
            Self::ServerSet(_) => MemberFormat::ServerSet,
        }
    }

    fn decode(
        &self,
        path: &Arc<str>,
        name: &ZnodeName,
        result: Result<Member, MemberError>,
    ) -> Self::Output {
        let source = Source::below(Arc::clone(path), name.clone());
        let backend = match result {
            Ok(member) => backend(self, member, source),
            Err(error) => {
                let reason = match error.kind {
                    MemberErrorKind::Malformed => Reason::Malformed,
                    MemberErrorKind::Oversized => Reason::Oversized,
                    MemberErrorKind::Unreadable => Reason::Unreadable,
                };
                Err(Reject::new(source, reason, &error.detail))
            }
        };
        backend.map(Arc::new).map_err(Arc::new)
    }
}

/// The members of one path.
pub(super) fn discovered(node: &PathNode<<Decode as MemberDecoder>::Output>) -> Discovered {
    let mut discovered = Discovered::default();
    for child in node.members.values() {
        match &child.value {
            Ok(backend) => discovered.backends.push(Arc::clone(backend)),
            Err(reject) => discovered.rejects.push(Reject::clone(reject)),
        }
    }
    discovered
}

fn backend(decode: &Decode, member: Member, source: Source) -> Result<Backend, Reject> {
    if !member.is_alive() {
        return Err(Reject::new(source, Reason::Status, member.status.as_str()));
    }
    let name = match decode {
        Decode::Nerve => None,
        Decode::ServerSet(name) => name.as_deref(),
    };
    let Some(endpoint) = member.endpoint(name) else {
        let others: Vec<&str> = member.additional.iter().map(|(name, _)| &**name).collect();
        let detail = match name {
            Some(name) => format!("no endpoint `{name}`, but {}", others.join(", ")),
            None => "no service endpoint".to_owned(),
        };
        return Err(Reject::new(source, Reason::Endpoint, detail));
    };
    let Some(port) = endpoint.port.get() else {
        let detail = endpoint.port.to_string();
        return Err(Reject::new(source, Reason::Port, detail));
    };
    let mut backend = Backend::new(&endpoint.host, port.get(), source)?;
    if backend.host == endpoint.host {
        backend.host = Arc::clone(&endpoint.host);
    }
    backend.id = member.sequence;
    backend.shard = member.shard;
    let Some(attributes) = member.nerve else {
        return Ok(backend);
    };
    let fields = Fields {
        name: attributes.name,
        weight: attributes.weight.map(u64::from),
        options: attributes.options,
        server_id: attributes.server_id,
        labels: attributes.labels,
    };
    fields.put_on(backend)
}

/// The job that registers at `path`: below the root of a cluster, or the last three names of a ServerSet's path, which
/// is how Aurora's executor makes them below any root.
pub(super) fn job(clusters: &[Cluster], decode: &Decode, path: &str) -> Option<Job> {
    let found = clusters.iter().find_map(|cluster| {
        let names: Vec<&str> = below(&cluster.root, path)?.split('/').collect();
        let [role, environment, name] = names[..] else {
            return None;
        };
        Some((Some(cluster.name.clone()), role, environment, name))
    });
    let (cluster, role, environment, name) = found.or_else(|| {
        let mut names = path.rsplit('/');
        let (name, environment, role) = (names.next()?, names.next()?, names.next()?);
        // Something must be left for the root.
        let rooted = names.next().is_some_and(|root| !root.is_empty());
        (matches!(decode, Decode::ServerSet(_)) && rooted).then_some((
            None,
            role,
            environment,
            name,
        ))
    })?;
    Some(Job {
        cluster,
        role: role.to_owned(),
        environment: environment.to_owned(),
        name: name.to_owned(),
    })
}

/// What of `path` is below `root`.
pub(super) fn below<'a>(root: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(root.trim_end_matches('/'))?
        .strip_prefix('/')
}

/// Generator configuration in the data of a path. Creating a path often leaves something else there (Curator writes the
/// creator's address): only a JSON object is meant. An empty one is the word that nothing is said any more.
pub(super) fn generator_config(data: &[u8]) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(data).ok()?;
    // Written anew: a YAML parser reads it later, and does not know every escape.
    serde_json::to_string(&object).ok()
}
