//! An HTTP client for the SDK that bounds every response except an object. The SDK reads error bodies, listings and the
//! responses of credential services into memory whole.

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{
    RuntimeComponents, RuntimeComponentsBuilder,
};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use aws_smithy_types::config_bag::ConfigBag;

use super::listing::{self, MalformedListing};

/// The longest response that is neither an object nor a listing (bytes).
const REPLY_LIMIT: usize = 64 << 10;
/// The longest page of a listing (bytes): 1,000 keys of 1,024 bytes, each of which may be escaped to six times that.
const LISTING_LIMIT: usize = 8 << 20;

/// A successful response that is too long for its kind.
#[derive(Debug, thiserror::Error)]
#[error("the response is longer than {0} bytes")]
pub(super) struct ReplyTooLong(usize);

/// A successful response that should be a listing and is not. The SDK would return what it can parse as complete.
#[derive(Debug, thiserror::Error)]
#[error("no listing from {server}")]
pub(super) struct InvalidListing {
    /// Scheme, host and port of the request.
    pub(super) server: String,
    source: MalformedListing,
}

/// A request without a response.
#[derive(Debug, thiserror::Error)]
#[error("no response from {server}")]
pub(super) struct NoReply {
    /// Scheme, host and port of the request.
    pub(super) server: String,
    source: BoxError,
}

/// An error of the same kind, with another one around its cause: the SDK's errors do not name the server.
pub(super) fn wrap<E>(error: ConnectorError, around: impl FnOnce(BoxError) -> E) -> ConnectorError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let (is_io, is_timeout, is_user) = (error.is_io(), error.is_timeout(), error.is_user());
    let kind = error.as_other();
    let named = Box::new(around(error.into_source()));
    match () {
        () if is_timeout => ConnectorError::timeout(named),
        () if is_io => ConnectorError::io(named),
        () if is_user => ConnectorError::user(named),
        () => ConnectorError::other(named, kind),
    }
}

/// Scheme, host and port of a URL.
fn server_of(url: &str) -> String {
    url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")
}

/// Wraps the SDK's client. Needed in the configuration that credential providers inherit, too.
#[derive(Debug)]
pub(super) struct BoundedClient(pub(super) SharedHttpClient);

impl HttpClient for BoundedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(BoundedConnector(
            self.0.http_connector(settings, components),
        ))
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.0.connector_metadata()
    }
}

#[derive(Debug)]
struct BoundedConnector(SharedHttpConnector);

impl HttpConnector for BoundedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let expected = ExpectedReply::of(request.uri());
        let server = server_of(request.uri());
        let response = self.0.call(request);
        HttpConnectorFuture::new(async move {
            match response.await {
                Ok(response) => bound(response, expected, server).await,
                Err(error) => Err(wrap(error, |source| NoReply { server, source })),
            }
        })
    }
}

/// The content of a successful response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpectedReply {
    Object,
    Listing,
    Other,
}

impl ExpectedReply {
    /// The SDK names its operation in the query.
    fn of(uri: &str) -> Self {
        let query = uri.split_once('?').map_or("", |(_, query)| query);
        let has = |pair: &str| query.split('&').any(|found| found == pair);
        if has("x-id=GetObject") {
            Self::Object
        } else if has("list-type=2") {
            Self::Listing
        } else {
            Self::Other
        }
    }

    /// The size limit (bytes); none for an object.
    const fn limit(self) -> Option<usize> {
        match self {
            Self::Object => None,
            Self::Listing => Some(LISTING_LIMIT),
            Self::Other => Some(REPLY_LIMIT),
        }
    }
}

/// Reads a bounded response. An error that is too long loses its body: the status is enough, and half an XML document
/// would be retried as a transient failure.
async fn bound(
    mut response: HttpResponse,
    expected: ExpectedReply,
    server: String,
) -> Result<HttpResponse, ConnectorError> {
    let is_success = response.status().is_success();
    let limit = if is_success {
        let Some(limit) = expected.limit() else {
            return Ok(response);
        };
        limit
    } else {
        REPLY_LIMIT
    };
    let mut body = ByteStream::new(response.take_body());
    let mut kept = Vec::new();
    while let Some(piece) = body
        .try_next()
        .await
        .map_err(|error| ConnectorError::io(error.into()))?
    {
        let fits = piece.len().min(limit - kept.len());
        kept.extend_from_slice(&piece[..fits]);
        if fits == piece.len() {
            continue;
        }
        if is_success {
            return Err(ConnectorError::other(ReplyTooLong(limit).into(), None));
        }
        kept.clear();
        break;
    }
    if is_success
        && expected == ExpectedReply::Listing
        && let Err(source) = listing::check(&kept)
    {
        let invalid = Box::new(InvalidListing { server, source });
        return Err(ConnectorError::other(invalid, None));
    }
    *response.body_mut() = SdkBody::from(kept);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_of_url_is_scheme_host_and_port() {
        for (url, server) in [
            (
                "http://127.0.0.1:9000/b/k?x-id=GetObject",
                "http://127.0.0.1:9000",
            ),
            (
                "https://b.s3.eu-west-1.amazonaws.com/k//l",
                "https://b.s3.eu-west-1.amazonaws.com",
            ),
            ("https://h", "https://h"),
        ] {
            assert_eq!(server_of(url), server);
        }
    }

    #[test]
    fn expected_reply_depends_on_query() {
        for (uri, expected) in [
            ("http://h/b/k?x-id=GetObject", ExpectedReply::Object),
            (
                "http://h/b/k?versionId=1&x-id=GetObject",
                ExpectedReply::Object,
            ),
            ("http://h/b/x-id=GetObject", ExpectedReply::Other),
            (
                "http://h/b/k%3Fx-id=GetObject?x-id=PutObject",
                ExpectedReply::Other,
            ),
            ("http://h/b?list-type=2&prefix=p", ExpectedReply::Listing),
            ("http://h/b?prefix=list-type%3D2", ExpectedReply::Other),
            (
                "http://169.254.169.254/latest/api/token",
                ExpectedReply::Other,
            ),
        ] {
            assert_eq!(ExpectedReply::of(uri), expected, "{uri}");
        }
    }
}
