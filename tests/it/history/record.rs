//! A history: what every client asked and was told, in which order, and what was done to the server.
//!
//! It is compact, because a run of a million operations is kept in memory whole: things are numbered, and a number is
//! an index into one of the lists.

use tonic::Code;

use super::content::{Content, Filter};

/// The order of all that happened: one number for each invocation and each completion, never given twice.
pub(crate) type Moment = u64;

/// An event, as its sender numbers it.
pub(crate) type EventNo = u32;

/// Something that was read: an event with the cursor beside it.
pub(crate) type ItemNo = u32;

/// A cursor. It is opaque: all that is known of it is what it came with.
pub(crate) type CursorNo = u32;

/// A consumer that commits.
pub(crate) type ConsumerNo = u32;

/// All that happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// What each event says: as it is sent, and as it is sent by mistake with other content. The same where there is no
    /// such mistake.
    pub(crate) events: Vec<[Content; 2]>,
    pub(crate) items: Vec<Item>,
    pub(crate) ingests: Vec<Ingest>,
    pub(crate) reads: Vec<Read>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) commits: Vec<Commit>,
    /// In order.
    pub(crate) downtimes: Vec<Downtime>,
    /// The cursor of the place before the first event.
    pub(crate) origin: Option<CursorNo>,
    /// What was read at the end, from the first event to the last.
    pub(crate) log: Vec<ItemNo>,
}

/// An event as a client read it. The same event with the same cursor is the same item, however often it is read.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Which event it is, and what it says. `None` when no client can have sent this.
    pub(crate) sent: Option<(EventNo, Content)>,
    pub(crate) event_id: u128,
    pub(crate) cursor: CursorNo,
    pub(crate) revision: u64,
    pub(crate) late: bool,
    /// Nanoseconds since 1970.
    pub(crate) received_at: i64,
    /// Of the whole event, so that a difference in whatever field is seen.
    pub(crate) digest: u64,
    /// When a client had it for the first time.
    pub(crate) first_seen: Moment,
}

/// From invocation to completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) invoked: Moment,
    pub(crate) completed: Moment,
}

impl Span {
    /// Whether one had ended before the other began.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        self.completed < other.invoked
    }
}

/// One delivery of an event.
#[derive(Clone, Debug)]
pub(crate) struct Ingest {
    pub(crate) event: EventNo,
    /// Which of the event's two contents.
    pub(crate) variant: usize,
    pub(crate) span: Span,
    pub(crate) answer: Answer,
}

/// What the sender was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accepted(Place),
    Duplicate(Place),
    Quarantined,
    Ignored,
    Failed(Failure),
}

impl Answer {
    /// The place that a sender was told, which is a promise that the event is there.
    pub(crate) fn place(&self) -> Option<Place> {
        match self {
            Self::Accepted(place) | Self::Duplicate(place) => Some(*place),
            _ => None,
        }
    }
}

/// Where an event lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) event_id: u128,
    pub(crate) cursor: CursorNo,
}

/// How a call ends that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody knows whether the server did it: the connection broke.
    Unknown,
    /// The server refused.
    Refused(Code),
    /// Nothing came for longer than anything takes.
    Hung,
}

impl Failure {
    pub(crate) fn of(status: &tonic::Status) -> Self {
        match status.code() {
            // What tonic makes of a connection that breaks or cannot be made.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => Self::Unknown,
            code => Self::Refused(code),
        }
    }
}

/// One event asked for by its id.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) event: EventNo,
    pub(crate) span: Span,
    /// The item; `None` when the server says that there is no such event.
    pub(crate) found: Result<Option<ItemNo>, Failure>,
}

/// One subscription, from the call to its end.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) start: Start,
    pub(crate) filter: Filter,
    pub(crate) stop_when_caught_up: bool,
    pub(crate) span: Span,
    /// When the server had answered the call. `None` when it did not.
    pub(crate) opened: Option<Moment>,
    pub(crate) messages: Vec<Message>,
    pub(crate) end: End,
}

/// Where a stream is to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Earliest,
    Latest,
    /// After a cursor.
    After(CursorNo),
    /// After the last cursor of an earlier stream of the same client.
    Resume(CursorNo),
    /// At the first event received at this time, in nanoseconds since 1970, or later.
    Since(i64),
    Committed(ConsumerNo),
}

/// One message of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Event(ItemNo),
    CaughtUp(CursorNo),
    /// A heartbeat, or the word that the subscriber fell behind.
    Sign(CursorNo),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client had enough.
    Left,
    /// The server ended it without an error.
    Done,
    Failed(Failure),
}

/// One commit of a consumer's cursor.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) consumer: ConsumerNo,
    pub(crate) cursor: CursorNo,
    pub(crate) span: Span,
    pub(crate) answer: CommitAnswer,
}

/// What a consumer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitAnswer {
    Stored,
    /// The cursor lies before the last commit.
    Behind,
    Failed(Failure),
}

/// From the kill of the server to the moment at which its successor took connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downtime {
    pub(crate) killed: Moment,
    pub(crate) restarted: Moment,
}
