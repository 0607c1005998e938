//! The log on local disk: files of records with one writer, group commit, and `fdatasync` before the answer.
//!
//! | in the directory | what it holds |
//! |---|---|
//! | `meta` | the version of this format, the id of the log, when it was opened |
//! | `events/` | the events with their raw deliveries, in segments |
//! | `quarantine/`, `unverified/` | what came into the two quarantines and what was taken out, in segments |
//! | `keys/` | what personal data and raw deliveries are encrypted with: a key file for each segment, and the master key |
//! | `consumers` | how far the consumers have come |
//! | `index/` | which events are in the log; follows from `events/` |
//! | `lock`, `keys/lock` | held while a process uses the log |

mod acknowledged;
mod consumers;
mod files;
mod frame;
mod health;
mod index;
mod key_file;
mod keys;
mod master_file;
mod meta;
mod openings;
mod portion;
mod quarantine;
mod reader;
mod record;
mod recovery;
mod request;
mod retention;
mod rewrap;
mod seal;
mod sealing;
mod segment;
mod segments;
mod slots;
mod small_file;
mod summary;
mod tables;
mod view;
mod writer;

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use uuid::Uuid;

pub use self::seal::{MasterKeyError, new_master_key};

use self::{
    files::Files,
    frame::{FrameError, Frames},
    health::Watchdog,
    index::{IndexError, Indexer, portion_events},
    master_file::MasterFile,
    openings::Openings,
    reader::{Shared, read_error},
    request::{Reply, Request},
    retention::Retirement,
    rewrap::Rewrapping,
    seal::Nonces,
    segments::WriteError,
    view::Stored,
    writer::Writer,
};
use super::{
    AppendError, Appended, Commit, CommitError, Consumer, Cursor, DiskSpace, EraseError, EventLog,
    Found, Health, History, Measures, NewEvent, NewQuarantined, OutOfRange, Position,
    QuarantineKind, ReadError, ReadLimit, Stats, StoredEvent, StoredQuarantined, Tail,
    VerificationState, Wanted,
    disk::{Disk, RealDisk},
};
use crate::{config::LogConfig, event, marks};

/// The version of the stored format. What has been written in it can be read for ever.
pub const FORMAT: u32 = 2;

/// How long the writer may take to make a batch durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How many requests may wait for the writer.
const QUEUE: usize = 1024;

/// The log on local disk.
#[derive(Debug)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
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
    /// Something else is in the directory.
    #[error("the directory holds something else than a log of verdict; choose another log.path")]
    NotALog,
    /// The directory cannot be used.
    #[error("the directory cannot be used: {0}")]
    Io(#[from] io::Error),
    /// Something that was acknowledged is not there, or is not what was written.
    #[error("the log is damaged: {0}")]
    Damaged(String),
    /// What is encrypted could not be read. Without this error it would be lost when new keys are made.
    #[error("{0}")]
    Keys(String),
    /// The first files cannot be written.
    #[error("the log cannot be written: {0}")]
    Write(String),
    /// The index, which follows from the rest, cannot be used.
    #[error("the index cannot be used: {0}; remove the directory index to have it made anew")]
    Index(String),
}

impl From<FrameError> for OpenError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            damaged @ FrameError::Damaged { .. } => Self::Damaged(damaged.to_string()),
        }
    }
}

impl From<WriteError> for OpenError {
    fn from(error: WriteError) -> Self {
        Self::Write(error.to_string())
    }
}

impl From<IndexError> for OpenError {
    fn from(error: IndexError) -> Self {
        Self::Index(error.to_string())
    }
}

impl EmbeddedLog {
    /// Opens the log in a directory, or makes one there. `new_id` names this opening, and a new log. Blocks.
    pub fn open(config: &LogConfig, new_id: Uuid) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), config, new_id)
    }

    /// Opens the log on a given disk. The index and the lock are on the disk of this machine in any case.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        config: &LogConfig,
        new_id: Uuid,
    ) -> Result<Self, OpenError> {
        let directory = &config.path;
        files::make_directories(config)?;
        let locks = [
            files::lock(directory)?.ok_or(OpenError::InUse)?,
            files::lock(&config.keys_path())?.ok_or_else(|| {
                let path = config.keys_path();
                OpenError::Keys(format!(
                    "the keys in {} are in use by another log; each needs a log.encryption.keys_path of its own",
                    path.display()
                ))
            })?,
        ];
        let mut meta = meta::read_or_create(disk.as_ref(), directory, new_id)?;
        let log_id = meta::id(&meta.id)?;
        let mut master_file = MasterFile::new(config);
        let masters = master_file.open(disk.as_ref(), config)?;
        if !config.encryption.enabled {
            tracing::warn!(
                "log.encryption.enabled is false: personal data and raw deliveries are stored as they are, and cannot be erased"
            );
        }
        let portion_events = portion_events(retention::segment_bytes(config));
        let mut indexer = Indexer::open(directory, log_id, Openings::of(&meta)?, portion_events)?;
        let Files {
            events,
            genuine,
            unverified,
        } = Files::open(
            &disk,
            config,
            &mut meta,
            &masters,
            indexer.acknowledged_to()?,
        )?;
        indexer.complete(&events.view)?;
        let end = Position(events.end());
        let openings = meta::add_opening(disk.as_ref(), directory, &mut meta, new_id, end)?;
        indexer.set_openings(openings.clone());

        let shared = Arc::new(Shared {
            openings,
            events: Arc::clone(&events.view),
            measures: Measures {
                index_waited: indexer.waited(),
                ..events.measures.clone()
            },
            index: indexer.index.clone(),
            tail: Tail::new(end),
            health: Watchdog::new(Arc::clone(&disk), config),
            genuine: genuine.view.clone(),
            unverified: unverified.view.clone(),
            consumers: Mutex::new(consumers::read(disk.as_ref(), directory)?),
            disk,
            directory: directory.clone(),
            encrypts: config.encryption.enabled,
            without_keys: config.encryption.without_keys,
        });
        let writer = Writer {
            latest_received_at: shared.latest_received_at(end)?,
            end,
            shared: Arc::clone(&shared),
            events,
            frames: Frames::default(),
            nonces: Nonces::default(),
            genuine,
            unverified,
            indexer,
            retirement: Retirement::new(config.retention),
            rewrapping: Rewrapping::new(master_file),
            meta,
            _locks: locks,
        };
        let (requests, queue) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(&runtime, queue))?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
        })
    }

    /// Sends a request to the writer and waits for its answer.
    async fn request<T, E: From<AppendError>>(
        &self,
        request: impl FnOnce(Reply<T, E>) -> Request,
    ) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(AppendError::Closed)?;
        let answered = async {
            let sent = requests.send(request(reply)).await;
            sent.map_err(|_| AppendError::Closed)?;
            answer.await.map_err(|_| AppendError::Closed)?
        };
        // A bad disk can make the writer wait for ever.
        match time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(self.shared.health.hangs().into()),
        }
    }

    /// Reads on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || read(&shared))
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

#[async_trait]
impl EventLog for EmbeddedLog {
    fn cursor(&self, position: Position) -> Cursor {
        Cursor {
            // The opening in which the event was written, so that its cursor is the same for ever.
            log: self.shared.openings.at(position),
            position,
        }
    }

    fn resolve(&self, cursor: &Cursor) -> Result<Position, OutOfRange> {
        if !self.shared.openings.lead_to(&cursor.log, cursor.position) {
            return Err(OutOfRange::OtherLog);
        }
        if cursor.position > self.shared.tail.end() {
            return Err(OutOfRange::Ahead);
        }
        if cursor.position < self.start() {
            return Err(OutOfRange::NotRetained);
        }
        Ok(cursor.position)
    }

    fn tail(&self) -> &Tail {
        &self.shared.tail
    }

    fn start(&self) -> Position {
        self.shared.start()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn stats(&self) -> Stats {
        Stats {
            format: FORMAT,
            size_bytes: self.shared.events.size_bytes(),
            genuine: self.shared.genuine.stats(),
            unverified: self.shared.unverified.stats(),
            encryption: Some(self.shared.encryption()),
        }
    }

    fn measures(&self) -> Option<Measures> {
        Some(self.shared.measures.clone())
    }

    fn disk_space(&self) -> Vec<DiskSpace> {
        self.shared.health.space()
    }

    async fn append(&self, event: NewEvent) -> Result<Appended, AppendError> {
        // Here rather than by the writer, who has the time of all. What the log adds to an event changes none of its marks.
        let marks = marks::of_event(&event.encoded.event);
        self.request(|reply| Request::Append(Box::new((event, marks)), reply))
            .await
    }

    async fn read(&self, after: Position, limit: ReadLimit) -> Result<Vec<StoredEvent>, ReadError> {
        // What the tail does not show yet is not durable yet.
        let end = self.shared.tail.end();
        if after >= end {
            return Ok(Vec::new());
        }
        let read = move |shared: &Shared| shared.read(after, end, limit);
        Ok(self.blocking(read).await?.events)
    }

    async fn search(
        &self,
        after: Position,
        wanted: &Wanted,
        limit: ReadLimit,
    ) -> Result<Found, ReadError> {
        let end = self.shared.tail.end();
        if after >= end {
            return Ok(Found {
                events: Vec::new(),
                to: after,
            });
        }
        let wanted = wanted.clone();
        self.blocking(move |shared| shared.search(after, end, &wanted, limit))
            .await
    }

    async fn personal_data(&self, event: &StoredEvent) -> Result<Bytes, ReadError> {
        let (position, sealed) = (event.position, event.personal_data.clone());
        let stored = Stored::personal_data(position, &sealed);
        if let Some(opened) = self.shared.events.open_at_once(stored) {
            return opened.map_err(read_error);
        }
        let opened = self.blocking(move |shared| {
            let stored = Stored::personal_data(position, &sealed);
            shared.events.open(stored).map_err(read_error)
        });
        Ok(opened.await?.unwrap_or_else(event::erased))
    }

    async fn erase(&self, events: Vec<Position>) -> Result<(), EraseError> {
        self.request(|reply| Request::Erase(events, reply)).await
    }

    async fn find(&self, event_id: Uuid) -> Result<Option<StoredEvent>, ReadError> {
        let end = self.shared.tail.end();
        self.blocking(move |shared| {
            let Some(entry) = shared.index.find(&event_id)? else {
                return Ok(None);
            };
            // What the tail does not show yet cannot be resumed after yet.
            if entry.position > end || entry.position <= shared.start() {
                return Ok(None);
            }
            match shared.event(entry.position) {
                Ok(record) => Ok(Some(record.stored(entry.position))),
                Err(ReadError::NotRetained) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn position_before(&self, since: Timestamp) -> Result<Position, ReadError> {
        let end = self.shared.tail.end();
        self.blocking(move |shared| shared.position_before(since, end))
            .await
    }

    async fn delivery(&self, position: Position) -> Result<Option<Bytes>, ReadError> {
        if position > self.shared.tail.end() {
            return Ok(None);
        }
        self.blocking(move |shared| shared.delivery(position)).await
    }

    async fn verification(&self, key: [u8; 32]) -> Result<Option<VerificationState>, ReadError> {
        let state = self
            .blocking(move |shared| {
                let state = shared.index.verification(&key)?;
                let start = shared.start();
                Ok(state.filter(|state| state.last > start))
            })
            .await?;
        if let Some(state) = &state {
            // The index knows an event a moment before it can be seen.
            let mut end = self.shared.tail.watch();
            let _ = end.wait_for(|end| *end >= state.last).await;
        }
        Ok(state)
    }

    async fn history(&self, from: Position, limit: usize) -> Result<History, ReadError> {
        self.blocking(move |shared| shared.history(from, limit))
            .await
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        self.request(|reply| Request::Commit(commit, reply)).await
    }

    async fn forget(&self, consumer: String) -> Result<(), AppendError> {
        self.request(|reply| Request::Forget(consumer, reply)).await
    }

    fn consumers(&self) -> Vec<Consumer> {
        self.shared.consumers().0.values().cloned().collect()
    }

    async fn quarantine(&self, delivery: NewQuarantined) -> Result<(), AppendError> {
        self.request(|reply| Request::Quarantine(delivery, reply))
            .await
    }

    async fn quarantined(
        &self,
        kind: QuarantineKind,
        after: u64,
        limit: ReadLimit,
    ) -> Result<Vec<StoredQuarantined>, ReadError> {
        self.blocking(move |shared| match kind {
            QuarantineKind::Genuine => shared.genuine.read(after, limit),
            QuarantineKind::Unverified => shared.unverified.read(after, limit),
        })
        .await
    }

    async fn find_quarantined(&self, id: Uuid) -> Result<Option<StoredQuarantined>, ReadError> {
        self.blocking(move |shared| match shared.genuine.find(&id)? {
            Some(found) => Ok(Some(found)),
            None => shared.unverified.find(&id),
        })
        .await
    }

    async fn release(&self, id: Uuid) -> Result<bool, AppendError> {
        self.request(|reply| Request::Release(id, reply)).await
    }
}
