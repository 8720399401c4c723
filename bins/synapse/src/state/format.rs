//! The state file's format: JSON, small because most of it repeats (an occupant is a number when it is a member), and
//! without trust: what a registration may not hold is not taken from here either.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use super::{Loaded, Service, State};
use crate::membership::{Admin, Occupant, Roster};
use crate::model::{Backend, Job, Rare, Rarely, Source, safe_name, safe_options};

/// The format that is written, and the only one that is read.
const VERSION: u32 = 1;
/// HAProxy's greatest weight.
const MAX_WEIGHT: u16 = 256;

#[derive(Deserialize)]
struct File<'a> {
    version: u32,
    #[serde(default)]
    config_hash: String,
    #[serde(default)]
    loaded: Option<Loaded>,
    #[serde(default)]
    accepted: Cow<'a, [String]>,
    #[serde(default, borrow)]
    services: BTreeMap<Cow<'a, str>, Entry<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    job: Option<Job>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unconfigured_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generator_config: Option<String>,
    #[serde(default)]
    slots: u16,
    /// What the source of most members begins with.
    #[serde(default, borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    members: Vec<Member<'a>>,
    #[serde(default, borrow)]
    servers: Vec<Option<Server<'a>>>,
}

#[derive(Serialize, Deserialize)]
struct Member<'a> {
    #[serde(borrow)]
    host: Cow<'a, str>,
    port: u16,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    options: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_id: Option<u32>,
    #[serde(default, skip_serializing_if = "is_empty")]
    labels: Cow<'a, BTreeMap<String, String>>,
    /// The source, below the entry's path.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    znode: Option<Cow<'a, str>>,
    /// The source, where it is elsewhere.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    source: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
struct Server<'a> {
    /// Which of the members; `None` where it is one no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member: Option<usize>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    former: Option<Box<Member<'a>>>,
    /// `None` where the host is the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    /// `None` is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<Admin>,
}

fn is_empty(labels: &BTreeMap<String, String>) -> bool {
    labels.is_empty()
}

/// [`File`] as it is written: each entry is made when its turn comes.
#[derive(Serialize)]
struct Writing<'a> {
    version: u32,
    config_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    loaded: Option<&'a Loaded>,
    accepted: &'a [String],
    #[serde(serialize_with = "one_by_one")]
    services: &'a BTreeMap<String, Arc<Service>>,
}

fn one_by_one<S: Serializer>(
    services: &BTreeMap<String, Arc<Service>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        services
            .iter()
            .map(|(name, service)| (name, Entry::new(service))),
    )
}

/// Writes a state file.
pub(super) fn encode(state: &State, out: &mut impl io::Write) -> io::Result<()> {
    let file = Writing {
        version: VERSION,
        config_hash: &state.config_hash,
        loaded: state.loaded.as_ref(),
        accepted: &state.accepted,
        services: &state.services,
    };
    Ok(serde_json::to_writer(out, &file)?)
}

/// What a state file says, or what is wrong with it.
pub(super) fn decode(bytes: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let file: File<'_> = match serde_json::from_slice(bytes) {
        Ok(File { version, .. }) if version != VERSION => return Err(other_version(version)),
        Ok(file) => file,
        Err(error) => {
            return Err(match serde_json::from_slice(bytes) {
                Ok(Version { version }) if version != VERSION => other_version(version),
                _ => error.to_string(),
            });
        }
    };
    Ok(State {
        services: file
            .services
            .into_iter()
            .map(|(name, entry)| (name.into_owned(), Arc::new(entry.into_service())))
            .collect(),
        loaded: file.loaded,
        config_hash: file.config_hash,
        accepted: file.accepted.into_owned(),
    })
}

fn other_version(version: u32) -> String {
    format!("it has format {version}, and this synapse reads format {VERSION}")
}

impl<'a> Entry<'a> {
    fn new(service: &'a Service) -> Self {
        let numbers: HashMap<(&str, u16), usize> = service
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| ((&*member.host, member.port), number))
            .collect();
        let first = service.members.first();
        let place = first.map_or("", |member| member.source.place());
        let server = |occupant: &'a Occupant| {
            let backend = &occupant.backend;
            let member = numbers
                .get(&(&*backend.host, backend.port))
                .copied()
                .filter(|number| service.members[*number] == *backend);
            let is_literal = backend.host.parse() == Ok(occupant.address);
            Server {
                member,
                former: member
                    .is_none()
                    .then(|| Box::new(Member::new(backend, place))),
                address: (!is_literal).then_some(occupant.address),
                weight: occupant.weight,
                admin: (occupant.admin != Admin::Ready).then_some(occupant.admin),
            }
        };
        Self {
            job: service.job.clone(),
            unconfigured_ms: service.unconfigured_ms,
            generator_config: service.generator_config.clone(),
            slots: service.slots,
            path: match place {
                "" => Cow::Borrowed(""),
                place => Cow::Owned(format!("{place}/")),
            },
            members: service
                .members
                .iter()
                .map(|member| Member::new(member, place))
                .collect(),
            servers: service
                .roster
                .servers
                .iter()
                .map(|occupant| occupant.as_ref().map(server))
                .collect(),
        }
    }

    fn into_service(self) -> Service {
        let path = self.path.strip_suffix('/').unwrap_or(&self.path);
        let place: Arc<str> = path.into();
        // By number as written: one that is refused must not shift the others.
        let members: Vec<Option<Arc<Backend>>> = self
            .members
            .into_iter()
            .map(|member| member.into_backend(&place).map(Arc::new))
            .collect();
        let servers = self.servers.into_iter().map(|server| {
            let server = server?;
            let backend = match (server.member, server.former) {
                (Some(number), _) => members.get(number)?.clone()?,
                (None, former) => Arc::new(former?.into_backend(&place)?),
            };
            Some(Occupant {
                address: server.address.or_else(|| backend.host.parse().ok())?,
                backend,
                weight: server.weight.filter(|weight| *weight <= MAX_WEIGHT),
                admin: server.admin.unwrap_or(Admin::Ready),
            })
        });
        let servers: Vec<Option<Occupant>> = servers.collect();
        let roster = Roster {
            free: usize::from(self.slots).saturating_sub(servers.len()),
            servers,
        };
        Service {
            roster: Arc::new(roster),
            members: Arc::new(members.into_iter().flatten().collect()),
            slots: self.slots,
            unconfigured_ms: self.unconfigured_ms,
            generator_config: self.generator_config,
            job: self.job,
        }
    }
}

impl<'a> Member<'a> {
    fn new(backend: &'a Backend, place: &str) -> Self {
        let (znode, source) = match backend.source.place() == place {
            true => (Some(backend.source.name()), None),
            false => (None, Some(Cow::Owned(backend.source.to_string()))),
        };
        Self {
            host: Cow::Borrowed(&backend.host),
            port: backend.port,
            name: backend.name(),
            id: backend.id,
            shard: backend.shard,
            weight: backend.weight,
            options: backend.rare.options.as_deref().map(Cow::Borrowed),
            server_id: backend.rare.server_id,
            labels: Cow::Borrowed(&backend.rare.labels),
            znode,
            source,
        }
    }

    /// `None` for what no registration could have become.
    fn into_backend(self, place: &Arc<str>) -> Option<Backend> {
        let safe = self.name.as_deref().is_none_or(safe_name)
            && self.options.as_deref().is_none_or(safe_options)
            && self.weight.is_none_or(|weight| weight <= MAX_WEIGHT);
        let source = match (self.znode, self.source) {
            (Some(znode), _) => Source::below(Arc::clone(place), (&*znode).into()),
            (None, source) => source?.as_ref().into(),
        };
        let backend = Backend::new(&self.host, self.port, source).ok()?;
        safe.then(|| Backend {
            id: self.id,
            shard: self.shard,
            weight: self.weight,
            rare: Rarely::from(Rare {
                // A shard's is its number.
                name: self.name.filter(|_| self.shard.is_none()).map(Box::from),
                options: self.options.map(|options| options.into_owned().into()),
                server_id: self.server_id,
                labels: self.labels.into_owned(),
            }),
            ..backend
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backend(service: usize, shard: u32) -> Backend {
        let source = format!("/aurora/www-data/prod/service{service}/member_{shard:010}");
        let host = format!("10.{}.{}.{}", service / 250, service % 250, shard % 250);
        let mut backend = Backend::new(&host, 31_000 + shard as u16, source).unwrap();
        (backend.id, backend.shard) = (Some(u64::from(shard) + 7), Some(shard));
        backend
    }

    fn occupant(backend: Backend, admin: Admin) -> Option<Occupant> {
        Some(Occupant {
            address: "10.0.0.1".parse().unwrap(),
            backend: Arc::new(backend),
            weight: None,
            admin,
        })
    }

    /// A state with the odd cases in each service: a free slot, one that drains, a name that was resolved.
    pub(in crate::state) fn state(services: usize, members: u32) -> State {
        let service = |number: usize| {
            let members: Vec<Arc<Backend>> = (0..members)
                .map(|shard| Arc::new(backend(number, shard)))
                .collect();
            let mut servers: Vec<Option<Occupant>> = members
                .iter()
                .map(|member| {
                    let mut occupant = occupant(Backend::clone(member), Admin::Ready)?;
                    occupant.address = member.host.parse().ok()?;
                    Some(occupant)
                })
                .collect();
            let mut named = Backend::new("db.example.com", 5432, "default_servers").unwrap();
            named.rare.edit(|rare| {
                rare.name = Some("db_1".into());
                rare.options = Some("backup maxconn 5".into());
                rare.labels = [("az".to_owned(), "b\n\"".to_owned())].into();
                rare.server_id = Some(9);
            });
            named.weight = Some(256);
            servers.extend([None, occupant(named, Admin::Drain)]);
            // An older registration of the first member's endpoint still drains.
            servers.extend(members.first().map(|member| {
                let mut older = Backend::clone(member);
                older.id = Some(1);
                occupant(older, Admin::Drain)
            }));
            Service {
                roster: Arc::new(Roster { servers, free: 1 }),
                slots: members.len() as u16 + 3 + u16::from(!members.is_empty()),
                members: Arc::new(members),
                unconfigured_ms: None,
                generator_config: None,
                job: Some(Job {
                    cluster: None,
                    role: "www-data".to_owned(),
                    environment: "prod".to_owned(),
                    name: format!("service{number}"),
                }),
            }
        };
        State {
            services: (0..services)
                .map(|number| (format!("service{number}"), Arc::new(service(number))))
                .collect(),
            loaded: Some(Loaded {
                structure: "abc".to_owned(),
                pid: Some(4711),
            }),
            config_hash: "def".to_owned(),
            accepted: vec!["service0".to_owned()],
        }
    }

    fn encoded(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(state, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_member_that_no_registration_could_be_is_not_read_and_shifts_nobody() {
        let bytes = br#"{"version": 1, "unknown": 1, "services": {"s": {
            "members": [
                {"host": "a\nserver evil", "port": 80, "source": "x"},
                {"host": "a", "port": 0, "source": "x"},
                {"host": "a", "port": 80, "source": "x", "options": "check\n"},
                {"host": "a", "port": 80, "source": "x", "name": "a b"},
                {"host": "a", "port": 80, "source": "x", "weight": 257},
                {"host": "10.0.0.5", "port": 80, "source": "x"}],
            "servers": [{"member": 0}, {"member": 5, "admin": "drain"}, {"member": 6},
                {"admin": "maint"}, {"former": {"host": "b", "port": 1, "source": ""}}, null]}}}"#;
        let service = &decode(bytes).unwrap().services["s"];
        assert_eq!(service.members.len(), 1);
        let servers = &service.roster.servers;
        assert_eq!(servers.len(), 6);
        let second = servers[1].as_ref().unwrap();
        assert_eq!(
            (&*second.backend.host, second.admin),
            ("10.0.0.5", Admin::Drain)
        );
        assert_eq!(
            servers.iter().flatten().count(),
            1,
            "a name without an address is of no use"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_or_an_error(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_damaged_file_is_a_state_or_an_error(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            end: prop::sample::Index,
            cut: bool,
        ) {
            let mut bytes = encoded(&state(2, 3));
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            let _ = decode(&bytes);
        }

        #[test]
        fn what_is_encoded_is_decoded(services in 0..4usize, members in 0..9u32) {
            let state = state(services, members);
            prop_assert_eq!(decode(&encoded(&state)).unwrap(), state);
        }
    }
}
