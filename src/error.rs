//! The one list of reasons that callers of verdict can be given.

use http::StatusCode;
use tonic::Code as GrpcCode;

/// Why a call failed, as the caller may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Nobody knows who calls, or what they say of themselves is wrong. There is one answer for all causes.
    Unauthenticated,
    /// The caller is known, and has not the scope that the call asks for.
    ScopeMissing,
    /// No such provider or account is configured.
    SourceNotFound,
    /// The log holds no such event.
    EventNotFound,
    /// The log holds no event of this verification.
    VerificationNotFound,
    /// There is no evidence under this id.
    DeliveryNotFound,
    /// The webhook was not proved genuine. There is one answer for all causes.
    SignatureInvalid,
    /// A webhook was posted from an address that its source does not allow.
    AddressNotAllowed,
    /// The payload is larger than allowed.
    PayloadTooLarge,
    /// A field is missing or malformed.
    InvalidRequest,
    /// The cursor is of another log, or of a place that the log does not hold.
    CursorOutOfRange,
    /// The cursor lies before the one that the consumer has committed.
    CursorBehind,
    /// What is to be erased was stored without encryption.
    NotEncrypted,
    /// An event that the log must hold cannot be read. Trying again does not help.
    LogDamaged,
    /// A limit of ours is reached.
    Overloaded,
    /// The log cannot be written or read.
    LogUnavailable,
    /// The server is shutting down.
    Draining,
}

impl Code {
    /// The reason in `google.rpc.ErrorInfo`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::ScopeMissing => "SCOPE_MISSING",
            Self::SourceNotFound => "SOURCE_NOT_FOUND",
            Self::EventNotFound => "EVENT_NOT_FOUND",
            Self::VerificationNotFound => "VERIFICATION_NOT_FOUND",
            Self::DeliveryNotFound => "DELIVERY_NOT_FOUND",
            Self::SignatureInvalid => "SIGNATURE_INVALID",
            Self::AddressNotAllowed => "ADDRESS_NOT_ALLOWED",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::CursorOutOfRange => "CURSOR_OUT_OF_RANGE",
            Self::CursorBehind => "CURSOR_BEHIND",
            Self::NotEncrypted => "NOT_ENCRYPTED",
            Self::LogDamaged => "LOG_DAMAGED",
            Self::Overloaded => "OVERLOADED",
            Self::LogUnavailable => "LOG_UNAVAILABLE",
            Self::Draining => "DRAINING",
        }
    }

    /// The gRPC status.
    pub fn grpc(self) -> GrpcCode {
        match self {
            Self::Unauthenticated => GrpcCode::Unauthenticated,
            Self::ScopeMissing | Self::AddressNotAllowed => GrpcCode::PermissionDenied,
            Self::SourceNotFound
            | Self::EventNotFound
            | Self::VerificationNotFound
            | Self::DeliveryNotFound => GrpcCode::NotFound,
            Self::SignatureInvalid | Self::PayloadTooLarge | Self::InvalidRequest => {
                GrpcCode::InvalidArgument
            }
            Self::CursorOutOfRange => GrpcCode::OutOfRange,
            Self::CursorBehind | Self::NotEncrypted => GrpcCode::FailedPrecondition,
            Self::LogDamaged => GrpcCode::DataLoss,
            Self::Overloaded => GrpcCode::ResourceExhausted,
            Self::LogUnavailable | Self::Draining => GrpcCode::Unavailable,
        }
    }

    /// The HTTP status, at the webhook edge.
    pub fn http(self) -> StatusCode {
        match self {
            Self::Unauthenticated | Self::SignatureInvalid => StatusCode::UNAUTHORIZED,
            Self::ScopeMissing | Self::AddressNotAllowed => StatusCode::FORBIDDEN,
            Self::SourceNotFound
            | Self::EventNotFound
            | Self::VerificationNotFound
            | Self::DeliveryNotFound => StatusCode::NOT_FOUND,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::CursorOutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::CursorBehind | Self::NotEncrypted => StatusCode::CONFLICT,
            Self::LogDamaged => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::LogUnavailable | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn retryable(self) -> bool {
        match self {
            Self::Overloaded | Self::LogUnavailable | Self::Draining => true,
            Self::Unauthenticated
            | Self::ScopeMissing
            | Self::SourceNotFound
            | Self::EventNotFound
            | Self::VerificationNotFound
            | Self::DeliveryNotFound
            | Self::SignatureInvalid
            | Self::AddressNotAllowed
            | Self::PayloadTooLarge
            | Self::InvalidRequest
            | Self::CursorOutOfRange
            | Self::CursorBehind
            | Self::NotEncrypted
            | Self::LogDamaged => false,
        }
    }
}
