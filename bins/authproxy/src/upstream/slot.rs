//! Slots of the upstream pool: waiting for one, and releasing it. `fair_pool` decides which request gets the next one.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fair_pool::{FairPool, PoolAdmission, QueueTicket};
use super::{ExchangeError, UpstreamPool};
use crate::grant::Grant;
use crate::request_error::{RequestError, UpstreamFailure};

/// The account that a request's connection is charged to: its key's id. All requests without a key share one.
#[derive(Debug, Clone)]
pub(crate) struct KeyAccount(pub(crate) Option<Arc<Grant>>);

impl KeyAccount {
    fn id(&self) -> Option<&str> {
        self.0.as_deref().map(|grant| grant.id.as_str())
    }
}

impl PartialEq for KeyAccount {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for KeyAccount {}

impl Hash for KeyAccount {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id().hash(state);
    }
}

#[derive(Debug)]
pub(super) struct SlotQueue(Mutex<FairPool<KeyAccount, oneshot::Sender<()>>>);

impl SlotQueue {
    pub(super) fn new(size: usize) -> Self {
        Self(Mutex::new(FairPool::new(size)))
    }

    fn pool(&self) -> MutexGuard<'_, FairPool<KeyAccount, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, account: &KeyAccount) {
        let next = self.pool().release(account);
        // A request that is gone by now releases it itself.
        let _ = next.map(|waker| waker.send(()));
    }
}

/// The permission to use one connection.
pub(super) struct PoolSlot {
    pub(super) upstream: Arc<UpstreamPool>,
    account: KeyAccount,
}

impl PoolSlot {
    /// Waits for a slot.
    ///
    /// # Errors
    /// The queue is full, or no slot became free before `max_wait`.
    pub(super) async fn acquire(
        upstream: &Arc<UpstreamPool>,
        account: KeyAccount,
        max_wait: Duration,
    ) -> Result<Self, ExchangeError> {
        let mut granted = None;
        let admission = upstream.slots.pool().acquire(account.clone(), || {
            let (waker, receiver) = oneshot::channel();
            granted = Some(receiver);
            waker
        });
        match (admission, granted) {
            (PoolAdmission::Queued(ticket), Some(granted)) => {
                let mut request = SlotRequest::new(upstream, &account, ticket);
                let granted = timeout(max_wait, granted).await;
                request.granted = matches!(granted, Ok(Ok(())));
                if !request.granted {
                    return Err(UpstreamFailure::QueueTimeout.into());
                }
            }
            (PoolAdmission::Granted, _) => {}
            // Requests without a key are of different clients: none of them is at fault.
            (PoolAdmission::KeyQueueFull, _) if account.0.is_some() => {
                return Err(RequestError::TooManyRequests.into());
            }
            _ => return Err(UpstreamFailure::QueueFull.into()),
        }
        let upstream = Arc::clone(upstream);
        Ok(Self { upstream, account })
    }
}

impl Drop for PoolSlot {
    fn drop(&mut self) {
        self.upstream.slots.release(&self.account);
    }
}

/// A queued request. Dropping it leaves the queue; a slot granted meanwhile goes to the next request.
struct SlotRequest<'a> {
    upstream: &'a UpstreamPool,
    account: &'a KeyAccount,
    ticket: QueueTicket,
    granted: bool,
}

impl<'a> SlotRequest<'a> {
    fn new(upstream: &'a UpstreamPool, account: &'a KeyAccount, ticket: QueueTicket) -> Self {
        upstream.telemetry.metrics.upstream_queued.add(1);
        Self {
            upstream,
            account,
            ticket,
            granted: false,
        }
    }
}

impl Drop for SlotRequest<'_> {
    fn drop(&mut self) {
        self.upstream.telemetry.metrics.upstream_queued.add(-1);
        let slots = &self.upstream.slots;
        if !self.granted && !slots.pool().cancel(self.account, self.ticket) {
            slots.release(self.account);
        }
    }
}
