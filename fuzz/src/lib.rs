//! What must hold whatever comes in. One module for each kind of input; the binaries in `fuzz_targets/` feed them.
//!
//! The inputs that a run begins with lie in `corpus/<target>/`. The binary `seed` writes those that follow from
//! verdict's fixtures; the others were found by longer runs, because they reach code that nothing else reaches. What
//! was once a finding stays there for ever, and has a test of its own in verdict.

pub mod config;
pub mod cursor;
pub mod jwe;
pub mod normalize;
pub mod seeds;
pub mod signature;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use verdict::{
    config::DEFAULT_MAX_JSON_DEPTH,
    keyring::{Keyring, Keys},
    proto::Environment,
    provider::{
        Provider,
        signature::{Scheme, Secret},
    },
    source::{Counts, Source},
};

/// The time at which everything here happens, which is that of the fixtures.
fn now() -> Timestamp {
    Timestamp::from_second(1_780_000_000).expect("a time that jiff knows")
}

/// The one live secret. No input knows it.
fn secret() -> Secret {
    Secret::new("fuzzed".to_owned(), b"a secret of the fuzzer".to_vec())
}

/// A source that accepts one scheme of a provider.
fn source(provider: &'static dyn Provider, scheme: &'static Scheme) -> Source {
    Source {
        provider,
        account: "default".to_owned(),
        environment: Environment::Live,
        schemes: vec![scheme],
        keyring: Keyring::from(Keys {
            secrets: vec![secret()],
            ..Keys::default()
        }),
        max_json_depth: DEFAULT_MAX_JSON_DEPTH,
        tolerance: Duration::from_secs(300),
        keep_unverified: false,
        allowed_ips: Vec::new(),
        options: provider
            .options()
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        counts: Counts::default(),
    }
}

/// A file of verdict's repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
