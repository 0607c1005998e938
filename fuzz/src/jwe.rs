//! Encrypted payloads. The keys are those of the fixtures, so that whole tokens can be decrypted; what is not one of the
//! fixtures' tokens, to the byte, must not be.

use std::{collections::HashSet, sync::LazyLock};

use verdict::provider::jwe::{self, DecryptionKey};

use crate::{now, read, repository, seeds};

/// What an input must begin with to be encrypted rather than decrypted.
const ENCRYPT: &[u8] = b"encrypt:";

static KEYS: LazyLock<Vec<DecryptionKey>> = LazyLock::new(|| {
    let key = |id: &str| {
        let pem = read(&repository(&format!("tests/fixtures/kayle/{id}.pem")));
        DecryptionKey::from_pem(id.to_owned(), &pem).expect("a key of the fixtures")
    };
    vec![key("k1"), key("k2")]
});

/// The tokens that were encrypted to the keys.
static GENUINE: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
    seeds::tokens()
        .into_iter()
        .map(|(_, token)| token)
        .collect()
});

/// Decrypts a token, or encrypts a text and decrypts it again.
pub fn check(input: &[u8]) {
    if let Some(plaintext) = input.strip_prefix(ENCRYPT) {
        return check_round_trip(plaintext);
    }
    match jwe::decrypt(input, &KEYS, now()) {
        Ok(plaintext) => {
            assert!(GENUINE.contains(input.trim_ascii()), "not one of ours");
            assert!(plaintext.len() < input.len());
        }
        Err(error) => assert!(error.to_string().len() < 100),
    }
    // Without a key nothing can be read, and nothing fails in another way.
    assert!(jwe::decrypt(input, &[], now()).is_err());
}

fn check_round_trip(plaintext: &[u8]) {
    let compact = jwe::encrypt(plaintext, &KEYS[0]).expect("anything can be encrypted");
    let decrypted = jwe::decrypt(compact.as_bytes(), &KEYS, now());
    assert_eq!(decrypted.as_deref(), Ok(plaintext));
    assert!(jwe::decrypt(compact.as_bytes(), &KEYS[1..], now()).is_err());

    // One changed character, chosen by the text.
    let mut changed = compact.into_bytes();
    let index = plaintext
        .iter()
        .map(|byte| usize::from(*byte))
        .sum::<usize>()
        % changed.len();
    changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
    assert!(jwe::decrypt(&changed, &KEYS, now()).is_err());
}
