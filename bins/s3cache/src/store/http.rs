//! The store behind `http://` and `https://`: any server with ranges and entity tags (RFC 9110).
//!
//! Proxies come from the environment, credentials from `~/.netrc`, certificates from flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_types::base64;
use hostkit::tls::{client_config, pem_certificates, pem_roots, system_roots};
use hostkit::{Exit, Failure};
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, StatusCode, redirect};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::OnceCell;

use super::file::blocking;
use super::netrc::{NetrcFile, NetrcLogin};
use super::proxy::{InvalidProxy, ProxyRules, ProxyServer};
use super::resolver::{SystemResolver, UnresolvedHost};
use super::{
    GetRequest, GetResponse, HeadResponse, ListingVisitor, LocalBoxFuture, ObjectMeta, ObjectStore,
    ResponseBody, StoreError, StoreErrorKind, cause_of, from_status,
};
use crate::environment::EnvironmentVariables;
use crate::named_file::NamedFile;
use crate::settings::StoreAccess;
use crate::source::ArtifactSource;

/// TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most redirects.
const REDIRECTS: usize = 5;

/// The remedy for an invalid file of certificates or keys.
const PEM: &str = "name a file of certificates or a key in PEM format";

#[derive(Debug)]
pub(super) struct HttpStore {
    client: reqwest::Client,
    proxies: Arc<ProxyRules>,
    netrc: OnceCell<Option<NetrcFile>>,
}

impl HttpStore {
    /// A client with the certificates of `access`.
    ///
    /// # Errors
    /// A certificate file cannot be read or used (exit 78).
    pub(super) fn new(access: &StoreAccess) -> Result<Self, Failure> {
        let proxies = Arc::new(ProxyRules::of(&EnvironmentVariables::of_process()));
        let rules = proxies.clone();
        let through =
            reqwest::Proxy::custom(move |url| Some(rules.proxy_for(url).ok()??.url.clone()));
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(access)?)
            .proxy(through)
            .dns_resolver(SystemResolver)
            .user_agent(concat!("s3cache/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::custom(follow))
            .referer(false)
            .build()
            .map_err(|error| Failure::new(Exit::CONFIG, "cannot configure https").because(error))?;
        Ok(Self {
            client,
            proxies,
            netrc: OnceCell::new(),
        })
    }

    async fn request(
        &self,
        method: Method,
        source: &ArtifactSource,
    ) -> Result<RequestBuilder, StoreError> {
        let ArtifactSource::Http(url) = source else {
            return Err(StoreError::new(StoreErrorKind::Permanent, "not a URL"));
        };
        self.proxies
            .proxy_for(url)
            .map_err(InvalidProxy::to_store_error)?;
        let request = self.client.request(method, url.clone());
        let read = || blocking(NetrcFile::read);
        let netrc = self.netrc.get_or_try_init(read).await?.as_ref();
        let login = match (netrc, url.host_str()) {
            (Some(netrc), Some(host)) => netrc.login(host)?,
            _ => None,
        };
        Ok(match login {
            Some(login) => request.header(header::AUTHORIZATION, basic(&login)?),
            None => request,
        })
    }

    async fn send(
        &self,
        request: RequestBuilder,
        source: &ArtifactSource,
    ) -> Result<reqwest::Response, StoreError> {
        let host = match source {
            ArtifactSource::Http(url) => url.host_str().unwrap_or_default(),
            _ => "",
        };
        let response = request.send().await.map_err(|error| {
            // After a redirect the request goes to another host.
            let proxy = error
                .url()
                .and_then(|url| self.proxies.proxy_for(url).ok()?);
            map_error(error, host, proxy)
        })?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let mut error = from_status(
            status.as_u16(),
            text(response.headers(), header::RETRY_AFTER),
        );
        if status == StatusCode::UNAUTHORIZED {
            error = error.remedy(format!(
                "add `machine {host} login .. password ..` to ~/.netrc"
            ));
        } else if status.is_redirection() {
            error = error.remedy(if response.headers().contains_key(header::LOCATION) {
                "name the final https URL: the server redirects to http, or in a loop"
            } else {
                "name the final URL: the redirect has no Location"
            });
        }
        Err(error)
    }
}

/// Statuses by which a server rejects HEAD where it may allow GET: a presigned URL is signed for one method, and some
/// servers implement only one.
const HEAD_REFUSED: [u16; 4] = [401, 403, 405, 501];

impl HttpStore {
    /// Opens a body, or a range of it, under a condition.
    async fn open(
        &self,
        source: &ArtifactSource,
        range: Option<(u64, u64)>,
        condition: Option<(header::HeaderName, &str)>,
    ) -> Result<reqwest::Response, StoreError> {
        let request = async |range: Option<(u64, u64)>| -> Result<RequestBuilder, StoreError> {
            let mut request = self.request(Method::GET, source).await?;
            if let Some((first, last)) = range {
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
            if let Some((name, tag)) = &condition {
                request = request.header(name, *tag);
            }
            Ok(request)
        };
        match self.send(request(range).await?, source).await {
            // An empty object has no first byte (RFC 9110 section 15.5.17).
            Err(error)
                if range.is_some_and(|(first, _)| first == 0) && error.status == Some(416) =>
            {
                self.send(request(None).await?, source).await
            }
            other => other,
        }
    }

    /// The object's properties by HEAD, or by a GET of one byte where HEAD is rejected.
    async fn properties(
        &self,
        source: &ArtifactSource,
        unless: Option<&str>,
    ) -> Result<reqwest::Response, StoreError> {
        let mut request = self.request(Method::HEAD, source).await?;
        if let Some(tag) = unless {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        match self.send(request, source).await {
            Err(error)
                if error
                    .status
                    .is_some_and(|status| HEAD_REFUSED.contains(&status)) =>
            {
                let condition = unless.map(|tag| (header::IF_NONE_MATCH, tag));
                self.open(source, Some((0, 0)), condition).await
            }
            other => other,
        }
    }
}

/// Whether a response has only a range of the object, its first byte, and the object's properties.
fn extent(response: &reqwest::Response) -> Result<(bool, u64, ObjectMeta), StoreError> {
    let mut meta = meta(response.headers());
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok((false, 0, meta));
    }
    let (offset, total) = text(response.headers(), header::CONTENT_RANGE)
        .and_then(content_range)
        .ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Permanent,
                "the server sent a range without Content-Range",
            )
        })?;
    meta.size = total;
    Ok((true, offset, meta))
}

impl ObjectStore for HttpStore {
    fn get<'a>(
        &'a self,
        source: &'a ArtifactSource,
        want: GetRequest,
    ) -> LocalBoxFuture<'a, Result<GetResponse, StoreError>> {
        Box::pin(async move {
            let condition = want.if_match.as_deref().map(|tag| (header::IF_MATCH, tag));
            let response = self.open(source, want.range, condition).await?;
            let (partial, offset, meta) = extent(&response)?;
            Ok(GetResponse {
                meta,
                offset,
                partial,
                body: ResponseBody::Http(Box::new(response)),
            })
        })
    }

    fn head<'a>(
        &'a self,
        source: &'a ArtifactSource,
        unless: Option<&'a str>,
    ) -> LocalBoxFuture<'a, Result<HeadResponse, StoreError>> {
        Box::pin(async move {
            let response = self.properties(source, unless).await?;
            if response.status() == StatusCode::NOT_MODIFIED {
                return Ok(HeadResponse::NotModified);
            }
            let (_, _, meta) = extent(&response)?;
            // Some servers ignore If-None-Match; compare the tag.
            let same = unless.is_some() && unless == meta.etag.as_deref();
            Ok(if same {
                HeadResponse::NotModified
            } else {
                HeadResponse::Found(meta)
            })
        })
    }

    fn put<'a>(
        &'a self,
        _: &'a ArtifactSource,
        _: &'a Path,
        _: &'a str,
        _: bool,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            Err(StoreError::new(
                StoreErrorKind::Permanent,
                "publishing over http is not supported",
            )
            .remedy("publish to s3:// or file:///"))
        })
    }

    fn list<'a>(
        &'a self,
        _: &'a ArtifactSource,
        _: ListingVisitor<'a>,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            Err(
                StoreError::new(StoreErrorKind::Permanent, "a web server has no listing")
                    .remedy("only s3:// and file:/// can be listed"),
            )
        })
    }
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let downgrade = attempt
        .previous()
        .last()
        .is_some_and(|from| from.scheme() == "https")
        && attempt.url().scheme() != "https";
    if downgrade || attempt.previous().len() > REDIRECTS {
        return attempt.stop();
    }
    attempt.follow()
}

fn tls(access: &StoreAccess) -> Result<rustls::ClientConfig, Failure> {
    let roots = match &access.ca_file {
        Some(file) => authorities(file)?.0,
        None => {
            check_system_authorities()?;
            // Plain HTTP needs none.
            system_roots().unwrap_or_else(|_| RootCertStore::empty())
        }
    };
    let builder = client_config(roots)?;
    let Some((chain, key)) = &access.client_cert else {
        return Ok(builder.with_no_client_auth());
    };
    let secret =
        PrivateKeyDer::from_pem_slice(&key.read()?).map_err(|error| key.unusable(PEM, error))?;
    let certificates =
        pem_certificates(&chain.read()?).map_err(|error| chain.unusable(PEM, error))?;
    let config = builder.with_client_auth_cert(certificates, secret);
    config.map_err(|error| chain.unusable(PEM, error))
}

/// Checks that the certificate file of `SSL_CERT_FILE` can be read.
///
/// # Errors
/// It is not a regular file, or too long (exit 78).
pub(super) fn check_system_authorities() -> Result<(), Failure> {
    match hostkit::env::var_os("SSL_CERT_FILE") {
        Some(path) => NamedFile::new(PathBuf::from(path), "SSL_CERT_FILE").check(),
        None => Ok(()),
    }
}

/// The certificate authorities of a file, and its text.
///
/// # Errors
/// It cannot be read, or is not a file of certificates (exit 78).
pub(super) fn authorities(file: &NamedFile) -> Result<(RootCertStore, Vec<u8>), Failure> {
    let pem = file.read()?;
    let roots = pem_roots(&pem).map_err(|error| file.unusable(PEM, error))?;
    Ok((roots, pem))
}

/// The Authorization header of a login (RFC 7617), with the bytes of the file.
fn basic(login: &NetrcLogin) -> Result<HeaderValue, StoreError> {
    let pair = [login.name.as_slice(), b":", login.password.as_slice()].concat();
    let mut value =
        HeaderValue::try_from(format!("Basic {}", base64::encode(pair))).map_err(|error| {
            StoreError::new(StoreErrorKind::Permanent, "invalid login in ~/.netrc").because(error)
        })?;
    value.set_sensitive(true);
    Ok(value)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn meta(headers: &HeaderMap) -> ObjectMeta {
    ObjectMeta {
        size: text(headers, header::CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        // An entity tag that does not fit on one line cannot be recorded.
        etag: text(headers, header::ETAG)
            .filter(|tag| tag.len() <= 1024)
            .map(str::to_owned),
        content_type: text(headers, header::CONTENT_TYPE).map(str::to_owned),
        modified: text(headers, header::LAST_MODIFIED).map(str::to_owned),
        checksum: None,
    }
}

/// The offset and the total length of `bytes 0-99/1234` or `bytes 0-99/*` (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" {
        None
    } else {
        Some(total.parse().ok()?)
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// Maps reqwest's errors to causes and remedies.
pub(super) fn map_error(
    error: reqwest::Error,
    host: &str,
    proxy: Option<&ProxyServer>,
) -> StoreError {
    let error = error.without_url();
    let explained = match cause_of::<rustls::Error>(&error) {
        Some(error) => map_tls_error(error, host),
        None if error.is_connect()
            && let Some(proxy) = proxy =>
        {
            proxy.to_store_error(&error)
        }
        None if let Some(unresolved) = cause_of::<UnresolvedHost>(&error) => {
            StoreError::new(StoreErrorKind::Transient, unresolved.to_string())
                .remedy("check the name")
        }
        None if error.is_connect() => StoreError::new(StoreErrorKind::Transient, "cannot connect"),
        None if error.is_timeout() => {
            StoreError::new(StoreErrorKind::Transient, "no response in time")
        }
        None if error.is_builder() || error.is_redirect() => {
            StoreError::new(StoreErrorKind::Permanent, "cannot create the request")
        }
        None => StoreError::new(StoreErrorKind::Transient, "the connection was lost"),
    };
    explained.because(error)
}

pub(super) fn map_tls_error(error: &rustls::Error, host: &str) -> StoreError {
    use rustls::{AlertDescription, CertificateError as Certificate, Error as Tls};
    let fatal = |message: &str, remedy: &str| {
        StoreError::new(StoreErrorKind::Permanent, message).remedy(remedy)
    };
    match error {
        Tls::InvalidCertificate(Certificate::UnknownIssuer) => fatal(
            "the server's certificate is signed by an unknown authority",
            "pass the authority's certificate with --ca-file",
        ),
        Tls::InvalidCertificate(
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. },
        ) => fatal(
            "the server's certificate is not valid now",
            "renew it, or set this host's clock",
        ),
        Tls::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => fatal(
            &format!("the server's certificate is not for {host}"),
            "use a host name of the certificate",
        ),
        // The verifier's own name for a cause that TLS has none for.
        Tls::InvalidCertificate(Certificate::Other(other))
            if cause_of(other) == Some(&webpki::Error::CaUsedAsEndEntity) =>
        {
            fatal(
                "the server presents a CA certificate as its own",
                "issue it a leaf certificate (CA:FALSE)",
            )
        }
        Tls::AlertReceived(AlertDescription::CertificateRequired) => fatal(
            "the server requires a client certificate",
            "pass one with --client-cert and --client-key",
        ),
        Tls::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => fatal(
            "the server rejects the client certificate",
            "pass one that it trusts with --client-cert and --client-key",
        ),
        _ => fatal(
            "TLS with the server failed",
            "check that the port serves TLS with a valid certificate",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_parsed() {
        for (text, expected) in [
            ("bytes 0-99/1234", Some((0, Some(1234)))),
            ("bytes 100-199/*", Some((100, None))),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes */10", None),
            ("items 0-1/2", None),
            ("bytes 0-99999999999999999999/*", None),
        ] {
            assert_eq!(content_range(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn accepted_content_range_is_within_object(text in "(bytes )?[0-9]{0,21}-?[0-9]{0,21}/?[0-9*]{0,21}\\PC{0,3}") {
            if let Some((first, Some(total))) = content_range(&text) {
                proptest::prop_assert!(first < total);
            }
        }
    }

    #[test]
    fn ca_file_without_certificate_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("ca.pem");
        std::fs::write(&file, "not a certificate").unwrap();
        let access = StoreAccess {
            ca_file: Some(NamedFile::new(file, "--ca-file")),
            ..StoreAccess::default()
        };
        let failure = HttpStore::new(&access).unwrap_err();
        assert_eq!(failure.exit(), Exit::CONFIG);
        assert!(failure.to_string().contains("ca.pem"));
    }
}
