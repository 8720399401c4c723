//! Asking DNS: one question, its answer and how long that holds.
//!
//! Owns what a resolver is set to and what counts as an answer. When to ask, and what to do without an answer, is the
//! caller's.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::time::timeout;

use crate::model::shown;

/// How long one packet to one server may take.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long a question may take, with every attempt, server and search domain.
const QUESTION: Duration = Duration::from_secs(10);

/// The port of DNS.
const PORT: u16 = 53;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer<T> {
    /// What the records say; empty when there are none, on the word of who is responsible for the name.
    pub(super) records: Vec<T>,
    /// How long that holds (the least TTL).
    pub(super) valid: Duration,
}

/// What an SRV record says (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Srv {
    /// Where the service is, without the final dot; any bytes, escaped as in zone files.
    pub(super) target: String,
    /// Its port.
    pub(super) port: u16,
    /// Lower is asked first.
    pub(super) priority: u16,
    /// Share among those of equal priority.
    pub(super) weight: u16,
}

/// `address` or `address:port`; an IPv6 address with a port stands in brackets.
///
/// # Errors
/// It is neither.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT));
    address
        .or_else(|_| text.parse::<SocketAddr>())
        .map_err(|_| {
            format!(
                "nameserver `{}` is not address or address:port",
                shown(text)
            )
        })
}

/// A resolver that asks `nameserver`, or those of /etc/resolv.conf after /etc/hosts. Both files are read here and not
/// again, so a resolver is made for a few questions and dropped. It keeps no cache.
///
/// # Errors
/// /etc/resolv.conf is not to be understood.
pub(super) fn resolver(nameserver: Option<SocketAddr>) -> Result<TokioResolver, String> {
    let (config, mut options) = match nameserver {
        Some(address) => (only(address), ResolverOpts::default()),
        // Without the file, or a server in it, it is the one of this host (resolv.conf(5)).
        None => read_system_conf().unwrap_or_else(|_| {
            (
                only(SocketAddr::from(([127, 0, 0, 1], PORT))),
                ResolverOpts::default(),
            )
        }),
    };
    options.cache_size = 0;
    options.timeout = ATTEMPT;
    options.attempts = 1;
    options.use_hosts_file = match nameserver {
        Some(_) => ResolveHosts::Never,
        None => ResolveHosts::Always,
    };
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| error.to_string())
}

fn only(address: SocketAddr) -> ResolverConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    let server = NameServerConfig::new(address.ip(), true, connections.into());
    ResolverConfig::from_parts(None, Vec::new(), vec![server])
}

/// The addresses of `host`: IPv4 ones, or IPv6 ones where it has no other. Both would make one host two.
///
/// # Errors
/// What DNS said instead, for people.
pub(super) async fn addresses(
    resolver: &TokioResolver,
    host: &str,
) -> Result<Answer<IpAddr>, String> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    match ask(resolver, host, RecordType::A, address).await {
        Ok(found) if !found.records.is_empty() => Ok(found),
        // /etc/hosts may know an IPv6 address of a name that DNS does not know at all.
        Ok(_) | Err(Miss::NoName) => ask(resolver, host, RecordType::AAAA, address)
            .await
            .map_err(|miss| miss.told(host)),
        Err(miss) => Err(miss.told(host)),
    }
}

/// The SRV records of `name`.
///
/// # Errors
/// What DNS said instead, for people.
pub(super) async fn services(resolver: &TokioResolver, name: &str) -> Result<Answer<Srv>, String> {
    let service = |data: &RData| match data {
        RData::SRV(srv) => Some(Srv {
            target: srv.target.to_ascii().trim_end_matches('.').to_owned(),
            port: srv.port,
            priority: srv.priority,
            weight: srv.weight,
        }),
        _ => None,
    };
    ask(resolver, name, RecordType::SRV, service)
        .await
        .map_err(|miss| miss.told(name))
}

/// Why there is no answer.
enum Miss {
    /// There is no such name.
    NoName,
    /// Anything else, for people.
    Failed(String),
}

impl Miss {
    fn told(self, name: &str) -> String {
        let why = match self {
            Self::NoName => "no such name (NXDOMAIN)".to_owned(),
            Self::Failed(why) => why,
        };
        format!("{}: {why}", shown(name))
    }
}

async fn ask<T>(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
    read: impl Fn(&RData) -> Option<T>,
) -> Result<Answer<T>, Miss> {
    let asked = timeout(QUESTION, resolver.lookup(name, kind)).await;
    let silence = || Miss::Failed(format!("no answer about {kind} records"));
    match asked.map_err(|_| silence())? {
        Ok(lookup) => Ok(Answer {
            records: lookup
                .answers()
                .iter()
                .filter_map(|record| read(&record.data))
                .collect(),
            valid: validity(&lookup),
        }),
        Err(NetError::Timeout) => Err(silence()),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            match (none.response_code, &none.soa) {
                (ResponseCode::NXDomain, _) => Err(Miss::NoName),
                // The SOA record is what makes it the word of the zone (RFC 2308 section 2.2).
                (ResponseCode::NoError, Some(_)) => Ok(Answer {
                    records: Vec::new(),
                    valid: Duration::from_secs(u64::from(none.negative_ttl.unwrap_or_default())),
                }),
                (ResponseCode::NoError, None) => Err(Miss::Failed(format!(
                    "an answer without {kind} records and without the zone's SOA record"
                ))),
                (code, _) => Err(Miss::Failed(code.to_string())),
            }
        }
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(Miss::Failed(code.to_string())),
        Err(error) => Err(Miss::Failed(shown(&error.to_string()))),
    }
}

fn validity(lookup: &Lookup) -> Duration {
    lookup
        .valid_until()
        .saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_have_a_port_or_the_one_of_dns() {
        assert_eq!(nameserver("10.0.0.2"), Ok("10.0.0.2:53".parse().unwrap()));
        assert_eq!(nameserver("10.0.0.2:5"), Ok("10.0.0.2:5".parse().unwrap()));
        assert_eq!(nameserver("::1"), Ok("[::1]:53".parse().unwrap()));
        assert_eq!(nameserver("[::1]:5"), Ok("[::1]:5".parse().unwrap()));
        assert!(
            nameserver("ns.example.com\n")
                .unwrap_err()
                .ends_with("port")
        );
    }
}
