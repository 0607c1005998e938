//! What the writer does with keys: it seals what is personal in new events, and destroys the keys of old ones.

use std::io;

use bytes::Bytes;

use super::{
    frame::Numbers,
    seal::Purpose,
    segments::WriteError,
    slots::{Slot, no_randomness},
    writer::{PlacedEvent, Writer},
};
use crate::log::{AppendError, EraseError, Position, ReadError, Sealed};

impl Writer {
    /// Makes the records of events, in the buffer that is written. What is personal is sealed with the key of its subject in
    /// the segment that the event comes to lie in.
    pub(super) fn make_records(
        &mut self,
        events: &mut [PlacedEvent],
        time: i64,
    ) -> Result<(), WriteError> {
        self.events.prepare()?;
        let mut keys = Vec::with_capacity(events.len());
        for event in &*events {
            keys.push(self.events.slot(Some(&event.subject))?);
        }
        let slots = self.events.slot_count();
        self.frames.clear();
        for (event, slot) in events.iter_mut().zip(keys) {
            event.record.slots = slots;
            let made = self.make_record(event, slot.as_ref(), time);
            made.map_err(WriteError::Write)?;
        }
        Ok(())
    }

    fn make_record(
        &mut self,
        event: &mut PlacedEvent,
        slot: Option<&Slot>,
        time: i64,
    ) -> io::Result<()> {
        let numbers = Numbers {
            number: event.stored.position.0,
            synced: self.end.0,
            time,
        };
        let Some(slot) = slot else {
            let head = |buffer: &mut Vec<u8>| event.record.write(buffer);
            return self.frames.add(&numbers, head, |buffer| {
                buffer.extend_from_slice(&event.delivery);
                Ok(())
            });
        };
        let (place, sealer) = (self.events.view.place(numbers.number), slot.sealer()?);
        let nonces = &mut self.nonces;
        let mut seal = |purpose, plaintext: &[u8], buffer: &mut Vec<u8>| {
            let sealed = sealer.seal(&place, purpose, plaintext, nonces, buffer);
            sealed.map_err(no_randomness)
        };
        let mut personal_data = Vec::new();
        let plaintext = &event.stored.personal_data.bytes;
        seal(Purpose::PersonalData, plaintext, &mut personal_data)?;
        let personal_data = Bytes::from(personal_data);
        event.record.slot = slot.number;
        event.record.personal_data = personal_data.clone();
        event.stored.personal_data = Sealed {
            bytes: personal_data,
            slot: slot.number,
        };
        let head = |buffer: &mut Vec<u8>| event.record.write(buffer);
        let body = |buffer: &mut Vec<u8>| seal(Purpose::Delivery, &event.delivery, buffer);
        self.frames.add(&numbers, head, body)
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
