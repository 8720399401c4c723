//! What the SDK's errors mean for a fetch.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use hostkit::failure::{format_chain, is_out_of_resources};

use crate::store::bounded_client::{InvalidListing, NoReply, ReplyTooLong};
use crate::store::proxy::{InvalidProxy, ProxyFailed};
use crate::store::{StoreError, StoreErrorKind, cause_of, http, of_status};

/// The longest cause that is printed (characters).
const CAUSE_LIMIT: usize = 500;

/// What to do about a reply that S3 does not send.
pub(super) const NOT_S3: &str =
    "check that the endpoint (--endpoint-url, AWS_ENDPOINT_URL, the profile) is an S3 service";

/// The kind of a failed request, what happened, and what a person can do about it.
pub(super) fn explain<E>(error: SdkError<E>) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    // Only the text of a cause is kept below, and the exit code of this one goes by its type.
    if is_out_of_resources(&error) {
        return StoreError::new(
            StoreErrorKind::Permanent,
            "the request to S3 cannot be made",
        )
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
        (Some("NoSuchBucket"), _) => StoreError::new(StoreErrorKind::NotFound, "there is no such bucket")
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
                None => error.remedy("name its region with --region"),
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
            format!("S3 refuses these credentials ({code})"),
        ),
        // Statuses of 400, but they say nothing of the request's conditions: the next attempt may succeed.
        (Some(code @ ("RequestTimeout" | "BadDigest" | "IncompleteBody")), _) => StoreError::new(
            StoreErrorKind::Transient,
            format!("S3 did not receive the whole request ({code})"),
        )
        .remedy("try again"),
        (Some("InvalidObjectState"), _) => StoreError::new(
            StoreErrorKind::Permanent,
            "the object is archived, and cannot be read from there",
        )
        .remedy(
            "restore it first (aws s3api restore-object), or publish it in another storage class",
        ),
        (code, Some(status)) => {
            let mut error = of_status(status, header("retry-after").as_deref());
            if code.is_none() && error.kind == StoreErrorKind::Permanent {
                error.message = format!("the server answered {status} and named no S3 error");
                error = error.remedy(NOT_S3);
            }
            error
        }
        // The SDK keeps no more than the text of what is wrong with the profile, which is the cause below.
        (_, None) if let Some(CredentialsError::InvalidConfiguration(_)) = cause_of(&error) => {
            StoreError::new(StoreErrorKind::Denied, "the AWS profile gives no credentials").remedy(
                "correct the profile in ~/.aws/config; the cause says what is wrong with it",
            )
        }
        (_, None) if cause_of::<CredentialsError>(&error).is_some() => {
            StoreError::new(StoreErrorKind::Denied, "there are no usable AWS credentials").remedy(
                "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or --no-sign-request for a public bucket",
            )
        }
        (_, None) if let Some(error) = cause_of(&error) => {
            http::explain_tls(error, server)
        }
        (_, None) if let Some(error) = cause_of::<InvalidProxy>(&error) => error.to_store_error(),
        (_, None) if let Some(failed) = cause_of::<ProxyFailed>(&error) => {
            failed.proxy.to_store_error(failed)
        }
        (_, None) if cause_of::<ReplyTooLong>(&error).is_some() => {
            StoreError::new(StoreErrorKind::Permanent, "the reply of S3 is too long")
                .remedy("check that the endpoint is an S3 service")
        }
        (_, None) if let Some(invalid) = cause_of::<InvalidListing>(&error) => {
            let message = format!("{} sent a listing that is not one of S3", invalid.server);
            StoreError::new(StoreErrorKind::Permanent, message).remedy(NOT_S3)
        }
        (_, None) if matches!(error, SdkError::ConstructionFailure(_)) => {
            StoreError::new(StoreErrorKind::Permanent, "the request to S3 cannot be made")
        }
        (_, None) => StoreError::new(StoreErrorKind::Transient, format!("cannot reach S3 at {server}"))
            .remedy("check the endpoint (--endpoint-url, AWS_ENDPOINT_URL, the profile) and the network, or try again"),
    };
    let cause = match (&code, error.message()) {
        (Some(code), Some(message)) => format!("S3 says {code}: {message}"),
        _ => format_chain(&error),
    };
    explained.because(CauseText(one_line(&cause)))
}

/// The beginning of a text that a server may have written, as one line.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(CAUSE_LIMIT).collect();
    if line.len() < text.len() {
        line.push_str("...");
    }
    line.replace(char::is_control, " ")
}

/// What the SDK's error says, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CauseText(String);
