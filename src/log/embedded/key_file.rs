//! How data keys lie in a file.
//!
//! | bytes | content |
//! |---|---|
//! | 0 to 15 | `verdict-keyfile1` |
//! | 16 to 31 | id of the log |
//! | 32 | kind of the segment |
//! | 33 | length of the id of the master key |
//! | 40 to 47 | number of the segment's first record |
//! | 48 to 79 | id of the master key |
//! | 80 to 107 | proof that this master key was there: nonce and tag over bytes 0 to 79 |
//! | 108 to 111 | CRC-32 of bytes 0 to 107 |
//! | 512 … | slots of 64 bytes: nonce, wrapped data key, tag, 4 bytes of zeros |
//!
//! Integers are little-endian. A slot of zeros was destroyed. None lies across the border of two sectors, so a power cut
//! leaves it as it was or as it is to be.

use std::{collections::BTreeSet, io};

use aws_lc_rs::error::Unspecified;
use uuid::Uuid;

use super::{
    seal::{DataKey, Kind, MAX_ID_BYTES, MasterKey, Nonces, PROOF_BYTES, SlotPlace, WRAPPED_BYTES},
    segments::WriteError,
};
use crate::log::disk::DiskFile;

pub(super) const HEADER_BYTES: u64 = 512;
pub(super) const SLOT_BYTES: usize = 64;

const MAGIC: &[u8; 16] = b"verdict-keyfile1";
const PROVED_BYTES: usize = 80;
const CHECKED_BYTES: usize = PROVED_BYTES + PROOF_BYTES;

/// A destroyed slot.
pub(super) const DESTROYED: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

/// Where a slot begins. They are numbered from 1 on.
pub(super) fn offset(slot: u32) -> u64 {
    HEADER_BYTES + u64::from(slot - 1) * SLOT_BYTES as u64
}

/// How many slots a file of this length has, one that was not finished included.
pub(super) fn slots(size: u64) -> u32 {
    let slots = size
        .saturating_sub(HEADER_BYTES)
        .div_ceil(SLOT_BYTES as u64);
    u32::try_from(slots).unwrap_or(u32::MAX)
}

/// What the header of a key file says.
#[derive(Debug)]
pub(super) struct Header {
    bytes: [u8; CHECKED_BYTES],
}

impl Header {
    /// The beginning of a new file. `None` if there is no randomness.
    pub(super) fn encode(
        log_id: Uuid,
        kind: Kind,
        base: u64,
        master: &MasterKey,
    ) -> Option<Vec<u8>> {
        let id = master.id().as_bytes();
        let mut header = vec![0; HEADER_BYTES as usize];
        header[..16].copy_from_slice(MAGIC);
        header[16..32].copy_from_slice(log_id.as_bytes());
        header[32] = kind.code();
        header[33] = u8::try_from(id.len()).ok()?;
        header[40..48].copy_from_slice(&base.to_le_bytes());
        header[48..48 + id.len()].copy_from_slice(id);
        let proof = master.prove(&header[..PROVED_BYTES]).ok()?;
        header[PROVED_BYTES..CHECKED_BYTES].copy_from_slice(&proof);
        let checksum = crc32fast::hash(&header[..CHECKED_BYTES]);
        header[CHECKED_BYTES..CHECKED_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        Some(header)
    }

    /// Reads the beginning of a file. Otherwise what is wrong with it.
    pub(super) fn parse(
        bytes: &[u8],
        log_id: Uuid,
        kind: Kind,
        base: u64,
    ) -> Result<Self, &'static str> {
        let checked = bytes.first_chunk::<CHECKED_BYTES>();
        let checked = checked.ok_or("its header is cut off")?;
        let checksum = crc32fast::hash(checked).to_le_bytes();
        if bytes[CHECKED_BYTES..].first_chunk() != Some(&checksum) {
            return Err("the checksum of its header does not match");
        }
        if checked[..16] != *MAGIC {
            return Err("it is no key file of this version");
        }
        if checked[16..32] != *log_id.as_bytes() {
            return Err("it belongs to another log");
        }
        if checked[32] != kind.code() || checked[40..48] != base.to_le_bytes() {
            return Err("it belongs to another segment");
        }
        Ok(Self { bytes: *checked })
    }

    /// The id of the master key.
    pub(super) fn master_key_id(&self) -> &str {
        let length = usize::from(self.bytes[33]).min(MAX_ID_BYTES);
        std::str::from_utf8(&self.bytes[48..48 + length]).unwrap_or_default()
    }

    /// Whether the file was made with this very key, and not only with one of the same id.
    pub(super) fn is_of(&self, master: &MasterKey) -> bool {
        let (proved, proof) = self.bytes.split_at(PROVED_BYTES);
        master.has_proved(proved, proof)
    }
}

/// A slot with a data key. Fails if there is no randomness.
pub(super) fn encode_slot(
    place: &SlotPlace,
    master: &MasterKey,
    key: &DataKey,
    nonces: &mut Nonces,
) -> Result<[u8; SLOT_BYTES], Unspecified> {
    let mut slot = DESTROYED;
    slot[..WRAPPED_BYTES].copy_from_slice(&master.wrap(place, key, nonces)?);
    Ok(slot)
}

/// The data key in a slot. `None` if it is not what was written.
pub(super) fn decode_slot(
    place: &SlotPlace,
    master: &MasterKey,
    slot: &[u8; SLOT_BYTES],
) -> Option<DataKey> {
    master.unwrap(place, &slot[..WRAPPED_BYTES])
}

/// Overwrites slots, durably. Those beyond the end of the file are none.
pub(super) fn overwrite(file: &dyn DiskFile, gone: &BTreeSet<u32>) -> Result<(), WriteError> {
    let last = slots(file.size().map_err(WriteError::Write)?);
    for slot in gone.iter().filter(|slot| (1..=last).contains(*slot)) {
        let written = file.write_at(&DESTROYED, offset(*slot));
        written.map_err(WriteError::Write)?;
    }
    file.sync().map_err(WriteError::Sync)
}

/// Overwrites a key file that another one has replaced, so that what is destroyed there is not found in its old blocks. Nothing
/// that was promised depends on it.
pub(super) fn wipe(file: &dyn DiskFile) {
    let wipe = || {
        let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
        file.write_at(&vec![0; size], 0)?;
        file.sync()
    };
    if let Err(error) = wipe() {
        tracing::warn!(%error, "a key file that was replaced could not be overwritten");
    }
}
