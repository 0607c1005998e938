//! Up to where events were acknowledged: a file of 12 bytes in the directory of the index, written with each batch.
//!
//! It is the witness against a loss at the end of the newest segment. Nothing syncs it: what a power cut leaves is older, and
//! says less.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::log::Position;

/// What the file is called.
const NAME: &str = "acknowledged";

/// The number, and its CRC-32.
const BYTES: usize = 12;

/// The file.
#[derive(Debug)]
pub(super) struct Acknowledged {
    file: File,
    /// What it says.
    pub(super) position: Position,
    /// Whether it could not be written, and the operator knows.
    is_failing: bool,
}

impl Acknowledged {
    /// Opens the file, or makes it. What cannot be read says nothing.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(NAME))?;
        let mut bytes = [0; BYTES];
        let position = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => decode(bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Position::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            file,
            position,
            is_failing: false,
        })
    }

    /// Says that all events up to here were acknowledged. Where that cannot be written, an older word says less, and no event
    /// is refused for it.
    pub(super) fn write(&mut self, position: Position) {
        let written = self.file.write_all_at(&encode(position), 0);
        if let Err(error) = &written
            && !self.is_failing
        {
            tracing::warn!(%error, "how far events are acknowledged cannot be noted down");
        }
        self.is_failing = written.is_err();
        if written.is_ok() {
            self.position = position;
        }
    }
}

fn encode(position: Position) -> [u8; BYTES] {
    let number = position.0.to_be_bytes();
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&crc32fast::hash(&number).to_be_bytes());
    bytes
}

fn decode(bytes: [u8; BYTES]) -> Option<Position> {
    let position = Position(u64::from_be_bytes(*bytes.first_chunk()?));
    (encode(position) == bytes).then_some(position)
}
