//! Finding the segments in a directory.
//!
//! Two things look alike at the end of the newest file: a write that was never finished, which is cut off, and damage to
//! records that were acknowledged, which is an error. Each record says up to which number all were durable when it was
//! written, so damage is told by any record behind it. Everywhere else there is nothing but damage.

use std::collections::VecDeque;
use std::path::Path;

use super::{
    OpenError,
    frame::{FrameError, FrameReader, Parts},
    segment::{Directory, EXPIRED, HEADS, LOG, Segment, TEMPORARY, name, parse_name},
    view::CHUNK_BYTES,
};
use crate::log::disk::DiskFile;

/// What was found.
pub(super) struct Recovered {
    /// The segments, oldest first. The last one is not finished. There is none in a new directory.
    pub(super) segments: VecDeque<Segment>,
    /// The file of the last one.
    pub(super) active: Option<Box<dyn DiskFile>>,
    /// Segments that are no longer read, and wait for being deleted.
    pub(super) expired: VecDeque<Segment>,
}

/// Finds the segments, and cuts off what was never finished.
pub(super) fn recover(directory: &Directory) -> Result<Recovered, OpenError> {
    let found = find(directory)?;
    let mut recovered = Recovered {
        segments: VecDeque::new(),
        active: None,
        expired: VecDeque::new(),
    };
    for base in found.expired {
        let path = directory.join(name(base, EXPIRED));
        let segment = scan(directory, Segment::new(base, false), &path, false)?;
        recovered.expired.push_back(segment);
    }
    let Some((last, finished)) = found.bases.split_last() else {
        return Ok(recovered);
    };
    for (base, heads_only) in finished {
        let segment = load(directory, Segment::new(*base, *heads_only))?;
        push(directory, &mut recovered.segments, segment)?;
    }
    let last = Segment::new(last.0, last.1);
    let path = directory.join(last.data_name());
    let last = scan(directory, last, &path, true)?;
    let file = directory.disk.open(&path)?;
    write_again(directory, file.as_ref(), &last)?;
    push(directory, &mut recovered.segments, last)?;
    recovered.active = Some(file);
    Ok(recovered)
}

/// First numbers, in order.
struct Found {
    /// Each with whether the bodies were dropped.
    bases: Vec<(u64, bool)>,
    expired: Vec<u64>,
}

/// Looks into a directory, and removes what was never finished or is no longer needed.
fn find(directory: &Directory) -> Result<Found, OpenError> {
    let (mut bases, mut expired) = (Vec::new(), Vec::new());
    let names = directory.disk.names(&directory.path)?;
    for file in &names {
        let path = directory.path.join(file);
        match parse_name(file) {
            // Bodies were being dropped: the copy is there, so the original is no longer needed.
            Some((base, LOG)) if names.contains(&name(base, HEADS)) => {
                directory.disk.remove(&path)?;
            }
            Some((base, LOG)) => bases.push((base, false)),
            Some((base, HEADS)) => bases.push((base, true)),
            Some((base, EXPIRED)) => expired.push(base),
            Some((_, TEMPORARY)) => directory.disk.remove(&path)?,
            _ => {}
        }
    }
    bases.sort_unstable();
    expired.sort_unstable();
    Ok(Found { bases, expired })
}

/// Adds a segment behind the others.
fn push(
    directory: &Directory,
    segments: &mut VecDeque<Segment>,
    segment: Segment,
) -> Result<(), OpenError> {
    if let Some(before) = segments.back()
        && before.end + 1 != segment.base
    {
        let path = directory.join(before.data_name());
        return Err(OpenError::Damaged(format!(
            "{}: it ends with number {}, but the next file begins with {}",
            path.display(),
            before.end,
            segment.base
        )));
    }
    segments.push_back(segment);
    Ok(())
}

/// Knows a finished segment by what lies beside it, or reads it.
fn load(directory: &Directory, mut segment: Segment) -> Result<Segment, OpenError> {
    let path = directory.join(segment.data_name());
    let size = directory.disk.open(&path)?.size()?;
    if directory.read_index(&mut segment, size) {
        return Ok(segment);
    }
    let segment = scan(directory, segment, &path, false)?;
    directory.write_index(&segment)?;
    Ok(segment)
}

/// Reads a segment from end to end. What was never finished is cut off the last one.
fn scan(
    directory: &Directory,
    mut segment: Segment,
    path: &Path,
    is_last: bool,
) -> Result<Segment, OpenError> {
    let size = directory.disk.open(path)?.size()?;
    let file = directory.disk.open(path)?;
    let mut reader = FrameReader::new(file, path, (0, size), Parts::All, CHUNK_BYTES);
    let failed = match reader.next() {
        Ok(Some(mark)) if *mark.head == *directory.mark() => {
            scan_records(&mut segment, &mut reader)?
        }
        Ok(Some(_)) => {
            return Err(OpenError::Damaged(format!(
                "{}: it belongs to another log",
                path.display()
            )));
        }
        Ok(None) => Some(reader.damaged("it is empty")),
        Err(error) => Some(error),
    };
    let Some(failed) = failed else {
        return Ok(segment);
    };
    if let FrameError::Io(error) = failed {
        return Err(error.into());
    }
    let number = segment.end + 1;
    if !is_last || reader.finds_proof_of(number)? {
        return Err(OpenError::Damaged(format!("number {number}: {failed}")));
    }
    cut(directory, &segment, path, size)?;
    Ok(segment)
}

/// Takes note of the records; what stopped it before the end of the file.
fn scan_records(
    segment: &mut Segment,
    reader: &mut FrameReader,
) -> Result<Option<FrameError>, OpenError> {
    loop {
        match reader.next() {
            Ok(None) => return Ok(None),
            Ok(Some(frame)) if frame.number != segment.end + 1 => {
                let error = reader.damaged("another record was to be before");
                return Err(OpenError::Damaged(error.to_string()));
            }
            Ok(Some(frame)) => {
                segment.proved = frame.synced;
                segment.add(frame.time, frame.head.len(), frame.body_bytes);
            }
            Err(error) => return Ok(Some(error)),
        }
    }
}

/// Cuts off what was never finished.
fn cut(directory: &Directory, segment: &Segment, path: &Path, size: u64) -> Result<(), OpenError> {
    tracing::warn!(
        log.file = %path.display(),
        log.position = segment.end,
        bytes = size.saturating_sub(segment.size),
        "a write that was never acknowledged is cut off"
    );
    let file = directory.disk.open(path)?;
    if segment.is_empty() {
        // The file may have been in the making.
        directory.write_mark(file.as_ref())?;
    }
    file.set_size(segment.size)?;
    file.sync()?;
    Ok(())
}

/// Makes the newest records durable. They may have been written and never synced, or synced in vain: a system that could
/// not write a page may show it all the same. So they are not only synced, but written once more before.
fn write_again(
    directory: &Directory,
    file: &dyn DiskFile,
    last: &Segment,
) -> Result<(), OpenError> {
    let from = last.durable_to();
    let mut tail = vec![0; (last.size - from) as usize];
    let read = file.read_at(&mut tail, from)?;
    tail.truncate(read);
    file.write_at(&tail, from)?;
    file.sync()?;
    directory.sync()?;
    Ok(())
}
