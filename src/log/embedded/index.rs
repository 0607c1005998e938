//! Which events are in the log, and where each verification stands: fjall, in the directory `index`.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `ids` | event id | position, first half of the SHA-256 of the content |
//! | `verifications` | first half of the SHA-256 of provider, account and verification id | position of its newest event, where it stands |
//! | `meta` | name | the id of the log, the position up to which the index is complete |
//!
//! All of it follows from the events, so nothing here is synced: after a crash, what is missing is made from the log
//! again, and an index that cannot be opened is made anew from all of it.
//!
//! What leads to an event that is no longer retained counts for nothing, and goes when fjall compacts its tables.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
    compaction::filter::{
        CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
    },
    config::{CompressionPolicy, PartitioningPolicy},
};
use prost::Message;
use uuid::Uuid;

use super::{
    OpenError,
    frame::{Frame, Parts},
    record::{EventRecord, StateRecord},
    view::View,
};
use crate::log::{Position, VerificationState};

/// What a keyspace keeps in memory before it writes a table. fjall's own default of 64 MiB would make the server grow by
/// hundreds of MiB.
const MEMTABLE_BYTES: u64 = 16 << 20;

/// What is read from tables and kept in memory.
const CACHE_BYTES: u64 = 32 << 20;

/// How much of its journal fjall keeps. It is read at the start.
const JOURNAL_BYTES: u64 = 64 << 20;

/// How many events are added at once when the index is made from the log.
const REPLAY_BATCH: usize = 4096;

/// The index. Cloning it is cheap.
#[derive(Clone)]
pub(super) struct Index {
    database: Database,
    ids: Keyspace,
    verifications: Keyspace,
    meta: Keyspace,
    start: Arc<AtomicU64>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
    }
}

/// The index cannot be used until a new start.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// What is on the disk is good, as far as anybody knows.
    #[error("the index cannot be used: {0}")]
    Unavailable(fjall::Error),
    /// It must be made anew from the log.
    #[error("the index is damaged: {0}")]
    Damaged(String),
}

impl From<fjall::Error> for IndexError {
    fn from(error: fjall::Error) -> Self {
        match is_of_the_disk(&error) {
            true => Self::Unavailable(error),
            false => Self::Damaged(error.to_string()),
        }
    }
}

/// Whether an error says nothing about what is stored.
fn is_of_the_disk(error: &fjall::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            !matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
        }
        fjall::Error::Poisoned | fjall::Error::Locked => true,
        _ => false,
    }
}

/// Lets go of what leads to an event that is no longer retained, when tables are compacted. Every value begins with a
/// position.
struct Retained {
    start: Arc<AtomicU64>,
}

impl Factory for Retained {
    fn name(&self) -> &str {
        "retained"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let start = self.start.load(Ordering::Relaxed);
        Box::new(RetainedAfter(start))
    }
}

struct RetainedAfter(u64);

impl CompactionFilter for RetainedAfter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        let position = item.value()?.first_chunk().copied().map(u64::from_be_bytes);
        Ok(match position {
            // An older value that might show again leads to a still older event.
            Some(position) if position <= self.0 => Verdict::Destroy,
            _ => Verdict::Keep,
        })
    }
}

/// Where the event with an id lies, and what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdEntry {
    pub(super) position: Position,
    content: [u8; 16],
}

impl IdEntry {
    pub(super) fn new(position: Position, content_sha256: &[u8; 32]) -> Self {
        let mut content = [0; 16];
        content.copy_from_slice(half(content_sha256));
        Self { position, content }
    }

    pub(super) fn has_content(&self, content_sha256: &[u8; 32]) -> bool {
        self.content == half(content_sha256)
    }

    fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.content);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, content) = bytes.split_first_chunk()?;
        Some(Self {
            position: Position(u64::from_be_bytes(*position)),
            content: content.try_into().ok()?,
        })
    }
}

/// What is to be changed at once.
pub(super) struct Changes {
    batch: OwnedWriteBatch,
    complete_to: Option<Position>,
}

const META: &str = "meta";
const COMPLETE_TO: &str = "complete_to";
const LOG_ID: &str = "log_id";

/// The file that says that the index must be made anew.
const BROKEN: &str = "index.broken";

impl Index {
    /// Opens the index of a log in its directory. It may lack the newest events: [`complete`](Self::complete) adds them.
    pub(super) fn open(directory: &Path, log_id: Uuid) -> Result<Self, OpenError> {
        let path = directory.join("index");
        if directory.join(BROKEN).exists() {
            tracing::warn!("the index was found damaged and is made anew");
            remove(&path)?;
            fs::remove_file(directory.join(BROKEN))?;
        }
        match Self::open_or_create(&path, log_id) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => tracing::warn!("the index is of another log and is made anew"),
            Err(error) if is_of_the_disk(&error) => {
                return Err(OpenError::Index(error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "the index cannot be opened and is made anew");
            }
        }
        remove(&path)?;
        match Self::open_or_create(&path, log_id) {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(OpenError::Index("it is of another log".to_owned())),
            Err(error) => Err(OpenError::Index(error.to_string())),
        }
    }

    /// Opens what is there; `None` if it is the index of another log.
    fn open_or_create(path: &Path, log_id: Uuid) -> Result<Option<Self>, fjall::Error> {
        let start = Arc::new(AtomicU64::new(0));
        let retained = Arc::clone(&start);
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .with_compaction_filter_factories(Arc::new(move |keyspace| {
                let start = Arc::clone(&retained);
                let filter: Arc<dyn Factory> = Arc::new(Retained { start });
                (keyspace != META).then_some(filter)
            }))
            .open()?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                // Ids are random: every lookup wants another part of the filters. Whole, they are too large for the
                // cache and are read from the disk each time.
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
                .data_block_compression_policy(CompressionPolicy::disabled())
        };
        let meta = database.keyspace(META, options)?;
        match meta.get(LOG_ID)? {
            None => meta.insert(LOG_ID, *log_id.as_bytes())?,
            Some(id) if *id == *log_id.as_bytes() => {}
            Some(_) => return Ok(None),
        }
        Ok(Some(Self {
            ids: database.keyspace("ids", options)?,
            verifications: database.keyspace("verifications", options)?,
            meta,
            database,
            start,
        }))
    }

    /// Everything up to here is no longer retained.
    pub(super) fn set_start(&self, start: Position) {
        self.start.store(start.0, Ordering::Relaxed);
    }

    /// Adds the events that the index does not know yet.
    pub(super) fn complete(&self, events: &View) -> Result<(), OpenError> {
        let (start, end) = (events.start(), events.end());
        self.set_start(Position(start));
        let first = self.complete_to()?.max(start) + 1;
        if end >= first + REPLAY_BATCH as u64 {
            tracing::info!(
                events = end + 1 - first,
                "the index is completed from the log"
            );
        }
        let mut changes = self.changes();
        let mut failed = None;
        let read = events.read(first, end, Parts::Heads, |frame| {
            failed = self.add_frame(&mut changes, &frame).err();
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(|error| OpenError::Damaged(error.to_string()))?;
        changes.commit(self)?;
        Ok(())
    }

    fn add_frame(&self, changes: &mut Changes, frame: &Frame) -> Result<(), OpenError> {
        let number = frame.number;
        let damaged = || OpenError::Damaged(format!("number {number}: its record cannot be read"));
        let record = EventRecord::decode(frame.head.clone()).map_err(|_| damaged())?;
        changes
            .add(self, Position(number), &record)
            .ok_or_else(damaged)?;
        if changes.batch.len() >= REPLAY_BATCH {
            std::mem::replace(changes, self.changes()).commit(self)?;
        }
        Ok(())
    }

    /// The position up to which the index knows all events: they were acknowledged.
    pub(super) fn complete_to(&self) -> Result<u64, IndexError> {
        let value = self.meta.get(COMPLETE_TO)?;
        let number = value.map(|value| value.as_ref().try_into().map(u64::from_be_bytes));
        match number {
            None => Ok(0),
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) => Err(IndexError::Damaged("its end is not a number".to_owned())),
        }
    }

    pub(super) fn find(&self, event_id: &Uuid) -> Result<Option<IdEntry>, IndexError> {
        match self.ids.get(event_id.as_bytes())? {
            None => Ok(None),
            Some(value) => IdEntry::decode(&value)
                .map(Some)
                .ok_or_else(|| IndexError::Damaged("an id cannot be read".to_owned())),
        }
    }

    pub(super) fn verification(&self, key: &[u8]) -> Result<Option<VerificationState>, IndexError> {
        let unreadable = || IndexError::Damaged("a verification cannot be read".to_owned());
        match self.verifications.get(half(key))? {
            None => Ok(None),
            Some(value) => {
                let (_, state) = value.split_first_chunk::<8>().ok_or_else(unreadable)?;
                let record = StateRecord::decode(state).map_err(|_| unreadable())?;
                record.into_state().map(Some).ok_or_else(unreadable)
            }
        }
    }

    pub(super) fn changes(&self) -> Changes {
        Changes {
            batch: self.database.batch(),
            complete_to: None,
        }
    }

    /// Writes everything to the disk, so that the next start has nothing to complete.
    pub(super) fn close(&self) -> Result<(), IndexError> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Takes note that the index must be made anew at the next start.
    pub(super) fn mark_broken(directory: &Path) {
        if let Err(error) = fs::write(directory.join(BROKEN), []) {
            tracing::error!(%error, "the index cannot be marked as damaged; remove the directory index");
        }
    }
}

impl Changes {
    /// Adds an event. `None` if its record does not hold what it must.
    pub(super) fn add(
        &mut self,
        index: &Index,
        position: Position,
        record: &EventRecord,
    ) -> Option<()> {
        let content = record.content_sha256.as_ref().try_into().ok()?;
        let entry = IdEntry::new(position, content);
        let id = Uuid::from_slice(&record.event_id).ok()?;
        self.batch
            .insert(&index.ids, *id.as_bytes(), entry.encode());
        if let Some(place) = &record.verification {
            let state = place.state.as_ref()?;
            let mut value = position.0.to_be_bytes().to_vec();
            state.encode(&mut value).ok()?;
            self.batch
                .insert(&index.verifications, half(&place.key), value);
        }
        self.complete_to = Some(position);
        Some(())
    }

    pub(super) fn commit(mut self, index: &Index) -> Result<(), IndexError> {
        if let Some(position) = self.complete_to {
            self.batch
                .insert(&index.meta, COMPLETE_TO, position.0.to_be_bytes());
        }
        Ok(self.batch.commit()?)
    }
}

/// Half of a SHA-256 still tells any two things apart, and halves what compaction moves about.
fn half(sha256: &[u8]) -> &[u8] {
    &sha256[..sha256.len() / 2]
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
