//! Records in a row of files, each a segment of the numbers: written at the end, deleted from the beginning.
//!
//! A segment is named for the number of its first record: `00000000000000000001.log`. It begins with a record of its own
//! that says which log it belongs to. Beside a finished segment lies `….index`, which says where its records are; it
//! can be made again at any time. A segment whose bodies were dropped is called `….heads`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
    time::Instant,
};

use uuid::Uuid;

use super::{
    OpenError,
    frame::{FrameError, FrameReader, Frames, NewFrame, Parts},
    keys::Keys,
    recovery,
    segment::{Directory, LOG, Segment, TEMPORARY},
    slots::{Slot, Slots},
    view::{CHUNK_BYTES, View},
};
use crate::log::{
    Measures,
    disk::{Disk, DiskFile},
};

/// How much is preallocated at once, but not more than a quarter of what a segment holds.
const PREALLOCATED_BYTES: u64 = 256 << 10;

/// The largest batch, in bytes, behind which that is done. Writing everything twice would cost larger ones more than they would
/// gain.
const MAX_PREALLOCATING_BATCH: u64 = PREALLOCATED_BYTES / 4;

/// What was promised of the records in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// Each is durable before it is acknowledged. All up to this number are known to have been acknowledged, whatever
    /// the files themselves say.
    Durable(u64),
    /// None: nothing is synced, and what is damaged is thrown away.
    Nothing,
}

/// The writer's side of the segments.
#[derive(Debug)]
pub(super) struct Segments {
    pub(super) view: Arc<View>,
    pub(super) measures: Measures,
    segment_bytes: u64,
    promise: Promise,
    active: Active,
    /// Nothing more goes into the active segment. A new one was to be begun, and could not: its file may be there. Or the
    /// keys of the active one are gone, or it has some and is to have no more.
    must_roll: bool,
    /// The keys for what is written. `None` when it is not encrypted.
    slots: Option<Slots>,
    /// Slots that are to be destroyed, by segment. What fails is tried again: a slot may be overwritten in part.
    to_destroy: BTreeMap<u64, BTreeSet<u32>>,
}

/// How the records of a directory are sealed.
pub(super) struct Sealing {
    pub(super) keys: Arc<Keys>,
    /// Whether new ones are.
    pub(super) enabled: bool,
    /// How many keys are made at once.
    pub(super) chunk: u32,
}

/// The file that is being written.
struct Active {
    file: Box<dyn DiskFile>,
    /// A write has failed: there may be more in the file than was acknowledged.
    untidy: bool,
    /// Something was written and not synced.
    unsynced: bool,
    /// Up to where zeros were written, or were to be, which the next records are written over.
    preallocated_to: u64,
}

impl Active {
    fn new(file: Box<dyn DiskFile>) -> Self {
        Self {
            file,
            untidy: false,
            unsynced: false,
            preallocated_to: 0,
        }
    }
}

impl std::fmt::Debug for Active {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Active").finish_non_exhaustive()
    }
}

/// Why records could not be made durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// They are not there, and a new try may succeed.
    #[error("{0}")]
    Write(io::Error),
    /// Nobody knows whether they are there, or will be: the disk has forgotten what it was to write.
    #[error("a sync has failed: {0}")]
    Sync(io::Error),
}

impl Segments {
    /// Opens the segments in a directory. A directory without any gets one that begins with the number 1.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        log_id: Uuid,
        segment_bytes: u64,
        promise: Promise,
        sealing: Sealing,
    ) -> Result<Self, OpenError> {
        let directory = Directory {
            disk,
            path: path.to_owned(),
            log_id,
        };
        let recovered = recovery::recover(&directory, promise)?;
        let (segments, file) = match recovered {
            Some(recovered) => (recovered.segments, recovered.active),
            None => {
                let (segment, file) = directory.create(1, promise)?;
                ([segment].into(), file)
            }
        };
        let Sealing {
            keys,
            enabled,
            chunk,
        } = sealing;
        if let Promise::Durable(_) = promise
            && let Some(active) = segments.back()
        {
            keys.write_again(active.base)?;
        }
        let known: Vec<(u64, u32)> = segments.iter().map(|s| (s.base, s.slots)).collect();
        let lacks_keys = keys.match_segments(&known)?;
        let has_slots = segments.back().is_some_and(|active| active.slots > 0);
        Ok(Self {
            view: Arc::new(View::new(directory, segments, Arc::clone(&keys))),
            measures: Measures::default(),
            segment_bytes,
            promise,
            active: Active::new(file),
            must_roll: lacks_keys || (has_slots && !enabled),
            slots: enabled.then(|| Slots::new(keys, promise, chunk)),
            to_destroy: BTreeMap::new(),
        })
    }

    /// The number of the last record.
    pub(super) fn end(&self) -> u64 {
        self.view.end()
    }

    /// About how many bytes one segment holds.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Begins a new segment if that is due. To be called before anything is sealed for the next records.
    pub(super) fn prepare(&mut self) -> Result<(), WriteError> {
        let active = self.view.active();
        let full = active.size >= self.segment_bytes && !active.is_empty;
        match full || self.must_roll {
            true => self.roll(),
            false => Ok(()),
        }
    }

    /// A slot for the next records of a subject, or of nobody else than this one. `None` when nothing is encrypted.
    pub(super) fn slot(&mut self, subject: Option<&[u8; 32]>) -> Result<Option<Slot>, WriteError> {
        let base = self.view.active().base;
        let Some(slots) = &mut self.slots else {
            return Ok(None);
        };
        let slot = match subject {
            Some(subject) => slots.of(base, subject),
            None => slots.another(base),
        };
        slot.map(Some)
    }

    /// What a record that is written now says of how many slots there are.
    pub(super) fn slot_count(&self) -> u32 {
        let active = self.view.active();
        let counted = self
            .slots
            .as_ref()
            .map_or(0, |slots| slots.count(active.base));
        counted.max(active.slots)
    }

    /// Writes records behind the last one, and shows them to readers. If their durability is promised, they are durable
    /// then. They were [prepared](Self::prepare) for.
    pub(super) fn append(&mut self, frames: &Frames) -> Result<(), WriteError> {
        self.tidy()?;
        let size = self.view.active().size;
        let file = self.active.file.as_ref();
        if let Err(error) = file.write_at(&frames.bytes, size) {
            self.active.untidy = true;
            return Err(WriteError::Write(error));
        }
        self.active.unsynced = true;
        if let Promise::Durable(_) = self.promise {
            let batch_bytes = frames.bytes.len() as u64;
            self.preallocate(size + batch_bytes, batch_bytes);
            let began = Instant::now();
            self.sync()?;
            let Measures {
                batch_events,
                sync_seconds,
                ..
            } = &self.measures;
            sync_seconds.observe(began.elapsed().as_secs_f64());
            batch_events.observe(frames.records.len() as f64);
        }
        let slots = self.slot_count();
        if let Some(active) = self.view.segments_mut().back_mut() {
            for record in &frames.records {
                active.add(record.time, record.head_bytes, record.body_bytes);
            }
            active.slots = slots;
        }
        Ok(())
    }

    /// Writes zeros behind a batch that has used up the last ones. A sync of what is written over them is cheaper, on file systems
    /// that write in place: neither the length of the file changes, nor where its bytes lie.
    fn preallocate(&mut self, batch_end: u64, batch_bytes: u64) {
        if batch_end <= self.active.preallocated_to || batch_bytes > MAX_PREALLOCATING_BATCH {
            return;
        }
        let zeros = vec![0; PREALLOCATED_BYTES.min(self.segment_bytes / 4) as usize];
        self.active.preallocated_to = batch_end + zeros.len() as u64;
        // Where they could not be written, syncs are as they would be without.
        let _ = self.active.file.write_at(&zeros, batch_end);
    }

    /// Cuts off what a failed write has left.
    fn tidy(&mut self) -> Result<(), WriteError> {
        match self.active.untidy {
            true => self.cut(),
            false => Ok(()),
        }
    }

    /// Cuts off what is behind the last record, and makes everything before it durable.
    pub(super) fn cut(&mut self) -> Result<(), WriteError> {
        let file = self.active.file.as_ref();
        let size = self.view.active().size;
        file.set_size(size).map_err(WriteError::Write)?;
        // Were the cut to reach the disk after new records, old ones could be found behind them.
        file.sync().map_err(WriteError::Sync)?;
        self.active.untidy = false;
        self.active.unsynced = false;
        self.active.preallocated_to = 0;
        Ok(())
    }

    /// Makes everything durable, whatever was promised.
    pub(super) fn sync(&mut self) -> Result<(), WriteError> {
        if self.active.unsynced {
            self.active.file.sync().map_err(WriteError::Sync)?;
            self.active.unsynced = false;
        }
        Ok(())
    }

    /// Finishes the active segment and begins a new one.
    pub(super) fn roll(&mut self) -> Result<(), WriteError> {
        self.must_roll = true;
        match self.promise {
            // Only the last segment may end in what was never finished, or is preallocated.
            Promise::Durable(_) => self.cut()?,
            Promise::Nothing => self.tidy()?,
        }
        let Some(active) = self.view.segments().back().cloned() else {
            return Ok(());
        };
        let directory = &self.view.directory;
        if let Promise::Durable(_) = self.promise {
            directory.write_index(&active).map_err(WriteError::Write)?;
        }
        let (segment, file) = directory.create(active.end + 1, self.promise)?;
        self.active = Active::new(file);
        self.view.segments_mut().push_back(segment);
        self.must_roll = false;
        Ok(())
    }

    /// Deletes the oldest finished segment.
    ///
    /// Readers wait meanwhile: whoever comes before finds its file, whoever comes after is told that it is gone.
    pub(super) fn delete_oldest(&mut self) -> Result<(), WriteError> {
        let directory = &self.view.directory;
        let mut segments = self.view.segments_mut();
        let Some(oldest) = segments.front().filter(|_| segments.len() > 1) else {
            return Ok(());
        };
        directory.remove(oldest.base).map_err(WriteError::Write)?;
        if let Promise::Durable(_) = self.promise {
            directory.sync().map_err(WriteError::Sync)?;
        }
        let base = oldest.base;
        segments.pop_front();
        drop(segments);
        // After the records, so that none is ever without its key.
        self.view.keys.remove(base, self.promise)
    }

    /// Takes note that a key is to be destroyed, given as the number of a record and the slot that it names. One of a
    /// segment that is gone is gone too.
    pub(super) fn condemn(&mut self, number: u64, slot: u32) {
        if let Some(base) = self.view.base_of(number)
            && slot > 0
        {
            self.to_destroy.entry(base).or_default().insert(slot);
        }
    }

    /// Destroys the keys that are to be, durably. Goes on behind a segment where that fails.
    pub(super) fn destroy_condemned(&mut self) -> Result<(), WriteError> {
        let mut result = Ok(());
        for (base, slots) in std::mem::take(&mut self.to_destroy) {
            if let Some(known) = &mut self.slots {
                known.forget(base, &slots);
            }
            if let Err(error) = self.view.keys.destroy(base, &slots) {
                self.to_destroy.insert(base, slots);
                // A sync that failed matters more than a write that did.
                if !matches!(result, Err(WriteError::Sync(_))) {
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Makes sure that the active segment is not the one that begins with this number, because its key file is to be
    /// replaced.
    pub(super) fn leave(&mut self, base: u64) -> Result<(), WriteError> {
        let active = self.view.active();
        if active.base != base {
            return Ok(());
        }
        // What a failed write has left may name the keys that go.
        self.tidy()?;
        if let Some(slots) = &mut self.slots {
            slots.leave();
        }
        match active.is_empty {
            // No record names one of its keys.
            true => self.view.keys.remove(base, self.promise),
            false => self.roll(),
        }
    }

    /// Puts the copy without bodies that [`drop_bodies`] made in the place of a finished segment.
    pub(super) fn replace(&mut self, copy: Segment) -> Result<(), WriteError> {
        let directory = &self.view.directory;
        let temporary = directory.join(copy.name(TEMPORARY));
        let (old, new) = (
            directory.join(copy.name(LOG)),
            directory.join(copy.data_name()),
        );
        {
            let mut segments = self.view.segments_mut();
            let Some(replaced) = segments.iter_mut().find(|s| s.base == copy.base) else {
                // Deleted meanwhile.
                return directory.disk.remove(&temporary).map_err(WriteError::Write);
            };
            let renamed = directory.disk.rename(&temporary, &new);
            renamed.map_err(WriteError::Write)?;
            *replaced = copy.clone();
        }
        directory.sync().map_err(WriteError::Sync)?;
        directory.write_index(&copy).map_err(WriteError::Write)?;
        directory.disk.remove(&old).map_err(WriteError::Write)?;
        directory.sync().map_err(WriteError::Sync)
    }
}

/// Copies a finished segment without its bodies. The copy is durable, but has only a temporary name.
pub(super) fn drop_bodies(view: &View, segment: &Segment) -> Result<Segment, FrameError> {
    let directory = &view.directory;
    let source = directory.join(segment.data_name());
    let range = (0, segment.size);
    let file = directory.disk.open(&source)?;
    let mut reader = FrameReader::new(file, &source, range, Parts::Heads, CHUNK_BYTES);
    let copy_file = directory
        .disk
        .create(&directory.join(segment.name(TEMPORARY)))?;
    let mut copy = Segment::new(segment.base, true);
    copy.slots = segment.slots;
    let (mut buffer, mut written) = (Vec::new(), 0);
    while let Some(frame) = reader.next()? {
        let record = NewFrame {
            number: frame.number,
            synced: frame.synced,
            time: frame.time,
            head: frame.head,
            body: &[],
        };
        record.encode(&mut buffer)?;
        // The first record of the file only names the log.
        if frame.number >= copy.base {
            copy.add(frame.time, frame.head.len(), 0);
        }
        if buffer.len() as u64 >= CHUNK_BYTES {
            copy_file.write_at(&buffer, written)?;
            written += buffer.len() as u64;
            buffer.clear();
        }
    }
    copy_file.write_at(&buffer, written)?;
    copy_file.sync()?;
    Ok(copy)
}
