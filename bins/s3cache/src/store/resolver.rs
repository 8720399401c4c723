//! Host names to addresses, by the system as reqwest itself does it, with an error that says which name has none.

use std::io;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// A host name without an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot resolve host {name:?}")]
pub(super) struct UnresolvedHost {
    name: String,
    source: io::Error,
}

/// The resolver of the system.
#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The port is that of the URL.
            match lookup_host((name.as_str(), 0)).await {
                Ok(found) => Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs),
                Err(source) => {
                    let name = name.as_str().to_owned();
                    Err(UnresolvedHost { name, source }.into())
                }
            }
        })
    }
}
