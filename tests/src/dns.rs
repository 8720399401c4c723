//! A scripted DNS server on loopback, over UDP and TCP (RFC 1035).
//!
//! Owns a zone of records by name and type, and faults: error codes, silence, delayed responses. Packets are written by
//! hand because DNS libraries cannot produce the malformed ones.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// The largest UDP response without EDNS; longer ones are marked as truncated.
const DATAGRAM: usize = 512;

/// How often the server threads check whether to stop.
const TICK: Duration = Duration::from_millis(20);

const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// The response for one name and record type.
#[derive(Debug, Clone)]
pub enum DnsAnswer {
    /// Records with this TTL in seconds.
    Records(u32, Vec<RecordData>),
    /// No records of this type (NODATA), with an SOA record of this TTL.
    Empty(u32),
    /// No records and no SOA record.
    Hollow,
    /// An error code: 2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    Error(u8),
    /// No response.
    Silence,
}

#[derive(Debug, Clone)]
pub enum RecordData {
    Address(IpAddr),
    /// An SRV record. The target is a list of labels, which may hold any bytes.
    Srv {
        priority: u16,
        weight: u16,
        port: u16,
        target: Vec<Vec<u8>>,
    },
}

impl RecordData {
    #[must_use]
    pub fn address(text: &str) -> Self {
        Self::Address(text.parse().expect("an address"))
    }

    /// An SRV record of priority 1.
    #[must_use]
    pub fn srv(weight: u16, port: u16, target: &str) -> Self {
        let labels = target.split('.').filter(|label| !label.is_empty());
        Self::Srv {
            priority: 1,
            weight,
            port,
            target: labels.map(|label| label.as_bytes().to_vec()).collect(),
        }
    }

    const fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Srv { .. } => SRV,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(address)) => address.octets().to_vec(),
            Self::Address(IpAddr::V6(address)) => address.octets().to_vec(),
            Self::Srv {
                priority,
                weight,
                port,
                target,
            } => {
                let mut bytes: Vec<u8> = [priority, weight, port]
                    .iter()
                    .flat_map(|number| number.to_be_bytes())
                    .collect();
                bytes.extend(name(target.iter().map(Vec::as_slice)));
                bytes
            }
        }
    }
}

/// A running name server. Dropping it closes its port.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<DnsState>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct DnsState {
    zone: Mutex<DnsZone>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct DnsZone {
    answers: HashMap<(String, u16), DnsAnswer>,
    asked: HashMap<String, usize>,
    held: bool,
}

impl NameServer {
    /// Starts a server with an empty zone on a free port.
    #[must_use]
    pub fn start() -> Self {
        // A port that is free for UDP is nearly always free for TCP too.
        (0..20)
            .find_map(|_| Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).ok())
            .expect("a free port for UDP and TCP")
    }

    /// Starts a server at a given address, to come back at the same one.
    ///
    /// # Errors
    /// The address is in use.
    pub fn start_at(address: SocketAddr) -> std::io::Result<Self> {
        let udp = UdpSocket::bind(address)?;
        let address = udp.local_addr()?;
        let tcp = TcpListener::bind(address)?;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let shared = Arc::new(DnsState::default());
        let (datagrams, streams) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || datagrams.serve_udp(&udp)),
            std::thread::spawn(move || streams.serve_tcp(&tcp)),
        ];
        Ok(Self {
            address,
            shared,
            threads,
        })
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers queries for `name` with these records, and with NODATA for other types.
    pub fn records(&self, name: &str, ttl: u32, records: &[RecordData]) {
        for kind in [A, AAAA, SRV] {
            let of_kind: Vec<RecordData> = records
                .iter()
                .filter(|record| record.kind() == kind)
                .cloned()
                .collect();
            let answer = if of_kind.is_empty() {
                DnsAnswer::Empty(ttl)
            } else {
                DnsAnswer::Records(ttl, of_kind)
            };
            self.zone()
                .answers
                .insert((name.to_lowercase(), kind), answer);
        }
    }

    /// Answers every query for `name` with `answer`.
    pub fn answer(&self, name: &str, answer: &DnsAnswer) {
        for kind in [A, AAAA, SRV] {
            let key = (name.to_lowercase(), kind);
            self.zone().answers.insert(key, answer.clone());
        }
    }

    /// Delays all responses until [`Self::release`].
    pub fn hold(&self) {
        self.zone().held = true;
    }

    /// Responds again, first to the delayed UDP queries.
    pub fn release(&self) {
        self.zone().held = false;
    }

    /// How many queries for `name` came, of all types.
    #[must_use]
    pub fn query_count(&self, name: &str) -> usize {
        self.zone().asked.get(name).copied().unwrap_or_default()
    }

    fn zone(&self) -> MutexGuard<'_, DnsZone> {
        self.shared.zone.lock().unwrap()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread was printed there.
            let _ = thread.join();
        }
    }
}

impl DnsState {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut waiting: Vec<(Vec<u8>, SocketAddr)> = Vec::new();
        let mut buffer = [0; 4096];
        while !self.stop.load(Ordering::Relaxed) {
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    self.count(&buffer[..length]);
                    waiting.push((buffer[..length].to_vec(), from));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            if self.zone.lock().unwrap().held {
                continue;
            }
            for (question, from) in waiting.drain(..) {
                if let Some(mut reply) = self.reply(&question) {
                    if reply.len() > DATAGRAM {
                        // Header and question only, with the TC bit.
                        reply.truncate(12 + question_length(&question));
                        reply[2] |= 0x02;
                        reply[6..12].fill(0);
                    }
                    // The client may be gone.
                    let _ = socket.send_to(&reply, from);
                }
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        while !self.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    // The client may be gone.
                    let _ = self.serve_stream(stream);
                }
                Err(_) => std::thread::sleep(TICK),
            }
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        self.count(&question);
        if self.zone.lock().unwrap().held {
            return Ok(());
        }
        let Some(reply) = self.reply(&question) else {
            return Ok(());
        };
        let length = u16::try_from(reply.len()).expect("an answer of at most 64 KiB");
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&reply)
    }

    fn count(&self, question: &[u8]) {
        let mut zone = self.zone.lock().unwrap();
        *zone.asked.entry(asked_name(question)).or_default() += 1;
    }

    fn reply(&self, question: &[u8]) -> Option<Vec<u8>> {
        let length = question_length(question);
        let kind = u16::from_be_bytes([question[12 + length - 4], question[12 + length - 3]]);
        let key = (asked_name(question), kind);
        let answer = self.zone.lock().unwrap().answers.get(&key).cloned();
        let (code, ttl, records, soa) = match answer.unwrap_or(DnsAnswer::Error(3)) {
            DnsAnswer::Records(ttl, records) => (0, ttl, records, false),
            DnsAnswer::Empty(ttl) => (0, ttl, Vec::new(), true),
            DnsAnswer::Hollow => (0, 0, Vec::new(), false),
            DnsAnswer::Error(code) => (code, 1, Vec::new(), code == 3),
            DnsAnswer::Silence => return None,
        };
        // Header: the same id; response, authoritative, recursion desired as in the query, recursion available.
        let mut reply = question[..2].to_vec();
        reply.extend([0x84 | question[2] & 0x01, 0x80 | code, 0, 1]);
        let count = u16::try_from(records.len()).expect("few records");
        reply.extend(count.to_be_bytes());
        reply.extend([0, u8::from(soa), 0, 0]);
        reply.extend(&question[12..12 + length]);
        for record in &records {
            push_record(&mut reply, record.kind(), ttl, &record.bytes());
        }
        if soa {
            // mname, rname, serial, refresh, retry, expire, minimum: the last is the negative TTL (RFC 2308).
            let mut data = vec![0, 0];
            for number in [1, 60, 60, 60, ttl] {
                data.extend(number.to_be_bytes());
            }
            push_record(&mut reply, SOA, ttl, &data);
        }
        Some(reply)
    }
}

/// Appends a record whose owner is the queried name.
fn push_record(reply: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    reply.extend([0xc0, 12]);
    reply.extend(kind.to_be_bytes());
    reply.extend([0, 1]);
    reply.extend(ttl.to_be_bytes());
    let length = u16::try_from(data.len()).expect("a short record");
    reply.extend(length.to_be_bytes());
    reply.extend(data);
}

/// Encodes a name: length-prefixed labels and the root.
fn name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in labels {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// The length of the first question after the header: name, type and class.
fn question_length(packet: &[u8]) -> usize {
    let mut at = 12;
    while packet[at] != 0 {
        at += 1 + usize::from(packet[at]);
    }
    at + 5 - 12
}

/// The name of the first question in lower case, without the final dot: resolvers vary the case.
fn asked_name(packet: &[u8]) -> String {
    let mut labels = Vec::new();
    let mut at = 12;
    while packet[at] != 0 {
        let length = usize::from(packet[at]);
        let label = &packet[at + 1..at + 1 + length];
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        at += 1 + length;
    }
    labels.join(".")
}
