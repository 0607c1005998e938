//! Ralio: KYC sessions of users and of the people behind a business.
//!
//! Sources: doc.raliopay.com `/introduction` and `/webhooks-events/*`. Three generations of the payload are taken:
//! `id`/`event` with checks in words (2025), the same with checks in integers (early 2026), and
//! `eventId`/`eventType` (newest).
//!
//! Readings of what the pages leave open:
//! - The signature is taken to be hex over the raw body; the pages say only "HMAC-SHA256 over the complete payload".
//! - No time is signed, so an old delivery is recognized only as a redelivery.
//! - A check's state other than 1, 2, `Validated` and `Refused` is kept in `provider_result` with no result of ours.
//! - The event's name decides the outcome, never the state of a check.
//! - Compression is not mentioned. The signature is taken to be over the body as it was before any `Content-Encoding`.

use std::time::Duration;

use serde::Deserialize;

use super::{
    NormalizeError, Normalized, Posting, Provider, ReasonTable, Sample, Success, VerifiedWebhook,
    Word,
    json::{self, Json, Text, TextOrNumber},
    provider_source, reason_code, reasons_of,
    signature::{Hash, Key, Recipe, Scheme},
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
pub(super) struct Ralio;

const SCHEMES: &[Scheme] = &[Scheme {
    name: "hmac_sha256",
    hash: Hash::Sha256,
    key: Key::Text,
    recipe: Recipe::Body {
        header: "x-signature",
        prefixes: &[""],
    },
}];

impl Provider for Ralio {
    fn name(&self) -> &'static str {
        "ralio"
    }

    fn schemes(&self) -> &'static [Scheme] {
        SCHEMES
    }

    /// `/introduction` and the page of each event: 60 s, 200, a 4xx is final.
    fn posting(&self) -> Posting {
        Posting {
            patience: Duration::from_secs(60),
            success: Success::Only200,
            again_after_4xx: false,
        }
    }

    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        let body: Body<'_> = json::parse(webhook.content())?;
        let event_type = json::one_of("eventType", body.event_type.as_ref(), body.event.as_ref())?;
        let event_id = json::one_of("eventId", body.event_id.as_ref(), body.id.as_ref())?;
        let (detail, subject_type) = match session(event_type) {
            Some(session) => (
                Detail::Verification(session.verification(&body.data)?),
                None,
            ),
            None => {
                let (change, subject_type) = level_change(event_type, &body.data)?;
                (Detail::SubjectChange(change), subject_type)
            }
        };
        let event = VerificationEvent {
            source: provider_source(event_id, event_type),
            occurred_at: Some(json::timestamp(&body.timestamp)?),
            subject: body.data.subject(subject_type),
            detail: Some(detail),
            personal_data: body.data.personal_data(),
            ..Default::default()
        };
        Ok(Normalized::event(
            IdempotencyKey::ProviderEventId(event_id.to_owned()),
            event,
        ))
    }

    fn samples(&self) -> &'static [Sample] {
        &[
            Sample {
                scheme: "hmac_sha256",
                body: r#"{"eventId":"0d5c6f4e-0000-4000-8000-000000000001","eventType":"kyc_session_verified","timestamp":"2026-05-04T09:30:00.000Z","data":{"sessionId":"7a1b0000-0000-4000-8000-000000000001","userId":"c0ffee00-0000-4000-8000-000000000001","entityType":"user"}}"#,
            },
            Sample {
                scheme: "hmac_sha256",
                body: r#"{"id":"0d5c6f4e-0000-4000-8000-000000000002","event":"kyc_session_failed","timestamp":"2026-05-04T09:31:00.000Z","data":{"sessionId":"7a1b0000-0000-4000-8000-000000000002","userId":"c0ffee00-0000-4000-8000-000000000002","checks":[{"type":"document-verification","state":"Refused","data":{},"reasons":[{"type":"document","code":"EXPIRED_DOCUMENT","message":"The document has expired"}]}]}}"#,
            },
        ]
    }
}

/// What is read of every event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Body<'b> {
    #[serde(borrow)]
    event_id: Option<Text<'b>>,
    id: Option<Text<'b>>,
    event_type: Option<Text<'b>>,
    event: Option<Text<'b>>,
    timestamp: Text<'b>,
    data: Data<'b>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'b> {
    #[serde(borrow)]
    session_id: Option<Text<'b>>,
    user_id: Option<Text<'b>>,
    #[serde(rename = "user_id")]
    user_id_2025: Option<Text<'b>>,
    related_party_id: Option<Text<'b>>,
    entity_type: Option<Text<'b>>,
    checks: Option<Vec<SessionCheck<'b>>>,
    state: Option<TextOrNumber<'b>>,
    business_user: Option<BusinessUser<'b>>,
    related_party: Option<RelatedParty<'b>>,
    kyc_session: Option<KycSession<'b>>,
}

#[derive(Deserialize)]
struct SessionCheck<'b> {
    #[serde(rename = "type", borrow)]
    check_type: Text<'b>,
    state: TextOrNumber<'b>,
    reasons: Option<Vec<CheckReason<'b>>>,
}

#[derive(Deserialize)]
struct CheckReason<'b> {
    #[serde(rename = "type", borrow)]
    reason_type: Option<Text<'b>>,
    code: Option<Text<'b>>,
    message: Option<Text<'b>>,
    category: Option<Text<'b>>,
}

#[derive(Deserialize)]
struct BusinessUser<'b> {
    #[serde(borrow)]
    name: Option<Text<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RelatedParty<'b> {
    #[serde(borrow)]
    id: Text<'b>,
    status: Option<Text<'b>>,
    first_name: Option<Text<'b>>,
    last_name: Option<Text<'b>>,
    email: Option<Text<'b>>,
    phone_number: Option<Text<'b>>,
    role_type: Option<Text<'b>>,
    nationality: Option<Text<'b>>,
    ownership_percentage: Option<Json<'b>>,
    residential_address: Option<Json<'b>>,
}

/// Its `url` lets anyone act as the subject while the session is open, so it is not read.
#[derive(Deserialize)]
struct KycSession<'b> {
    #[serde(borrow)]
    id: Text<'b>,
}

/// What the name of a session event says.
struct Session {
    outcome: Outcome,
    /// Ralio's state of the session, which its pages give for each event.
    state: &'static str,
    finality: Finality,
}

fn session(event_type: &str) -> Option<Session> {
    let (outcome, state, finality) = match event_type {
        "kyc_session_verified" => (Outcome::Approved, "VERIFIED", Finality::Final),
        "kyc_session_failed" => (Outcome::Rejected, "REJECTED", Finality::Final),
        "kyc_session_manual_review" => (Outcome::InReview, "REVIEW", Finality::NotFinal),
        "kyc_session_expired" => (Outcome::Expired, "EXPIRED", Finality::Final),
        "related_party.kyc_session_created" => {
            (Outcome::Pending, "NOT_STARTED", Finality::NotFinal)
        }
        _ => return None,
    };
    Some(Session {
        outcome,
        state,
        finality,
    })
}

impl Session {
    fn verification(self, data: &Data<'_>) -> Result<Verification, NormalizeError> {
        let session_id = data.session_id.as_ref();
        let session_id = session_id.or(data.kyc_session.as_ref().map(|session| &session.id));
        let checks: Vec<Check> = data.checks.iter().flatten().map(check).collect();
        let not_passed = checks
            .iter()
            .filter(|check| check.result() != CheckResult::Passed);
        let reasons = match self.outcome {
            Outcome::Rejected | Outcome::InReview => reasons_of(not_passed),
            _ => Vec::new(),
        };
        // A check by a human that has ended is how a human decides.
        let human = checks.iter().any(|check| {
            check.r#type() == CheckType::ManualReview
                && matches!(check.result(), CheckResult::Passed | CheckResult::Failed)
        });
        let decided_by = match self.outcome {
            Outcome::Approved | Outcome::Rejected if human => Decider::Human,
            _ => Decider::Unspecified,
        };
        let status = data.related_party.as_ref();
        let status = status.and_then(|party| party.status.as_deref());
        Ok(Verification {
            verification_id: session_id
                .ok_or_else(|| NormalizeError::missing("data.sessionId"))?
                .owned(),
            outcome: self.outcome.into(),
            provider_outcome: status.unwrap_or(self.state).to_owned(),
            finality: self.finality.into(),
            decided_by: decided_by.into(),
            checks,
            reasons,
            ..Default::default()
        })
    }
}

/// A change of the level of a person's or a business's record. `REGULAR` is no approval and `LIGHT` no rejection.
fn level_change(
    event_type: &str,
    data: &Data<'_>,
) -> Result<(SubjectChange, Option<SubjectType>), NormalizeError> {
    let subject_type = match event_type {
        "kyc_state_updated" => None,
        "kyb_state_updated" => Some(SubjectType::Business),
        unknown => return Err(NormalizeError::UnknownEventType(Word::new(unknown))),
    };
    let TextOrNumber(state) = data
        .state
        .as_ref()
        .ok_or_else(|| NormalizeError::missing("data.state"))?;
    let level = match &**state {
        "1" => "REGULAR",
        "2" => "LIGHT",
        other => other,
    };
    let change = SubjectChange {
        kind: SubjectChangeKind::LevelChanged.into(),
        level: level.to_owned(),
        provider_status: state.clone().into_owned(),
    };
    Ok((change, subject_type))
}

/// The code values that the pages show; there is no full list. Newer ones follow `KYC.<CATEGORY>.<NAME>`.
const REASONS: ReasonTable = &[
    ("EXPIRED_DOCUMENT", DocumentExpired),
    ("NO_MATCH", FaceMismatch),
    ("LOW_CONFIDENCE", FaceMatchLowConfidence),
    ("KYC.DOC.DETERIORATED", DocumentDamaged),
];

fn check(check: &SessionCheck<'_>) -> Check {
    let SessionCheck {
        check_type,
        state: TextOrNumber(state),
        reasons,
    } = check;
    let our_type = match &**check_type {
        "document-verification" => CheckType::Document,
        "face-matching" => CheckType::FaceMatch,
        "manual_review" => CheckType::ManualReview,
        _ => CheckType::Other,
    };
    let result = match &**state {
        "Validated" | "1" => CheckResult::Passed,
        "Refused" | "2" => CheckResult::Failed,
        _ => CheckResult::Unspecified,
    };
    Check {
        r#type: our_type.into(),
        provider_type: check_type.owned(),
        result: result.into(),
        provider_result: state.clone().into_owned(),
        reasons: reasons.iter().flatten().map(reason).collect(),
        ..Default::default()
    }
}

fn reason(reason: &CheckReason<'_>) -> Reason {
    let CheckReason {
        reason_type,
        code,
        message,
        category,
    } = reason;
    let code = json::owned(code.as_ref());
    Reason {
        code: reason_code(REASONS, &code),
        provider_code: code,
        message: json::owned(message.as_ref()),
        provider_category: json::owned(category.as_ref().or(reason_type.as_ref())),
    }
}

impl Data<'_> {
    /// The subject: a user, else a related party.
    fn subject(&self, subject_type: Option<SubjectType>) -> Option<Subject> {
        let user = self.user_id.as_ref().or(self.user_id_2025.as_ref());
        let party = self.related_party.as_ref().map(|party| &party.id);
        let party = self.related_party_id.as_ref().or(party);
        let subject_type = subject_type.unwrap_or(match self.entity_type.as_deref() {
            Some("user") => SubjectType::Person,
            Some("related-party") => SubjectType::RelatedParty,
            Some(_) => SubjectType::Unspecified,
            None if user.is_some() => SubjectType::Person,
            None => SubjectType::RelatedParty,
        });
        Some(Subject {
            provider_subject_id: user.or(party)?.owned(),
            external_id: String::new(),
            r#type: subject_type.into(),
        })
    }

    fn personal_data(self) -> Option<PersonalData> {
        let RelatedParty {
            id: _,
            status: _,
            first_name,
            last_name,
            email,
            phone_number,
            role_type,
            nationality,
            ownership_percentage,
            residential_address,
        } = self.related_party?;
        let business = self.business_user.and_then(|business| business.name);
        let claims = [
            ("roleType", role_type.map(Json::from)),
            ("nationality", nationality.map(Json::from)),
            ("ownershipPercentage", ownership_percentage),
            ("residentialAddress", residential_address),
            ("businessUserName", business.map(Json::from)),
        ];
        let claims = claims.into_iter();
        let claims = claims.filter_map(|(name, json)| Some((name, json?)));
        Some(PersonalData {
            given_name: json::owned(first_name.as_ref()),
            family_name: json::owned(last_name.as_ref()),
            full_name: String::new(),
            email: json::owned(email.as_ref()),
            phone: json::owned(phone_number.as_ref()),
            claims: Some(json::to_struct(claims.collect())),
            erased: false,
        })
    }
}
