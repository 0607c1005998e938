//! All logs do the same as the simplest one that can be thought of, whatever is done to them, closing and opening again
//! included.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::{prelude::*, test_runner::TestRunner};
use uuid::Uuid;
use verdict::{
    event,
    log::{
        Appended, Commit, CommitError, Consumer, Cursor, EventLog, NewEvent, NewQuarantined,
        Origin, OutOfRange, Position, QuarantineKind,
    },
};

use crate::log::{ALL, Opened, at, decode, new_event};

/// What a test may do to a log.
#[derive(Clone, Debug)]
enum Operation {
    Append {
        number: u128,
        verification: Option<u8>,
        occurred_at: Option<i64>,
        content: u8,
    },
    /// Corrects an event of a verification, if there is one of this number.
    Correct {
        number: u128,
        occurred_at: Option<i64>,
    },
    Quarantine(u128),
    Release(u128),
    /// Commits a position, as a part in 16 of what there is, or one beyond.
    Commit {
        consumer: u8,
        sixteenths: u64,
        force: bool,
    },
    Forget(u8),
    /// Erases the event of this number, if there is one.
    Erase(u128),
    Reopen,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let times = || proptest::option::of(0..10_i64);
    let append = (0..40_u128, proptest::option::of(0..4_u8), times(), 0..2_u8).prop_map(
        |(number, verification, occurred_at, content)| Operation::Append {
            number,
            verification,
            occurred_at,
            content,
        },
    );
    let correct = (0..40_u128, times()).prop_map(|(number, occurred_at)| Operation::Correct {
        number,
        occurred_at,
    });
    let commit = (0..3_u8, 0..=17_u64, any::<bool>()).prop_map(|(consumer, sixteenths, force)| {
        Operation::Commit {
            consumer,
            sixteenths,
            force,
        }
    });
    let operation = prop_oneof![
        20 => append,
        3 => correct,
        2 => (0..6_u128).prop_map(Operation::Quarantine),
        2 => (0..6_u128).prop_map(Operation::Release),
        4 => commit,
        1 => (0..3_u8).prop_map(Operation::Forget),
        2 => (0..40_u128).prop_map(Operation::Erase),
        2 => Just(Operation::Reopen),
    ];
    proptest::collection::vec(operation, 1..80)
}

#[test]
fn random_operations_end_as_in_a_model() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..Default::default()
    });
    let result = runner.run(&operations(), |operations| {
        for opened in Opened::all() {
            runtime.block_on(check_against_model(opened, &operations))?;
        }
        Ok(())
    });
    result.unwrap();
}

/// An event of the model.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    id: u128,
    content: u8,
    verification: Option<u8>,
    occurred_at: Option<i64>,
    corrects: Option<u128>,
    revision: u64,
    late: bool,
    erased: Erased,
}

/// Whether the personal data of an event can be read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Erased {
    No,
    /// Another event of its subject was erased.
    Perhaps,
    Yes,
}

/// The log as a few lists.
#[derive(Default)]
struct Model {
    events: Vec<Known>,
    cursors: Vec<Cursor>,
    /// In the order in which they came in.
    quarantine: Vec<u128>,
    committed: BTreeMap<String, u64>,
}

impl Model {
    fn position(&self, id: u128) -> Option<usize> {
        self.events.iter().position(|event| event.id == id)
    }

    /// The event that a verification stands at: of its originals, each with the time of its last correction, the last one of
    /// those that no earlier one has overtaken.
    fn current(&self, verification: u8) -> Option<usize> {
        let of_it = |event: &Known| event.verification == Some(verification);
        let mut latest = None;
        let mut current = None;
        for (number, original) in self.events.iter().enumerate() {
            if !of_it(original) || original.corrects.is_some() {
                continue;
            }
            let corrects = |event: &Known| of_it(event) && event.corrects == Some(original.id);
            let newest = self.events.iter().rposition(corrects).unwrap_or(number);
            let time = self.events[newest].occurred_at;
            if time.is_none() || time >= latest {
                current = Some(newest);
            }
            latest = latest.max(time);
        }
        current
    }

    fn erase(&mut self, erased: usize) {
        // Events without a verification have the same subject as those of the first one.
        let subject = |event: &Known| event.verification.unwrap_or(0);
        let of = subject(&self.events[erased]);
        for event in &mut self.events {
            if subject(event) == of && event.erased == Erased::No {
                event.erased = Erased::Perhaps;
            }
        }
        self.events[erased].erased = Erased::Yes;
    }

    fn append(&mut self, mut event: Known) -> Appended {
        if let Some(known) = self.position(event.id) {
            let position = Position(known as u64 + 1);
            return match self.events[known].content == event.content {
                true => Appended::Duplicate(position),
                false => Appended::Conflict(position),
            };
        }
        let verification = event.verification;
        let before = |known: &&Known| known.verification == verification;
        if verification.is_some() {
            event.revision = self.events.iter().filter(before).count() as u64 + 1;
        }
        self.events.push(event);
        let last = self.events.len() - 1;
        if let Some(verification) = verification {
            self.events[last].late = self.current(verification) != Some(last);
        }
        Appended::New(Position(last as u64 + 1))
    }
}

/// Corrections get numbers of their own.
const CORRECTION: u128 = 1000;

async fn check_against_model(
    mut opened: Opened,
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    for (number, operation) in (0..).zip(operations) {
        apply(&mut opened, &mut model, operation, number).await?;
        let log = opened.log();
        let end = log.tail().end();
        prop_assert_eq!(end.0, model.events.len() as u64);
        // An event has one cursor for ever, and it leads behind the event.
        while (model.cursors.len() as u64) <= end.0 {
            model
                .cursors
                .push(log.cursor(Position(model.cursors.len() as u64)));
        }
    }
    let log = opened.log();
    for (position, cursor) in (0..).zip(&model.cursors) {
        prop_assert_eq!(log.cursor(Position(position)), *cursor);
        prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(*cursor));
        prop_assert_eq!(log.resolve(cursor), Ok(Position(position)));
    }
    let ahead = log.cursor(Position(model.events.len() as u64 + 1));
    prop_assert_eq!(log.resolve(&ahead), Err(OutOfRange::Ahead));
    check_events(log, &model).await?;
    check_verifications(log, &model).await?;
    check_rest(log, &model).await
}

async fn apply(
    opened: &mut Opened,
    model: &mut Model,
    operation: &Operation,
    number: u128,
) -> Result<(), TestCaseError> {
    let log = opened.log();
    match *operation {
        Operation::Append {
            number,
            verification,
            occurred_at,
            content,
        } => {
            let event = NewEvent {
                content_sha256: [content; 32],
                ..new_event(number, verification, occurred_at)
            };
            let appended = log.append(event).await.unwrap();
            let known = Known {
                id: number,
                content,
                verification,
                occurred_at,
                corrects: None,
                revision: 0,
                late: false,
                erased: Erased::No,
            };
            prop_assert_eq!(appended, model.append(known));
        }
        Operation::Correct {
            number: corrected,
            occurred_at,
        } => {
            let Some(original) = model.position(corrected) else {
                return Ok(());
            };
            let known = Known {
                id: CORRECTION + number,
                content: 0,
                occurred_at,
                corrects: Some(corrected),
                ..model.events[original].clone()
            };
            let event = NewEvent {
                content_sha256: [0; 32],
                origin: Origin::Correction(Uuid::from_u128(corrected)),
                ..new_event(known.id, known.verification, occurred_at)
            };
            let appended = log.append(event).await.unwrap();
            let known = Known {
                revision: 0,
                late: false,
                erased: Erased::No,
                ..known
            };
            prop_assert_eq!(appended, model.append(known));
        }
        Operation::Quarantine(number) => {
            log.quarantine(quarantined(number)).await.unwrap();
            if !model.quarantine.contains(&number) {
                model.quarantine.push(number);
            }
        }
        Operation::Release(number) => {
            let released = log.release(Uuid::from_u128(number)).await.unwrap();
            prop_assert_eq!(released, model.quarantine.contains(&number));
            model.quarantine.retain(|known| *known != number);
        }
        Operation::Commit {
            consumer,
            sixteenths,
            force,
        } => commit(log, model, consumer, sixteenths, force).await?,
        Operation::Forget(consumer) => {
            log.forget(consumer.to_string()).await.unwrap();
            model.committed.remove(&consumer.to_string());
        }
        Operation::Erase(number) => {
            if let Some(event) = model.position(number) {
                log.erase(vec![Position(event as u64 + 1)]).await.unwrap();
                model.erase(event);
            }
        }
        Operation::Reopen => opened.reopen(),
    }
    Ok(())
}

async fn commit(
    log: &dyn EventLog,
    model: &mut Model,
    consumer: u8,
    sixteenths: u64,
    force: bool,
) -> Result<(), TestCaseError> {
    let position = Position(model.events.len() as u64 * sixteenths / 16);
    let cursor = log.cursor(position);
    if log.resolve(&cursor).is_err() {
        prop_assert!(position > log.tail().end());
        return Ok(());
    }
    let commit = Commit {
        consumer: Consumer {
            name: consumer.to_string(),
            cursor,
            committed_at: at(0),
        },
        force,
    };
    let committed = log.commit(commit).await;
    let before = model.committed.get(&consumer.to_string());
    match before {
        Some(before) if position.0 < *before && !force => {
            prop_assert!(matches!(committed, Err(CommitError::Behind)));
        }
        _ => {
            prop_assert!(committed.is_ok());
            model.committed.insert(consumer.to_string(), position.0);
        }
    }
    Ok(())
}

fn quarantined(number: u128) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind: QuarantineKind::Genuine,
        received_at: at(0),
        summary: Bytes::from(number.to_string()),
        delivery: Bytes::from_static(b"delivery"),
    }
}

async fn check_events(log: &dyn EventLog, model: &Model) -> Result<(), TestCaseError> {
    let stored = log.read(Position(0), ALL).await.unwrap();
    for (stored, known) in stored.iter().zip(&model.events) {
        let personal_data = log.personal_data(stored).await.unwrap();
        let delivery = log.delivery(stored.position).await.unwrap();
        let written = new_event(known.id, None, None);
        let is_there = (
            personal_data == written.encoded.personal_data,
            delivery == Some(written.delivery),
        );
        let is_gone = (personal_data == event::erased(), delivery.is_none());
        match known.erased {
            Erased::No => prop_assert_eq!(is_there, (true, true)),
            Erased::Yes => prop_assert_eq!(is_gone, (true, true)),
            Erased::Perhaps => prop_assert!(is_there == (true, true) || is_gone == (true, true)),
        }
    }
    let stored: Vec<(u128, u64, bool)> = stored
        .iter()
        .map(decode)
        .map(|event| {
            let id = event.event_id.parse::<Uuid>().unwrap().as_u128();
            (id, event.revision, event.late)
        })
        .collect();
    let events = model.events.iter();
    let expected: Vec<(u128, u64, bool)> = events
        .map(|event| (event.id, event.revision, event.late))
        .collect();
    prop_assert_eq!(stored, expected);
    Ok(())
}

async fn check_verifications(log: &dyn EventLog, model: &Model) -> Result<(), TestCaseError> {
    let mut histories: HashMap<u8, Vec<u64>> = HashMap::new();
    for (position, event) in (1..).zip(&model.events) {
        if let Some(verification) = event.verification {
            histories.entry(verification).or_default().push(position);
        }
    }
    for verification in 0..4_u8 {
        let state = log.verification([verification; 32]).await.unwrap();
        let Some(positions) = histories.get(&verification) else {
            prop_assert_eq!(state, None);
            continue;
        };
        let state = state.expect("it has events");
        prop_assert_eq!(state.revision, positions.len() as u64);
        let current = model
            .current(verification)
            .map(|current| current as u64 + 1);
        prop_assert_eq!(Some(state.current.0), current);
        let history = log.history(state.last, 1000).await.unwrap();
        let found: Vec<u64> = history
            .events
            .iter()
            .rev()
            .map(|event| event.position.0)
            .collect();
        prop_assert_eq!(&found, positions);
        prop_assert_eq!(history.next, None);
    }
    Ok(())
}

async fn check_rest(log: &dyn EventLog, model: &Model) -> Result<(), TestCaseError> {
    let stored = log
        .quarantined(QuarantineKind::Genuine, 0, ALL)
        .await
        .unwrap();
    let stored: Vec<u128> = stored
        .iter()
        .map(|stored| {
            std::str::from_utf8(&stored.summary)
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    prop_assert_eq!(&stored, &model.quarantine);
    let committed: BTreeMap<String, u64> = log
        .consumers()
        .into_iter()
        .map(|consumer| (consumer.name, consumer.cursor.position.0))
        .collect();
    prop_assert_eq!(&committed, &model.committed);
    Ok(())
}
