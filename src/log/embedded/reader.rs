//! The readers' side of the log. Everything here blocks.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use prost_types::Timestamp;

use super::{
    OpenError,
    frame::{Frame, Parts},
    health::Watchdog,
    index::{Index, IndexError},
    keys::Keys,
    openings::Openings,
    quarantine::QuarantineView,
    record::EventRecord,
    seal::Purpose,
    summary,
    view::{Stored, View, ViewError},
};
use crate::{
    log::{
        EncryptionStats, Found, History, Measures, Position, ReadError, ReadLimit, Sealed,
        StoredEvent, Tail, Wanted, consumers::Consumers, disk::Disk, verification,
    },
    wire::{Fields, Value},
};

/// How many events a search reads, and over how many it goes in all, before it tells how far it has come: some tens of
/// milliseconds, at most, in which its subscriber is told nothing.
const READ_AT_ONCE: usize = 1 << 14;
const SEARCHED_AT_ONCE: u64 = 1 << 19;

/// How many events a search reads together, if none of them is ruled out.
const READ_TOGETHER: u64 = 512;

/// How large most events are, at the most, with their personal data.
const EVENT_BYTES: usize = 1 << 10;

/// What the writer and the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) openings: Openings,
    pub(super) events: Arc<View>,
    pub(super) measures: Measures,
    pub(super) index: Index,
    pub(super) tail: Tail,
    pub(super) health: Watchdog,
    pub(super) genuine: QuarantineView,
    pub(super) unverified: QuarantineView,
    pub(super) consumers: Mutex<Consumers>,
    /// Whether what is written now is encrypted.
    pub(super) encrypts: bool,
    /// Whether key files that are missing are gone on purpose.
    pub(super) without_keys: bool,
}

impl Shared {
    pub(super) fn consumers(&self) -> MutexGuard<'_, Consumers> {
        self.consumers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn start(&self) -> Position {
        Position(self.events.start())
    }

    /// The latest time of receipt up to a position.
    pub(super) fn latest_received_at(
        &self,
        end: Position,
    ) -> Result<verification::Time, OpenError> {
        if end <= self.start() {
            return Ok((i64::MIN, 0));
        }
        match self.event(end) {
            Ok(record) => Ok(record.latest_received_at()),
            Err(error) => Err(OpenError::Damaged(error.to_string())),
        }
    }

    /// Reads the records of events and their raw deliveries.
    pub(super) fn read_frames(
        &self,
        first: Position,
        last: Position,
        parts: Parts,
        take: impl FnMut(Frame<'_>) -> bool,
    ) -> Result<(), ReadError> {
        let read = self.events.read(first.0, last.0, parts, take);
        read.map_err(read_error)
    }

    /// The raw delivery behind an event. `None` when it is no longer retained or its key is gone.
    pub(super) fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        let mut found = None;
        let read = self.read_frames(position, position, Parts::All, |frame| {
            if !frame.body.is_empty() {
                found = Some((decode(&frame), Bytes::copy_from_slice(frame.body)));
            }
            false
        });
        match read {
            Err(ReadError::NotRetained) => return Ok(None),
            read => read?,
        }
        let Some((record, body)) = found else {
            return Ok(None);
        };
        let stored = Stored {
            number: position.0,
            slot: record?.slot,
            purpose: Purpose::Delivery,
            bytes: &body,
        };
        self.events.open(stored).map_err(read_error)
    }

    /// The keys of everything.
    pub(super) fn keys(&self) -> [&Arc<Keys>; 3] {
        [
            &self.events.keys,
            self.genuine.keys(),
            self.unverified.keys(),
        ]
    }

    /// How the log is encrypted.
    pub(super) fn encryption(&self) -> EncryptionStats {
        let mut stats = EncryptionStats {
            enabled: self.encrypts,
            master_key_id: self.events.keys.master_key_id().unwrap_or_default(),
            ..Default::default()
        };
        for keys in self.keys() {
            let (files, missing) = keys.counts();
            stats.key_files += files;
            stats.to_rewrap += keys.outdated().len() as u64;
            stats.segments_without_keys += missing;
        }
        stats
    }

    pub(super) fn event(&self, position: Position) -> Result<EventRecord, ReadError> {
        let mut found = None;
        self.read_frames(position, position, Parts::Heads, |frame| {
            found = Some(decode(&frame));
            false
        })?;
        found.ok_or_else(|| damaged(position, "it is not there".to_owned()))?
    }

    /// Reads the events between two places.
    pub(super) fn read(
        &self,
        after: Position,
        end: Position,
        limit: ReadLimit,
    ) -> Result<Found, ReadError> {
        let most = limit.records.max(1) as u64;
        let last = Position(end.0.min(after.0.saturating_add(most)));
        let mut page = Page::new(after, None, limit);
        page.reserve(last.0.saturating_sub(after.0));
        let read = self.read_page(&mut page, last);
        page.found(read)
    }

    /// Reads those events between two places that are wanted. Blocks that hold none are passed over, as far as is known.
    pub(super) fn search(
        &self,
        after: Position,
        end: Position,
        wanted: &Wanted,
        limit: ReadLimit,
    ) -> Result<Found, ReadError> {
        // Summaries may outlive their events, and what is no longer retained must not be passed over in silence.
        if after < self.start() {
            return Err(ReadError::NotRetained);
        }
        let last = Position(end.0.min(after.0.saturating_add(SEARCHED_AT_ONCE)));
        let mut page = Page::new(after, Some(wanted), limit);
        let searched = self.search_page(&mut page, last, wanted);
        page.found(searched)
    }

    fn search_page(
        &self,
        page: &mut Page<'_>,
        last: Position,
        wanted: &Wanted,
    ) -> Result<(), ReadError> {
        for (block, ruled_out) in self.index.blocks(Position(page.to.0 + 1), last, wanted) {
            let events = summary::positions(block);
            let end = last.min(Position(*events.end()));
            let read_to = match ruled_out {
                true => Position(events.start() - 1),
                // Together with what follows, but before very many summaries are looked at for one page.
                false if end.0 < page.to.0 + READ_TOGETHER => continue,
                false => end,
            };
            self.read_page(page, read_to)?;
            // Nothing is passed over but what follows at once.
            if page.is_full() || page.to < read_to {
                return Ok(());
            }
            page.to = page.to.max(end);
        }
        self.read_page(page, last)
    }

    /// Reads events into a page up to this one, or until it is full.
    fn read_page(&self, page: &mut Page<'_>, last: Position) -> Result<(), ReadError> {
        let mut failed = Ok(());
        let first = Position(page.to.0 + 1);
        self.read_frames(first, last, Parts::Heads, |frame| {
            failed = page.add(&frame);
            failed.is_ok() && !page.is_full()
        })?;
        failed
    }

    /// Finds the first event that was received at `since` or later by halving: the latest time of receipt so far only
    /// grows, and it reaches `since` at that very event.
    pub(super) fn position_before(
        &self,
        since: Timestamp,
        end: Position,
    ) -> Result<Position, ReadError> {
        let since = verification::time(&since);
        let (mut before, mut after) = (self.start().0, end.0 + 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            match self.event(Position(middle)) {
                Ok(record) if record.latest_received_at() < since => before = middle,
                Ok(_) => after = middle,
                // Deleted since we began.
                Err(ReadError::NotRetained) => before = middle,
                Err(error) => return Err(error),
            }
        }
        Ok(Position(before))
    }

    pub(super) fn history(&self, from: Position, limit: usize) -> Result<History, ReadError> {
        if from <= self.start() {
            return Err(ReadError::NotRetained);
        }
        let (mut events, mut next) = (Vec::new(), from);
        while events.len() < limit && next > self.start() {
            let record = match self.event(next) {
                Err(ReadError::NotRetained) if !events.is_empty() => break,
                record => record?,
            };
            let place = record.verification.as_ref();
            let previous = place.map_or(0, |place| place.previous);
            events.push(record.stored(next));
            next = Position(previous);
        }
        Ok(History {
            events,
            next: (next > self.start()).then_some(next),
        })
    }
}

/// Events that are read at once. They are copied into one piece of memory: parts of what the file was read into would keep all
/// of that, raw deliveries included.
struct Page<'w> {
    after: Position,
    /// How far it has come.
    to: Position,
    /// Which events it takes; all without it.
    wanted: Option<&'w Wanted>,
    limit: ReadLimit,
    read: usize,
    bytes: Vec<u8>,
    records: Vec<PagedRecord>,
}

/// What of a page is an event.
struct PagedRecord {
    position: Position,
    event_bytes: usize,
    personal_data_bytes: usize,
    slot: u32,
}

impl<'w> Page<'w> {
    fn new(after: Position, wanted: Option<&'w Wanted>, limit: ReadLimit) -> Self {
        Self {
            after,
            to: after,
            wanted,
            limit,
            read: 0,
            bytes: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Makes room for so many events of the usual size, or for as many as it takes.
    fn reserve(&mut self, events: u64) {
        let room = (events as usize).saturating_mul(EVENT_BYTES);
        let most = self.limit.bytes.saturating_add(EVENT_BYTES);
        self.bytes.reserve(room.min(most));
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.limit.records.max(1)
            || self.bytes.len() >= self.limit.bytes.max(1)
            || (self.wanted.is_some() && self.read >= READ_AT_ONCE)
    }

    fn add(&mut self, frame: &Frame<'_>) -> Result<(), ReadError> {
        let (mut event, mut personal_data, mut slot) = (&[][..], &[][..], 0);
        // An [`EventRecord`], of which subscribers are given no more than this.
        for field in Fields(frame.head) {
            match field.ok_or_else(|| undecodable(frame))? {
                (1, Value::Bytes(bytes)) => event = bytes,
                (2, Value::Bytes(bytes)) => personal_data = bytes,
                (7, Value::Number(number)) => slot = number as u32,
                _ => {}
            }
        }
        self.to = Position(frame.number);
        self.read += 1;
        if self.wanted.is_some_and(|wanted| !wanted.matches(event)) {
            return Ok(());
        }
        self.bytes.extend_from_slice(event);
        self.bytes.extend_from_slice(personal_data);
        self.records.push(PagedRecord {
            position: Position(frame.number),
            event_bytes: event.len(),
            personal_data_bytes: personal_data.len(),
            slot,
        });
        Ok(())
    }

    /// What was found until reading ended so.
    fn found(self, read: Result<(), ReadError>) -> Result<Found, ReadError> {
        match read {
            // What lies before the damage can be read; whoever comes again is told.
            Err(error) if self.to == self.after => Err(error),
            _ => Ok(Found {
                to: self.to,
                events: self.events(),
            }),
        }
    }

    fn events(mut self) -> Vec<StoredEvent> {
        // Of what was reserved little is left, unless the page ends early or with a large event.
        if self.bytes.capacity() - self.bytes.len() > self.bytes.len() / 8 {
            self.bytes.shrink_to_fit();
        }
        let mut bytes = Bytes::from(self.bytes);
        let records = self.records.into_iter();
        let events = records.map(|record| StoredEvent {
            position: record.position,
            event: bytes.split_to(record.event_bytes),
            personal_data: Sealed {
                bytes: bytes.split_to(record.personal_data_bytes),
                slot: record.slot,
            },
        });
        events.collect()
    }
}

/// A read that failed.
pub(super) fn read_error(error: ViewError) -> ReadError {
    match error {
        ViewError::NotRetained => ReadError::NotRetained,
        ViewError::Io(error) => ReadError::Unavailable(error.to_string()),
        ViewError::Damaged { number, what } => damaged(Position(number), what),
    }
}

pub(super) fn damaged(position: Position, place: String) -> ReadError {
    tracing::error!(log.position = position.0, log.place = %place, "the log is damaged");
    ReadError::Damaged { position, place }
}

fn decode(frame: &Frame<'_>) -> Result<EventRecord, ReadError> {
    frame.decode().map_err(|_| undecodable(frame))
}

fn undecodable(frame: &Frame<'_>) -> ReadError {
    let place = "the record cannot be decoded".to_owned();
    damaged(Position(frame.number), place)
}

impl From<IndexError> for ReadError {
    fn from(error: IndexError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
