//! What filters can ask of an encoded event. One reading of it serves both sides: the filter, which is asked about an event, and
//! the *marks* of the event, by which the log passes over many events without asking.
//!
//! A mark is a number that follows from a field and its value. An event has the mark of each of its values, so where a mark is
//! not, no event has the value. That two values can have the same mark, by chance or because somebody wants it so, only
//! makes the log look at an event that nobody wants. Marks are stored, so their hash is the same in all processes and versions.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    proto::EventKind,
    wire::{Fields, Value},
};

/// Which marks an event has, and how they are made. Stored marks of another version say nothing. Whoever changes what is
/// read below, a field that is asked for or the hash must raise it.
pub(crate) const VERSION: u8 = 1;

/// The fields that are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    Provider = 1,
    Account = 2,
    Environment = 3,
    Kind = 4,
    Outcome = 5,
    Finality = 6,
    SubjectId = 7,
    ExternalId = 8,
    VerificationId = 9,
}

/// The marks of an event, one for each field. What the event does not have is marked as empty.
pub type Marks = [u64; 9];

/// The mark of a text.
pub(crate) fn of_text(field: Field, text: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), field as u64)
}

/// The mark of a number.
pub(crate) fn of_number(field: Field, number: i32) -> u64 {
    xxh3_64_with_seed(&number.to_le_bytes(), field as u64)
}

/// The marks of an encoded event. `None` for one that cannot be read: it has to be looked at.
pub fn of_event(event: &[u8]) -> Option<Marks> {
    let event = FilteredEvent::read(event)?;
    let verification = event.verification.unwrap_or_default();
    Some([
        of_text(Field::Provider, event.provider),
        of_text(Field::Account, event.account),
        of_number(Field::Environment, event.environment),
        of_number(Field::Kind, event.kind.into()),
        of_number(Field::Outcome, verification.outcome),
        of_number(Field::Finality, verification.finality),
        of_text(Field::SubjectId, event.subject_id),
        of_text(Field::ExternalId, event.external_id),
        of_text(Field::VerificationId, verification.id),
    ])
}

/// What filters ask for, of a [`VerificationEvent`](crate::proto::VerificationEvent): parts of the encoded event, so that
/// nothing is copied for one that is passed over.
#[derive(Default)]
pub(crate) struct FilteredEvent<'a> {
    pub(crate) provider: &'a str,
    pub(crate) account: &'a str,
    pub(crate) environment: i32,
    pub(crate) kind: EventKind,
    pub(crate) subject_id: &'a str,
    pub(crate) external_id: &'a str,
    pub(crate) verification: Option<FilteredVerification<'a>>,
}

#[derive(Default)]
pub(crate) struct FilteredVerification<'a> {
    pub(crate) id: &'a str,
    pub(crate) outcome: i32,
    pub(crate) finality: i32,
}

impl<'a> FilteredEvent<'a> {
    /// `None` if it cannot be read.
    pub(crate) fn read(event: &'a [u8]) -> Option<Self> {
        let mut read = Self::default();
        for field in Fields(event) {
            match field? {
                (2, Value::Bytes(source)) => read.read_source(source)?,
                (5, Value::Bytes(subject)) => read.read_subject(subject)?,
                (6, Value::Bytes(verification)) => {
                    read.kind = EventKind::Verification;
                    let known = read.verification.get_or_insert_default();
                    known.read(verification)?;
                }
                (7, Value::Bytes(_)) => read.detail(EventKind::SubjectChange),
                (8, Value::Bytes(_)) => read.detail(EventKind::CredentialShare),
                _ => {}
            }
        }
        Some(read)
    }

    /// Takes another detail in the place of whatever was read before, as a decoder does.
    fn detail(&mut self, kind: EventKind) {
        self.kind = kind;
        self.verification = None;
    }

    fn read_source(&mut self, source: &'a [u8]) -> Option<()> {
        for field in Fields(source) {
            match field? {
                (1, Value::Bytes(provider)) => self.provider = text(provider)?,
                (2, Value::Bytes(account)) => self.account = text(account)?,
                (3, Value::Number(environment)) => self.environment = environment as i32,
                _ => {}
            }
        }
        Some(())
    }

    fn read_subject(&mut self, subject: &'a [u8]) -> Option<()> {
        for field in Fields(subject) {
            match field? {
                (1, Value::Bytes(id)) => self.subject_id = text(id)?,
                (2, Value::Bytes(id)) => self.external_id = text(id)?,
                _ => {}
            }
        }
        Some(())
    }
}

impl<'a> FilteredVerification<'a> {
    fn read(&mut self, verification: &'a [u8]) -> Option<()> {
        for field in Fields(verification) {
            match field? {
                (1, Value::Bytes(id)) => self.id = text(id)?,
                (3, Value::Number(outcome)) => self.outcome = outcome as i32,
                (5, Value::Number(finality)) => self.finality = finality as i32,
                _ => {}
            }
        }
        Some(())
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{
        Environment, Finality, Outcome, Source, Subject, SubjectChange, Verification,
        VerificationEvent, verification_event::Detail,
    };

    /// Marks are stored: whoever has to change this raises [`VERSION`].
    #[test]
    fn the_marks_of_an_event_are_these_for_ever() {
        let event = VerificationEvent {
            source: Some(Source {
                provider: "fyatu".to_owned(),
                account: "default".to_owned(),
                environment: Environment::Live.into(),
                ..Default::default()
            }),
            subject: Some(Subject {
                provider_subject_id: "ch_1".to_owned(),
                external_id: "a text of more than sixteen bytes".to_owned(),
                ..Default::default()
            }),
            detail: Some(Detail::Verification(Verification {
                verification_id: "ch_1/basic".to_owned(),
                outcome: Outcome::Rejected.into(),
                finality: Finality::Final.into(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let marks = of_event(&event.encode_to_vec());
        assert_eq!(VERSION, 1);
        let expected: Marks = [
            0xaced_93cf_3c13_0605,
            0x0e12_9b37_b56e_dc00,
            0x08a0_ec59_7f56_b008,
            0xebae_f2cf_84c0_3471,
            0x04bf_8e65_c4e6_b492,
            0x965f_2685_0e3f_9872,
            0x5dca_2695_8130_140c,
            0x54bf_a759_69d9_7ca8,
            0xeaff_3a23_f7f4_00eb,
        ];
        assert_eq!(marks, Some(expected));
        assert!(of_event(&[]).is_some_and(|marks| marks[0] == of_text(Field::Provider, "")));
        // What nobody can read.
        for event in [&b"\x12\x05"[..], b"\x12\x03\x0a\x01\xff"] {
            assert_eq!(of_event(event), None);
        }
    }

    /// As the reference implementation has them: it goes another way for each of these lengths.
    #[test]
    fn the_mark_of_a_text_is_xxh3_whatever_its_length() {
        for (length, mark) in [
            (20, 0x7d2b_f3d2_315d_6fcf),
            (100, 0x42e0_2b1e_b2c4_d712),
            (200, 0x3285_53a7_fbfa_5f2b),
            (1000, 0x3d7d_7312_0e30_85cb),
        ] {
            let text: String = ('a'..='z').cycle().take(length).collect();
            assert_eq!(of_text(Field::ExternalId, &text), mark, "{length}");
        }
    }

    /// Marks of what is read in another way would not be those that are stored.
    #[test]
    fn what_comes_twice_is_read_as_a_decoder_does() {
        let with = |detail| VerificationEvent {
            detail: Some(detail),
            ..Default::default()
        };
        let verification = |verification_id: &str, outcome: Outcome| {
            let verification = Verification {
                verification_id: verification_id.to_owned(),
                outcome: outcome.into(),
                ..Default::default()
            };
            with(Detail::Verification(verification)).encode_to_vec()
        };
        let [one, two] = [
            verification("one", Outcome::Approved),
            verification("", Outcome::Rejected),
        ];
        let change = with(Detail::SubjectChange(SubjectChange::default())).encode_to_vec();
        for (event, kind, id, outcome) in [
            (
                [&one[..], &two].concat(),
                EventKind::Verification,
                "one",
                Outcome::Rejected,
            ),
            (
                [&one[..], &change].concat(),
                EventKind::SubjectChange,
                "",
                Outcome::Unspecified,
            ),
            (
                [&one[..], &change, &two].concat(),
                EventKind::Verification,
                "",
                Outcome::Rejected,
            ),
            (Vec::new(), EventKind::Unspecified, "", Outcome::Unspecified),
        ] {
            let marks = of_event(&event).unwrap();
            assert_eq!(marks[3], of_number(Field::Kind, kind.into()));
            assert_eq!(marks[4], of_number(Field::Outcome, outcome.into()));
            assert_eq!(marks[8], of_text(Field::VerificationId, id));
        }
    }

    #[test]
    fn a_value_has_another_mark_in_each_field() {
        let marks = [
            of_text(Field::SubjectId, "1"),
            of_text(Field::ExternalId, "1"),
        ];
        assert_ne!(marks[0], marks[1]);
        assert_ne!(of_number(Field::Kind, 1), of_number(Field::Outcome, 1));
        assert_eq!(of_text(Field::SubjectId, "1"), marks[0]);
    }
}
