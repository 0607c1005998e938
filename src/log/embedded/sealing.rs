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
            && let Err(error) = self.events.destroy_condemned()
        {
            self.trouble(error);
        }
    }

    /// Destroys the keys that these events name.
    pub(super) fn erase(&mut self, positions: &[Position]) -> Result<(), EraseError> {
        self.shared.health.has_not_failed()?;
        let mut not_encrypted = 0;
        // Behind the end there is nothing to erase.
        for position in positions.iter().filter(|position| **position <= self.end) {
            match self.shared.event(*position) {
                Ok(record) if record.slot > 0 => self.events.condemn(position.0, record.slot),
                Ok(_) => not_encrypted += 1,
                // Its key went with it.
                Err(ReadError::NotRetained) => {}
                Err(error) => return Err(AppendError::Unavailable(error.to_string()).into()),
            }
        }
        let destroyed = self.events.destroy_condemned();
        destroyed.map_err(|error| self.trouble(error))?;
        match not_encrypted {
            0 => Ok(()),
            events => Err(EraseError::NotEncrypted(events)),
        }
    }
}
