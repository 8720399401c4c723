//! An HTTP/1.1 origin that records requests and injects faults. It holds objects in memory; the faults are in
//! [`OriginFault`].

mod answer;
mod fault;
mod wire;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::tcp_server::TcpServer;
use crate::tls::CertificateAuthority;
use answer::{answer, text_of};
pub use fault::OriginFault;
use fault::{ActiveFault, FaultPlan};
use wire::{OriginBody, OriginSocket, WireSignals};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRequest {
    pub method: String,
    /// The escaped path without the query.
    pub path: String,
    pub query: Option<String>,
    pub range: Option<String>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub authorization: Option<String>,
    pub user_agent: Option<String>,
}

#[derive(Debug, Clone)]
struct OriginObject {
    data: Bytes,
    etag: String,
    last_modified: String,
}

#[derive(Debug, Default)]
struct OriginState {
    objects: HashMap<String, OriginObject>,
    faults: HashMap<String, Vec<ActiveFault>>,
    requests: Vec<OriginRequest>,
    bodies: HashMap<String, u64>,
    sent: HashMap<String, Arc<AtomicU64>>,
    authorization: Option<String>,
    puts: u64,
}

#[derive(Debug, Default)]
struct OriginContext {
    state: Mutex<OriginState>,
    connections: AtomicU64,
}

/// A running origin. Dropping it closes its port and all connections.
#[derive(Debug)]
pub struct OriginServer {
    server: TcpServer,
    shared: Arc<OriginContext>,
    scheme: &'static str,
}

impl OriginServer {
    #[must_use]
    pub fn start() -> Self {
        Self::serve(None)
    }

    #[must_use]
    pub fn start_tls(authority: &CertificateAuthority) -> Self {
        Self::serve(Some(authority.server_config()))
    }

    /// Serves HTTPS to clients with a certificate of `authority`.
    #[must_use]
    pub fn start_mutual_tls(authority: &CertificateAuthority) -> Self {
        Self::serve(Some(authority.server_config_for_clients()))
    }

    fn serve(config: Option<Arc<ServerConfig>>) -> Self {
        let shared = Arc::new(OriginContext::default());
        let scheme = if config.is_some() { "https" } else { "http" };
        let (tls, served) = (config.map(TlsAcceptor::from), shared.clone());
        let server = TcpServer::start("origin", move |tcp| {
            let (tls, shared) = (tls.clone(), served.clone());
            shared.connections.fetch_add(1, Ordering::Relaxed);
            async move {
                let (wire, signals) = OriginSocket::new(tcp);
                match tls {
                    None => connection(wire, signals, shared).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(wire).await {
                            connection(stream, signals, shared).await;
                        }
                    }
                }
            }
        });
        Self {
            server,
            shared,
            scheme,
        }
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.server.address().port()
    }

    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}{path}", self.scheme, self.port())
    }

    /// Stores an object and returns its `ETag`.
    pub fn put(&self, path: &str, data: impl Into<Bytes>) -> String {
        self.shared.state.lock().unwrap().put(path, data.into())
    }

    #[must_use]
    pub fn object(&self, path: &str) -> Option<Bytes> {
        let state = self.shared.state.lock().unwrap();
        state.objects.get(path).map(|object| object.data.clone())
    }

    pub fn remove(&self, path: &str) {
        self.shared.state.lock().unwrap().objects.remove(path);
    }

    /// Requires this user and password; other requests get 401.
    pub fn require_basic(&self, user: &str, password: &str) {
        let token = base64(format!("{user}:{password}").as_bytes());
        self.require_authorization(&format!("Basic {token}"));
    }

    /// Requires exactly this `Authorization`; other requests get 401.
    pub fn require_authorization(&self, value: &str) {
        self.shared.state.lock().unwrap().authorization = Some(value.to_owned());
    }

    /// Sets the only fault of a path.
    pub fn fault(&self, path: &str, fault: OriginFault) {
        self.set(
            path,
            vec![ActiveFault {
                fault,
                left: None,
                seen: 0,
            }],
        );
    }

    /// Sets several faults of a path, which all apply to each request.
    pub fn faults(&self, path: &str, faults: impl IntoIterator<Item = OriginFault>) {
        let active = |fault| ActiveFault {
            fault,
            left: None,
            seen: 0,
        };
        self.set(path, faults.into_iter().map(active).collect());
    }

    /// Sets the only fault of a path for the next `times` requests to which it applies.
    pub fn fault_times(&self, path: &str, fault: OriginFault, times: u64) {
        let left = Some(times);
        self.set(
            path,
            if times == 0 {
                vec![]
            } else {
                vec![ActiveFault {
                    fault,
                    left,
                    seen: 0,
                }]
            },
        );
    }

    fn set(&self, path: &str, faults: Vec<ActiveFault>) {
        self.shared
            .state
            .lock()
            .unwrap()
            .faults
            .insert(path.to_owned(), faults);
    }

    pub fn clear_faults(&self) {
        self.shared.state.lock().unwrap().faults.clear();
    }

    #[must_use]
    pub fn requests(&self) -> Vec<OriginRequest> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// How many GET responses with a body of the object (200 or 206) were started on a path.
    #[must_use]
    pub fn bodies(&self, path: &str) -> u64 {
        let state = self.shared.state.lock().unwrap();
        state.bodies.get(path).copied().unwrap_or(0)
    }

    /// How many bytes of the object were sent on a path. A client that disconnected may have received fewer.
    #[must_use]
    pub fn bytes(&self, path: &str) -> u64 {
        let state = self.shared.state.lock().unwrap();
        state
            .sent
            .get(path)
            .map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    /// How many connections were opened, including those that failed in TLS.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub fn reset_counters(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.requests.clear();
        state.bodies.clear();
        state.sent.clear();
        self.shared.connections.store(0, Ordering::Relaxed);
    }

    pub fn wait_requests(&self, path: &str, count: usize) {
        crate::wait_until(&format!("{count} requests for {path}"), || {
            let state = self.shared.state.lock().unwrap();
            state
                .requests
                .iter()
                .filter(|request| request.path == path)
                .count()
                >= count
        });
    }
}

impl OriginState {
    fn put(&mut self, path: &str, data: Bytes) -> String {
        self.puts += 1;
        let digest = Sha256::digest(&data);
        let etag = format!("\"{}\"", hostkit::hex::encode(&digest[..16]));
        // Clients may rely only on a date that changes with the object.
        let (minute, second) = (self.puts / 60 % 60, self.puts % 60);
        let last_modified = format!("Mon, 06 Jul 2015 10:{minute:02}:{second:02} GMT");
        self.objects.insert(
            path.to_owned(),
            OriginObject {
                data,
                etag: etag.clone(),
                last_modified,
            },
        );
        etag
    }

    /// Records a request and returns the faults that apply to it.
    fn note(&mut self, request: OriginRequest) -> FaultPlan {
        let path = request.path.clone();
        let head = request.method == "HEAD";
        self.requests.push(request);
        let faults = self.faults.entry(path.clone()).or_default();
        let plan = FaultPlan::take(faults, head);
        if plan.swap
            && let Some(object) = self.objects.get(&path)
        {
            let other: Vec<u8> = object.data.iter().map(|byte| !byte).collect();
            self.put(&path, other.into());
        }
        plan
    }
}

async fn connection<T>(stream: T, signals: Arc<WireSignals>, shared: Arc<OriginContext>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (signals, shared) = (signals.clone(), shared.clone());
        async move { Ok::<_, Infallible>(respond(&shared, signals, &request).await) }
    });
    // A fault ends the connection with an error on purpose, and clients may disconnect.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn respond(
    shared: &OriginContext,
    signals: Arc<WireSignals>,
    request: &hyper::Request<Incoming>,
) -> Response<OriginBody> {
    let value = |name| text_of(request.headers(), &name).map(str::to_owned);
    let noted = OriginRequest {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().map(str::to_owned),
        range: value(header::RANGE),
        if_match: value(header::IF_MATCH),
        if_none_match: value(header::IF_NONE_MATCH),
        authorization: value(header::AUTHORIZATION),
        user_agent: value(header::USER_AGENT),
    };
    let path = noted.path.clone();
    let plan = shared.state.lock().unwrap().note(noted);
    if !plan.latency.is_zero() {
        tokio::time::sleep(plan.latency).await;
    }
    answer(
        shared,
        signals,
        request.method(),
        &path,
        request.headers(),
        &plan,
    )
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, i| {
            word << 8 | u32::from(*chunk.get(i).unwrap_or(&0))
        });
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i > chunk.len() { '=' } else { digit });
        }
    }
    text
}
