//! Which events are in the log, and where each verification stands: fjall, in the directory `index`.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `ids` | event id | position, first half of the SHA-256 of the content |
//! | `verifications` | SHA-256 of provider, account and verification id | where it stands |
//! | `meta` | name | the id of the log, the position up to which the index is complete |
//!
//! All of it follows from the events, so nothing here is synced: after a crash, what is missing is made from the log
//! again, and an index that cannot be opened is made anew from all of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
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
const MEMTABLE_BYTES: u64 = 8 << 20;

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
        match error {
            fjall::Error::Io(_) | fjall::Error::Poisoned => Self::Unavailable(error),
            error => Self::Damaged(error.to_string()),
        }
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
        content.copy_from_slice(&content_sha256[..16]);
        Self { position, content }
    }

    pub(super) fn has_content(&self, content_sha256: &[u8; 32]) -> bool {
        self.content == content_sha256[..16]
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
}

const COMPLETE_TO: &str = "complete_to";
const LOG_ID: &str = "log_id";

/// The file that says that the index must be made anew.
const BROKEN: &str = "index.broken";

impl Index {
    /// Opens the index of a log in its directory, and completes it.
    pub(super) fn open(directory: &Path, log_id: Uuid, events: &View) -> Result<Self, OpenError> {
        let path = directory.join("index");
        if directory.join(BROKEN).exists() {
            tracing::warn!("the index was found damaged and is made anew");
            remove(&path)?;
            fs::remove_file(directory.join(BROKEN))?;
        }
        let index = match Self::open_or_create(&path, log_id) {
            Ok(Some(index)) => index,
            Ok(None) => Self::create_anew(&path, log_id)?,
            Err(fjall::Error::Io(error)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the index cannot be opened and is made anew");
                Self::create_anew(&path, log_id)?
            }
        };
        index.complete(events)?;
        Ok(index)
    }

    fn create_anew(path: &Path, log_id: Uuid) -> Result<Self, OpenError> {
        remove(path)?;
        let opened = Self::open_or_create(path, log_id).map_err(IndexError::from)?;
        opened.ok_or_else(|| OpenError::Damaged("a new index is of another log".to_owned()))
    }

    /// Opens what is there; `None` if it is the index of another log.
    fn open_or_create(path: &Path, log_id: Uuid) -> Result<Option<Self>, fjall::Error> {
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
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
        let meta = database.keyspace("meta", options)?;
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
        }))
    }

    /// Adds the events that the index does not know yet.
    fn complete(&self, events: &View) -> Result<(), OpenError> {
        let start = events.start();
        let end = events.segments().back().map_or(0, |last| last.end);
        let complete_to = self.complete_to()?;
        if complete_to > end {
            return Err(OpenError::Damaged(format!(
                "the log ends with position {end}, but position {complete_to} was acknowledged; restore the log, or \
                 remove the directory index to accept the loss"
            )));
        }
        let first = complete_to.max(start) + 1;
        if end >= first + REPLAY_BATCH as u64 {
            tracing::info!(
                events = end + 1 - first,
                "the index is completed from the log"
            );
        }
        let mut changes = self.changes();
        let mut failed = None;
        let read = events.read(first, end, Parts::Heads, |frame| {
            let added = self.add_frame(&mut changes, &frame);
            failed = added.err();
            Ok(failed.is_none())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(|error| OpenError::Damaged(error.to_string()))?;
        changes.commit()?;
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
            std::mem::replace(changes, self.changes()).commit()?;
        }
        Ok(())
    }

    fn complete_to(&self) -> Result<u64, IndexError> {
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
        match self.verifications.get(key)? {
            None => Ok(None),
            Some(value) => {
                let record = StateRecord::decode(&*value).map_err(|_| unreadable())?;
                record.into_state().map(Some).ok_or_else(unreadable)
            }
        }
    }

    pub(super) fn changes(&self) -> Changes {
        Changes {
            batch: self.database.batch(),
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
            let state = place.state.as_ref()?.encode_to_vec();
            self.batch
                .insert(&index.verifications, place.key.to_vec(), state);
        }
        self.batch
            .insert(&index.meta, COMPLETE_TO, position.0.to_be_bytes());
        Some(())
    }

    /// Removes an event that is no longer retained, and its verification if it was the newest of it.
    pub(super) fn remove(
        &mut self,
        index: &Index,
        position: Position,
        record: &EventRecord,
    ) -> Result<(), IndexError> {
        if let Ok(id) = Uuid::from_slice(&record.event_id)
            && let Some(entry) = index.find(&id)?
            && entry.position == position
        {
            self.batch.remove(&index.ids, *id.as_bytes());
        }
        if let Some(place) = &record.verification
            && let Some(state) = index.verification(&place.key)?
            && state.last == position
        {
            self.batch.remove(&index.verifications, place.key.to_vec());
        }
        Ok(())
    }

    pub(super) fn commit(self) -> Result<(), IndexError> {
        Ok(self.batch.commit()?)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(PathBuf::from(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
