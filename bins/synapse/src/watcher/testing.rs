//! What the tests of pure watcher parts are made of.

use std::sync::Arc;
use std::time::Duration;

use crate::model::{Backend, Discovered};
use crate::settings::{Discovery, Place, Probe, Servers, Service};

/// A service of which nothing but the name is set.
pub(crate) fn service(name: &str) -> Service {
    Service {
        name: name.to_owned(),
        place: Place::default(),
        discovery: Discovery::File("/list.yaml".into()),
        label_filters: Vec::new(),
        default_servers: Vec::new(),
        keep_default_servers: false,
        use_previous_backends: true,
        backend_port_override: None,
        leader_election: false,
        canary: None,
        slots: None,
        servers: Servers::Slots,
        probe: Probe::Connect,
        panic_threshold: 50,
        haproxy: None,
        file_output: false,
    }
}

/// A backend at 10.0.0.1, registered as `id`.
pub(super) fn backend(port: u16, id: Option<u64>) -> Arc<Backend> {
    let source = id.map_or_else(|| "written".to_owned(), |id| format!("/members/{id}"));
    let mut backend = Backend::new("10.0.0.1", port, source).unwrap();
    backend.id = id;
    Arc::new(backend)
}

/// An answer.
pub(super) fn answer(backends: Vec<Arc<Backend>>) -> Discovered {
    Discovered {
        backends,
        synced: Some(Duration::from_secs(1)),
        ..Discovered::default()
    }
}
