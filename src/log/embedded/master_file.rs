//! The file of the master keys: where it lies, who may read it, and what is done when it changes.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    OpenError,
    keys::Keys,
    seal::{self, MasterKeyError, MasterKeys},
};
use crate::{config::LogConfig, log::disk::Disk};

/// What the file is called that verdict makes itself.
const GENERATED: &str = "master.key";

/// A file of keys is small.
const MAX_BYTES: usize = 1 << 20;

/// Where the master keys are.
pub(super) struct MasterFile {
    path: PathBuf,
    /// Whether it is ours to make.
    generated: bool,
    /// The SHA-256 of what was read last.
    digest: [u8; 32],
    /// What was wrong when it was looked at last.
    pub(super) trouble: Option<String>,
}

/// Why the master keys cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] MasterKeyError),
    #[error("it is larger than {MAX_BYTES} bytes")]
    Large,
    #[error("it is no file")]
    NoFile,
    #[error(
        "its mode is {0:o}: others may read it, or its group may write it; make it 0600, or 0440 where it is mounted for \
         a group"
    )]
    Mode(u32),
}

impl MasterFile {
    pub(super) fn new(config: &LogConfig) -> Self {
        let configured = &config.encryption.master_key_file;
        let generated = configured.as_os_str().is_empty();
        Self {
            path: match generated {
                true => config.keys_path().join(GENERATED),
                false => configured.clone(),
            },
            generated,
            digest: [0; 32],
            trouble: None,
        }
    }

    /// Reads the master keys at the start. Where nobody has named a file, one is made, unless there are keys that only an
    /// earlier one can open, or there is nothing to encrypt.
    pub(super) fn open(
        &mut self,
        disk: &dyn Disk,
        config: &LogConfig,
    ) -> Result<MasterKeys, OpenError> {
        let keys_path = config.keys_path();
        let named = |path: &Path, why: String| {
            OpenError::Keys(format!("the master keys in {}: {why}", path.display()))
        };
        match self.read(disk) {
            Ok((keys, digest)) => {
                self.digest = digest;
                Ok(keys)
            }
            Err(Unusable::Io(error))
                if self.generated && error.kind() == io::ErrorKind::NotFound =>
            {
                let files = Keys::count_files(disk, &keys_path)?;
                if files > 0 {
                    let why = format!(
                        "the file is gone, and {files} key files need it; put it back, or move the key files away to open \
                         the log without what they encrypt"
                    );
                    return Err(named(&self.path, why));
                }
                if !config.encryption.enabled {
                    return Ok(MasterKeys::default());
                }
                self.generate(disk, &keys_path)?;
                let (keys, digest) = self
                    .read(disk)
                    .map_err(|error| named(&self.path, error.to_string()))?;
                self.digest = digest;
                Ok(keys)
            }
            Err(error) => Err(named(&self.path, error.to_string())),
        }
    }

    /// The master keys, if the file says something else than before and all keys that are needed are in it.
    pub(super) fn changed(&mut self, disk: &dyn Disk, keys: &[&Keys]) -> Option<MasterKeys> {
        let trouble = match self.read(disk) {
            Ok((_, digest)) if digest == self.digest => None,
            Ok((masters, digest)) => match keys.iter().find_map(|keys| keys.lacks(&masters)) {
                None => {
                    self.digest = digest;
                    self.trouble = None;
                    return Some(masters);
                }
                Some(id) => Some(format!(
                    "the master key {id} is no longer in the file, and key files need it still"
                )),
            },
            // A log that encrypts nothing has none.
            Err(Unusable::Io(error))
                if self.digest == [0; 32] && error.kind() == io::ErrorKind::NotFound =>
            {
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if trouble != self.trouble
            && let Some(why) = &trouble
        {
            tracing::error!(
                log.master_keys = %self.path.display(),
                why,
                "the master keys cannot be used; those of before stay in use until the file is right"
            );
        }
        self.trouble = trouble;
        None
    }

    /// Reads the file. What it says is durable then: keys that it wraps must not outlive it.
    fn read(&self, disk: &dyn Disk) -> Result<(MasterKeys, [u8; 32]), Unusable> {
        check_type_and_mode(&self.path)?;
        let mut text = Zeroizing::new(Vec::new());
        match self.generated {
            true => {
                let file = disk.open(&self.path)?;
                let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
                text.resize(size.min(MAX_BYTES + 1), 0);
                let read = file.read_at(&mut text, 0)?;
                text.truncate(read);
            }
            // It may lie where nobody can write.
            false => {
                let file = File::open(&self.path)?;
                let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
                // At once: what grows leaves keys behind in memory.
                text.reserve_exact(size.min(MAX_BYTES) + 1);
                file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text)?;
            }
        }
        if text.len() > MAX_BYTES {
            return Err(Unusable::Large);
        }
        let (keys, digest) = (MasterKeys::parse(&text)?, Sha256::digest(&text[..]).into());
        if digest != self.digest {
            self.sync(disk)?;
        }
        Ok((keys, digest))
    }

    /// Makes the file and its name durable.
    fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        let Some(directory) = self.path.parent() else {
            return Ok(());
        };
        if self.generated {
            disk.open(&self.path)?.sync()?;
            return disk.sync_directory(directory);
        }
        // The name may be a link into another directory.
        let target = fs::canonicalize(&self.path)?;
        let directories = [Some(directory), target.parent()].into_iter().flatten();
        let directories = directories.filter(|path| !path.as_os_str().is_empty());
        for path in [&*target].into_iter().chain(directories) {
            match File::open(path).and_then(|file| file.sync_all()) {
                Err(error) if is_nothing_to_sync(&error) => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    fn generate(&self, disk: &dyn Disk, keys_path: &Path) -> Result<(), OpenError> {
        let randomness = |_| OpenError::Io(io::Error::other("there is no randomness"));
        let line = seal::new_master_key().map_err(randomness)?;
        let text = Zeroizing::new(format!(
            "# The master key of this log. Whoever has it and the key files beside it can read everything.\n{}\n",
            *line
        ));
        let temporary = self.path.with_extension("new");
        let file = disk.create(&temporary)?;
        file.write_at(text.as_bytes(), 0)?;
        file.sync()?;
        disk.rename(&temporary, &self.path)?;
        disk.sync_directory(keys_path)?;
        tracing::info!(
            log.master_keys = %self.path.display(),
            "a master key was made; back it up apart from the log"
        );
        Ok(())
    }
}

/// Whether that is the answer of a file system that cannot be written, of one that keeps nothing, or of a directory that is not
/// ours to open: whoever put the file there has made it durable, or nobody can.
fn is_nothing_to_sync(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(
        error.kind(),
        ReadOnlyFilesystem | InvalidInput | Unsupported | PermissionDenied
    )
}

/// Refuses what is no file, and a file that others may read. A group may where it must: Kubernetes mounts secrets for one.
fn check_type_and_mode(path: &Path) -> Result<(), Unusable> {
    const OTHERS: u32 = 0o007;
    const GROUP_WRITES: u32 = 0o020;
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Unusable::NoFile),
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            match mode & (OTHERS | GROUP_WRITES) {
                0 => Ok(()),
                _ => Err(Unusable::Mode(mode)),
            }
        }
        // Reading it tells what is wrong, and a test may have a disk of its own.
        Err(_) => Ok(()),
    }
}
