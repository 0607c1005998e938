//! Compact JWE (RFC 7516) with `RSA-OAEP-256` and `A256GCM`: what Kayle encrypts its payloads with.
//!
//! Nothing else is accepted: no other algorithm, no compression (RFC 8725 section 3.6 says why), no critical
//! extensions. The arithmetic is that of `aws-lc-rs`.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    encoding::AsDer,
    rand,
    rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
        PrivateDecryptingKey,
    },
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;
use zeroize::{Zeroize, Zeroizing};

use super::usage::Usage;

const ALGORITHM: &str = "RSA-OAEP-256";
const ENCRYPTION: &str = "A256GCM";
const CONTENT_KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const MIN_RSA_BITS: usize = 2048;

/// A private RSA key that payloads are encrypted to.
#[derive(Clone)]
pub struct DecryptionKey {
    id: String,
    key: PrivateDecryptingKey,
    loaded_at: Option<Timestamp>,
    usage: Arc<Usage>,
}

impl fmt::Debug for DecryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DecryptionKey({:?}, redacted)", self.id)
    }
}

/// Why a private key cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PKCS#8 in PEM.
    #[error("not a private key in PKCS#8 PEM (it must begin with -----BEGIN PRIVATE KEY-----)")]
    NotPkcs8Pem,
    /// Not an RSA key that `aws-lc-rs` accepts.
    #[error("not a valid RSA key")]
    NotRsa,
    /// Too short.
    #[error("an RSA key of {0} bits; at least 2048 are needed")]
    TooShort(usize),
}

impl DecryptionKey {
    /// Reads a private key in PKCS#8 PEM. `id` is the `kid` by which payloads name it.
    pub fn from_pem(id: String, pem: &[u8]) -> Result<Self, KeyError> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::NotPkcs8Pem)?;
        let key = PrivateDecryptingKey::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        Self::new(id, key.map_err(|_| KeyError::NotRsa)?)
    }

    /// Makes a new key of 2048 bits, for the demo and for tests.
    pub fn generate(id: String) -> Result<Self, KeyError> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| KeyError::NotRsa)?;
        Self::new(id, key)
    }

    fn new(id: String, key: PrivateDecryptingKey) -> Result<Self, KeyError> {
        match key.key_size_bits() {
            bits if bits < MIN_RSA_BITS => Err(KeyError::TooShort(bits)),
            _ => Ok(Self {
                id,
                key,
                loaded_at: None,
                usage: Arc::default(),
            }),
        }
    }

    /// Takes over a key that was read again, and says whether it is another. If so, its use is counted anew.
    pub fn renew(&mut self, pem: &[u8], now: Timestamp) -> Result<bool, KeyError> {
        let new = Self::from_pem(self.id.clone(), pem)?;
        let modulus = |key: &Self| {
            key.key
                .public_key()
                .as_der()
                .map(|der| der.as_ref().to_vec())
        };
        let (known, read) = (modulus(self), modulus(&new));
        if matches!((known, read), (Ok(known), Ok(read)) if known == read) {
            return Ok(false);
        }
        *self = Self {
            loaded_at: Some(now),
            ..new
        };
        Ok(true)
    }

    /// Since when it has this value, if it was changed since the start.
    pub fn loaded_at(&self) -> Option<Timestamp> {
        self.loaded_at
    }

    /// How it was used since it has this value.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// The `kid` by which payloads name it.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Why a payload could not be decrypted. Free of anything secret or personal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// Not five parts of base64url with a JSON header.
    #[error("the payload is not a compact JWE")]
    Malformed,
    /// The header asks for something that we do not do.
    #[error("the JWE header asks for an unsupported {0}")]
    Unsupported(&'static str),
    /// The header names a key that is not configured.
    #[error("no decryption key with the kid that the JWE names is configured")]
    UnknownKey,
    /// The key does not open it, or it was damaged.
    #[error("the JWE cannot be decrypted with the key that it names")]
    Undecryptable,
}

/// The protected header. Everything that could change how the payload is read is named here.
#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    kid: Option<String>,
    zip: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
}

/// Decrypts a compact JWE, received at this time, with the key that its `kid` names.
///
/// Takes about a millisecond of one core: call it off the async threads.
pub fn decrypt(
    compact: &[u8],
    keys: &[DecryptionKey],
    received_at: Timestamp,
) -> Result<Vec<u8>, JweError> {
    let text = std::str::from_utf8(compact).map_err(|_| JweError::Malformed)?;
    let mut parts = text.trim_ascii().split('.');
    let mut part = || parts.next().ok_or(JweError::Malformed);
    let (header, key, nonce, ciphertext, tag) = (part()?, part()?, part()?, part()?, part()?);
    if parts.next().is_some() {
        return Err(JweError::Malformed);
    }

    let chosen = choose_key(header, keys)?;
    let private_key =
        OaepPrivateDecryptingKey::new(chosen.key.clone()).map_err(|_| JweError::UnknownKey)?;
    let mut content_key = Zeroizing::new(vec![0; private_key.min_output_size()]);
    let content_key = private_key
        .decrypt(
            &OAEP_SHA256_MGF1SHA256,
            &decode(key)?,
            &mut content_key,
            None,
        )
        .map_err(|_| JweError::Undecryptable)?;
    let cipher = UnboundKey::new(&AES_256_GCM, content_key).map_err(|_| JweError::Undecryptable)?;

    let nonce =
        Nonce::try_assume_unique_for_key(&decode(nonce)?).map_err(|_| JweError::Malformed)?;
    let mut plaintext = decode(ciphertext)?;
    let tag = decode(tag)?;
    // A shorter tag would be easier to forge.
    if tag.len() != TAG_BYTES {
        return Err(JweError::Malformed);
    }
    plaintext.extend_from_slice(&tag);
    let length = LessSafeKey::new(cipher)
        .open_in_place(nonce, Aad::from(header.as_bytes()), &mut plaintext)
        .map_err(|_| JweError::Undecryptable)?
        .len();
    plaintext.truncate(length);
    chosen.usage.record(received_at);
    Ok(plaintext)
}

/// Encrypts to the public half of a key: for the demo, for `verdict send` and for tests.
pub fn encrypt(plaintext: &[u8], key: &DecryptionKey) -> Result<String, JweError> {
    let header = json!({"alg": ALGORITHM, "enc": ENCRYPTION, "kid": key.id}).to_string();
    let header = BASE64_URL_SAFE_NO_PAD.encode(header);

    let mut content_key = Zeroizing::new([0; CONTENT_KEY_BYTES]);
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut content_key[..]).map_err(|_| JweError::Undecryptable)?;
    rand::fill(&mut nonce).map_err(|_| JweError::Undecryptable)?;

    let public_key =
        OaepPublicEncryptingKey::new(key.key.public_key()).map_err(|_| JweError::Undecryptable)?;
    let mut encrypted_key = vec![0; public_key.ciphertext_size()];
    let encrypted_key = public_key
        .encrypt(
            &OAEP_SHA256_MGF1SHA256,
            &content_key[..],
            &mut encrypted_key,
            None,
        )
        .map_err(|_| JweError::Undecryptable)?;

    let cipher =
        UnboundKey::new(&AES_256_GCM, &content_key[..]).map_err(|_| JweError::Undecryptable)?;
    let mut ciphertext = plaintext.to_vec();
    let tag = LessSafeKey::new(cipher)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(header.as_bytes()),
            &mut ciphertext,
        )
        .map_err(|_| JweError::Undecryptable)?;

    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    Ok(format!(
        "{header}.{}.{}.{}.{}",
        encode(encrypted_key),
        encode(&nonce),
        encode(&ciphertext),
        encode(tag.as_ref())
    ))
}

/// The key that a protected header names, if the header asks for nothing that we do not do.
fn choose_key<'k>(header: &str, keys: &'k [DecryptionKey]) -> Result<&'k DecryptionKey, JweError> {
    let header: Header =
        serde_json::from_slice(&decode(header)?).map_err(|_| JweError::Malformed)?;
    if header.alg != ALGORITHM {
        return Err(JweError::Unsupported("alg"));
    }
    if header.enc != ENCRYPTION {
        return Err(JweError::Unsupported("enc"));
    }
    if header.zip.is_some() {
        return Err(JweError::Unsupported("zip"));
    }
    if header.crit.is_some() {
        return Err(JweError::Unsupported("crit"));
    }
    keys.iter()
        .find(|key| header.kid.as_deref() == Some(key.id()))
        .ok_or(JweError::UnknownKey)
}

fn decode(part: &str) -> Result<Vec<u8>, JweError> {
    BASE64_URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| JweError::Malformed)
}
