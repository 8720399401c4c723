//! The store behind `s3://`: the AWS SDK on ring, with its whole credential chain.

mod error_mapping;

use std::path::Path;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::{HeadObjectError, HeadObjectOutput};
use aws_sdk_s3::primitives::{ByteStream, DateTimeFormat};
use aws_sdk_s3::types::{ChecksumMode, ChecksumType, CommonPrefix, Object};
use aws_smithy_http_client::tls;
use aws_smithy_types::base64;
use hostkit::backoff::Backoff;
use hostkit::{Exit, Failure};
use tracing::warn;

use super::bounded_client::BoundedClient;
use super::file::blocking;
use super::http;
use super::listing::TokenCycle;
use super::proxy::{self, ProxyRules};
use super::{
    CrcKind, GetRequest, GetResponse, HeadResponse, ListedObject, ListingVisitor, LocalBoxFuture,
    ObjectChecksum, ObjectMeta, ObjectStore, ResponseBody, StoreError, StoreErrorKind,
};
use crate::environment::EnvironmentVariables;
use crate::named_file::NamedFile;
use crate::s3_access::S3Access;
use crate::settings::StoreAccess;
use crate::source::ArtifactSource;
use error_mapping::{NOT_S3, map_error};

/// How often an upload is retried after a conflict with another upload of the same name.
const CONFLICTS: u32 = 4;
/// Statuses of stores that do not implement conditional PUT.
const CONDITION_REFUSED: [u16; 3] = [400, 405, 501];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The region when no setting and no instance metadata has one.
pub(crate) const DEFAULT_REGION: &str = "us-east-1";

#[derive(Debug)]
pub(crate) struct S3Store {
    client: Client,
    /// The service, for errors.
    service: String,
}

impl S3Store {
    /// A client with the endpoint, region and credentials of flags, environment, profile or instance.
    ///
    /// # Errors
    /// The AWS configuration or the CA file cannot be used (exit 78), or the profile signs in through a browser (exit
    /// 77).
    pub(crate) async fn new(access: &StoreAccess, timeout: Duration) -> Result<Self, Failure> {
        let s3 = access.s3()?;
        if let Some(sign_in) = s3.sign_in.filter(|_| !access.no_sign_request) {
            let (profile, command) = (&s3.profile, "aws configure export-credentials");
            return Err(Failure::new(
                Exit::DENIED,
                format!("the AWS profile {profile:?} signs in by {sign_in}, which s3cache does not support"),
            )
            .remedy(format!(
                "run `{command} --profile {profile} --format env`, or give the profile a credential_process that does"
            )));
        }
        let (files, is_signed) = (s3.clone(), !access.no_sign_request);
        let context = blocking(move || trust(&files, is_signed)).await?;
        let proxies = ProxyRules::of(&EnvironmentVariables::of_process());
        let http = proxy::sdk_client(proxies, &context);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(BoundedClient(http))
            .profile_name(&s3.profile)
            .profile_files(s3.files.for_sdk())
            .retry_config(RetryConfig::standard())
            // `transfer` detects stalls, the same way for every store.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_timeout(timeout)
                    .build(),
            );
        // Instance metadata has the region of AWS, not that of another service.
        let region = s3
            .region
            .clone()
            .or_else(|| s3.endpoint.as_ref().map(|_| DEFAULT_REGION.to_owned()));
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        if access.no_sign_request {
            loader = loader.no_credentials();
        }
        let shared = loader.load().await;
        let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(s3.path_style);
        // Set also when it is `None`, because the cache key is made from this value.
        config.set_endpoint_url(s3.sdk_endpoint());
        // An empty variable counts as unset.
        if shared
            .region()
            .is_none_or(|region| region.as_ref().is_empty())
        {
            config = config.region(Region::new(DEFAULT_REGION));
        }
        Ok(Self {
            client: Client::from_conf(config.build()),
            service: s3.endpoint.clone().unwrap_or_else(|| "S3".to_owned()),
        })
    }

    /// Uploads a file; with `only_new`, only if the name is free.
    async fn upload(
        &self,
        source: &ArtifactSource,
        file: &Path,
        sha256: &str,
        only_new: bool,
    ) -> Result<(), StoreError> {
        let (bucket, key) = place(source)?;
        let body = ByteStream::from_path(file).await.map_err(|error| {
            StoreError::new(
                StoreErrorKind::Disk,
                format!("cannot read {}", file.display()),
            )
            .because(error)
        })?;
        let result = self
            .client
            .put_object()
            .bucket(bucket)
            .key(key)
            .checksum_sha256(base64::encode(
                hostkit::hex::decode(sha256).unwrap_or_default(),
            ))
            .set_if_none_match(only_new.then(|| "*".to_owned()))
            .body(body)
            .send()
            .await;
        match result.map_err(map_error) {
            Err(error) if error.kind == StoreErrorKind::Changed => Err(StoreError::new(
                StoreErrorKind::AlreadyExists,
                "the object already exists",
            )),
            other => other.map(|_| ()),
        }
    }

    /// Uploads a file to a free name of a store that rejected a conditional PUT with `status`: HEAD first.
    async fn look_and_upload(
        &self,
        source: &ArtifactSource,
        file: &Path,
        sha256: &str,
        status: u16,
    ) -> Result<(), StoreError> {
        let refusal = match self.head(source, None).await {
            Ok(_) => {
                return Err(StoreError::new(
                    StoreErrorKind::AlreadyExists,
                    "the object already exists",
                ));
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                warn!(%source, "the store has no conditional writes; a concurrent upload between the check and the write is overwritten");
                return self.upload(source, file, sha256, false).await;
            }
            Err(error)
                if matches!(
                    error.kind,
                    StoreErrorKind::Denied | StoreErrorKind::Permanent
                ) =>
            {
                error
            }
            Err(error) => return Err(error),
        };
        let message = format!(
            "the store rejects conditional writes ({status}), and does not show whether the object exists: {refusal}"
        );
        // https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html, "Permissions".
        let remedy = "allow the publisher to read the object (s3:GetObject, and s3:ListBucket for absent objects), or \
             overwrite it with --replace";
        let error = StoreError::new(refusal.kind, message).remedy(remedy);
        Err(match refusal.source {
            Some(cause) => error.because(cause),
            None => error,
        })
    }

    /// The reason of a rejected HEAD, whose response has no body: a GET of one byte tells a wrong clock, a wrong
    /// signature and a missing permission apart.
    async fn refusal(
        &self,
        bucket: &str,
        key: &str,
        error: SdkError<HeadObjectError>,
    ) -> StoreError {
        let status = error.raw_response().map(|raw| raw.status().as_u16());
        if error.code().is_none() && matches!(status, Some(400 | 401 | 403)) {
            let get = self.client.get_object().bucket(bucket).key(key);
            if let Err(error) = get.range("bytes=0-0").send().await
                && error.code().is_some()
            {
                return map_error(error);
            }
        }
        map_error(error)
    }
}

/// The authorities that the client trusts. Files that the SDK reads by itself are checked too.
///
/// # Errors
/// One of these files cannot be used (exit 78).
fn trust(s3: &S3Access, is_signed: bool) -> Result<tls::TlsContext, Failure> {
    if is_signed {
        s3.token_files.iter().try_for_each(NamedFile::check)?;
    }
    let Some(file) = &s3.ca_file else {
        http::check_system_authorities()?;
        return Ok(tls::TlsContext::default());
    };
    // The SDK panics on an invalid certificate.
    let (_, pem) = http::authorities(file)?;
    let store = tls::TrustStore::empty()
        .with_native_roots(false)
        .with_pem_certificate(pem);
    tls::TlsContext::builder()
        .with_trust_store(store)
        .build()
        .map_err(|error| Failure::new(Exit::CONFIG, "cannot configure TLS").because(error))
}

/// Checks what can be checked without a request.
pub(super) fn check(access: &StoreAccess) -> Result<(), Failure> {
    trust(access.s3()?, !access.no_sign_request).map(drop)
}

fn place(source: &ArtifactSource) -> Result<(&str, &str), StoreError> {
    match source {
        ArtifactSource::S3 { bucket, key } => Ok((bucket, key)),
        _ => Err(StoreError::new(
            StoreErrorKind::Permanent,
            "not an S3 object",
        )),
    }
}

impl ObjectStore for S3Store {
    fn get<'a>(
        &'a self,
        source: &'a ArtifactSource,
        want: GetRequest,
    ) -> LocalBoxFuture<'a, Result<GetResponse, StoreError>> {
        Box::pin(async move {
            let (bucket, key) = place(source)?;
            let output = self
                .client
                .get_object()
                .bucket(bucket)
                .key(key)
                .set_range(
                    want.range
                        .map(|(first, last)| format!("bytes={first}-{last}")),
                )
                .set_if_match(want.if_match)
                .send()
                .await
                .map_err(map_error)?;
            let ranged = output
                .content_range()
                .and_then(|text| text.strip_prefix("bytes ")?.split_once('/'));
            let offset = ranged.and_then(|(range, _)| range.split_once('-')?.0.parse().ok());
            let total = ranged.and_then(|(_, total)| total.parse().ok());
            let length = output
                .content_length()
                .and_then(|length| u64::try_from(length).ok());
            let meta = ObjectMeta {
                size: if ranged.is_some() { total } else { length },
                etag: output.e_tag().map(str::to_owned),
                content_type: output.content_type().map(str::to_owned),
                ..ObjectMeta::default()
            };
            Ok(GetResponse {
                meta,
                offset: offset.unwrap_or(0),
                partial: ranged.is_some(),
                body: ResponseBody::S3(Box::new(output.body)),
            })
        })
    }

    fn head<'a>(
        &'a self,
        source: &'a ArtifactSource,
        unless: Option<&'a str>,
    ) -> LocalBoxFuture<'a, Result<HeadResponse, StoreError>> {
        Box::pin(async move {
            let (bucket, key) = place(source)?;
            let result = self
                .client
                .head_object()
                .bucket(bucket)
                .key(key)
                .set_if_none_match(unless.map(str::to_owned))
                .checksum_mode(ChecksumMode::Enabled)
                .send()
                .await;
            match result {
                Ok(output) => {
                    let meta = meta(&output);
                    let same = unless.is_some() && unless == meta.etag.as_deref();
                    Ok(if same {
                        HeadResponse::NotModified
                    } else {
                        HeadResponse::Found(meta)
                    })
                }
                Err(error)
                    if error
                        .raw_response()
                        .is_some_and(|raw| raw.status().as_u16() == 304) =>
                {
                    Ok(HeadResponse::NotModified)
                }
                Err(error) => Err(self.refusal(bucket, key, error).await),
            }
        })
    }

    fn put<'a>(
        &'a self,
        source: &'a ArtifactSource,
        file: &'a Path,
        sha256: &'a str,
        replace: bool,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
            let mut conflicts = 0;
            let uploaded = loop {
                match self.upload(source, file, sha256, !replace).await {
                    // Another upload of this name was in progress; the next attempt shows which one was first.
                    Err(error) if error.status == Some(409) && conflicts < CONFLICTS => {
                        conflicts += 1;
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                    other => break other,
                }
            };
            match uploaded {
                Err(StoreError {
                    status: Some(status),
                    ..
                }) if !replace && CONDITION_REFUSED.contains(&status) => {
                    self.look_and_upload(source, file, sha256, status).await
                }
                other => other,
            }
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a ArtifactSource,
        each: ListingVisitor<'a>,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (bucket, key) = place(prefix)?;
            let is_directory = key.is_empty() || key.ends_with('/');
            let mut pages = self
                .client
                .list_objects_v2()
                .bucket(bucket)
                .prefix(key)
                .delimiter("/")
                .into_paginator()
                // It would return the pages before a repeated token as the whole listing.
                .stop_on_duplicate_token(false)
                .send();
            let mut tokens = TokenCycle::default();
            while let Some(page) = pages.next().await {
                let page = page.map_err(map_error)?;
                let below = page.common_prefixes().iter().filter(|_| is_directory);
                let found = page.contents().iter().map(listed);
                for listed in found.chain(below.map(directory)) {
                    if each(listed).is_break() {
                        return Ok(());
                    }
                }
                let next = page
                    .next_continuation_token()
                    .filter(|next| !next.is_empty());
                let problem = match next {
                    None if page.is_truncated() == Some(true) => {
                        "a truncated listing without a continuation token"
                    }
                    Some(next) if tokens.is_closed_by(next) => {
                        "a continuation token twice: the listing has no end"
                    }
                    _ => continue,
                };
                let message = format!("{} sent {problem}", self.service);
                return Err(StoreError::new(StoreErrorKind::Permanent, message).remedy(NOT_S3));
            }
            Ok(())
        })
    }

    fn wants_head(&self) -> bool {
        true
    }
}

fn directory(prefix: &CommonPrefix) -> ListedObject {
    let path = prefix.prefix().unwrap_or_default().trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or_default();
    ListedObject {
        name: format!("{name}/"),
        modified: String::new(),
        size: 0,
    }
}

fn listed(object: &Object) -> ListedObject {
    let key = object.key().unwrap_or_default();
    let modified = object
        .last_modified()
        .and_then(|time| time.fmt(DateTimeFormat::DateTime).ok());
    ListedObject {
        name: key.rsplit('/').next().unwrap_or_default().to_owned(),
        modified: modified.unwrap_or_default(),
        size: object
            .size()
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or(0),
    }
}

fn meta(output: &HeadObjectOutput) -> ObjectMeta {
    ObjectMeta {
        size: output
            .content_length()
            .and_then(|length| u64::try_from(length).ok()),
        etag: output.e_tag().map(str::to_owned),
        checksum: checksum(output),
        ..ObjectMeta::default()
    }
}

/// S3's checksum of the whole object. That of a multipart upload may be COMPOSITE, a checksum of the parts' checksums,
/// which cannot be compared with the bytes.
fn checksum(output: &HeadObjectOutput) -> Option<ObjectChecksum> {
    let whole = match output.checksum_type() {
        Some(kind) => *kind == ChecksumType::FullObject,
        // Not every store reports the type. The entity tag of a multipart object ends in the number of its parts.
        None => !output.e_tag().is_some_and(is_multipart),
    };
    let decoded = |text: Option<&str>| base64::decode(text?).ok();
    let number = |bytes: Vec<u8>| {
        bytes
            .iter()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let crc = |crc, text, length| {
        decoded(text)
            .filter(|b| b.len() == length)
            .map(|b| ObjectChecksum::Crc(crc, number(b)))
    };
    // S3 has no composite form of this one.
    let crc64 = || crc(CrcKind::Crc64Nvme, output.checksum_crc64_nvme(), 8);
    if !whole {
        return crc64().filter(|_| output.checksum_type().is_none());
    }
    let sha256 = decoded(output.checksum_sha256()).and_then(|bytes| bytes.try_into().ok());
    sha256
        .map(ObjectChecksum::Sha256)
        .or_else(crc64)
        .or_else(|| crc(CrcKind::Crc32c, output.checksum_crc32_c(), 4))
        .or_else(|| crc(CrcKind::Crc32, output.checksum_crc32(), 4))
}

/// Whether an entity tag is that of a multipart upload: `"<hex>-<parts>"`.
fn is_multipart(etag: &str) -> bool {
    let parts = etag.trim_matches('"').rsplit_once('-');
    parts.is_some_and(|(_, parts)| !parts.is_empty() && parts.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checksum_of_the_whole_object_vouches_for_it() {
        use ChecksumType::{Composite, FullObject};
        const SHA256: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        const PLAIN: &str = "\"9f62\"";
        const PARTS: &str = "\"9f62-3\"";
        for (stated, etag, sha256, crc32, crc64, expected) in [
            (None, PLAIN, Some(SHA256), None, None, "sha256"),
            (Some(FullObject), PARTS, Some(SHA256), None, None, "sha256"),
            // Without a type, the entity tag or the form of the checksum decides.
            (None, PARTS, Some(SHA256), None, None, "none"),
            (None, PARTS, None, Some("AAAAAQ=="), None, "none"),
            (None, PLAIN, None, Some("AAAAAQ==-3"), None, "none"),
            (
                None,
                PARTS,
                Some(SHA256),
                None,
                Some("AAAAAAAAAAI="),
                "crc64",
            ),
            (Some(Composite), PLAIN, Some(SHA256), None, None, "none"),
            (Some(Composite), PARTS, None, Some("AAAAAQ=="), None, "none"),
            // The widest CRC is used.
            (
                None,
                PLAIN,
                None,
                Some("AAAAAQ=="),
                Some("AAAAAAAAAAI="),
                "crc64",
            ),
            (None, PLAIN, None, Some("AAAAAQ=="), None, "crc32"),
            (None, "\"a-b\"", None, Some("AAAAAQ=="), None, "crc32"),
        ] {
            let output = HeadObjectOutput::builder()
                .e_tag(etag)
                .set_checksum_type(stated.clone())
                .set_checksum_sha256(sha256.map(str::to_owned))
                .set_checksum_crc32(crc32.map(str::to_owned))
                .set_checksum_crc64_nvme(crc64.map(str::to_owned));
            let found = match checksum(&output.build()) {
                Some(ObjectChecksum::Sha256(_)) => "sha256",
                Some(ObjectChecksum::Crc(CrcKind::Crc64Nvme, 2)) => "crc64",
                Some(ObjectChecksum::Crc(CrcKind::Crc32, 1)) => "crc32",
                Some(other) => panic!("{other:?}"),
                None => "none",
            };
            assert_eq!(
                found, expected,
                "{stated:?} {etag} {sha256:?} {crc32:?} {crc64:?}"
            );
        }
    }
}
