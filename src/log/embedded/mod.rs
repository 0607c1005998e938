//! The log on local disk: fjall 3 with one writer, group commit, and `fdatasync` before the answer.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `events` | position | the encoded event, its personal data, the latest time of receipt so far |
//! | `deliveries` | position | the raw delivery |
//! | `ids` | event id | position, SHA-256 of the content |
//! | `verifications` | SHA-256 of provider, account and verification id | revision, latest `occurred_at` |
//! | `quarantine` | sequence | summary, raw delivery |
//! | `quarantine_ids` | quarantine id | sequence |
//! | `meta` | name | the version of this format, the id of the log |
//!
//! Integers in keys are big-endian, so that keys sort as they count.

mod record;
mod writer;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message;
use prost_types::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use uuid::Uuid;

use self::{
    record::{EventRecord, IdRecord, QuarantineRecord},
    writer::{Request, Writer},
};
use super::{
    AppendError, Appended, EventLog, NewEvent, NewQuarantined, Position, ReadError, ReadLimit,
    StoredEvent, StoredQuarantined, Tail,
};

/// The version of the format described above.
const FORMAT: u32 = 1;

/// What a keyspace keeps in memory before it writes a table. With fjall's default of 64 MiB the log would take hundreds
/// of MiB before it takes no more.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// How long the writer may take to make a batch durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How many requests may wait for the writer.
const QUEUE: usize = 1024;

/// The log on local disk.
#[derive(Debug)]
pub struct EmbeddedLog {
    id: Uuid,
    keyspaces: Keyspaces,
    tail: Arc<Tail>,
    // Taken when the log is dropped, to stop the writer and wait for it.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<thread::JoinHandle<()>>,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error(
        "the log is in use by another process; stop that one first, or choose another log.path"
    )]
    InUse,
    /// Written by another version of verdict.
    #[error("the log has format {0}, and this version of verdict reads format {FORMAT}")]
    Format(u32),
    /// The directory cannot be used.
    #[error("the directory cannot be used: {0}")]
    Io(#[from] io::Error),
    /// The files cannot be read.
    #[error("the files cannot be read: {0}")]
    Storage(fjall::Error),
    /// The index and the events do not fit together.
    #[error("the log is damaged: {0}")]
    Damaged(&'static str),
}

impl From<fjall::Error> for OpenError {
    fn from(error: fjall::Error) -> Self {
        match error {
            fjall::Error::Locked => Self::InUse,
            fjall::Error::Io(error) => Self::Io(error),
            error => Self::Storage(error),
        }
    }
}

/// The keyspaces of the database. Cloning them is cheap.
#[derive(Clone)]
struct Keyspaces {
    database: Database,
    events: Keyspace,
    deliveries: Keyspace,
    ids: Keyspace,
    verifications: Keyspace,
    quarantine: Keyspace,
    quarantine_ids: Keyspace,
}

impl std::fmt::Debug for Keyspaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyspaces").finish_non_exhaustive()
    }
}

impl EmbeddedLog {
    /// Opens the log in a directory, or makes one there with the id `new_id`. Blocks.
    pub fn open(path: &Path, new_id: Uuid) -> Result<Self, OpenError> {
        // It will hold personal data: nobody else may look into it.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            tracing::warn!(log.path = %path.display(), "others may look into the log's directory");
        }
        let database = Database::builder(path).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspace = |name| database.keyspace(name, options);
        let id = identify(&database, &keyspace("meta")?, new_id)?;
        let keyspaces = Keyspaces {
            events: keyspace("events")?,
            deliveries: keyspace("deliveries")?,
            ids: keyspace("ids")?,
            verifications: keyspace("verifications")?,
            quarantine: keyspace("quarantine")?,
            quarantine_ids: keyspace("quarantine_ids")?,
            database,
        };

        let (writer, tail) = Writer::recover(keyspaces.clone())?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(queue))?;
        Ok(Self {
            id,
            keyspaces,
            tail,
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    /// Sends a request to the writer and waits for its answer.
    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> Request,
    ) -> Result<T, AppendError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(AppendError::Closed)?;
        let sent = requests.send(request(reply)).await;
        sent.map_err(|_| AppendError::Closed)?;
        // The storage engine waits for ever for a flush that a bad disk has made impossible.
        match time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|_| AppendError::Closed)?,
            Err(_) => Err(AppendError::Unavailable(
                "the disk did not answer in time".to_owned(),
            )),
        }
    }

    /// Reads on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(Keyspaces) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let keyspaces = self.keyspaces.clone();
        tokio::task::spawn_blocking(move || read(keyspaces))
            .await
            .map_err(|error| ReadError::Unavailable(error.to_string()))?
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        // Without senders the writer commits what has queued up, and ends.
        self.requests = None;
        let Some(writer) = self.writer.take() else {
            return;
        };
        let begun = Instant::now();
        while !writer.is_finished() {
            if begun.elapsed() > ANSWER_TIMEOUT {
                tracing::error!("the log's writer did not end in time");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if writer.join().is_err() {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// Reads the log's id and checks its format, or writes both into a new log.
fn identify(database: &Database, meta: &Keyspace, new_id: Uuid) -> Result<Uuid, OpenError> {
    let Some(format) = meta.get("format")? else {
        let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
        batch.insert(meta, "format", FORMAT.to_be_bytes());
        batch.insert(meta, "id", *new_id.as_bytes());
        batch.commit()?;
        return Ok(new_id);
    };
    let format = <[u8; 4]>::try_from(&*format)
        .map(u32::from_be_bytes)
        .map_err(|_| OpenError::Damaged("its format is not a number"))?;
    if format != FORMAT {
        return Err(OpenError::Format(format));
    }
    let id = meta.get("id")?.ok_or(OpenError::Damaged("it has no id"))?;
    Uuid::from_slice(&id).map_err(|_| OpenError::Damaged("its id is not a UUID"))
}

impl From<fjall::Error> for ReadError {
    fn from(error: fjall::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Keyspaces {
    fn event(&self, position: Position) -> Result<EventRecord, ReadError> {
        let value = self.events.get(position.0.to_be_bytes())?;
        let value = value.ok_or(ReadError::Damaged(position))?;
        EventRecord::decode(&*value).map_err(|_| ReadError::Damaged(position))
    }

    fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        let mut expected = after.0;
        let records = self.events.range((after.0 + 1).to_be_bytes()..);
        let events = records.map(|guard| {
            let (key, value) = guard.into_inner()?;
            // Positions have no holes. Were one skipped, a subscriber would never know.
            expected += 1;
            let position = Position(expected);
            if *key != expected.to_be_bytes() {
                return Err(ReadError::Damaged(position));
            }
            let record = EventRecord::decode(&*value).map_err(|_| ReadError::Damaged(position))?;
            Ok(record.stored(position))
        });
        limit.take(events, StoredEvent::size_bytes)
    }

    /// Finds the first event that was received at `since` or later by halving: the latest time of receipt so far only
    /// grows, and it reaches `since` at that very event.
    fn position_before(&self, since: Timestamp, end: Position) -> Result<Position, ReadError> {
        let since = (since.seconds, since.nanos);
        let (mut before, mut after) = (0, end.0 + 1);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if self.event(Position(middle))?.latest_received_at() < since {
                before = middle;
            } else {
                after = middle;
            }
        }
        Ok(Position(before))
    }

    fn quarantined(
        &self,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        let Some(first) = after.checked_add(1) else {
            return Ok(Vec::new());
        };
        let records = self.quarantine.range(first.to_be_bytes()..).map(|guard| {
            let (key, value) = guard.into_inner()?;
            let sequence = record::number(&key).ok_or_else(damaged_quarantine)?;
            let record = QuarantineRecord::decode(&*value).map_err(|_| damaged_quarantine())?;
            Ok(record.stored(sequence))
        });
        limit.take(records, StoredQuarantined::size_bytes)
    }
}

fn damaged_quarantine() -> ReadError {
    ReadError::Unavailable("the quarantine is damaged".to_owned())
}

#[async_trait]
impl EventLog for EmbeddedLog {
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
        self.request(|reply| Request::Append(Box::new(event), reply))
            .await
    }

    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        // What the tail does not show yet is not durable yet.
        if after >= self.tail.end() {
            return Ok(Vec::new());
        }
        let visible = usize::try_from(self.tail.end().0 - after.0).unwrap_or(usize::MAX);
        let records = limit.records.min(visible);
        self.blocking(move |keyspaces| keyspaces.read(after, ReadLimit { records, ..limit }))
            .await
    }

    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        let end = self.tail.end();
        self.blocking(move |keyspaces| {
            let Some(value) = keyspaces.ids.get(event_id.as_bytes())? else {
                return Ok(None);
            };
            let damaged = || ReadError::Unavailable("the index of events is damaged".to_owned());
            let IdRecord { position, .. } = IdRecord::decode(&value).ok_or_else(damaged)?;
            // What the tail does not show yet cannot be resumed after yet.
            if position > end {
                return Ok(None);
            }
            Ok(Some(keyspaces.event(position)?.stored(position)))
        })
        .await
    }

    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError> {
        let end = self.tail.end();
        self.blocking(move |keyspaces| keyspaces.position_before(since, end))
            .await
    }

    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        self.blocking(move |keyspaces| {
            let delivery = keyspaces.deliveries.get(position.0.to_be_bytes())?;
            Ok(delivery.map(Bytes::from))
        })
        .await
    }

    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError> {
        self.request(|reply| Request::Quarantine(delivery, reply))
            .await
    }

    async fn quarantined(
        &self,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        self.blocking(move |keyspaces| keyspaces.quarantined(after, limit))
            .await
    }

    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        self.blocking(move |keyspaces| {
            let Some(sequence) = keyspaces.quarantine_ids.get(id.as_bytes())? else {
                return Ok(None);
            };
            let value = keyspaces
                .quarantine
                .get(&sequence)?
                .ok_or_else(damaged_quarantine)?;
            let sequence = record::number(&sequence).ok_or_else(damaged_quarantine)?;
            let record = QuarantineRecord::decode(&*value).map_err(|_| damaged_quarantine())?;
            Ok(Some(record.stored(sequence)))
        })
        .await
    }
}
