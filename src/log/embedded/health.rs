//! Whether the log can write.
//!
//! A write that failed is tried again: nobody was told that it succeeded, and what is in the file is overwritten. After a
//! sync that failed nothing is certain any more, because the system may have thrown away what it could not write: the log
//! writes nothing until a new start has read the disk again.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use super::{segments::WriteError, small_file};
use crate::log::{AppendError, DiskSpace, Health, disk::Disk};

/// Watches over the disk.
#[derive(Debug)]
pub(super) struct Watchdog {
    disk: Arc<dyn Disk>,
    min_free_bytes: u64,
    health: watch::Sender<Health>,
}

impl Watchdog {
    pub(super) fn new(disk: Arc<dyn Disk>, min_free_bytes: u64) -> Self {
        Self {
            disk,
            min_free_bytes,
            health: watch::Sender::new(Health::Well),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Whether a write is worth a try.
    pub(super) fn writable(&self, directory: &Path) -> Result<(), AppendError> {
        match &*self.health.borrow() {
            Health::Well => Ok(()),
            Health::Unwritable(_) if self.room(directory).is_ok() => Ok(()),
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
    pub(super) fn examine(&self, directory: &Path) {
        if self.has_failed() {
            return;
        }
        if let Err(why) = self.room(directory) {
            self.unwritable(why);
            return;
        }
        if *self.health.borrow() == Health::Well {
            return;
        }
        match small_file::write(self.disk.as_ref(), &directory.join("probe"), b"probe") {
            Ok(()) => self.well(),
            Err(error) => self.unwritable(error.to_string()),
        }
    }

    /// How much of the disk is free, if it tells.
    pub(super) fn space(&self, directory: &Path) -> Option<DiskSpace> {
        Some(DiskSpace {
            free_bytes: self.disk.free_bytes(directory).ok()?,
            min_free_bytes: self.min_free_bytes,
        })
    }

    /// Whether enough of the disk is free; otherwise why not.
    fn room(&self, directory: &Path) -> Result<(), String> {
        match self.disk.free_bytes(directory) {
            Ok(free) if free < self.min_free_bytes => Err(format!(
                "{free} bytes are free on the disk, and log.min_free_bytes is {}",
                self.min_free_bytes
            )),
            // Whether a write succeeds is the better test.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
