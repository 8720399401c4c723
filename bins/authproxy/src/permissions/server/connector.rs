//! Connections to permissions servers: TCP, TLS over it, or a socket file.

use std::io;
use std::sync::Arc;

use hostkit::Failure;
use hostkit::http::client::{ClientConnection, ClientError, ExchangePhase, ResponseParsing};
use hostkit::http::{BoxedStream, ServerAddress};
use hostkit::tls::{client_config, system_roots};
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// The TLS settings that connections to all servers share.
pub(super) struct ServerConnector {
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for ServerConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerConnector").finish_non_exhaustive()
    }
}

impl ServerConnector {
    /// With or without TLS, which trusts the certificate authorities of this host.
    ///
    /// # Errors
    /// This host has no certificate authorities (exit 78).
    pub(super) fn new(with_tls: bool) -> Result<Self, Failure> {
        let tls = match with_tls {
            true => {
                let mut config = client_config(system_roots()?)?.with_no_client_auth();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(TlsConnector::from(Arc::new(config)))
            }
            false => None,
        };
        Ok(Self { tls })
    }

    /// Connects; over TLS if the server has a `tls_name`, for which its certificate must be valid.
    pub(super) async fn connect(
        &self,
        address: &ServerAddress,
        tls_name: Option<&ServerName<'static>>,
        deadline: Instant,
    ) -> Result<ClientConnection, ClientError> {
        let connected = async {
            let stream = address.connect().await?;
            let stream: BoxedStream = match (tls_name, &self.tls) {
                (None, _) => stream,
                (Some(name), Some(tls)) => Box::new(tls.connect(name.clone(), stream).await?),
                (Some(_), None) => return Err(io::Error::other("TLS is not configured")),
            };
            Ok(stream)
        };
        let stream = timeout_at(deadline, connected)
            .await
            .map_err(|_| ClientError::Timeout(ExchangePhase::Connect))?
            .map_err(ClientError::Connect)?;
        ClientConnection::new(stream, ResponseParsing::Strict).await
    }
}
