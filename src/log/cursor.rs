//! Cursors: positions as callers see them.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::Position;

/// A position together with the log that it is of. Callers see it as an opaque string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The log.
    pub log: Uuid,
    /// The position in it.
    pub position: Position,
}

/// Not a cursor of any log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of verdict")]
pub struct CursorError;

const LOG_BYTES: usize = 16;
const BYTES: usize = LOG_BYTES + 8;

impl Cursor {
    /// The cursor as callers see it.
    pub fn encode(&self) -> String {
        let mut bytes = [0; BYTES];
        bytes[..LOG_BYTES].copy_from_slice(self.log.as_bytes());
        bytes[LOG_BYTES..].copy_from_slice(&self.position.0.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor that a caller sent.
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        // One byte more than a cursor has: a longer text does not fit, and is refused without being decoded in full.
        let mut bytes = [0; BYTES + 1];
        let length = BASE64_URL_SAFE_NO_PAD
            .decode_slice(text, &mut bytes)
            .map_err(|_| CursorError)?;
        let (log, position) = bytes
            .get(..length)
            .and_then(|bytes| bytes.split_first_chunk::<LOG_BYTES>())
            .ok_or(CursorError)?;
        Ok(Self {
            log: Uuid::from_bytes(*log),
            position: Position(u64::from_be_bytes(
                position.try_into().map_err(|_| CursorError)?,
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is() {
        let cursor = Cursor {
            log: Uuid::from_u128(7),
            position: Position(u64::MAX),
        };
        let text = cursor.encode();
        assert_eq!(Cursor::decode(&text), Ok(cursor));
        for bad in [
            "",
            "!",
            &text[1..],
            &format!("{text}AA"),
            &"A".repeat(1 << 20),
        ] {
            assert_eq!(Cursor::decode(bad), Err(CursorError));
        }
    }
}
