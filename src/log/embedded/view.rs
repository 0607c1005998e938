//! The readers' side of the segments.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{
    frame::{Frame, FrameError, FrameReader, Parts},
    segment::{Directory, STRIDE, Segment},
};

/// How much is read at once by who reads on and on.
pub(super) const CHUNK_BYTES: u64 = 256 << 10;

/// How much is read at once by who wants a single record: about a stride.
const SMALL_CHUNK_BYTES: u64 = 32 << 10;

/// What readers see of the segments.
#[derive(Debug)]
pub(super) struct View {
    pub(super) directory: Directory,
    segments: RwLock<VecDeque<Segment>>,
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
    pub(super) size: u64,
    pub(super) is_empty: bool,
}

impl View {
    pub(super) fn new(directory: Directory, segments: VecDeque<Segment>) -> Self {
        Self {
            directory,
            segments: RwLock::new(segments),
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

    /// The bytes that the files take.
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
            size: active.map_or(0, |active| active.size),
            is_empty: active.is_none_or(Segment::is_empty),
        }
    }

    /// Hands records to `take`, in order, from the number `first` to `last`, until it says that it has enough.
    pub(super) fn read(
        &self,
        first: u64,
        last: u64,
        parts: Parts,
        mut take: impl FnMut(Frame) -> bool,
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
            let (name, offset, size, number) = {
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
                (
                    segment.data_name(),
                    u64::from(*offset),
                    segment.size,
                    number,
                )
            };
            let path = self.directory.join(name);
            match self.directory.disk.open(&path) {
                Ok(file) => {
                    let chunk = match last - first < STRIDE {
                        true => SMALL_CHUNK_BYTES,
                        false => CHUNK_BYTES,
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
