//! Kayle: passport chip, liveness and face match in the subject's own phone.
//!
//! Sources: docs.kayle.id `/webhooks/overview`, `/webhooks/verifying-signatures`, `/webhooks/encryption` and
//! `/api-reference/webhooks/*`. Every payload is a compact JWE; the signature covers the JWE as it was sent.
//!
//! Readings of what the pages leave open:
//! - Some samples show a signed body of plain JSON. A source accepts one only with `options.allow_plaintext`.
//! - The rendered sample of the expired event has no `type`. The unsigned `X-Kayle-Event` header is believed for that
//!   one event, and only over the empty `data` that it has.
//! - Several `v1` signatures in one header are not documented. One that matches is enough.
//! - Nothing in a payload tells its time, so `occurred_at` is absent.
//! - Compression is not mentioned. The signature is taken to be over the JWE as it was before any `Content-Encoding`.

use std::time::Duration;

use serde::Deserialize;

use super::{
    ALLOW_PLAINTEXT, NormalizeError, Normalized, Posting, Provider, ReasonTable, Sample, Success,
    VerifiedWebhook, Word,
    json::{self, Json, Object, Text},
    provider_source, reason_code, reasons_of,
    signature::{Hash, Key, Recipe, Scheme},
};
use crate::{
    event::IdempotencyKey,
    proto::{
        Check, CheckResult, CheckType, Decider, Finality, Outcome, PersonalData, Reason,
        ReasonCode::*, Retry, Subject, SubjectType, Verification, VerificationEvent,
        verification_event::Detail,
    },
};

/// The adapter.
#[derive(Debug)]
pub(super) struct Kayle;

const SCHEMES: &[Scheme] = &[Scheme {
    name: "v1",
    hash: Hash::Sha256,
    key: Key::Text,
    recipe: Recipe::TimestampedBody {
        header: "x-kayle-signature",
    },
}];

impl Provider for Kayle {
    fn name(&self) -> &'static str {
        "kayle"
    }

    fn schemes(&self) -> &'static [Scheme] {
        SCHEMES
    }

    fn encrypted(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [&'static str] {
        &[ALLOW_PLAINTEXT]
    }

    /// `/webhooks/overview` and `/webhooks/deliveries`: "a few seconds", any 2xx, everything else is sent again.
    fn posting(&self) -> Posting {
        Posting {
            patience: Duration::from_secs(5),
            success: Success::Any2xx,
            again_after_4xx: true,
        }
    }

    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        let Body {
            event_type,
            metadata,
            data,
        } = json::parse(webhook.content())?;
        match event_type {
            Some(event_type) => normalize(&event_type, metadata, data),
            None => normalize(untyped(webhook)?, metadata, data),
        }
    }

    fn samples(&self) -> &'static [Sample] {
        &[
            Sample {
                scheme: "v1",
                body: r#"{"type":"verification.session.succeeded","metadata":{"contract_version":3,"event_id":"evt_sample_1","verification_session_id":"vs_sample_1"},"data":{"claims":{"kayle_human_id":"human_sample_1","family_name":"Beispiel","given_names":"Erika","age_over_18":true},"selected_field_keys":["family_name","given_names"]}}"#,
            },
            Sample {
                scheme: "v1",
                body: r#"{"type":"verification.session.failed","metadata":{"contract_version":3,"event_id":"evt_sample_2","verification_session_id":"vs_sample_2"},"data":{"failure_code":"document_anti_cloning_attestation_failed","nfc_tries_used":1,"liveness_tries_used":0}}"#,
            },
        ]
    }
}

/// What is read of every event.
#[derive(Deserialize)]
pub struct Body<'b> {
    #[serde(rename = "type", borrow)]
    event_type: Option<Text<'b>>,
    metadata: Metadata<'b>,
    data: Data<'b>,
}

#[derive(Deserialize)]
struct Metadata<'b> {
    #[serde(borrow)]
    event_id: Text<'b>,
    verification_session_id: Text<'b>,
}

/// The data of all events: each has some of these.
#[derive(Deserialize)]
struct Data<'b> {
    #[serde(borrow)]
    claims: Option<Object<'b>>,
    failure_code: Option<Text<'b>>,
    nfc_tries_used: Option<u32>,
    liveness_tries_used: Option<u32>,
    outcome: Option<Text<'b>>,
    reason: Option<Text<'b>>,
}

/// The type of an event that does not name it.
fn untyped(webhook: &VerifiedWebhook) -> Result<&'static str, NormalizeError> {
    const EXPIRED: &str = "verification.session.expired";
    #[derive(Deserialize)]
    struct Body<'b> {
        #[serde(borrow)]
        data: Object<'b>,
    }
    let Body { data } = json::parse(webhook.content())?;
    if data.0.is_empty() && webhook.unsigned_header("x-kayle-event") == Some(EXPIRED) {
        return Ok(EXPIRED);
    }
    Err(NormalizeError::missing("type"))
}

fn normalize(
    event_type: &str,
    metadata: Metadata<'_>,
    data: Data<'_>,
) -> Result<Normalized, NormalizeError> {
    use Outcome::{Approved, Cancelled, Expired, InProgress, Rejected};
    // An attempt that fails leaves the session open: up to three are allowed.
    let (outcome, word, finality, decided_by) = match event_type {
        "verification.session.succeeded" | "verification.attempt.succeeded" => {
            (Approved, "succeeded", Finality::Final, Decider::Automated)
        }
        "verification.session.failed" => (Rejected, "failed", Finality::Final, Decider::Automated),
        "verification.attempt.failed" => {
            (InProgress, "failed", Finality::NotFinal, Decider::Automated)
        }
        "verification.session.expired" => {
            (Expired, "expired", Finality::Final, Decider::Unspecified)
        }
        "verification.session.cancelled" => (
            Cancelled,
            "cancelled",
            Finality::Final,
            Decider::Unspecified,
        ),
        unknown => return Err(NormalizeError::UnknownEventType(Word::new(unknown))),
    };

    let Data {
        claims,
        failure_code,
        nfc_tries_used,
        liveness_tries_used,
        outcome: outcome_word,
        reason: cancel_reason,
    } = data;
    let failed = event_type.ends_with(".failed");
    let cancelled = outcome == Cancelled;
    if (failure_code.is_some() && !failed)
        || (outcome_word.is_some() || cancel_reason.is_some()) && !cancelled
    {
        return Err(NormalizeError::Contradiction(
            "a failure_code, outcome or reason is given that this event does not have".to_owned(),
        ));
    }
    match outcome_word.as_deref() {
        None | Some("not_verified") => {}
        Some(unknown) => return Err(NormalizeError::UnknownStatus(Word::new(unknown))),
    }

    let checks = checks(failure_code.as_deref(), nfc_tries_used, liveness_tries_used);
    let mut reasons = reasons_of(&checks);
    let decided_by = match cancel_reason.as_deref() {
        Some(reason) if reason.starts_with("privacy_") => Decider::Subject,
        _ => decided_by,
    };
    reasons.extend(cancel_reason.map(|code| reason(CANCEL_REASONS, &code)));

    let event = VerificationEvent {
        source: provider_source(&metadata.event_id, event_type),
        subject: claims.as_ref().and_then(subject),
        detail: Some(Detail::Verification(Verification {
            verification_id: metadata.verification_session_id.owned(),
            outcome: outcome.into(),
            provider_outcome: outcome_word.as_deref().unwrap_or(word).to_owned(),
            finality: finality.into(),
            retry: match outcome {
                Rejected => Retry::NotAllowed.into(),
                _ => Retry::Unspecified.into(),
            },
            decided_by: decided_by.into(),
            checks,
            reasons,
            ..Default::default()
        })),
        personal_data: claims.map(personal_data),
        ..Default::default()
    };
    let key = IdempotencyKey::ProviderEventId(metadata.event_id.owned());
    Ok(Normalized::event(key, event))
}

/// The retries that Kayle allows for the chip and for the face.
const ATTEMPTS_ALLOWED: u32 = 3;

/// Kayle's failure codes. The names with `passport_` are those before 2026-05-08.
#[rustfmt::skip] // One row a code.
const FAILURES: ReasonTable = &[
    ("document_authenticity_failed", ChipAuthenticityFailed),
    ("passport_authenticity_failed", ChipAuthenticityFailed),
    ("document_active_authentication_failed", ChipCloneSuspected),
    ("passport_active_authentication_failed", ChipCloneSuspected),
    ("document_chip_authentication_failed", ChipAuthenticityFailed),
    ("passport_chip_authentication_failed", ChipAuthenticityFailed),
    // These two end the session at once, whatever the counters say.
    ("document_anti_cloning_attestation_failed", DeviceAttestationFailed),
    ("passport_anti_cloning_attestation_failed", DeviceAttestationFailed),
    ("document_data_invalid", DocumentDataInvalid),
    ("liveness_failed", LivenessFailed),
    ("selfie_face_mismatch", FaceMismatch),
];

/// The check that a failure is one of.
fn failed_check(reason: &Reason) -> CheckType {
    match reason.code() {
        ChipAuthenticityFailed | ChipCloneSuspected => CheckType::DocumentChip,
        DeviceAttestationFailed => CheckType::DeviceAttestation,
        DocumentDataInvalid => CheckType::DocumentData,
        LivenessFailed => CheckType::Liveness,
        FaceMismatch => CheckType::FaceMatch,
        _ => CheckType::Other,
    }
}

/// Why a session was cancelled. Kayle does not tell who did it, the customer or the subject.
#[rustfmt::skip] // One row a code.
const CANCEL_REASONS: ReasonTable = &[
    ("cancelled", Other),
    ("cancelled_after_failed_check", Other),
    ("privacy_cancelled_after_terminal_failure", PrivacyWithdrawal),
    ("privacy_cancelled_after_terminal_success", PrivacyWithdrawal),
];

/// The check that failed, and the checks whose retries were counted. Of a counted check that did not fail Kayle does
/// not say how it ended.
fn checks(
    failure_code: Option<&str>,
    nfc_tries: Option<u32>,
    liveness_tries: Option<u32>,
) -> Vec<Check> {
    let counted = |check_type: CheckType, provider_type: &str, tries: Option<u32>| {
        tries.map(|tries| Check {
            r#type: check_type.into(),
            provider_type: provider_type.to_owned(),
            attempts_used: Some(tries),
            attempts_allowed: Some(ATTEMPTS_ALLOWED),
            ..Default::default()
        })
    };
    let mut checks: Vec<Check> = [
        counted(CheckType::DocumentChip, "nfc", nfc_tries),
        counted(CheckType::Liveness, "liveness", liveness_tries),
    ]
    .into_iter()
    .flatten()
    .collect();

    let Some(code) = failure_code else {
        return checks;
    };
    let reason = reason(FAILURES, code);
    let check_type = failed_check(&reason);
    let failed = match checks.iter().position(|c| c.r#type() == check_type) {
        Some(index) => &mut checks[index],
        None => {
            checks.push(Check {
                r#type: check_type.into(),
                provider_type: code.to_owned(),
                ..Default::default()
            });
            checks.last_mut().expect("a check was pushed just now")
        }
    };
    failed.set_result(CheckResult::Failed);
    failed.provider_result = code.to_owned();
    failed.reasons = vec![reason];
    checks
}

fn reason(table: ReasonTable, provider_code: &str) -> Reason {
    Reason {
        code: reason_code(table, provider_code),
        provider_code: provider_code.to_owned(),
        ..Default::default()
    }
}

/// The subject, if it agreed to be recognized: the id is one of the claims that it may share.
fn subject(Object(claims): &Object<'_>) -> Option<Subject> {
    let id = claims.get("kayle_human_id")?.as_str()?;
    Some(Subject {
        provider_subject_id: id.to_owned(),
        external_id: String::new(),
        r#type: SubjectType::Person.into(),
    })
}

fn personal_data(mut claims: Object<'_>) -> PersonalData {
    // Images are not passed on. They stay in the raw delivery.
    claims.0.remove("document_photo");
    let text = |name: &str| {
        let value = claims.0.get(name).and_then(Json::as_str);
        value.unwrap_or_default().to_owned()
    };
    PersonalData {
        given_name: text("given_names"),
        family_name: text("family_name"),
        claims: Some(json::to_struct(claims)),
        ..Default::default()
    }
}
