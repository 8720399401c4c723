//! Probes: whether a member that was announced can be reached yet. One small task per member that is waited for; who is
//! waited for, and what follows from an answer, is decided by [`crate::membership::table`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::membership::table::PATIENCE;
use crate::metrics::Counter;
use crate::settings::Probe;

/// Between two probes of a member that is expected to listen soon.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two probes of a member that has not listened for long.
const SLOW: Duration = Duration::from_secs(1);
/// An answer that takes longer is none.
const DEADLINE: Duration = Duration::from_secs(2);
/// Probes at the same time, over all services.
const IN_FLIGHT: usize = 256;
/// Results that wait to be looked at.
const BACKLOG: usize = 1024;

/// A member that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub address: SocketAddr,
    /// What counts as an answer.
    pub probe: Probe,
    /// Whether it is asked again after it has answered: until it no longer does.
    pub keep_on: bool,
}

/// Which member of which service.
pub type Key = (String, String);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Service and endpoint.
    pub key: Key,
    /// Whether it answered.
    pub answered: bool,
}

/// How many probes found what.
#[derive(Debug, Clone, Default)]
pub struct Count {
    /// Those that were answered.
    pub answered: Counter,
    /// Those that were not, or not in time.
    pub silent: Counter,
}

/// All probes of this process.
#[derive(Debug)]
pub struct Prober {
    running: BTreeMap<Key, (Target, JoinHandle<()>)>,
    answers: mpsc::Sender<Answer>,
    in_flight: Arc<Semaphore>,
    count: Count,
}

impl Prober {
    /// No probes yet, and where their results arrive: the first of each member, and then every change.
    #[must_use]
    pub fn new(count: Count) -> (Self, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(BACKLOG);
        let prober = Self {
            running: BTreeMap::new(),
            answers,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            count,
        };
        (prober, receiver)
    }

    /// Waits for exactly these members of `service`; those it no longer waits for are left alone at once.
    pub fn aim(&mut self, service: &str, targets: BTreeMap<String, Target>) {
        let first = (service.to_owned(), String::new());
        let old: Vec<Key> = self
            .running
            .range(first..)
            .take_while(|(key, _)| key.0 == service)
            .filter(|(key, (target, _))| targets.get(&key.1) != Some(target))
            .map(|(key, _)| key.clone())
            .collect();
        for key in old {
            if let Some((_, task)) = self.running.remove(&key) {
                task.abort();
            }
        }
        for (endpoint, target) in targets {
            let key = (service.to_owned(), endpoint);
            if self.running.contains_key(&key) {
                continue;
            }
            let task = tokio::spawn(wait_for(
                key.clone(),
                target.clone(),
                self.answers.clone(),
                Arc::clone(&self.in_flight),
                self.count.clone(),
            ));
            self.running.insert(key, (target, task));
        }
    }

    /// How many members are waited for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.running.len()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        for (_, task) in self.running.values() {
            task.abort();
        }
    }
}

async fn wait_for(
    key: Key,
    target: Target,
    answers: mpsc::Sender<Answer>,
    in_flight: Arc<Semaphore>,
    count: Count,
) {
    let start = Instant::now();
    let mut pause = INTERVAL;
    let mut last = None;
    loop {
        let answered = {
            let Ok(_permit) = in_flight.acquire().await else {
                return;
            };
            timeout(DEADLINE, ask(&target)).await.unwrap_or(false)
        };
        let counter = if answered {
            &count.answered
        } else {
            &count.silent
        };
        counter.inc();
        if last != Some(answered) {
            last = Some(answered);
            let key = key.clone();
            if answers.send(Answer { key, answered }).await.is_err() {
                return;
            }
        }
        if answered && !target.keep_on {
            return;
        }
        if start.elapsed() >= PATIENCE {
            pause = (pause * 2).min(SLOW);
        }
        sleep(pause).await;
    }
}

async fn ask(target: &Target) -> bool {
    match &target.probe {
        Probe::None => true,
        Probe::Connect => TcpStream::connect(target.address).await.is_ok(),
        Probe::Http(path) => get(target.address, path).await.unwrap_or(false),
    }
}

async fn get(
    address: SocketAddr,
    path: &str,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 << 10)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("user-agent", "synapse")
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection may end in the same moment as the answer arrives: then the answer counts.
    let response = tokio::select! {
        response = &mut answer => response?,
        _ = connection => answer.await?,
    };
    Ok(response.status().is_success() || response.status().is_redirection())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn target(address: SocketAddr, probe: Probe, keep_on: bool) -> BTreeMap<String, Target> {
        let target = Target {
            address,
            probe,
            keep_on,
        };
        BTreeMap::from([("e".to_owned(), target)])
    }

    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    }

    #[tokio::test]
    async fn says_when_a_member_begins_to_listen() {
        let address = free().await;
        let count = Count::default();
        let (mut prober, mut answers) = Prober::new(count.clone());
        prober.aim("s", target(address, Probe::Connect, false));
        assert!(!answers.recv().await.unwrap().answered);
        let _listener = TcpListener::bind(address).await.unwrap();
        let answer = answers.recv().await.unwrap();
        assert!(answer.answered);
        assert_eq!(answer.key, ("s".to_owned(), "e".to_owned()));
        assert_eq!(count.answered.get(), 1);
        assert!(count.silent.get() >= 1);
    }

    #[tokio::test]
    async fn says_when_a_member_that_is_kept_stops_listening() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut prober, mut answers) = Prober::new(Count::default());
        prober.aim(
            "s",
            target(listener.local_addr().unwrap(), Probe::Connect, true),
        );
        assert!(answers.recv().await.unwrap().answered);
        drop(listener);
        assert!(!answers.recv().await.unwrap().answered);
    }

    #[tokio::test]
    async fn an_http_probe_wants_a_good_status() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut prober, mut answers) = Prober::new(Count::default());
        prober.aim(
            "s",
            target(address, Probe::Http("/health".to_owned()), false),
        );
        for (status, expected) in [("503 Busy", false), ("200 OK", true)] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /health HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            assert_eq!(answers.recv().await.unwrap().answered, expected, "{status}");
        }
    }

    #[tokio::test]
    async fn who_is_no_longer_waited_for_is_left_alone() {
        let (mut prober, _answers) = Prober::new(Count::default());
        prober.aim("s", target(free().await, Probe::Connect, false));
        prober.aim("t", target(free().await, Probe::Connect, false));
        prober.aim("s", BTreeMap::new());
        assert_eq!(prober.waiting(), 1);
    }
}
