//! Which events are in the log, and where each verification stands.
//!
//! What is new is in memory, a *portion* of it: two maps. A full portion is frozen and goes into the tables on the disk, on a
//! thread of its own, while the next one fills up. So a lookup asks the newest portion, then the frozen one, then the tables,
//! and after a crash at most two portions have to be made from the log again.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::AtomicU64},
    thread,
};

use prometheus_client::metrics::counter::Counter;
use uuid::Uuid;

use super::{
    OpenError,
    acknowledged::Acknowledged,
    frame::{Frame, Parts},
    openings::Openings,
    portion::{IdEntry, Portion, half},
    record::EventRecord,
    summary::Summarizer,
    tables::{self, Tables},
    view::View,
};
use crate::{
    log::{Position, VerificationState, Wanted},
    marks::{self, Marks},
};

pub(super) use super::tables::IndexError;

/// How many events make a portion full: they and those of one more batch still fit into maps of 2^17 buckets, about 20 MiB.
/// There are two portions at most, and as many events are read again after a crash. The larger they are, the less is merged.
const PORTION_EVENTS: u64 = 112_000;

/// How many it is for segments of this size: as many as four of them hold, so that small logs have small portions.
pub(super) fn portion_events(segment_bytes: u64) -> usize {
    const BYTES_PER_EVENT: u64 = 512;
    (segment_bytes / BYTES_PER_EVENT).clamp(64, PORTION_EVENTS) as usize
}

/// The readers' side of the index. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(super) struct Index {
    tables: Tables,
    portions: Arc<RwLock<Portions>>,
}

/// What is in memory.
#[derive(Debug, Default)]
struct Portions {
    newest: Portion,
    /// The one before, until it is in the tables.
    frozen: Option<Arc<Portion>>,
}

impl Index {
    pub(super) fn find(&self, event_id: &Uuid) -> Result<Option<IdEntry>, IndexError> {
        let id = event_id.as_bytes();
        match self.in_memory(|portion| portion.ids.get(id).copied()) {
            None => self.tables.find(id),
            found => Ok(found),
        }
    }

    pub(super) fn verification(
        &self,
        key: &[u8; 32],
    ) -> Result<Option<VerificationState>, IndexError> {
        let key = half(key);
        match self.in_memory(|portion| portion.verifications.get(&key).copied()) {
            None => self.tables.verification(&key),
            found => Ok(found),
        }
    }

    /// The blocks between two events of which something is known, in order, each with whether it holds nothing that is wanted.
    pub(super) fn blocks(
        &self,
        first: Position,
        last: Position,
        wanted: &Wanted,
    ) -> impl Iterator<Item = (u64, bool)> {
        self.tables.blocks(first, last, wanted)
    }

    /// Looks into what is in memory, the newest first. What is not there, and was, is in the tables by then.
    fn in_memory<T>(&self, look: impl Fn(&Portion) -> Option<T>) -> Option<T> {
        let portions = self.portions();
        look(&portions.newest).or_else(|| look(portions.frozen.as_ref()?))
    }

    fn portions(&self) -> RwLockReadGuard<'_, Portions> {
        self.portions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn portions_mut(&self) -> RwLockWriteGuard<'_, Portions> {
        self.portions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's side of the index.
#[derive(Debug)]
pub(super) struct Indexer {
    pub(super) index: Index,
    acknowledged: Acknowledged,
    openings: Openings,
    summarizer: Summarizer,
    /// When a portion is full.
    portion_events: usize,
    /// The frozen portion is going into the tables.
    ingesting: Option<thread::JoinHandle<Result<(), IndexError>>>,
}

impl Indexer {
    /// Opens the index of a log in its directory. It may lack the newest events: [`complete`](Self::complete) adds them.
    pub(super) fn open(
        directory: &Path,
        log_id: Uuid,
        openings: Openings,
        portion_events: usize,
    ) -> Result<Self, OpenError> {
        let tables = Tables::open(directory, log_id, &openings)?;
        Ok(Self {
            index: Index {
                tables,
                portions: Arc::default(),
            },
            acknowledged: Acknowledged::open(&directory.join(tables::DIRECTORY))?,
            openings,
            summarizer: Summarizer::default(),
            portion_events,
            ingesting: None,
        })
    }

    /// All events up to here are known to have been acknowledged.
    pub(super) fn acknowledged_to(&self) -> Result<u64, IndexError> {
        let complete_to = self.index.tables.complete_to()?;
        Ok(complete_to.max(self.acknowledged.position.0))
    }

    /// How many seconds were waited for tables to be merged. Whoever holds it sees it grow.
    pub(super) fn waited(&self) -> Counter<f64, AtomicU64> {
        self.index.tables.waited.clone()
    }

    /// The log has been opened once more.
    pub(super) fn set_openings(&mut self, openings: Openings) {
        self.openings = openings;
    }

    /// Everything up to here is no longer retained.
    pub(super) fn set_start(&self, start: Position) {
        self.index.tables.set_start(start);
    }

    /// Adds the events that the index does not know yet.
    pub(super) fn complete(&mut self, events: &View) -> Result<(), OpenError> {
        let (start, end) = (events.start(), events.end());
        self.set_start(Position(start));
        let first = self.index.tables.complete_to()?.max(start) + 1;
        if end >= first + self.portion_events as u64 {
            tracing::info!(
                events = end + 1 - first,
                "the index is completed from the log"
            );
        }
        let mut failed = None;
        let read = events.read(first, end, Parts::Heads, |frame| {
            failed = self.add_frame(&frame).err();
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(|error| OpenError::Damaged(error.to_string()))?;
        self.acknowledged.write(Position(end));
        Ok(())
    }

    fn add_frame(&mut self, frame: &Frame<'_>) -> Result<(), OpenError> {
        let number = frame.number;
        let damaged = || OpenError::Damaged(format!("number {number}: its record cannot be read"));
        let record: EventRecord = frame.decode().map_err(|_| damaged())?;
        let marks = marks::of_event(&record.event);
        let summary = self.summarizer.add(Position(number), marks.as_ref());
        {
            let Portions { newest, .. } = &mut *self.index.portions_mut();
            let added = newest.add(Position(number), &record);
            added.ok_or_else(damaged)?;
            newest.summaries.extend(summary);
        }
        Ok(self.freeze_if_full()?)
    }

    /// Adds events that have become durable, the last of them at `end`, and takes note that they are acknowledged. Their marks
    /// come in the order of the events.
    pub(super) fn add<'m>(
        &mut self,
        ids: impl IntoIterator<Item = (Uuid, IdEntry)>,
        verifications: impl IntoIterator<Item = ([u8; 32], VerificationState)>,
        marks: impl IntoIterator<Item = (Position, Option<&'m Marks>)>,
        end: Position,
    ) -> Result<(), IndexError> {
        let marks = marks.into_iter();
        let summaries = marks.filter_map(|(position, marks)| self.summarizer.add(position, marks));
        // Before the lock, for which readers wait.
        let summaries: Vec<_> = summaries.collect();
        {
            let Portions { newest, .. } = &mut *self.index.portions_mut();
            let ids = ids.into_iter().map(|(id, entry)| (id.into_bytes(), entry));
            newest.ids.extend(ids);
            let verifications = verifications.into_iter();
            let verifications = verifications.map(|(key, state)| (half(&key), state));
            newest.verifications.extend(verifications);
            newest.summaries.extend(summaries);
            newest.end = end;
        }
        self.acknowledged.write(end);
        self.freeze_if_full()
    }

    /// Takes note of what has become of the frozen portion.
    pub(super) fn examine(&mut self) -> Result<(), IndexError> {
        match &self.ingesting {
            Some(ingesting) if ingesting.is_finished() => self.settle(),
            _ => Ok(()),
        }
    }

    /// Puts everything into the tables, so that the next start has nothing to complete.
    pub(super) fn close(&mut self) -> Result<(), IndexError> {
        self.freeze()?;
        self.settle()
    }

    fn freeze_if_full(&mut self) -> Result<(), IndexError> {
        let is_full = self.index.portions().newest.ids.len() >= self.portion_events;
        if is_full { self.freeze() } else { Ok(()) }
    }

    /// Has the newest portion put into the tables. Waits for the one before: there is never a third one.
    fn freeze(&mut self) -> Result<(), IndexError> {
        self.settle()?;
        let portion = {
            let mut portions = self.index.portions_mut();
            if portions.newest.ids.is_empty() {
                return Ok(());
            }
            let portion = Arc::new(std::mem::take(&mut portions.newest));
            portions.frozen = Some(Arc::clone(&portion));
            portion
        };
        let (index, opening) = (self.index.clone(), self.openings.at(portion.end));
        let ingest = move || {
            index.tables.ingest(&portion, &opening)?;
            index.portions_mut().frozen = None;
            Ok(())
        };
        let thread = thread::Builder::new()
            .name("log-index".to_owned())
            .spawn(ingest);
        let thread = thread.map_err(|error| IndexError::Unavailable(error.into()))?;
        self.ingesting = Some(thread);
        Ok(())
    }

    /// Waits until the frozen portion is in the tables.
    fn settle(&mut self) -> Result<(), IndexError> {
        let Some(ingesting) = self.ingesting.take() else {
            return Ok(());
        };
        let panicked = |_| Err(IndexError::Damaged("adding to it has panicked".to_owned()));
        ingesting.join().unwrap_or_else(panicked)
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        // Whoever opens the log next must find nobody else at work.
        if let Err(error) = self.settle() {
            tracing::warn!(%error, "the index is completed at the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::log::embedded::record::{MetaRecord, OpeningRecord};

    const PORTION: usize = 4;
    const OPENING: Uuid = Uuid::from_u128(7);

    fn open(directory: &TempDir) -> Indexer {
        std::fs::create_dir_all(directory.path()).unwrap();
        open_in(directory, &[OPENING])
    }

    /// The log was opened in these openings, each time without an event in it.
    fn open_in(directory: &TempDir, openings: &[Uuid]) -> Indexer {
        let openings = openings.iter().map(|opening| OpeningRecord {
            id: opening.as_bytes().to_vec().into(),
            after: 0,
        });
        let meta = MetaRecord {
            openings: openings.collect(),
            ..Default::default()
        };
        let openings = Openings::of(&meta).unwrap();
        Indexer::open(directory.path(), Uuid::from_u128(1), openings, PORTION).unwrap()
    }

    /// Adds events of one verification, whose ids are their numbers.
    fn add(indexer: &mut Indexer, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            let position = Position(number);
            let id = Uuid::from_u128(number.into());
            let state = VerificationState {
                revision: number,
                last: position,
                ..Default::default()
            };
            let entry = IdEntry::new(position, &[number as u8; 32]);
            indexer
                .add(
                    [(id, entry)],
                    [([7; 32], state)],
                    [(position, Some(&[mark(number); 9]))],
                    position,
                )
                .unwrap();
        }
    }

    fn knows(indexer: &Indexer, number: u64) -> bool {
        let found = indexer.index.find(&Uuid::from_u128(number.into())).unwrap();
        found.is_some_and(|entry| {
            assert_eq!(entry.position, Position(number));
            entry.has_content(&[number as u8; 32])
        })
    }

    fn revision(indexer: &Indexer) -> u64 {
        let state = indexer.index.verification(&[7; 32]).unwrap();
        state.map_or(0, |state| state.revision)
    }

    /// The mark of the event with this number: the numbers of a hash, for once.
    fn mark(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The blocks that are passed over by who looks for the event with this number.
    fn passed_over(indexer: &Indexer, number: u64) -> Vec<u64> {
        let wanted = Wanted::new(|_| true, [vec![mark(number)]].into());
        let last = Position(indexer.index.portions().newest.end.0.max(1000));
        let blocks = indexer.index.blocks(Position(1), last, &wanted);
        let ruled_out = blocks.filter(|(_, ruled_out)| *ruled_out);
        ruled_out.map(|(block, _)| block).collect()
    }

    fn complete_to(indexer: &Indexer) -> u64 {
        indexer.index.tables.complete_to().unwrap()
    }

    #[test]
    fn what_is_known_wanders_from_memory_into_tables() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        for number in 1..=50 {
            assert!(!knows(&indexer, number));
            add(&mut indexer, number..=number);
            assert!((1..=number).all(|number| knows(&indexer, number)));
            assert_eq!(revision(&indexer), number);
            assert_eq!(indexer.acknowledged_to().unwrap(), number);
            assert!(complete_to(&indexer) <= number);
            // Two portions at most are not in the tables.
            assert!(complete_to(&indexer) + 2 * PORTION as u64 >= number);
        }
        indexer.close().unwrap();
        assert_eq!(complete_to(&indexer), 50);
        drop(indexer);
        let indexer = open(&directory);
        assert!((1..=50).all(|number| knows(&indexer, number)) && !knows(&indexer, 51));
        assert_eq!(revision(&indexer), 50);
    }

    #[test]
    fn after_a_kill_it_is_known_what_was_acknowledged_and_what_the_tables_lack() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=6);
        drop(indexer);
        let mut indexer = open(&directory);
        assert_eq!(
            (complete_to(&indexer), indexer.acknowledged_to().unwrap()),
            (4, 6)
        );
        assert!(knows(&indexer, 4) && !knows(&indexer, 5));
        add(&mut indexer, 5..=6);
        indexer.close().unwrap();
        assert!(knows(&indexer, 6));
        drop(indexer);
        // What cannot be read says nothing.
        let path = directory.path().join("index/acknowledged");
        for content in ["", "123456789012"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(open(&directory).acknowledged_to().unwrap(), 6);
        }
    }

    #[test]
    fn a_portion_that_is_in_the_tables_in_part_is_put_there_again() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=4);
        indexer.close().unwrap();
        add(&mut indexer, 5..=7);
        // Killed between the two tables, and between them and the note that both are there.
        let portion = std::mem::take(&mut indexer.index.portions_mut().newest);
        for verifications in [Default::default(), portion.verifications.clone()] {
            let part = Portion {
                ids: portion.ids.clone(),
                verifications,
                summaries: Vec::new(),
                end: Position(4),
            };
            indexer.index.tables.ingest(&part, &OPENING).unwrap();
            drop(indexer);
            indexer = open(&directory);
            assert_eq!(complete_to(&indexer), 4);
        }
        add(&mut indexer, 5..=8);
        indexer.close().unwrap();
        assert!((1..=8).all(|number| knows(&indexer, number)));
        assert_eq!((revision(&indexer), complete_to(&indexer)), (8, 8));
    }

    #[test]
    fn an_index_of_another_history_is_made_anew() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=64);
        indexer.close().unwrap();
        drop(indexer);
        // The log goes on in another opening, and is what it was.
        let other = Uuid::from_u128(8);
        assert!(knows(&open_in(&directory, &[OPENING]), 64));
        assert!(knows(&open_in(&directory, &[other, OPENING]), 64));
        // Another log with the same name has the same positions, and other events.
        let mut indexer = open_in(&directory, &[other]);
        assert!(!knows(&indexer, 64) && passed_over(&indexer, 1000).is_empty());
        assert_eq!((complete_to(&indexer), revision(&indexer)), (0, 0));
        // So does one whose portion was begun there and did not get far.
        add(&mut indexer, 1..=8);
        indexer.close().unwrap();
        let part = Portion {
            end: Position(70),
            ..Default::default()
        };
        indexer.index.tables.begin(&part, &OPENING).unwrap();
        drop(indexer);
        assert!(!knows(&open_in(&directory, &[other]), 8));
    }

    #[test]
    fn a_block_that_lies_in_several_portions_is_summarized_once_it_is_whole() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=130);
        indexer.close().unwrap();
        assert_eq!(passed_over(&indexer, 64), [1]);
        assert_eq!(passed_over(&indexer, 65), [0]);
        assert_eq!(passed_over(&indexer, 1000), [0, 1]);
        add(&mut indexer, 131..=200);
        drop(indexer);
        // A start in the middle of the third block.
        let mut indexer = open(&directory);
        assert_eq!(passed_over(&indexer, 1000), [0, 1, 2]);
        let next = complete_to(&indexer) + 1;
        add(&mut indexer, next..=300);
        indexer.close().unwrap();
        assert_eq!(passed_over(&indexer, 1000), [0, 1, 2]);
        assert_eq!(passed_over(&indexer, 192), [0, 1]);
    }

    #[test]
    fn a_block_that_is_in_the_tables_already_stays_whole_when_its_portion_comes_again() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=62);
        indexer.close().unwrap();
        add(&mut indexer, 63..=63);
        let part = Portion {
            summaries: indexer
                .summarizer
                .add(Position(64), Some(&[mark(64); 9]))
                .into_iter()
                .collect(),
            end: Position(62),
            ..Default::default()
        };
        // Killed before the note that all of the portion is there.
        indexer.index.tables.ingest(&part, &OPENING).unwrap();
        drop(indexer);
        let mut indexer = open(&directory);
        assert_eq!(complete_to(&indexer), 62);
        add(&mut indexer, 63..=70);
        indexer.close().unwrap();
        assert_eq!(passed_over(&indexer, 1000), [0]);
        for event in 1..=64 {
            assert!(passed_over(&indexer, event).is_empty());
        }
    }

    #[test]
    fn summaries_go_with_the_events_and_one_of_an_event_that_is_retained_stays() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=640);
        indexer.close().unwrap();
        assert_eq!(passed_over(&indexer, 1000).len(), 10);
        for (start, first) in [(191, 2), (192, 3), (320, 5)] {
            indexer.set_start(Position(start));
            let end = indexer.index.tables.complete_to().unwrap();
            add(&mut indexer, end + 1..=end + 1);
            indexer.close().unwrap();
            assert_eq!(passed_over(&indexer, 1000), Vec::from_iter(first..10));
        }
    }

    #[test]
    fn an_index_without_summaries_is_used_as_it_is() {
        let directory = TempDir::new().unwrap();
        let mut indexer = open(&directory);
        add(&mut indexer, 1..=128);
        indexer.close().unwrap();
        drop(indexer);
        let path = directory.path().join(tables::DIRECTORY);
        let database = fjall::Database::builder(&path).open().unwrap();
        let summaries = database.keyspace("summaries", Default::default).unwrap();
        database.delete_keyspace(summaries).unwrap();
        drop(database);
        let mut indexer = open(&directory);
        assert!(knows(&indexer, 128) && complete_to(&indexer) == 128);
        assert!(passed_over(&indexer, 1000).is_empty());
        add(&mut indexer, 129..=192);
        indexer.close().unwrap();
        assert_eq!(passed_over(&indexer, 1000), [2]);
    }
}
