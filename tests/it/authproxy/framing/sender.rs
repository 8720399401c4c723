//! Many concurrent connections, each with one case: its division into packets, and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const AT_ONCE: usize = 128;

/// The response to one case.
#[derive(Debug, Clone)]
pub(super) struct CaseResponse {
    pub(super) case: usize,
    pub(super) answer: Vec<u8>,
    /// Whether the peer closed in time.
    pub(super) closed: bool,
}

/// Sends each case on a connection of its own, and reads until the peer closes or has been silent for `silence`.
pub(super) fn send_all(port: u16, cases: Vec<Vec<u8>>, silence: Duration) -> Vec<CaseResponse> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = JoinSet::new();
        for (case, bytes) in cases.into_iter().enumerate() {
            let slot = slots.clone().acquire_owned().await.unwrap();
            running.spawn(async move {
                let came = send(port, case, &bytes, silence).await;
                drop(slot);
                came
            });
        }
        let mut came = running.join_all().await;
        came.sort_by_key(|one| one.case);
        came
    })
}

async fn send(port: u16, case: usize, bytes: &[u8], silence: Duration) -> CaseResponse {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut from, mut to) = stream.split();
    let write = async {
        for packet in packets(case, bytes) {
            // A peer that closed is noticed by the read below.
            if to.write_all(packet).await.is_err() {
                break;
            }
            if packet.len() < bytes.len() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    let mut answer = Vec::new();
    let read = async {
        loop {
            match tokio::time::timeout(silence, from.read_buf(&mut answer)).await {
                Err(_) => return false,
                Ok(Ok(0) | Err(_)) => return true,
                Ok(Ok(_)) => {}
            }
        }
    };
    let ((), closed) = tokio::join!(write, read);
    CaseResponse {
        case,
        answer,
        closed,
    }
}

/// A case whole, in two pieces, or in many small ones, in turn.
fn packets(case: usize, bytes: &[u8]) -> Vec<&[u8]> {
    let pieces = match case % 4 {
        0 | 1 => 1,
        2 => 2,
        _ => 16,
    };
    // Cases of the same kind are cut at different places.
    let size = bytes.len().div_ceil(pieces) + case / 4 % 7;
    bytes.chunks(size.max(1)).collect()
}
