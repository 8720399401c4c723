//! Lingering close: a client that gets its response before it has sent its whole request.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::proxy::WorkerThread;
use crate::request_validation::poll_discard;

/// The linger ends after this long without a byte.
pub(super) const LINGER_IDLE: Duration = Duration::from_secs(5);
const MAX_LINGER: Duration = Duration::from_secs(30);

/// Whether the client has sent bytes that were not read.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(stream).peek(&mut byte), Ok(1))
}

/// Reads and discards what a client still sends. Closing at once would reset the connection, and a client that sends
/// its whole request before it reads would lose the response (RFC 9112 section 9.6). When connections run short, the
/// one that has lingered longest is closed.
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
        _ = timeout(MAX_LINGER, discard) => {}
        () = poll_fn(|cx| place.poll_evicted(cx)) => {}
    }
}
