//! Opaque tokens: random bytes that a caller shows, of which verdict knows no more than the SHA-256.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::{
    constant_time,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::reload::{Files, Fingerprint, Reload};

/// The SHA-256 of a token. It is no secret: nobody finds 256 random bits by their hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of a token.
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// A hash as the configuration has it: 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text.trim(), &mut hash).ok()?;
        Some(Self(hash))
    }

    /// Whether the two are the same, found out in constant time.
    fn is(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A token that a caller may show.
#[derive(Debug)]
pub struct Token {
    id: Arc<str>,
    hash: RwLock<TokenHash>,
    /// Where the hash is read again, if it was read from a file.
    files: Vec<PathBuf>,
    first: Fingerprint,
}

impl Token {
    /// A token with its hash.
    pub fn new(id: &str, hash: TokenHash) -> Self {
        Self::following(id, hash, Vec::new(), Files::read(&[]).fingerprint())
    }

    /// A token whose hash is from a file, which held this at the time.
    pub fn of_file(id: &str, hash: TokenHash, file: PathBuf, first: Fingerprint) -> Self {
        Self::following(id, hash, vec![file], first)
    }

    fn following(id: &str, hash: TokenHash, files: Vec<PathBuf>, first: Fingerprint) -> Self {
        Self {
            id: id.into(),
            hash: RwLock::new(hash),
            files,
            first,
        }
    }

    /// What the configuration calls it.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The hash as it is now.
    pub fn hash(&self) -> TokenHash {
        *self.hash.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the token that somebody has shown.
    pub(super) fn matches(&self, shown: &TokenHash) -> bool {
        self.hash().is(shown)
    }
}

impl Reload for Token {
    fn paths(&self) -> &[PathBuf] {
        &self.files
    }

    fn first(&self) -> Fingerprint {
        self.first
    }

    fn reload(&self, files: &Files, _now: Timestamp) {
        let read = self.files.first().and_then(|path| files.get(path).ok());
        let text = read.and_then(|content| str::from_utf8(content).ok());
        match text.and_then(TokenHash::parse) {
            Some(hash) => {
                *self.hash.write().unwrap_or_else(PoisonError::into_inner) = hash;
                tracing::info!(token.id = %self.id, "the token of a caller was changed");
            }
            None => tracing::error!(
                token.id = %self.id,
                "the SHA-256 of a token cannot be read any more; the last one stays in use"
            ),
        }
    }
}

/// A token that has just been made.
pub struct NewToken(Zeroizing<String>);

impl NewToken {
    /// 256 random bits, with a prefix by which scanners of repositories and logs know them.
    pub fn random() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut bits = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *bits)?;
        let mut token = Zeroizing::new(String::with_capacity(48));
        token.push_str("vdt_");
        URL_SAFE_NO_PAD.encode_string(*bits, &mut token);
        Ok(Self(token))
    }

    /// The token itself. Its caller is to be shown it once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the configuration is to hold of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_and_by_nothing_near_it() {
        let new = NewToken::random().unwrap();
        assert!(new.expose().starts_with("vdt_") && new.expose().len() == 47);
        assert_ne!(new.expose(), NewToken::random().unwrap().expose());
        let written = TokenHash::parse(&format!("{}\n", new.hash())).unwrap();
        let token = Token::new("a", written);
        assert!(token.matches(&TokenHash::of(new.expose().as_bytes())));
        let near = format!("{} ", new.expose());
        assert!(!token.matches(&TokenHash::of(near.as_bytes())));
        assert!(!token.matches(&TokenHash::of(new.hash().to_string().as_bytes())));
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
            assert!(TokenHash::parse(bad).is_none(), "{bad}");
        }
    }
}
