//! The log in memory, for tests and first steps. It forgets everything when it is dropped.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use uuid::Uuid;

use super::{
    AppendError, Appended, EventLog, NewEvent, NewQuarantined, Position, ReadError, ReadLimit,
    StoredEvent, StoredQuarantined, Tail, VerificationState,
};

/// A log in memory.
pub struct MemoryLog {
    id: Uuid,
    tail: Tail,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: Vec<Record>,
    by_id: HashMap<Uuid, (Position, [u8; 32])>,
    verifications: HashMap<[u8; 32], VerificationState>,
    quarantine: Vec<StoredQuarantined>,
    quarantine_by_id: HashMap<Uuid, u64>,
}

struct Record {
    event: StoredEvent,
    received_at: (i64, i32),
    delivery: Bytes,
}

impl MemoryLog {
    /// An empty log. `id` must not have been used before.
    pub fn new(id: Uuid) -> Self {
        Self {
            id,
            tail: Tail::new(Position(0)),
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
}

#[async_trait]
impl EventLog for MemoryLog {
    fn id(&self) -> Uuid {
        self.id
    }

    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn start(&self) -> Position {
        Position(0)
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        let mut state = self.state();
        if let Some((position, content)) = state.by_id.get(&event.event_id) {
            return Ok(Appended::again(*position, *content == event.content_sha256));
        }
        let (revision, late) = match event.verification {
            None => (0, false),
            Some(verification) => {
                let slot = state.verifications.entry(verification).or_default();
                let (next, late) = slot.next(event.occurred_at.as_ref());
                *slot = next;
                (next.revision, late)
            }
        };
        let position = Position(state.records.len() as u64 + 1);
        let stored = StoredEvent {
            position,
            encoded: event.encoded.placed(revision, late),
        };
        state
            .by_id
            .insert(event.event_id, (position, event.content_sha256));
        state.records.push(Record {
            event: stored.clone(),
            received_at: (event.received_at.seconds, event.received_at.nanos),
            delivery: event.delivery,
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

    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        let state = self.state();
        let position = state.by_id.get(&event_id).map(|(position, _)| *position);
        let record = position.and_then(|position| state.event(position));
        Ok(record.map(|record| record.event.clone()))
    }

    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError> {
        let state = self.state();
        let since = (since.seconds, since.nanos);
        let earlier = state
            .records
            .iter()
            .take_while(|record| record.received_at < since);
        Ok(Position(earlier.count() as u64))
    }

    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        Ok(self
            .state()
            .event(position)
            .map(|record| record.delivery.clone()))
    }

    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError> {
        let mut state = self.state();
        if state.quarantine_by_id.contains_key(&delivery.id) {
            return Ok(());
        }
        let sequence = state.quarantine.len() as u64 + 1;
        state.quarantine_by_id.insert(delivery.id, sequence);
        state.quarantine.push(StoredQuarantined {
            sequence,
            summary: delivery.summary,
            delivery: delivery.delivery,
        });
        Ok(())
    }

    async fn quarantined(
        &self,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        let state = self.state();
        let deliveries = state.quarantine.iter().skip(after as usize);
        limit.take(deliveries.cloned().map(Ok), StoredQuarantined::size_bytes)
    }

    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        let state = self.state();
        let sequence = state.quarantine_by_id.get(&id);
        Ok(sequence.map(|sequence| state.quarantine[*sequence as usize - 1].clone()))
    }
}
