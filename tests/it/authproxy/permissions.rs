//! Permissions backends as authproxy queries them: the file, healthy and failing servers, and the live configuration.

mod files;
mod servers;

use std::future::Future;
use std::time::Duration;

use authproxy::testing::{BackendResponse, KeyHash, PermissionsBackend, PermissionsServers};
use hostkit_tests::wait_limit;

/// Long: a busy host must not make a healthy server slow.
const PATIENCE: Duration = Duration::from_secs(20);

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async { tokio::time::timeout(wait_limit(), test).await };
    let done = runtime.block_on(limited).expect("the test ends in time");
    runtime.shutdown_background();
    done
}

fn servers(urls: &[String], deadline: Duration) -> PermissionsServers {
    let urls: Vec<_> = urls.iter().map(|url| url.parse().unwrap()).collect();
    PermissionsServers::new(&urls, deadline).unwrap()
}

fn hash(key: &str) -> KeyHash {
    KeyHash::of(key.as_bytes())
}

/// The id of a key.
async fn look_up_id(engine: &impl PermissionsBackend, key: &str) -> Result<Option<String>, String> {
    let found = engine.look_up(hash(key)).await;
    let BackendResponse { grant, .. } = found.map_err(|why| why.to_string())?;
    Ok(grant.map(|grant| grant.id.clone()))
}

/// Completes when a condition holds.
async fn wait_for(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
