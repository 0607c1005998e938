//! How a record lies in a file.
//!
//! | bytes | content |
//! |---|---|
//! | 0 to 3 | CRC-32 of bytes 4 to 39 and the head |
//! | 4 to 7 | length of the head |
//! | 8 to 11 | length of the body |
//! | 12 to 15 | CRC-32 of the body |
//! | 16 to 23 | number: the record's place among all records of its kind |
//! | 24 to 31 | the number up to which all records were durable when this one was written |
//! | 32 to 39 | time of receipt, in Unix seconds |
//! | 40 … | head, then body |
//!
//! Integers are little-endian. The second number is what tells a write that was never finished, which is cut off, from
//! damage to a record that was acknowledged, which is an error.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use crc32fast::Hasher;
use prost::{DecodeError, Message};

use crate::log::disk::DiskFile;

/// The length of what stands before the head.
pub(super) const HEADER_BYTES: usize = 40;

/// A record of a file, as it lies in what was read of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'b> {
    pub(super) number: u64,
    pub(super) synced: u64,
    pub(super) time: i64,
    pub(super) head: &'b [u8],
    /// Empty when it was not asked for.
    pub(super) body: &'b [u8],
    pub(super) body_bytes: u32,
}

impl Frame<'_> {
    /// Decodes the head. It is copied once, and what of the message is bytes are parts of the copy.
    pub(super) fn decode<M: Message + Default>(&self) -> Result<M, DecodeError> {
        M::decode(Bytes::copy_from_slice(self.head))
    }
}

/// A record to be written.
pub(super) struct NewFrame<'a> {
    pub(super) number: u64,
    pub(super) synced: u64,
    pub(super) time: i64,
    pub(super) head: &'a [u8],
    pub(super) body: &'a [u8],
}

impl NewFrame<'_> {
    /// Appends the record to a buffer. Nothing that verdict takes comes near 4 GiB; should it, it is refused.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let start = begin(buffer);
        buffer.extend_from_slice(self.head);
        let head_end = buffer.len();
        buffer.extend_from_slice(self.body);
        let numbers = Numbers {
            number: self.number,
            synced: self.synced,
            time: self.time,
        };
        finish(&mut buffer[start..], head_end - start, &numbers)
    }
}

/// What the header of a record says of its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) number: u64,
    pub(super) synced: u64,
    pub(super) time: i64,
}

/// Records in a row, as they are to lie in the file.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<FrameSize>,
}

/// How large one of them is, and its time.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameSize {
    pub(super) time: i64,
    pub(super) head_bytes: usize,
    pub(super) body_bytes: u32,
}

impl Frames {
    /// Appends a record, whose head and body are written right where they are to be.
    pub(super) fn add(
        &mut self,
        numbers: &Numbers,
        head: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
        body: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let start = begin(&mut self.bytes);
        head(&mut self.bytes)?;
        let head_end = self.bytes.len();
        body(&mut self.bytes)?;
        let record = &mut self.bytes[start..];
        finish(record, head_end - start, numbers)?;
        self.records.push(FrameSize {
            time: numbers.time,
            head_bytes: head_end - start - HEADER_BYTES,
            body_bytes: (start + record.len() - head_end) as u32,
        });
        Ok(())
    }

    /// Lets go of the records, and keeps the memory for the next ones, unless there was very much.
    pub(super) fn clear(&mut self) {
        const KEPT_BYTES: usize = 1 << 20;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.records.clear();
    }
}

/// Leaves room for the header of a record, and says where it begins.
fn begin(buffer: &mut Vec<u8>) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Fills in the header of a record, once its head, which ends there, and its body are known.
fn finish(record: &mut [u8], head_end: usize, numbers: &Numbers) -> io::Result<()> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let (with_head, body) = record.split_at_mut(head_end);
    let Some((header, head)) = with_head.split_first_chunk_mut::<HEADER_BYTES>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    header[4..8].copy_from_slice(&length(head)?.to_le_bytes());
    header[8..12].copy_from_slice(&length(body)?.to_le_bytes());
    header[12..16].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    header[16..24].copy_from_slice(&numbers.number.to_le_bytes());
    header[24..32].copy_from_slice(&numbers.synced.to_le_bytes());
    header[32..40].copy_from_slice(&numbers.time.to_le_bytes());
    let checksum = head_checksum(header, head);
    header[..4].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

fn head_checksum(header: &[u8; HEADER_BYTES], head: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&header[4..]);
    hasher.update(head);
    hasher.finalize()
}

/// The header of a record, not yet checked.
struct Header<'a> {
    bytes: &'a [u8; HEADER_BYTES],
}

impl Header<'_> {
    fn u32_at(&self, at: usize) -> u32 {
        let bytes: [u8; 4] = std::array::from_fn(|i| self.bytes[at + i]);
        u32::from_le_bytes(bytes)
    }

    fn u64_at(&self, at: usize) -> u64 {
        let bytes: [u8; 8] = std::array::from_fn(|i| self.bytes[at + i]);
        u64::from_le_bytes(bytes)
    }
}

/// Which parts of records are read and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    Heads,
    All,
}

/// Where the parts of a record end, counted from its beginning.
#[derive(Clone, Copy)]
struct Ends {
    head: usize,
    body: u64,
}

impl Ends {
    /// Of the record that begins here. If not all of these parts are there: how many bytes they take at least.
    fn find(record: &[u8], parts: Parts) -> Result<Self, u64> {
        let Some(bytes) = record.first_chunk::<HEADER_BYTES>() else {
            return Err(HEADER_BYTES as u64);
        };
        let header = Header { bytes };
        let head = HEADER_BYTES + header.u32_at(4) as usize;
        let body = head as u64 + u64::from(header.u32_at(8));
        let needed = match parts {
            Parts::Heads => head as u64,
            Parts::All => body,
        };
        match record.len() as u64 >= needed {
            true => Ok(Self { head, body }),
            false => Err(needed),
        }
    }
}

/// The record of which these parts were found to end there, or what is wrong with it.
fn parse(record: &[u8], ends: Ends, parts: Parts) -> Result<Frame<'_>, &'static str> {
    let Some((bytes, head)) = record[..ends.head].split_first_chunk::<HEADER_BYTES>() else {
        return Err("a record is shorter than its header");
    };
    let header = Header { bytes };
    if head_checksum(bytes, head) != header.u32_at(0) {
        return Err("the checksum of a record's head does not match");
    }
    let body = match parts {
        Parts::Heads => &[],
        Parts::All => &record[ends.head..ends.body as usize],
    };
    if parts == Parts::All && crc32fast::hash(body) != header.u32_at(12) {
        return Err("the checksum of a record's body does not match");
    }
    Ok(Frame {
        number: header.u64_at(16),
        synced: header.u64_at(24),
        time: header.u64_at(32).cast_signed(),
        head,
        body,
        body_bytes: header.u32_at(8),
    })
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{}: byte {offset}: {what}", path.display())]
    Damaged {
        path: PathBuf,
        offset: u64,
        what: &'static str,
    },
}

/// Reads the records of a file one after another.
pub(super) struct FrameReader {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Where the record begins that was read last, or will be read next.
    offset: u64,
    /// How long the record is that was read last.
    taken: u64,
    end: u64,
    parts: Parts,
    chunk_bytes: u64,
    /// What has been read, and where in it `offset` is.
    buffer: Vec<u8>,
    at: usize,
}

impl FrameReader {
    /// Reads from one place of a file to another. `chunk_bytes` is how much is read at once.
    pub(super) fn new(
        file: Box<dyn DiskFile>,
        path: &Path,
        (offset, end): (u64, u64),
        parts: Parts,
        chunk_bytes: u64,
    ) -> Self {
        Self {
            file,
            path: path.to_owned(),
            offset,
            taken: 0,
            end,
            parts,
            chunk_bytes,
            buffer: Vec::new(),
            at: 0,
        }
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let left = self.go_on();
        if left == 0 {
            return Ok(None);
        }
        let ends = loop {
            match Ends::find(&self.buffer[self.at..], self.parts) {
                Ok(ends) if ends.body <= left => break ends,
                Err(needed) if needed <= left => self.fill(needed)?,
                Ok(_) | Err(_) => {
                    return Err(self.damaged("a record reaches beyond the end of the file"));
                }
            }
        };
        match parse(&self.buffer[self.at..], ends, self.parts) {
            Ok(frame) => {
                self.taken = ends.body;
                Ok(Some(frame))
            }
            Err(what) => Err(self.damaged(what)),
        }
    }

    /// Passes over the next record, by the lengths that it gives. Whether they are right shows at the record behind it.
    pub(super) fn pass(&mut self) -> Result<(), FrameError> {
        let left = self.go_on();
        if self.buffer.len() - self.at < HEADER_BYTES {
            self.fill(HEADER_BYTES as u64)?;
        }
        let Some(bytes) = self.buffer[self.at..].first_chunk::<HEADER_BYTES>() else {
            return Err(self.damaged("the file is shorter than it must be"));
        };
        let header = Header { bytes };
        let lengths = u64::from(header.u32_at(4)) + u64::from(header.u32_at(8));
        let length = HEADER_BYTES as u64 + lengths;
        if length > left {
            return Err(self.damaged("a record reaches beyond the end of the file"));
        }
        self.taken = length;
        Ok(())
    }

    /// Goes to the end of the record that was read last, and says how much is left from there.
    fn go_on(&mut self) -> u64 {
        let rest = (self.buffer.len() - self.at) as u64;
        self.at += rest.min(self.taken) as usize;
        self.offset += std::mem::take(&mut self.taken);
        self.end - self.offset
    }

    /// Reads at least so many bytes from `offset` on.
    fn fill(&mut self, needed: u64) -> Result<(), FrameError> {
        let wanted = needed.max(self.chunk_bytes).min(self.end - self.offset);
        let wanted = usize::try_from(wanted).map_err(io::Error::other)?;
        self.at = 0;
        self.buffer.resize(wanted, 0);
        let read = self.file.read_at(&mut self.buffer, self.offset);
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        if (read? as u64) < needed {
            return Err(self.damaged("the file is shorter than it must be"));
        }
        Ok(())
    }

    /// What is wrong with the record that begins here.
    pub(super) fn damaged(&self, what: &'static str) -> FrameError {
        FrameError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            what,
        }
    }

    /// How many bytes there are from here on.
    pub(super) fn rest_bytes(&self) -> u64 {
        self.end - self.offset
    }

    /// Everything from here on, records or not.
    pub(super) fn rest(&self) -> Result<Vec<u8>, FrameError> {
        let length = usize::try_from(self.rest_bytes()).map_err(io::Error::other)?;
        let mut rest = vec![0; length];
        let read = self.file.read_at(&mut rest, self.offset)?;
        rest.truncate(read);
        Ok(rest)
    }
}

/// Looks, byte by byte, for a record which says that the record `number` was durable.
pub(super) fn proves(bytes: &[u8], number: u64) -> bool {
    (0..bytes.len().saturating_sub(HEADER_BYTES)).any(|at| {
        let record = &bytes[at..];
        let Some(header) = record.first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        let header = Header { bytes: header };
        let (claimed, synced) = (header.u64_at(16), header.u64_at(24));
        // A check of the numbers spares most checksums.
        claimed > number
            && synced >= number
            && synced < claimed
            && Ends::find(record, Parts::All)
                .is_ok_and(|ends| parse(record, ends, Parts::All).is_ok())
    })
}
