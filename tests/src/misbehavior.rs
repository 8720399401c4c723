//! A server that sends raw bytes, breaks HTTP as a test sets it, and records requests. Its behavior may change while it
//! runs.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::tcp_server::TcpServer;

/// The behavior of a connection.
#[derive(Debug, Clone)]
pub enum ConnectionBehavior {
    /// Sends these bytes after a request, and closes.
    Answer(Vec<u8>),
    /// The same after [`MisbehavingServer::release`].
    Held(Vec<u8>),
    /// The same one byte at a time, with a pause before each.
    Drip(Vec<u8>, Duration),
    /// Sends these bytes after a request, and then stays silent.
    Stall(Vec<u8>),
    /// Sends the first bytes after a request, and then repeats the second ones while the client reads.
    Endless(Vec<u8>, Vec<u8>),
    /// Closes without reading.
    Close,
    /// Resets the connection after a request.
    Reset,
}

/// A complete response with `Content-Length`.
#[must_use]
pub fn format_response(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

#[derive(Debug)]
struct BehaviorState {
    behavior: Mutex<ConnectionBehavior>,
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
    written: AtomicU64,
    released: Notify,
}

/// A running server. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct MisbehavingServer {
    server: TcpServer,
    shared: Arc<BehaviorState>,
}

impl MisbehavingServer {
    /// Starts a server on a free port of 127.0.0.1.
    #[must_use]
    pub fn start(behavior: ConnectionBehavior) -> Self {
        Self::on((Ipv4Addr::LOCALHOST, 0).into(), behavior)
    }

    /// Starts a server on a free port of ::1 only.
    ///
    /// # Errors
    /// This host has no IPv6.
    pub fn start_v6(behavior: ConnectionBehavior) -> Result<Self, String> {
        match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(listener) => Ok(Self::with(listener, behavior)),
            Err(error) => Err(format!("no IPv6: {error}")),
        }
    }

    /// Starts a server on a free address.
    #[must_use]
    pub fn on(address: SocketAddr, behavior: ConnectionBehavior) -> Self {
        Self::with(TcpListener::bind(address).expect("a free port"), behavior)
    }

    fn with(listener: TcpListener, behavior: ConnectionBehavior) -> Self {
        let shared = Arc::new(BehaviorState {
            behavior: Mutex::new(behavior),
            requests: Mutex::default(),
            connections: AtomicUsize::default(),
            written: AtomicU64::default(),
            released: Notify::new(),
        });
        let served = Arc::clone(&shared);
        let server = TcpServer::on(listener, "misbehaving", move |stream| {
            served.connections.fetch_add(1, Ordering::SeqCst);
            serve(stream, Arc::clone(&served))
        });
        Self { server, shared }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// Sets the behavior of later connections.
    pub fn set_behavior(&self, behavior: ConnectionBehavior) {
        *self.shared.behavior.lock().unwrap() = behavior;
    }

    /// Releases the responses that are held.
    pub fn release(&self) {
        self.shared.released.notify_waiters();
    }

    /// The heads of the requests so far, without the empty line.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were written to sockets so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::SeqCst)
    }
}

async fn serve(stream: TcpStream, shared: Arc<BehaviorState>) {
    let behavior = shared.behavior.lock().unwrap().clone();
    // Many tests are about clients that disconnect early.
    let _ = behave(stream, behavior, &shared).await;
}

async fn behave(
    mut stream: TcpStream,
    behavior: ConnectionBehavior,
    shared: &BehaviorState,
) -> std::io::Result<()> {
    if matches!(behavior, ConnectionBehavior::Close) {
        return Ok(());
    }
    let released = shared.released.notified();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).trim_end().to_owned();
    shared.requests.lock().unwrap().push(text);
    match behavior {
        ConnectionBehavior::Close => {}
        ConnectionBehavior::Reset => stream.set_zero_linger()?,
        ConnectionBehavior::Answer(bytes) => send(&mut stream, &bytes, shared).await?,
        ConnectionBehavior::Held(bytes) => {
            released.await;
            send(&mut stream, &bytes, shared).await?;
        }
        ConnectionBehavior::Drip(bytes, pause) => {
            for byte in bytes {
                sleep(pause).await;
                send(&mut stream, &[byte], shared).await?;
            }
        }
        ConnectionBehavior::Stall(bytes) => {
            send(&mut stream, &bytes, shared).await?;
            // The next byte would be the end of the connection.
            let _ = stream.read_u8().await;
        }
        ConnectionBehavior::Endless(first, rest) => {
            send(&mut stream, &first, shared).await?;
            loop {
                send(&mut stream, &rest, shared).await?;
            }
        }
    }
    Ok(())
}

async fn send(
    stream: &mut TcpStream,
    mut bytes: &[u8],
    shared: &BehaviorState,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write(bytes).await?;
        shared.written.fetch_add(written as u64, Ordering::SeqCst);
        bytes = &bytes[written..];
    }
    Ok(())
}

/// A listening port with a full backlog: connections are neither refused nor accepted.
#[derive(Debug)]
pub struct FullBacklog {
    listener: Socket,
    _waiting: Vec<Socket>,
}

impl FullBacklog {
    /// Starts one on a free port of 127.0.0.1.
    #[must_use]
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&SockAddr::from(address)).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = (0..3).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            // The first one is queued; later ones wait.
            let _ = socket.connect_timeout(&address, Duration::from_millis(50));
            socket
        });
        let waiting = waiting.collect();
        Self {
            listener,
            _waiting: waiting,
        }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.listener
            .local_addr()
            .unwrap()
            .as_socket()
            .unwrap()
            .port()
    }
}
