//! What the clients send: events that follow from the seed and a number, as webhooks of two providers.
//!
//! An event's number is inside its webhook, so that whoever reads an event knows which one it is.

use fastrand::Rng;
use jiff::Timestamp;
use verdict::proto::{
    EventFilter, EventKind, Outcome, VerificationEvent, verification_event::Detail,
};

use super::record::EventNo;

/// The sources of the test. Both use the same ids for their verifications, which are different ones all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Gu1,
    Ralio,
}

impl Source {
    pub(crate) const ALL: [Self; 2] = [Self::Gu1, Self::Ralio];

    pub(crate) fn provider(self) -> &'static str {
        match self {
            Self::Gu1 => "gu1",
            Self::Ralio => "ralio",
        }
    }

    pub(crate) fn account(self) -> &'static str {
        match self {
            Self::Gu1 => "default",
            Self::Ralio => "eu",
        }
    }
}

/// What an event says, as far as the checker looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) source: Source,
    /// `None` for a change of a subject's record.
    pub(crate) verification: Option<u32>,
    /// Unspecified where there is no verification.
    pub(crate) outcome: Outcome,
    /// Milliseconds since 1970.
    pub(crate) occurred_at: Option<i64>,
}

const OUTCOMES: [Outcome; 4] = [
    Outcome::Approved,
    Outcome::Rejected,
    Outcome::InReview,
    Outcome::Expired,
];

/// The time of the first event, in seconds since 1970.
const BEGIN: i64 = 1_780_000_000;

impl Content {
    /// The contents of an event: the right one, and the one that contradicts it. Ralio's events are recognized by an id
    /// of their own, so they can be sent again with another outcome; an event of Gu1 with other content is another event.
    pub(crate) fn of(seed: u64, event: EventNo) -> [Self; 2] {
        let mut rng = Rng::with_seed(seed ^ u64::from(event).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let source = Source::ALL[rng.usize(..2)];
        // Most verifications have their events close together, some over the whole run and its restarts.
        let verification = match rng.u8(..20) {
            0 => None,
            1..=14 => Some(event / 8 + rng.u32(..4)),
            _ => Some(rng.u32(..=event / 8)),
        };
        // Times are out of order and often the same.
        let seconds = BEGIN + i64::from((event + rng.u32(..64)) / 4);
        let occurred_at = match source {
            Source::Gu1 if rng.u8(..8) == 0 => None,
            // Events of Gu1 are told apart by their time.
            Source::Gu1 => Some(seconds * 1000 + i64::from(event % 1000)),
            Source::Ralio => Some(seconds * 1000),
        };
        let outcome = rng.usize(..4);
        let outcomes = match verification {
            None => [Outcome::Unspecified; 2],
            Some(_) => [OUTCOMES[outcome], OUTCOMES[(outcome + 1) % 4]],
        };
        let content = |outcome| Self {
            source,
            verification,
            outcome,
            occurred_at,
        };
        match source {
            Source::Gu1 => [content(outcomes[0]); 2],
            Source::Ralio => outcomes.map(content),
        }
    }

    /// The body of the webhook.
    pub(crate) fn body(&self, event: EventNo) -> String {
        match self.source {
            Source::Gu1 => self.gu1_body(event),
            Source::Ralio => self.ralio_body(event),
        }
    }

    fn gu1_body(&self, event: EventNo) -> String {
        let time = match self.time() {
            Some(time) => format!(r#""timestamp":"{time}","#),
            None => String::new(),
        };
        let Some(verification) = self.verification else {
            return format!(
                r#"{{"event":"entity.updated",{time}"payload":{{"id":"e-{event}","externalId":"n-{event}","status":"active"}}}}"#
            );
        };
        let status = match self.outcome {
            Outcome::Approved => "approved",
            Outcome::Rejected => "rejected",
            Outcome::InReview => "in_review",
            _ => "expired",
        };
        format!(
            r#"{{"event":"kyc.validation_{status}",{time}"payload":{{"id":"v-{verification}","entityId":"e-{event}","status":"{status}","entity":{{"externalId":"n-{event}"}}}}}}"#
        )
    }

    fn ralio_body(&self, event: EventNo) -> String {
        let time = self.time().expect("Ralio's events have a time");
        let (name, data) = match self.verification {
            None => ("kyc_state_updated", r#""state":1"#.to_owned()),
            Some(verification) => {
                let name = match self.outcome {
                    Outcome::Approved => "kyc_session_verified",
                    Outcome::Rejected => "kyc_session_failed",
                    Outcome::InReview => "kyc_session_manual_review",
                    _ => "kyc_session_expired",
                };
                (name, format!(r#""sessionId":"v-{verification}""#))
            }
        };
        format!(
            r#"{{"eventId":"n-{event}","eventType":"{name}","timestamp":"{time}","data":{{"userId":"u-{event}",{data}}}}}"#
        )
    }

    fn time(&self) -> Option<Timestamp> {
        let time = self.occurred_at.map(Timestamp::from_millisecond);
        time.map(|time| time.expect("a time of this century"))
    }

    /// Reads an event back. `None` when it is none that a client sends.
    pub(crate) fn read(event: &VerificationEvent) -> Option<(EventNo, Self)> {
        let told = event.source.as_ref()?;
        let source = Source::ALL.into_iter().find(|source| {
            told.provider == source.provider() && told.account == source.account()
        })?;
        let number = match source {
            Source::Gu1 => &event.subject.as_ref()?.external_id,
            Source::Ralio => &told.provider_event_id,
        };
        let number = number.strip_prefix("n-")?.parse().ok()?;
        let (verification, outcome) = match event.detail.as_ref()? {
            Detail::Verification(verification) => {
                let id = verification.verification_id.strip_prefix("v-")?;
                (Some(id.parse().ok()?), verification.outcome())
            }
            Detail::SubjectChange(_) => (None, Outcome::Unspecified),
            Detail::CredentialShare(_) => return None,
        };
        let occurred_at = event
            .occurred_at
            .map(|time| time.seconds * 1000 + i64::from(time.nanos / 1_000_000));
        let content = Self {
            source,
            verification,
            outcome,
            occurred_at,
        };
        Some((number, content))
    }
}

/// What a subscriber asks for: an empty list or `None` is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) source: Option<Source>,
    pub(crate) verifications_only: bool,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) verifications: Vec<u32>,
    pub(crate) final_only: bool,
}

impl Filter {
    /// A filter of one kind or of two; often none. `events` is how many there are so far.
    pub(crate) fn random(rng: &mut Rng, events: EventNo) -> Self {
        let mut filter = Self::default();
        for _ in 0..rng.usize(..3) {
            match rng.u8(..5) {
                0 => filter.source = Some(Source::ALL[rng.usize(..2)]),
                1 => filter.verifications_only = true,
                2 => filter.outcomes = rng.choose_multiple(OUTCOMES, 2),
                3 => filter.final_only = true,
                _ => {
                    // Few of them, or so many that about every tenth event has one.
                    let wanted = [3, 900][rng.usize(..2)];
                    let ids = 0..=events / 8;
                    filter.verifications = (0..wanted).map(|_| rng.u32(ids.clone())).collect();
                    filter.verifications.sort_unstable();
                    filter.verifications.dedup();
                }
            }
        }
        filter
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an event is asked for: by what was sent, not by what the server made of it.
    pub(crate) fn matches(&self, content: &Content) -> bool {
        let is_final = content.verification.is_some() && content.outcome != Outcome::InReview;
        self.source.is_none_or(|source| source == content.source)
            && (!self.verifications_only || content.verification.is_some())
            && (self.outcomes.is_empty() || self.outcomes.contains(&content.outcome))
            && (self.verifications.is_empty() || self.has(content.verification))
            && (!self.final_only || is_final)
    }

    fn has(&self, verification: Option<u32>) -> bool {
        verification.is_some_and(|id| self.verifications.binary_search(&id).is_ok())
    }

    pub(crate) fn to_proto(&self) -> EventFilter {
        let kinds = match self.verifications_only {
            true => vec![EventKind::Verification.into()],
            false => Vec::new(),
        };
        EventFilter {
            providers: self.source.iter().map(|s| s.provider().into()).collect(),
            kinds,
            outcomes: self.outcomes.iter().map(|o| (*o).into()).collect(),
            verification_ids: self
                .verifications
                .iter()
                .map(|v| format!("v-{v}"))
                .collect(),
            final_only: self.final_only,
            ..Default::default()
        }
    }
}
