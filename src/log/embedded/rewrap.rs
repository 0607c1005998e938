//! Another master key: the key files are wrapped anew, a few at a time, beside the writer.

use std::{collections::BTreeSet, io, sync::Arc, thread};

use super::{
    key_file::{self, DESTROYED, Header, SLOT_BYTES},
    keys::{KeyError, Keys, PAGE, overwrite},
    master_file::MasterFile,
    seal::{MasterKey, MasterKeys},
    segments::WriteError,
    writer::Writer,
};

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

/// What became of the files: their copies, and what stopped it.
type Copies = (Vec<(u64, Arc<MasterKey>)>, Option<KeyError>);

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
            let (copies, failed) = thread.join().unwrap_or_default();
            if let Err(error) = keys.finish_copying(copies) {
                self.trouble(error);
                return;
            }
            if let Some(error) = failed {
                tracing::error!(%error, "a key file cannot be wrapped anew; it is tried again");
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
            let mut bases = keys.outdated();
            bases.truncate(MAX_FILES_AT_ONCE);
            if bases.is_empty() {
                continue;
            }
            // The file that is written to is not copied meanwhile.
            for base in &bases {
                segments.leave(*base)?;
            }
            keys.begin_copying();
            let copier = Arc::clone(&keys);
            let copy = move || {
                let mut copies = Vec::new();
                for base in bases {
                    match copier.copy(base) {
                        Ok(master) => copies.push((base, master)),
                        // Deleted meanwhile.
                        Err(KeyError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return (copies, Some(error)),
                    }
                }
                (copies, None)
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
    /// Takes other master keys. Says which id is missing if one is, and takes none then.
    pub(super) fn lacks(&self, masters: &MasterKeys) -> Option<String> {
        let state = self.state();
        let mut used = state.files.values().map(|file| file.master.id());
        used.find(|id| masters.find(id).is_none())
            .map(ToOwned::to_owned)
    }

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

    /// Begins to take note of what is destroyed, because copies are about to be made.
    pub(super) fn begin_copying(&self) {
        self.state_mut().destroyed = Some(Vec::new());
    }

    /// Copies a key file, wrapped by the current master key. The copy is durable, but has only a temporary name.
    pub(super) fn copy(&self, base: u64) -> Result<Arc<MasterKey>, KeyError> {
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
        let mut first = 1;
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
                    let wrapped = key_file::encode_slot(&place, &new, &key);
                    *bytes = wrapped.ok_or(KeyError::Randomness)?;
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
    pub(super) fn finish_copying(
        &self,
        copies: Vec<(u64, Arc<MasterKey>)>,
    ) -> Result<(), WriteError> {
        let mut state = self.state_mut();
        let destroyed = state.destroyed.take().unwrap_or_default();
        for (base, master) in copies {
            let (temporary, path) = (self.temporary(base), self.path(base));
            let Some(known) = state.files.get_mut(&base) else {
                // Deleted meanwhile.
                self.disk.remove(&temporary).map_err(WriteError::Write)?;
                continue;
            };
            let of_it = destroyed.iter().filter(|(of, _)| *of == base);
            let slots: BTreeSet<u32> = of_it.map(|(_, slot)| *slot).collect();
            if !slots.is_empty() {
                let copy = self.disk.open(&temporary).map_err(WriteError::Write)?;
                overwrite(copy.as_ref(), &slots)?;
            }
            let renamed = self.disk.rename(&temporary, &path);
            renamed.map_err(WriteError::Write)?;
            known.master = master;
        }
        self.sync_directory()
    }
}
