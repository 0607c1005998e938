//! The providers: how each signs its webhooks, and what its words mean in ours.
//!
//! Everything here is pure and synchronous: bytes and a time in, an event out. No gRPC, no log, no clock, no runtime.

pub mod fractal;
pub mod fyatu;
pub mod gu1;
pub mod json;
pub mod jwe;
pub mod kayle;
pub mod ralio;
pub mod signature;
pub mod usage;

mod didit_risk;

use std::{fmt, ptr, time::Duration};

use bytes::Bytes;

use crate::{
    event::IdempotencyKey,
    proto::{Check, QuarantineReason, Reason, ReasonCode, Source, VerificationEvent},
};
use signature::Scheme;

/// Every provider, in alphabetical order. A new one is a `mod` line above and an entry here.
pub static PROVIDERS: &[&dyn Provider] = &[
    &fractal::Fractal,
    &fyatu::Fyatu,
    &gu1::Gu1,
    &kayle::Kayle,
    &ralio::Ralio,
];

/// The provider with this key.
pub fn find(name: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.iter().copied().find(|p| p.name() == name)
}

/// What verdict needs to know about a provider.
pub trait Provider: fmt::Debug + Send + Sync {
    /// The provider's key: snake case, the same in the configuration, in requests, in events and in file names.
    fn name(&self) -> &'static str;

    /// How the provider signs. The first scheme is the one that a source accepts unless it names others.
    fn schemes(&self) -> &'static [Scheme];

    /// Whether payloads are compact JWEs, to be decrypted once they are verified.
    fn encrypted(&self) -> bool {
        false
    }

    /// The names of the switches that a source may set in `options`.
    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    /// How the provider posts, and what it makes of an answer. None of them asks for a challenge to be answered before it
    /// posts, and none wants something in the body of an answer.
    fn posting(&self) -> Posting;

    /// Turns a verified webhook into an event. Pure: the same webhook makes the same event, for ever.
    fn normalize(&self, webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError>;

    /// Bodies as the provider sends them, unsigned and unencrypted: at least one for each scheme. The demo sends them,
    /// and the contract tests try to fool the adapter with them.
    fn samples(&self) -> &'static [Sample];
}

/// How a provider posts its webhooks.
///
/// What it signs is the body as it was before any `Content-Encoding`: a coding may be put on and taken off on the way, and
/// no provider's pages mention one.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    /// How long it waits for an answer.
    pub patience: Duration,
    /// What it takes for success. Everything else it takes for failure.
    pub success: Success,
    /// Whether it posts again after an answer that puts the blame on it, a 4xx. False where its pages do not say: what it
    /// may never post again must not be refused so for a trouble of ours.
    pub again_after_4xx: bool,
}

/// The answers that a provider takes for success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// Those of 200 to 299.
    Any2xx,
    /// 200 alone.
    Only200,
}

/// The switch by which the source of an encrypting provider also accepts signed payloads that are plain JSON.
pub const ALLOW_PLAINTEXT: &str = "allow_plaintext";

/// A body as a provider sends it.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The scheme that signs it.
    pub scheme: &'static str,
    /// The body.
    pub body: &'static str,
}

/// The HTTP headers of a webhook, in the order received.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a header.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Names and values, in the order received.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Every value of a header; names are compared without regard to case.
    pub fn values<'h>(&'h self, name: &str) -> impl Iterator<Item = &'h str> {
        self.iter()
            .filter(move |(candidate, _)| candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The value of a header that is given exactly once.
    pub fn single(&self, name: &str) -> Option<&str> {
        let mut values = self.values(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }
}

impl FromIterator<(String, String)> for Headers {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(headers: T) -> Self {
        Self(headers.into_iter().collect())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

/// A webhook exactly as it was received. Nothing in it can be trusted.
#[derive(Clone)]
pub struct RawWebhook {
    /// The body.
    pub payload: Bytes,
    /// The headers.
    pub headers: Headers,
}

impl fmt::Debug for RawWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawWebhook")
            .field("payload_bytes", &self.payload.len())
            .field("headers", &self.headers)
            .finish()
    }
}

/// A webhook that was proved genuine. Made by [`signature::verify`], and for deliveries that were verified when they
/// were received by [`VerifiedWebhook::assume_verified`].
#[derive(Clone)]
pub struct VerifiedWebhook {
    raw: RawWebhook,
    content: Bytes,
    content_sha256: [u8; 32],
    payload_sha256: [u8; 32],
    scheme: &'static Scheme,
    secret_id: String,
}

impl VerifiedWebhook {
    /// Takes a delivery for genuine that was verified at another time, or that its owner vouches for.
    ///
    /// Fails when the scheme finds nothing that could have been signed.
    pub fn assume_verified(
        raw: RawWebhook,
        scheme: &'static Scheme,
        secret_id: String,
    ) -> Result<Self, signature::VerifyError> {
        let signed = scheme.signed(&raw.payload)?;
        Ok(Self::new(raw, &signed, scheme, secret_id))
    }

    /// Only for `signature.rs`, which has just proved it.
    fn new(raw: RawWebhook, signed: &[u8], scheme: &'static Scheme, secret_id: String) -> Self {
        let content_sha256 = signature::sha256(signed);
        let payload_sha256 = match ptr::eq(signed, &raw.payload[..]) {
            true => content_sha256,
            false => signature::sha256(&raw.payload),
        };
        Self {
            content: raw.payload.clone(),
            content_sha256,
            payload_sha256,
            raw,
            scheme,
            secret_id,
        }
    }

    /// The webhook with its payload decrypted.
    pub fn with_decrypted(mut self, content: Bytes) -> Self {
        self.content_sha256 = signature::sha256(&content);
        self.content = content;
        self
    }

    /// The delivery as it was received.
    pub fn raw(&self) -> &RawWebhook {
        &self.raw
    }

    /// The body to normalize: the payload, decrypted where the provider encrypts. Some schemes sign only a part of
    /// it, see [`Scheme`].
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// The SHA-256 of what the signature proves: of the signed bytes, or of what was decrypted from them.
    pub fn content_sha256(&self) -> &[u8; 32] {
        &self.content_sha256
    }

    /// The SHA-256 of the payload as it was received.
    pub fn payload_sha256(&self) -> &[u8; 32] {
        &self.payload_sha256
    }

    /// The scheme that proved it genuine.
    pub fn scheme(&self) -> &'static Scheme {
        self.scheme
    }

    /// The id of the secret that matched.
    pub fn secret_id(&self) -> &str {
        &self.secret_id
    }

    /// A header. Headers are not signed: record them, but decide nothing by them.
    pub fn unsigned_header(&self, name: &str) -> Option<&str> {
        self.raw.headers.single(name)
    }
}

impl fmt::Debug for VerifiedWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedWebhook")
            .field("raw", &self.raw)
            .field("scheme", &self.scheme.name)
            .field("secret_id", &self.secret_id)
            .finish_non_exhaustive()
    }
}

/// What a genuine webhook means.
#[derive(Debug)]
pub enum Normalized {
    /// An event.
    Event(Box<NormalizedEvent>),
    /// Known, but not about verification.
    Ignored,
}

impl Normalized {
    /// An event with the idempotency key that recognizes its redelivery.
    pub fn event(key: IdempotencyKey, event: VerificationEvent) -> Self {
        Self::Event(Box::new(NormalizedEvent { key, event }))
    }
}

/// An event as an adapter makes it: what the webhook says, and nothing else.
#[derive(Debug)]
pub struct NormalizedEvent {
    /// What makes a redelivery the same event.
    pub key: IdempotencyKey,
    /// The event, without what the pipeline adds: ids, source, times of receipt.
    pub event: VerificationEvent,
}

/// Why a genuine webhook has no meaning for us. Each is a reason to quarantine it, and free of personal data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NormalizeError {
    /// The event type is not one that the provider documents.
    #[error("event type {0} is not known")]
    UnknownEventType(Word),
    /// The status is not one that the provider documents.
    #[error("status {0} is not known")]
    UnknownStatus(Word),
    /// The body is not what the provider documents.
    #[error("{0}")]
    Unparseable(String),
    /// The body contradicts itself.
    #[error("{0}")]
    Contradiction(String),
}

impl NormalizeError {
    /// A required field is absent or empty.
    pub fn missing(field: &str) -> Self {
        Self::Unparseable(format!("{field} is missing"))
    }

    /// The event's name and a status in the body do not agree.
    pub fn disagree(event_type: &str, status: &str) -> Self {
        let (event_type, status) = (Word::new(event_type), Word::new(status));
        Self::Contradiction(format!(
            "event type {event_type} does not agree with status {status}"
        ))
    }

    /// The reason under which the delivery is quarantined.
    pub fn reason(&self) -> QuarantineReason {
        match self {
            Self::UnknownEventType(_) => QuarantineReason::UnknownEventType,
            Self::UnknownStatus(_) => QuarantineReason::UnknownStatus,
            Self::Unparseable(_) => QuarantineReason::Unparseable,
            Self::Contradiction(_) => QuarantineReason::Contradiction,
        }
    }
}

/// A provider's word, fit to be shown to an operator: only if it looks like an identifier, because anything else may
/// hold personal data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word(Option<String>);

impl Word {
    const MAX_BYTES: usize = 64;

    /// Takes the word if it can be shown.
    pub fn new(word: &str) -> Self {
        let showable = !word.is_empty()
            && word.len() <= Self::MAX_BYTES
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        Self(showable.then(|| word.to_owned()))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(word) => f.write_str(word),
            None => f.write_str("(not shown)"),
        }
    }
}

/// A provider's codes and ours, one row a code.
type ReasonTable = &'static [(&'static str, ReasonCode)];

/// Our code for a provider's; `OTHER` for one that the table does not hold.
fn reason_code(table: ReasonTable, provider_code: &str) -> i32 {
    let row = table.iter().find(|(code, _)| *code == provider_code);
    row.map_or(ReasonCode::Other, |(_, code)| *code).into()
}

/// The reasons of a verdict that lie in its checks.
fn reasons_of<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Vec<Reason> {
    checks
        .into_iter()
        .flat_map(|check| check.reasons.iter().cloned())
        .collect()
}

/// A provider's id of an event that is not signed. One that is longer than any real one is dropped: whoever delivers
/// could write what they like.
fn unsigned_id(id: Option<&str>) -> &str {
    const MAX_BYTES: usize = 128;
    id.filter(|id| id.len() <= MAX_BYTES).unwrap_or_default()
}

/// The part of an event's source that only the adapter knows.
fn provider_source(event_id: &str, event_type: &str) -> Option<Source> {
    Some(Source {
        provider_event_id: event_id.to_owned(),
        provider_event_type: event_type.to_owned(),
        ..Default::default()
    })
}
