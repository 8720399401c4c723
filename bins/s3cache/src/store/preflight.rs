//! The part of `--check` for stores: invalid files and proxies, found without a request.

use hostkit::Failure;
use url::Url;

use super::netrc::NetrcFile;
use super::proxy::ProxyRules;
use super::{StoreError, http, s3};
use crate::environment::EnvironmentVariables;
use crate::settings::StoreAccess;
use crate::source::ArtifactSource;

/// URLs of a host that `NO_PROXY` only matches by `*`.
const ANY_HOST: [&str; 2] = ["http://host.invalid", "https://host.invalid"];
/// The URL that proxies are looked up for when S3 has no endpoint.
const AWS: &str = "https://s3.amazonaws.com";

/// Reports what would make every request to these sources fail; without sources, every request to any host.
///
/// # Errors
/// A file of certificates, tokens or logins, the AWS configuration or a proxy cannot be used (exit 78).
pub(crate) fn check(access: &StoreAccess, sources: &[ArtifactSource]) -> Result<(), Failure> {
    http::HttpStore::new(access)?;
    let is_http = |source: &ArtifactSource| matches!(source, ArtifactSource::Http(_));
    if sources.is_empty() || sources.iter().any(is_http) {
        NetrcFile::read().map_err(StoreError::into_config_failure)?;
    }
    let is_s3 = |source: &ArtifactSource| matches!(source, ArtifactSource::S3 { .. });
    if sources.is_empty() || sources.iter().any(is_s3) {
        s3::check(access)?;
    }
    let proxies = ProxyRules::of(&EnvironmentVariables::of_process());
    urls(access, sources)?.iter().try_for_each(|url| {
        let proxy = proxies.proxy_for(url).map(drop);
        proxy.map_err(|invalid| invalid.to_store_error().into_config_failure())
    })
}

/// The URLs of the requests for the sources; for S3 that of the service.
fn urls(access: &StoreAccess, sources: &[ArtifactSource]) -> Result<Vec<Url>, Failure> {
    if sources.is_empty() {
        return Ok(ANY_HOST.iter().flat_map(|url| Url::parse(url)).collect());
    }
    let mut urls = Vec::new();
    for source in sources {
        match source {
            ArtifactSource::Http(url) => urls.push(url.clone()),
            ArtifactSource::S3 { .. } => {
                let endpoint = access.s3()?.endpoint.as_deref();
                urls.extend(Url::parse(endpoint.unwrap_or(AWS)));
            }
            ArtifactSource::File(_) => {}
        }
    }
    Ok(urls)
}
