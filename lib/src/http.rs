//! HTTP/1.1: the address of a server, and the small server under the admin listener and the health port.

mod address;
pub(crate) mod server;

pub use address::{HostAddress, HostPort};
pub use server::{RouteRequest, RouteResponse, Router};
