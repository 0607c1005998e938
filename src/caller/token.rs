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
use base16ct::{lower, mixed};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Validity;
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
        let decoded = mixed::decode(text.trim(), &mut hash).ok()?;
        (decoded.len() == 32).then_some(Self(hash))
    }

    /// Whether the two are the same, found out in constant time.
    fn is(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lower::encode_string(&self.0))
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
    live: RwLock<Live>,
    /// Where the hash is read again, if it was read from a file.
    files: Vec<PathBuf>,
    first: Fingerprint,
}

/// What a token is now.
#[derive(Debug)]
struct Live {
    hash: TokenHash,
    /// Cancelled when it is replaced.
    withdrawn: CancellationToken,
}

impl Live {
    fn new(hash: TokenHash) -> Self {
        Self {
            hash,
            withdrawn: CancellationToken::new(),
        }
    }
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
            live: RwLock::new(Live::new(hash)),
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
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .hash
    }

    /// How long this is the token that somebody has shown, if it is.
    pub(super) fn matches(&self, shown: &TokenHash) -> Option<Validity> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.hash.is(shown).then(|| Validity {
            until: None,
            withdrawn: (!self.files.is_empty()).then(|| live.withdrawn.clone()),
        })
    }

    /// Puts another in the place of this one. Streams that were opened with it end.
    fn replace(&self, hash: TokenHash) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if live.hash != hash {
            live.withdrawn.cancel();
            *live = Live::new(hash);
        }
    }
}

/// A token that is followed in its file, among all tokens: two callers must not have the same.
pub(super) struct FollowedToken {
    pub(super) among: Arc<[Arc<Token>]>,
    pub(super) index: usize,
}

impl FollowedToken {
    fn token(&self) -> &Token {
        &self.among[self.index]
    }

    fn is_of_another(&self, hash: &TokenHash) -> bool {
        let mut all = self.among.iter().enumerate();
        all.any(|(index, other)| index != self.index && other.hash() == *hash)
    }
}

impl Reload for FollowedToken {
    fn paths(&self) -> &[PathBuf] {
        &self.token().files
    }

    fn first(&self) -> Fingerprint {
        self.token().first
    }

    fn reload(&self, files: &Files, _now: Timestamp) {
        let token = self.token();
        let read = token.files.first().and_then(|path| files.get(path).ok());
        let text = read.and_then(|content| str::from_utf8(content).ok());
        match text.and_then(TokenHash::parse) {
            Some(hash) if self.is_of_another(&hash) => tracing::error!(
                token.id = %token.id,
                "the new SHA-256 of a token is that of another entry; the last one stays in use"
            ),
            Some(hash) => {
                token.replace(hash);
                tracing::info!(token.id = %token.id, "the token of a caller was changed");
            }
            None => tracing::error!(
                token.id = %token.id,
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
        let matches = |hash| token.matches(&hash).is_some();
        assert!(matches(TokenHash::of(new.expose().as_bytes())));
        let near = format!("{} ", new.expose());
        assert!(!matches(TokenHash::of(near.as_bytes())));
        assert!(!matches(TokenHash::of(new.hash().to_string().as_bytes())));
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66)] {
            assert!(TokenHash::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_token_that_is_replaced_is_withdrawn_and_never_by_that_of_another() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("hash");
        let hash = |text: &str| TokenHash::of(text.as_bytes());
        let paths = [path.clone()];
        let first = Files::read(&paths).fingerprint();
        let token = Token::of_file("a", hash("old"), path.clone(), first);
        let other = Token::new("b", hash("other"));
        let token = FollowedToken {
            among: vec![Arc::new(token), Arc::new(other)].into(),
            index: 0,
        };
        let shown = token.token().matches(&hash("old")).unwrap();
        let withdrawn = shown.withdrawn.unwrap();
        let replace = |text: &str| {
            std::fs::write(&path, hash(text).to_string()).unwrap();
            token.reload(&Files::read(&paths), Timestamp::UNIX_EPOCH);
        };
        for same in ["other", "old"] {
            replace(same);
            assert!(token.token().matches(&hash("old")).is_some() && !withdrawn.is_cancelled());
        }
        replace("new");
        assert!(token.token().matches(&hash("new")).is_some() && withdrawn.is_cancelled());
    }
}
