//! Proxies: one decision from the environment for every client of the tool, by curl's rules.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Builder, Connector, tls};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{
    RuntimeComponents, RuntimeComponentsBuilder,
};
use aws_smithy_types::config_bag::ConfigBag;
use hyper_util::client::legacy;
use hyper_util::client::proxy::matcher::Matcher;
use url::{Host, Url};

use super::bounded_client::wrap;
use super::resolver::UnresolvedHost;
use super::{StoreError, StoreErrorKind, cause_of};
use crate::environment::EnvironmentVariables;

/// The metadata services and credential agents that have no link-local address: EC2 and EKS over IPv6.
const CREDENTIAL_HOSTS: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
];
/// Variables with the URL of a credential endpoint.
const CREDENTIAL_ENDPOINTS: [&str; 2] = [
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
];

/// A variable whose value is not a usable proxy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{variable} is not an http or https proxy")]
pub(super) struct InvalidProxy {
    variable: &'static str,
}

impl InvalidProxy {
    /// The error of a request that would have to use it.
    pub(super) fn to_store_error(&self) -> StoreError {
        StoreError::new(StoreErrorKind::Permanent, self.to_string())
            .remedy("write http://host:port (SOCKS is not supported), or add the host to NO_PROXY")
    }
}

/// A proxy, and the variable that it comes from.
#[derive(Debug, Clone)]
pub(super) struct ProxyServer {
    pub(super) url: Url,
    variable: &'static str,
}

impl ProxyServer {
    /// The error of a request that could not connect through the proxy.
    pub(super) fn to_store_error(&self, error: &(dyn std::error::Error + 'static)) -> StoreError {
        // Otherwise the failure is between the proxy and the host: it refuses the tunnel, or requires credentials.
        let is_unreachable = cause_of::<std::io::Error>(error).is_some()
            || cause_of::<UnresolvedHost>(error).is_some();
        let preposition = if is_unreachable { "to" } else { "through" };
        let shown = hostkit::mask::mask_url(self.url.as_str());
        let shown = shown.trim_end_matches('/');
        StoreError::new(
            StoreErrorKind::Transient,
            format!("cannot connect {preposition} the proxy {shown}"),
        )
        .remedy(format!(
            "correct {}, or add the host to NO_PROXY",
            self.variable
        ))
    }
}

/// A request of the SDK that could not connect through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("no connection through the proxy")]
pub(super) struct ProxyFailed {
    pub(super) proxy: ProxyServer,
    source: BoxError,
}

/// The proxies of the environment, and the hosts that bypass them.
#[derive(Debug)]
pub(super) struct ProxyRules {
    http: Option<Result<ProxyServer, InvalidProxy>>,
    https: Option<Result<ProxyServer, InvalidProxy>>,
    /// Intercepts every host that `NO_PROXY` does not name.
    no_proxy: Matcher,
    /// Host and port of credential endpoints.
    direct: Vec<(String, Option<u16>)>,
}

impl ProxyRules {
    /// Reads curl's variables, upper case first.
    #[must_use]
    pub(super) fn of(env: &EnvironmentVariables) -> Self {
        let proxy = |names: &[&'static str]| {
            let named = names.iter().find_map(|name| Some((*name, env.get(name)?)));
            named.map(|(variable, text)| match proxy_url(text) {
                Some(url) => Ok(ProxyServer { url, variable }),
                None => Err(InvalidProxy { variable }),
            })
        };
        // A CGI program gets its client's header `Proxy` as HTTP_PROXY.
        let http: &[_] = if env.get("REQUEST_METHOD").is_some() {
            &["http_proxy", "ALL_PROXY", "all_proxy"]
        } else {
            &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        };
        let excluded = env.get("NO_PROXY").or_else(|| env.get("no_proxy"));
        Self {
            http: proxy(http),
            https: proxy(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            no_proxy: Matcher::builder()
                .all("http://proxy")
                .no(excluded.unwrap_or_default())
                .build(),
            direct: CREDENTIAL_ENDPOINTS
                .iter()
                .filter_map(|name| Url::parse(env.get(name)?).ok())
                .filter_map(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default())))
                .collect(),
        }
    }

    /// The proxy of a request; `None` for a direct connection.
    ///
    /// # Errors
    /// The variable for this scheme is not a usable proxy.
    pub(super) fn proxy_for(&self, url: &Url) -> Result<Option<&ProxyServer>, &InvalidProxy> {
        let proxy = match url.scheme() {
            "http" => &self.http,
            "https" => &self.https,
            _ => &None,
        };
        match proxy {
            Some(proxy) if !self.goes_direct(url) => proxy.as_ref().map(Some),
            _ => Ok(None),
        }
    }

    fn goes_direct(&self, url: &Url) -> bool {
        let (Some(host), Some(name)) = (url.host(), url.host_str()) else {
            return true;
        };
        let port = url.port_or_known_default();
        is_local(&host)
            || self
                .direct
                .iter()
                .any(|(host, at)| host == name && *at == port)
            || format!("http://{name}")
                .parse()
                .is_ok_and(|uri| self.no_proxy.intercept(&uri).is_none())
    }

    fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }
}

/// This host, its link, and credential endpoints: through a proxy these addresses would be other hosts.
fn is_local(host: &Host<&str>) -> bool {
    let v4 = |ip: Ipv4Addr| ip.is_loopback() || ip.is_link_local() || ip.is_unspecified();
    match host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(ip) => v4(*ip),
        Host::Ipv6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => v4(ip),
            None => {
                ip.is_loopback()
                    || ip.is_unspecified()
                    || ip.is_unicast_link_local()
                    || CREDENTIAL_HOSTS.contains(ip)
            }
        },
    }
}

/// Parses a proxy; without a scheme it is `http`.
fn proxy_url(text: &str) -> Option<Url> {
    let text = text.trim();
    let url = if text.contains("://") {
        Url::parse(text)
    } else {
        Url::parse(&format!("http://{text}"))
    };
    url.ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// The SDK's HTTP client with the TLS settings of this run, which sends each request as [`ProxyRules`] decide.
pub(super) fn sdk_client(proxies: ProxyRules, context: &tls::TlsContext) -> SharedHttpClient {
    let provider = || tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let direct = Builder::new()
        .tls_provider(provider())
        .tls_context(context.clone())
        .build_https();
    if proxies.is_empty() {
        return direct;
    }
    let named = [&proxies.http, &proxies.https].into_iter().flatten();
    let through = named
        .filter_map(|proxy| proxy.as_ref().ok())
        .filter_map(|ProxyServer { url, .. }| {
            let config = ProxyConfig::all(url.as_str()).ok()?;
            let context = context.clone();
            let client = Builder::new().build_with_connector_fn(move |settings, components| {
                let mut connector = Connector::builder().proxy_config(config.clone());
                connector.set_connector_settings(settings.cloned());
                connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
                let connector = connector.tls_provider(provider());
                connector.tls_context(context.clone()).build()
            });
            Some((url.clone(), client))
        })
        .collect();
    SharedHttpClient::new(ProxiedClient {
        proxies: Arc::new(proxies),
        direct,
        through,
    })
}

#[derive(Debug)]
struct ProxiedClient {
    proxies: Arc<ProxyRules>,
    direct: SharedHttpClient,
    through: Vec<(Url, SharedHttpClient)>,
}

impl HttpClient for ProxiedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let through = self.through.iter().map(|(proxy, client)| {
            let connector = client.http_connector(settings, components);
            (proxy.clone(), connector)
        });
        SharedHttpConnector::new(ProxiedConnector {
            proxies: self.proxies.clone(),
            direct: self.direct.http_connector(settings, components),
            through: through.collect(),
        })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.direct.validate_base_client_config(components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.direct.validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.direct.connector_metadata()
    }
}

#[derive(Debug)]
struct ProxiedConnector {
    proxies: Arc<ProxyRules>,
    direct: SharedHttpConnector,
    through: Vec<(Url, SharedHttpConnector)>,
}

impl HttpConnector for ProxiedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let proxy = match Url::parse(request.uri()) {
            Ok(url) => self.proxies.proxy_for(&url).map_err(Clone::clone),
            Err(_) => Ok(None),
        };
        let proxy = match proxy {
            Ok(None) => return self.direct.call(request),
            Ok(Some(proxy)) => proxy,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let Some((_, connector)) = self.through.iter().find(|(url, _)| *url == proxy.url) else {
            return HttpConnectorFuture::ready(Err(ConnectorError::user("no such proxy".into())));
        };
        let (proxy, response) = (proxy.clone(), connector.call(request));
        HttpConnectorFuture::new(async move {
            response.await.map_err(|error| {
                if cause_of(&error).is_some_and(legacy::Error::is_connect) {
                    wrap(error, |source| ProxyFailed { proxy, source })
                } else {
                    error
                }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_is_chosen_by_curl_rules() {
        // Variables, URL, then the proxy: `-` for a direct connection, `!` and the variable for an invalid one.
        let table = "\
            | http://h/ | -
            HTTP_PROXY=http://p:3128 | http://h/ | http://p:3128/
            HTTP_PROXY=http://p:3128 | https://h/ | -
            http_proxy=p:3128 | http://h/ | http://p:3128/
            HTTP_PROXY= http_proxy=p:3128 | http://h/ | http://p:3128/
            HTTPS_PROXY=https://me:pw@p | https://h/ | https://me:pw@p/
            https_proxy=http://p | https://s3.eu-west-1.amazonaws.com/b/k | http://p/
            ALL_PROXY=http://p | https://h/ | http://p/
            ALL_PROXY=http://all HTTP_PROXY=http://p | http://h/ | http://p/
            ALL_PROXY=socks5://p | http://h/ | !ALL_PROXY
            HTTPS_PROXY=:// | https://h/ | !HTTPS_PROXY
            ALL_PROXY=socks5://p NO_PROXY=h | http://h/ | -
            HTTP_PROXY=http://p REQUEST_METHOD=GET | http://h/ | -
            HTTP_PROXY=http://p http_proxy=http://q REQUEST_METHOD=GET | http://h/ | http://q/
            ALL_PROXY=http://p NO_PROXY=example.org | http://a.example.org/ | -
            ALL_PROXY=http://p NO_PROXY=.example.org | http://example.org/ | -
            ALL_PROXY=http://p NO_PROXY=example.org | http://notexample.org/ | http://p/
            ALL_PROXY=http://p NO_PROXY=example.org | http://EXAMPLE.org:8080/ | -
            ALL_PROXY=http://p no_proxy=a,10.0.0.0/8 | http://10.2.3.4:9000/ | -
            ALL_PROXY=http://p NO_PROXY=10.0.0.0/8 | http://11.2.3.4/ | http://p/
            ALL_PROXY=http://p NO_PROXY=fd00::/8 | http://[fd00::1]:9000/ | -
            ALL_PROXY=http://p NO_PROXY=* | https://h/ | -
            ALL_PROXY=http://p | http://127.0.0.1:9000/ | -
            ALL_PROXY=http://p | http://127.9.9.9/ | -
            ALL_PROXY=http://p | http://LOCALHOST:9000/ | -
            ALL_PROXY=http://p | http://minio.localhost/ | -
            ALL_PROXY=http://p | http://notlocalhost/ | http://p/
            ALL_PROXY=http://p | http://[::1]:9000/ | -
            ALL_PROXY=http://p | http://[::ffff:127.0.0.1]/ | -
            ALL_PROXY=http://p | http://0.0.0.0/ | -
            ALL_PROXY=http://p | http://169.254.169.254/latest | -
            ALL_PROXY=http://p | http://169.254.170.2/v2 | -
            ALL_PROXY=http://p | http://169.254.170.23/v1 | -
            ALL_PROXY=http://p | http://[fe80::1]/ | -
            ALL_PROXY=http://p | http://[fd00:ec2::254]/ | -
            ALL_PROXY=http://p | http://[fd00:ec2::23]/ | -
            ALL_PROXY=http://p | http://[fd00:ec2::24]/ | http://p/
            ALL_PROXY=http://p AWS_CONTAINER_CREDENTIALS_FULL_URI=http://agent:81/x | http://agent:81/x | -
            ALL_PROXY=http://p AWS_CONTAINER_CREDENTIALS_FULL_URI=http://agent:81/x | http://agent/ | http://p/
            ALL_PROXY=http://p AWS_EC2_METADATA_SERVICE_ENDPOINT=http://imds | http://imds/latest | -";
        for row in table.lines() {
            let [variables, url, expected]: [&str; 3] =
                row.split('|').collect::<Vec<_>>().try_into().unwrap();
            let variables = variables
                .split_whitespace()
                .filter_map(|pair| pair.split_once('='));
            let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let proxies = ProxyRules::of(&env.collect());
            let found = match proxies.proxy_for(&Url::parse(url.trim()).unwrap()) {
                Ok(proxy) => proxy.map_or("-".to_owned(), |proxy| proxy.url.to_string()),
                Err(error) => format!("!{}", error.variable),
            };
            assert_eq!(found, expected.trim(), "{row}");
        }
    }
}
