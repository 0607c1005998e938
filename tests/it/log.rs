//! One contract for all logs. Each check runs on every implementation; closing and opening again is part of it where
//! the log outlives its process.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;
use verdict::{
    event::{self, EncodedEvent},
    log::{
        Appended, EventLog, NewEvent, NewQuarantined, Origin, Position, QuarantineKind, ReadLimit,
        StoredEvent,
        embedded::{EmbeddedLog, OpenError},
    },
    proto::{PersonalData, VerificationEvent},
};

use crate::support::{embedded_log, log_config, memory_log};

/// A log that can be closed and opened again, if its kind survives that.
pub(crate) enum Opened {
    Memory(Arc<dyn EventLog>),
    Embedded(TempDir, Option<Arc<dyn EventLog>>),
}

impl Opened {
    pub(crate) fn all() -> [Self; 2] {
        let directory = TempDir::new().unwrap();
        let log = embedded_log(&directory);
        [
            Self::Memory(memory_log()),
            Self::Embedded(directory, Some(log)),
        ]
    }

    pub(crate) fn log(&self) -> &dyn EventLog {
        match self {
            Self::Memory(log) => log.as_ref(),
            Self::Embedded(_, log) => log.as_ref().unwrap().as_ref(),
        }
    }

    pub(crate) fn reopen(&mut self) {
        if let Self::Embedded(directory, log) = self {
            *log = None;
            *log = Some(embedded_log(directory));
        }
    }
}

pub(crate) const ALL: ReadLimit = ReadLimit {
    records: usize::MAX,
    bytes: usize::MAX,
};

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// An event whose content follows from its number.
pub(crate) fn new_event(
    number: u128,
    verification: Option<u8>,
    occurred_at: Option<i64>,
) -> NewEvent {
    let encoded = event::encode(VerificationEvent {
        event_id: Uuid::from_u128(number).to_string(),
        personal_data: Some(PersonalData {
            full_name: format!("name {number}"),
            ..Default::default()
        }),
        ..Default::default()
    });
    NewEvent {
        event_id: Uuid::from_u128(number),
        content_sha256: [number as u8; 32],
        verification: verification.map(|verification| [verification; 32]),
        subject: [verification.unwrap_or(0); 32],
        occurred_at: occurred_at.map(at),
        received_at: at(1000 + number as i64),
        origin: Origin::Received,
        encoded,
        delivery: Bytes::from(format!("delivery {number}")),
    }
}

/// A stored event with its personal data.
pub(crate) async fn whole(log: &dyn EventLog, stored: &StoredEvent) -> VerificationEvent {
    let personal_data = log.personal_data(stored).await.unwrap();
    VerificationEvent::decode(event::merge(&stored.event, &personal_data)).unwrap()
}

pub(crate) fn decode(stored: &StoredEvent) -> VerificationEvent {
    VerificationEvent::decode(stored.event.clone()).unwrap()
}

#[tokio::test]
async fn events_are_read_in_the_order_of_their_positions() {
    for mut opened in Opened::all() {
        for number in 1..=10 {
            let appended = opened
                .log()
                .append(new_event(number, None, None))
                .await
                .unwrap();
            assert_eq!(appended, Appended::New(Position(number as u64)));
        }
        for _ in 0..2 {
            let log = opened.log();
            assert_eq!(log.tail().end(), Position(10));
            let events = log.read(Position(3), ALL).await.unwrap();
            let positions: Vec<u64> = events.iter().map(|event| event.position.0).collect();
            assert_eq!(positions, [4, 5, 6, 7, 8, 9, 10]);
            assert_eq!(
                whole(log, &events[0])
                    .await
                    .personal_data
                    .unwrap()
                    .full_name,
                "name 4"
            );
            assert!(log.read(Position(10), ALL).await.unwrap().is_empty());
            assert!(log.read(Position(u64::MAX), ALL).await.unwrap().is_empty());
            opened.reopen();
        }
    }
}

#[tokio::test]
async fn a_read_stops_at_its_limits() {
    for opened in Opened::all() {
        let log = opened.log();
        for number in 1..=10 {
            let _ = log.append(new_event(number, None, None)).await.unwrap();
        }
        let read = async |records, bytes| {
            log.read(Position(0), ReadLimit { records, bytes })
                .await
                .unwrap()
                .len()
        };
        assert_eq!(read(3, usize::MAX).await, 3);
        assert_eq!(read(usize::MAX, 1).await, 1);
        assert_eq!(read(0, usize::MAX).await, 1);
        let one = log
            .read(
                Position(0),
                ReadLimit {
                    records: 1,
                    bytes: 0,
                },
            )
            .await
            .unwrap();
        let size = one[0].event.len() + one[0].personal_data.size_bytes();
        assert_eq!(read(usize::MAX, 2 * size).await, 2);
    }
}

#[tokio::test]
async fn a_redelivery_is_recognized_and_a_conflict_told_apart() {
    for mut opened in Opened::all() {
        let first = new_event(1, Some(1), Some(1));
        let _ = opened.log().append(first.clone()).await.unwrap();
        let _ = opened
            .log()
            .append(new_event(2, Some(1), Some(2)))
            .await
            .unwrap();
        for _ in 0..2 {
            let log = opened.log();
            let again = log.append(first.clone()).await.unwrap();
            assert_eq!(again, Appended::Duplicate(Position(1)));
            let conflict = NewEvent {
                content_sha256: [9; 32],
                ..first.clone()
            };
            assert_eq!(
                log.append(conflict).await.unwrap(),
                Appended::Conflict(Position(1))
            );
            assert_eq!(log.tail().end(), Position(2));
            opened.reopen();
        }
        // Neither of them counted.
        let _ = opened
            .log()
            .append(new_event(3, Some(1), Some(3)))
            .await
            .unwrap();
        let last = opened.log().read(Position(2), ALL).await.unwrap();
        assert_eq!(decode(&last[0]).revision, 3);
    }
}

#[tokio::test]
async fn one_of_many_deliveries_at_once_is_new() {
    for opened in Opened::all() {
        let log = opened.log();
        let appends = (0..50).map(|_| log.append(new_event(1, Some(1), None)));
        let appended = futures_util::future::join_all(appends).await;
        let appended: Vec<Appended> = appended.into_iter().map(Result::unwrap).collect();
        let new = appended
            .iter()
            .filter(|a| **a == Appended::New(Position(1)))
            .count();
        let duplicate = appended
            .iter()
            .filter(|a| **a == Appended::Duplicate(Position(1)))
            .count();
        assert_eq!((new, duplicate), (1, 49));
    }
}

#[tokio::test]
async fn revisions_count_the_events_of_a_verification_and_late_ones_are_marked() {
    for mut opened in Opened::all() {
        let times = [Some(10), Some(5), None, Some(20), Some(19), Some(20)];
        for (number, occurred_at) in (1..).zip(times) {
            let _ = opened
                .log()
                .append(new_event(number, Some(1), occurred_at))
                .await
                .unwrap();
            let _ = opened
                .log()
                .append(new_event(100 + number, None, occurred_at))
                .await
                .unwrap();
            opened.reopen();
        }
        let events = opened.log().read(Position(0), ALL).await.unwrap();
        let places: Vec<(u64, bool)> = events
            .iter()
            .map(decode)
            .map(|event| (event.revision, event.late))
            .collect();
        let (own, other): (Vec<_>, Vec<_>) =
            places.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
        assert_eq!(
            own,
            [
                (1, false),
                (2, true),
                (3, false),
                (4, false),
                (5, true),
                (6, false)
            ]
        );
        assert_eq!(other, [(0, false); 6]);
    }
}

#[tokio::test]
async fn an_event_and_its_evidence_are_found() {
    for mut opened in Opened::all() {
        for number in 1..=3 {
            let _ = opened
                .log()
                .append(new_event(number, None, None))
                .await
                .unwrap();
        }
        opened.reopen();
        let log = opened.log();
        let found = log.find(Uuid::from_u128(2)).await.unwrap().unwrap();
        assert_eq!(found.position, Position(2));
        assert_eq!(
            log.delivery(Position(2)).await.unwrap().unwrap(),
            "delivery 2"
        );
        assert!(log.find(Uuid::from_u128(9)).await.unwrap().is_none());
        assert!(log.delivery(Position(9)).await.unwrap().is_none());
        assert!(log.delivery(Position(0)).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_is_erased_is_read_by_nobody_again_and_everything_else_stays() {
    for mut opened in Opened::all() {
        for number in 1..=9 {
            let event = new_event(number, Some((number % 3) as u8), Some(number as i64));
            let _ = opened.log().append(event).await.unwrap();
        }
        let before = opened.log().read(Position(0), ALL).await.unwrap();
        // All that is known of one of the three subjects, some of it twice, and what is not there.
        let erased = [1, 4, 7, 4, 99].map(Position);
        opened.log().erase(erased.to_vec()).await.unwrap();
        for round in 0..3 {
            let log = opened.log();
            // Whoever holds an event that was read before can read no more than others.
            for stored in before
                .iter()
                .chain(&log.read(Position(0), ALL).await.unwrap())
            {
                let number = u128::from(stored.position.0);
                let written = new_event(number, None, None);
                let personal_data = log.personal_data(stored).await.unwrap();
                let delivery = log.delivery(stored.position).await.unwrap();
                match erased.contains(&stored.position) {
                    true => {
                        assert_eq!(personal_data, event::erased());
                        assert_eq!(delivery, None);
                        assert!(whole(log, stored).await.personal_data.unwrap().erased);
                    }
                    false => {
                        assert_eq!(personal_data, written.encoded.personal_data);
                        assert_eq!(delivery, Some(written.delivery));
                    }
                }
            }
            let after = log.read(Position(0), ALL).await.unwrap();
            assert_eq!(after[..9], before);
            // A redelivery is one still, and what comes of the subject now is not erased.
            let again = log.append(new_event(4, Some(1), Some(4))).await.unwrap();
            assert_eq!(again, Appended::Duplicate(Position(4)));
            let next = 10 + round;
            let new = log.append(new_event(next, Some(1), None)).await.unwrap();
            assert_eq!(new, Appended::New(Position(next as u64)));
            let new = log.read(Position(next as u64 - 1), ALL).await.unwrap();
            assert_eq!(decode(&new[0]).revision, 4 + next as u64 - 10);
            let new = whole(log, &new[0]).await.personal_data.unwrap();
            assert_eq!(new.full_name, format!("name {next}"));
            log.erase(erased.to_vec()).await.unwrap();
            opened.reopen();
        }
    }
}

#[tokio::test]
async fn an_event_without_personal_data_has_none_to_be_erased() {
    for mut opened in Opened::all() {
        let event = NewEvent {
            encoded: EncodedEvent {
                personal_data: Bytes::new(),
                ..new_event(1, None, None).encoded
            },
            delivery: Bytes::new(),
            ..new_event(1, None, None)
        };
        let _ = opened.log().append(event).await.unwrap();
        opened.log().erase(vec![Position(1)]).await.unwrap();
        opened.reopen();
        let log = opened.log();
        let stored = log.read(Position(0), ALL).await.unwrap();
        assert_eq!(log.personal_data(&stored[0]).await.unwrap(), Bytes::new());
        assert_eq!(log.delivery(Position(1)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_time_is_found_though_events_were_not_received_in_order() {
    for mut opened in Opened::all() {
        for (number, received_at) in (1..).zip([10, 30, 20, 30, 50, 40]) {
            let event = NewEvent {
                received_at: at(received_at),
                ..new_event(number, None, None)
            };
            let _ = opened.log().append(event).await.unwrap();
        }
        opened.reopen();
        let log = opened.log();
        for (since, before) in [
            (0, 0),
            (10, 0),
            (11, 1),
            (20, 1),
            (30, 1),
            (31, 4),
            (40, 4),
            (50, 4),
            (51, 6),
        ] {
            let position = log.position_before(at(since)).await.unwrap();
            assert_eq!(position, Position(before), "since {since}");
        }
    }
}

#[tokio::test]
async fn an_empty_log_reads_as_one() {
    for opened in Opened::all() {
        let log = opened.log();
        assert_eq!((log.start(), log.tail().end()), (Position(0), Position(0)));
        assert!(log.read(Position(0), ALL).await.unwrap().is_empty());
        assert_eq!(log.position_before(at(0)).await.unwrap(), Position(0));
        assert!(
            log.quarantined(QuarantineKind::Genuine, 0, ALL)
                .await
                .unwrap()
                .is_empty()
        );
        assert!(
            log.quarantined(QuarantineKind::Genuine, u64::MAX, ALL)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn the_quarantine_keeps_each_delivery_once_and_in_order() {
    for mut opened in Opened::all() {
        let delivery = |number: u128| NewQuarantined {
            id: Uuid::from_u128(number),
            kind: QuarantineKind::Genuine,
            received_at: at(0),
            summary: Bytes::from(format!("summary {number}")),
            delivery: Bytes::from(format!("delivery {number}")),
        };
        for number in [3, 1, 3, 2, 1] {
            opened.log().quarantine(delivery(number)).await.unwrap();
            opened.reopen();
        }
        let log = opened.log();
        let listed = log
            .quarantined(QuarantineKind::Genuine, 0, ALL)
            .await
            .unwrap();
        let summaries: Vec<&[u8]> = listed
            .iter()
            .map(|quarantined| &quarantined.summary[..])
            .collect();
        assert_eq!(summaries, [b"summary 3", b"summary 1", b"summary 2"]);
        let rest = log
            .quarantined(QuarantineKind::Genuine, listed[0].sequence, ALL)
            .await
            .unwrap();
        assert_eq!(rest, listed[1..]);
        let found = log.find_quarantined(Uuid::from_u128(1)).await.unwrap();
        assert_eq!(found.as_ref(), Some(&listed[1]));
        assert!(
            log.find_quarantined(Uuid::from_u128(9))
                .await
                .unwrap()
                .is_none()
        );
        // It is no part of the stream.
        assert_eq!(log.tail().end(), Position(0));
    }
}

#[tokio::test]
async fn who_falls_out_of_the_tail_reads_the_log() {
    for opened in Opened::all() {
        let log = opened.log();
        let large = EncodedEvent {
            event: vec![0; 1 << 20].into(),
            personal_data: Bytes::new(),
        };
        for number in 1..=20 {
            let event = NewEvent {
                encoded: large.clone(),
                ..new_event(number, None, None)
            };
            let _ = log.append(event).await.unwrap();
        }
        // 20 MiB were written; the tail holds 16 MiB.
        assert!(log.tail().read(Position(0), ALL).is_none());
        let newest = log.tail().read(Position(15), ALL).unwrap();
        assert_eq!(newest.len(), 5);
        assert_eq!(log.read(Position(0), ALL).await.unwrap()[15..], newest);
    }
}

#[tokio::test]
async fn a_log_keeps_its_name_and_is_open_once() {
    let directory = TempDir::new().unwrap();
    let log = embedded_log(&directory);
    let name = log.cursor(Position(0)).log;
    let second = EmbeddedLog::open(&log_config(directory.path()), Uuid::from_u128(2));
    assert!(matches!(second, Err(OpenError::InUse)));
    drop(log);
    assert_eq!(embedded_log(&directory).cursor(Position(0)).log, name);
}

#[cfg(unix)]
#[test]
fn only_its_owner_may_look_into_a_log() {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let _log = EmbeddedLog::open(&log_config(&path), Uuid::from_u128(1)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}
