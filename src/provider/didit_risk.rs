//! The risk codes of Didit, which Gu1 and Fyatu pass through.
//!
//! Source: the warnings pages of docs.didit.me and Gu1's list of warning risk codes. The set is open, and how severe a
//! code is cannot be told from the code: it depends on the customer's workflow.

use super::ReasonTable;
use crate::proto::{CheckType, ReasonCode::*};

/// Didit's risk codes and ours.
#[rustfmt::skip] // One row a code.
pub(super) const REASONS: ReasonTable = &[
    // Documents.
    ("BARCODE_NOT_DETECTED", DocumentIncomplete),
    ("BARCODE_VALIDATION_FAILED", DocumentDataInvalid),
    ("COULD_NOT_DETECT_DOCUMENT_TYPE", DocumentNotFound),
    ("COULD_NOT_RECOGNIZE_DOCUMENT", DocumentNotFound),
    ("DATA_INCONSISTENT", DocumentDataInconsistent),
    ("DATE_OF_BIRTH_NOT_DETECTED", DocumentIncomplete),
    ("DOCUMENT_EXPIRED", DocumentExpired),
    ("DOCUMENT_NAME_DIFFERENT_FROM_OTHER_APPROVED_DOCUMENTS", NameMismatch),
    ("DOCUMENT_NOT_SUPPORTED_FOR_APPLICATION", DocumentTypeNotAccepted),
    ("DOCUMENT_NUMBER_FORMAT_MISMATCH", DocumentDataInvalid),
    ("DOCUMENT_NUMBER_NOT_DETECTED", DocumentIncomplete),
    ("DOCUMENT_SIDES_MISMATCH", DocumentDataInconsistent),
    ("EXPIRATION_DATE_NOT_DETECTED", DocumentIncomplete),
    ("ID_DOCUMENT_IN_BLOCKLIST", DocumentBlocklisted),
    ("ID_VERIFICATION_DATA_MISMATCH_BETWEEN_DOCUMENTS", DocumentDataInconsistent),
    ("INVALID_DATE", DocumentDataInvalid),
    ("MRZ_AND_DATA_EXTRACTED_FROM_OCR_NOT_SAME", DocumentDataInconsistent),
    ("MRZ_NOT_DETECTED", DocumentIncomplete),
    ("MRZ_VALIDATION_FAILED", DocumentDataInvalid),
    ("NAME_NOT_DETECTED", DocumentIncomplete),
    ("PERSONAL_NUMBER_FORMAT_MISMATCH", DocumentDataInvalid),
    ("PORTRAIT_IMAGE_NOT_DETECTED", DocumentPortraitMissing),
    ("PORTRAIT_MANIPULATION_DETECTED", DocumentTampered),
    ("PRINTED_COPY_DETECTED", DocumentNotPhysical),
    ("QR_NOT_DETECTED", DocumentIncomplete),
    ("QR_VALIDATION_FAILED", DocumentDataInvalid),
    ("SCREEN_CAPTURE_DETECTED", DocumentNotPhysical),
    ("UNPARSED_ADDRESS", DocumentDataInvalid),
    // Age.
    ("AGE_BELOW_MINIMUM", Underage),
    ("AGE_NOT_DETECTED", AgeNotDetermined),
    ("MINIMUM_AGE_NOT_MET", Underage),
    // Data against what the customer supplied.
    ("COUNTRY_MISMATCH_WITH_PROVIDED", DataMismatch),
    ("DOB_MISMATCH_WITH_PROVIDED", DateOfBirthMismatch),
    ("FULL_NAME_MISMATCH_WITH_PROVIDED", NameMismatch),
    ("GENDER_MISMATCH_WITH_PROVIDED", DataMismatch),
    ("IDENTIFICATION_NUMBER_MISMATCH_WITH_PROVIDED", IdNumberMismatch),
    ("NATIONALITY_MISMATCH_WITH_PROVIDED", DataMismatch),
    ("POSSIBLE_DUPLICATED_USER", DuplicateIdentity),
    // Liveness and face.
    ("DUPLICATED_FACE", FaceDuplicate),
    ("FACE_IN_BLOCKLIST", FaceBlocklisted),
    ("FACE_MATCH_MAX_ATTEMPTS_EXCEEDED", AttemptsExceeded),
    ("HIGH_FACE_LUMINANCE", FaceQualityLow),
    ("LIVENESS_FACE_ATTACK", PresentationAttack),
    // Fyatu's page names this one; Didit's pages do not.
    ("LIVENESS_FAILED", LivenessFailed),
    ("LOW_FACE_LUMINANCE", FaceQualityLow),
    ("LOW_FACE_MATCH_SIMILARITY", FaceMatchLowConfidence),
    ("LOW_FACE_QUALITY", FaceQualityLow),
    ("LOW_FRONT_CAMERA_FACE_MATCH_SIMILARITY", FaceMatchLowConfidence),
    ("LOW_LIVENESS_SCORE", LivenessFailed),
    ("MULTIPLE_FACES_DETECTED", FaceMultiple),
    ("NO_FACE_DETECTED", FaceNotDetected),
    ("NO_REFERENCE_IMAGE", DocumentPortraitMissing),
    ("POSSIBLE_DUPLICATED_FACE", FaceDuplicate),
    ("POSSIBLE_FACE_IN_BLOCKLIST", FaceBlocklisted),
    // Device and network.
    ("COUNTRY_FROM_DOCUMENT_DOES_NOT_MATCH_COUNTRY_FROM_IP", LocationMismatch),
    ("DEVICE_FINGERPRINT_IN_BLOCKLIST", DeviceRisk),
    ("DEVICE_RECOVERED_HIGH_CONFIDENCE", DeviceDuplicate),
    ("DUPLICATED_DEVICE_FINGERPRINT", DeviceDuplicate),
    ("DUPLICATED_IP_ADDRESS", NetworkRisk),
    ("EXPECTED_IP_ADDRESS_MISMATCH", LocationMismatch),
    ("IP_ADDRESS_IN_BLOCKLIST", NetworkRisk),
    ("PRIVATE_NETWORK_DETECTED", NetworkRisk),
    // Screening and databases.
    ("COULD_NOT_PERFORM_DATABASE_VALIDATION", DataSourceUnavailable),
    ("DATABASE_VALIDATION_NO_MATCH", IdentityNotFound),
    ("DATABASE_VALIDATION_PARTIAL_MATCH", DataMismatch),
    ("POSSIBLE_MATCH_FOUND", WatchlistMatch),
];

/// The check that a Didit feature stands for, by any of the names that Didit and Fyatu give it.
pub(super) fn check_type(feature: &str) -> CheckType {
    match feature {
        "ID_VERIFICATION" | "DOCUMENT" => CheckType::Document,
        "LIVENESS" => CheckType::Liveness,
        "FACEMATCH" | "FACE_MATCH" => CheckType::FaceMatch,
        "AML" => CheckType::Watchlist,
        "LOCATION" | "IP_ANALYSIS" => CheckType::Network,
        "DATABASE_VALIDATION" => CheckType::IdentityDatabase,
        _ => CheckType::Other,
    }
}
