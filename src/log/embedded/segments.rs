//! Records in a row of files, each a segment of the numbers: written at the end, deleted from the beginning.
//!
//! A segment is named for the number of its first record: `00000000000000000001.log`. It begins with a record of its own
//! that says which log it belongs to. Beside a finished segment lies `….index`, which says where its records are; it
//! can be made again at any time. A segment whose bodies were dropped is called `….heads`, one that is being deleted
//! `….expired`.

use std::{collections::VecDeque, io, path::Path, sync::Arc};

use uuid::Uuid;

use super::{
    OpenError,
    frame::{Frame, FrameError, FrameReader, NewFrame, Parts},
    recovery,
    segment::{Directory, EXPIRED, INDEX, LOG, STRIDE, Segment, TEMPORARY},
    view::{CHUNK_BYTES, View},
};
use crate::log::disk::{Disk, DiskFile};

/// The writer's side of the segments.
#[derive(Debug)]
pub(super) struct Segments {
    pub(super) view: Arc<View>,
    segment_bytes: u64,
    active: Active,
    /// Segments that are no longer read, and wait for their files to be deleted.
    expired: VecDeque<Segment>,
}

/// The file that is being written.
struct Active {
    file: Box<dyn DiskFile>,
    /// A write has failed: there may be more in the file than was acknowledged.
    untidy: bool,
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
    ) -> Result<Self, OpenError> {
        let directory = Directory {
            disk,
            path: path.to_owned(),
            log_id,
        };
        let mut recovered = recovery::recover(&directory)?;
        let file = match recovered.active {
            Some(file) => file,
            None => {
                let base = recovered.expired.back().map_or(1, |last| last.end + 1);
                let (segment, file) = directory.create(base)?;
                recovered.segments.push_back(segment);
                file
            }
        };
        Ok(Self {
            view: Arc::new(View::new(directory, recovered.segments)),
            segment_bytes,
            active: Active {
                file,
                untidy: false,
            },
            expired: recovered.expired,
        })
    }

    /// The number of the last record.
    pub(super) fn end(&self) -> u64 {
        self.view.segments().back().map_or(0, |active| active.end)
    }

    /// Begins a new segment.
    fn create(&mut self, base: u64) -> Result<(), WriteError> {
        let (segment, file) = self.view.directory.create(base)?;
        self.active = Active {
            file,
            untidy: false,
        };
        self.view.segments_mut().push_back(segment);
        Ok(())
    }

    /// Writes records behind the last one. They are durable when [`sync`](Self::sync) has returned, and seen by readers
    /// when this has, if `sync` is false.
    pub(super) fn append(&mut self, frames: &[NewFrame<'_>], sync: bool) -> Result<(), WriteError> {
        self.roll_if_full()?;
        let mut buffer = Vec::with_capacity(frames.len() * 1024);
        for frame in frames {
            frame.encode(&mut buffer).map_err(WriteError::Write)?;
        }
        let size = self.view.segments().back().map_or(0, |active| active.size);
        let file = self.active.file.as_ref();
        if self.active.untidy {
            file.set_size(size).map_err(WriteError::Write)?;
            // Were the cut to reach the disk after the new records, old ones could be found behind them.
            file.sync().map_err(WriteError::Sync)?;
            self.active.untidy = false;
        }
        if let Err(error) = file.write_at(&buffer, size) {
            self.active.untidy = true;
            return Err(WriteError::Write(error));
        }
        if sync {
            file.sync().map_err(WriteError::Sync)?;
        }
        if let Some(active) = self.view.segments_mut().back_mut() {
            for frame in frames {
                active.add(frame.time, frame.head.len(), frame.body.len() as u32);
            }
        }
        Ok(())
    }

    /// Makes everything durable that was appended without a sync.
    pub(super) fn sync(&self) -> Result<(), WriteError> {
        self.active.file.sync().map_err(WriteError::Sync)
    }

    fn roll_if_full(&mut self) -> Result<(), WriteError> {
        let full = self
            .view
            .segments()
            .back()
            .is_none_or(|active| active.size >= self.segment_bytes && !active.is_empty());
        if full { self.roll() } else { Ok(()) }
    }

    /// Finishes the active segment and begins a new one.
    pub(super) fn roll(&mut self) -> Result<(), WriteError> {
        let active = self.view.segments().back().cloned();
        if let Some(active) = &active {
            if self.active.untidy {
                let file = self.active.file.as_ref();
                file.set_size(active.size).map_err(WriteError::Write)?;
                file.sync().map_err(WriteError::Sync)?;
                self.active.untidy = false;
            }
            // Only the last segment may end in what was never finished.
            self.active.file.sync().map_err(WriteError::Sync)?;
            self.view
                .directory
                .write_index(active)
                .map_err(WriteError::Write)?;
        }
        self.create(active.map_or(1, |active| active.end + 1))
    }

    /// Takes the oldest finished segment away from the readers, durably. Its file stays until
    /// [`delete`](Self::delete).
    pub(super) fn expire(&mut self) -> Result<(), WriteError> {
        let directory = &self.view.directory;
        // Before the file is renamed: readers look for it as long as they see it here.
        let Some(oldest) = self.view.segments_mut().pop_front() else {
            return Ok(());
        };
        let from = directory.join(oldest.data_name());
        let to = directory.join(oldest.name(EXPIRED));
        if let Err(error) = directory.disk.rename(&from, &to) {
            self.view.segments_mut().push_front(oldest);
            return Err(WriteError::Write(error));
        }
        self.expired.push_back(oldest);
        directory.sync().map_err(WriteError::Sync)
    }

    /// The first and the last number of the oldest segment that is no longer read and not yet deleted.
    pub(super) fn expired(&self) -> Option<(u64, u64)> {
        self.expired.front().map(|oldest| (oldest.base, oldest.end))
    }

    /// Reads records of that segment, `count` of them from the number `first` on.
    pub(super) fn read_expired(&self, first: u64, count: u64) -> Result<Vec<Frame>, FrameError> {
        let Some(segment) = self.expired.front() else {
            return Ok(Vec::new());
        };
        let path = self.view.directory.join(segment.name(EXPIRED));
        let stride = (first - segment.base) / STRIDE;
        let Some(offset) = segment.offsets.get(stride as usize) else {
            return Ok(Vec::new());
        };
        let range = (u64::from(*offset), segment.size);
        let file = self.view.directory.disk.open(&path)?;
        let mut reader = FrameReader::new(file, &path, range, Parts::Heads, CHUNK_BYTES);
        let mut frames = Vec::new();
        while (frames.len() as u64) < count
            && let Some(frame) = reader.next()?
        {
            if frame.number >= first {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    /// Deletes the file of the oldest segment that is no longer read.
    pub(super) fn delete(&mut self) -> Result<(), WriteError> {
        let directory = &self.view.directory;
        let Some(segment) = self.expired.front() else {
            return Ok(());
        };
        let _ = directory.disk.remove(&directory.join(segment.name(INDEX)));
        match directory
            .disk
            .remove(&directory.join(segment.name(EXPIRED)))
        {
            // A try before this one came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(WriteError::Write)?,
        }
        directory.sync().map_err(WriteError::Sync)?;
        self.expired.pop_front();
        Ok(())
    }

    /// The finished segments, oldest first.
    pub(super) fn finished(&self) -> Vec<Segment> {
        let segments = self.view.segments();
        let finished = segments.len().saturating_sub(1);
        segments.iter().take(finished).cloned().collect()
    }

    /// Puts the copy without bodies that [`drop_bodies`] made in the place of a finished segment.
    pub(super) fn replace(&mut self, copy: Segment) -> io::Result<()> {
        let directory = &self.view.directory;
        let index = {
            let segments = self.view.segments();
            segments
                .iter()
                .position(|segment| segment.base == copy.base)
        };
        let temporary = directory.join(copy.name(TEMPORARY));
        let Some(index) = index else {
            return directory.disk.remove(&temporary);
        };
        directory
            .disk
            .rename(&temporary, &directory.join(copy.data_name()))?;
        directory.sync()?;
        let old = directory.join(copy.name(LOG));
        directory.write_index(&copy)?;
        self.view.segments_mut()[index] = copy;
        directory.disk.remove(&old)?;
        directory.sync()
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
    let (mut buffer, mut written) = (Vec::new(), 0);
    while let Some(frame) = reader.next()? {
        let record = NewFrame {
            number: frame.number,
            synced: frame.synced,
            time: frame.time,
            head: &frame.head,
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
