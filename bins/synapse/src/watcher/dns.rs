//! `method: dns`: names that are resolved again whenever their records expire.
//!
//! Owns when each name is asked and what its records become. Asking is `lookup`'s. A name that cannot be
//! resolved, or is said not to exist, keeps its last good addresses; one that the zone says has no records has none.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hostkit::backoff::Backoff;
use hostkit::clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::lookup::{self, Answer, Srv};
use super::merge::merge;
use super::{Found, Watcher, publish, single};
use crate::model::{Backend, Discovered, Reject};
use crate::settings::{DnsDiscovery, DnsServer};

/// No name is asked more often, whatever its TTL.
const LEAST: Duration = Duration::from_secs(1);

/// Questions on the way at once.
const IN_FLIGHT: usize = 16;

/// HAProxy's greatest weight.
const HEAVIEST: u32 = 256;

/// Follows DNS names.
#[derive(Debug)]
pub struct Dns {
    discovery: DnsDiscovery,
}

/// One name, and what is known of it.
#[derive(Debug)]
struct Target {
    server: DnsServer,
    known: Arc<Discovered>,
    /// When it is asked next; `None` while it is.
    due: Option<Instant>,
    backoff: Backoff,
}

/// What a name resolved to.
type Resolved = Result<(Vec<Arc<Backend>>, Vec<Reject>, Duration), String>;

impl Dns {
    /// Follows the names of `discovery`.
    #[must_use]
    pub const fn new(discovery: DnsDiscovery) -> Self {
        Self { discovery }
    }

    async fn run(self, out: watch::Sender<Arc<Found>>) {
        let longest = self.discovery.check_interval.max(LEAST);
        let backoff = Backoff::new(LEAST, longest);
        let mut targets: Vec<Target> = self
            .discovery
            .servers
            .into_iter()
            .map(|server| Target {
                server,
                known: Arc::default(),
                due: Some(Instant::now()),
                backoff: backoff.clone(),
            })
            .collect();
        let nameserver = self.discovery.nameserver.as_deref().map(lookup::nameserver);
        let mut asked = JoinSet::new();
        loop {
            let now = Instant::now();
            for (index, target) in targets.iter_mut().enumerate() {
                if asked.len() < IN_FLIGHT && target.due.is_some_and(|due| due <= now) {
                    target.due = None;
                    let (server, nameserver) = (target.server.clone(), nameserver.clone());
                    asked.spawn(
                        async move { (index, resolve(&server, nameserver.transpose()).await) },
                    );
                }
            }
            // With all places taken, what is due waits for one.
            let room = asked.len() < IN_FLIGHT;
            let next = targets.iter().filter_map(|target| target.due).min();
            tokio::select! {
                Some(ended) = asked.join_next() => {
                    if let Ok((index, resolved)) = ended {
                        targets[index].learn(resolved, longest);
                        let known = targets.iter().map(|target| &target.known);
                        publish(&out, single(merge(known)));
                    }
                }
                () = sleep_until(next.unwrap_or(now + longest)), if room => {}
                () = out.closed() => return,
            }
        }
    }
}

impl Watcher for Dns {
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.run(out))
    }
}

impl Target {
    fn learn(&mut self, resolved: Resolved, longest: Duration) {
        let mut known = Discovered::clone(&self.known);
        let wait = match resolved {
            Ok((backends, rejects, valid)) => {
                self.backoff = Backoff::new(LEAST, longest);
                known.backends = backends;
                known.rejects = rejects;
                known.synced = Some(clock::since_boot());
                known.trouble = None;
                valid.clamp(LEAST, longest)
            }
            Err(why) => {
                known.trouble = Some(why);
                self.backoff.next_delay()
            }
        };
        self.known = Arc::new(known);
        self.due = Some(Instant::now() + wait);
    }
}

async fn resolve(server: &DnsServer, nameserver: Result<Option<SocketAddr>, String>) -> Resolved {
    if let Ok(address) = server.host.parse::<IpAddr>() {
        let (backends, rejects) = from_addresses(server, vec![address]);
        return Ok((backends, rejects, Duration::MAX));
    }
    let resolver = lookup::resolver(nameserver?)?;
    if server.host.starts_with('_') {
        let Answer { records, valid } = lookup::services(&resolver, &server.host).await?;
        let (backends, rejects) = from_services(server, records);
        Ok((backends, rejects, valid))
    } else {
        let Answer { records, valid } = lookup::addresses(&resolver, &server.host).await?;
        let (backends, rejects) = from_addresses(server, records);
        Ok((backends, rejects, valid))
    }
}

fn from_addresses(
    server: &DnsServer,
    mut addresses: Vec<IpAddr>,
) -> (Vec<Arc<Backend>>, Vec<Reject>) {
    // Name servers rotate their answers.
    addresses.sort_unstable();
    addresses.dedup();
    // The configuration asks for a port where the name has none; without one, 0 is refused as such.
    let port = server.port.unwrap_or_default();
    let found = addresses
        .into_iter()
        .map(|address| backend(server, &address.to_string(), port, None));
    split(found)
}

/// Those of the first priority: the others are asked only when no client reaches these (RFC 2782), which HAProxy
/// cannot be told of one server at run time. A target of `.` says that there is no service.
fn from_services(server: &DnsServer, mut records: Vec<Srv>) -> (Vec<Arc<Backend>>, Vec<Reject>) {
    records.retain(|srv| !srv.target.is_empty());
    let first = records.iter().map(|srv| srv.priority).min();
    records.retain(|srv| Some(srv.priority) == first);
    records.sort_by(|a, b| (&a.target, a.port, a.weight).cmp(&(&b.target, b.port, b.weight)));
    let heaviest = records.iter().map(|srv| srv.weight).max().unwrap_or(0);
    let equal = records.iter().all(|srv| srv.weight == heaviest);
    let found = records.iter().map(|srv| {
        let weight = (!equal).then(|| scaled(srv.weight, heaviest));
        backend(server, &srv.target, srv.port, weight)
    });
    split(found)
}

/// The weight in HAProxy's range, where the heaviest has its greatest. Weight 0 is a very small share (RFC 2782), not
/// none.
fn scaled(weight: u16, heaviest: u16) -> u16 {
    let share = u32::from(weight) * HEAVIEST / u32::from(heaviest.max(1));
    u16::try_from(share.clamp(1, HEAVIEST)).unwrap_or(1)
}

fn backend(
    server: &DnsServer,
    host: &str,
    port: u16,
    weight: Option<u16>,
) -> Result<Backend, Reject> {
    let mut backend = Backend::new(host, port, format!("dns {}", server.host))?;
    backend.rare.edit(|rare| {
        rare.name = server.name.as_deref().map(Box::from);
        rare.labels.clone_from(&server.labels);
    });
    backend.weight = weight;
    Ok(backend)
}

fn split(found: impl Iterator<Item = Result<Backend, Reject>>) -> (Vec<Arc<Backend>>, Vec<Reject>) {
    let (mut backends, mut rejects) = (Vec::new(), Vec::new());
    for one in found {
        match one {
            Ok(backend) => backends.push(Arc::new(backend)),
            Err(reject) => rejects.push(reject),
        }
    }
    (backends, rejects)
}
