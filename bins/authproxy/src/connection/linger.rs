//! A client that was answered before it had sent everything.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy::WorkerThread;
use crate::request_validation::poll_discard;

/// How long a client that was answered before it had sent everything is read without a byte from it,
pub(super) const LINGER_IDLE: Duration = Duration::from_secs(5);
/// and how long in all.
const LINGER: Duration = Duration::from_secs(30);

/// Whether the client has sent something that was not read.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(stream).peek(&mut byte), Ok(1))
}

/// Reads what a client still sends and keeps nothing of it, until the client has seen that it is answered. Closing at
/// once would reset the connection, and a client that sends everything before it reads would lose the answer with it
/// (RFC 9112 section 9.6). When connections run short, the one that lingers for longest is closed.
pub(super) async fn linger(mut stream: TcpStream, thread: &WorkerThread) {
    if SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut place = thread.proxy.lingering.enter(());
    let discard = async {
        loop {
            let more = poll_fn(|cx| poll_discard(&mut stream, cx));
            if !matches!(timeout(LINGER_IDLE, more).await, Ok(Ok(true))) {
                return;
            }
        }
    };
    tokio::select! {
        _ = timeout(LINGER, discard) => {}
        () = poll_fn(|cx| place.poll_evicted(cx)) => {}
    }
}
