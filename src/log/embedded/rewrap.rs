//! Another master key: the key files are wrapped anew, a few at a time, beside the writer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    thread,
};

use super::{
    key_file::{self, DESTROYED, Header, SLOT_BYTES},
    keys::{KeyError, Keys, PAGE},
    master_file::MasterFile,
    seal::{MasterKey, MasterKeys, Nonces},
    segments::WriteError,
    writer::Writer,
};
use crate::log::disk::DiskFile;

/// How many key files are copied before the copies are put in the place of the files.
const MAX_FILES_AT_ONCE: usize = 8;

/// How far wrapping anew has come.
pub(super) struct Rewrapping {
    master_file: MasterFile,
    copying: Option<Copying>,
}

struct Copying {
    keys: Arc<Keys>,
    thread: thread::JoinHandle<Copies>,
}

/// What became of the files, by the number of the first record of their segment: the master key of the copy, or why there is
/// none.
type Copies = Vec<(u64, Result<Arc<MasterKey>, KeyError>)>;

/// What happens to key files while copies of some are being made.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Slots that were destroyed.
    pub(super) destroyed: BTreeMap<u64, BTreeSet<u32>>,
    /// Files that new slots go into. Their copies are worth nothing.
    pub(super) written: BTreeSet<u64>,
}

impl Rewrapping {
    pub(super) fn new(master_file: MasterFile) -> Self {
        Self {
            master_file,
            copying: None,
        }
    }

    /// Waits for what goes on beside the writer.
    pub(super) fn close(&mut self) {
        if let Some(copying) = self.copying.take() {
            // What it has copied is thrown away at the next start.
            let _ = copying.thread.join();
        }
    }
}

impl Writer {
    /// Takes new master keys, and wraps anew what older ones have wrapped.
    pub(super) fn rewrap(&mut self) {
        if self.shared.health.has_not_failed().is_err() {
            return;
        }
        let all = self.shared.keys();
        let disk = self.shared.disk.as_ref();
        if self.rewrapping.copying.is_none()
            && let Some(masters) = self
                .rewrapping
                .master_file
                .changed(disk, &all.each_ref().map(|keys| &***keys))
        {
            for keys in &all {
                keys.set_masters(&masters);
            }
            tracing::info!(
                log.master_key = masters.current().map(|key| key.id()),
                "the master keys were read again"
            );
        }
        let finished = self
            .rewrapping
            .copying
            .take_if(|copying| copying.thread.is_finished());
        if let Some(Copying { keys, thread }) = finished {
            // A thread that panicked has copied nothing.
            let copies = thread.join().unwrap_or_default();
            if let Err(error) = keys.finish_copying(copies) {
                self.trouble(error);
                return;
            }
        }
        if self.rewrapping.copying.is_none()
            && let Err(error) = self.begin_rewrapping()
        {
            self.trouble(error);
        }
    }

    fn begin_rewrapping(&mut self) -> Result<(), WriteError> {
        for segments in [
            &mut self.events,
            &mut self.genuine.segments,
            &mut self.unverified.segments,
        ] {
            let keys = Arc::clone(&segments.view.keys);
            // The file that is written to is not copied meanwhile.
            for base in keys.to_copy() {
                segments.leave(base)?;
            }
            // One that was left may be gone, and be made anew at any time.
            let mut bases = keys.to_copy();
            bases.truncate(MAX_FILES_AT_ONCE);
            if bases.is_empty() {
                continue;
            }
            keys.begin_copying();
            let copier = Arc::clone(&keys);
            let copy = move || {
                let copies = bases.into_iter().map(|base| (base, copier.copy(base)));
                copies.collect()
            };
            let thread = thread::Builder::new()
                .name("log-rewrap".to_owned())
                .spawn(copy)
                .map_err(WriteError::Write)?;
            self.rewrapping.copying = Some(Copying { keys, thread });
            return Ok(());
        }
        Ok(())
    }
}

impl Keys {
    /// The id of a master key that key files need and that is not among these.
    pub(super) fn lacks(&self, masters: &MasterKeys) -> Option<String> {
        let state = self.state();
        let mut used = state.files.values().map(|file| file.master.id());
        used.find(|id| masters.find(id).is_none())
            .map(ToOwned::to_owned)
    }

    /// Takes other master keys.
    pub(super) fn set_masters(&self, masters: &MasterKeys) {
        self.state_mut().masters = masters.clone();
    }

    /// The key files that are not of the current master key.
    pub(super) fn outdated(&self) -> Vec<u64> {
        let state = self.state();
        let Some(current) = state.masters.current() else {
            return Vec::new();
        };
        let files = state.files.iter();
        files
            .filter(|(_, file)| file.master.id() != current.id())
            .map(|(base, _)| *base)
            .collect()
    }

    /// Those of them of which a copy may succeed.
    fn to_copy(&self) -> Vec<u64> {
        let mut bases = self.outdated();
        let state = self.state();
        bases.retain(|base| !state.not_copied.contains(base));
        bases
    }

    /// Begins to take note of what happens to key files, because copies are about to be made.
    fn begin_copying(&self) {
        self.state_mut().changes = Some(Changes::default());
    }

    /// Copies a key file, wrapped by the current master key. The copy is durable, but has only a temporary name.
    fn copy(&self, base: u64) -> Result<Arc<MasterKey>, KeyError> {
        let (file, old, new) = {
            let state = self.state();
            let known = state.files.get(&base);
            let known = known.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let new = state.masters.current().ok_or(KeyError::Randomness)?;
            let file = self.disk.open(&self.path(base))?;
            (file, Arc::clone(&known.master), Arc::clone(new))
        };
        let copy = self.disk.create(&self.temporary(base))?;
        let header = Header::encode(self.log_id, self.kind, base, &new);
        copy.write_at(&header.ok_or(KeyError::Randomness)?, 0)?;
        let (mut first, mut nonces) = (1, Nonces::default());
        loop {
            let mut page = vec![0; PAGE as usize * SLOT_BYTES];
            let read = file.read_at(&mut page, key_file::offset(first))?;
            page.truncate(read.next_multiple_of(SLOT_BYTES));
            let (slots, _) = page.as_chunks_mut::<SLOT_BYTES>();
            for (slot, bytes) in (first..).zip(slots.iter_mut()) {
                let place = self.place(base, slot);
                // What does not unwrap is nothing that was ever used, or damaged: it stays so.
                if *bytes != DESTROYED
                    && let Some(key) = key_file::decode_slot(&place, &old, bytes)
                {
                    let wrapped = key_file::encode_slot(&place, &new, &key, &mut nonces);
                    *bytes = wrapped.map_err(|_| KeyError::Randomness)?;
                }
            }
            let is_last = slots.len() < PAGE as usize;
            copy.write_at(&page, key_file::offset(first))?;
            if is_last {
                copy.sync()?;
                return Ok(new);
            }
            first += PAGE;
        }
    }

    /// Puts copies in the place of the files they were made of, without what was destroyed meanwhile.
    fn finish_copying(&self, copies: Copies) -> Result<(), WriteError> {
        let changes = self.state_mut().changes.take().unwrap_or_default();
        let mut replaced = Vec::new();
        let mut result = Ok(());
        for (base, copied) in copies {
            let finished = match copied {
                Ok(master) if result.is_ok() && !changes.written.contains(&base) => {
                    self.replace(base, master, changes.destroyed.get(&base))
                }
                Ok(_) => Ok(None),
                Err(error) => {
                    self.was_not_copied(base, error);
                    Ok(None)
                }
            };
            match finished {
                Ok(Some(old)) => replaced.push(old),
                Ok(None) => self.discard_copy(base),
                Err(error) => {
                    self.discard_copy(base);
                    result = Err(error);
                }
            }
        }
        // Even if something went wrong: what is destroyed from now on must not come back with an old name.
        if !replaced.is_empty() {
            self.sync_directory()?;
        }
        for old in replaced {
            key_file::wipe(old.as_ref());
        }
        result
    }

    /// Puts a copy in the place of a key file, which is returned. `None` if that is gone by now.
    fn replace(
        &self,
        base: u64,
        master: Arc<MasterKey>,
        destroyed: Option<&BTreeSet<u32>>,
    ) -> Result<Option<Box<dyn DiskFile>>, WriteError> {
        let (temporary, path) = (self.temporary(base), self.path(base));
        let mut state = self.state_mut();
        let Some(known) = state.files.get_mut(&base) else {
            return Ok(None);
        };
        if let Some(slots) = destroyed {
            let copy = self.disk.open(&temporary).map_err(WriteError::Write)?;
            key_file::overwrite(copy.as_ref(), slots)?;
        }
        let old = self.disk.open(&path).map_err(WriteError::Write)?;
        let renamed = self.disk.rename(&temporary, &path);
        renamed.map_err(WriteError::Write)?;
        known.master = master;
        Ok(Some(old))
    }

    fn was_not_copied(&self, base: u64, error: KeyError) {
        // Deleted meanwhile.
        if matches!(&error, KeyError::Io(error) if error.kind() == io::ErrorKind::NotFound) {
            return;
        }
        tracing::error!(
            log.key_file = %self.path(base).display(),
            %error,
            "a key file cannot be wrapped anew; it is tried again at the next start, and needs its old master key until then"
        );
        self.state_mut().not_copied.insert(base);
    }

    /// Removes a copy that is not needed. It may never have come to be, and is removed at the next start at last.
    fn discard_copy(&self, base: u64) {
        match self.disk.remove(&self.temporary(base)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a copy of a key file could not be removed");
            }
            _ => {}
        }
    }
}
