//! The directories of a log, and what is opened in them.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    OpenError,
    keys::Keys,
    meta,
    quarantine::Quarantine,
    record::MetaRecord,
    recovery, retention,
    seal::{Kind, MasterKeys},
    segment::Directory,
    segments::{Promise, Sealing, Segments},
};
use crate::{
    config::LogConfig,
    log::{QuarantineKind, disk::Disk},
};

/// The files that records lie in.
pub(super) struct Files {
    pub(super) events: Segments,
    pub(super) genuine: Quarantine,
    pub(super) unverified: Quarantine,
}

impl Files {
    /// Opens them. The index knows that all events up to `acknowledged_to` were acknowledged.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        config: &LogConfig,
        meta: &mut MetaRecord,
        masters: &MasterKeys,
        acknowledged_to: u64,
    ) -> Result<Self, OpenError> {
        let log_id = meta::id(&meta.id)?;
        let sealing = |kind: Kind, chunk: u64| {
            let keys_path = config.keys_path();
            let keys = Keys::open(Arc::clone(disk), &keys_path, log_id, kind, masters)?;
            Ok::<_, OpenError>(Sealing {
                keys: Arc::new(keys),
                enabled: config.encryption.enabled,
                chunk: chunk as u32,
            })
        };
        let closed = meta.closed.unwrap_or_default();
        let quarantine = |kind, limits, promise| {
            let (sealed, chunk) = match kind {
                QuarantineKind::Genuine => (Kind::Genuine, 64),
                QuarantineKind::Unverified => (Kind::Unverified, 1),
            };
            let sealing = sealing(sealed, chunk)?;
            let directory = config.path.join(sealed.directory());
            let disk = Arc::clone(disk);
            Quarantine::open(disk, &directory, log_id, kind, limits, promise, sealing)
        };
        /// About how many bytes of events a new key is made for beforehand.
        const BYTES_PER_KEY: u64 = 1024;
        let segment_bytes = retention::segment_bytes(config);
        let directory = config.path.join(Kind::Events.directory());
        delete_again(disk, config, meta, log_id)?;
        let events = Segments::open(
            Arc::clone(disk),
            &directory,
            log_id,
            segment_bytes,
            Promise::Durable(closed.events.max(acknowledged_to)),
            sealing(
                Kind::Events,
                (segment_bytes / BYTES_PER_KEY).clamp(16, 1024),
            )?,
        )?;
        if events.view.start() > meta.start {
            return Err(OpenError::Damaged(format!(
                "{}: it begins with number {}, but nothing behind number {} was deleted",
                directory.display(),
                events.view.start() + 1,
                meta.start
            )));
        }
        let genuine = quarantine(
            QuarantineKind::Genuine,
            retention::genuine_limits(config),
            Promise::Durable(closed.genuine),
        )?;
        let (files, missing) = [&events.view.keys, genuine.view.keys()]
            .map(|keys| keys.counts())
            .into_iter()
            .fold((0, 0), |all, of_one| (all.0 + of_one.0, all.1 + of_one.1));
        if files == 0 && missing > 0 && !config.encryption.without_keys {
            return Err(OpenError::Keys(format!(
                "{}: there is no key file, and {missing} segments of the log were written with some; mount or restore the \
                 keys, or set log.encryption.without_keys = true to open the log without what they encrypt",
                config.keys_path().display()
            )));
        }
        Ok(Self {
            events,
            genuine,
            unverified: quarantine(
                QuarantineKind::Unverified,
                retention::unverified_limits(config),
                Promise::Nothing,
            )?,
        })
    }
}

/// Deletes again what retention had deleted. The sync of a directory can fail over a deletion; then the name stays in doubt, and a
/// power cut may bring the file back long after those that followed it are gone for good.
fn delete_again(
    disk: &Arc<dyn Disk>,
    config: &LogConfig,
    meta: &mut MetaRecord,
    log_id: Uuid,
) -> Result<(), OpenError> {
    let directory = |kind: Kind| Directory {
        disk: Arc::clone(disk),
        path: config.path.join(kind.directory()),
        log_id,
    };
    let (events, genuine) = (directory(Kind::Events), directory(Kind::Genuine));
    // That these are other events is for the index to notice, and for the note that is left on closing.
    let of_events = recovery::deleted(&events, meta.start)?.unwrap_or_default();
    let of_genuine = recovery::deleted(&genuine, meta.genuine_start)?;
    if of_genuine.is_none() {
        tracing::warn!(log.path = %genuine.path.display(), "the quarantine is another one than that of which the oldest was deleted");
        meta.genuine_start = 0;
    }
    let of_events = of_events.into_iter().map(|base| (&events, base));
    let of_genuine = of_genuine.into_iter().flatten();
    let deleted: Vec<_> = of_events
        .chain(of_genuine.map(|base| (&genuine, base)))
        .collect();
    if deleted.is_empty() {
        return Ok(());
    }
    // The note of it may not have reached the disk either, and must before anything goes because of it.
    meta::write(disk.as_ref(), &config.path, meta)?;
    for (directory, base) in deleted {
        tracing::warn!(log.path = %directory.path.display(), log.first = base, "what was deleted is there again, and is deleted again");
        directory.remove(base)?;
    }
    Ok(())
}

/// The directories of a log and of its keys. They will hold personal data: nobody else may look into them.
pub(super) fn make_directories(config: &LogConfig) -> io::Result<()> {
    for directory in [&config.path, &config.keys_path()] {
        for kind in Kind::ALL {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory.join(kind.directory()))?;
        }
        // Their own names are to outlive a power cut too. The directory above may not be ours to open.
        File::open(directory)?.sync_all()?;
        if let Some(above) = directory.parent()
            && let Ok(above) = File::open(above)
        {
            above.sync_all()?;
        }
        if fs::metadata(directory)?.permissions().mode() & 0o077 != 0 {
            let path = directory.display();
            tracing::warn!(log.path = %path, "others may look into a directory of the log");
        }
    }
    Ok(())
}

/// Locks a directory. `None` if it is locked already.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    let lock = File::create(directory.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
