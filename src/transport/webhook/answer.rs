//! What providers are answered. They read the status and little else, so the bodies are small and always the same.

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};

use crate::{error::Code, provider::Posting};

/// After how many seconds a webhook should be posted again for which there was a trouble of ours.
const RETRY_AFTER_SECONDS: u16 = 10;

/// Why a webhook was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no source with this provider and account is configured")]
    NoSource,
    #[error("webhooks are posted")]
    NotPosted,
    #[error("the source takes no webhooks from this address")]
    AddressNotAllowed,
    #[error(
        "the source takes webhooks from some addresses only, and a proxy does not tell this one"
    )]
    AddressUnknown,
    #[error("the headers are more or larger than allowed")]
    HeadersTooLarge,
    #[error("a body may be coded with gzip, once, or not at all")]
    UnknownCoding,
    #[error("the body is larger than allowed")]
    PayloadTooLarge,
    #[error("the body is empty, incomplete or not what its headers say")]
    Malformed,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the signature is missing, malformed, wrong or stale")]
    NotGenuine,
    #[error("too much is being received; post the webhook again")]
    Overloaded,
    #[error("the event could not be stored; post the webhook again")]
    NotStored,
    /// A bug of ours.
    #[error("the webhook could not be taken; post it again")]
    Failed,
    #[error("the server is shutting down; post the webhook again")]
    Draining,
}

impl Refusal {
    /// The refusal as operators know it: in the metric of refused webhooks, and in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoSource => "source_not_found",
            Self::NotPosted => "not_posted",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::AddressUnknown => "address_unknown",
            Self::HeadersTooLarge => "headers_too_large",
            Self::UnknownCoding => "coding_unknown",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Malformed => "body_malformed",
            Self::TooSlow => "too_slow",
            Self::NotGenuine => "not_genuine",
            Self::Overloaded => "overloaded",
            Self::NotStored => "log_unavailable",
            Self::Failed => "failed",
            Self::Draining => "draining",
        }
    }

    fn code(self) -> Code {
        match self {
            Self::NoSource => Code::SourceNotFound,
            Self::AddressNotAllowed | Self::AddressUnknown => Code::AddressNotAllowed,
            Self::NotPosted
            | Self::HeadersTooLarge
            | Self::UnknownCoding
            | Self::Malformed
            | Self::TooSlow => Code::InvalidRequest,
            Self::PayloadTooLarge => Code::PayloadTooLarge,
            Self::NotGenuine => Code::SignatureInvalid,
            Self::Overloaded => Code::Overloaded,
            Self::NotStored | Self::Failed => Code::LogUnavailable,
            Self::Draining => Code::Draining,
        }
    }

    /// The status: that of the reason, unless HTTP has a better one, or the provider would lose the event over what is
    /// ours: our limits, our haste, our configuration.
    fn status(self, posting: Option<Posting>) -> StatusCode {
        let again_after_4xx = posting.is_none_or(|posting| posting.again_after_4xx);
        match self {
            Self::Overloaded
            | Self::TooSlow
            | Self::PayloadTooLarge
            | Self::HeadersTooLarge
            | Self::AddressUnknown
                if !again_after_4xx =>
            {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NotPosted => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownCoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoSource
            | Self::AddressNotAllowed
            | Self::AddressUnknown
            | Self::PayloadTooLarge
            | Self::Malformed
            | Self::NotGenuine
            | Self::Overloaded
            | Self::NotStored
            | Self::Failed
            | Self::Draining => self.code().http(),
        }
    }

    /// Whether the body had been read to its end.
    fn has_read_all(self) -> bool {
        matches!(self, Self::NotGenuine | Self::NotStored | Self::Failed)
    }
}

/// A webhook was taken: as an event, as a redelivery of one, into the quarantine, or as one that is not for us.
pub(super) fn received() -> Response {
    json(StatusCode::OK, r#"{"received":true}"#.to_owned())
}

/// A webhook was not taken. What was not read of its body is in the way of another request on the connection.
pub(super) fn refused(refusal: Refusal, posting: Option<Posting>, has_body: bool) -> Response {
    let status = refusal.status(posting);
    let reason = refusal.code().reason();
    let mut response = json(
        status,
        format!(r#"{{"error":"{reason}","message":"{refusal}"}}"#),
    );
    let headers = response.headers_mut();
    match refusal {
        Refusal::NotPosted => {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        Refusal::UnknownCoding => {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Refusal::NotGenuine => {
            let challenge = HeaderValue::from_static("Webhook-Signature");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        _ => {}
    }
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    }
    if has_body && !refusal.has_read_all() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
