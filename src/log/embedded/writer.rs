//! The one thread that writes.
//!
//! It takes what has queued up, decides each request against what is stored and what came before it in the same batch,
//! commits the batch, syncs once, and answers all. So it alone sees the order of events, and needs no locks.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use fjall::{OwnedWriteBatch, PersistMode};
use prost::Message;
use prost_types::Timestamp;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    Keyspaces, OpenError,
    record::{self, EventRecord, IdRecord, QuarantineRecord, VerificationRecord},
};
use crate::log::{
    AppendError, Appended, NewEvent, NewQuarantined, Position, StoredEvent, Tail, VerificationState,
};

type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

/// What the writer is asked to do.
pub(super) enum Request {
    Append(Box<NewEvent>, Reply<Appended>),
    Quarantine(NewQuarantined, Reply<()>),
}

/// The most requests in one commit.
const MAX_BATCH: usize = 512;

/// The writer's view of the log.
pub(super) struct Writer {
    keyspaces: Keyspaces,
    tail: Arc<Tail>,
    end: Position,
    latest_received_at: (i64, i32),
    quarantine_end: u64,
    /// Why nothing can be written any more. After a failed sync nobody knows what is on the disk, so only a restart,
    /// which reads it again, makes the log writable.
    failed: Option<String>,
}

/// Requests that become durable together.
struct Batch {
    writes: OwnedWriteBatch,
    ids: HashMap<Uuid, IdRecord>,
    verifications: HashMap<[u8; 32], VerificationState>,
    quarantine_ids: HashSet<Uuid>,
    events: Vec<StoredEvent>,
    answers: Vec<Answer>,
}

/// An answer that waits for the commit.
enum Answer {
    Append(Appended, Reply<Appended>),
    Quarantine(Reply<()>),
}

impl Writer {
    /// Finds the end of what is stored.
    pub(super) fn recover(keyspaces: Keyspaces) -> Result<(Self, Arc<Tail>), OpenError> {
        let mut end = Position(0);
        let mut latest_received_at = (i64::MIN, 0);
        if let Some(guard) = keyspaces.events.last_key_value() {
            let (key, value) = guard.into_inner()?;
            let damaged = OpenError::Damaged("its last event cannot be read");
            let (Some(position), Ok(record)) = (record::number(&key), EventRecord::decode(&*value))
            else {
                return Err(damaged);
            };
            end = Position(position);
            latest_received_at = record.latest_received_at();
        }
        let quarantine_end = match keyspaces.quarantine.last_key_value() {
            None => 0,
            Some(guard) => record::number(&guard.key()?)
                .ok_or(OpenError::Damaged("its quarantine cannot be read"))?,
        };
        let tail = Arc::new(Tail::new(end));
        let writer = Self {
            keyspaces,
            tail: Arc::clone(&tail),
            end,
            latest_received_at,
            quarantine_end,
            failed: None,
        };
        Ok((writer, tail))
    }

    /// Serves requests until there can be no more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.blocking_recv() {
            let mut batch = self.batch();
            self.add(&mut batch, request);
            while batch.answers.len() < MAX_BATCH
                && let Ok(request) = queue.try_recv()
            {
                self.add(&mut batch, request);
            }
            self.commit(batch);
        }
    }

    fn batch(&self) -> Batch {
        let writes = self.keyspaces.database.batch();
        Batch {
            writes: writes.durability(Some(PersistMode::SyncData)),
            ids: HashMap::new(),
            verifications: HashMap::new(),
            quarantine_ids: HashSet::new(),
            events: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Decides a request and adds what it writes to the batch. A request that fails here is answered at once.
    fn add(&mut self, batch: &mut Batch, request: Request) {
        match request {
            Request::Append(event, reply) => match self.append(batch, *event) {
                Ok(appended) => batch.answers.push(Answer::Append(appended, reply)),
                Err(error) => answer(reply, Err(error)),
            },
            Request::Quarantine(delivery, reply) => match self.quarantine(batch, delivery) {
                Ok(()) => batch.answers.push(Answer::Quarantine(reply)),
                Err(error) => answer(reply, Err(error)),
            },
        }
    }

    fn append(&mut self, batch: &mut Batch, event: NewEvent) -> Result<Appended, AppendError> {
        self.writable()?;
        let keyspaces = &self.keyspaces;
        let known = match batch.ids.get(&event.event_id) {
            Some(known) => Some(*known),
            None => match keyspaces.ids.get(event.event_id.as_bytes())? {
                Some(value) => Some(IdRecord::decode(&value).ok_or_else(|| damaged("ids"))?),
                None => None,
            },
        };
        if let Some(known) = known {
            let same_content = known.content_sha256 == event.content_sha256;
            return Ok(Appended::again(known.position, same_content));
        }

        let (mut revision, mut late) = (0, false);
        if let Some(verification) = event.verification {
            let state = match batch.verifications.get(&verification) {
                Some(state) => *state,
                None => match keyspaces.verifications.get(verification)? {
                    Some(value) => VerificationRecord::decode(&*value)
                        .map_err(|_| damaged("verifications"))?
                        .into(),
                    None => VerificationState::default(),
                },
            };
            let next;
            (next, late) = state.next(event.occurred_at.as_ref());
            revision = next.revision;
            let value = VerificationRecord::from(next).encode_to_vec();
            batch
                .writes
                .insert(&keyspaces.verifications, verification, value);
            batch.verifications.insert(verification, next);
        }

        self.end.0 += 1;
        let received_at = (event.received_at.seconds, event.received_at.nanos);
        self.latest_received_at = self.latest_received_at.max(received_at);
        let (seconds, nanos) = self.latest_received_at;
        let encoded = event.encoded.placed(revision, late);
        let record = EventRecord {
            event: encoded.event.clone(),
            personal_data: encoded.personal_data.clone(),
            latest_received_at: Some(Timestamp { seconds, nanos }),
        };
        let id = IdRecord {
            position: self.end,
            content_sha256: event.content_sha256,
        };
        let key = self.end.0.to_be_bytes();
        let id_key = event.event_id.into_bytes();
        batch
            .writes
            .insert(&keyspaces.events, key, record.encode_to_vec());
        batch
            .writes
            .insert(&keyspaces.deliveries, key, event.delivery);
        batch.writes.insert(&keyspaces.ids, id_key, id.encode());
        batch.ids.insert(event.event_id, id);
        batch.events.push(StoredEvent {
            position: self.end,
            encoded,
        });
        Ok(Appended::New(self.end))
    }

    fn quarantine(
        &mut self,
        batch: &mut Batch,
        delivery: NewQuarantined,
    ) -> Result<(), AppendError> {
        self.writable()?;
        let keyspaces = &self.keyspaces;
        let id = delivery.id.into_bytes();
        if batch.quarantine_ids.contains(&delivery.id)
            || keyspaces.quarantine_ids.contains_key(id)?
        {
            return Ok(());
        }
        self.quarantine_end += 1;
        let sequence = self.quarantine_end.to_be_bytes();
        let record = QuarantineRecord {
            summary: delivery.summary,
            delivery: delivery.delivery,
        };
        batch
            .writes
            .insert(&keyspaces.quarantine, sequence, record.encode_to_vec());
        batch.writes.insert(&keyspaces.quarantine_ids, id, sequence);
        batch.quarantine_ids.insert(delivery.id);
        Ok(())
    }

    /// Makes a batch durable, then shows its events, then answers.
    fn commit(&mut self, batch: Batch) {
        let committed = batch.writes.commit().map_err(|error| {
            tracing::error!(%error, "the log cannot write; restart once the disk is well");
            let error = error.to_string();
            self.failed = Some(error.clone());
            AppendError::Unavailable(error)
        });
        if committed.is_ok() {
            self.tail.extend(batch.events);
        }
        for waiting in batch.answers {
            match waiting {
                Answer::Append(appended, reply) => {
                    answer(reply, committed.clone().map(|()| appended));
                }
                Answer::Quarantine(reply) => answer(reply, committed.clone()),
            }
        }
    }

    fn writable(&self) -> Result<(), AppendError> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(AppendError::Unavailable(error.clone())),
        }
    }
}

/// Whoever asked may have gone away; what was written stays written.
fn answer<T>(reply: Reply<T>, answer: Result<T, AppendError>) {
    let _ = reply.send(answer);
}

fn damaged(keyspace: &str) -> AppendError {
    AppendError::Unavailable(format!("the keyspace {keyspace} is damaged"))
}

impl From<fjall::Error> for AppendError {
    fn from(error: fjall::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}
