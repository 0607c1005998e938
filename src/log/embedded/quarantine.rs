//! A quarantine on disk: segments of what came in and what was taken out, and in memory what is in it now.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::{
    OpenError,
    frame::{Frame, Frames, Numbers, Parts},
    keys::Keys,
    reader,
    record::QuarantineRecord,
    retention::MAX_SEGMENTS_AT_ONCE,
    seal::{Nonces, Purpose},
    segments::{Promise, Sealing, Segments, WriteError},
    slots::no_randomness,
    view::{Stored, View, ViewError},
};
use crate::log::{
    NewQuarantined, Position, QuarantineKind, QuarantineStats, ReadError, ReadLimit,
    StoredQuarantined, disk::Disk,
};

/// What one quarantine may hold. `None` means without a limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_age_seconds: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    pub(super) max_deliveries: Option<u64>,
}

/// The readers' side of a quarantine. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(super) struct QuarantineView {
    kind: QuarantineKind,
    segments: Arc<View>,
    present: Arc<Mutex<Present>>,
}

/// What is in the quarantine now.
#[derive(Debug, Default)]
struct Present {
    by_sequence: BTreeMap<u64, Entry>,
    by_id: HashMap<Uuid, u64>,
    stats: QuarantineStats,
}

/// A delivery that is in a quarantine.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: Uuid,
    size_bytes: u64,
    /// The slot of its key; 0 if it is not encrypted.
    slot: u32,
}

impl Present {
    fn insert(&mut self, sequence: u64, entry: Entry) {
        self.by_sequence.insert(sequence, entry);
        self.by_id.insert(entry.id, sequence);
        self.stats.deliveries += 1;
        self.stats.size_bytes += entry.size_bytes;
    }

    fn remove(&mut self, sequence: u64) -> Option<Entry> {
        let entry = self.by_sequence.remove(&sequence)?;
        self.by_id.remove(&entry.id);
        self.stats.deliveries -= 1;
        self.stats.size_bytes -= entry.size_bytes;
        Some(entry)
    }

    /// Takes a delivery out. The place of its key, if it has one of its own.
    fn release(&mut self, id: &Uuid) -> Option<(u64, u32)> {
        let sequence = *self.by_id.get(id)?;
        let entry = self.remove(sequence)?;
        Some((sequence, entry.slot))
    }

    fn drop_through(&mut self, last: u64) {
        while let Some((&oldest, _)) = self.by_sequence.first_key_value()
            && oldest <= last
        {
            self.remove(oldest);
            self.stats.dropped += 1;
        }
    }
}

/// The writer's side of a quarantine.
pub(super) struct Quarantine {
    pub(super) view: QuarantineView,
    pub(super) segments: Segments,
    limits: Limits,
    nonces: Nonces,
}

/// What is to be done to a quarantine.
pub(super) enum Change {
    Add(NewQuarantined),
    Release(Uuid),
}

impl Quarantine {
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        log_id: Uuid,
        kind: QuarantineKind,
        limits: Limits,
        promise: Promise,
        sealing: Sealing,
    ) -> Result<Self, OpenError> {
        const SEGMENT_BYTES: u64 = 8 << 20;
        // Whole segments are deleted: of a small space each is a small part.
        let segment_bytes = limits.max_bytes.map_or(u64::MAX, |bytes| bytes / 8);
        let segment_bytes = segment_bytes.min(SEGMENT_BYTES);
        let segments = Segments::open(disk, directory, log_id, segment_bytes, promise, sealing)?;
        let mut released = Vec::new();
        let mut present = Present::default();
        let (first, last) = (segments.view.start() + 1, segments.end());
        let mut failed = None;
        let read = segments.view.read(first, last, Parts::Heads, |frame| {
            match replay(&mut present, &frame) {
                Ok(place) => released.extend(place),
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(|error| OpenError::Damaged(error.to_string()))?;
        let mut quarantine = Self {
            view: QuarantineView {
                kind,
                segments: Arc::clone(&segments.view),
                present: Arc::new(Mutex::new(present)),
            },
            segments,
            limits,
            nonces: Nonces::default(),
        };
        // The power may have gone between the release and this.
        quarantine.condemn(released);
        quarantine.segments.destroy_condemned()?;
        Ok(quarantine)
    }

    /// Takes note that the keys of deliveries are to be destroyed that were taken out. A key that unverified deliveries share
    /// stays.
    fn condemn(&mut self, released: Vec<(u64, u32)>) {
        if self.view.kind == QuarantineKind::Genuine {
            for (number, slot) in released {
                self.segments.condemn(number, slot);
            }
        }
    }

    /// Makes changes, one after another, and says of each whether it changed anything. They are durable when this returns,
    /// if that is promised here.
    pub(super) fn apply(&mut self, changes: Vec<Change>) -> Result<Vec<bool>, WriteError> {
        let mut effective = Vec::with_capacity(changes.len());
        let mut records = Vec::new();
        // What has been decided in this batch: whether an id is in the quarantine after it.
        let mut decided: HashMap<Uuid, bool> = HashMap::new();
        for change in changes {
            let (id, adds) = match &change {
                Change::Add(delivery) => (delivery.id, true),
                Change::Release(id) => (*id, false),
            };
            let is_present = match decided.get(&id) {
                Some(is_present) => *is_present,
                None => self.view.present().by_id.contains_key(&id),
            };
            effective.push(is_present != adds);
            if is_present != adds {
                decided.insert(id, adds);
                records.push(change);
            }
        }
        let mut rest = &records[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.fitting(rest));
            self.write(now)?;
            rest = later;
        }
        self.segments.destroy_condemned()?;
        Ok(effective)
    }

    /// How many of the changes go into one segment: one at least. Segments are deleted as a whole, so one that many
    /// deliveries have made too large would take all of them along.
    fn fitting(&self, changes: &[Change]) -> usize {
        let mut size_bytes = 0;
        let fits = |change: &&Change| {
            size_bytes += match change {
                Change::Add(delivery) => delivery.summary.len() + delivery.delivery.len(),
                Change::Release(_) => 0,
            };
            (size_bytes as u64) < self.segments.segment_bytes()
        };
        changes.iter().take_while(fits).count().max(1)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), WriteError> {
        self.segments.prepare()?;
        let synced = self.segments.end();
        let mut sealed = Vec::with_capacity(changes.len());
        for (number, change) in (synced + 1..).zip(changes) {
            sealed.push(match change {
                Change::Add(delivery) => self.seal(number, &delivery.delivery)?,
                Change::Release(_) => (0, Bytes::new()),
            });
        }
        let slots = self.segments.slot_count();
        let mut frames = Frames::default();
        for (number, (change, (slot, body))) in (synced + 1..).zip(changes.iter().zip(&sealed)) {
            let time = match change {
                Change::Add(delivery) => delivery.received_at.seconds,
                Change::Release(_) => i64::MIN,
            };
            let numbers = Numbers {
                number,
                synced,
                time,
            };
            let added = frames.add(
                &numbers,
                |buffer| write_head(change, *slot, slots, buffer),
                |buffer| {
                    buffer.extend_from_slice(body);
                    Ok(())
                },
            );
            added.map_err(WriteError::Write)?;
        }
        self.segments.append(&frames)?;
        let mut released = Vec::new();
        let mut present = self.view.present();
        for (number, (change, (slot, body))) in (synced + 1..).zip(changes.iter().zip(&sealed)) {
            match change {
                Change::Add(delivery) => {
                    let entry = Entry {
                        id: delivery.id,
                        size_bytes: (delivery.summary.len() + body.len()) as u64,
                        slot: *slot,
                    };
                    present.insert(number, entry);
                }
                Change::Release(id) => released.extend(present.release(id)),
            }
        }
        drop(present);
        self.condemn(released);
        Ok(())
    }

    /// Seals a raw delivery. Each genuine one has a key of its own, so that it can be destroyed alone. Those that nobody
    /// vouches for share one in each segment: they go with it.
    fn seal(&mut self, number: u64, delivery: &Bytes) -> Result<(u32, Bytes), WriteError> {
        let subject = match self.view.kind {
            QuarantineKind::Genuine => None,
            QuarantineKind::Unverified => Some(&[0; 32]),
        };
        let Some(slot) = self.segments.slot(subject)? else {
            return Ok((0, delivery.clone()));
        };
        let (place, purpose) = (self.view.segments.place(number), Purpose::Delivery);
        let mut sealed = Vec::new();
        let sealer = slot.sealer().map_err(WriteError::Write)?;
        sealer
            .seal(&place, purpose, delivery, &mut self.nonces, &mut sealed)
            .map_err(|error| WriteError::Write(no_randomness(error)))?;
        Ok((slot.number, sealed.into()))
    }

    /// The number of the last record.
    pub(super) fn end(&self) -> u64 {
        self.segments.end()
    }

    /// Cuts off what is behind the last record, and makes everything before it durable.
    pub(super) fn cut(&mut self) -> Result<(), WriteError> {
        self.segments.cut()
    }

    /// Makes everything durable that was not synced.
    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        self.segments.sync()
    }

    /// Deletes what is too old, too much, or no longer needed. Before a file goes, its last number is noted.
    pub(super) fn retain(
        &mut self,
        now: i64,
        mut note: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        self.segments.destroy_condemned()?;
        if let Some(max) = self.limits.max_deliveries {
            let mut present = self.view.present();
            let excess = present.stats.deliveries.saturating_sub(max);
            let last_of_them = excess.checked_sub(1).and_then(|number| {
                let mut sequences = present.by_sequence.keys();
                sequences.nth(number as usize).copied()
            });
            if let Some(last) = last_of_them {
                present.drop_through(last);
            }
        }
        for _ in 0..MAX_SEGMENTS_AT_ONCE {
            let Some(last) = self.oldest_to_delete(now) else {
                break;
            };
            if self.segments.view.segments().len() == 1 {
                self.segments.roll()?;
            }
            note(last).map_err(WriteError::Write)?;
            self.segments.delete_oldest()?;
            self.view.present().drop_through(last);
        }
        Ok(())
    }

    /// The last number of the oldest segment, if that can go.
    fn oldest_to_delete(&self, now: i64) -> Option<u64> {
        let view = &self.segments.view;
        let total = view.size_bytes();
        let segments = view.segments();
        let oldest = segments.front().filter(|oldest| !oldest.is_empty())?;
        let too_much = self.limits.max_bytes.is_some_and(|max| total > max);
        let too_old = self.limits.max_age_seconds.is_some_and(|age| {
            oldest.newest != i64::MIN && oldest.newest.saturating_add_unsigned(age) < now
        });
        let finished = segments.len() > 1;
        let unneeded = finished && !self.view.present().has_any_through(oldest.end);
        (too_much || too_old || unneeded).then_some(oldest.end)
    }
}

impl Present {
    fn has_any_through(&self, last: u64) -> bool {
        self.by_sequence
            .first_key_value()
            .is_some_and(|(oldest, _)| *oldest <= last)
    }
}

fn write_head(change: &Change, slot: u32, slots: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
    let record = match change {
        Change::Add(delivery) => QuarantineRecord {
            id: Bytes::copy_from_slice(delivery.id.as_bytes()),
            summary: delivery.summary.clone(),
            released: false,
            slot,
            slots,
        },
        Change::Release(id) => QuarantineRecord {
            id: Bytes::copy_from_slice(id.as_bytes()),
            summary: Bytes::new(),
            released: true,
            slot: 0,
            slots,
        },
    };
    record.encode(buffer).map_err(io::Error::other)
}

/// Does again what a record says was done. The place of the key of a delivery that was taken out.
fn replay(present: &mut Present, frame: &Frame<'_>) -> Result<Option<(u64, u32)>, OpenError> {
    let number = frame.number;
    let damaged = || OpenError::Damaged(format!("quarantine: record {number} cannot be read"));
    let record: QuarantineRecord = frame.decode().map_err(|_| damaged())?;
    let id = Uuid::from_slice(&record.id).map_err(|_| damaged())?;
    if record.released {
        return Ok(present.release(&id));
    }
    let entry = Entry {
        id,
        size_bytes: record.summary.len() as u64 + u64::from(frame.body_bytes),
        slot: record.slot,
    };
    present.insert(number, entry);
    Ok(None)
}

impl QuarantineView {
    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keys(&self) -> &Arc<Keys> {
        &self.segments.keys
    }

    pub(super) fn stats(&self) -> QuarantineStats {
        self.present().stats
    }

    /// Deliveries in the order of arrival, from the first one after `after`.
    pub(super) fn read(
        &self,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        let Some(first) = after.checked_add(1) else {
            return Ok(Vec::new());
        };
        let sequences: Vec<u64> = {
            let present = self.present();
            let present = present.by_sequence.range(first..);
            present
                .map(|(sequence, _)| *sequence)
                .take(limit.records.max(1))
                .collect()
        };
        let stored = sequences
            .into_iter()
            .filter_map(|sequence| self.get(sequence).transpose());
        limit.take(stored, StoredQuarantined::size_bytes)
    }

    pub(super) fn find(&self, id: &Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        let sequence = self.present().by_id.get(id).copied();
        sequence.map_or(Ok(None), |sequence| self.get(sequence))
    }

    pub(super) fn holds(&self, id: &Uuid) -> bool {
        self.present().by_id.contains_key(id)
    }

    /// A delivery, unless it has just been deleted.
    fn get(&self, sequence: u64) -> Result<Option<StoredQuarantined>, ReadError> {
        let mut found = None;
        let read = self.segments.read(sequence, sequence, Parts::All, |frame| {
            found = Some((frame.decode(), Bytes::copy_from_slice(frame.body)));
            true
        });
        if let Some(failed) = read.err() {
            return read_error(sequence, failed).map_or(Ok(None), Err);
        }
        let Some((record, body)) = found else {
            return Ok(None);
        };
        let record: QuarantineRecord =
            record.map_err(|_| damaged(sequence, "the record cannot be decoded"))?;
        let opened = self.segments.open(Stored {
            number: sequence,
            slot: record.slot,
            purpose: Purpose::Delivery,
            bytes: &body,
        });
        let opened = match opened {
            Ok(opened) => opened,
            Err(failed) => return read_error(sequence, failed).map_or(Ok(None), Err),
        };
        Ok(Some(StoredQuarantined {
            kind: self.kind,
            sequence,
            summary: record.summary,
            delivery: opened.unwrap_or_default(),
        }))
    }
}

/// A read that failed; `None` if there is only nothing to read any more.
fn read_error(sequence: u64, failed: ViewError) -> Option<ReadError> {
    match failed {
        ViewError::NotRetained => None,
        ViewError::Io(error) => Some(ReadError::Unavailable(error.to_string())),
        ViewError::Damaged { what, .. } => Some(damaged(sequence, &what)),
    }
}

fn damaged(sequence: u64, what: &str) -> ReadError {
    let place = format!("quarantine: {what}");
    reader::damaged(Position(sequence), place)
}
