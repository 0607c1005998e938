//! The cryptography of the log: AES-256-GCM, of aws-lc-rs. The only file that sees a key.
//!
//! A *data key* seals personal data and raw deliveries. It lies in a slot of a key file, wrapped by a *master key*, which
//! lies in a file of its own. Every nonce is random, and random nonces of 96 bits are good for 2³² messages under one key. A
//! data key seals what one subject has in one segment, which is far below that. A master key wraps all data keys that are made
//! while it is the current one, used or not, and all there are when it becomes the current one; nothing counts them. At a
//! thousand a second that is 2³² in 49 days, at ten a second in 13 years: whoever has so many rotates it before.
//!
//! What is sealed is bound to its place, so that nobody can give it another one: a slot to its log, file and number, personal
//! data and deliveries to the log and the number of their record.

use std::{collections::HashSet, fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    rand,
};
use base16ct::lower;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use uuid::Uuid;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// What sealing adds to the length.
const OVERHEAD: usize = NONCE_LEN + TAG_BYTES;

/// The length of a wrapped data key.
pub(super) const WRAPPED_BYTES: usize = KEY_BYTES + OVERHEAD;

/// The length of what proves that a key file was made with a master key.
pub(super) const PROOF_BYTES: usize = OVERHEAD;

/// How long the id of a master key may be.
pub(super) const MAX_ID_BYTES: usize = 32;

/// The files in which something is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Events,
    Genuine,
    Unverified,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Events, Self::Genuine, Self::Unverified];

    /// The directory of the segments, and among the keys that of their key files.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Genuine => "quarantine",
            Self::Unverified => "unverified",
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Events => 1,
            Self::Genuine => 2,
            Self::Unverified => 3,
        }
    }
}

/// What is sealed, of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    PersonalData,
    Delivery,
}

/// The record that something sealed belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordPlace {
    pub(super) log_id: Uuid,
    pub(super) kind: Kind,
    pub(super) number: u64,
}

impl RecordPlace {
    fn aad(&self, purpose: Purpose) -> [u8; 42] {
        let purpose = match purpose {
            Purpose::PersonalData => 1,
            Purpose::Delivery => 2,
        };
        let mut aad = [0; 42];
        aad[..16].copy_from_slice(b"verdict-record-1");
        aad[16..32].copy_from_slice(self.log_id.as_bytes());
        aad[32..34].copy_from_slice(&[self.kind.code(), purpose]);
        aad[34..].copy_from_slice(&self.number.to_le_bytes());
        aad
    }
}

/// The place of a data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotPlace {
    pub(super) log_id: Uuid,
    pub(super) kind: Kind,
    /// The number of the first record of its segment.
    pub(super) base: u64,
    pub(super) slot: u32,
}

impl SlotPlace {
    fn aad(&self) -> [u8; 43] {
        let mut aad = [0; 43];
        aad[..14].copy_from_slice(b"verdict-slot-1");
        aad[14..30].copy_from_slice(self.log_id.as_bytes());
        aad[30] = self.kind.code();
        aad[31..39].copy_from_slice(&self.base.to_le_bytes());
        aad[39..].copy_from_slice(&self.slot.to_le_bytes());
        aad
    }
}

/// A key that seals what one subject has in one segment. Redacted in `Debug`, wiped on drop.
pub(super) struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl DataKey {
    /// New keys, so many at once.
    pub(super) fn generate(count: usize) -> Result<Vec<Self>, Unspecified> {
        let mut bytes = Zeroizing::new(vec![0; count * KEY_BYTES]);
        rand::fill(&mut bytes)?;
        let (keys, _) = bytes.as_chunks::<KEY_BYTES>();
        Ok(keys.iter().map(|key| Self(Zeroizing::new(*key))).collect())
    }

    /// The key, ready to seal all that a record has.
    pub(super) fn sealer(&self) -> Result<Sealer, Unspecified> {
        Ok(Sealer(cipher(&self.0)?))
    }

    /// Opens what was sealed for this place. `None` if it was not, or is not what was sealed.
    pub(super) fn open(
        &self,
        place: &RecordPlace,
        purpose: Purpose,
        sealed: &[u8],
    ) -> Option<Bytes> {
        if sealed.is_empty() {
            return Some(Bytes::new());
        }
        let key = cipher(&self.0).ok()?;
        open(&key, &place.aad(purpose), sealed).map(Bytes::from)
    }
}

/// A data key with what its cipher computes of it beforehand. aws-lc wipes what it frees.
pub(super) struct Sealer(LessSafeKey);

impl Sealer {
    /// Appends bytes to a buffer, sealed for their place. Nothing stays nothing.
    pub(super) fn seal(
        &self,
        place: &RecordPlace,
        purpose: Purpose,
        plaintext: &[u8],
        nonces: &mut Nonces,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Unspecified> {
        if plaintext.is_empty() {
            return Ok(());
        }
        seal(&self.0, nonces, &place.aad(purpose), plaintext, buffer)
    }
}

/// Random nonces: drawn many at once, because each draw costs more than sealing an event, and handed out once. A copy of the
/// memory of a running process that is run twice would hand them out twice: SECURITY.md tells not to.
#[derive(Debug, Default)]
pub(super) struct Nonces(Vec<[u8; NONCE_LEN]>);

impl Nonces {
    fn next(&mut self) -> Result<[u8; NONCE_LEN], Unspecified> {
        const AT_ONCE: usize = 256;
        if self.0.is_empty() {
            let mut nonces = vec![[0; NONCE_LEN]; AT_ONCE];
            rand::fill(nonces.as_flattened_mut())?;
            self.0 = nonces;
        }
        self.0.pop().ok_or(Unspecified)
    }
}

/// A key that wraps data keys. Redacted in `Debug`; aws-lc wipes what it frees.
pub(super) struct MasterKey {
    id: String,
    key: LessSafeKey,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKey {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn wrap(
        &self,
        place: &SlotPlace,
        key: &DataKey,
        nonces: &mut Nonces,
    ) -> Result<[u8; WRAPPED_BYTES], Unspecified> {
        let mut wrapped = Vec::with_capacity(WRAPPED_BYTES);
        seal(&self.key, nonces, &place.aad(), &key.0[..], &mut wrapped)?;
        wrapped.try_into().map_err(|_| Unspecified)
    }

    pub(super) fn unwrap(&self, place: &SlotPlace, wrapped: &[u8]) -> Option<DataKey> {
        let opened = Zeroizing::new(open(&self.key, &place.aad(), wrapped)?);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if opened.len() != KEY_BYTES {
            return None;
        }
        key.copy_from_slice(&opened);
        Some(DataKey(key))
    }

    /// What proves that whoever wrote these bytes had this key.
    pub(super) fn prove(&self, bytes: &[u8]) -> Result<[u8; PROOF_BYTES], Unspecified> {
        let (mut nonces, mut proof) = (Nonces::default(), Vec::new());
        seal(&self.key, &mut nonces, &proof_aad(bytes), &[], &mut proof)?;
        proof.try_into().map_err(|_| Unspecified)
    }

    /// Whether a proof of [`prove`](Self::prove) is one for these bytes and this key.
    pub(super) fn has_proved(&self, bytes: &[u8], proof: &[u8]) -> bool {
        open(&self.key, &proof_aad(bytes), proof).is_some()
    }
}

fn proof_aad(bytes: &[u8]) -> Vec<u8> {
    [b"verdict-keyfile-1", bytes].concat()
}

fn cipher(key: &[u8; KEY_BYTES]) -> Result<LessSafeKey, Unspecified> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?))
}

/// Appends the nonce, the ciphertext, the tag.
fn seal(
    key: &LessSafeKey,
    nonces: &mut Nonces,
    aad: &[u8],
    plaintext: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), Unspecified> {
    let nonce = nonces.next()?;
    buffer.reserve(plaintext.len() + OVERHEAD);
    buffer.extend_from_slice(&nonce);
    let begin = buffer.len();
    buffer.extend_from_slice(plaintext);
    let tag = key.seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(aad),
        &mut buffer[begin..],
    )?;
    buffer.extend_from_slice(tag.as_ref());
    Ok(())
}

fn open(key: &LessSafeKey, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut opened = ciphertext.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = key
        .open_in_place(nonce, Aad::from(aad), &mut opened)
        .ok()?
        .len();
    opened.truncate(length);
    Some(opened)
}

/// The master keys of a log. New data keys are wrapped by the first one.
#[derive(Clone, Debug, Default)]
pub(super) struct MasterKeys(Vec<Arc<MasterKey>>);

/// What is wrong with a file of master keys. It never quotes the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// There is nothing in it.
    #[error("it holds no key; `verdict keys new` prints a line for it")]
    Empty,
    /// A line is of another form.
    #[error(
        "line {0} is not `<id> <base64 of 32 bytes>`, with an id of at most 32 letters, digits, dots, dashes and \
         underscores; `verdict keys new` prints such a line"
    )]
    Line(usize),
    /// A key of another length.
    #[error("the key in line {line} has {bytes} bytes, and must have 32")]
    Length {
        /// The line.
        line: usize,
        /// How long the key is.
        bytes: usize,
    },
    /// Two keys with one name.
    #[error("line {line} gives the id {id} a second time")]
    Twice {
        /// The line.
        line: usize,
        /// The id.
        id: String,
    },
}

impl MasterKeys {
    /// Reads lines of an id and a key: the first is the current one, others are older. `#` begins a comment.
    pub(super) fn parse(text: &[u8]) -> Result<Self, MasterKeyError> {
        let mut keys = Vec::new();
        let mut ids = HashSet::new();
        for (line, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let text = text.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let key = parse_line(text, line)?;
            if !ids.insert(key.id.clone()) {
                return Err(MasterKeyError::Twice { line, id: key.id });
            }
            keys.push(Arc::new(key));
        }
        match keys.is_empty() {
            true => Err(MasterKeyError::Empty),
            false => Ok(Self(keys)),
        }
    }

    /// The one that wraps new data keys. `None` if there are none.
    pub(super) fn current(&self) -> Option<&Arc<MasterKey>> {
        self.0.first()
    }

    pub(super) fn find(&self, id: &str) -> Option<&Arc<MasterKey>> {
        self.0.iter().find(|key| key.id == id)
    }
}

fn parse_line(text: &[u8], line: usize) -> Result<MasterKey, MasterKeyError> {
    let mut words = text
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let (Some(id), Some(key), None) = (words.next(), words.next(), words.next()) else {
        return Err(MasterKeyError::Line(line));
    };
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_".contains(byte);
    let id = match std::str::from_utf8(id) {
        Ok(name) if name.len() <= MAX_ID_BYTES && id.iter().all(known) => name.to_owned(),
        _ => return Err(MasterKeyError::Line(line)),
    };
    let key = BASE64_STANDARD.decode(key);
    let key = Zeroizing::new(key.map_err(|_| MasterKeyError::Line(line))?);
    let bytes = key.len();
    let key = <&[u8; KEY_BYTES]>::try_from(&key[..])
        .map_err(|_| MasterKeyError::Length { line, bytes })?;
    let key = cipher(key).map_err(|_| MasterKeyError::Line(line))?;
    Ok(MasterKey { id, key })
}

/// A new line for a file of master keys, with a random id and a random key.
pub fn new_master_key() -> Result<Zeroizing<String>, Unspecified> {
    let mut id = [0; 4];
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(&mut id)?;
    rand::fill(&mut key[..])?;
    let key = Zeroizing::new(BASE64_STANDARD.encode(&key[..]));
    Ok(Zeroizing::new(format!(
        "{} {}",
        lower::encode_string(&id),
        *key
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master_key() -> Arc<MasterKey> {
        let keys = MasterKeys::parse(new_master_key().unwrap().as_bytes()).unwrap();
        Arc::clone(keys.current().unwrap())
    }

    fn record(number: u64) -> RecordPlace {
        RecordPlace {
            log_id: Uuid::from_u128(1),
            kind: Kind::Events,
            number,
        }
    }

    fn data_key() -> DataKey {
        DataKey::generate(1).unwrap().remove(0)
    }

    fn seal(key: &DataKey, plaintext: &[u8]) -> Vec<u8> {
        let (mut nonces, mut sealed) = (Nonces::default(), Vec::new());
        let (place, purpose) = (record(1), Purpose::Delivery);
        let sealer = key.sealer().unwrap();
        sealer
            .seal(&place, purpose, plaintext, &mut nonces, &mut sealed)
            .unwrap();
        sealed
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only() {
        let key = data_key();
        let sealed = seal(&key, b"Jane Roe");
        let open = |place: &RecordPlace, purpose, sealed: &[u8]| key.open(place, purpose, sealed);
        assert_eq!(
            open(&record(1), Purpose::Delivery, &sealed).unwrap(),
            "Jane Roe"
        );
        let elsewhere = [
            record(2),
            RecordPlace {
                kind: Kind::Genuine,
                ..record(1)
            },
            RecordPlace {
                log_id: Uuid::from_u128(2),
                ..record(1)
            },
        ];
        for place in elsewhere {
            assert_eq!(open(&place, Purpose::Delivery, &sealed), None);
        }
        assert_eq!(open(&record(1), Purpose::PersonalData, &sealed), None);
        let other = data_key();
        assert_eq!(other.open(&record(1), Purpose::Delivery, &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert_eq!(open(&record(1), Purpose::Delivery, &changed), None);
            assert_eq!(
                open(&record(1), Purpose::Delivery, &sealed[..at]).filter(|o| !o.is_empty()),
                None
            );
        }
    }

    #[test]
    fn the_same_is_never_sealed_twice_alike() {
        let key = data_key();
        let mut nonces = Nonces::default();
        // More of them than are drawn at once.
        let drawn = (0..1000).map(|_| nonces.next().unwrap());
        assert_eq!(drawn.collect::<HashSet<_>>().len(), 1000);
        assert_ne!(seal(&key, b"x"), seal(&key, b"x"));
        assert!(seal(&key, b"").is_empty());
        let keys = DataKey::generate(100).unwrap();
        let keys: HashSet<_> = keys.iter().map(|key| *key.0).collect();
        assert_eq!(keys.len(), 100);
    }

    #[test]
    fn a_data_key_unwraps_in_its_slot_only() {
        let (master, key) = (master_key(), data_key());
        let place = |slot| SlotPlace {
            log_id: Uuid::from_u128(1),
            kind: Kind::Events,
            base: 1,
            slot,
        };
        let nonces = &mut Nonces::default();
        let wrapped = master.wrap(&place(1), &key, nonces).unwrap();
        assert_eq!(master.unwrap(&place(1), &wrapped).unwrap().0, key.0);
        assert!(master.unwrap(&place(2), &wrapped).is_none());
        assert!(master_key().unwrap(&place(1), &wrapped).is_none());
        let proof = master.prove(b"header").unwrap();
        assert!(master.has_proved(b"header", &proof) && !master.has_proved(b"other", &proof));
        assert!(!master_key().has_proved(b"header", &proof));
    }

    #[test]
    fn a_file_of_master_keys_is_refused_with_the_line_that_is_wrong() {
        let (one, two) = (new_master_key().unwrap(), new_master_key().unwrap());
        let good = format!("# of 2026\n{}\r\n\n  {}  \n", *one, *two);
        let keys = MasterKeys::parse(good.as_bytes()).unwrap();
        let id = |line: &str| line.split(' ').next().unwrap().to_owned();
        assert_eq!(keys.current().unwrap().id(), id(&one));
        assert!(keys.find(&id(&two)).is_some() && keys.find("").is_none());
        let refused = |text: String| MasterKeys::parse(text.as_bytes()).unwrap_err();
        assert_eq!(refused("# nothing\n".to_owned()), MasterKeyError::Empty);
        for wrong in [
            "a",
            "a b c",
            "ä AAAA",
            "a/b AAAA",
            "a ????",
            &format!("{} AAAA", "a".repeat(33)),
        ] {
            assert_eq!(
                refused(format!("{}\n{wrong}", *one)),
                MasterKeyError::Line(2)
            );
        }
        let bytes = refused("a AAAA".to_owned());
        assert_eq!(bytes, MasterKeyError::Length { line: 1, bytes: 3 });
        let twice = refused(format!("{}\n{}", *one, *one));
        let id = id(&one);
        assert_eq!(twice, MasterKeyError::Twice { line: 2, id });
    }

    #[test]
    fn no_key_is_shown() {
        let keys = MasterKeys::parse(b"one AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        assert_eq!(format!("{keys:?}"), "MasterKeys([MasterKey(one)])");
        let key = data_key();
        assert_eq!(format!("{key:?}"), "DataKey(…)");
    }
}
