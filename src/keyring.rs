//! The secrets and decryption keys of a source: read from where they are configured, and read again when files change.
//!
//! They are swapped as a whole, so a delivery is checked against the old ones or the new ones, never against some of each.
//! While a provider changes its secret, a source has both, each in a file of its own; a swap of both files at once must not
//! leave a moment at which neither is there.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::{
    provider::{
        jwe::{DecryptionKey, KeyError},
        signature::Secret,
    },
    reload::{FileError, Files, Fingerprint},
};

/// Where a secret or a key comes from.
pub struct Place {
    /// Its id.
    pub id: String,
    /// Its value, or where that is.
    pub from: Origin,
}

/// The value of a secret or a key, or where that is.
pub enum Origin {
    /// The value itself. It stays the same.
    Value(Zeroizing<Vec<u8>>),
    /// A file that holds it.
    File(PathBuf),
}

/// What a source's deliveries are proved and opened with at one time.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// The live secrets.
    pub secrets: Vec<Secret>,
    /// The keys that payloads may be encrypted to.
    pub decryption_keys: Vec<DecryptionKey>,
}

/// Why a secret or a key cannot be used. Names it, and says nothing about its value.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file of a secret cannot be read.
    #[error("secret {id:?}: {error}")]
    File {
        /// The secret.
        id: String,
        /// Why not.
        error: FileError,
    },
    /// The file or variable is empty.
    #[error("secret {0:?} is empty")]
    Empty(String),
    /// Not a private key.
    #[error("decryption key {id:?}: {error}")]
    DecryptionKey {
        /// The key.
        id: String,
        /// What is wrong.
        error: KeyError,
    },
}

/// The keys of a source, always as their files are now.
pub struct Keyring {
    current: RwLock<Arc<Keys>>,
    secrets: Followed,
    decryption_keys: Followed,
    paths: Vec<PathBuf>,
    first: Fingerprint,
}

/// The files that are followed, with the ids of what they hold.
type Followed = Vec<(String, PathBuf)>;

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.keys().fmt(f)
    }
}

impl From<Keys> for Keyring {
    /// Keys that no file is followed for.
    fn from(keys: Keys) -> Self {
        Self {
            current: RwLock::new(Arc::new(keys)),
            secrets: Followed::new(),
            decryption_keys: Followed::new(),
            paths: Vec::new(),
            first: Files::read(&[]).fingerprint(),
        }
    }
}

impl Keyring {
    /// Reads the secrets and keys. Blocks.
    pub fn load(secrets: Vec<Place>, decryption_keys: Vec<Place>) -> Result<Self, KeyringError> {
        let (followed_secrets, followed_keys) = (followed(&secrets), followed(&decryption_keys));
        let all = followed_secrets.iter().chain(&followed_keys);
        let paths: Vec<PathBuf> = all.map(|(_, path)| path.clone()).collect();
        let files = Files::read(&paths);
        let secrets = secrets.into_iter().map(|Place { id, from }| {
            let value = value(&id, &from, &files)?;
            Ok(Secret::new(id, value.to_vec()))
        });
        let keys = decryption_keys.into_iter().map(|Place { id, from }| {
            let pem = value(&id, &from, &files)?;
            DecryptionKey::from_pem(id.clone(), &pem)
                .map_err(|error| KeyringError::DecryptionKey { id, error })
        });
        let keys = Keys {
            secrets: secrets.collect::<Result<_, _>>()?,
            decryption_keys: keys.collect::<Result<_, _>>()?,
        };
        Ok(Self {
            current: RwLock::new(Arc::new(keys)),
            secrets: followed_secrets,
            decryption_keys: followed_keys,
            first: files.fingerprint(),
            paths,
        })
    }

    /// The keys of now.
    pub fn keys(&self) -> Arc<Keys> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// The files that are followed.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What the files held when they were read first.
    pub fn first(&self) -> Fingerprint {
        self.first
    }

    /// Takes over what the files hold now. What cannot be used is returned, and the old value stays.
    pub fn reload(&self, files: &Files, now: Timestamp) -> Reloaded {
        let old = self.keys();
        let mut reloaded = Reloaded::default();
        let mut new = Keys::clone(&old);
        for (id, path) in &self.secrets {
            let from = Origin::File(path.clone());
            let read = value(id, &from, files).map(|value| {
                for secret in new.secrets.iter_mut().filter(|secret| secret.id() == id) {
                    if secret.renew(&value, now) {
                        reloaded.changed.push(id.clone());
                    }
                }
            });
            reloaded.unusable.extend(read.err());
        }
        for (id, path) in &self.decryption_keys {
            let from = Origin::File(path.clone());
            let read = value(id, &from, files).and_then(|pem| {
                for key in new.decryption_keys.iter_mut().filter(|key| key.id() == id) {
                    let id = id.clone();
                    match key.renew(&pem, now) {
                        Ok(true) => reloaded.changed.push(id),
                        Ok(false) => {}
                        Err(error) => return Err(KeyringError::DecryptionKey { id, error }),
                    }
                }
                Ok(())
            });
            reloaded.unusable.extend(read.err());
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        reloaded
    }
}

/// What became of the secrets and keys whose files were read again.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// The ids of those that have a new value.
    pub changed: Vec<String>,
    /// Why others keep their old one.
    pub unusable: Vec<KeyringError>,
}

fn followed(places: &[Place]) -> Followed {
    let file = |place: &Place| match &place.from {
        Origin::File(path) => Some((place.id.clone(), path.clone())),
        Origin::Value(_) => None,
    };
    places.iter().filter_map(file).collect()
}

/// A value, without the line break that ends it.
fn value(id: &str, from: &Origin, files: &Files) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    let value = match from {
        Origin::Value(value) => value,
        Origin::File(path) => files.get(path).map_err(|error| KeyringError::File {
            id: id.to_owned(),
            error,
        })?,
    };
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    match value.is_empty() {
        true => Err(KeyringError::Empty(id.to_owned())),
        false => Ok(Zeroizing::new(value.to_vec())),
    }
}
