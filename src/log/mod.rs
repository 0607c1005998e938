//! The log: where events become durable and get their order.
//!
//! It knows no provider and reads no event. It takes byte strings and what it needs to recognize a redelivery, and
//! hands the byte strings out again, in order. The implementations pass one contract suite, `tests/it/log.rs`.

pub mod disk;
pub mod embedded;
pub mod memory;

mod consumers;
mod cursor;
mod measures;
mod tail;
mod verification;

pub use cursor::{Cursor, CursorError};
pub use measures::{DiskSpace, Measures};
pub use tail::Tail;
pub use verification::{Origin, VerificationState};

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::event::EncodedEvent;

/// A place in a log. Positions grow with each event; 0 is the place before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// A log of events, with the quarantines and the consumers beside it.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// What callers see of a position: it names this log too.
    fn cursor(&self, position: Position) -> Cursor;

    /// The position of a cursor that can be resumed after.
    fn resolve(&self, cursor: &Cursor) -> Result<Position, OutOfRange>;

    /// How many events lie behind a cursor.
    fn lag(&self, cursor: &Cursor) -> u64 {
        let end = self.tail().end();
        let behind = match self.resolve(cursor) {
            Ok(position) => position,
            Err(OutOfRange::Ahead) => end,
            // Everything that there is lies ahead of it.
            Err(OutOfRange::NotRetained | OutOfRange::OtherLog) => self.start(),
        };
        end.0.saturating_sub(behind.0)
    }

    /// The newest events and the place where the log ends.
    fn tail(&self) -> &Tail;

    /// The place before the oldest event that is retained.
    fn start(&self) -> Position;

    /// Whether the log can write, and the news of it.
    fn health(&self) -> watch::Receiver<Health>;

    /// How large everything is.
    fn stats(&self) -> Stats;

    /// What the writer measures; `None` of a log that has no disk.
    fn measures(&self) -> Option<Measures> {
        None
    }

    /// The room for each of its directories; nothing of a log that has none, or whose disk does not tell. Blocks.
    fn disk_space(&self) -> Vec<DiskSpace> {
        Vec::new()
    }

    /// Writes an event, unless it is there already, and returns when it is durable.
    ///
    /// Recognizing a redelivery, counting the revision and writing are one atomic step.
    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError>;

    /// Reads events in order, from the first one after `after`. Empty at the end of the log.
    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError>;

    /// Looks for events that are wanted, in order, from the first one after `after`. It may look at many more than it finds,
    /// and finds none at the end of the log. What it can tell to be unwanted without reading it is not read, and damage to
    /// that is not noticed.
    async fn search(
        &self,
        after: Position,
        wanted: &Wanted,
        limit: ReadLimit,
    ) -> Result<Found, ReadError> {
        let mut events = self.read(after, limit).await?;
        let to = events.last().map_or(after, |last| last.position);
        events.retain(|event| wanted.matches(&event.event));
        Ok(Found { events, to })
    }

    /// The personal data of an event that was read: an encoded event that holds this and nothing else. Empty when there is
    /// none.
    async fn personal_data(&self, event: &StoredEvent) -> Result<Bytes, ReadError>;

    /// Makes the personal data and the raw deliveries of events unreadable for good, and returns when that is durable. Others
    /// of the same subject may be erased with them. What cannot be erased because it is not encrypted is told by an error
    /// after all else was erased.
    async fn erase(&self, events: Vec<Position>) -> Result<(), EraseError>;

    /// The event with this id.
    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError>;

    /// The place before the first event that was received at `since` or later; the end of the log if there is none.
    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError>;

    /// The raw delivery behind the event at this place. `None` when it is no longer retained, was erased, or its key is gone.
    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError>;

    /// Where a verification stands.
    async fn verification(&self, key: [u8; 32]) -> Result<Option<VerificationState>, ReadError>;

    /// The event at `from` and those before it of the same verification, newest first: at most `limit` of them, and one at
    /// least.
    async fn history(&self, from: Position, limit: usize) -> Result<History, ReadError>;

    /// Stores how far a consumer has come, and returns when that is durable.
    async fn commit(&self, commit: Commit) -> Result<(), CommitError>;

    /// Forgets a consumer, if there is one, and returns when that is durable.
    async fn forget(&self, consumer: String) -> Result<(), AppendError>;

    /// Every consumer that has committed, by name.
    fn consumers(&self) -> Vec<Consumer>;

    /// Puts a delivery into its quarantine, unless it is there already. Returns when that is durable; with
    /// [`QuarantineKind::Unverified`], for which nobody was promised anything, at once.
    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError>;

    /// Reads a quarantine in the order of arrival, from the first delivery after `after`, a
    /// [`StoredQuarantined::sequence`].
    async fn quarantined(
        &self,
        kind: QuarantineKind,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError>;

    /// The quarantined delivery with this id, of whatever kind.
    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError>;

    /// Takes a delivery out of its quarantine for good, and returns when that is durable. Says whether it was there.
    async fn release(&self, id: Uuid) -> Result<bool, AppendError>;
}

/// Which events are wanted.
#[derive(Clone)]
pub struct Wanted {
    matches: Arc<Matches>,
    /// Numbers that say nothing to the log. An event that is wanted has one of each of these lists among its marks.
    marks: Arc<[Vec<u64>]>,
}

type Matches = dyn Fn(&[u8]) -> bool + Send + Sync;

impl Wanted {
    /// Events for which a function returns true. Each of them must have a mark of each of the lists; an event that cannot be
    /// read has any.
    pub(crate) fn new(
        matches: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        marks: Arc<[Vec<u64>]>,
    ) -> Self {
        Self {
            matches: Arc::new(matches),
            marks,
        }
    }

    /// Whether an encoded event is wanted.
    pub fn matches(&self, event: &[u8]) -> bool {
        (self.matches)(event)
    }
}

/// What a search has found.
#[derive(Debug)]
pub struct Found {
    /// Events that are wanted.
    pub events: Vec<StoredEvent>,
    /// The last event that was looked at or passed over: there are no others up to here.
    pub to: Position,
}

/// Why a cursor cannot be resumed after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfRange {
    /// Of another log, or of a part of this one that was lost when it was restored from a copy.
    #[error("the cursor is of another log")]
    OtherLog,
    /// What follows it is no longer retained.
    #[error("the cursor is older than what is retained")]
    NotRetained,
    /// The log does not reach so far.
    #[error("the cursor is ahead of the log")]
    Ahead,
}

/// Whether a log can write. It can be read in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Well,
    /// It cannot now, and tries again by itself. Why.
    Unwritable(String),
    /// It never will again in this process: nobody knows what the disk holds. Why.
    Failed(String),
}

/// How large a log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The version of the stored format; 0 in memory.
    pub format: u32,
    /// Events and raw deliveries, in bytes.
    pub size_bytes: u64,
    /// The genuine deliveries in quarantine.
    pub genuine: QuarantineStats,
    /// The deliveries in quarantine that were not proved genuine.
    pub unverified: QuarantineStats,
    /// The encryption; `None` in memory.
    pub encryption: Option<EncryptionStats>,
}

/// How a log is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionStats {
    /// Whether what is written now is encrypted.
    pub enabled: bool,
    /// The id of the master key that wraps new keys. Empty when there is none.
    pub master_key_id: String,
    /// How many key files there are.
    pub key_files: u64,
    /// How many of them are still wrapped by an older master key.
    pub to_rewrap: u64,
    /// How many segments were written with keys that are gone.
    pub segments_without_keys: u64,
}

/// How full a quarantine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuarantineStats {
    /// Deliveries.
    pub deliveries: u64,
    /// Their size in bytes.
    pub size_bytes: u64,
    /// How many have made room for others or grown too old, since the log was opened.
    pub dropped: u64,
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
    /// The subject that the event is about. What identifies it is erased together.
    pub subject: [u8; 32],
    /// The provider's time of the event.
    pub occurred_at: Option<Timestamp>,
    /// When the event was received.
    pub received_at: Timestamp,
    /// How the event comes to be appended now.
    pub origin: Origin,
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
#[derive(Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Where it lies.
    pub position: Position,
    /// The encoded event, without personal data.
    pub event: Bytes,
    /// Its personal data, which only the log can open, by [`EventLog::personal_data`].
    pub personal_data: Sealed,
}

/// Personal data as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    bytes: Bytes,
    /// The slot of the key; 0 if the bytes are not encrypted.
    slot: u32,
}

impl fmt::Debug for StoredEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredEvent")
            .field("position", &self.position)
            .field("event_bytes", &self.event.len())
            .field("personal_data", &self.personal_data)
            .finish()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.bytes.len())
    }
}

impl Sealed {
    /// How many bytes are stored. 0 when there is no personal data.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl StoredEvent {
    fn size_bytes(&self) -> usize {
        self.event.len() + self.personal_data.size_bytes()
    }
}

/// One page of the history of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The events, newest first.
    pub events: Vec<StoredEvent>,
    /// Where the history goes on, if it does.
    pub next: Option<Position>,
}

/// How far a consumer has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// The cursor that it has committed.
    pub cursor: Cursor,
    /// When it committed.
    pub committed_at: Timestamp,
}

/// How far a consumer is to be said to have come.
#[derive(Clone, Debug)]
pub struct Commit {
    /// What to store, in place of what was stored of this consumer before.
    pub consumer: Consumer,
    /// Whether the cursor may lie before the one that was committed before.
    pub force: bool,
}

/// Why a commit was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The cursor lies before the one that was committed before.
    #[error("the consumer has committed a later cursor")]
    Behind,
    /// The log keeps no more names.
    #[error("{MAX_CONSUMERS} consumers are known already")]
    TooMany,
    /// Not stored.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// How many consumers a log keeps.
pub const MAX_CONSUMERS: usize = 1000;

/// The two quarantines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuarantineKind {
    /// Genuine deliveries.
    Genuine,
    /// Deliveries that were not proved genuine. A small space: the oldest make room for new ones.
    Unverified,
}

/// A delivery to be quarantined.
#[derive(Clone)]
pub struct NewQuarantined {
    /// Identifies the delivery. A second one with the same id is not written.
    pub id: Uuid,
    /// Into which quarantine.
    pub kind: QuarantineKind,
    /// When the delivery was received.
    pub received_at: Timestamp,
    /// What operators are told about it.
    pub summary: Bytes,
    /// The raw delivery.
    pub delivery: Bytes,
}

/// A quarantined delivery.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredQuarantined {
    /// In which quarantine.
    pub kind: QuarantineKind,
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// What operators are told about it.
    pub summary: Bytes,
    /// The raw delivery. Empty when its key is gone.
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
            match record {
                Ok(record) => {
                    bytes += size_bytes(&record);
                    taken.push(record);
                }
                // What lies before can be read; whoever comes again is told.
                Err(_) if !taken.is_empty() => break,
                Err(error) => return Err(error),
            }
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

/// Why events were not erased.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EraseError {
    /// So many of them are not encrypted, and go only with the retention of their segments. All others are erased.
    #[error("{0} of the events are not encrypted")]
    NotEncrypted(u64),
    /// Nobody knows which of them are erased. Erasing can be repeated.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why the log could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The log cannot read.
    #[error("the log cannot read: {0}")]
    Unavailable(String),
    /// What was to be read is older than what is retained.
    #[error("older than what is retained")]
    NotRetained,
    /// Something that must be there is not, or is not what was written.
    #[error("the log is damaged at position {}: {place}", position.0)]
    Damaged {
        /// The event.
        position: Position,
        /// Where it lies, and what is wrong, for operators.
        place: String,
    },
}
