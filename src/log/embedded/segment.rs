//! One file of records: what is known of it, and how it is called.

use std::{io, path::PathBuf, sync::Arc};

use prost::Message;
use uuid::Uuid;

use super::{
    frame::{HEADER_BYTES, NewFrame},
    segments::{Promise, WriteError},
    small_file,
};
use crate::log::disk::{Disk, DiskFile};

/// One record in so many is found without reading those before it.
pub(super) const STRIDE: u64 = 16;

/// A segment that can be written, or could be.
pub(super) const LOG: &str = "log";
/// A segment whose bodies were dropped.
pub(super) const HEADS: &str = "heads";
/// What lies beside a finished segment.
pub(super) const INDEX: &str = "index";
/// A copy in the making.
pub(super) const TEMPORARY: &str = "tmp";

/// One file of records.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    /// The number of its first record.
    pub(super) base: u64,
    /// The number of its last record; one less than `base` when it has none.
    pub(super) end: u64,
    /// Where its records end. Behind those of the newest segment there may be more in the file.
    pub(super) size: u64,
    /// How many bytes before that are bodies.
    pub(super) body_bytes: u64,
    /// The latest time of receipt in it.
    pub(super) newest: i64,
    /// Whether its bodies were dropped.
    pub(super) heads_only: bool,
    /// The number up to which its last record proves that all were durable.
    pub(super) proved: u64,
    /// How many slots its key file had when its last record was written.
    pub(super) slots: u32,
    /// Where every [`STRIDE`]th record begins.
    pub(super) offsets: Vec<u32>,
}

/// What lies beside a finished segment.
#[derive(Clone, PartialEq, Message)]
struct IndexFile {
    #[prost(uint64, tag = "1")]
    end: u64,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(uint64, tag = "3")]
    body_bytes: u64,
    #[prost(int64, tag = "4")]
    newest: i64,
    #[prost(fixed32, repeated, tag = "5")]
    offsets: Vec<u32>,
    #[prost(uint32, tag = "6")]
    slots: u32,
}

impl Segment {
    pub(super) fn new(base: u64, heads_only: bool) -> Self {
        Self {
            base,
            end: base - 1,
            size: FIRST_RECORD,
            body_bytes: 0,
            newest: i64::MIN,
            heads_only,
            proved: 0,
            slots: 0,
            offsets: Vec::new(),
        }
    }

    /// Whether it holds no records.
    pub(super) fn is_empty(&self) -> bool {
        self.end < self.base
    }

    /// Where the records end that its last record proves durable, or a little before.
    pub(super) fn durable_to(&self) -> u64 {
        let unproved = self.proved.saturating_add(1).max(self.base);
        let stride = (unproved - self.base) / STRIDE;
        let offset = self.offsets.get(stride as usize).copied();
        match offset {
            Some(offset) if stride > 0 => offset.into(),
            _ => 0,
        }
    }

    pub(super) fn name(&self, extension: &str) -> String {
        name(self.base, extension)
    }

    pub(super) fn data_name(&self) -> String {
        self.name(if self.heads_only { HEADS } else { LOG })
    }

    /// Takes note of a record that begins at the end.
    pub(super) fn add(&mut self, time: i64, head_bytes: usize, body_bytes: u32) {
        self.end += 1;
        if (self.end - self.base).is_multiple_of(STRIDE) {
            self.offsets.push(self.size as u32);
        }
        self.size += (HEADER_BYTES + head_bytes) as u64 + u64::from(body_bytes);
        self.body_bytes += u64::from(body_bytes);
        self.newest = self.newest.max(time);
    }
}

pub(super) fn name(base: u64, extension: &str) -> String {
    format!("{base:020}.{extension}")
}

pub(super) fn parse_name(name: &str) -> Option<(u64, &str)> {
    let (base, extension) = name.split_once('.')?;
    let digits = base.len() == 20 && base.bytes().all(|b| b.is_ascii_digit());
    let base = base.parse().ok().filter(|base| digits && *base > 0)?;
    Some((base, extension))
}

/// Where the first record of a segment begins, after the record that names the log.
const FIRST_RECORD: u64 = (HEADER_BYTES + MARK.len() + 16) as u64;

/// What the head of a segment's own record begins with. The id of the log follows.
const MARK: &[u8; 16] = b"verdict-segment1";

/// A directory of segments, all of one log.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) log_id: Uuid,
}

impl Directory {
    pub(super) fn join(&self, name: String) -> PathBuf {
        self.path.join(name)
    }

    /// Removes the files of the segment that begins with this number.
    pub(super) fn remove(&self, base: u64) -> io::Result<()> {
        for extension in [INDEX, LOG, HEADS] {
            match self.disk.remove(&self.join(name(base, extension))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.disk.sync_directory(&self.path)
    }

    /// What the head of a segment's own record is.
    pub(super) fn mark(&self) -> Vec<u8> {
        [&MARK[..], self.log_id.as_bytes()].concat()
    }

    pub(super) fn write_mark(&self, file: &dyn DiskFile) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mark = NewFrame {
            number: 0,
            synced: 0,
            time: 0,
            head: &self.mark(),
            body: &[],
        };
        mark.encode(&mut buffer)?;
        file.write_at(&buffer, 0)
    }

    /// Makes the file of a new segment, durably if that is promised. What was of this name before held nothing that was
    /// acknowledged.
    pub(super) fn create(
        &self,
        base: u64,
        promise: Promise,
    ) -> Result<(Segment, Box<dyn DiskFile>), WriteError> {
        let segment = Segment::new(base, false);
        let path = self.join(segment.data_name());
        let file = self.disk.create(&path).map_err(WriteError::Write)?;
        self.write_mark(file.as_ref()).map_err(WriteError::Write)?;
        if let Promise::Durable(_) = promise {
            file.sync().map_err(WriteError::Sync)?;
            // A name whose sync failed stays in doubt, whatever syncs follow.
            self.sync().map_err(WriteError::Sync)?;
        }
        Ok((segment, file))
    }

    /// Writes what lies beside a finished segment.
    pub(super) fn write_index(&self, segment: &Segment) -> io::Result<()> {
        let index = IndexFile {
            end: segment.end,
            size: segment.size,
            body_bytes: segment.body_bytes,
            newest: segment.newest,
            offsets: segment.offsets.clone(),
            slots: segment.slots,
        };
        let path = self.join(segment.name(INDEX));
        small_file::write(self.disk.as_ref(), &path, &index.encode_to_vec())
    }

    /// Knows a finished segment by what lies beside it; says whether that was there and fits.
    pub(super) fn read_index(&self, segment: &mut Segment, size: u64) -> bool {
        let path = self.join(segment.name(INDEX));
        let Ok(Some(index)) = small_file::read(self.disk.as_ref(), &path) else {
            return false;
        };
        match IndexFile::decode(index) {
            Ok(index) if index.size == size => {
                segment.end = index.end;
                segment.size = index.size;
                segment.body_bytes = index.body_bytes;
                segment.newest = index.newest;
                segment.offsets = index.offsets;
                segment.slots = index.slots;
                true
            }
            _ => false,
        }
    }
}
