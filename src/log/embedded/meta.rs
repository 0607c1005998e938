//! What a log says of itself, in the file `meta`.

use std::{io, path::Path};

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::{
    FORMAT, OpenError,
    openings::Openings,
    record::{MetaRecord, OpeningRecord},
    small_file,
};
use crate::log::{Position, disk::Disk};

/// How many openings of a log are remembered. Cursors of older ones are of another log.
const MAX_OPENINGS: usize = 1000;

const META: &str = "meta";

/// The format in which nothing was encrypted. Its records are read as they are.
const WITHOUT_ENCRYPTION: u32 = 1;

/// Reads what the log says of itself. A new log says it at once, before there is anything else.
pub(super) fn read_or_create(
    disk: &dyn Disk,
    directory: &Path,
    new_id: Uuid,
) -> Result<MetaRecord, OpenError> {
    let Some(bytes) = small_file::read(disk, &directory.join(META))? else {
        // The file of an earlier version, and segments without an owner.
        if directory.join("keyspaces").exists()
            || !disk.names(&directory.join("events"))?.is_empty()
        {
            return Err(OpenError::NotALog);
        }
        let meta = MetaRecord {
            format: FORMAT,
            id: Bytes::copy_from_slice(new_id.as_bytes()),
            ..Default::default()
        };
        write(disk, directory, &meta)?;
        return Ok(meta);
    };
    let mut meta = MetaRecord::decode(bytes)
        .map_err(|_| OpenError::Damaged("the file meta cannot be read".to_owned()))?;
    match meta.format {
        FORMAT => Ok(meta),
        WITHOUT_ENCRYPTION => {
            tracing::warn!(
                "the log was written by a version that did not encrypt; what it holds already stays as it is"
            );
            meta.format = FORMAT;
            Ok(meta)
        }
        format => Err(OpenError::Format(format)),
    }
}

pub(super) fn id(bytes: &[u8]) -> Result<Uuid, OpenError> {
    Uuid::from_slice(bytes)
        .map_err(|_| OpenError::Damaged("an id in the file meta cannot be read".to_owned()))
}

/// Takes note that the log is opened, durably and before any event is written: so that a cursor which was given out for an
/// event can be told from one of an event that a restored copy of the log never had.
pub(super) fn add_opening(
    disk: &dyn Disk,
    directory: &Path,
    meta: &mut MetaRecord,
    new_id: Uuid,
    end: Position,
) -> Result<Openings, OpenError> {
    meta.closed = None;
    // An opening in which nothing was written has given its name to no cursor.
    if meta.openings.len() > 1 {
        meta.openings.pop_if(|last| last.after == end.0);
    }
    meta.openings.push(OpeningRecord {
        id: Bytes::copy_from_slice(new_id.as_bytes()),
        after: end.0,
    });
    let excess = meta.openings.len().saturating_sub(MAX_OPENINGS);
    meta.openings.drain(..excess);
    write(disk, directory, meta)?;
    Openings::of(meta)
}

pub(super) fn write(disk: &dyn Disk, directory: &Path, meta: &MetaRecord) -> io::Result<()> {
    small_file::write(disk, &directory.join(META), &meta.encode_to_vec())
}
