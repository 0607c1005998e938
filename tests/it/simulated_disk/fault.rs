//! Operations that fail.

use std::io;

/// No such file or directory.
pub(super) const ENOENT: i32 = 2;
/// Input/output error.
pub(crate) const EIO: i32 = 5;
/// Invalid cross-device link.
pub(super) const EXDEV: i32 = 18;
/// No space left on device.
pub(crate) const ENOSPC: i32 = 28;
/// Read-only file system.
pub(crate) const EROFS: i32 = 30;

/// How operations of a kind fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    errno: i32,
    good_before: u64,
    once: bool,
    pub(super) short: bool,
}

impl Fault {
    /// Every operation fails with this error of the operating system, until the fault is taken back.
    pub(crate) fn always(errno: i32) -> Self {
        Self {
            errno,
            good_before: 0,
            once: false,
            short: false,
        }
    }

    /// One operation fails with this error of the operating system.
    pub(crate) fn once(errno: i32) -> Self {
        Self {
            once: true,
            ..Self::always(errno)
        }
    }

    /// Lets this many operations succeed before.
    pub(crate) fn after(self, good_before: u64) -> Self {
        Self {
            good_before,
            ..self
        }
    }

    /// Lets a write that fails write some of its first bytes, from none to all.
    pub(crate) fn short(self) -> Self {
        Self {
            short: true,
            ..self
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::from_raw_os_error(fault.errno)
    }
}

/// The faults that are set.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) writes: Option<Fault>,
    pub(super) syncs: Option<Fault>,
    pub(super) reads: Option<Fault>,
}

impl Faults {
    pub(super) fn strike_write(&mut self) -> Result<(), Fault> {
        strike(&mut self.writes)
    }

    /// A file system that can only be read refuses new names too; a full one does not.
    pub(super) fn strike_rename(&mut self) -> io::Result<()> {
        match self.writes {
            Some(fault) if fault.errno == EROFS => Ok(strike(&mut self.writes)?),
            _ => Ok(()),
        }
    }

    pub(super) fn strike_sync(&mut self) -> io::Result<()> {
        Ok(strike(&mut self.syncs)?)
    }

    pub(super) fn strike_read(&mut self) -> io::Result<()> {
        Ok(strike(&mut self.reads)?)
    }
}

fn strike(slot: &mut Option<Fault>) -> Result<(), Fault> {
    let Some(fault) = slot else {
        return Ok(());
    };
    if fault.good_before > 0 {
        fault.good_before -= 1;
        return Ok(());
    }
    let fault = *fault;
    if fault.once {
        *slot = None;
    }
    Err(fault)
}
