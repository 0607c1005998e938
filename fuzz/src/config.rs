//! The configuration, with two variables that hold a secret and a decryption key.

use std::sync::LazyLock;

use verdict::config::{self, Variables};

use crate::{read, repository};

static VARIABLES: LazyLock<Variables> = LazyLock::new(|| {
    let pem = read(&repository("tests/fixtures/kayle/k1.pem"));
    let pem = String::from_utf8(pem).expect("PEM is ASCII");
    let secret = "a secret of the fuzzer".to_owned();
    Variables::from([("SECRET".to_owned(), secret), ("KEY".to_owned(), pem)])
});

/// Reads a configuration, and checks it as the server does before it starts.
pub fn check(text: &str) {
    let config = match config::parse(text, &VARIABLES) {
        Ok(config) => config,
        Err(error) => return check_error(&error.to_string()),
    };
    // A path could name a device, from which there is no end of reading. A `\` could hide a path.
    if text.contains("file") || text.contains('\\') {
        return;
    }
    match config.check(&VARIABLES) {
        Ok(loaded) => check_loaded(&loaded),
        Err(error) => check_error(&error.to_string()),
    }
}

/// What was checked can be run.
fn check_loaded(loaded: &config::Loaded) {
    assert!(!loaded.sources.is_empty());
    assert!(loaded.server.grpc_listen.ip().is_loopback() || loaded.server.insecure);
    for source in &loaded.sources {
        assert!(!source.schemes.is_empty());
        assert!(!source.keys().secrets.is_empty());
        assert!(!source.account.is_empty());
    }
    let shown = format!("{loaded:?}");
    for secret in VARIABLES.values() {
        assert!(!shown.contains(secret.as_str()), "a secret is shown");
    }
}

/// What is wrong is said in one line, without a secret.
fn check_error(error: &str) {
    assert!(!error.is_empty());
    assert!(!error.contains(char::is_control), "{error:?}");
    for secret in VARIABLES.values() {
        assert!(!error.contains(secret.as_str()), "{error}");
    }
}
