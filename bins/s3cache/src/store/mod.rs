//! Artifact stores: one trait, three implementations, one error type. Independent of the cache.

mod bounded_client;
pub(crate) mod file;
mod http;
mod listing;
mod netrc;
mod preflight;
mod proxy;
mod resolver;
pub(crate) mod s3;

use std::future::Future;
use std::ops::ControlFlow;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
pub(crate) use hostkit::failure::cause_of;
use hostkit::failure::is_out_of_resources;
use hostkit::{Exit, Failure};
pub(crate) use preflight::check;

use crate::settings::StoreAccess;
use crate::source::ArtifactSource;

/// A boxed future of the current thread.
pub(crate) type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The properties of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ObjectMeta {
    /// Its length (bytes), when the store reports it.
    pub size: Option<u64>,
    /// Its entity tag, quotes included (RFC 9110 section 8.8.3).
    pub etag: Option<String>,
    /// A checksum of the whole object by the store.
    pub checksum: Option<ObjectChecksum>,
    pub content_type: Option<String>,
    /// When it was last changed, in the store's format; only for listings.
    pub modified: Option<String>,
}

impl ObjectMeta {
    /// The entity tag if it is a strong validator, as `If-Match` needs (RFC 9110 section 8.8.1).
    #[must_use]
    pub(crate) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/"))
    }
}

/// A full-object checksum (S3's `x-amz-checksum-*` of type FULL_OBJECT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectChecksum {
    Sha256([u8; 32]),
    /// A CRC, which can be combined over ranges.
    Crc(CrcKind, u64),
}

/// The CRCs of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum CrcKind {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    #[default]
    Crc64Nvme,
}

impl CrcKind {
    const fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
        }
    }

    /// Its name in the record of a partial download.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
        }
    }

    #[must_use]
    pub(crate) fn digest(self) -> crc_fast::Digest {
        crc_fast::Digest::new(self.algorithm())
    }

    /// The CRC of two byte ranges in a row, from the CRC of each and the length of the second (bytes).
    #[must_use]
    pub(crate) fn combine(self, first: u64, second: u64, second_length: u64) -> u64 {
        crc_fast::checksum_combine(self.algorithm(), first, second, second_length)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct GetRequest {
    /// First and last byte; the whole object when absent.
    pub range: Option<(u64, u64)>,
    /// Fail unless the object has this entity tag.
    pub if_match: Option<String>,
}

#[derive(Debug)]
pub(crate) struct GetResponse {
    /// The properties of the whole object, as far as the response has them.
    pub meta: ObjectMeta,
    /// The offset of the body in the object; 0 when the store ignored the range.
    pub offset: u64,
    /// Whether the body is only a range of the object.
    pub partial: bool,
    pub body: ResponseBody,
}

/// The body of a response, read in pieces.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    Http(Box<reqwest::Response>),
    S3(Box<aws_sdk_s3::primitives::ByteStream>),
    File(file::FileBody),
}

impl ResponseBody {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Http(response) => response
                .chunk()
                .await
                .map_err(|error| http::map_error(error, "", None)),
            Self::S3(stream) => stream.try_next().await.map_err(|error| {
                StoreError::new(StoreErrorKind::Transient, "the connection to S3 was lost")
                    .because(error)
            }),
            Self::File(body) => body.next_piece().await,
        }
    }
}

/// The response to a conditional HEAD.
#[derive(Debug)]
pub(crate) enum HeadResponse {
    /// The object still has the given entity tag.
    NotModified,
    /// The object's properties.
    Found(ObjectMeta),
}

impl HeadResponse {
    /// The properties, empty when the object was not modified.
    pub(crate) fn into_meta(self) -> ObjectMeta {
        match self {
            Self::Found(meta) => meta,
            Self::NotModified => ObjectMeta::default(),
        }
    }
}

/// An object of a listing.
#[derive(Debug, Clone)]
pub struct ListedObject {
    /// The last component of the name, with a slash for a directory.
    pub name: String,
    /// When it was last changed (RFC 3339, sorts as text).
    pub modified: String,
    /// Its length in bytes.
    pub size: u64,
}

/// Called with each object of a listing.
pub type ListingVisitor<'a> = &'a mut dyn FnMut(ListedObject) -> ControlFlow<()>;

/// A place that artifacts are fetched from and published to.
pub(crate) trait ObjectStore {
    /// Opens the body of an object, or of a range of it.
    fn get<'a>(
        &'a self,
        source: &'a ArtifactSource,
        want: GetRequest,
    ) -> LocalBoxFuture<'a, Result<GetResponse, StoreError>>;
    /// The properties of an object, or `NotModified` if it still has the entity tag `unless`.
    fn head<'a>(
        &'a self,
        source: &'a ArtifactSource,
        unless: Option<&'a str>,
    ) -> LocalBoxFuture<'a, Result<HeadResponse, StoreError>>;
    /// Stores a file whose SHA-256 is `sha256` (hex). Unless `replace`, an existing object is kept, and the error is
    /// `StoreErrorKind::AlreadyExists`.
    fn put<'a>(
        &'a self,
        source: &'a ArtifactSource,
        file: &'a Path,
        sha256: &'a str,
        replace: bool,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>>;
    /// Calls `each` for every object whose name starts with `prefix`, in no order, until it breaks off. Only one page
    /// is held in memory. When `prefix` ends in a slash, the directories below it are included.
    fn list<'a>(
        &'a self,
        prefix: &'a ArtifactSource,
        each: ListingVisitor<'a>,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>>;
    /// Whether to start with a HEAD, because only that has checksums.
    fn wants_head(&self) -> bool {
        false
    }
}

/// Opens the store of `source`. Loads a TLS or AWS configuration, so it is not called on a hit.
///
/// # Errors
/// A certificate file cannot be used, or the AWS configuration cannot be loaded.
pub(crate) async fn open(
    source: &ArtifactSource,
    access: &StoreAccess,
    timeout: Duration,
) -> Result<Box<dyn ObjectStore>, Failure> {
    Ok(match source {
        ArtifactSource::File(_) => Box::new(file::FileStore),
        ArtifactSource::Http(_) => {
            let access = access.clone();
            Box::new(file::blocking(move || http::HttpStore::new(&access)).await?)
        }
        ArtifactSource::S3 { .. } => Box::new(s3::S3Store::new(access, timeout).await?),
    })
}

/// The kinds of failed requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreErrorKind {
    /// There is no such object.
    NotFound,
    /// Access is denied.
    Denied,
    /// The object was replaced since the first response.
    Changed,
    /// An object of this name exists already.
    AlreadyExists,
    /// A retry may succeed.
    Transient,
    /// A retry would fail too: TLS, region, protocol, configuration.
    Permanent,
    /// The local disk failed or is full.
    Disk,
}

/// A failed request, with a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StoreError {
    pub kind: StoreErrorKind,
    /// The HTTP status, if there was a response.
    pub status: Option<u16>,
    /// What happened, without the name of the object.
    pub message: String,
    pub remedy: Option<String>,
    /// The server's Retry-After.
    pub retry_after: Option<Duration>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: None,
            message: message.into(),
            remedy: None,
            retry_after: None,
            source: None,
        }
    }

    /// The local disk failed.
    pub(crate) fn disk(error: std::io::Error) -> Self {
        Self::new(StoreErrorKind::Disk, "cannot write").because(error)
    }

    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the cause. Without file descriptors or threads a retry fails too, and so does bypassing the cache.
    #[must_use]
    pub(crate) fn because(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        if is_out_of_resources(&*source) {
            self.kind = StoreErrorKind::Permanent;
        }
        self.source = Some(source);
        self
    }

    /// The failure of the tool.
    #[must_use]
    pub(crate) fn into_failure(self, source: &ArtifactSource) -> Failure {
        let (exit, remedy) = match self.kind {
            StoreErrorKind::NotFound => (
                Exit::NOT_FOUND,
                "check the name, and that the build was published",
            ),
            StoreErrorKind::Denied => (Exit::DENIED, "check the credentials and their permissions"),
            StoreErrorKind::Changed => (
                Exit::TRY_AGAIN,
                "try again: the object was replaced meanwhile",
            ),
            StoreErrorKind::AlreadyExists => (Exit::CANNOT_CREATE, "publish under another name"),
            StoreErrorKind::Transient => (Exit::UNAVAILABLE, "try again when the service answers"),
            StoreErrorKind::Permanent => (
                Exit::UNAVAILABLE,
                "correct the cause; a retry does not help",
            ),
            StoreErrorKind::Disk => (Exit::CANNOT_CREATE, "free some space on the disk"),
        };
        let failure = Failure::new(exit, format!("{source}: {}", self.message))
            .remedy(self.remedy.as_deref().unwrap_or(remedy));
        match self.source {
            Some(cause) => failure.because(cause),
            None => failure,
        }
    }

    /// The failure of an invalid configuration (exit 78).
    fn into_config_failure(self) -> Failure {
        let failure = Failure::new(Exit::CONFIG, self.message)
            .remedy(self.remedy.as_deref().unwrap_or("correct the cause"));
        match self.source {
            Some(cause) => failure.because(cause),
            None => failure,
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => StoreErrorKind::NotFound,
            ErrorKind::PermissionDenied => StoreErrorKind::Denied,
            _ => StoreErrorKind::Disk,
        };
        Self::new(kind, error.to_string()).because(error)
    }
}

/// The error for an HTTP status.
#[must_use]
pub(crate) fn from_status(status: u16, retry_after: Option<&str>) -> StoreError {
    let (kind, message) = match status {
        404 | 410 => (StoreErrorKind::NotFound, "no such object".to_owned()),
        401 => (
            StoreErrorKind::Denied,
            "the server requires credentials (401)".to_owned(),
        ),
        403 => (StoreErrorKind::Denied, "access denied (403)".to_owned()),
        407 => (
            StoreErrorKind::Denied,
            "the proxy requires credentials (407)".to_owned(),
        ),
        412 => (
            StoreErrorKind::Changed,
            "the object was replaced during the download (412)".to_owned(),
        ),
        501 | 505 => (
            StoreErrorKind::Permanent,
            format!("the server does not implement this request ({status})"),
        ),
        408 | 425 | 429 | 500..=599 => (
            StoreErrorKind::Transient,
            format!("server returned {status}"),
        ),
        _ => (
            StoreErrorKind::Permanent,
            format!("server returned {status}"),
        ),
    };
    let mut error = StoreError::new(kind, message);
    if status == 403 {
        // https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html, "Permissions".
        error = error.remedy(
            "check the name, the credentials and their permissions; S3 returns 403 for an absent object too, unless the \
             bucket may be listed (s3:ListBucket)",
        );
    }
    if kind == StoreErrorKind::Transient {
        error = error.remedy("try again later");
    }
    error.status = Some(status);
    // Only whole seconds: the date form needs two clocks that agree (RFC 9110 section 10.2.3).
    error.retry_after = retry_after
        .and_then(|text| text.trim().parse().ok())
        .map(Duration::from_secs);
    error
}
