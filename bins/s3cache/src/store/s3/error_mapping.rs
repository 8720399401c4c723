//! Maps the SDK's errors to causes and remedies.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use hostkit::failure::{format_chain, is_out_of_resources};

use crate::store::bounded_client::{InvalidListing, NoReply, ReplyTooLong};
use crate::store::proxy::{InvalidProxy, ProxyFailed};
use crate::store::{StoreError, StoreErrorKind, cause_of, from_status, http};

/// The longest cause that is printed (characters).
const CAUSE_LIMIT: usize = 500;

/// The remedy for responses that S3 does not send.
pub(super) const NOT_S3: &str =
    "check that the endpoint (--endpoint-url, AWS_ENDPOINT_URL, the profile) is an S3 service";

/// The kind of a failed request, a message and a remedy.
pub(super) fn map_error<E>(error: SdkError<E>) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    // Only the text of a cause is kept below, but this one's exit code depends on its type.
    if is_out_of_resources(&error) {
        return StoreError::new(StoreErrorKind::Permanent, "cannot create the request to S3")
            .because(error);
    }
    let raw = error.raw_response();
    let header = |name: &str| {
        raw.and_then(|raw| raw.headers().get(name))
            .map(str::to_owned)
    };
    let status = raw.map(|raw| raw.status().as_u16());
    let code = error.code().map(str::to_owned);
    let region = header("x-amz-bucket-region");
    let no_reply = cause_of::<NoReply>(&error);
    let server = no_reply.map_or("its endpoint", |no_reply| &no_reply.server);
    let explained = match (code.as_deref(), status) {
        (Some("RequestTimeTooSkewed"), _) => {
            StoreError::new(StoreErrorKind::Denied, "this host's clock differs too much from S3's")
                .remedy("set the clock (NTP)")
        }
        (Some("NoSuchBucket"), _) => StoreError::new(StoreErrorKind::NotFound, "no such bucket")
            .remedy("correct the name or create it"),
        (
            Some(
                "PermanentRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
            ),
            _,
        )
        | (_, Some(301 | 307)) => {
            let error = StoreError::new(StoreErrorKind::Permanent, "the bucket is in another region");
            match region {
                Some(region) => error.remedy(format!("use --region {region}")),
                None => error.remedy("pass its region with --region"),
            }
        }
        (
            Some(
                code @ ("InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"),
            ),
            _,
        ) => StoreError::new(
            StoreErrorKind::Denied,
            format!("S3 rejects these credentials ({code})"),
        ),
        // Statuses of 400, but unrelated to the request's conditions: a retry may succeed.
        (Some(code @ ("RequestTimeout" | "BadDigest" | "IncompleteBody")), _) => StoreError::new(
            StoreErrorKind::Transient,
            format!("S3 did not receive the whole request ({code})"),
        )
        .remedy("try again"),
        (Some("InvalidObjectState"), _) => StoreError::new(
            StoreErrorKind::Permanent,
            "the object is archived and cannot be read",
        )
        .remedy(
            "restore it first (aws s3api restore-object), or publish it in another storage class",
        ),
        (code, Some(status)) => {
            let mut error = from_status(status, header("retry-after").as_deref());
            if code.is_none() && error.kind == StoreErrorKind::Permanent {
                error.message = format!("the server returned {status} without an S3 error");
                error = error.remedy(NOT_S3);
            }
            error
        }
        // The SDK only keeps the text of what is wrong with the profile, as the cause.
        (_, None) if let Some(CredentialsError::InvalidConfiguration(_)) = cause_of(&error) => {
            StoreError::new(StoreErrorKind::Denied, "the AWS profile has no credentials").remedy(
                "correct the profile in ~/.aws/config, as the cause shows",
            )
        }
        (_, None) if cause_of::<CredentialsError>(&error).is_some() => {
            StoreError::new(StoreErrorKind::Denied, "no usable AWS credentials").remedy(
                "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or --no-sign-request for a public bucket",
            )
        }
        (_, None) if let Some(error) = cause_of(&error) => {
            http::map_tls_error(error, server)
        }
        (_, None) if let Some(error) = cause_of::<InvalidProxy>(&error) => error.to_store_error(),
        (_, None) if let Some(failed) = cause_of::<ProxyFailed>(&error) => {
            failed.proxy.to_store_error(failed)
        }
        (_, None) if cause_of::<ReplyTooLong>(&error).is_some() => {
            StoreError::new(StoreErrorKind::Permanent, "the response of S3 is too long")
                .remedy("check that the endpoint is an S3 service")
        }
        (_, None) if let Some(invalid) = cause_of::<InvalidListing>(&error) => {
            let message = format!("{} sent an invalid S3 listing", invalid.server);
            StoreError::new(StoreErrorKind::Permanent, message).remedy(NOT_S3)
        }
        (_, None) if matches!(error, SdkError::ConstructionFailure(_)) => {
            StoreError::new(StoreErrorKind::Permanent, "cannot create the request to S3")
        }
        (_, None) => StoreError::new(StoreErrorKind::Transient, format!("cannot reach S3 at {server}"))
            .remedy("check the endpoint (--endpoint-url, AWS_ENDPOINT_URL, the profile) and the network, or try again"),
    };
    let cause = match (&code, error.message()) {
        (Some(code), Some(message)) => format!("S3 error {code}: {message}"),
        _ => format_chain(&error),
    };
    explained.because(CauseText(one_line(&cause)))
}

/// The beginning of a text of the server, as one line.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(CAUSE_LIMIT).collect();
    if line.len() < text.len() {
        line.push_str("...");
    }
    line.replace(char::is_control, " ")
}

/// The text of an SDK error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CauseText(String);
