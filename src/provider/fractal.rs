//! Fractal ID: verdicts per level and add-on (classic), and per user (Kraken, since 2025-03).
//!
//! Sources: docs.developer.fractal.id `/user-integration/webhooks/*` and `/migration-to-kraken`. The scheme that a
//! source accepts says which of the two generations its bodies belong to.
//!
//! Readings of what the pages leave open:
//! - Kraken's header is taken as bare hex, or hex after `sha256=`.
//! - A classic event without a time (before April 2020, and some types) and every Kraken event are recognized by their
//!   bytes, so that a repeat with the very same content is a duplicate: a user who is approved, rejected and approved
//!   again in Kraken's words ends as rejected here. Nothing in the bytes tells the third event from a replayed first.
//! - `pending`, `contacted` and `expired` are taken from Kraken, though it is not said that they are sent.
//! - Kraken's `note` is a reason only where the user was not approved.
//! - The approval of an add-on is an approval of that add-on: `level` tells which.
//! - Each classic webhook type has a secret of its own; a source lists them all.
//! - Compression is not mentioned. The signature is taken to be over the body as it was before any `Content-Encoding`.

use std::time::Duration;

use serde::Deserialize;

use super::{
    NormalizeError, Normalized, Posting, Provider, Sample, Success, VerifiedWebhook, Word,
    json::{self, Text},
    provider_source,
    signature::{Hash, Key, Recipe, Scheme},
};
use crate::{
    event::IdempotencyKey,
    proto::{
        CredentialShare, Finality, Outcome, PersonalData, Reason, ReasonCode, Subject,
        SubjectChange, SubjectChangeKind, SubjectType, Verification, VerificationEvent,
        verification_event::Detail,
    },
};

/// The adapter.
#[derive(Debug)]
pub(super) struct Fractal;

const KRAKEN: &str = "kraken_sha256";

const SCHEMES: &[Scheme] = &[
    Scheme {
        name: "classic_sha1",
        hash: Hash::Sha1,
        key: Key::Text,
        recipe: Recipe::Body {
            header: "x-fractal-signature",
            prefixes: &["sha1="],
        },
    },
    Scheme {
        name: KRAKEN,
        hash: Hash::Sha256,
        key: Key::Text,
        recipe: Recipe::Body {
            header: "x-fractal-signature",
            prefixes: &["", "sha256="],
        },
    },
];

impl Provider for Fractal {
    fn name(&self) -> &'static str {
        "fractal"
    }

    fn schemes(&self) -> &'static [Scheme] {
        SCHEMES
    }

    /// `/user-integration/webhooks/delivery`: 10 s, any 2xx, everything else is sent again.
    fn posting(&self) -> Posting {
        Posting {
            patience: Duration::from_secs(10),
            success: Success::Any2xx,
            again_after_4xx: true,
        }
    }

    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        if webhook.scheme().name == KRAKEN {
            normalize_kraken(webhook)
        } else {
            normalize_classic(webhook)
        }
    }

    fn samples(&self) -> &'static [Sample] {
        &[
            Sample {
                scheme: "classic_sha1",
                body: r#"{"type":"verification_approved","data":{"level":"plus","user_id":"f7ac7a10-0000-4000-8000-000000000001","timestamp":"2026-05-04T10:00:00Z"}}"#,
            },
            Sample {
                scheme: "classic_sha1",
                body: r#"{"type":"verification_contacted","data":{"level":"liveness","user_id":"f7ac7a10-0000-4000-8000-000000000001","timestamp":"2026-05-04T10:01:00Z"}}"#,
            },
            Sample {
                scheme: KRAKEN,
                body: r#"{"id":"f7ac7a10-0000-4000-8000-000000000002","status":"rejected","note":"The document could not be read"}"#,
            },
        ]
    }
}

/// What is read of a classic event.
#[derive(Deserialize)]
pub struct Classic<'b> {
    #[serde(rename = "type", borrow)]
    event_type: Text<'b>,
    data: ClassicData<'b>,
}

/// The data of all classic events: each has some of these.
#[derive(Deserialize)]
struct ClassicData<'b> {
    #[serde(borrow)]
    level: Option<Text<'b>>,
    user_id: Option<Text<'b>>,
    timestamp: Option<Text<'b>>,
    email: Option<Text<'b>>,
    idos_human_id: Option<Text<'b>>,
    credential_id: Option<Text<'b>>,
    shared_at: Option<Text<'b>>,
}

fn normalize_classic(webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
    let Classic { event_type, data } = json::parse(webhook.content())?;
    let occurred_at = data.timestamp.as_deref().or(data.shared_at.as_deref());
    let key = match occurred_at {
        Some(time) => IdempotencyKey::Fields(vec![
            event_type.owned(),
            json::owned(data.user_id.as_ref().or(data.credential_id.as_ref())),
            json::owned(data.level.as_ref()),
            time.to_owned(),
        ]),
        None => IdempotencyKey::SignedBytes(*webhook.content_sha256()),
    };
    let event = VerificationEvent {
        source: provider_source("", &event_type),
        occurred_at: occurred_at.map(json::timestamp).transpose()?,
        subject: data.user_id.as_deref().map(person),
        detail: Some(classic_detail(&event_type, &data)?),
        personal_data: data.email.map(|email| PersonalData {
            email: email.owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Ok(Normalized::event(key, event))
}

fn classic_detail(event_type: &str, data: &ClassicData<'_>) -> Result<Detail, NormalizeError> {
    let (outcome, word) = match event_type {
        "verification_approved" => (Outcome::Approved, "approved"),
        "verification_rejected" => (Outcome::Rejected, "rejected"),
        "verification_contacted" => (Outcome::ActionRequired, "contacted"),
        "credential_shared" => {
            let shared_at = required("data.shared_at", data.shared_at.as_deref())?;
            return Ok(Detail::CredentialShare(CredentialShare {
                credential_id: required("data.credential_id", data.credential_id.as_deref())?
                    .to_owned(),
                holder_id: required("data.idos_human_id", data.idos_human_id.as_deref())?
                    .to_owned(),
                shared_at: Some(json::timestamp(shared_at)?),
            }));
        }
        "email_changed" => return change(SubjectChangeKind::EmailChanged, data),
        "authorization_revoked" => return change(SubjectChangeKind::AuthorizationRevoked, data),
        unknown => return Err(NormalizeError::UnknownEventType(Word::new(unknown))),
    };
    let user_id = required("data.user_id", data.user_id.as_deref())?;
    let level = required("data.level", data.level.as_deref())?;
    Ok(Detail::Verification(Verification {
        verification_id: format!("{user_id}/{level}"),
        verification_id_derived: true,
        outcome: outcome.into(),
        provider_outcome: word.to_owned(),
        finality: finality(outcome).into(),
        level: level.to_owned(),
        ..Default::default()
    }))
}

fn change(kind: SubjectChangeKind, data: &ClassicData<'_>) -> Result<Detail, NormalizeError> {
    required("data.user_id", data.user_id.as_deref())?;
    Ok(Detail::SubjectChange(SubjectChange {
        kind: kind.into(),
        ..Default::default()
    }))
}

/// What is read of an event of Kraken.
#[derive(Deserialize)]
pub struct Kraken<'b> {
    #[serde(borrow)]
    id: Text<'b>,
    status: Text<'b>,
    note: Option<Text<'b>>,
}

fn normalize_kraken(webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
    let Kraken { id, status, note } = json::parse(webhook.content())?;
    // The last two are of the back office; no webhook with them is documented.
    let outcome = match &*status {
        "approved" => Outcome::Approved,
        "rejected" => Outcome::Rejected,
        "pending" => Outcome::Pending,
        "contacted" => Outcome::ActionRequired,
        "expired" => Outcome::Expired,
        unknown => return Err(NormalizeError::UnknownStatus(Word::new(unknown))),
    };
    let note = note.filter(|note| !note.is_empty() && outcome != Outcome::Approved);
    let event = VerificationEvent {
        source: provider_source("", ""),
        subject: Some(person(&id)),
        detail: Some(Detail::Verification(Verification {
            verification_id: id.owned(),
            verification_id_derived: true,
            outcome: outcome.into(),
            provider_outcome: status.owned(),
            finality: finality(outcome).into(),
            reasons: Vec::from_iter(note.map(|message| Reason {
                code: ReasonCode::Other.into(),
                message: message.owned(),
                ..Default::default()
            })),
            ..Default::default()
        })),
        ..Default::default()
    };
    let key = IdempotencyKey::SignedBytes(*webhook.content_sha256());
    Ok(Normalized::event(key, event))
}

fn finality(outcome: Outcome) -> Finality {
    match outcome {
        Outcome::Approved | Outcome::Rejected | Outcome::Expired => Finality::Final,
        _ => Finality::NotFinal,
    }
}

fn person(user_id: &str) -> Subject {
    Subject {
        provider_subject_id: user_id.to_owned(),
        external_id: String::new(),
        r#type: SubjectType::Person.into(),
    }
}

fn required<'v>(name: &str, value: Option<&'v str>) -> Result<&'v str, NormalizeError> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| NormalizeError::missing(name))
}
