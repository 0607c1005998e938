//! What the writer does with keys: it seals what is personal in new events, and destroys the keys of old ones.

use bytes::Bytes;

use super::{
    seal::Purpose,
    segments::WriteError,
    slots,
    writer::{PlacedEvent, Writer},
};
use crate::log::{AppendError, EraseError, Position, ReadError, Sealed};

impl Writer {
    /// Seals what is personal, with the key of its subject in the segment that it comes to lie in.
    pub(super) fn seal(&mut self, events: &mut [PlacedEvent]) -> Result<(), WriteError> {
        self.events.prepare()?;
        for event in &mut *events {
            let Some(slot) = self.events.slot(Some(&event.subject))? else {
                continue;
            };
            let place = self.events.view.place(event.stored.position.0);
            let seal = |purpose, bytes: &Bytes| slots::seal(&slot, &place, purpose, bytes);
            let personal_data = seal(Purpose::PersonalData, &event.stored.personal_data.bytes)?;
            event.delivery = seal(Purpose::Delivery, &event.delivery)?;
            event.record.slot = slot.number;
            event.record.personal_data = personal_data.clone();
            event.stored.personal_data = Sealed {
                bytes: personal_data,
                slot: slot.number,
            };
        }
        let slots = self.events.slot_count();
        for event in events {
            event.record.slots = slots;
        }
        Ok(())
    }

    /// Destroys the keys that could not be destroyed before.
    pub(super) fn destroy_again(&mut self) {
        if self.shared.health.has_not_failed().is_ok()
            && let Err(error) = self.destroy_condemned()
        {
            self.trouble(error);
        }
    }

    /// Destroys the keys that are to be, those of deliveries that were taken out of the quarantine too.
    fn destroy_condemned(&mut self) -> Result<(), WriteError> {
        let of_events = self.events.destroy_condemned();
        self.genuine.segments.destroy_condemned().and(of_events)
    }

    /// Destroys the keys that these events name, and those that could not be destroyed before.
    pub(super) fn erase(&mut self, positions: &[Position]) -> Result<(), EraseError> {
        self.shared.health.has_not_failed()?;
        let (mut not_encrypted, mut without_keys) = (0, 0);
        // Behind the end there is nothing to erase.
        for position in positions.iter().filter(|position| **position <= self.end) {
            match self.shared.event(*position) {
                Ok(record) if record.slot > 0 => {
                    self.events.condemn(position.0, record.slot);
                    without_keys += u64::from(self.lacks_keys(*position));
                }
                Ok(record) => {
                    let holds_something = !record.personal_data.is_empty()
                        || !matches!(self.shared.delivery(*position), Ok(None));
                    not_encrypted += u64::from(holds_something);
                }
                // Its key went with it.
                Err(ReadError::NotRetained) => {}
                Err(error) => return Err(AppendError::Unavailable(error.to_string()).into()),
            }
        }
        let destroyed = self.destroy_condemned();
        destroyed.map_err(|error| self.trouble(error))?;
        if without_keys > 0 && !self.shared.without_keys {
            let why = format!(
                "the key files of {without_keys} of the events are missing, and nobody can say that they are gone; restore \
                 them, or set log.encryption.without_keys = true if they are"
            );
            return Err(AppendError::Unavailable(why).into());
        }
        match not_encrypted {
            0 => Ok(()),
            events => Err(EraseError::NotEncrypted(events)),
        }
    }

    /// Whether the key file of the segment that holds an event is missing.
    fn lacks_keys(&self, position: Position) -> bool {
        let view = &self.events.view;
        let base = view.base_of(position.0);
        base.is_some_and(|base| view.keys.has_none_for(base))
    }
}
