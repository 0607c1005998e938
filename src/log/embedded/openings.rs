//! The times that a log was opened.
//!
//! A position alone names no event for ever: a copy of the log that is opened and goes its own way uses the same ones again.
//! Together with the opening in which the event was written it does.

use uuid::Uuid;

use super::{OpenError, meta, record::MetaRecord};
use crate::log::Position;

/// The openings of a log, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Openings(Vec<(Uuid, Position)>);

impl Openings {
    /// Those that the log tells of.
    pub(super) fn of(meta: &MetaRecord) -> Result<Self, OpenError> {
        let openings = meta.openings.iter();
        let read = openings.map(|opening| Ok((meta::id(&opening.id)?, Position(opening.after))));
        Ok(Self(read.collect::<Result<_, OpenError>>()?))
    }

    /// The opening in which an event was written. For the oldest ones it is the first that is remembered.
    pub(super) fn at(&self, position: Position) -> Uuid {
        let after = self.0.partition_point(|(_, end)| *end < position);
        let opening = self.0.get(after.saturating_sub(1));
        opening.map_or(Uuid::nil(), |(id, _)| *id)
    }

    /// Whether the log has, or will have, an event at this place that was written in this opening or before.
    pub(super) fn lead_to(&self, opening: &Uuid, position: Position) -> bool {
        let ends = self.0.iter().skip(1).map(|(_, end)| *end);
        let ends = ends.chain([Position(u64::MAX)]);
        let mut of_openings = self.0.iter().zip(ends);
        of_openings.any(|((id, _), end)| id == opening && position <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_of_the_opening_in_which_it_was_written() {
        let [one, two, three] = [1, 2, 3].map(Uuid::from_u128);
        let openings = Openings(vec![
            (one, Position(10)),
            (two, Position(20)),
            (three, Position(20)),
        ]);
        for (position, opening) in [(1, one), (10, one), (11, one), (20, one), (21, three)] {
            assert_eq!(openings.at(Position(position)), opening, "{position}");
        }
        for (opening, position, leads) in [
            (one, 20, true),
            (one, 21, false),
            (two, 20, true),
            (two, 21, false),
            (three, 1000, true),
            (Uuid::from_u128(4), 1, false),
            (Uuid::nil(), 1, false),
        ] {
            assert_eq!(openings.lead_to(&opening, Position(position)), leads);
        }
        assert_eq!(Openings::default().at(Position(1)), Uuid::nil());
    }
}
