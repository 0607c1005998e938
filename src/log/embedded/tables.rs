//! The tables of the index: fjall, in the directory `index`.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `ids` | event id | position, first half of the SHA-256 of the content |
//! | `verifications` | first half of the SHA-256 of provider, account and verification id | position of its newest event, where it stands |
//! | `summaries` | number of a block of events | position of its last event, version of the marks, what of them is in the block |
//! | `meta` | name | the id of the log; the position up to which the tables are complete; the one up to which they may know something, with the opening that its event was written in |
//!
//! They grow by whole portions, each sorted beforehand: that goes around the journal and the memtables of fjall, which cost
//! most of its time. All of it follows from the events: after a crash, what is missing is made from the log again, and tables
//! that cannot be opened are made anew from all of it.
//!
//! What leads to an event that is no longer retained counts for nothing, and goes when fjall compacts its tables. Summaries come
//! in the order of their keys, so fjall only moves their tables, and they are deleted.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fjall::{
    Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode,
    compaction::{
        Leveled,
        filter::{
            CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
        },
    },
    config::{BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry},
};
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use uuid::Uuid;

use super::{
    OpenError,
    openings::Openings,
    portion::{IdEntry, Portion},
    record::StateRecord,
    summary,
};
use crate::log::{Position, VerificationState, Wanted};

/// What is read from tables and kept in memory: above all their filters, each of which is asked for each id that is new. Those of
/// ten million events fit, if no summaries are read beside them.
const CACHE_BYTES: u64 = 48 << 20;

/// How many portions are merged at once, how large a table becomes, and how much more each level holds than the one above it. The
/// more portions wait, the more tables are asked; the fewer, the more often a level is written anew. These cost the least, with
/// one million events and with five. An index that is there keeps what it was made with.
const PORTIONS_PER_MERGE: u8 = 4;
const TABLE_BYTES: u64 = 16 << 20;
const LEVEL_RATIO: f32 = 4.0;

/// How large a filter is: with twelve bits for each key it lets one in three hundred through that is not there.
const FILTER_BITS: f32 = 12.0;

/// The tables. Cloning them is cheap.
#[derive(Clone)]
pub(super) struct Tables {
    database: Database,
    ids: Keyspace,
    verifications: Keyspace,
    summaries: Keyspace,
    meta: Keyspace,
    start: Arc<AtomicU64>,
    /// How many seconds were waited for merges.
    pub(super) waited: Counter<f64, AtomicU64>,
    /// The summaries of all blocks before this one are deleted.
    deleted_to: Arc<AtomicU64>,
    /// One of them could not be read.
    doubts_summaries: Arc<AtomicBool>,
    /// Of the log.
    directory: Arc<Path>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
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
    // A damaged offset makes a call invalid.
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => !matches!(
            error.kind(),
            InvalidData | InvalidInput | NotFound | UnexpectedEof
        ),
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
        if self.0 == 0 {
            return Ok(Verdict::Keep);
        }
        let position = item.value()?.first_chunk().copied().map(u64::from_be_bytes);
        Ok(match position {
            // An older value that might show again leads to a still older event.
            Some(position) if position <= self.0 => Verdict::Destroy,
            _ => Verdict::Keep,
        })
    }
}

/// The directory of the index, in that of the log.
pub(super) const DIRECTORY: &str = "index";

const META: &str = "meta";
const COMPLETE_TO: &str = "complete_to";
const BEGUN_TO: &str = "begun_to";
const LOG_ID: &str = "log_id";

/// The file that says that the index must be made anew.
const BROKEN: &str = "index.broken";

impl Tables {
    /// Opens the tables of a log in the directory of its index. They may lack the newest events.
    pub(super) fn open(
        directory: &Path,
        log_id: Uuid,
        openings: &Openings,
    ) -> Result<Self, OpenError> {
        let path = directory.join(DIRECTORY);
        if directory.join(BROKEN).exists() {
            tracing::warn!("the index was found damaged and is made anew");
            remove(&path)?;
            fs::remove_file(directory.join(BROKEN))?;
        }
        match Self::open_or_create(directory, log_id, openings) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => tracing::warn!(
                "the index is of another log, or of another history of it, and is made anew"
            ),
            Err(error) if is_of_the_disk(&error) => {
                return Err(OpenError::Index(error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "the index cannot be opened and is made anew");
            }
        }
        remove(&path)?;
        match Self::open_or_create(directory, log_id, openings) {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(OpenError::Index("it is of another log".to_owned())),
            Err(error) => Err(OpenError::Index(error.to_string())),
        }
    }

    /// Opens what is there; `None` if it is not known to be the index of this log.
    fn open_or_create(
        directory: &Path,
        log_id: Uuid,
        openings: &Openings,
    ) -> Result<Option<Self>, fjall::Error> {
        let start = Arc::new(AtomicU64::new(0));
        let retained = Arc::clone(&start);
        let database = Database::builder(directory.join(DIRECTORY))
            .cache_size(CACHE_BYTES)
            // Of several, fjall has one look for work without rest while another merges.
            .worker_threads(1)
            .with_compaction_filter_factories(Arc::new(move |keyspace| {
                let start = Arc::clone(&retained);
                let filter: Arc<dyn Factory> = Arc::new(Retained { start });
                (keyspace != META).then_some(filter)
            }))
            .open()?;
        let options = || {
            KeyspaceCreateOptions::default()
                .compaction_strategy(Arc::new(
                    Leveled::default()
                        .with_l0_threshold(PORTIONS_PER_MERGE)
                        .with_table_target_size(TABLE_BYTES)
                        .with_level_ratio_policy(vec![LEVEL_RATIO]),
                ))
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
                    BloomConstructionPolicy::BitsPerKey(FILTER_BITS),
                )))
                .data_block_compression_policy(CompressionPolicy::disabled())
        };
        let meta = database.keyspace(META, options)?;
        match meta.get(LOG_ID)? {
            None => meta.insert(LOG_ID, *log_id.as_bytes())?,
            Some(id) if *id == *log_id.as_bytes() => {}
            Some(_) => return Ok(None),
        }
        if !is_of_this_history(&meta, openings)? {
            return Ok(None);
        }
        Ok(Some(Self {
            ids: database.keyspace("ids", options)?,
            verifications: database.keyspace("verifications", options)?,
            summaries: database.keyspace("summaries", options)?,
            meta,
            database,
            start,
            waited: Counter::default(),
            deleted_to: Arc::default(),
            doubts_summaries: Arc::default(),
            directory: directory.into(),
        }))
    }

    /// Everything up to here is no longer retained.
    pub(super) fn set_start(&self, start: Position) {
        self.start.store(start.0, Ordering::Relaxed);
    }

    /// The position up to which the tables know all events.
    pub(super) fn complete_to(&self) -> Result<u64, IndexError> {
        let value = self.meta.get(COMPLETE_TO)?;
        let number = value.map(|value| value.as_ref().try_into().map(u64::from_be_bytes));
        match number {
            None => Ok(0),
            Some(Ok(number)) => Ok(number),
            Some(Err(_)) => Err(IndexError::Damaged("its end is not a number".to_owned())),
        }
    }

    pub(super) fn find(&self, event_id: &[u8; 16]) -> Result<Option<IdEntry>, IndexError> {
        match self.ids.get(event_id)? {
            None => Ok(None),
            Some(value) => IdEntry::decode(&value)
                .map(Some)
                .ok_or_else(|| IndexError::Damaged("an id cannot be read".to_owned())),
        }
    }

    pub(super) fn verification(
        &self,
        key: &[u8; 16],
    ) -> Result<Option<VerificationState>, IndexError> {
        let unreadable = || IndexError::Damaged("a verification cannot be read".to_owned());
        match self.verifications.get(key)? {
            None => Ok(None),
            Some(value) => {
                let (_, state) = value.split_first_chunk::<8>().ok_or_else(unreadable)?;
                let record = StateRecord::decode(state).map_err(|_| unreadable())?;
                record.into_state().map(Some).ok_or_else(unreadable)
            }
        }
    }

    /// The blocks between two events of which there is a summary, in order, each with whether that rules out that it holds
    /// something wanted. Where a summary cannot be read it ends: nothing is known of the others.
    pub(super) fn blocks(
        &self,
        first: Position,
        last: Position,
        wanted: &Wanted,
    ) -> impl Iterator<Item = (u64, bool)> {
        let [first, last] = [first, last].map(|event| summary::block_of(event).to_be_bytes());
        let summaries = self.summaries.range(first..=last).map(Guard::into_inner);
        let readable = summaries.map_while(|summary| {
            let readable = summary.inspect_err(|error| self.doubt_summaries(error));
            readable.ok()
        });
        readable.filter_map(|(block, stored)| {
            Some((block_number(&block)?, summary::rules_out(&stored, wanted)))
        })
    }

    /// A summary cannot be read. Events can, so that is told once, and mended by the next start.
    fn doubt_summaries(&self, error: &fjall::Error) {
        if self.doubts_summaries.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(%error, "a summary of events cannot be read, so events are, which takes filters longer");
        if !is_of_the_disk(error) {
            Self::mark_broken(&self.directory);
        }
    }

    /// Takes note, durably, that the tables may know something of a portion, the last event of which was written in this
    /// opening.
    pub(super) fn begin(&self, portion: &Portion, opening: &Uuid) -> Result<(), IndexError> {
        let begun = [&portion.end.0.to_be_bytes()[..], opening.as_bytes()].concat();
        self.meta.insert(BEGUN_TO, begun)?;
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }

    /// Adds a portion, durably. Adding it once more, after it was added in part, changes nothing.
    pub(super) fn ingest(&self, portion: &Portion, opening: &Uuid) -> Result<(), IndexError> {
        self.begin(portion, opening)?;
        let ids = portion.ids.iter().map(|(id, entry)| (id, entry.encode()));
        ingest_sorted(&self.ids, ids.collect())?;
        let verifications = portion.verifications.iter();
        let states = verifications.map(|(key, state)| {
            let mut value = state.last.0.to_be_bytes().to_vec();
            value.extend(StateRecord::from(*state).encode_to_vec());
            (key, value)
        });
        ingest_sorted(&self.verifications, states.collect())?;
        self.ingest_summaries(portion)?;
        // Not before: a table is on the disk, with its name and the manifest that lists it, when its ingestion has finished.
        self.meta.insert(COMPLETE_TO, portion.end.0.to_be_bytes())?;
        // Without it a power cut would only have the next start read more events.
        self.database.persist(PersistMode::SyncAll)?;
        self.wait_for_merges();
        Ok(())
    }

    /// Adds the summaries of a portion, in a table of their own, which nothing has to be merged with.
    fn ingest_summaries(&self, portion: &Portion) -> Result<(), IndexError> {
        self.delete_summaries()?;
        if portion.summaries.is_empty() {
            return Ok(());
        }
        let mut ingestion = self.summaries.start_ingestion()?;
        for summary in &portion.summaries {
            ingestion.write(summary.block.to_be_bytes(), &summary.stored[..])?;
        }
        Ok(ingestion.finish()?)
    }

    /// Deletes some of the summaries whose events are no longer retained.
    fn delete_summaries(&self) -> Result<(), IndexError> {
        /// More than come with a portion, so that it does not last for ever.
        const MOST: usize = 4096;
        let from = self.deleted_to.load(Ordering::Relaxed);
        let start = self.start.load(Ordering::Relaxed);
        let to = summary::block_of(Position(start + 1)).max(from);
        let no_longer = self.summaries.range(from.to_be_bytes()..to.to_be_bytes());
        let keys = no_longer.take(MOST).map(Guard::key);
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        let Some(last) = keys.last().and_then(|last| block_number(last)) else {
            return Ok(());
        };
        let mut ingestion = self.summaries.start_ingestion()?;
        for key in keys {
            ingestion.write_tombstone(key)?;
        }
        ingestion.finish()?;
        self.deleted_to.store(last + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits while many tables are to be merged: each of them is asked for each id that is new. fjall has only those wait who
    /// insert. After some seconds it goes on all the same, because slow is better than not at all.
    fn wait_for_merges(&self) {
        const MOST_TABLES: usize = 3 * PORTIONS_PER_MERGE as usize;
        const PAUSE: Duration = Duration::from_millis(10);
        const PAUSES: usize = 500;
        for _ in 0..PAUSES {
            let tables = [&self.ids, &self.verifications, &self.summaries];
            let tables = tables.map(Keyspace::l0_table_count);
            if tables.into_iter().all(|count| count < MOST_TABLES) {
                return;
            }
            thread::sleep(PAUSE);
            self.waited.inc_by(PAUSE.as_secs_f64());
        }
        tracing::warn!(
            "the tables of the index are merged too slowly: the disk is too slow for what is written"
        );
    }

    /// Takes note that the index must be made anew at the next start.
    pub(super) fn mark_broken(directory: &Path) {
        if let Err(error) = fs::write(directory.join(BROKEN), []) {
            tracing::error!(%error, "the index cannot be marked as damaged; remove the directory index");
        }
    }
}

/// Whether all that the tables may know is of events of this log. A copy that has gone its own way has others at the same
/// positions.
fn is_of_this_history(meta: &Keyspace, openings: &Openings) -> Result<bool, fjall::Error> {
    let Some(begun) = meta.get(BEGUN_TO)? else {
        return Ok(meta.get(COMPLETE_TO)?.is_none());
    };
    let begun = begun.split_first_chunk().and_then(|(to, opening)| {
        let to = Position(u64::from_be_bytes(*to));
        Some((to, Uuid::from_slice(opening).ok()?))
    });
    Ok(begun.is_some_and(|(to, opening)| openings.lead_to(&opening, to)))
}

/// The number that is the key of a summary.
fn block_number(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// Writes entries into a new table.
fn ingest_sorted<V: Into<fjall::Slice>>(
    keyspace: &Keyspace,
    mut entries: Vec<(&[u8; 16], V)>,
) -> Result<(), fjall::Error> {
    if entries.is_empty() {
        return Ok(());
    }
    entries.sort_unstable_by_key(|(key, _)| *key);
    let mut ingestion = keyspace.start_ingestion()?;
    for (key, value) in entries {
        ingestion.write(*key, value)?;
    }
    ingestion.finish()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
