//! Events sent as DogStatsD over UDP, under the names that Synapse had where it had one, so that its dashboards go on
//! working. Nothing waits for it: what cannot be queued or sent is dropped and counted.
//!
//! Format: `name:value|type|@rate|#tag:value,tag:value`, lines of one packet separated by a newline
//! (<https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/>).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hostkit::backoff::Backoff;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout};

use crate::metrics::Counter;
use crate::settings;

/// Synapse's names.
pub mod name {
    /// The files are written anew.
    pub const CONFIG_UPDATE: &str = "synapse.config.update";
    /// A candidate was checked; tag `success`.
    pub const CHECK_CONFIG: &str = "synapse.haproxy.check_config";
    /// A reload failed.
    pub const RELOAD_FAILED: &str = "synapse.haproxy.reload_failed";
    /// There is something new below a path; tags `zk_cluster`, `zk_path`, `service_name`.
    pub const DISCOVERY: &str = "synapse.watcher.zk.discovery";
    /// A registration makes no sense; tags `service_name`, `zk_path` (its own).
    pub const PARSE_CHILD_FAILED: &str = "synapse.watcher.zk.parse_child_failed";
    /// A session expired; tag `zk_cluster`.
    pub const SESSION_EXPIRED: &str = "synapse.watcher.zk.session.expired";
    /// Ours: a reload; tags `cause`, `result`.
    pub const RELOAD: &str = "synapse.haproxy.reload";
    /// Ours: from a change in the source to HAProxy having taken it.
    pub const CHANGE_TO_LIVE: &str = "synapse.change_to_live";
    /// Ours: members kept by the guard over all services.
    pub const HELD_REMOVALS: &str = "synapse.held_removals";
}

/// Events that wait to be sent.
const QUEUE: usize = 1024;
/// The longest packet: what an Ethernet frame holds after the headers of IPv6 and UDP, less some for tunnels.
const PACKET: usize = 1400;
/// The longest tag value; DogStatsD takes 200 characters for a tag.
const TAG: usize = 150;
/// How long an event waits for others to share its packet.
const LINGER: Duration = Duration::from_millis(100);
/// Looking up the host and sending one packet may take this long; meanwhile events are queued.
const DEADLINE: Duration = Duration::from_secs(5);
/// After an error nothing is sent for at least this long ...
const MIN_RETRY: Duration = Duration::from_millis(500);
/// ... and, when errors go on, at most this long.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Where events go in. A clone is the same.
#[derive(Debug, Clone)]
pub struct Statsd {
    queue: Sender<String>,
    samples: Arc<Mutex<BTreeMap<String, Sample>>>,
    dropped: Counter,
}

/// The share of a metric's events that is sent, and how much of the next one has come together.
#[derive(Debug)]
struct Sample {
    rate: f64,
    due: f64,
}

/// A tag and its value, which may be any text.
pub type Tag<'a> = (&'static str, &'a str);

impl Statsd {
    /// A place for events, and what sends them: to be spawned, it ends when the last clone is gone. `dropped` counts
    /// what is not sent.
    pub fn new(
        settings: &settings::Statsd,
        dropped: Counter,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, events) = channel(QUEUE);
        let rates = settings.sample_rate.iter();
        let samples = rates
            .map(|(name, rate)| {
                let (rate, due) = (rate.clamp(0.0, 1.0), 0.0);
                (name.clone(), Sample { rate, due })
            })
            .collect();
        let statsd = Self {
            queue,
            samples: Arc::new(Mutex::new(samples)),
            dropped: dropped.clone(),
        };
        (
            statsd,
            send(settings.host.clone(), settings.port, events, dropped),
        )
    }

    /// Something happened `count` times.
    pub fn count(&self, name: &str, count: u64, tags: &[Tag<'_>]) {
        self.event(name, &count.to_string(), "c", tags);
    }

    /// Something is `value` now.
    pub fn gauge(&self, name: &str, value: f64, tags: &[Tag<'_>]) {
        self.event(name, &value.to_string(), "g", tags);
    }

    /// Something took this long.
    pub fn timing(&self, name: &str, took: Duration, tags: &[Tag<'_>]) {
        let millis = took.as_secs_f64() * 1000.0;
        self.event(name, &format!("{millis:.3}"), "ms", tags);
    }

    fn event(&self, name: &str, value: &str, kind: &str, tags: &[Tag<'_>]) {
        let Some(rate) = self.sampled(name) else {
            return;
        };
        let mut line = format!("{name}:{value}|{kind}");
        if rate < 1.0 {
            line.push_str(&format!("|@{rate}"));
        }
        for (number, (tag, value)) in tags.iter().enumerate() {
            line.push_str(if number == 0 { "|#" } else { "," });
            line.push_str(tag);
            line.push(':');
            line.extend(value.chars().take(TAG).map(escaped));
        }
        if line.len() > PACKET || self.queue.try_send(line).is_err() {
            self.dropped.inc();
        }
    }

    /// The rate at which this event is sent, or `None` when it is not. Every n-th event is, which comes to the share
    /// that chance would take, without its noise.
    fn sampled(&self, name: &str) -> Option<f64> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sample) = samples.get_mut(name) else {
            return Some(1.0);
        };
        sample.due += sample.rate;
        (sample.due >= 1.0).then(|| {
            sample.due -= 1.0;
            sample.rate
        })
    }
}

/// What separates lines, fields and tags is not for values.
fn escaped(c: char) -> char {
    if c.is_control() || c.is_whitespace() || "|,#@".contains(c) {
        '_'
    } else {
        c
    }
}

/// Sends what comes, several events to a packet, until nobody can send any more.
async fn send(host: String, port: u16, mut events: Receiver<String>, dropped: Counter) {
    let mut target = Target::new(host, port);
    let mut packet = String::new();
    while let Some(event) = events.recv().await {
        packet.push_str(&event);
        let mut lines = 1;
        let sent_at = Instant::now() + LINGER;
        while let Ok(Some(event)) = tokio::time::timeout_at(sent_at, events.recv()).await {
            if packet.len() + 1 + event.len() > PACKET {
                target.send(&packet, lines, &dropped).await;
                packet.clear();
                lines = 0;
            } else {
                packet.push('\n');
            }
            packet.push_str(&event);
            lines += 1;
        }
        target.send(&packet, lines, &dropped).await;
        packet.clear();
    }
}

/// The receiver. Its name is looked up when there is no socket, and after an error there is none for a while.
struct Target {
    host: String,
    port: u16,
    socket: Option<UdpSocket>,
    backoff: Backoff,
    connect_at: Instant,
    attempt: usize,
}

impl Target {
    fn new(host: String, port: u16) -> Self {
        Self {
            host,
            port,
            socket: None,
            backoff: Backoff::new(MIN_RETRY, MAX_RETRY),
            connect_at: Instant::now(),
            attempt: 0,
        }
    }

    async fn send(&mut self, packet: &str, lines: u64, dropped: &Counter) {
        if self.socket.is_none() && Instant::now() < self.connect_at {
            dropped.inc_by(lines);
            return;
        }
        let sent = timeout(DEADLINE, self.try_send(packet));
        let sent = sent.await.unwrap_or_else(|late| Err(late.into()));
        if let Err(error) = sent {
            dropped.inc_by(lines);
            tracing::debug!(host = self.host, port = self.port, %error, "cannot send to StatsD");
            // A receiver that is away is told by the second packet at the earliest: one that went well proves little.
            if self.connect_at.elapsed() > MAX_RETRY {
                self.backoff = Backoff::new(MIN_RETRY, MAX_RETRY);
            }
            self.socket = None;
            self.attempt = self.attempt.wrapping_add(1);
            self.connect_at = Instant::now() + self.backoff.next_delay();
        }
    }

    async fn try_send(&mut self, packet: &str) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = connect(&self.host, self.port, self.attempt).await?;
                self.socket.insert(socket)
            }
        };
        socket.send(packet.as_bytes()).await.map(drop)
    }
}

/// A socket to one of the host's addresses, another one for each attempt: for UDP all of them take a connection, also
/// `::1` of a localhost whose receiver listens on 127.0.0.1.
async fn connect(host: &str, port: u16, attempt: usize) -> io::Result<UdpSocket> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let address = attempt
        .checked_rem(addresses.len())
        .map(|chosen| addresses[chosen])
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let local: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use proptest::prelude::*;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn receiver() -> (StdSocket, settings::Statsd) {
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let settings = settings::Statsd {
            host: "localhost".to_owned(),
            port: socket.local_addr().unwrap().port(),
            sample_rate: BTreeMap::new(),
        };
        (socket, settings)
    }

    fn packet(socket: &StdSocket) -> String {
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    /// All packets that these events become.
    fn sent(
        settings: &settings::Statsd,
        socket: &StdSocket,
        events: impl FnOnce(&Statsd),
    ) -> String {
        let (statsd, task) = Statsd::new(settings, Counter::default());
        events(&statsd);
        drop(statsd);
        runtime().block_on(task);
        let mut packets = packet(socket);
        socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        while let Ok(length) = socket.recv(&mut bytes) {
            assert!(length <= PACKET);
            packets.push('\n');
            packets.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        packets
    }

    #[test]
    fn events_share_packets_and_hostile_tags_stay_values() {
        let (socket, settings) = receiver();
        let packets = sent(&settings, &socket, |statsd| {
            statsd.count(name::CONFIG_UPDATE, 1, &[]);
            statsd.timing(
                name::CHANGE_TO_LIVE,
                Duration::from_micros(1500),
                &[("zk_path", "/a")],
            );
            statsd.gauge(
                name::HELD_REMOVALS,
                3.0,
                &[("a", "b|c\nd"), ("e", "f,#g @h")],
            );
        });
        assert_eq!(
            packets,
            "synapse.config.update:1|c\n\
             synapse.change_to_live:1.500|ms|#zk_path:/a\n\
             synapse.held_removals:3|g|#a:b_c_d,e:f__g__h"
        );
    }

    #[test]
    fn a_metric_is_sampled_at_its_rate() {
        let (socket, mut settings) = receiver();
        settings
            .sample_rate
            .insert(name::DISCOVERY.to_owned(), 0.25);
        settings.sample_rate.insert(name::RELOAD.to_owned(), 0.0);
        let packets = sent(&settings, &socket, |statsd| {
            for _ in 0..400 {
                statsd.count(name::DISCOVERY, 1, &[]);
                statsd.count(name::RELOAD, 1, &[]);
            }
        });
        let lines: Vec<&str> = packets.lines().collect();
        assert_eq!(lines, ["synapse.watcher.zk.discovery:1|c|@0.25"; 100]);
    }

    #[test]
    fn what_is_too_much_is_dropped_and_counted() {
        let (_socket, settings) = receiver();
        let dropped = Counter::default();
        let (statsd, _task) = Statsd::new(&settings, dropped.clone());
        for _ in 0..QUEUE + 7 {
            statsd.count(name::RELOAD, 1, &[]);
        }
        statsd.count(name::RELOAD, 1, &[("a", "x"); 1000]);
        assert_eq!(dropped.get(), 8);
    }

    #[test]
    fn a_receiver_that_comes_late_gets_what_is_sent_then() {
        let (socket, settings) = receiver();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let dropped = Counter::default();
        runtime().block_on(async {
            let (statsd, task) = Statsd::new(&settings, dropped.clone());
            tokio::spawn(task);
            // Until the kernel has said that nobody is there.
            while dropped.get() == 0 {
                statsd.count(name::RELOAD, 1, &[]);
                tokio::task::yield_now().await;
            }
            let socket = UdpSocket::bind(address).await.unwrap();
            let mut bytes = [0; 4096];
            timeout(Duration::from_secs(30), async {
                loop {
                    statsd.count(name::CONFIG_UPDATE, 1, &[]);
                    let received = timeout(LINGER, socket.recv(&mut bytes)).await;
                    if let Ok(length) = received {
                        break length.unwrap();
                    }
                }
            })
            .await
            .unwrap();
        });
    }

    #[test]
    fn after_an_error_the_name_is_looked_up_again_but_not_at_once() {
        let (socket, settings) = receiver();
        drop(socket);
        let dropped = Counter::default();
        runtime().block_on(async {
            let mut target = Target::new(settings.host, settings.port);
            while dropped.get() == 0 {
                target.send("a:1|c", 1, &dropped).await;
            }
            assert!(target.socket.is_none() && target.connect_at > Instant::now());
            target.send("a:1|c\na:1|c", 2, &dropped).await;
            assert!(target.socket.is_none());
            assert_eq!(dropped.get(), 3);
        });
    }

    proptest! {
        #[test]
        fn no_tag_can_end_its_line_or_field(value: String) {
            let (_socket, settings) = receiver();
            let (queue, mut events) = channel(1);
            let statsd = Statsd { queue, ..Statsd::new(&settings, Counter::default()).0 };
            statsd.count(name::RELOAD, 1, &[("cause", &value)]);
            let line = events.try_recv().unwrap();
            prop_assert_eq!(line.lines().count(), 1);
            prop_assert_eq!(line.matches('|').count(), 2);
            prop_assert!(!line.contains(','));
        }
    }
}
