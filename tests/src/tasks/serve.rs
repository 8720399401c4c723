//! What a task does once it listens: it accepts connections and answers requests, until it quits or dies.

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

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// What the connections of a task are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServingPhase {
    /// Answer.
    Serving,
    /// Answer what was asked, close what is idle.
    Quitting,
    /// Be gone at once.
    Dead,
}

/// A port that the task has and does not listen on yet: connections to it are refused, and nobody else can have it.
#[derive(Debug)]
pub(super) struct ReservedPort(Socket);

impl ReservedPort {
    /// Takes a port of an address; port 0 is one that is free.
    pub(super) fn take(address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A given port may be that of a life before this one. For a free one the kernel must not choose one that
        // another life has and does not listen on yet, as this option would let it.
        socket.set_reuse_address(address.port() != 0)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self(socket))
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("an internet address")
    }

    /// From now on connections are accepted.
    pub(super) fn listen(self) -> std::io::Result<TcpListener> {
        self.0.listen(BACKLOG)?;
        TcpListener::from_std(self.0.into())
    }
}

/// Serves until the phase is no longer [`ServingPhase::Serving`], then closes the port and waits for the connections.
pub(super) async fn serve(
    listener: TcpListener,
    book: Arc<TaskJournal>,
    answer_after: Duration,
    mut phase: watch::Receiver<ServingPhase>,
    mut resets: impl FnMut() -> bool,
) {
    let mut connections = tokio::task::JoinSet::new();
    let mut told = phase.clone();
    let over = told.wait_for(|&phase| phase != ServingPhase::Serving);
    tokio::pin!(over);
    loop {
        tokio::select! {
            biased;
            _ = &mut over => break,
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let (book, phase) = (book.clone(), phase.clone());
                    connections.spawn(connection(stream, book, answer_after, phase, resets()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // Whom the kernel let in already is in: closing the port would reset them.
    while *phase.borrow_and_update() == ServingPhase::Quitting
        && let Ok((socket, _)) = SockRef::from(&listener).accept()
        && let Ok(stream) = TcpStream::from_std(nonblocking(socket))
    {
        connections.spawn(connection(
            stream,
            book.clone(),
            answer_after,
            phase.clone(),
            false,
        ));
    }
    drop(listener);
    book.closed();
    while connections.join_next().await.is_some() {}
}

fn nonblocking(socket: Socket) -> std::net::TcpStream {
    let _ = socket.set_nonblocking(true);
    socket.into()
}

/// The bytes that the kernel has for a connection now, without asking the runtime, which may not have noticed them yet.
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
    book: Arc<TaskJournal>,
    answer_after: Duration,
    mut phase: watch::Receiver<ServingPhase>,
    reset: bool,
) {
    let _ = stream.set_nodelay(true);
    let mut death = phase.clone();
    tokio::select! {
        biased;
        _ = death.wait_for(|&phase| phase == ServingPhase::Dead) => {}
        () = answer_all(&mut stream, &book, answer_after, &mut phase) => return,
    }
    if reset {
        let _ = stream.set_zero_linger();
    }
}

async fn answer_all(
    stream: &mut TcpStream,
    book: &TaskJournal,
    answer_after: Duration,
    phase: &mut watch::Receiver<ServingPhase>,
) {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let head = match MessageHead::parse(&bytes) {
            Ok(Some(head)) => head,
            Ok(None) => {
                // A request whose bytes are here was asked before the connection closed.
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
        let body = &book.body;
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{}\r\n{body}",
            body.len(),
            if close { "Connection: close\r\n" } else { "" },
        );
        // A health check is not a user's request.
        if !health {
            book.answering();
        }
        if stream.write_all(response.as_bytes()).await.is_err() || close {
            return;
        }
    }
}
