//! Another master key: the key files are wrapped anew, a few at a time, beside the writer.

use std::{sync::Arc, thread};

use super::{
    keys::{KeyError, Keys},
    master_file::MasterFile,
    seal::MasterKey,
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
                        Err(KeyError::Io(error))
                            if error.kind() == std::io::ErrorKind::NotFound => {}
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
