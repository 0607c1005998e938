//! The fields of an encoded message, one after another, without copying or allocating anything: for what looks at a few fields
//! of very many messages. Everything else decodes them.

use prost::encoding::{WireType, decode_key, decode_varint};

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number, a flag or an enum.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which nobody has asked for yet.
    Fixed,
}

/// The fields of a message: the tag of each, and what it holds. Ends with `None` in it where the message cannot be read.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let (tag, wire_type) = decode_key(&mut self.0).ok()?;
        let value = match wire_type {
            WireType::Varint => Value::Number(decode_varint(&mut self.0).ok()?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.0).ok()?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            WireType::SixtyFourBit => self.take(8).map(|_| Value::Fixed)?,
            WireType::ThirtyTwoBit => self.take(4).map(|_| Value::Fixed)?,
            // Groups, which are in none of our messages.
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        Some((tag, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{Check, Source, VerificationEvent};

    #[test]
    fn the_fields_of_a_message_are_walked() {
        let event = VerificationEvent {
            event_id: "id".to_owned(),
            source: Some(Source::default()),
            revision: 300,
            late: true,
            ..Default::default()
        };
        let event = event.encode_to_vec();
        let fields: Option<Vec<_>> = Fields(&event).collect();
        let expected = vec![
            (1, Value::Bytes(b"id")),
            (2, Value::Bytes(b"")),
            (9, Value::Number(300)),
            (10, Value::Number(1)),
        ];
        assert_eq!(fields.unwrap(), expected);
        let check = Check {
            score: Some(0.5),
            ..Default::default()
        };
        let check = check.encode_to_vec();
        assert_eq!(
            Fields(&check).collect::<Vec<_>>(),
            [Some((5, Value::Fixed))]
        );
    }

    #[test]
    fn what_is_cut_off_or_nonsense_ends_without_panic() {
        let event = VerificationEvent {
            event_id: "id".to_owned(),
            normalizer_version: "1".to_owned(),
            ..Default::default()
        };
        let event = event.encode_to_vec();
        for end in 1..event.len() {
            let fields: Option<Vec<_>> = Fields(&event[..end]).collect();
            assert_eq!(fields.is_none(), end != 4, "{end}");
        }
        // A length beyond everything, a tag of 0, a group.
        for nonsense in [
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ][..],
            &[0x00, 0x00],
            &[0x0b, 0x0c],
            &[0x09, 1],
        ] {
            assert_eq!(Fields(nonsense).collect::<Vec<_>>(), [None]);
        }
    }
}
