//! Requests to the admin listener of a running daemon, for a tool's verbs.

use hyper::Method;
use hyper::header::HeaderValue;
use tokio::time::Instant;

use super::AdminAddress;
use crate::http::ServerAddress;
use crate::http::client::{ClientError, ClientRequest, ResponseParsing, exchange};
use crate::http::server::DEADLINE;
use crate::{Exit, Failure};

/// The longest response body: the status of a thousand services of a hundred members is a fraction of it.
const MAX_BODY: usize = 64 << 20;

/// The body of `GET path` (with its query) of the daemon at `address`.
///
/// # Errors
/// There is no response within 5 s, or an invalid one (exit 69); or it is not 2xx (exit 66 for 404, else 1), and the
/// failure holds its body.
pub async fn get(address: &AdminAddress, path: &str) -> Result<String, Failure> {
    let target = path.parse().map_err(|error| {
        Failure::new(Exit::USAGE, format!("invalid path {path}")).because(error)
    })?;
    let request = ClientRequest::new(Method::GET, target, HeaderValue::from_static("localhost"));
    let (status, body) = read_response(address, request).await.map_err(|error| {
        Failure::new(Exit::UNAVAILABLE, format!("cannot query {address}"))
            .remedy("check that the daemon runs with this --admin address")
            .because(error)
    })?;
    let failure = |exit| {
        let start: String = body.trim().chars().take(500).collect();
        Failure::new(exit, format!("{address}{path} returned {status}")).because(start)
    };
    match status {
        200..=299 => Ok(body),
        404 => Err(failure(Exit::NOT_FOUND)),
        _ => Err(failure(Exit::FAILED)),
    }
}

async fn read_response(
    address: &AdminAddress,
    request: ClientRequest,
) -> Result<(u16, String), ClientError> {
    let address = match address {
        AdminAddress::Tcp(address) => ServerAddress::Tcp((*address).into()),
        AdminAddress::Unix(path) => ServerAddress::Unix(path.clone()),
    };
    let deadline = Instant::now() + DEADLINE;
    let mut response = exchange(&address, request, ResponseParsing::Strict, deadline).await?;
    let body = response.read_body(MAX_BODY).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok((response.status.as_u16(), body))
}
