//! Why callers are refused: what operators are told, and callers are not.

/// Why a caller is not known. The caller is never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No credentials.
    Missing,
    /// `authorization` is given more than once.
    Repeated,
    /// `authorization` is not `Bearer` and a token.
    Malformed,
    /// A longer token than is looked at.
    TooLong,
    /// An opaque token that nobody has.
    UnknownToken,
    /// A client certificate that nobody has.
    UnknownCertificate,
    /// A client certificate whose names belong to several callers.
    AmbiguousCertificate,
    /// A JWT that is none.
    MalformedToken,
    /// A JWT that asks for what is not known here.
    UnknownExtension,
    /// A JWT of an issuer that is not configured.
    UnknownIssuer,
    /// A JWT that is signed as its issuer does not sign.
    AlgorithmNotAllowed,
    /// A JWT of a key that its issuer does not have.
    UnknownKey,
    /// A JWT that names no key where several could be meant.
    AmbiguousKey,
    /// A JWT that its issuer has not signed.
    SignatureInvalid,
    /// A JWT whose time is past.
    Expired,
    /// A JWT whose time has not come.
    NotYetValid,
    /// A JWT for somebody else.
    WrongAudience,
    /// A JWT of several issuers.
    WrongIssuer,
    /// A JWT without a claim that it needs.
    ClaimMissing,
    /// A genuine JWT for someone who is no caller.
    UnknownSubject,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Missing,
        Self::Repeated,
        Self::Malformed,
        Self::TooLong,
        Self::UnknownToken,
        Self::UnknownCertificate,
        Self::AmbiguousCertificate,
        Self::MalformedToken,
        Self::UnknownExtension,
        Self::UnknownIssuer,
        Self::AlgorithmNotAllowed,
        Self::UnknownKey,
        Self::AmbiguousKey,
        Self::SignatureInvalid,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongAudience,
        Self::WrongIssuer,
        Self::ClaimMissing,
        Self::UnknownSubject,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::UnknownToken => "unknown_token",
            Self::UnknownCertificate => "unknown_certificate",
            Self::AmbiguousCertificate => "ambiguous_certificate",
            Self::MalformedToken => "malformed_token",
            Self::UnknownExtension => "unknown_extension",
            Self::UnknownIssuer => "unknown_issuer",
            Self::AlgorithmNotAllowed => "algorithm_not_allowed",
            Self::UnknownKey => "unknown_key",
            Self::AmbiguousKey => "ambiguous_key",
            Self::SignatureInvalid => "signature_invalid",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::WrongIssuer => "wrong_issuer",
            Self::ClaimMissing => "claim_missing",
            Self::UnknownSubject => "unknown_subject",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_count() {
        for (index, reason) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.name());
        }
    }
}
