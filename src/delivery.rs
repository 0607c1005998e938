//! Deliveries as they are stored: the evidence behind each event, and what events can be made from again.

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp as ProtoTimestamp;

use crate::{
    proto::{Delivery, Header},
    provider::{
        RawWebhook, VerifiedWebhook,
        signature::{self, VerifyError},
    },
    source::Source,
};

/// Headers that belong to the hop before us and may hold its credentials.
const HOP_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The evidence of a genuine webhook.
pub(crate) fn genuine(
    source: &Source,
    webhook: &VerifiedWebhook,
    received_at: ProtoTimestamp,
) -> Delivery {
    Delivery {
        signature_scheme: webhook.scheme().name.to_owned(),
        secret_id: webhook.secret_id().to_owned(),
        ..unverified(source, webhook.raw(), received_at)
    }
}

/// The evidence of a webhook that was not proved genuine.
pub(crate) fn unverified(
    source: &Source,
    webhook: &RawWebhook,
    received_at: ProtoTimestamp,
) -> Delivery {
    Delivery {
        headers: headers(webhook)
            .map(|(name, value)| Header {
                name: name.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        ..body(source, webhook, received_at)
    }
}

/// The evidence of a genuine webhook, encoded as [`genuine`] is. The headers, of which there are many, are written from where
/// they lie.
pub(crate) fn encode(
    source: &Source,
    webhook: &VerifiedWebhook,
    received_at: ProtoTimestamp,
) -> Bytes {
    let before = body(source, webhook.raw(), received_at);
    let after = Delivery {
        signature_scheme: webhook.scheme().name.to_owned(),
        secret_id: webhook.secret_id().to_owned(),
        ..Default::default()
    };
    let field_len = |field: &str| match field.len() {
        0 => 0,
        len => 1 + prost::length_delimiter_len(len) + len,
    };
    let header_len = |(name, value)| field_len(name) + field_len(value);
    let headers_len: usize = headers(webhook.raw())
        .map(header_len)
        .map(|len| 1 + prost::length_delimiter_len(len) + len)
        .sum();

    let len = before.encoded_len() + headers_len + after.encoded_len();
    let mut out = Vec::with_capacity(len);
    before.encode_raw(&mut out);
    for header in headers(webhook.raw()) {
        put_key(HEADERS, header_len(header), &mut out);
        for (field, text) in [(NAME, header.0), (VALUE, header.1)] {
            if !text.is_empty() {
                put_key(field, text.len(), &mut out);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    after.encode_raw(&mut out);
    out.into()
}

/// The numbers of `Delivery.headers`, `Header.name` and `Header.value`.
const HEADERS: u8 = 5;
const NAME: u8 = 1;
const VALUE: u8 = 2;

/// Begins a field that is as long as this.
fn put_key(field: u8, len: usize, out: &mut Vec<u8>) {
    const LENGTH_DELIMITED: u8 = 2;
    out.push(field << 3 | LENGTH_DELIMITED);
    prost::encode_length_delimiter(len, out).expect("a vector grows as it must");
}

/// A delivery without headers and without what proved it.
fn body(source: &Source, webhook: &RawWebhook, received_at: ProtoTimestamp) -> Delivery {
    Delivery {
        provider: source.provider.name().to_owned(),
        account: source.account.clone(),
        received_at: Some(received_at),
        payload: webhook.payload.clone(),
        ..Default::default()
    }
}

/// The headers that belong to a webhook.
fn headers(webhook: &RawWebhook) -> impl Iterator<Item = (&str, &str)> {
    let of_hop = |name: &str| HOP_HEADERS.iter().any(|hop| hop.eq_ignore_ascii_case(name));
    let headers = webhook.headers.iter();
    headers.filter(move |(name, _)| !of_hop(name))
}

/// The SHA-256 of everything that was delivered, so that whoever changes one byte of payload or headers gets another.
pub(crate) fn sha256(delivery: &Delivery) -> [u8; 32] {
    let delivered = Delivery {
        received_at: None,
        ..delivery.clone()
    };
    signature::sha256(&delivered.encode_to_vec())
}

/// A stored delivery cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored delivery cannot be decoded")]
pub(crate) struct Undecodable;

/// Reads a delivery, and when it was received.
pub(crate) fn decode(stored: &Bytes) -> Result<(Delivery, ProtoTimestamp), Undecodable> {
    let delivery = Delivery::decode(stored.clone()).map_err(|_| Undecodable)?;
    let received_at = delivery.received_at.ok_or(Undecodable)?;
    Ok((delivery, received_at))
}

/// The webhook of a stored delivery. Nothing in it can be trusted.
pub(crate) fn raw(delivery: Delivery) -> RawWebhook {
    RawWebhook {
        payload: delivery.payload,
        headers: delivery
            .headers
            .into_iter()
            .map(|header| (header.name, header.value))
            .collect(),
    }
}

/// The webhook of a stored delivery that was proved genuine when it was received. It is not verified again: its secret
/// may be gone by now, and its time is past.
pub(crate) fn verified(
    source: &Source,
    mut delivery: Delivery,
) -> Result<VerifiedWebhook, VerifyError> {
    let mut schemes = source.provider.schemes().iter();
    let scheme = schemes
        .find(|scheme| scheme.name == delivery.signature_scheme)
        .ok_or(VerifyError::Missing("the scheme that proved it genuine"))?;
    let secret_id = std::mem::take(&mut delivery.secret_id);
    VerifiedWebhook::assume_verified(raw(delivery), scheme, secret_id)
}
