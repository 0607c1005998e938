//! Where a verification stands: which of its events is the latest.
//!
//! The provider's time decides. Where it cannot, because two events share it or one has none, the order of the log does;
//! an event that comes into the log long after it was received does not profit from that.

use prost_types::Timestamp;
use uuid::Uuid;

use super::{NewEvent, Position};

/// How an event comes to be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It has just been received.
    Received,
    /// It was received some time ago: redriven from the quarantine, or handed over late.
    Redriven,
    /// It corrects the event with this id, which was received some time ago.
    Correction(Uuid),
}

/// What the log remembers of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerificationState {
    /// How many events it has.
    pub revision: u64,
    /// Its newest event in log order.
    pub last: Position,
    /// The event that says where it stands: the newest one that is not late.
    pub current: Position,
    /// Whether the order of the log, and not the provider's times, decided on `current`.
    pub ordered_by_log: bool,
    /// The provider's time of the current event.
    pub(super) current_occurred_at: Option<Time>,
    /// When the current event was received.
    pub(super) current_received_at: Time,
    /// The latest time of the provider so far.
    pub(super) latest_occurred_at: Option<Time>,
    /// Whether any event so far has no time of the provider.
    pub(super) untimed: bool,
}

/// Seconds and nanoseconds.
pub(super) type Time = (i64, i32);

pub(super) fn time(timestamp: &Timestamp) -> Time {
    (timestamp.seconds, timestamp.nanos)
}

/// An event of a verification, as far as its place among the others depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) id: Uuid,
    pub(super) position: Position,
    pub(super) origin: Origin,
    pub(super) occurred_at: Option<Time>,
    pub(super) received_at: Time,
}

impl Member {
    pub(super) fn new(event: &NewEvent, position: Position) -> Self {
        Self {
            id: event.event_id,
            position,
            origin: event.origin,
            occurred_at: event.occurred_at.as_ref().map(time),
            received_at: time(&event.received_at),
        }
    }

    /// The event that it is, or that it corrects.
    fn original_id(&self) -> Uuid {
        match self.origin {
            Origin::Correction(corrected) => corrected,
            Origin::Received | Origin::Redriven => self.id,
        }
    }
}

impl VerificationState {
    /// The state after one more event that is no correction, and whether that event is late.
    pub(super) fn next(self, event: &Member) -> (Self, bool) {
        let occurred_at = event.occurred_at;
        let first = self.revision == 0;
        let overtaken = occurred_at.is_some() && occurred_at < self.latest_occurred_at;
        let comparable = occurred_at.is_some()
            && self.current_occurred_at.is_some()
            && occurred_at != self.current_occurred_at;
        let was_received_before = event.origin == Origin::Redriven
            && !comparable
            && event.received_at < self.current_received_at;
        let late = !first && (overtaken || was_received_before);
        let untimed = self.untimed || occurred_at.is_none();
        let mut next = Self {
            revision: self.revision + 1,
            last: event.position,
            latest_occurred_at: self.latest_occurred_at.max(occurred_at),
            untimed,
            ..self
        };
        if late {
            next.ordered_by_log |= !overtaken;
            return (next, true);
        }
        next.current = event.position;
        next.current_occurred_at = occurred_at;
        next.current_received_at = event.received_at;
        next.ordered_by_log = !first && (untimed || occurred_at == self.latest_occurred_at);
        (next, false)
    }

    /// The state after a correction, and whether that is late. `events` are all events of the verification, in log
    /// order; the correction is the last of them.
    ///
    /// A correction may say another time than the event that it corrects, so all is decided anew, with each event as it
    /// was corrected last, in its old place.
    pub(super) fn corrected(self, events: &[Member]) -> (Self, bool) {
        let mut state = Self::default();
        for (number, event) in events.iter().enumerate() {
            let id = event.original_id();
            if events[..number]
                .iter()
                .any(|before| before.original_id() == id)
            {
                continue;
            }
            let newest = events.iter().rfind(|later| later.original_id() == id);
            let newest = newest.unwrap_or(event);
            let origin = match event.origin {
                Origin::Redriven => Origin::Redriven,
                Origin::Received | Origin::Correction(_) => Origin::Received,
            };
            (state, _) = state.next(&Member { origin, ..*newest });
        }
        let correction = events.last().map_or(self.last, |event| event.position);
        state.revision = self.revision + 1;
        state.last = correction;
        (state, state.current != correction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to the events of one verification, in log order: origin, provider's time, time of receipt. Says
    /// which are late, and then which is current and whether the log decided that.
    fn states(events: &[(Origin, Option<i64>, i64)]) -> (Vec<bool>, u64, bool) {
        let (mut state, mut members) = (VerificationState::default(), Vec::new());
        let mut lates = Vec::new();
        for (number, (origin, occurred_at, received_at)) in (1..).zip(events) {
            let event = Member {
                id: Uuid::from_u128(number.into()),
                position: Position(number),
                origin: *origin,
                occurred_at: occurred_at.map(|seconds| (seconds, 0)),
                received_at: (*received_at, 0),
            };
            members.push(event);
            let late;
            (state, late) = match origin {
                Origin::Correction(_) => state.corrected(&members),
                Origin::Received | Origin::Redriven => state.next(&event),
            };
            assert_eq!((state.revision, state.last), (number, Position(number)));
            lates.push(late);
        }
        (lates, state.current.0, state.ordered_by_log)
    }

    #[test]
    fn the_latest_time_of_the_provider_wins() {
        use Origin::Received;
        let events = [
            (Received, Some(10), 1),
            (Received, Some(5), 2),
            (Received, Some(11), 3),
            (Received, Some(10), 4),
        ];
        assert_eq!(states(&events), (vec![false, true, false, true], 3, false));
    }

    #[test]
    fn equal_and_missing_times_are_ordered_by_the_log_and_it_is_said() {
        use Origin::Received;
        let tie = [(Received, Some(10), 1), (Received, Some(10), 2)];
        assert_eq!(states(&tie), (vec![false, false], 2, true));
        let missing = [(Received, Some(10), 1), (Received, None, 2)];
        assert_eq!(states(&missing), (vec![false, false], 2, true));
        // Whether 20 is later than the event without a time, nobody can know.
        let after = [(Received, None, 1), (Received, Some(20), 2)];
        assert_eq!(states(&after), (vec![false, false], 2, true));
        assert_eq!(states(&[(Received, None, 1)]), (vec![false], 1, false));
        // A late event changes nothing.
        let late = [
            (Received, Some(1), 1),
            (Received, Some(3), 2),
            (Received, Some(1), 3),
        ];
        assert_eq!(states(&late), (vec![false, false, true], 2, false));
    }

    #[test]
    fn a_redriven_event_does_not_pass_for_a_new_one() {
        use Origin::{Received, Redriven};
        for occurred_at in [None, Some(10)] {
            let old = [(Received, occurred_at, 5), (Redriven, occurred_at, 1)];
            assert_eq!(states(&old).0, [false, true]);
            let new = [(Received, occurred_at, 5), (Redriven, occurred_at, 9)];
            assert_eq!(states(&new).0, [false, false]);
        }
        let untimed = [(Received, None, 5), (Redriven, Some(10), 1)];
        assert_eq!(states(&untimed).0, [false, true]);
        let later = [(Received, Some(10), 5), (Redriven, Some(20), 1)];
        assert_eq!(states(&later), (vec![false, false], 2, false));
    }

    #[test]
    fn a_correction_takes_the_place_of_what_it_corrects_and_no_other() {
        use Origin::{Correction, Received};
        let first = Uuid::from_u128(1);
        let second = Uuid::from_u128(2);
        let of_old = [
            (Received, None, 1),
            (Received, None, 2),
            (Correction(first), None, 1),
        ];
        assert_eq!(states(&of_old), (vec![false, false, true], 2, true));
        let of_current = [
            (Received, None, 1),
            (Received, None, 2),
            (Correction(second), None, 2),
            (Correction(second), None, 2),
        ];
        assert_eq!(states(&of_current), (vec![false; 4], 4, true));
    }

    #[test]
    fn a_correction_of_the_time_decides_anew() {
        use Origin::{Correction, Received};
        let first = Uuid::from_u128(1);
        let third = Uuid::from_u128(3);
        // The first event was misread as the latest: corrected, it is not, and what was late is current.
        let misread = [
            (Received, Some(99), 1),
            (Received, Some(10), 2),
            (Correction(first), Some(5), 1),
        ];
        assert_eq!(states(&misread), (vec![false, true, true], 2, false));
        let after = [&misread[..], &[(Received, Some(11), 4)]].concat();
        assert_eq!(states(&after).0, [false, true, true, false]);
        // And the other way round: what was late turns out to be the latest.
        let misread = [
            (Received, Some(10), 1),
            (Received, Some(20), 2),
            (Received, Some(5), 3),
            (Correction(third), Some(30), 3),
            (Received, Some(25), 5),
        ];
        let lates = vec![false, false, true, false, true];
        assert_eq!(states(&misread), (lates, 4, false));
    }
}
