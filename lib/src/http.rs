//! HTTP/1.1 as all tools use it: addresses of servers, the one client (feature `client`), and the one server.

mod address;
#[cfg(feature = "client")]
pub mod client;
pub mod server;
mod stream;

pub use address::{HostAddress, HostPort, ServerAddress};
pub use server::{RouteRequest, RouteResponse, Router};
pub use stream::{BoxedStream, ByteStream};
