//! `method: base`: nothing to follow. It finds nothing, once; [`crate::watcher::select`] adds the default servers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hostkit::clock;
use tokio::sync::watch;

use super::{Found, Watcher, publish, single};
use crate::model::Discovered;

/// Follows nothing.
#[derive(Debug)]
pub struct Base;

impl Watcher for Base {
    fn watch(
        self: Box<Self>,
        out: watch::Sender<Arc<Found>>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            publish(
                &out,
                single(Discovered {
                    synced: Some(clock::since_boot()),
                    ..Discovered::default()
                }),
            );
            // A sender that is gone would say that the watcher is.
            out.closed().await;
        })
    }
}
