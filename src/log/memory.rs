//! The log in memory, for tests and first steps. It forgets everything when it is dropped, and nothing before.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    AppendError, Appended, Commit, CommitError, Consumer, Cursor, EraseError, EventLog, Health,
    History, NewEvent, NewQuarantined, Origin, OutOfRange, Position, QuarantineKind,
    QuarantineStats, ReadError, ReadLimit, Sealed, Stats, StoredEvent, StoredQuarantined, Tail,
    VerificationState,
    consumers::Consumers,
    verification::{Member, Time, time},
};
use crate::{
    config::UnverifiedLimits,
    event::{self, EncodedEvent},
};

/// A log in memory.
pub struct MemoryLog {
    id: Uuid,
    unverified: UnverifiedLimits,
    tail: Tail,
    health: watch::Sender<Health>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    by_id: HashMap<Uuid, Position>,
    verifications: HashMap<[u8; 32], (VerificationState, Vec<Member>)>,
    consumers: Consumers,
    genuine: Quarantine,
    unverified: Quarantine,
}

struct Record {
    event: StoredEvent,
    content_sha256: [u8; 32],
    received_at: Time,
    /// The event before of the same verification; 0 if there is none.
    previous: Position,
    delivery: Bytes,
    erased: bool,
}

#[derive(Default)]
struct Quarantine {
    deliveries: BTreeMap<u64, (Uuid, StoredQuarantined)>,
    by_id: HashMap<Uuid, u64>,
    /// The sequence of the newest delivery so far, whether it is still here or not.
    end: u64,
    stats: QuarantineStats,
}

impl MemoryLog {
    /// An empty log. `id` must not have been used before.
    pub fn new(id: Uuid, unverified: UnverifiedLimits) -> Self {
        Self {
            id,
            unverified,
            tail: Tail::new(Position(0)),
            health: watch::Sender::new(Health::Well),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn event(&self, position: Position) -> Option<&Record> {
        self.records.get(position.0.checked_sub(1)? as usize)
    }

    fn quarantine(&mut self, kind: QuarantineKind) -> &mut Quarantine {
        match kind {
            QuarantineKind::Genuine => &mut self.genuine,
            QuarantineKind::Unverified => &mut self.unverified,
        }
    }
}

impl Quarantine {
    fn add(&mut self, delivery: NewQuarantined) {
        if self.by_id.contains_key(&delivery.id) {
            return;
        }
        self.end += 1;
        let stored = StoredQuarantined {
            kind: delivery.kind,
            sequence: self.end,
            summary: delivery.summary,
            delivery: delivery.delivery,
        };
        self.stats.deliveries += 1;
        self.stats.size_bytes += stored.size_bytes() as u64;
        self.by_id.insert(delivery.id, self.end);
        self.deliveries.insert(self.end, (delivery.id, stored));
    }

    fn remove(&mut self, sequence: u64) {
        if let Some((id, stored)) = self.deliveries.remove(&sequence) {
            self.by_id.remove(&id);
            self.stats.deliveries -= 1;
            self.stats.size_bytes -= stored.size_bytes() as u64;
        }
    }

    /// Lets the oldest deliveries make room.
    fn shrink(&mut self, limits: &UnverifiedLimits) {
        while self.stats.deliveries > limits.max_deliveries
            || self.stats.size_bytes > limits.max_bytes
        {
            let Some((&oldest, _)) = self.deliveries.first_key_value() else {
                return;
            };
            self.remove(oldest);
            self.stats.dropped += 1;
        }
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn cursor(&self, position: Position) -> Cursor {
        Cursor {
            log: self.id,
            position,
        }
    }

    fn resolve(&self, cursor: &Cursor) -> Result<Position, OutOfRange> {
        if cursor.log != self.id {
            return Err(OutOfRange::OtherLog);
        }
        if cursor.position > self.tail.end() {
            return Err(OutOfRange::Ahead);
        }
        Ok(cursor.position)
    }

    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn start(&self) -> Position {
        Position(0)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn stats(&self) -> Stats {
        let state = self.state();
        let bytes = |record: &Record| record.event.size_bytes() + record.delivery.len();
        Stats {
            format: 0,
            size_bytes: state.records.iter().map(bytes).sum::<usize>() as u64,
            genuine: state.genuine.stats,
            unverified: state.unverified.stats,
            encryption: None,
        }
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        let mut state = self.state();
        if let Some(position) = state.by_id.get(&event.event_id) {
            let known = state.event(*position).map(|record| record.content_sha256);
            let same_content = known == Some(event.content_sha256);
            return Ok(Appended::again(*position, same_content));
        }
        let position = Position(state.records.len() as u64 + 1);
        let (mut revision, mut late, mut previous) = (0, false, Position(0));
        if let Some(verification) = event.verification {
            let (slot, members) = state.verifications.entry(verification).or_default();
            previous = slot.last;
            members.push(Member::new(&event, position));
            (*slot, late) = match event.origin {
                Origin::Correction(_) => slot.corrected(members),
                Origin::Received | Origin::Redriven => slot.next(&Member::new(&event, position)),
            };
            revision = slot.revision;
        }
        let EncodedEvent {
            event: encoded,
            personal_data,
        } = event.encoded.placed(revision, late);
        let stored = StoredEvent {
            position,
            event: encoded,
            personal_data: Sealed {
                bytes: personal_data,
                slot: 0,
            },
        };
        state.by_id.insert(event.event_id, position);
        state.records.push(Record {
            event: stored.clone(),
            content_sha256: event.content_sha256,
            received_at: time(&event.received_at),
            previous,
            delivery: event.delivery,
            erased: false,
        });
        // Still under the lock, so that the tail sees the events in order.
        self.tail.extend(vec![stored]);
        Ok(Appended::New(position))
    }

    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        let state = self.state();
        let records = state.records.iter().skip(after.0 as usize);
        limit.take(
            records.map(|record| Ok(record.event.clone())),
            StoredEvent::size_bytes,
        )
    }

    async fn personal_data(&self, event: &StoredEvent) -> Result<Bytes, ReadError> {
        let state = self.state();
        let erased = state
            .event(event.position)
            .is_some_and(|record| record.erased);
        Ok(match erased && event.personal_data.size_bytes() > 0 {
            true => event::erased(),
            false => event.personal_data.bytes.clone(),
        })
    }

    async fn erase(&self, events: Vec<Position>) -> Result<(), EraseError> {
        let mut state = self.state();
        for position in events {
            if let Some(index) = position.0.checked_sub(1)
                && let Some(record) = state.records.get_mut(index as usize)
            {
                record.erased = true;
                record.delivery = Bytes::new();
            }
        }
        Ok(())
    }

    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        let state = self.state();
        let position = state.by_id.get(&event_id);
        let record = position.and_then(|position| state.event(*position));
        Ok(record.map(|record| record.event.clone()))
    }

    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError> {
        let state = self.state();
        let since = time(&since);
        let earlier = state
            .records
            .iter()
            .take_while(|record| record.received_at < since);
        Ok(Position(earlier.count() as u64))
    }

    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        let state = self.state();
        let delivery = state.event(position).map(|record| record.delivery.clone());
        Ok(delivery.filter(|delivery| !delivery.is_empty()))
    }

    async fn verification(&self, key: [u8; 32]) -> Result<Option<VerificationState>, ReadError> {
        Ok(self
            .state()
            .verifications
            .get(&key)
            .map(|(state, _)| *state))
    }

    async fn history(&self, from: Position, limit: usize) -> Result<History, ReadError> {
        let state = self.state();
        if from == Position(0) {
            return Err(ReadError::NotRetained);
        }
        let mut events = Vec::new();
        let mut next = from;
        while events.len() < limit
            && let Some(record) = state.event(next)
        {
            events.push(record.event.clone());
            next = record.previous;
        }
        Ok(History {
            events,
            next: (next != Position(0)).then_some(next),
        })
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        self.state().consumers.commit(commit)
    }

    async fn forget(&self, consumer: String) -> Result<(), AppendError> {
        self.state().consumers.0.remove(&consumer);
        Ok(())
    }

    fn consumers(&self) -> Vec<Consumer> {
        self.state().consumers.0.values().cloned().collect()
    }

    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError> {
        let mut state = self.state();
        let kind = delivery.kind;
        let quarantine = state.quarantine(kind);
        quarantine.add(delivery);
        if kind == QuarantineKind::Unverified {
            quarantine.shrink(&self.unverified);
        }
        Ok(())
    }

    async fn quarantined(
        &self,
        kind: QuarantineKind,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        let mut state = self.state();
        let Some(first) = after.checked_add(1) else {
            return Ok(Vec::new());
        };
        let deliveries = state.quarantine(kind).deliveries.range(first..);
        let stored = deliveries.map(|(_, (_, stored))| Ok(stored.clone()));
        limit.take(stored, StoredQuarantined::size_bytes)
    }

    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        let state = self.state();
        let find = |quarantine: &Quarantine| {
            let sequence = quarantine.by_id.get(&id)?;
            let (_, stored) = quarantine.deliveries.get(sequence)?;
            Some(stored.clone())
        };
        Ok(find(&state.genuine).or_else(|| find(&state.unverified)))
    }

    async fn release(&self, id: Uuid) -> Result<bool, AppendError> {
        let mut state = self.state();
        for kind in [QuarantineKind::Genuine, QuarantineKind::Unverified] {
            let quarantine = state.quarantine(kind);
            if let Some(sequence) = quarantine.by_id.get(&id).copied() {
                quarantine.remove(sequence);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
