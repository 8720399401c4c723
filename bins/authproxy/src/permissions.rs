//! The permissions engine: who says what a key may do.
//!
//! Owns the seam. How a grant is judged is `scope`'s; how long an answer is remembered is `cache`'s.

use std::future::Future;

use crate::grant::{Found, KeyHash};

/// Who can be asked about keys.
pub trait Permissions: Send + Sync + 'static {
    /// What is known of a key. Ends within the engine's own deadline.
    ///
    /// # Errors
    /// Nobody could be asked, or no answer made sense. Never what a key is refused for.
    fn find(&self, key: KeyHash) -> impl Future<Output = Result<Found, Unavailable>> + Send;
}

/// The engine cannot say anything about a key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(
    /// What went wrong, with the server's name and without any key.
    pub String,
);
