//! A listening task: it accepts connections and answers requests until it quits or dies.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::TaskJournal;
use crate::load::head::MessageHead;

const BACKLOG: i32 = 1024;

/// The phase that the connections of a task follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServingPhase {
    Serving,
    /// Answer requests that were sent, close idle connections.
    Quitting,
    /// Close all connections at once.
    Dead,
}

/// A port that is bound but does not listen yet: connections are refused, and no other process can bind it.
#[derive(Debug)]
pub(super) struct ReservedPort(Socket);

impl ReservedPort {
    /// Binds a port of an address; port 0 selects a free one.
    pub(super) fn take(address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A given port may be that of an earlier task. For a free one, this option would let the kernel choose a port
        // that another task has bound but does not listen on yet.
        socket.set_reuse_address(address.port() != 0)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }

    pub(super) fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("an internet address")
    }

    /// Starts to accept connections.
    pub(super) fn listen(self) -> std::io::Result<TcpListener> {
        self.0.listen(BACKLOG)?;
        TcpListener::from_std(self.0.into())
    }
}

/// Serves while the phase is [`ServingPhase::Serving`], then closes the port and waits for the connections.
pub(super) async fn serve(
    listener: TcpListener,
    journal: Arc<TaskJournal>,
    answer_after: Duration,
    mut phase: watch::Receiver<ServingPhase>,
    mut resets: impl FnMut() -> bool,
) {
    let mut connections = tokio::task::JoinSet::new();
    let mut outcome = phase.clone();
    let over = outcome.wait_for(|&phase| phase != ServingPhase::Serving);
    tokio::pin!(over);
    loop {
        tokio::select! {
            biased;
            _ = &mut over => break,
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let (journal, phase) = (journal.clone(), phase.clone());
                    connections.spawn(connection(stream, journal, answer_after, phase, resets()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // Connections in the backlog are accepted already: closing the port would reset them.
    while *phase.borrow_and_update() == ServingPhase::Quitting
        && let Ok((socket, _)) = SockRef::from(&listener).accept()
        && let Ok(stream) = TcpStream::from_std(nonblocking(socket))
    {
        connections.spawn(connection(
            stream,
            journal.clone(),
            answer_after,
            phase.clone(),
            false,
        ));
    }
    drop(listener);
    journal.closed();
    while connections.join_next().await.is_some() {}
}

fn nonblocking(socket: Socket) -> std::net::TcpStream {
    let _ = socket.set_nonblocking(true);
    socket.into()
}

/// Reads what the kernel has for a connection now, without the runtime, which may not have noticed it yet.
fn waiting(stream: &TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut some = [0; 4096];
    match (&*SockRef::from(stream)).read(&mut some) {
        Ok(count @ 1..) => {
            bytes.extend_from_slice(&some[..count]);
            true
        }
        _ => false,
    }
}

/// Answers the requests of one connection.
async fn connection(
    mut stream: TcpStream,
    journal: Arc<TaskJournal>,
    answer_after: Duration,
    mut phase: watch::Receiver<ServingPhase>,
    reset: bool,
) {
    let _ = stream.set_nodelay(true);
    let mut death = phase.clone();
    tokio::select! {
        biased;
        _ = death.wait_for(|&phase| phase == ServingPhase::Dead) => {}
        () = answer_all(&mut stream, &journal, answer_after, &mut phase) => return,
    }
    if reset {
        let _ = stream.set_zero_linger();
    }
}

async fn answer_all(
    stream: &mut TcpStream,
    journal: &TaskJournal,
    answer_after: Duration,
    phase: &mut watch::Receiver<ServingPhase>,
) {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let head = match MessageHead::parse(&bytes) {
            Ok(Some(head)) => head,
            Ok(None) => {
                // A request whose bytes have arrived was sent before the connection closed.
                let quitting = *phase.borrow_and_update() != ServingPhase::Serving;
                if quitting {
                    if waiting(stream, &mut bytes) {
                        continue;
                    }
                    return;
                }
                tokio::select! {
                    biased;
                    read = stream.read_buf(&mut bytes) => match read {
                        Ok(1..) => {}
                        _ => return,
                    },
                    _ = phase.changed() => {}
                }
                continue;
            }
            Err(_) => return,
        };
        let health = bytes[head.second.clone()] == *b"/health";
        let whole = head.length + head.body.unwrap_or_default();
        while bytes.len() < whole {
            match stream.read_buf(&mut bytes).await {
                Ok(1..) => {}
                _ => return,
            }
        }
        bytes.drain(..whole);
        if !health && !answer_after.is_zero() {
            tokio::time::sleep(answer_after).await;
        }
        let close = head.close || *phase.borrow() != ServingPhase::Serving;
        let body = &journal.body;
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{}\r\n{body}",
            body.len(),
            if close { "Connection: close\r\n" } else { "" },
        );
        // Health checks do not count as requests.
        if !health {
            journal.answering();
        }
        if stream.write_all(response.as_bytes()).await.is_err() || close {
            return;
        }
    }
}
