//! What lies in the keyspaces.

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;

use crate::{
    event::EncodedEvent,
    log::{Position, StoredEvent, StoredQuarantined, VerificationState},
};

/// An event.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct EventRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) event: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) personal_data: Bytes,
    /// The latest time of receipt of this event and all before it.
    #[prost(message, optional, tag = "3")]
    pub(super) latest_received_at: Option<Timestamp>,
}

impl EventRecord {
    pub(super) fn stored(self, position: Position) -> StoredEvent {
        StoredEvent {
            position,
            encoded: EncodedEvent {
                event: self.event,
                personal_data: self.personal_data,
            },
        }
    }

    pub(super) fn latest_received_at(&self) -> (i64, i32) {
        let time = self.latest_received_at.unwrap_or_default();
        (time.seconds, time.nanos)
    }
}

/// Where the event with an id lies, and what it says.
#[derive(Clone, Copy)]
pub(super) struct IdRecord {
    pub(super) position: Position,
    pub(super) content_sha256: [u8; 32],
}

impl IdRecord {
    pub(super) fn encode(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.content_sha256);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, content_sha256) = bytes.split_first_chunk()?;
        Some(Self {
            position: Position(u64::from_be_bytes(*position)),
            content_sha256: content_sha256.try_into().ok()?,
        })
    }
}

/// What is remembered of a verification.
#[derive(Clone, PartialEq, Message)]
pub(super) struct VerificationRecord {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(message, optional, tag = "2")]
    latest_occurred_at: Option<Timestamp>,
}

impl From<VerificationState> for VerificationRecord {
    fn from(state: VerificationState) -> Self {
        Self {
            revision: state.revision,
            latest_occurred_at: state
                .latest
                .map(|(seconds, nanos)| Timestamp { seconds, nanos }),
        }
    }
}

impl From<VerificationRecord> for VerificationState {
    fn from(record: VerificationRecord) -> Self {
        Self {
            revision: record.revision,
            latest: record
                .latest_occurred_at
                .map(|time| (time.seconds, time.nanos)),
        }
    }
}

/// A quarantined delivery.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct QuarantineRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) summary: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) delivery: Bytes,
}

impl QuarantineRecord {
    pub(super) fn stored(self, sequence: u64) -> StoredQuarantined {
        StoredQuarantined {
            sequence,
            summary: self.summary,
            delivery: self.delivery,
        }
    }
}

/// A number that is a key.
pub(super) fn number(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}
