//! Data keys for what is being written.
//!
//! They are made many at a time, and are durable before one of them is used: so writing an event needs no second sync. A
//! subject gets one for each segment, and another one after each start; no slot is ever given to anybody else.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt, io,
    sync::Arc,
};

use aws_lc_rs::error::Unspecified;

use super::{
    key_file::{self, SLOT_BYTES},
    keys::{Keys, OpenKeyFile, failed},
    seal::{DataKey, Nonces, Sealer},
    segments::{Promise, WriteError},
};

/// Why nothing could be sealed: the cipher itself does not fail.
pub(super) fn no_randomness(_: Unspecified) -> io::Error {
    io::Error::other("there is no randomness")
}

/// How many subjects of the newest segment are known. One that was forgotten gets another slot.
const MAX_SUBJECTS: usize = 1 << 16;

/// A data key and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) key: Arc<DataKey>,
}

impl Slot {
    /// The key, ready to seal what a record has.
    pub(super) fn sealer(&self) -> io::Result<Sealer> {
        self.key.sealer().map_err(no_randomness)
    }
}

/// The slots of the newest segment.
pub(super) struct Slots {
    keys: Arc<Keys>,
    promise: Promise,
    /// How many are made at once.
    chunk: u32,
    /// The segment. 0 when nothing is known of any.
    base: u64,
    file: Option<OpenKeyFile>,
    free: VecDeque<Slot>,
    of_subject: HashMap<[u8; 32], Slot>,
    nonces: Nonces,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").finish_non_exhaustive()
    }
}

impl Slots {
    pub(super) fn new(keys: Arc<Keys>, promise: Promise, chunk: u32) -> Self {
        Self {
            keys,
            promise,
            chunk,
            base: 0,
            file: None,
            free: VecDeque::new(),
            of_subject: HashMap::new(),
            nonces: Nonces::default(),
        }
    }

    /// The slot of a subject in the segment that begins with this number.
    pub(super) fn of(&mut self, base: u64, subject: &[u8; 32]) -> Result<Slot, WriteError> {
        self.enter(base);
        if let Some(slot) = self.of_subject.get(subject) {
            return Ok(slot.clone());
        }
        let slot = self.another(base)?;
        if self.of_subject.len() >= MAX_SUBJECTS {
            self.of_subject.clear();
        }
        self.of_subject.insert(*subject, slot.clone());
        Ok(slot)
    }

    /// A slot that nobody else has.
    pub(super) fn another(&mut self, base: u64) -> Result<Slot, WriteError> {
        self.enter(base);
        if self.free.is_empty() {
            self.make_some()?;
        }
        let slot = self.free.pop_front();
        let slot = slot.ok_or_else(|| failed("no key was made"))?;
        self.keys.remember(base, slot.number, &slot.key);
        Ok(slot)
    }

    /// How many slots the file of the segment that begins with this number has, as far as it was asked for one of them.
    pub(super) fn count(&self, base: u64) -> u32 {
        let file = self.file.as_ref().filter(|_| self.base == base);
        file.map_or(0, |file| file.slots)
    }

    /// Forgets slots that were destroyed: their subjects get others.
    pub(super) fn forget(&mut self, base: u64, slots: &BTreeSet<u32>) {
        if base == self.base {
            self.of_subject
                .retain(|_, slot| !slots.contains(&slot.number));
        }
    }

    /// Forgets everything of the segment.
    pub(super) fn leave(&mut self) {
        self.enter(0);
    }

    fn enter(&mut self, base: u64) {
        if self.base != base {
            self.base = base;
            self.file = None;
            self.free.clear();
            self.of_subject.clear();
        }
    }

    /// Makes new slots behind the end of the file: what lies before may have been used, whoever remembers it.
    fn make_some(&mut self) -> Result<(), WriteError> {
        let file = match &mut self.file {
            Some(file) => file,
            file @ None => file.insert(self.keys.open_or_create(self.base, self.promise)?),
        };
        let first = file.slots + 1;
        let failed = |error| WriteError::Write(no_randomness(error));
        let keys = DataKey::generate(self.chunk as usize).map_err(failed)?;
        let mut bytes = Vec::with_capacity(keys.len() * SLOT_BYTES);
        let mut made = VecDeque::with_capacity(keys.len());
        for (number, key) in (first..).zip(keys) {
            let place = self.keys.place(self.base, number);
            let slot = key_file::encode_slot(&place, &file.master, &key, &mut self.nonces);
            bytes.extend_from_slice(&slot.map_err(failed)?);
            let key = Arc::new(key);
            made.push_back(Slot { number, key });
        }
        let written = file.file.write_at(&bytes, key_file::offset(first));
        written.map_err(WriteError::Write)?;
        if let Promise::Durable(_) = self.promise {
            file.file.sync().map_err(WriteError::Sync)?;
        }
        file.slots += self.chunk;
        self.free = made;
        Ok(())
    }
}
