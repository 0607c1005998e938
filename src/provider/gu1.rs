//! Gu1 (Gueno): KYC validations, biometric re-authentication and entity records. Didit is its engine.
//!
//! Sources: docs.gu1.ai/en `/webhooks/events/kyc-events`, `/webhooks/events/biometric-events`, `/webhooks/security`,
//! `/use-cases/kyc/warning-risk-codes`. Three generations of the envelope are taken: `type` with `data`, and `event`
//! with `payload`, which names the validation `validationId` or `id`.
//!
//! Readings of what the pages leave open:
//! - The signature is taken as bare hex, or hex after `sha256=`; only the body is signed.
//! - `X-Webhook-ID` is recorded, but not signed and perhaps not stable: an event is recognized by its type, validation,
//!   status and time, and where it has no time by its bytes. Changes of entities are recognized by their bytes.
//! - `payload.status` rules over `decision`, which may hold an approval inside a rejected session. It must agree with
//!   the event's name.
//! - Warnings are reasons only of a rejection or a review.
//! - A delivery to a per-request `webhookUrl` is signed with the KYC secret: a source lists it beside that of the
//!   organization. One that is not signed is refused. The same change sent to both is one event if it is the same
//!   bytes, and else a conflict in the quarantine.
//! - `kycValidationId`, which ties a biometric session to its validation, stays in the raw delivery.
//! - A rejected validation that is no longer current was rejected by hand.
//! - Compression is not mentioned. The signature is taken to be over the body as it was before any `Content-Encoding`.

use std::time::Duration;

use serde::{Deserialize, de::IgnoredAny};

use super::{
    NormalizeError, Normalized, Posting, Provider, ReasonTable, Sample, Success, VerifiedWebhook,
    Word, didit_risk,
    json::{self, Json, Object, Text},
    provider_source, reason_code,
    signature::{Hash, Key, Recipe, Scheme},
    unsigned_id,
};
use crate::{
    event::IdempotencyKey,
    proto::{
        Check, CheckResult, CheckType, Decider, Finality, Outcome, PersonalData, Reason,
        ReasonCode::*, Subject, SubjectChange, SubjectChangeKind, SubjectType, Verification,
        VerificationEvent, verification_event::Detail,
    },
};

/// The adapter.
#[derive(Debug)]
pub(super) struct Gu1;

const SCHEMES: &[Scheme] = &[Scheme {
    name: "hmac_sha256",
    hash: Hash::Sha256,
    key: Key::Text,
    recipe: Recipe::Body {
        header: "x-webhook-signature",
        prefixes: &["", "sha256="],
    },
}];

impl Provider for Gu1 {
    fn name(&self) -> &'static str {
        "gu1"
    }

    fn schemes(&self) -> &'static [Scheme] {
        SCHEMES
    }

    /// `/webhooks/configuration`: 30 s, 200. What is sent again, and when, was not found.
    fn posting(&self) -> Posting {
        Posting {
            patience: Duration::from_secs(30),
            success: Success::Only200,
            again_after_4xx: false,
        }
    }

    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        let body = match json::parse::<Body<'_>>(webhook.content()) {
            Ok(body) => body,
            Err(error) => {
                let head: Head<'_> = json::parse(webhook.content())?;
                let event_type =
                    json::one_of("event", head.event.as_ref(), head.event_type.as_ref())?;
                return match Family::of(event_type)? {
                    Some(_) => Err(error),
                    None => Ok(Normalized::Ignored),
                };
            }
        };
        let event_type = json::one_of("event", body.event.as_ref(), body.event_type.as_ref())?;
        let Some(family) = Family::of(event_type)? else {
            return Ok(Normalized::Ignored);
        };
        let payload = one_payload(body.payload, body.data)?;
        let (detail, key) = match family {
            Family::Session(outcome) => {
                payload.agrees(event_type, outcome)?;
                let verification = payload.verification(event_type, outcome)?;
                let id = verification.verification_id.clone();
                let key = body.timestamp.as_ref().map(|time| {
                    let status = json::owned(payload.status.as_ref());
                    let event_type = event_type.to_owned();
                    IdempotencyKey::Fields(vec![event_type, id, status, time.owned()])
                });
                (Detail::Verification(verification), key)
            }
            // A record may change twice within the second that its time is told in: only the bytes tell that.
            Family::Entity(kind) => (payload.subject_change(kind), None),
            Family::EntityStatus => (payload.subject_change(payload.status_change()), None),
        };
        let event = VerificationEvent {
            source: provider_source(
                unsigned_id(webhook.unsigned_header("x-webhook-id")),
                event_type,
            ),
            occurred_at: body.timestamp.as_deref().map(json::timestamp).transpose()?,
            subject: payload.subject(matches!(detail, Detail::SubjectChange(_))),
            detail: Some(detail),
            personal_data: payload.personal_data(),
            ..Default::default()
        };
        let bytes = IdempotencyKey::SignedBytes(*webhook.content_sha256());
        Ok(Normalized::event(key.unwrap_or(bytes), event))
    }

    fn samples(&self) -> &'static [Sample] {
        &[
            Sample {
                scheme: "hmac_sha256",
                body: r#"{"event":"kyc.validation_rejected","timestamp":"2026-05-04T12:00:00Z","organizationId":"org-sample","payload":{"id":"9d100000-0000-4000-8000-000000000001","entityId":"e7170000-0000-4000-8000-000000000001","status":"rejected","warnings":["DOCUMENT_EXPIRED"],"decision":{"face_matches":[{"status":"Approved","score":97.5}]},"entity":{"id":"e7170000-0000-4000-8000-000000000001","externalId":"customer-1","name":"Erika Beispiel","type":"person"}}}"#,
            },
            Sample {
                scheme: "hmac_sha256",
                body: r#"{"event":"biometric.session_approved","timestamp":"2026-05-04T12:01:00Z","organizationId":"org-sample","payload":{"id":"9d100000-0000-4000-8000-000000000002","entityId":"e7170000-0000-4000-8000-000000000001","status":"approved","mode":"face_match","rejectionCode":null,"decision":{"face_match":{"status":"Approved","score":99.2},"liveness":{"status":"Approved","score":98.5}},"entity":{"id":"e7170000-0000-4000-8000-000000000001","externalId":"customer-1","name":"Erika Beispiel","type":"person"}}}"#,
            },
        ]
    }
}

/// The envelope alone: enough to tell the family, whatever the payloads of other families look like.
#[derive(Deserialize)]
struct Head<'b> {
    #[serde(borrow)]
    event: Option<Text<'b>>,
    #[serde(rename = "type")]
    event_type: Option<Text<'b>>,
    #[expect(dead_code, reason = "read so that a time that is no text is refused")]
    timestamp: Option<Text<'b>>,
}

/// What is read of an event about a validation, a session or an entity.
#[derive(Deserialize)]
pub struct Body<'b> {
    #[serde(borrow)]
    event: Option<Text<'b>>,
    #[serde(rename = "type")]
    event_type: Option<Text<'b>>,
    timestamp: Option<Text<'b>>,
    payload: Option<Payload<'b>>,
    data: Option<Payload<'b>>,
}

fn one_payload<'b>(
    payload: Option<Payload<'b>>,
    data: Option<Payload<'b>>,
) -> Result<Payload<'b>, NormalizeError> {
    match (payload, data) {
        (Some(payload), None) | (None, Some(payload)) => Ok(payload),
        (Some(_), Some(_)) => Err(NormalizeError::Contradiction(
            "both payload and data are given".to_owned(),
        )),
        (None, None) => Err(NormalizeError::missing("payload")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'b> {
    #[serde(borrow)]
    id: Option<Text<'b>>,
    validation_id: Option<Text<'b>>,
    entity_id: Option<Text<'b>>,
    status: Option<Text<'b>>,
    mode: Option<Text<'b>>,
    decision: Option<Json<'b>>,
    warnings: Option<Vec<Warning<'b>>>,
    extracted_data: Option<Json<'b>>,
    is_current: Option<bool>,
    rejection_code: Option<Text<'b>>,
    rejection_message: Option<Text<'b>>,
    entity: Option<Entity<'b>>,
    // An entity event carries the entity itself.
    external_id: Option<Text<'b>>,
    name: Option<Text<'b>>,
    #[serde(rename = "type")]
    entity_type: Option<Text<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entity<'b> {
    #[serde(borrow)]
    id: Option<Text<'b>>,
    external_id: Option<Text<'b>>,
    name: Option<Text<'b>>,
    #[serde(rename = "type")]
    entity_type: Option<Text<'b>>,
}

/// A bare risk code, or the warning of Didit that holds it. Anything else says nothing to us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Warning<'b> {
    #[serde(borrow)]
    Code(Text<'b>),
    Object {
        risk: Text<'b>,
        feature: Option<Text<'b>>,
        short_description: Option<Text<'b>>,
    },
    Other(IgnoredAny),
}

/// What the name of an event stands for.
#[derive(Clone, Copy)]
enum Family {
    /// A validation or a biometric session.
    Session(Outcome),
    Entity(SubjectChangeKind),
    EntityStatus,
}

impl Family {
    /// The family of an event; `None` for rules, transactions and alerts.
    fn of(event_type: &str) -> Result<Option<Self>, NormalizeError> {
        let unknown = || NormalizeError::UnknownEventType(Word::new(event_type));
        let (family, name) = event_type.split_once('.').ok_or_else(unknown)?;
        let family = match (family, name) {
            ("entity", "created") => Self::Entity(SubjectChangeKind::Created),
            ("entity", "updated") => Self::Entity(SubjectChangeKind::Updated),
            ("entity", "deleted") => Self::Entity(SubjectChangeKind::Deleted),
            ("entity", "status_changed") => Self::EntityStatus,
            ("rule", "triggered")
            | ("transaction", "created" | "updated" | "status_changed")
            | ("alert", _) => return Ok(None),
            ("kyc", _) => {
                let name = name.strip_prefix("validation_").ok_or_else(unknown)?;
                Self::Session(named_outcome(name).ok_or_else(unknown)?)
            }
            ("biometric", _) => {
                let name = name.strip_prefix("session_").ok_or_else(unknown)?;
                // A biometric session is never reviewed.
                let outcome = named_outcome(name).filter(|o| *o != Outcome::InReview);
                Self::Session(outcome.ok_or_else(unknown)?)
            }
            _ => return Err(unknown()),
        };
        Ok(Some(family))
    }
}

/// The outcome that the end of an event's name stands for: a status, but `created` for the first one.
fn named_outcome(name: &str) -> Option<Outcome> {
    match name {
        "created" => Some(Outcome::Pending),
        "pending" => None,
        status => outcome(status),
    }
}

/// The outcome that a status stands for.
fn outcome(status: &str) -> Option<Outcome> {
    match status {
        "pending" => Some(Outcome::Pending),
        "in_progress" => Some(Outcome::InProgress),
        "in_review" => Some(Outcome::InReview),
        "approved" => Some(Outcome::Approved),
        "rejected" => Some(Outcome::Rejected),
        "abandoned" => Some(Outcome::Abandoned),
        "expired" => Some(Outcome::Expired),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    }
}

impl Payload<'_> {
    /// Refuses a status that is unknown, or that differs from the event's name.
    fn agrees(&self, event_type: &str, named: Outcome) -> Result<(), NormalizeError> {
        let Some(status) = &self.status else {
            return Ok(());
        };
        match outcome(status) {
            None => Err(NormalizeError::UnknownStatus(Word::new(status))),
            Some(outcome) if outcome != named => Err(NormalizeError::disagree(event_type, status)),
            Some(_) => Ok(()),
        }
    }

    fn verification(
        &self,
        event_type: &str,
        outcome: Outcome,
    ) -> Result<Verification, NormalizeError> {
        // `kyc.validation_in_review`: the status stands after the first `_`.
        let named = event_type.split_once('_').map(|(_, status)| status);
        let id = json::one_of("payload.id", self.id.as_ref(), self.validation_id.as_ref())?;
        let finality = match outcome {
            Outcome::Pending | Outcome::InProgress | Outcome::InReview => Finality::NotFinal,
            _ => Finality::Final,
        };
        let decided_by = match outcome {
            Outcome::Rejected if self.is_current == Some(false) => Decider::Human,
            Outcome::Abandoned => Decider::Subject,
            Outcome::Cancelled => Decider::Customer,
            _ => Decider::Unspecified,
        };
        Ok(Verification {
            verification_id: id.to_owned(),
            outcome: outcome.into(),
            provider_outcome: self
                .status
                .as_deref()
                .or(named)
                .unwrap_or_default()
                .to_owned(),
            finality: finality.into(),
            decided_by: decided_by.into(),
            level: json::owned(self.mode.as_ref()),
            checks: self.decision.as_ref().map(checks).unwrap_or_default(),
            reasons: self.reasons(outcome),
            ..Default::default()
        })
    }

    fn reasons(&self, outcome: Outcome) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if outcome == Outcome::Rejected
            && let Some(code) = &self.rejection_code
        {
            reasons.push(Reason {
                code: reason_code(REJECTIONS, code),
                provider_code: code.owned(),
                message: json::owned(self.rejection_message.as_ref()),
                ..Default::default()
            });
        }
        if matches!(outcome, Outcome::Rejected | Outcome::InReview) {
            let warnings = self.warnings.iter().flatten();
            reasons.extend(warnings.filter_map(Warning::reason));
        }
        reasons
    }

    fn subject_change(&self, kind: SubjectChangeKind) -> Detail {
        Detail::SubjectChange(SubjectChange {
            kind: kind.into(),
            level: String::new(),
            provider_status: json::owned(self.status.as_ref()),
        })
    }

    /// What a change of an entity's status is.
    fn status_change(&self) -> SubjectChangeKind {
        match self.status.as_deref() {
            Some("blocked") => SubjectChangeKind::Suspended,
            _ => SubjectChangeKind::Updated,
        }
    }

    /// Whom the event is about; in an entity event the payload is the entity.
    fn subject(&self, entity_event: bool) -> Option<Subject> {
        let own_id = self.id.as_ref().filter(|_| entity_event);
        let entity = self.entity.as_ref();
        let id = self.entity_id.as_ref();
        let id = id
            .or(entity.and_then(|entity| entity.id.as_ref()))
            .or(own_id)?;
        let external_id = entity.and_then(|entity| entity.external_id.as_ref());
        let external_id = external_id.or(self.external_id.as_ref());
        let entity_type = entity.and_then(|entity| entity.entity_type.as_deref());
        let entity_type = match entity_type.or(self.entity_type.as_deref()) {
            Some("person") => SubjectType::Person,
            Some("company" | "business") => SubjectType::Business,
            _ => SubjectType::Unspecified,
        };
        Some(Subject {
            provider_subject_id: id.owned(),
            external_id: json::owned(external_id),
            r#type: entity_type.into(),
        })
    }

    fn personal_data(self) -> Option<PersonalData> {
        let claims = match self.extracted_data {
            None | Some(Json::Null) => None,
            Some(Json::Object(claims)) => Some(claims),
            Some(other) => Some(Object::from_iter([("extractedData", other)])),
        };
        let name = self.entity.and_then(|entity| entity.name).or(self.name);
        if name.is_none() && claims.is_none() {
            return None;
        }
        Some(PersonalData {
            full_name: json::owned(name.as_ref()),
            claims: claims.map(json::to_struct),
            ..Default::default()
        })
    }
}

/// The rejections of a biometric session. The page calls them common: the set is open.
const REJECTIONS: ReasonTable = &[
    ("FACE_MATCH_SCORE_LOW", FaceMatchLowConfidence),
    ("CROSS_ENTITY", FaceDuplicate),
    ("CAPTURE_DECLINED", CaptureDeclined),
];

impl Warning<'_> {
    fn reason(&self) -> Option<Reason> {
        let (risk, feature, message) = match self {
            Self::Code(risk) => (risk, None, None),
            Self::Object {
                risk,
                feature,
                short_description,
            } => (risk, feature.as_ref(), short_description.as_ref()),
            Self::Other(_) => return None,
        };
        Some(Reason {
            code: reason_code(didit_risk::REASONS, risk),
            provider_code: risk.owned(),
            message: json::owned(message),
            provider_category: json::owned(feature),
        })
    }
}

/// The members of `decision` that are checks: one, or a list of them. Only likenesses are scored from 0 to 100 with
/// more being better.
const CHECKS: &[(&str, CheckType, bool)] = &[
    ("id_verifications", CheckType::Document, false),
    ("liveness", CheckType::Liveness, true),
    ("liveness_checks", CheckType::Liveness, true),
    ("face_match", CheckType::FaceMatch, true),
    ("face_matches", CheckType::FaceMatch, true),
    ("aml_screenings", CheckType::Watchlist, false),
    ("ip_analyses", CheckType::Network, false),
];

/// The checks of a decision. Its shape is Didit's and not documented by Gu1, so nothing in it is required.
fn checks(decision: &Json<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    for (member, check_type, scored) in CHECKS {
        let entries = match decision.get(member) {
            Some(Json::Array(entries)) => entries.as_slice(),
            Some(entry @ Json::Object(_)) => std::slice::from_ref(entry),
            _ => continue,
        };
        checks.extend(entries.iter().filter_map(|entry| {
            let status = entry.get("status")?.as_str()?;
            let score = entry.get("score").and_then(Json::as_f64);
            let score = score.filter(|score| *scored && (0.0..=100.0).contains(score));
            Some(Check {
                r#type: (*check_type).into(),
                provider_type: (*member).to_owned(),
                result: check_result(status).into(),
                provider_result: status.to_owned(),
                score: score.map(|score| score / 100.0),
                ..Default::default()
            })
        }));
    }
    checks
}

/// Didit's statuses, as they stand inside a decision.
fn check_result(status: &str) -> CheckResult {
    match status {
        "Approved" => CheckResult::Passed,
        "Declined" => CheckResult::Failed,
        "In Review" => CheckResult::Inconclusive,
        "Not Started" | "In Progress" | "Resubmitted" => CheckResult::Pending,
        "Expired" | "Kyc Expired" | "Abandoned" => CheckResult::NotPerformed,
        _ => CheckResult::Unspecified,
    }
}
