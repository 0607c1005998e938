//! Errors as callers see them: a gRPC status with `google.rpc` details.

use std::{collections::HashMap, time::Duration};

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    erase,
    error::Code,
    ingest::IngestError,
    log::{AppendError, Cursor, Position, ReadError},
    proto::{IngestStreamError, Scope},
    renormalize,
};

const DOMAIN: &str = "verdict";

/// When a call that may succeed later should be tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// An error with the details that all our errors have.
pub(super) fn error(code: Code, message: impl Into<String>) -> Status {
    with_metadata(code, message, HashMap::new())
}

fn with_metadata(
    code: Code,
    message: impl Into<String>,
    metadata: HashMap<String, String>,
) -> Status {
    let mut details = ErrorDetails::with_error_info(code.reason(), DOMAIN, metadata);
    if code.retryable() {
        details.set_retry_info(Some(RETRY_DELAY));
    }
    Status::with_error_details(code.grpc(), message, details)
}

/// A field of the request is missing or malformed.
pub(super) fn invalid(field: &str, description: impl Into<String>) -> Status {
    let code = Code::InvalidRequest;
    let description = description.into();
    let message = format!("{field} {description}");
    let mut details = ErrorDetails::with_error_info(code.reason(), DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, description);
    Status::with_error_details(code.grpc(), message, details)
}

/// A cursor that the log cannot resume after, with the first one that it can.
pub(super) fn out_of_range(message: &str, first_available: &Cursor) -> Status {
    let metadata = HashMap::from([("first_available".to_owned(), first_available.encode())]);
    with_metadata(Code::CursorOutOfRange, message, metadata)
}

/// The caller lacks a scope, at all or for what the call is about.
pub(super) fn scope_missing(scope: Scope) -> Status {
    let name = scope.as_str_name();
    let message = format!("the caller has no {name} for this");
    let metadata = HashMap::from([("scope".to_owned(), name.to_owned())]);
    with_metadata(Code::ScopeMissing, message, metadata)
}

/// A handler was reached past the layer that knows callers: a bug of ours.
pub(super) fn nobody() -> Status {
    error(Code::Unauthenticated, "nobody knows who calls")
}

/// The server is shutting down, or a connection has come to its age.
pub(super) fn draining() -> Status {
    error(
        Code::Draining,
        "the server is shutting down, or the connection has come to its age; connect again and go on",
    )
}

impl From<IngestError> for Status {
    fn from(failed: IngestError) -> Self {
        error(failed.code(), failed.to_string())
    }
}

/// A read that failed. Where and how the log is damaged is for operators only.
pub(super) fn read_error(failed: ReadError) -> Status {
    match failed {
        ReadError::NotRetained => error(Code::CursorOutOfRange, failed.to_string()),
        ReadError::Unavailable(_) => {
            tracing::error!(error = %failed, "the log cannot be read");
            error(Code::LogUnavailable, "the log cannot be read")
        }
        ReadError::Damaged { position, .. } => {
            tracing::error!(error = %failed, log.position = position.0, "the log is damaged");
            let message =
                "something that the log must hold cannot be read; its operator can see why";
            let metadata = HashMap::from([("position".to_owned(), position.0.to_string())]);
            with_metadata(Code::LogDamaged, message, metadata)
        }
    }
}

/// Something that the log holds is not what was written.
pub(super) fn undecodable(position: Position, why: &prost::DecodeError) -> Status {
    let place = format!("a stored message cannot be decoded: {why}");
    read_error(ReadError::Damaged { position, place })
}

/// An error as it is told inside a stream that goes on.
pub(super) fn stream_error(failed: &Status) -> IngestStreamError {
    let details = failed.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    let retry_delay = details.retry_info().and_then(|info| info.retry_delay);
    IngestStreamError {
        code: failed.code().into(),
        reason: reason.unwrap_or_default(),
        message: failed.message().to_owned(),
        retry_delay: retry_delay.and_then(|delay| delay.try_into().ok()),
    }
}

/// A write that failed, of something other than a webhook.
pub(super) fn append_error(failed: AppendError) -> Status {
    tracing::warn!(error = %failed, "the log cannot be written");
    error(Code::LogUnavailable, "the log cannot be written; try again")
}

impl From<renormalize::EndError> for Status {
    fn from(ended: renormalize::EndError) -> Self {
        match ended {
            renormalize::EndError::Draining => draining(),
            renormalize::EndError::Read(failed) => read_error(failed),
            renormalize::EndError::Append(failed) => append_error(failed),
        }
    }
}

impl From<erase::EndError> for Status {
    fn from(ended: erase::EndError) -> Self {
        match ended {
            erase::EndError::Draining => draining(),
            erase::EndError::Read(failed) => read_error(failed),
            erase::EndError::Append(failed) => append_error(failed),
            erase::EndError::NotEncrypted(events) => {
                let message = format!(
                    "{events} events about the subject were stored without encryption and stay as long as they are \
                     retained; everything else is erased"
                );
                error(Code::NotEncrypted, message)
            }
        }
    }
}

/// Why tonic refused a request that it could not read, as operators are told, if that is what an answer says. All errors of
/// ours have details.
pub(super) fn unread_by_tonic(headers: &http::HeaderMap) -> Option<&'static str> {
    let status = Status::from_header_map(headers)?;
    status.details().is_empty().then(|| unread(&status))?
}

/// Why a request could not be read, as operators are told, if that is what an error of tonic says.
pub(super) fn unread(status: &Status) -> Option<&'static str> {
    match status.code() {
        GrpcCode::OutOfRange | GrpcCode::ResourceExhausted => Some("payload_too_large"),
        GrpcCode::Internal => Some("invalid_request"),
        _ => None,
    }
}

/// Gives the errors that tonic makes itself, before a handler runs, the details that all our errors have.
pub(super) fn with_details<B: Default>(response: http::Response<B>) -> http::Response<B> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.details().is_empty() => detailed(status).into_http(),
        _ => response,
    }
}

/// An error that tonic made itself about a request, as one of ours; any other as it is.
pub(super) fn detailed(status: Status) -> Status {
    match status.code() {
        GrpcCode::OutOfRange | GrpcCode::ResourceExhausted => error(
            Code::PayloadTooLarge,
            "the request is larger than the limits on payload and headers allow",
        ),
        GrpcCode::Internal => invalid("request", "cannot be decoded"),
        _ => status,
    }
}
