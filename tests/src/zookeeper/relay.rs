//! A relay to a server that drops watch events, as defective servers and client libraries do, and that switches to
//! another server on command, as an address does when an ensemble is replaced.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::ZookeeperServer;

/// The `xid` of replies that are watch events (ZooKeeper's `ClientCnxn`, `NOTIFICATION_XID`).
const NOTIFICATION: [u8; 4] = (-1i32).to_be_bytes();

/// A relay in front of a server. It lives as long as the process; its connections end with the server's.
#[derive(Debug)]
pub struct ZookeeperRelay {
    port: u16,
    host: Arc<Mutex<String>>,
    deaf: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
}

impl ZookeeperRelay {
    /// Starts a relay that forwards all packets.
    #[must_use]
    pub fn before(server: &ZookeeperServer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (deaf, dropped) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let host = Arc::new(Mutex::new(server.host()));
        let (target, flag, count) = (Arc::clone(&host), Arc::clone(&deaf), Arc::clone(&dropped));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let host = target.lock().unwrap().clone();
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(host)) else {
                    continue;
                };
                let (mut up, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut up, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (flag, count) = (Arc::clone(&flag), Arc::clone(&count));
                std::thread::spawn(move || {
                    let _ = relay(server, &client, &flag, &count);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Self {
            port,
            host,
            deaf,
            dropped,
        }
    }

    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends new connections to another server.
    pub fn lead_to(&self, server: &ZookeeperServer) {
        *self.host.lock().unwrap() = server.host();
    }

    /// Sets whether watch events are dropped.
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::SeqCst);
    }

    /// How many watch events were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }
}

/// Forwards the packets of a server, which are length-prefixed.
fn relay(
    mut server: TcpStream,
    mut client: &TcpStream,
    deaf: &AtomicBool,
    dropped: &AtomicU64,
) -> std::io::Result<()> {
    loop {
        let mut length = [0; 4];
        server.read_exact(&mut length)?;
        let mut packet = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        server.read_exact(&mut packet)?;
        if packet.starts_with(&NOTIFICATION) && deaf.load(Ordering::SeqCst) {
            dropped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        client.write_all(&length)?;
        client.write_all(&packet)?;
    }
}
