//! Finding the segments in a directory.
//!
//! Two things look alike at the end of the newest file: a write that was never finished, which is cut off, and damage to
//! records that were acknowledged, which is an error. Each record says up to which number all were durable when it was
//! written, so damage is told by any record of a later batch, or by who else knows what was acknowledged: the index, and the
//! note that is left on closing. Everywhere else there is nothing but damage.
//!
//! A log that was not closed may be preallocated behind its last record: zeros, which are no record and prove nothing. They are
//! cut off like a write that was never finished.

use std::{collections::VecDeque, path::Path};

use prost::Message;

use super::{
    OpenError,
    frame::{FrameError, FrameReader, Parts, proves},
    record::SealedRecord,
    segment::{Directory, HEADS, LOG, Segment, TEMPORARY, name, parse_name},
    segments::Promise,
    view::CHUNK_BYTES,
};
use crate::log::disk::DiskFile;

/// What was found.
pub(super) struct Recovered {
    /// The segments, oldest first. The last one is not finished.
    pub(super) segments: VecDeque<Segment>,
    /// The file of the last one.
    pub(super) active: Box<dyn DiskFile>,
}

/// Finds the segments, and cuts off what was never finished. `None` in a directory without any.
pub(super) fn recover(
    directory: &Directory,
    promise: Promise,
) -> Result<Option<Recovered>, OpenError> {
    let bases = find(directory)?;
    let recovered = recover_segments(directory, &bases, promise);
    match (recovered, promise) {
        (Err(OpenError::Damaged(what)), Promise::Nothing) => {
            tracing::warn!(
                what,
                "damaged records that nobody was promised are thrown away"
            );
            for (base, heads_only) in bases {
                let segment = Segment::new(base, heads_only);
                directory
                    .disk
                    .remove(&directory.join(segment.data_name()))?;
            }
            Ok(None)
        }
        (recovered, _) => recovered,
    }
}

fn recover_segments(
    directory: &Directory,
    bases: &[(u64, bool)],
    promise: Promise,
) -> Result<Option<Recovered>, OpenError> {
    let Some((last, finished)) = bases.split_last() else {
        return match promise {
            Promise::Durable(number) if number > 0 => Err(OpenError::Damaged(format!(
                "{}: it is empty, but number {number} was acknowledged",
                directory.path.display()
            ))),
            _ => Ok(None),
        };
    };
    let mut segments = VecDeque::new();
    for (base, heads_only) in finished {
        let segment = load(directory, Segment::new(*base, *heads_only), promise)?;
        push(directory, &mut segments, segment)?;
    }
    let last = Segment::new(last.0, last.1);
    let path = directory.join(last.data_name());
    let last = scan(directory, last, &path, Some(promise))?;
    if let Promise::Durable(number) = promise
        && last.end < number
    {
        return Err(OpenError::Damaged(format!(
            "{}: it ends with number {}, but number {number} was acknowledged",
            path.display(),
            last.end
        )));
    }
    let active = match promise {
        Promise::Durable(_) if last.is_empty() => make_again(directory, &last)?,
        _ => directory.disk.open(&path)?,
    };
    if let Promise::Durable(_) = promise {
        write_again(directory, active.as_ref(), &last)?;
    }
    push(directory, &mut segments, last)?;
    Ok(Some(Recovered { segments, active }))
}

/// The first numbers of the segments of which retention had deleted all records, up to this number, and which are there.
/// `None` if these are other segments: retention leaves one behind all that it deletes.
pub(super) fn deleted(
    directory: &Directory,
    deleted_to: u64,
) -> Result<Option<Vec<u64>>, OpenError> {
    let bases = find(directory)?;
    if deleted_to > 0 && bases.last().is_none_or(|newest| newest.0 <= deleted_to) {
        return Ok(None);
    }
    let with_next = bases.iter().zip(bases.iter().skip(1));
    let deleted = with_next.take_while(|(_, next)| next.0 <= deleted_to + 1);
    Ok(Some(deleted.map(|(segment, _)| segment.0).collect()))
}

/// The first numbers of the segments in a directory, in order, each with whether the bodies were dropped. Removes what was
/// never finished.
fn find(directory: &Directory) -> Result<Vec<(u64, bool)>, OpenError> {
    let mut bases = Vec::new();
    let names = directory.disk.names(&directory.path)?;
    for file in &names {
        match parse_name(file) {
            // Bodies were being dropped. The name of the copy may be in doubt; that of the original is not.
            Some((base, HEADS)) if names.contains(&name(base, LOG)) => {
                directory.disk.remove(&directory.join(file.clone()))?;
            }
            Some((base, LOG)) => bases.push((base, false)),
            Some((base, HEADS)) => bases.push((base, true)),
            Some((_, TEMPORARY)) => directory.disk.remove(&directory.join(file.clone()))?,
            _ => {}
        }
    }
    bases.sort_unstable();
    Ok(bases)
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
fn load(
    directory: &Directory,
    mut segment: Segment,
    promise: Promise,
) -> Result<Segment, OpenError> {
    let path = directory.join(segment.data_name());
    let size = directory.disk.open(&path)?.size()?;
    if directory.read_index(&mut segment, size) {
        return Ok(segment);
    }
    let segment = scan(directory, segment, &path, None)?;
    if let Promise::Durable(_) = promise {
        directory.write_index(&segment)?;
    }
    Ok(segment)
}

/// Reads a segment from end to end. What was never finished is cut off, if it is the last one, whose promise is given.
fn scan(
    directory: &Directory,
    mut segment: Segment,
    path: &Path,
    last: Option<Promise>,
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
    let Some(unfinished) = unfinished(&reader, number, last)? else {
        return Err(OpenError::Damaged(format!("number {number}: {failed}")));
    };
    let (file, position) = (path.display(), segment.end);
    if unfinished > 0 {
        tracing::warn!(
            log.file = %file,
            log.position = position,
            bytes = unfinished,
            "a write that was never acknowledged is cut off"
        );
    } else {
        tracing::info!(
            log.file = %file,
            log.position = position,
            "the log was not closed: what was preallocated is cut off"
        );
    }
    cut(directory, &segment, path)?;
    Ok(segment)
}

/// How many bytes a write that was never finished has left where reading has stopped; 0 when there is only what was
/// preallocated. `None` when the record with this number, which was to be there, was acknowledged.
fn unfinished(
    reader: &FrameReader,
    number: u64,
    last: Option<Promise>,
) -> Result<Option<u64>, OpenError> {
    match last {
        Some(Promise::Durable(known)) if number > known => {
            let rest = reader.rest()?;
            let length = rest
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            Ok((!proves(&rest, number)).then_some(length as u64))
        }
        Some(Promise::Durable(_)) | None => Ok(None),
        Some(Promise::Nothing) => Ok(Some(reader.rest_bytes())),
    }
}

/// Takes note of the records; what stopped it before the end of the file.
fn scan_records(
    segment: &mut Segment,
    reader: &mut FrameReader,
) -> Result<Option<FrameError>, OpenError> {
    let mut last = Vec::new();
    let failed = loop {
        match reader.next() {
            Ok(None) => break None,
            Ok(Some(frame)) if frame.number != segment.end + 1 || frame.synced >= frame.number => {
                let error = reader.damaged("another record was to be before");
                return Err(OpenError::Damaged(error.to_string()));
            }
            Ok(Some(frame)) => {
                segment.proved = frame.synced;
                // It only grows.
                last.clear();
                last.extend_from_slice(frame.head);
                segment.add(frame.time, frame.head.len(), frame.body_bytes);
            }
            Err(error) => break Some(error),
        }
    };
    // Whoever wants more of the record is told that it cannot be read.
    let sealed = SealedRecord::decode(&last[..]).unwrap_or_default();
    segment.slots = sealed.slots;
    Ok(failed)
}

/// Cuts off what was never finished, or preallocated.
fn cut(directory: &Directory, segment: &Segment, path: &Path) -> Result<(), OpenError> {
    let file = directory.disk.open(path)?;
    if segment.is_empty() {
        // The file may have been in the making.
        directory.write_mark(file.as_ref())?;
    }
    file.set_size(segment.size)?;
    file.sync()?;
    Ok(())
}

/// Gives the last segment a new file, as long as it is empty. The sync of its name may have failed, and then no later one
/// says that the name is on the disk: a power cut could take it from under the records that follow.
fn make_again(directory: &Directory, last: &Segment) -> Result<Box<dyn DiskFile>, OpenError> {
    let temporary = directory.join(last.name(TEMPORARY));
    let file = directory.disk.create(&temporary)?;
    directory.write_mark(file.as_ref())?;
    file.sync()?;
    let path = directory.join(last.data_name());
    directory.disk.rename(&temporary, &path)?;
    directory.sync()?;
    Ok(file)
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
