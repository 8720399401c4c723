//! Resolves host names with the system's resolver, as reqwest itself does, with an error that names the host.

use std::io;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

#[derive(Debug, thiserror::Error)]
#[error("cannot resolve host {name:?}")]
pub(super) struct UnresolvedHost {
    name: String,
    source: io::Error,
}

#[derive(Debug)]
pub(super) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // reqwest takes the port from the URL.
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
