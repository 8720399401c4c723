//! Connecting to a permissions engine: TCP, TLS over it, or a socket file.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hostkit::Failure;
use hostkit::http::HostPort;
use hostkit::tls::{client_config, system_roots};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;

/// Where a server is.
#[derive(Debug)]
pub(super) enum Place {
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        port: u16,
        /// Who its certificate has to be for; none without TLS.
        tls: Option<ServerName<'static>>,
    },
    Unix(PathBuf),
}

/// A connection of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What connections of all servers share.
pub(super) struct Connector {
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// With or without TLS, which trusts the authorities that this host trusts.
    ///
    /// # Errors
    /// It trusts none (exit 78).
    pub(super) fn new(tls: bool) -> Result<Self, Failure> {
        let tls = match tls {
            true => {
                let mut config = client_config(system_roots()?)?.with_no_client_auth();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(TlsConnector::from(Arc::new(config)))
            }
            false => None,
        };
        Ok(Self { tls })
    }

    pub(super) async fn connect(&self, place: &Place) -> io::Result<Box<dyn Stream>> {
        let (host, port, name) = match place {
            Place::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Place::Tcp { host, port, tls } => (host, *port, tls),
        };
        let host = host.as_str().into();
        let stream = HostPort { host, port }.connect().await?;
        stream.set_nodelay(true)?;
        match (name, &self.tls) {
            (None, _) => Ok(Box::new(stream)),
            (Some(name), Some(tls)) => Ok(Box::new(tls.connect(name.clone(), stream).await?)),
            (Some(_), None) => Err(io::Error::other("TLS is not set up")),
        }
    }
}
