//! The few functions that belong to the vocabulary of events: their ids, their encoding, their JSON.
//!
//! The messages themselves are generated from `proto/`; adapters build them directly.

use std::fmt;

use bytes::{Bytes, BytesMut};
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid, uuid};

use crate::proto::{
    self, PersonalData, QuarantineReason, VerificationEvent, verification_event::Detail,
};

/// The version of verdict, as written into every event that it normalizes.
pub const NORMALIZER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The namespace of event ids: the UUIDv5 of `verdict.v1/event` in the URL namespace. It must never change.
const EVENT_NAMESPACE: Uuid = uuid!("08fa7e8a-2b81-5383-88b2-abbe691a7d37");

/// The namespace of quarantine ids: the UUIDv5 of `verdict.v1/quarantine` in the URL namespace. It must never change.
const QUARANTINE_NAMESPACE: Uuid = uuid!("00464659-b2c3-5eff-b077-378b06384a3f");

/// What makes two deliveries the same event. Made from signed content only, so that nobody but the provider can
/// choose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdempotencyKey {
    /// The provider's id of the event, from inside the signed bytes.
    ProviderEventId(String),
    /// Signed fields that together tell one event from all others.
    Fields(Vec<String>),
    /// The SHA-256 of the signed bytes.
    SignedBytes([u8; 32]),
}

/// The id of an event: the UUIDv5 of provider, account and key.
pub fn event_id(provider: &str, account: &str, key: &IdempotencyKey) -> Uuid {
    let mut name = Name5::new(provider, account);
    match key {
        IdempotencyKey::ProviderEventId(id) => {
            name.push(b"id");
            name.push(id.as_bytes());
        }
        IdempotencyKey::Fields(fields) => {
            name.push(b"fields");
            for field in fields {
                name.push(field.as_bytes());
            }
        }
        IdempotencyKey::SignedBytes(sha256) => {
            name.push(b"sha256");
            name.push(sha256);
        }
    }
    name.uuid(&EVENT_NAMESPACE)
}

/// The id of an event that corrects another: the UUIDv5 of that one's id, of the id of the event that was its newest
/// correction before, and of the SHA-256 of the corrected content.
pub fn correction_id(corrected: Uuid, before: &str, content_sha256: &[u8; 32]) -> Uuid {
    let mut name = Name5(Vec::with_capacity(128));
    // No provider has this name, so no other event has such an id.
    name.push(b"correction of");
    name.push(corrected.as_bytes());
    name.push(before.as_bytes());
    name.push(content_sha256);
    name.uuid(&EVENT_NAMESPACE)
}

/// The id of a quarantined delivery: the UUIDv5 of provider, account, reason and the SHA-256 of what the signature
/// proves.
pub fn quarantine_id(
    provider: &str,
    account: &str,
    reason: QuarantineReason,
    content_sha256: &[u8; 32],
) -> Uuid {
    let mut name = Name5::new(provider, account);
    name.push(reason.as_str_name().as_bytes());
    name.push(content_sha256);
    name.uuid(&QUARANTINE_NAMESPACE)
}

/// The name that a UUIDv5 is made of: its parts, each after its length, so that no two lists of parts make the same
/// name.
struct Name5(Vec<u8>);

impl Name5 {
    fn new(provider: &str, account: &str) -> Self {
        let mut name = Self(Vec::with_capacity(128));
        name.push(provider.as_bytes());
        name.push(account.as_bytes());
        name
    }

    fn push(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.extend_from_slice(part);
    }

    /// The UUIDv5 of the name, by a SHA-1 that uses what the processor has for it. The one of `uuid` does not.
    fn uuid(&self, namespace: &Uuid) -> Uuid {
        let sha1: [u8; 20] = Sha1::new()
            .chain_update(namespace)
            .chain_update(&self.0)
            .finalize()
            .into();
        let (first, _) = sha1.split_first_chunk().expect("20 bytes begin with 16");
        Builder::from_sha1_bytes(*first).into_uuid()
    }
}

/// What tells the verifications of all providers and accounts apart, for the log. `None` for an event without one.
pub fn verification_key(event: &VerificationEvent) -> Option<[u8; 32]> {
    let Some(Detail::Verification(verification)) = &event.detail else {
        return None;
    };
    let source = event.source.as_ref()?;
    Some(key_of_verification(
        &source.provider,
        &source.account,
        &verification.verification_id,
    ))
}

/// The key of the verification with this id.
pub fn key_of_verification(provider: &str, account: &str, verification_id: &str) -> [u8; 32] {
    let mut name = Name5::new(provider, account);
    name.push(verification_id.as_bytes());
    Sha256::digest(&name.0).into()
}

/// What tells apart, for the log, whom the events of all providers and accounts are about: all three ids by which a subject can
/// be known. Events that differ in one of them are erased apart. An event without any id is about nobody else's subject.
pub fn subject_key(event: &VerificationEvent) -> [u8; 32] {
    let source = event.source.as_ref();
    let (provider, account) = source.map_or(("", ""), |s| (&s.provider, &s.account));
    let subject = event.subject.as_ref();
    let (subject_id, external_id) =
        subject.map_or(("", ""), |s| (&s.provider_subject_id, &s.external_id));
    let verification_id = match &event.detail {
        Some(Detail::Verification(verification)) => verification.verification_id.as_str(),
        _ => "",
    };
    let ids = [subject_id, external_id, verification_id];
    let mut name = Name5::new(provider, account);
    for id in ids {
        name.push(id.as_bytes());
    }
    if ids.iter().all(|id| id.is_empty()) {
        name.push(event.event_id.as_bytes());
    }
    Sha256::digest(&name.0).into()
}

/// An event as it lies in the log: two byte strings, because not everyone may see the second.
///
/// [`merge`] puts them together. Protobuf messages merge by concatenation, so that costs nothing where the provider wrote no
/// free text.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedEvent {
    /// The event without personal data.
    pub event: Bytes,
    /// What may name a person: its personal data, and the provider's free text. Empty when there is neither.
    pub personal_data: Bytes,
}

impl fmt::Debug for EncodedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedEvent")
            .field("event_bytes", &self.event.len())
            .field("personal_data_bytes", &self.personal_data.len())
            .finish()
    }
}

impl EncodedEvent {
    /// The event with the fields that only the log can know.
    pub fn placed(&self, revision: u64, late: bool) -> Self {
        let place = VerificationEvent {
            revision,
            late,
            ..Default::default()
        };
        let mut event = BytesMut::with_capacity(self.event.len() + place.encoded_len());
        event.extend_from_slice(&self.event);
        place
            .encode(&mut event)
            .expect("the buffer grows as it must");
        Self {
            event: event.freeze(),
            personal_data: self.personal_data.clone(),
        }
    }
}

/// Where an encoded event comes from, without decoding the rest of it. `None` for one that says nothing of it.
pub fn source_of(event: &Bytes) -> Option<proto::Source> {
    /// A [`VerificationEvent`] of which only this is read.
    #[derive(Clone, PartialEq, Message)]
    struct Sourced {
        #[prost(message, optional, tag = "2")]
        source: Option<proto::Source>,
    }
    Sourced::decode(event.clone()).ok()?.source
}

/// The id of an encoded event, and the trace in which it was ingested, without decoding the rest of it. `None` for one that
/// names no trace.
pub(crate) fn trace_of(event: &Bytes) -> Option<(String, proto::TraceContext)> {
    /// A [`VerificationEvent`] of which only this is read.
    #[derive(Clone, PartialEq, Message)]
    struct Traced {
        #[prost(string, tag = "1")]
        event_id: String,
        #[prost(message, optional, tag = "12")]
        trace: Option<proto::TraceContext>,
    }
    let traced = Traced::decode(event.clone()).ok()?;
    Some((traced.event_id, traced.trace?))
}

/// What of an event may name a person, encoded so that the event followed by it is an event with its personal data.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Personal {
    #[prost(message, optional, tag = "11")]
    personal_data: Option<PersonalData>,
    /// What the provider wrote about each reason, in the order of [`messages`]. No event has a field of this number.
    #[prost(string, repeated, tag = "1000")]
    messages: Vec<String>,
}

/// What the provider wrote about each reason of a verification, as free text: it may name a person.
pub(crate) fn messages(event: &mut VerificationEvent) -> impl Iterator<Item = &mut String> {
    let verification = match &mut event.detail {
        Some(Detail::Verification(verification)) => Some(verification),
        _ => None,
    };
    let reasons = verification.into_iter().flat_map(|verification| {
        let of_checks = verification.checks.iter_mut();
        let of_checks = of_checks.flat_map(|check| &mut check.reasons);
        of_checks.chain(&mut verification.reasons)
    });
    reasons.map(|reason| &mut reason.message)
}

/// Two parts of an event, as [`EncodedEvent`] has them, put together.
pub fn merge(event: &Bytes, personal_data: &Bytes) -> Bytes {
    if personal_data.is_empty() {
        return event.clone();
    }
    let texts = Personal::decode(personal_data.clone()).map_or(Vec::new(), |part| part.messages);
    if !texts.is_empty()
        && let Ok(mut whole) = VerificationEvent::decode(event.clone())
        && whole.merge(personal_data.clone()).is_ok()
    {
        for (message, text) in messages(&mut whole).zip(texts) {
            *message = text;
        }
        return whole.encode_to_vec().into();
    }
    [&event[..], personal_data].concat().into()
}

/// What stands in the place of personal data that was erased.
pub fn erased() -> Bytes {
    let erased = VerificationEvent {
        personal_data: Some(PersonalData {
            erased: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    erased.encode_to_vec().into()
}

/// Encodes an event, with its personal data apart.
pub fn encode(mut event: VerificationEvent) -> EncodedEvent {
    let mut texts: Vec<String> = messages(&mut event).map(std::mem::take).collect();
    if texts.iter().all(String::is_empty) {
        texts.clear();
    }
    let personal_data = Personal {
        personal_data: event.personal_data.take(),
        messages: texts,
    };
    EncodedEvent {
        event: event.encode_to_vec().into(),
        personal_data: personal_data.encode_to_vec().into(),
    }
}

/// A message that has no JSON: what a server sent is not what the contract says.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Bytes inside the message are not the message that they should be.
    #[error("a message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A value has no form in JSON, such as a time beyond the year 9999.
    #[error("a message cannot be written as JSON: {0}")]
    Write(#[from] serde_json::Error),
}

/// A message of `verdict.v1` in the canonical JSON mapping of protobuf, on one line.
pub fn to_json<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    json(message, CompactFormatter)
}

/// A message of `verdict.v1` in the canonical JSON mapping of protobuf, indented for people.
pub fn to_pretty_json<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    json(message, PrettyFormatter::new())
}

fn json<M: Message + Name>(message: &M, formatter: impl Formatter) -> Result<String, JsonError> {
    let descriptor = proto::DESCRIPTORS
        .get_message_by_name(&M::full_name())
        .expect("every message of verdict.v1 is in the descriptor set");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message)?;
    let mut out = Vec::with_capacity(1024);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    let options = SerializeOptions::new().use_proto_field_name(true);
    dynamic.serialize_with_options(&mut serializer, &options)?;
    Ok(String::from_utf8(out).expect("serde_json writes UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_of_a_name_is_its_uuid_v5() {
        let mut name = Name5::new("provider", "account");
        name.push(b"part");
        assert_eq!(
            name.uuid(&EVENT_NAMESPACE),
            Uuid::new_v5(&EVENT_NAMESPACE, &name.0)
        );
    }
}
