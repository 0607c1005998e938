//! Errors as callers see them: a gRPC status with `google.rpc` details.

use std::{collections::HashMap, time::Duration};

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    error::Code,
    ingest::IngestError,
    log::{Cursor, ReadError},
    subscription::EndError,
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

/// The server is shutting down.
pub(super) fn draining() -> Status {
    error(
        Code::Draining,
        "the server is shutting down; connect again and go on",
    )
}

impl From<IngestError> for Status {
    fn from(failed: IngestError) -> Self {
        error(failed.code(), failed.to_string())
    }
}

/// A read that failed.
pub(super) fn read_error(failed: ReadError) -> Status {
    tracing::error!(error = %failed, "the log cannot be read");
    error(Code::LogUnavailable, "the log cannot be read")
}

impl From<EndError> for Status {
    fn from(ended: EndError) -> Self {
        match ended {
            EndError::Draining => draining(),
            EndError::Read(failed) => read_error(failed),
        }
    }
}

/// Gives the errors that tonic makes itself, before a handler runs, the details that all our errors have.
pub(super) fn with_details<B: Default>(response: http::Response<B>) -> http::Response<B> {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return response;
    };
    if !status.details().is_empty() {
        return response;
    }
    let status = match status.code() {
        GrpcCode::OutOfRange | GrpcCode::ResourceExhausted => error(
            Code::PayloadTooLarge,
            "the request is larger than the limits on payload and headers allow",
        ),
        GrpcCode::Internal => invalid("request", "cannot be decoded"),
        _ => return response,
    };
    status.into_http()
}
