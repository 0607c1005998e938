//! The log: where events become durable and get their order.
//!
//! It knows no provider and reads no event. It takes byte strings and what it needs to recognize a redelivery, and
//! hands the byte strings out again, in order. The implementations pass one contract suite, `tests/it/log.rs`.

pub mod embedded;
pub mod memory;

mod cursor;
mod tail;

pub use cursor::{Cursor, CursorError};
pub use tail::Tail;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use uuid::Uuid;

use crate::event::EncodedEvent;

/// A place in a log. Positions grow with each event; 0 is the place before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// A log of events, with a quarantine beside it.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Names the log. A cursor of another log is of no use in this one.
    fn id(&self) -> Uuid;

    /// The newest events and the place where the log ends.
    fn tail(&self) -> &Tail;

    /// The place before the oldest event that is retained.
    fn start(&self) -> Position;

    /// Writes an event, unless it is there already, and returns when it is durable.
    ///
    /// Recognizing a redelivery, counting the revision and writing are one atomic step.
    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError>;

    /// Reads events in order, from the first one after `after`. Empty at the end of the log.
    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError>;

    /// The event with this id.
    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError>;

    /// The place before the first event that was received at `since` or later; the end of the log if there is none.
    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError>;

    /// The raw delivery behind the event at this place.
    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError>;

    /// Puts a delivery into the quarantine, unless it is there already, and returns when it is durable.
    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError>;

    /// Reads the quarantine in the order of arrival, from the first delivery after `after`, a
    /// [`StoredQuarantined::sequence`].
    async fn quarantined(
        &self,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError>;

    /// The quarantined delivery with this id.
    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError>;
}

/// An event to be written.
#[derive(Clone)]
pub struct NewEvent {
    /// Identifies the event. A second event with the same id is a redelivery or a conflict, never written.
    pub event_id: Uuid,
    /// The SHA-256 of the event's content, which tells a redelivery from a conflict.
    pub content_sha256: [u8; 32],
    /// The verification that the event belongs to.
    pub verification: Option<[u8; 32]>,
    /// The provider's time of the event.
    pub occurred_at: Option<Timestamp>,
    /// When the event was received.
    pub received_at: Timestamp,
    /// The event, without the fields that only the log can know.
    pub encoded: EncodedEvent,
    /// The raw delivery.
    pub delivery: Bytes,
}

/// What became of an event.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It was written here.
    New(Position),
    /// It has been here all along.
    Duplicate(Position),
    /// An event with the same id and other content is here. Nothing was written.
    Conflict(Position),
}

impl Appended {
    /// An event whose id is here already.
    fn again(position: Position, same_content: bool) -> Self {
        if same_content {
            Self::Duplicate(position)
        } else {
            Self::Conflict(position)
        }
    }
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Where it lies.
    pub position: Position,
    /// The whole event, its personal data apart.
    pub encoded: EncodedEvent,
}

impl StoredEvent {
    fn size_bytes(&self) -> usize {
        self.encoded.event.len() + self.encoded.personal_data.len()
    }
}

/// A delivery to be quarantined.
#[derive(Clone)]
pub struct NewQuarantined {
    /// Identifies the delivery. A second one with the same id is not written.
    pub id: Uuid,
    /// What operators are told about it.
    pub summary: Bytes,
    /// The raw delivery.
    pub delivery: Bytes,
}

/// A quarantined delivery.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredQuarantined {
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// What operators are told about it.
    pub summary: Bytes,
    /// The raw delivery.
    pub delivery: Bytes,
}

impl fmt::Debug for StoredQuarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredQuarantined")
            .field("sequence", &self.sequence)
            .field("delivery_bytes", &self.delivery.len())
            .finish_non_exhaustive()
    }
}

impl StoredQuarantined {
    fn size_bytes(&self) -> usize {
        self.summary.len() + self.delivery.len()
    }
}

/// How much to read at once: whichever of the two is reached first, but never less than one record.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// The most records.
    pub records: usize,
    /// The most bytes, to be exceeded by the last record at most.
    pub bytes: usize,
}

impl ReadLimit {
    /// Takes records until the limit is reached.
    fn take<T, E>(
        self,
        records: impl Iterator<Item = Result<T, E>>,
        size_bytes: impl Fn(&T) -> usize,
    ) -> Result<Vec<T>, E> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for record in records.take(self.records.max(1)) {
            let record = record?;
            bytes += size_bytes(&record);
            taken.push(record);
            if bytes >= self.bytes {
                break;
            }
        }
        Ok(taken)
    }
}

/// Why an event could not be written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The log cannot write. The event may or may not be in it; it is not durable.
    #[error("the log cannot write: {0}")]
    Unavailable(String),
    /// The log's writer has ended.
    #[error("the log's writer has ended")]
    Closed,
}

/// Why the log could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The log cannot read.
    #[error("the log cannot read: {0}")]
    Unavailable(String),
    /// An event that must be there is not, or cannot be read.
    #[error("the log is damaged at position {}", .0.0)]
    Damaged(Position),
}

/// What the log remembers of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct VerificationState {
    revision: u64,
    /// The latest `occurred_at` so far, as seconds and nanoseconds.
    latest: Option<(i64, i32)>,
}

impl VerificationState {
    /// The state after one more event, and whether that event is late.
    fn next(self, occurred_at: Option<&Timestamp>) -> (Self, bool) {
        let occurred_at = occurred_at.map(|time| (time.seconds, time.nanos));
        let late = occurred_at.is_some() && occurred_at < self.latest;
        let next = Self {
            revision: self.revision + 1,
            latest: self.latest.max(occurred_at),
        };
        (next, late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_late_when_a_later_one_came_first() {
        let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
        let mut state = VerificationState::default();
        let mut late = |occurred_at: Option<Timestamp>| {
            let late;
            (state, late) = state.next(occurred_at.as_ref());
            (state.revision, late)
        };
        assert_eq!(late(at(10)), (1, false));
        assert_eq!(late(at(5)), (2, true));
        assert_eq!(late(None), (3, false));
        assert_eq!(late(at(10)), (4, false));
        assert_eq!(late(at(11)), (5, false));
        assert_eq!(late(at(10)), (6, true));
    }
}
