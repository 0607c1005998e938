//! Small files that are written as a whole: the old content stays until the new one is durable.

use std::{io, path::Path};

use bytes::Bytes;

use super::frame::{FrameError, FrameReader, NewFrame, Parts};
use crate::log::disk::Disk;

/// Writes a file, in place of one that is there.
pub(super) fn write(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut buffer = Vec::new();
    let frame = NewFrame {
        number: 0,
        synced: 0,
        time: 0,
        head: content,
        body: &[],
    };
    frame.encode(&mut buffer)?;
    let temporary = path.with_extension("new");
    let file = disk.create(&temporary)?;
    file.write_at(&buffer, 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => disk.sync_directory(directory),
        None => Ok(()),
    }
}

/// Reads a file; `None` if there is none.
pub(super) fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Bytes>, FrameError> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let size = file.size()?;
    let mut reader = FrameReader::new(file, path, (0, size), Parts::All, size);
    match reader.next()? {
        Some(frame) => Ok(Some(Bytes::copy_from_slice(frame.head))),
        None => Err(reader.damaged("it is empty")),
    }
}
