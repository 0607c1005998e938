//! The checker: a pure function from a history to what is wrong with it.
//!
//! It asks whether what the clients saw can have happened if verdict keeps its promises. It does not know how verdict
//! works, and cannot read a cursor: a cursor is whatever came with the events that carried it.

mod answers;
mod facts;
mod log;
mod streams;

use self::facts::Facts;
use super::record::{EventNo, Failure, History, ItemNo, Span};

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) evidence: Evidence,
}

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// An acknowledged event is not in the log.
    Lost,
    /// An event was accepted although it was in the log.
    AcceptedAgain,
    /// An event was a duplicate although nobody can have written it before.
    DuplicateOfNothing,
    /// A delivery was quarantined although nothing contradicts it, or was not although its event has other content.
    Misjudged,
    /// An answer names another event or place than the event's.
    WrongPlace,

    /// The log holds what nobody sent.
    Invented,
    /// The log holds an event twice.
    RepeatedInLog,
    /// An event lies before one that was acknowledged before it was sent.
    OutOfOrder,
    /// The revision of an event does not follow its predecessor's.
    RevisionHole,
    /// An event is late that is not, or is not although it is.
    WrongLate,

    /// A client saw an event that is not in the log.
    Vanished,
    /// A client saw an event that is different in the log.
    Changed,
    /// A cursor belongs to another event than before.
    Moved,
    /// An acknowledged event was asked for by its id and not found.
    ReadMissed,

    /// A stream held an event twice.
    Repeated,
    /// A stream was in another order than the log.
    Reordered,
    /// A stream skipped an event.
    Gap,
    /// A stream that went on after the last cursor of an earlier one skipped an event.
    GapAfterReconnect,
    /// A filtered stream skipped an event that matches.
    FilterMissed,
    /// A filtered stream held an event that does not match.
    FilterLeaked,
    /// A stream began earlier than it was asked to.
    BeforeStart,
    /// A stream had caught up before an event that was acknowledged before it began.
    CaughtUpEarly,
    /// The cursor of a stream went back.
    CursorBehind,
    /// A stream gave a cursor that is no event's.
    UnknownCursor,
    /// A stream ended that was to go on.
    EndedUnasked,
    /// A stream went on that was to end.
    NotStopped,

    /// A stream did not begin after the consumer's last commit.
    CommitIgnored,
    /// A commit behind the last one was stored.
    CommitMovedBack,
    /// A commit was refused that is not behind.
    CommitRefused,

    /// A call failed although the server was not killed.
    FailedWithoutFault,
    /// The server refused a good call.
    Refused,
    /// A call did not end.
    Hung,
}

/// Where to look. The numbers are indexes into the lists of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    Ingest(usize),
    Read(usize),
    Commit(usize),
    Item(ItemNo),
    /// An index of the log.
    Log(usize),
    Stream {
        stream: usize,
        /// At which message, if not at its end.
        message: usize,
        /// The event that is too much or too little.
        event: Option<EventNo>,
    },
}

/// Everything that is wrong with a history.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let facts = Facts::new(history, &mut violations);
    log::check(&facts, &mut violations);
    answers::check(&facts, &mut violations);
    streams::check(&facts, &mut violations);
    violations
}

impl History {
    /// What is wrong with a call that failed in this way, if anything is: only a kill excuses a failure.
    fn fault(&self, span: &Span, failure: Failure) -> Option<Kind> {
        match failure {
            Failure::Refused(_) => Some(Kind::Refused),
            Failure::Hung => Some(Kind::Hung),
            Failure::Unknown => {
                let excused = self.downtimes.iter().any(|downtime| {
                    downtime.killed < span.completed && span.invoked < downtime.restarted
                });
                (!excused).then_some(Kind::FailedWithoutFault)
            }
        }
    }
}
