//! What the heads of records hold.

use std::io;

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::log::{
    Origin, Position, Sealed, StoredEvent, VerificationState,
    verification::{Member, Time},
};

/// An event. Its raw delivery is the body of the record.
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
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) event_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub(super) content_sha256: Bytes,
    #[prost(message, optional, tag = "6")]
    pub(super) verification: Option<PlaceInVerification>,
    /// The slot of the key that personal data and raw delivery are sealed with; 0 if they are not.
    #[prost(uint32, tag = "7")]
    pub(super) slot: u32,
    /// See [`SealedRecord`].
    #[prost(uint32, tag = "15")]
    pub(super) slots: u32,
}

/// What all records have that something in their segment is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct SealedRecord {
    /// How many slots the key file of the segment had when the record was written. With less, it is not the same file.
    #[prost(uint32, tag = "15")]
    pub(super) slots: u32,
}

/// Where an event stands among those of its verification.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PlaceInVerification {
    /// What tells the verification from others.
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    /// The position of the event before; 0 if there is none.
    #[prost(uint64, tag = "2")]
    pub(super) previous: u64,
    /// Where the verification stands after the event.
    #[prost(message, optional, tag = "3")]
    pub(super) state: Option<StateRecord>,
    /// What the event itself says of its place, so that a correction can put it elsewhere.
    #[prost(message, optional, tag = "4")]
    pub(super) occurred_at: Option<Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub(super) received_at: Option<Timestamp>,
    #[prost(bool, tag = "6")]
    pub(super) redriven: bool,
    /// The id of the event that this one corrects. Empty if it corrects none.
    #[prost(bytes = "bytes", tag = "7")]
    pub(super) corrects: Bytes,
}

impl PlaceInVerification {
    pub(super) fn new(
        key: &[u8; 32],
        before: VerificationState,
        after: VerificationState,
        event: &Member,
    ) -> Self {
        Self {
            key: Bytes::copy_from_slice(key),
            previous: before.last.0,
            state: Some(after.into()),
            occurred_at: event.occurred_at.map(to_timestamp),
            received_at: Some(to_timestamp(event.received_at)),
            redriven: event.origin == Origin::Redriven,
            corrects: match event.origin {
                Origin::Correction(corrected) => Bytes::copy_from_slice(corrected.as_bytes()),
                Origin::Received | Origin::Redriven => Bytes::new(),
            },
        }
    }
}

impl EventRecord {
    /// Appends the encoded record to a buffer.
    pub(super) fn write(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.encode(buffer).map_err(io::Error::other)
    }

    /// The event as one of its verification.
    pub(super) fn member(&self, position: Position) -> Option<Member> {
        let place = self.verification.as_ref()?;
        Some(Member {
            id: Uuid::from_slice(&self.event_id).ok()?,
            position,
            origin: match (place.redriven, place.corrects.is_empty()) {
                (_, false) => Origin::Correction(Uuid::from_slice(&place.corrects).ok()?),
                (true, true) => Origin::Redriven,
                (false, true) => Origin::Received,
            },
            occurred_at: place.occurred_at.map(from_timestamp),
            received_at: from_timestamp(place.received_at?),
        })
    }

    pub(super) fn stored(self, position: Position) -> StoredEvent {
        StoredEvent {
            position,
            event: self.event,
            personal_data: Sealed {
                bytes: self.personal_data,
                slot: self.slot,
            },
        }
    }

    pub(super) fn latest_received_at(&self) -> Time {
        let time = self.latest_received_at.unwrap_or_default();
        (time.seconds, time.nanos)
    }
}

/// Where a verification stands.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StateRecord {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(uint64, tag = "2")]
    pub(super) last: u64,
    #[prost(uint64, tag = "3")]
    current: u64,
    #[prost(bool, tag = "4")]
    ordered_by_log: bool,
    #[prost(message, optional, tag = "5")]
    current_occurred_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    current_received_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    latest_occurred_at: Option<Timestamp>,
    #[prost(bool, tag = "8")]
    untimed: bool,
}

fn to_timestamp((seconds, nanos): Time) -> Timestamp {
    Timestamp { seconds, nanos }
}

fn from_timestamp(timestamp: Timestamp) -> Time {
    (timestamp.seconds, timestamp.nanos)
}

impl From<VerificationState> for StateRecord {
    fn from(state: VerificationState) -> Self {
        Self {
            revision: state.revision,
            last: state.last.0,
            current: state.current.0,
            ordered_by_log: state.ordered_by_log,
            current_occurred_at: state.current_occurred_at.map(to_timestamp),
            current_received_at: Some(to_timestamp(state.current_received_at)),
            latest_occurred_at: state.latest_occurred_at.map(to_timestamp),
            untimed: state.untimed,
        }
    }
}

impl StateRecord {
    pub(super) fn into_state(self) -> Option<VerificationState> {
        Some(VerificationState {
            revision: self.revision,
            last: Position(self.last),
            current: Position(self.current),
            ordered_by_log: self.ordered_by_log,
            current_occurred_at: self.current_occurred_at.map(from_timestamp),
            current_received_at: from_timestamp(self.current_received_at?),
            latest_occurred_at: self.latest_occurred_at.map(from_timestamp),
            untimed: self.untimed,
        })
    }
}

/// Something that happened to a quarantine. The raw delivery of one that came in is the body of the record.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct QuarantineRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) id: Bytes,
    /// What operators are told about it. Empty when the delivery was taken out.
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) summary: Bytes,
    /// The delivery with this id was taken out.
    #[prost(bool, tag = "3")]
    pub(super) released: bool,
    /// The slot of the key that the raw delivery is sealed with; 0 if it is not.
    #[prost(uint32, tag = "4")]
    pub(super) slot: u32,
    /// See [`SealedRecord`].
    #[prost(uint32, tag = "15")]
    pub(super) slots: u32,
}

/// What a log says of itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetaRecord {
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) id: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub(super) openings: Vec<OpeningRecord>,
    /// How the log was closed. Absent while it is open, and after it was not closed.
    #[prost(message, optional, tag = "4")]
    pub(super) closed: Option<ClosedRecord>,
    /// The last event that retention has deleted, or was about to.
    #[prost(uint64, tag = "5")]
    pub(super) start: u64,
    /// The same of the quarantine of genuine deliveries: the last record.
    #[prost(uint64, tag = "6")]
    pub(super) genuine_start: u64,
}

/// The last records of a log that was closed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct ClosedRecord {
    #[prost(uint64, tag = "1")]
    pub(super) events: u64,
    #[prost(uint64, tag = "2")]
    pub(super) genuine: u64,
}

/// One time that the log was opened.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OpeningRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) id: Bytes,
    /// The end of the log at that time.
    #[prost(uint64, tag = "2")]
    pub(super) after: u64,
}

/// The consumers.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConsumersRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) consumers: Vec<ConsumerRecord>,
}

/// How far a consumer has come.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConsumerRecord {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) cursor: String,
    #[prost(message, optional, tag = "3")]
    pub(super) committed_at: Option<Timestamp>,
}
