//! Watchers of synapse against real files, a real DNS server and a real ZooKeeper.

mod dns;
mod file;
mod multi;
mod resolve;
mod zookeeper;

use std::sync::Arc;

use hostkit_tests::wait_until;
use synapse::model::Discovered;
use synapse::settings::Discovery;
use synapse::watcher::{Context, Watch, start};
use tokio::runtime::Runtime;

/// A watcher and the runtime it runs on.
struct Running {
    watch: Watch,
    _runtime: Runtime,
}

impl Running {
    fn start(discovery: &Discovery) -> Self {
        Self::start_with(discovery, Context::default())
    }

    fn start_with(discovery: &Discovery, context: Context) -> Self {
        let runtime = runtime();
        let watch = {
            let _entered = runtime.enter();
            start(discovery, &context)
        };
        Self {
            watch,
            _runtime: runtime,
        }
    }

    /// What it knows now, of a source without paths.
    fn now(&self) -> Arc<Discovered> {
        let found = self.watch.found.borrow();
        found.get("").cloned().unwrap_or_default()
    }

    /// The endpoints it knows now, sorted.
    fn endpoints(&self) -> Vec<String> {
        let mut endpoints: Vec<String> = self
            .now()
            .backends
            .iter()
            .map(|backend| backend.endpoint())
            .collect();
        endpoints.sort();
        endpoints
    }

    /// Waits until it knows exactly these endpoints and has no trouble.
    fn finds(&self, what: &str, endpoints: &[&str]) {
        wait_until(what, || {
            let now = self.now();
            now.synced.is_some() && now.trouble.is_none() && self.endpoints() == endpoints
        });
    }

    /// Waits until it is in trouble for a reason that holds `text`, and knows exactly these endpoints.
    fn suffers(&self, text: &str, endpoints: &[&str]) {
        wait_until(&format!("trouble with {text}"), || {
            let trouble = self.now().trouble.clone().unwrap_or_default();
            trouble.contains(text) && self.endpoints() == endpoints
        });
    }
}

/// A runtime that works while the test waits.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}
