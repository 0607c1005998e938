//! Fyatu: KYC of card holders, in four generations of payload and signature.
//!
//! Sources: docs.fyatu.com `/v3/webhooks`, `/v3/webhooks/signature-verification`, `/v3.20/webhooks/*`.
//!
//! | generation | marked by | signed |
//! |---|---|---|
//! | F1, F2, F3 | `version` 2.0, 3.0, 3.20 | the value of `data` alone, by the member `sign` |
//! | F4 | `businessId`, no `version` | time and whole body, by the header `X-Fyatu-Signature` |
//!
//! Readings of what the pages leave open:
//! - Which bytes of `data` are signed is told in several ways. `body_sign` takes them as they were sent (the reading
//!   with a published vector); `body_sign_json` and `body_sign_php` write them again first, as `JSON.stringify` and
//!   PHP's `json_encode` do.
//! - With these three schemes the event's name, `eventId` and `version` are not signed. So a name counts only when the
//!   signed data says the same: `kycStatus` an approval or a pending one, `kycStatus` or a `status` with a `reason` or
//!   a name a rejection (a card's `status` can be any of these words), `email` or `phone` a creation; and none of it
//!   with the id of a card or a payment. An event is recognized by the signed bytes, and a card event that speaks of
//!   KYC is a contradiction. So whoever swaps the name gains no event and suppresses none.
//! - A delivery that ends in the quarantine is kept as it came first; with these schemes everything around `data` may be
//!   somebody else's writing.
//! - The tolerance of `header_v1` was cut off on the page; the source's own applies. The key is taken to be the hex
//!   text of the secret's SHA-256.
//! - The reason of a rejection is Didit's warning as JSON in a string, or a sentence.
//! - Compression is not mentioned. Each signature is taken to be over a body as it was before any `Content-Encoding`.

use std::time::Duration;

use serde::{Deserialize, de::IgnoredAny};

use super::{
    NormalizeError, Normalized, Posting, Provider, ReasonTable, Sample, Success, VerifiedWebhook,
    Word, didit_risk,
    json::{self, Json, Object, Rewrite, Text},
    reason_code, reasons_of,
    signature::{Hash, Key, Recipe, Scheme},
    unsigned_id,
};
use crate::{
    event::IdempotencyKey,
    proto::{
        Check, CheckResult, Environment, Finality, Outcome, PersonalData, Reason, ReasonCode::*,
        Retry, Source, Subject, SubjectChange, SubjectChangeKind, SubjectType, Verification,
        VerificationEvent, verification_event::Detail,
    },
};

/// The adapter.
#[derive(Debug)]
pub(super) struct Fyatu;

const HEADER: &str = "header_v1";

const fn body_sign(name: &'static str, rewrite: Rewrite) -> Scheme {
    Scheme {
        name,
        hash: Hash::Sha256,
        key: Key::Text,
        recipe: Recipe::Member {
            signature: "sign",
            signed: "data",
            rewrite,
        },
    }
}

const SCHEMES: &[Scheme] = &[
    body_sign("body_sign", Rewrite::None),
    body_sign("body_sign_json", Rewrite::JavaScript),
    body_sign("body_sign_php", Rewrite::Php),
    Scheme {
        name: HEADER,
        hash: Hash::Sha256,
        key: Key::Sha256Hex,
        recipe: Recipe::TimestampedBody {
            header: "x-fyatu-signature",
        },
    },
];

impl Provider for Fyatu {
    fn name(&self) -> &'static str {
        "fyatu"
    }

    fn schemes(&self) -> &'static [Scheme] {
        SCHEMES
    }

    /// `/v3/webhooks` and `/v3.20/webhooks/update`: 10 s (30 s on another page), any 2xx, everything else is sent again.
    fn posting(&self) -> Posting {
        Posting {
            patience: Duration::from_secs(10),
            success: Success::Any2xx,
            again_after_4xx: true,
        }
    }

    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        let whole_body_signed = webhook.scheme().name == HEADER;
        let body = json::parse(webhook.content());
        let body: Body<'_> = match body {
            Ok(body) => body,
            Err(error) => {
                let Head { event } = json::parse(webhook.content())?;
                return match named(&event, whole_body_signed)? {
                    Some(_) => Err(error),
                    None => other_family(webhook, &event, whole_body_signed),
                };
            }
        };
        let Some(named) = named(&body.event, whole_body_signed)? else {
            return other_family(webhook, &body.event, whole_body_signed);
        };
        let detail = detail(&body, named, whole_body_signed)?;
        let (key, occurred_at) = match &body.event_id {
            Some(id) if whole_body_signed => (
                IdempotencyKey::ProviderEventId(id.owned()),
                body.timestamp.as_deref(),
            ),
            _ => (
                IdempotencyKey::SignedBytes(*webhook.content_sha256()),
                body.timestamp.as_deref().filter(|_| whole_body_signed),
            ),
        };
        let occurred_at = occurred_at.or(body.data.timestamp.as_deref());
        let event = VerificationEvent {
            source: Some(Source {
                environment: environment(&body, whole_body_signed)?.into(),
                provider_event_id: match &key {
                    IdempotencyKey::ProviderEventId(id) => id.clone(),
                    _ => unsigned_id(body.event_id.as_deref()).to_owned(),
                },
                provider_event_type: body.event.owned(),
                provider_api_version: json::owned(body.version.as_ref()),
                ..Default::default()
            }),
            occurred_at: occurred_at.map(json::timestamp).transpose()?,
            subject: Some(Subject {
                provider_subject_id: body.data.cardholder_id.owned(),
                external_id: json::owned(body.data.external_id.as_ref()),
                r#type: SubjectType::Person.into(),
            }),
            detail: Some(detail),
            personal_data: body.data.personal_data(),
            ..Default::default()
        };
        Ok(Normalized::event(key, event))
    }

    fn samples(&self) -> &'static [Sample] {
        &[
            Sample {
                scheme: "body_sign",
                body: r#"{"event":"cardholder.kyc_rejected","version":"3.0","eventId":"5a3b0000-0000-4000-8000-000000000001","sign":"","data":{"cardholderId":"c4d00000000000000001","firstName":"Erika","lastName":"Beispiel","reason":"{\"feature\":\"LIVENESS\",\"risk\":\"DUPLICATED_FACE\",\"short_description\":\"Duplicated face from other approved session\",\"log_type\":\"information\"}","status":"REJECTED","appId":"SAMPLE","timestamp":"2026-05-04T11:00:00+00:00"}}"#,
            },
            Sample {
                scheme: "body_sign",
                body: r#"{"event":"cardholder.kyc.approved","version":"3.20","eventId":"5a3b0000-0000-4000-8000-000000000002","sign":"","data":{"cardholderId":"c4d00000000000000002","firstName":"Erika","lastName":"Beispiel","kycStatus":"APPROVED","timestamp":"2026-05-04T11:01:00+00:00"}}"#,
            },
            Sample {
                scheme: "body_sign_json",
                body: r#"{"event":"cardholder.kyc.pending","version":"3.20","eventId":"5a3b0000-0000-4000-8000-000000000003","sign":"","data":{"cardholderId":"c4d00000000000000003","kycStatus":"PENDING","documentType":"PASSPORT","timestamp":"2026-05-04T11:02:00+00:00"}}"#,
            },
            Sample {
                scheme: "body_sign_php",
                body: r#"{"event":"cardholder.kyc.rejected","version":"3.20","eventId":"5a3b0000-0000-4000-8000-000000000004","sign":"","data":{"cardholderId":"c4d00000000000000004","firstName":"Zoë","status":"REJECTED","reason":"The name on the card/passport differs","timestamp":"2026-05-04T11:03:00+00:00"}}"#,
            },
            Sample {
                scheme: HEADER,
                body: r#"{"event":"CARDHOLDER_KYC_REJECTED","eventId":"evt_sample_1","businessId":"B1","environment":"SANDBOX","timestamp":"2026-05-04T11:04:00Z","data":{"cardholderId":"chl_sample_1","programId":"prg_1","kycStatus":"REJECTED","kycRejectionReason":"NAME_MISMATCH"}}"#,
            },
        ]
    }
}

/// The name alone: enough to tell the family, whatever the data of other families look like.
#[derive(Deserialize)]
struct Head<'b> {
    #[serde(borrow)]
    event: Text<'b>,
}

/// What is read of an event about a card holder.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Body<'b> {
    #[serde(borrow)]
    event: Text<'b>,
    version: Option<Text<'b>>,
    event_id: Option<Text<'b>>,
    environment: Option<Text<'b>>,
    timestamp: Option<Text<'b>>,
    data: Data<'b>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<'b> {
    #[serde(borrow, default)]
    cardholder_id: Text<'b>,
    first_name: Option<Text<'b>>,
    last_name: Option<Text<'b>>,
    email: Option<Text<'b>>,
    phone: Option<Text<'b>>,
    status: Option<Text<'b>>,
    kyc_status: Option<Text<'b>>,
    /// The name of `kycStatus` in F2 before May 2026.
    kyc_level: Option<Text<'b>>,
    kyc_rejection_reason: Option<Text<'b>>,
    document_type: Option<Text<'b>>,
    reason: Option<Text<'b>>,
    external_id: Option<Text<'b>>,
    timestamp: Option<Text<'b>>,
    // Only cards and payments have these.
    card_id: Option<IgnoredAny>,
    transaction_id: Option<IgnoredAny>,
    reference: Option<IgnoredAny>,
}

/// What the name of an event stands for, in all of its spellings.
enum Named {
    Verdict(Outcome),
    Created,
    Changed(SubjectChangeKind),
}

/// What the name of an event stands for; `None` for cards and payments.
fn named(event: &str, whole_body_signed: bool) -> Result<Option<Named>, NormalizeError> {
    let named = match event {
        "cardholder.kyc_approved" | "cardholder.kyc.approved" => Named::Verdict(Outcome::Approved),
        "cardholder.kyc_rejected" | "cardholder.kyc.rejected" => Named::Verdict(Outcome::Rejected),
        "cardholder.kyc.pending" => Named::Verdict(Outcome::Pending),
        "cardholder.created" => Named::Created,
        // The names of F4 are believed only where they are signed: nothing in `data` could confirm them.
        "CARDHOLDER_KYC_APPROVED" if whole_body_signed => Named::Verdict(Outcome::Approved),
        "CARDHOLDER_KYC_REJECTED" if whole_body_signed => Named::Verdict(Outcome::Rejected),
        "CARDHOLDER_CREATED" if whole_body_signed => Named::Created,
        "CARDHOLDER_SUSPENDED" if whole_body_signed => Named::Changed(SubjectChangeKind::Suspended),
        "CARDHOLDER_REACTIVATED" if whole_body_signed => {
            Named::Changed(SubjectChangeKind::Reactivated)
        }
        "CARDHOLDER_DELETED" if whole_body_signed => Named::Changed(SubjectChangeKind::Deleted),
        _ if ["card.", "CARD_", "TRANSACTION_"]
            .iter()
            .any(|family| event.starts_with(family)) =>
        {
            return Ok(None);
        }
        unknown => return Err(NormalizeError::UnknownEventType(Word::new(unknown))),
    };
    Ok(Some(named))
}

/// An event about a card or a payment. Where its name is not signed, it must not be the name over the data of a verdict.
fn other_family(
    webhook: &VerifiedWebhook,
    event: &str,
    whole_body_signed: bool,
) -> Result<Normalized, NormalizeError> {
    #[derive(Deserialize)]
    struct Body<'b> {
        #[serde(borrow)]
        data: Json<'b>,
    }
    if whole_body_signed {
        return Ok(Normalized::Ignored);
    }
    let Body { data } = json::parse(webhook.content())?;
    let of_kyc = data.get("kycStatus").or(data.get("kycLevel"));
    let rejected = data.get("status");
    let rejected = rejected.filter(|status| status.as_str() == Some("REJECTED"));
    match of_kyc.or(rejected) {
        Some(status) => Err(NormalizeError::disagree(
            event,
            status.as_str().unwrap_or_default(),
        )),
        None => Ok(Normalized::Ignored),
    }
}

/// What happened to a card holder.
fn detail(
    body: &Body<'_>,
    named: Named,
    whole_body_signed: bool,
) -> Result<Detail, NormalizeError> {
    let data = &body.data;
    let kyc_status = data.kyc_status.as_deref().or(data.kyc_level.as_deref());
    let disagree = |status: &str| Err(NormalizeError::disagree(&body.event, status));
    if data.cardholder_id.is_empty() {
        return Err(NormalizeError::missing("data.cardholderId"));
    }
    let of_a_card = [&data.card_id, &data.transaction_id, &data.reference];
    if !whole_body_signed && of_a_card.iter().any(|id| id.is_some()) {
        return Err(unconfirmed());
    }
    match named {
        Named::Changed(kind) => Ok(subject_change(kind, data)),
        Named::Created => match (kyc_status, data.status.as_deref()) {
            // Not verified, on purpose: the one event in which that is said.
            (Some("WAIVED"), _) => Ok(verification(Outcome::Waived, "WAIVED", data)),
            (None | Some("UNSUBMITTED" | "PENDING"), _) if whole_body_signed => {
                Ok(subject_change(SubjectChangeKind::Created, data))
            }
            (None, None | Some("PENDING")) if data.email.is_some() || data.phone.is_some() => {
                Ok(subject_change(SubjectChangeKind::Created, data))
            }
            (None, None | Some("PENDING")) => Err(unconfirmed()),
            (Some(status), _) | (None, Some(status)) => {
                outcome(status).and_then(|_| disagree(status))
            }
        },
        Named::Verdict(verdict) => {
            // `status` is the account's in F4, and the verdict's before.
            let status = data.status.as_deref().filter(|_| !whole_body_signed);
            for status in kyc_status.iter().chain(&status) {
                if outcome(status)? != verdict {
                    return disagree(status);
                }
            }
            let of_kyc = data.reason.is_some() || data.first_name.is_some();
            let confirmed = match verdict {
                Outcome::Rejected => kyc_status.or(status.filter(|_| of_kyc)),
                _ => kyc_status,
            };
            // A name that is signed needs nothing to confirm it.
            let named = named_status(verdict).filter(|_| whole_body_signed);
            let word = confirmed.or(named).ok_or_else(unconfirmed)?;
            Ok(verification(verdict, word, data))
        }
    }
}

fn unconfirmed() -> NormalizeError {
    NormalizeError::Contradiction(
        "nothing that is signed confirms the event's name, which is not signed".to_owned(),
    )
}

/// The status that the name of a verdict speaks of.
fn named_status(verdict: Outcome) -> Option<&'static str> {
    match verdict {
        Outcome::Approved => Some("APPROVED"),
        Outcome::Rejected => Some("REJECTED"),
        Outcome::Pending => Some("PENDING"),
        _ => None,
    }
}

fn outcome(status: &str) -> Result<Outcome, NormalizeError> {
    match status {
        "UNSUBMITTED" | "PENDING" => Ok(Outcome::Pending),
        "ACCEPTED" | "APPROVED" => Ok(Outcome::Approved),
        "REJECTED" => Ok(Outcome::Rejected),
        "WAIVED" => Ok(Outcome::Waived),
        unknown => Err(NormalizeError::UnknownStatus(Word::new(unknown))),
    }
}

fn subject_change(kind: SubjectChangeKind, data: &Data<'_>) -> Detail {
    Detail::SubjectChange(SubjectChange {
        kind: kind.into(),
        level: String::new(),
        provider_status: json::owned(data.status.as_ref()),
    })
}

fn verification(outcome: Outcome, word: &str, data: &Data<'_>) -> Detail {
    let (checks, reasons) = match outcome {
        Outcome::Rejected => rejection(data),
        _ => Default::default(),
    };
    let no_retry = reasons
        .iter()
        .any(|reason| NO_RETRY.contains(&reason.provider_code.as_str()));
    let retry = match outcome {
        Outcome::Rejected if no_retry => Retry::NotAllowed,
        Outcome::Rejected => Retry::Allowed,
        _ => Retry::Unspecified,
    };
    let finality = match outcome {
        Outcome::Pending => Finality::NotFinal,
        _ => Finality::Final,
    };
    Detail::Verification(Verification {
        verification_id: data.cardholder_id.owned(),
        verification_id_derived: true,
        outcome: outcome.into(),
        provider_outcome: word.to_owned(),
        finality: finality.into(),
        retry: retry.into(),
        checks,
        reasons,
        ..Default::default()
    })
}

/// The reasons of F4.
const REASONS: ReasonTable = &[
    ("DOCUMENT_EXPIRED", DocumentExpired),
    ("DOCUMENT_UNREADABLE", DocumentUnreadable),
    ("NAME_MISMATCH", NameMismatch),
    ("UNDER_AGE", Underage),
    ("WATCHLIST_MATCH", WatchlistMatch),
    ("DUPLICATE_IDENTITY", DuplicateIdentity),
    ("UNSUPPORTED_COUNTRY", DocumentCountryNotAccepted),
    ("OTHER", Other),
];

/// The reasons of F4 after which the card holder may not try again; after all others they may.
const NO_RETRY: [&str; 2] = ["WATCHLIST_MATCH", "UNSUPPORTED_COUNTRY"];

/// Didit's warning, as F2 passes it on.
#[derive(Deserialize)]
struct Warning<'b> {
    #[serde(borrow)]
    feature: Option<Text<'b>>,
    risk: Text<'b>,
    short_description: Option<Text<'b>>,
}

fn rejection(data: &Data<'_>) -> (Vec<Check>, Vec<Reason>) {
    if let Some(code) = &data.kyc_rejection_reason {
        let reason = Reason {
            code: reason_code(REASONS, code),
            provider_code: code.owned(),
            ..Default::default()
        };
        return (Vec::new(), vec![reason]);
    }
    let Some(text) = data.reason.as_ref().filter(|text| !text.is_empty()) else {
        return Default::default();
    };
    let Ok(warning) = serde_json::from_str::<Warning<'_>>(text) else {
        // Other JSON than a warning may hold anything, and is no text for people.
        let sentence = !text.trim_start().starts_with(['{', '[']);
        let reason = Reason {
            code: Other.into(),
            message: if sentence {
                text.owned()
            } else {
                String::new()
            },
            ..Default::default()
        };
        return (Vec::new(), vec![reason]);
    };
    let feature = json::owned(warning.feature.as_ref());
    let check = Check {
        r#type: didit_risk::check_type(&feature).into(),
        result: CheckResult::Failed.into(),
        reasons: vec![Reason {
            code: reason_code(didit_risk::REASONS, &warning.risk),
            provider_code: warning.risk.owned(),
            message: json::owned(warning.short_description.as_ref()),
            provider_category: feature.clone(),
        }],
        provider_type: feature,
        ..Default::default()
    };
    let reasons = reasons_of([&check]);
    (vec![check], reasons)
}

fn environment(body: &Body<'_>, whole_body_signed: bool) -> Result<Environment, NormalizeError> {
    match body.environment.as_deref().filter(|_| whole_body_signed) {
        None => Ok(Environment::Unspecified),
        Some("LIVE") => Ok(Environment::Live),
        Some("SANDBOX") => Ok(Environment::Sandbox),
        Some(_) => Err(NormalizeError::Unparseable(
            "environment is neither LIVE nor SANDBOX".to_owned(),
        )),
    }
}

impl Data<'_> {
    fn personal_data(self) -> Option<PersonalData> {
        let claims = self.document_type.map(|document_type| {
            json::to_struct(Object::from_iter([("documentType", document_type.into())]))
        });
        let personal_data = PersonalData {
            given_name: json::owned(self.first_name.as_ref()),
            family_name: json::owned(self.last_name.as_ref()),
            full_name: String::new(),
            email: json::owned(self.email.as_ref()),
            phone: json::owned(self.phone.as_ref()),
            claims,
            erased: false,
        };
        (personal_data != PersonalData::default()).then_some(personal_data)
    }
}
