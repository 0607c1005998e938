//! The data keys of one kind of segments: a file of them for each segment, and the newest ones in memory.
//!
//! A key file goes with its segment. Destroying a key is overwriting its slot; nothing that it sealed can be read again then,
//! in copies of the segment neither.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use uuid::Uuid;

use super::{
    OpenError,
    key_file::{self, DESTROYED, HEADER_BYTES, Header, SLOT_BYTES},
    rewrap::Changes,
    seal::{DataKey, Kind, MasterKey, MasterKeys, SlotPlace},
    segment::{self, TEMPORARY},
    segments::{Promise, WriteError},
};
use crate::log::disk::{Disk, DiskFile};

/// How many slots are read at once: consecutive records use consecutive ones.
pub(super) const PAGE: u32 = 128;

/// How many keys are kept in memory: as many as the tail has events.
const MAX_CACHED: usize = 4096;

/// What a key file is called, after its segment.
const KEYS: &str = "keys";

/// The data keys of one kind of segments.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) disk: Arc<dyn Disk>,
    directory: PathBuf,
    pub(super) log_id: Uuid,
    pub(super) kind: Kind,
    state: RwLock<State>,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) masters: MasterKeys,
    /// The key files, by the number of the first record of their segment.
    pub(super) files: BTreeMap<u64, KeyFile>,
    /// Segments that were written with keys which are not here.
    missing: BTreeSet<u64>,
    /// What has happened since copies of key files are being made; `None` when none are.
    pub(super) changes: Option<Changes>,
    /// Key files that could not be copied. They are not tried again before the next start.
    pub(super) not_copied: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct KeyFile {
    pub(super) master: Arc<MasterKey>,
    /// How many slots it had when the log was opened.
    slots: u32,
}

/// A key file that new keys go into.
pub(super) struct OpenKeyFile {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) master: Arc<MasterKey>,
    pub(super) slots: u32,
}

/// Keys that were used lately.
#[derive(Debug, Default)]
struct Cache {
    keys: HashMap<(u64, u32), Arc<DataKey>>,
    order: VecDeque<(u64, u32)>,
    /// How often slots were destroyed. What was read from a file before must not come in afterwards.
    destructions: u64,
}

impl Cache {
    fn insert(&mut self, place: (u64, u32), key: Arc<DataKey>) {
        if self.keys.insert(place, key).is_none() {
            self.order.push_back(place);
        }
        while self.order.len() > MAX_CACHED {
            if let Some(oldest) = self.order.pop_front() {
                self.keys.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, is_gone: impl Fn(&(u64, u32)) -> bool) {
        self.destructions += 1;
        self.keys.retain(|place, _| !is_gone(place));
        self.order.retain(|place| !is_gone(place));
    }
}

/// Why a key could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{}: the key in slot {slot} is not what was written", path.display())]
    Damaged { path: PathBuf, slot: u32 },
    #[error("there is no randomness")]
    Randomness,
}

impl Keys {
    /// Finds the key files. Each must be of this log and of a master key that is known; those of unverified deliveries, of
    /// which nobody was promised anything, are thrown away otherwise.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        keys_path: &Path,
        log_id: Uuid,
        kind: Kind,
        masters: &MasterKeys,
    ) -> Result<Self, OpenError> {
        let keys = Self {
            disk,
            directory: keys_path.join(kind.directory()),
            log_id,
            kind,
            state: RwLock::new(State {
                masters: masters.clone(),
                files: BTreeMap::new(),
                missing: BTreeSet::new(),
                changes: None,
                not_copied: BTreeSet::new(),
            }),
            cache: Mutex::default(),
        };
        let names = keys.disk.names(&keys.directory)?;
        if !names.is_empty() {
            // Files may have been replaced and their names never synced. What is destroyed from now on must not come back
            // with an old name.
            keys.disk.sync_directory(&keys.directory)?;
        }
        for name in names {
            match segment::parse_name(&name) {
                Some((base, KEYS)) => match keys.find(base, masters) {
                    Ok(file) => {
                        keys.state_mut().files.insert(base, file);
                    }
                    Err(OpenError::Keys(what)) if kind == Kind::Unverified => {
                        tracing::warn!(what, "keys that nobody was promised are thrown away");
                        keys.disk.remove(&keys.directory.join(name))?;
                    }
                    Err(error) => return Err(error),
                },
                Some((_, TEMPORARY)) => keys.disk.remove(&keys.directory.join(name))?,
                _ => {}
            }
        }
        Ok(keys)
    }

    /// How many key files lie in the directories of the keys.
    pub(super) fn count_files(disk: &dyn Disk, keys_path: &Path) -> io::Result<usize> {
        let mut files = 0;
        for kind in Kind::ALL {
            let names = disk.names(&keys_path.join(kind.directory()))?;
            let is_key_file = |name: &&String| matches!(segment::parse_name(name), Some((_, KEYS)));
            files += names.iter().filter(is_key_file).count();
        }
        Ok(files)
    }

    /// Looks at a key file.
    fn find(&self, base: u64, masters: &MasterKeys) -> Result<KeyFile, OpenError> {
        let path = self.path(base);
        let file = self.disk.open(&path)?;
        let mut header = [0; HEADER_BYTES as usize];
        let read = file.read_at(&mut header, 0)?;
        let bad = |what: &str| OpenError::Keys(format!("{}: {what}", path.display()));
        let header = Header::parse(&header[..read], self.log_id, self.kind, base).map_err(bad)?;
        let id = header.master_key_id();
        let Some(master) = masters.find(id) else {
            return Err(bad(&format!(
                "it was made with the master key {id}, which is not in the file of master keys; add its line again"
            )));
        };
        if !header.is_of(master) {
            return Err(bad(&format!(
                "it was made with another master key of the id {id} than the one in the file of master keys"
            )));
        }
        Ok(KeyFile {
            master: Arc::clone(master),
            slots: key_file::slots(file.size()?),
        })
    }

    /// Makes the key file of the newest segment durable. Its name may have been given and never synced, or synced in vain: so
    /// it is not only synced, but written once more before.
    pub(super) fn write_again(&self, base: u64) -> Result<(), OpenError> {
        if !self.state().files.contains_key(&base) {
            return Ok(());
        }
        let (path, temporary) = (self.path(base), self.temporary(base));
        let file = self.disk.open(&path)?;
        let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
        let mut content = vec![0; size];
        let read = file.read_at(&mut content, 0)?;
        content.truncate(read);
        let copy = self.disk.create(&temporary)?;
        copy.write_at(&content, 0)?;
        copy.sync()?;
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_directory(&self.directory)?;
        key_file::wipe(file.as_ref());
        Ok(())
    }

    /// Compares the key files with the segments, given as first number and number of slots. Removes those of segments that
    /// were deleted, and says whether the last segment lacks keys: nothing more must be written into it then.
    pub(super) fn match_segments(&self, segments: &[(u64, u32)]) -> Result<bool, OpenError> {
        let first = segments.first().map_or(0, |(base, _)| *base);
        let bases: BTreeSet<u64> = segments.iter().map(|(base, _)| *base).collect();
        let mut state = self.state_mut();
        let is_kept = |base: &u64| match self.kind {
            Kind::Unverified => bases.contains(base),
            // Those of later segments may be wanted again: somebody may only have restored an old copy of the events.
            Kind::Events | Kind::Genuine => *base >= first,
        };
        let gone: Vec<u64> = state
            .files
            .keys()
            .copied()
            .filter(|b| !is_kept(b))
            .collect();
        for base in gone {
            self.disk.remove(&self.path(base))?;
            state.files.remove(&base);
        }
        let strange = state.files.keys().filter(|base| !bases.contains(base));
        let strange = strange.count();
        if strange > 0 {
            tracing::warn!(
                log.keys = %self.directory.display(),
                files = strange,
                "there are keys of segments that are not here; they are kept until retention has passed them"
            );
        }
        let lacks = |(base, slots): &&(u64, u32)| {
            let here = state.files.get(base).map_or(0, |file| file.slots);
            *slots > here
        };
        let missing: BTreeSet<u64> = segments.iter().filter(lacks).map(|s| s.0).collect();
        let last_lacks = segments
            .last()
            .is_some_and(|last| missing.contains(&last.0));
        if !missing.is_empty() && self.kind != Kind::Unverified {
            tracing::error!(
                log.keys = %self.directory.display(),
                segments = missing.len(),
                "the keys of some segments are gone; what was encrypted with them reads as erased"
            );
        }
        state.missing = missing;
        Ok(last_lacks)
    }

    /// The key in a slot. `None` if it was destroyed, or is not here. Blocks.
    pub(super) fn data_key(&self, base: u64, slot: u32) -> Result<Option<Arc<DataKey>>, KeyError> {
        if slot == 0 {
            return Ok(None);
        }
        let destructions = {
            let cache = self.cache();
            if let Some(key) = cache.keys.get(&(base, slot)) {
                return Ok(Some(Arc::clone(key)));
            }
            cache.destructions
        };
        let first = (slot - 1) / PAGE * PAGE + 1;
        let (master, page) = {
            // Together, so that the file is the one of this master key.
            let state = self.state();
            let Some(KeyFile { master, .. }) = state.files.get(&base) else {
                return Ok(None);
            };
            let file = self.disk.open(&self.path(base))?;
            let mut page = vec![0; PAGE as usize * SLOT_BYTES];
            let read = file.read_at(&mut page, key_file::offset(first))?;
            page.truncate(read);
            (Arc::clone(master), page)
        };
        let (slots, _) = page.as_chunks::<SLOT_BYTES>();
        let mut found = None;
        let mut keys = Vec::with_capacity(slots.len());
        for (number, bytes) in (first..).zip(slots) {
            let key = match *bytes == DESTROYED {
                true => None,
                false => key_file::decode_slot(&self.place(base, number), &master, bytes),
            };
            match key {
                Some(key) => {
                    let key = Arc::new(key);
                    if number == slot {
                        found = Some(Arc::clone(&key));
                    }
                    keys.push((number, key));
                }
                None if number == slot && *bytes != DESTROYED => {
                    let path = self.path(base);
                    return Err(KeyError::Damaged { path, slot });
                }
                None => {}
            }
        }
        let mut cache = self.cache();
        if cache.destructions == destructions {
            for (number, key) in keys {
                cache.insert((base, number), key);
            }
        }
        Ok(found)
    }

    /// The key in a slot, if it is in memory.
    pub(super) fn cached(&self, base: u64, slot: u32) -> Option<Arc<DataKey>> {
        self.cache().keys.get(&(base, slot)).cloned()
    }

    /// Keeps keys in memory that were just made.
    pub(super) fn remember(&self, base: u64, slot: u32, key: &Arc<DataKey>) {
        self.cache().insert((base, slot), Arc::clone(key));
    }

    /// Opens the key file of a segment, or makes it.
    pub(super) fn open_or_create(
        &self,
        base: u64,
        promise: Promise,
    ) -> Result<OpenKeyFile, WriteError> {
        let path = self.path(base);
        let known = {
            let mut state = self.state_mut();
            if let Some(changes) = &mut state.changes {
                changes.written.insert(base);
            }
            state.files.get(&base).cloned()
        };
        if let Some(KeyFile { master, .. }) = known {
            let file = self.disk.open(&path).map_err(WriteError::Write)?;
            let slots = key_file::slots(file.size().map_err(WriteError::Write)?);
            return Ok(OpenKeyFile {
                file,
                master,
                slots,
            });
        }
        let current = self.state().masters.current().cloned();
        let master = current.ok_or_else(|| failed("there is no master key"))?;
        let header = Header::encode(self.log_id, self.kind, base, &master);
        let header = header.ok_or_else(|| failed("there is no randomness"))?;
        let temporary = self.temporary(base);
        let file = self.disk.create(&temporary).map_err(WriteError::Write)?;
        file.write_at(&header, 0).map_err(WriteError::Write)?;
        let is_durable = matches!(promise, Promise::Durable(_));
        if is_durable {
            file.sync().map_err(WriteError::Sync)?;
        }
        let renamed = self.disk.rename(&temporary, &path);
        renamed.map_err(WriteError::Write)?;
        if is_durable {
            self.sync_directory()?;
        }
        let known = KeyFile {
            master: Arc::clone(&master),
            slots: 0,
        };
        self.state_mut().files.insert(base, known);
        Ok(OpenKeyFile {
            file,
            master,
            slots: 0,
        })
    }

    /// Removes the key file of a segment that is gone.
    pub(super) fn remove(&self, base: u64, promise: Promise) -> Result<(), WriteError> {
        let known = {
            let mut state = self.state_mut();
            state.missing.remove(&base);
            state.files.remove(&base)
        };
        self.cache().remove(|(of, _)| *of == base);
        if known.is_none() {
            return Ok(());
        }
        let removed = self.disk.remove(&self.path(base));
        removed.map_err(WriteError::Write)?;
        match promise {
            Promise::Durable(_) => self.sync_directory(),
            Promise::Nothing => Ok(()),
        }
    }

    /// Destroys keys for good. Those that are not here are gone already.
    pub(super) fn destroy(&self, base: u64, slots: &BTreeSet<u32>) -> Result<(), WriteError> {
        {
            let mut state = self.state_mut();
            if !state.files.contains_key(&base) {
                return Ok(());
            }
            if let Some(changes) = &mut state.changes {
                changes.destroyed.entry(base).or_default().extend(slots);
            }
        }
        let file = self
            .disk
            .open(&self.path(base))
            .map_err(WriteError::Write)?;
        let overwritten = key_file::overwrite(file.as_ref(), slots);
        // Readers that come from now on must find what the file holds.
        self.cache()
            .remove(|(of, slot)| *of == base && slots.contains(slot));
        overwritten
    }

    /// The file of a segment.
    pub(super) fn path(&self, base: u64) -> PathBuf {
        self.directory.join(segment::name(base, KEYS))
    }

    pub(super) fn temporary(&self, base: u64) -> PathBuf {
        self.directory.join(segment::name(base, TEMPORARY))
    }

    pub(super) fn place(&self, base: u64, slot: u32) -> SlotPlace {
        SlotPlace {
            log_id: self.log_id,
            kind: self.kind,
            base,
            slot,
        }
    }

    pub(super) fn sync_directory(&self) -> Result<(), WriteError> {
        let synced = self.disk.sync_directory(&self.directory);
        synced.map_err(WriteError::Sync)
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What operators are told.
impl Keys {
    /// Whether there is no key file for the segment that begins with this number.
    pub(super) fn has_none_for(&self, base: u64) -> bool {
        !self.state().files.contains_key(&base)
    }

    /// How many key files there are, and how many segments lack theirs.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.files.len() as u64, state.missing.len() as u64)
    }

    /// The id of the current master key.
    pub(super) fn master_key_id(&self) -> Option<String> {
        let state = self.state();
        state.masters.current().map(|key| key.id().to_owned())
    }
}

/// A write that could not even be tried.
pub(super) fn failed(why: &'static str) -> WriteError {
    WriteError::Write(io::Error::other(why))
}
