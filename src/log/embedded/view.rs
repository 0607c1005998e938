//! The readers' side of the segments.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;

use super::{
    frame::{Frame, FrameError, FrameReader, Parts},
    keys::{KeyError, Keys},
    seal::{DataKey, Purpose, RecordPlace},
    segment::{Directory, STRIDE, Segment},
};
use crate::log::{Position, Sealed};

/// How much is read at once by who reads on and on. It stays in the caches of a processor, and of what is read last for a page
/// of events, little is read in vain.
pub(super) const CHUNK_BYTES: u64 = 64 << 10;

/// How much is read at once by who wants a single record: about a stride.
const SMALL_CHUNK_BYTES: u64 = 32 << 10;

/// What readers see of the segments.
#[derive(Debug)]
pub(super) struct View {
    pub(super) directory: Directory,
    segments: RwLock<VecDeque<Segment>>,
    pub(super) keys: Arc<Keys>,
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    #[error("no longer retained")]
    NotRetained,
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The record with this number is not what was written.
    #[error("{what}")]
    Damaged { number: u64, what: String },
}

impl ViewError {
    fn of(number: u64, error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Io(error),
            damaged @ FrameError::Damaged { .. } => Self::Damaged {
                number,
                what: damaged.to_string(),
            },
        }
    }
}

/// The segment that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct ActiveSegment {
    /// The number of its first record, or of the one that will be the first.
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) is_empty: bool,
    pub(super) slots: u32,
}

/// Something of a record that may be sealed, as it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'b> {
    /// The number of the record.
    pub(super) number: u64,
    /// The slot that it names.
    pub(super) slot: u32,
    pub(super) purpose: Purpose,
    pub(super) bytes: &'b Bytes,
}

impl<'b> Stored<'b> {
    /// The personal data of an event.
    pub(super) fn personal_data(position: Position, sealed: &'b Sealed) -> Self {
        Self {
            number: position.0,
            slot: sealed.slot,
            purpose: Purpose::PersonalData,
            bytes: &sealed.bytes,
        }
    }
}

impl View {
    pub(super) fn new(directory: Directory, segments: VecDeque<Segment>, keys: Arc<Keys>) -> Self {
        Self {
            directory,
            segments: RwLock::new(segments),
            keys,
        }
    }

    pub(super) fn segments(&self) -> RwLockReadGuard<'_, VecDeque<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segments_mut(&self) -> RwLockWriteGuard<'_, VecDeque<Segment>> {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The number before the first record.
    pub(super) fn start(&self) -> u64 {
        self.segments().front().map_or(0, |first| first.base - 1)
    }

    /// The bytes that the records take, in all files.
    pub(super) fn size_bytes(&self) -> u64 {
        self.segments().iter().map(|segment| segment.size).sum()
    }

    /// The number of the last record.
    pub(super) fn end(&self) -> u64 {
        self.segments().back().map_or(0, |last| last.end)
    }

    pub(super) fn active(&self) -> ActiveSegment {
        let segments = self.segments();
        let active = segments.back();
        ActiveSegment {
            base: active.map_or(1, |active| active.base),
            size: active.map_or(0, |active| active.size),
            is_empty: active.is_none_or(Segment::is_empty),
            slots: active.map_or(0, |active| active.slots),
        }
    }

    /// The number of the first record of the segment that holds, or would hold, this one. `None` if that is gone.
    pub(super) fn base_of(&self, number: u64) -> Option<u64> {
        let segments = self.segments();
        let after = segments.partition_point(|segment| segment.base <= number);
        Some(segments[after.checked_sub(1)?].base)
    }

    /// Opens what is sealed in a record. `None` when its key was destroyed or is gone. Blocks.
    pub(super) fn open(&self, stored: Stored<'_>) -> Result<Option<Bytes>, ViewError> {
        if stored.slot == 0 || stored.bytes.is_empty() {
            return Ok(Some(stored.bytes.clone()));
        }
        let Some(base) = self.base_of(stored.number) else {
            return Ok(None);
        };
        match self.keys.data_key(base, stored.slot) {
            Ok(Some(key)) => self.open_with(&key, stored).map(Some),
            Ok(None) => Ok(None),
            Err(KeyError::Io(error)) if self.base_of(stored.number) == Some(base) => {
                Err(error.into())
            }
            // Deleted since we looked.
            Err(KeyError::Io(_)) => Ok(None),
            Err(error @ (KeyError::Damaged { .. } | KeyError::Randomness)) => {
                Err(ViewError::Damaged {
                    number: stored.number,
                    what: error.to_string(),
                })
            }
        }
    }

    /// The same, if that is possible without reading a file.
    pub(super) fn open_at_once(&self, stored: Stored<'_>) -> Option<Result<Bytes, ViewError>> {
        if stored.slot == 0 || stored.bytes.is_empty() {
            return Some(Ok(stored.bytes.clone()));
        }
        let base = self.base_of(stored.number)?;
        let key = self.keys.cached(base, stored.slot)?;
        Some(self.open_with(&key, stored))
    }

    fn open_with(&self, key: &DataKey, stored: Stored<'_>) -> Result<Bytes, ViewError> {
        let place = self.place(stored.number);
        let opened = key.open(&place, stored.purpose, stored.bytes);
        opened.ok_or_else(|| {
            let base = self.base_of(stored.number).unwrap_or_default();
            ViewError::Damaged {
                number: stored.number,
                what: format!(
                    "{}: what it is sealed with is another key",
                    self.keys.path(base).display()
                ),
            }
        })
    }

    /// What something sealed in a record is bound to.
    pub(super) fn place(&self, number: u64) -> RecordPlace {
        RecordPlace {
            log_id: self.directory.log_id,
            kind: self.keys.kind,
            number,
        }
    }

    /// Hands records to `take`, in order, from the number `first` to `last`, until it says that it has enough.
    pub(super) fn read(
        &self,
        first: u64,
        last: u64,
        parts: Parts,
        mut take: impl FnMut(Frame<'_>) -> bool,
    ) -> Result<(), ViewError> {
        let mut next = first;
        while next <= last {
            let Some(mut reader) = self.reader(next, last, parts)? else {
                return Ok(());
            };
            while next <= last {
                let frame = reader.next().map_err(|error| ViewError::of(next, error))?;
                let Some(frame) = frame else { break };
                if frame.number != next {
                    let error = reader.damaged("another record was to be here");
                    return Err(ViewError::of(next, error));
                }
                next += 1;
                if !take(frame) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Opens the segment that holds the record `first`, and goes to this record.
    fn reader(
        &self,
        first: u64,
        last: u64,
        parts: Parts,
    ) -> Result<Option<FrameReader>, ViewError> {
        loop {
            let (name, offset, size, number, needed) = {
                let segments = self.segments();
                let after = segments.partition_point(|segment| segment.base <= first);
                let index = after.checked_sub(1).ok_or(ViewError::NotRetained)?;
                let segment = &segments[index];
                if first > segment.end {
                    return Ok(None);
                }
                let stride = (first - segment.base) / STRIDE;
                let Some(offset) = segment.offsets.get(stride as usize) else {
                    let what = format!("{}: its index is too short", segment.data_name());
                    return Err(ViewError::Damaged {
                        number: first,
                        what,
                    });
                };
                let number = segment.base + stride * STRIDE;
                let behind = last.saturating_sub(segment.base) / STRIDE + 1;
                let behind = segment.offsets.get(behind as usize).copied();
                let needed = behind.map_or(segment.size, u64::from);
                let needed = needed.saturating_sub((*offset).into());
                (
                    segment.data_name(),
                    u64::from(*offset),
                    segment.size,
                    number,
                    needed,
                )
            };
            let path = self.directory.join(name);
            match self.directory.disk.open(&path) {
                Ok(file) => {
                    let chunk = match last - first < STRIDE {
                        true => SMALL_CHUNK_BYTES,
                        false => CHUNK_BYTES.min(needed),
                    };
                    let mut reader = FrameReader::new(file, &path, (offset, size), parts, chunk);
                    for passed in number..first {
                        reader
                            .pass()
                            .map_err(|error| ViewError::of(passed, error))?;
                    }
                    return Ok(Some(reader));
                }
                // Replaced by one without bodies since we looked: look again.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && self.has_changed(&path) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn has_changed(&self, path: &Path) -> bool {
        let names = |segment: &Segment| self.directory.join(segment.data_name()) == *path;
        !self.segments().iter().any(names)
    }
}
