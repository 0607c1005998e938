//! Whether the log can write.
//!
//! A write that failed is tried again: nobody was told that it succeeded, and what is in the file is overwritten. After a
//! sync that failed nothing is certain any more, because the system may have thrown away what it could not write: the log
//! writes nothing until a new start has read the disk again.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{segments::WriteError, small_file};
use crate::{
    config::LogConfig,
    log::{AppendError, DiskSpace, Health, disk::Disk},
};

/// What must be free where the keys are, if `min_free_bytes` is not less: a volume of their own may be smaller than what the
/// log keeps free. It is room for a million keys.
const KEYS_MIN_FREE_BYTES: u64 = 64 << 20;

/// Watches over the disk.
#[derive(Debug)]
pub(super) struct Watchdog {
    disk: Arc<dyn Disk>,
    log: PathBuf,
    /// Where there must be room.
    places: Vec<Place>,
    health: watch::Sender<Health>,
}

/// A directory that is written, and may be on a volume of its own.
#[derive(Debug)]
struct Place {
    name: &'static str,
    path: PathBuf,
    min_free_bytes: u64,
}

impl Watchdog {
    pub(super) fn new(disk: Arc<dyn Disk>, config: &LogConfig) -> Self {
        let mut places = vec![Place {
            name: "log",
            path: config.path.clone(),
            min_free_bytes: config.min_free_bytes,
        }];
        if config.encryption.enabled {
            places.push(Place {
                name: "keys",
                path: config.keys_path(),
                min_free_bytes: config.min_free_bytes.min(KEYS_MIN_FREE_BYTES),
            });
        }
        Self {
            disk,
            log: config.path.clone(),
            places,
            health: watch::Sender::new(Health::Well),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Whether a write is worth a try.
    pub(super) fn writable(&self) -> Result<(), AppendError> {
        match &*self.health.borrow() {
            Health::Well => Ok(()),
            Health::Unwritable(_) if self.room().is_ok() => Ok(()),
            Health::Unwritable(why) | Health::Failed(why) => {
                Err(AppendError::Unavailable(why.clone()))
            }
        }
    }

    fn has_failed(&self) -> bool {
        matches!(*self.health.borrow(), Health::Failed(_))
    }

    /// Whether anything may still be written.
    pub(super) fn has_not_failed(&self) -> Result<(), AppendError> {
        match &*self.health.borrow() {
            Health::Failed(why) => Err(AppendError::Unavailable(why.clone())),
            Health::Well | Health::Unwritable(_) => Ok(()),
        }
    }

    /// The writer has not answered in time.
    pub(super) fn hangs(&self) -> AppendError {
        let why = "the disk did not answer in time".to_owned();
        self.unwritable(why.clone());
        AppendError::Unavailable(why)
    }

    /// A write has succeeded.
    pub(super) fn well(&self) {
        if matches!(*self.health.borrow(), Health::Unwritable(_)) {
            tracing::info!("the log can write again");
            self.health.send_replace(Health::Well);
        }
    }

    /// A write has failed.
    pub(super) fn trouble(&self, error: WriteError) -> AppendError {
        let why = error.to_string();
        match error {
            WriteError::Write(_) => self.unwritable(why.clone()),
            WriteError::Sync(_) => self.fail(why.clone()),
        }
        AppendError::Unavailable(why)
    }

    /// Nothing can be written until a new start.
    pub(super) fn fail(&self, why: String) {
        if !self.has_failed() {
            tracing::error!(error = %why, "the log has failed and writes no more");
            self.health.send_replace(Health::Failed(why));
        }
    }

    fn unwritable(&self, why: String) {
        let new = Health::Unwritable(why);
        let known = self.health.borrow().clone();
        match known {
            Health::Failed(_) => {}
            Health::Well => {
                tracing::error!(health = ?new, "the log cannot write; it tries again by itself");
                self.health.send_replace(new);
            }
            Health::Unwritable(_) if known != new => {
                self.health.send_replace(new);
            }
            Health::Unwritable(_) => {}
        }
    }

    /// Sees whether there is room, and whether a disk that could not be written can be written again.
    pub(super) fn examine(&self) {
        if self.has_failed() {
            return;
        }
        if let Err(why) = self.room() {
            self.unwritable(why);
            return;
        }
        if *self.health.borrow() == Health::Well {
            return;
        }
        match small_file::write(self.disk.as_ref(), &self.log.join("probe"), b"probe") {
            Ok(()) => self.well(),
            Err(error) => self.unwritable(error.to_string()),
        }
    }

    /// How much is free for each place, if the disk tells.
    pub(super) fn space(&self) -> Vec<DiskSpace> {
        let space = |place: &Place| {
            Some(DiskSpace {
                directory: place.name,
                free_bytes: self.disk.free_bytes(&place.path).ok()?,
                min_free_bytes: place.min_free_bytes,
            })
        };
        self.places.iter().filter_map(space).collect()
    }

    /// Whether enough is free for each place; otherwise why not. Of a disk that does not tell, whether a write succeeds is
    /// the better test.
    fn room(&self) -> Result<(), String> {
        let short = |space: &DiskSpace| space.free_bytes < space.min_free_bytes;
        match self.space().into_iter().find(short) {
            Some(space) => Err(format!(
                "{} bytes are free on the disk of the {}, and {} must be",
                space.free_bytes, space.directory, space.min_free_bytes
            )),
            None => Ok(()),
        }
    }
}
