//! The id of a request: that of a trusted peer, or a new one.

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};

use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::header::{HeaderMap, HeaderValue};

use super::{PeerAddress, X_REQUEST_ID};

/// The longest accepted id of a peer.
const MAX_LENGTH: usize = 128;
/// 128 bits in hex.
const LENGTH: usize = 32;
/// Ids are slices of blocks of this many bytes: most need no allocation.
const BLOCK_SIZE: usize = 64 * LENGTH;

pub(crate) fn request_id(headers: &HeaderMap, peer: &PeerAddress) -> HeaderValue {
    let sent = peer.trusted.then(|| headers.get(X_REQUEST_ID)).flatten();
    match sent.filter(|id| is_valid_id(id.as_bytes())) {
        Some(id) => id.clone(),
        None => GENERATOR.with_borrow_mut(IdGenerator::next),
    }
}

/// Ids appear in logs and in headers.
fn is_valid_id(id: &[u8]) -> bool {
    let is_valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=:@".contains(byte);
    (1..=MAX_LENGTH).contains(&id.len()) && id.iter().all(is_valid)
}

thread_local! {
    static GENERATOR: RefCell<IdGenerator> = RefCell::default();
}

/// Hashes of a counter with random keys: unpredictable, without a system call per id.
#[derive(Default)]
struct IdGenerator {
    keys: [RandomState; 2],
    count: u64,
    block: BytesMut,
}

impl IdGenerator {
    fn next(&mut self) -> HeaderValue {
        self.count += 1;
        if self.block.capacity() < LENGTH {
            self.block = BytesMut::with_capacity(BLOCK_SIZE);
        }
        let mut id = [0; LENGTH];
        let bytes = self
            .keys
            .iter()
            .flat_map(|key| key.hash_one(self.count).to_be_bytes());
        for (digits, byte) in id.chunks_exact_mut(2).zip(bytes) {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        self.block.put_slice(&id);
        let id: Bytes = self.block.split().freeze();
        // Never fails: hex digits are visible ASCII.
        HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static("none"))
    }
}
