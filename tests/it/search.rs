//! A search finds what a look at every event would find, whatever it passes over.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use fastrand::Rng;
use futures_util::future::join_all;
use prost::Message;
use tempfile::TempDir;
use tokio::time;
use uuid::Uuid;
use verdict::{
    caller::Reach,
    config::{LogConfig, Retention},
    event::{self, EncodedEvent},
    filter::Filter,
    log::{
        Appended, EventLog, NewEvent, Origin, Position, ReadError, ReadLimit, StoredEvent,
        embedded::EmbeddedLog,
    },
    proto::{
        CredentialShare, Environment, EventFilter, EventKind, Finality, Outcome, Source, Subject,
        SubjectChange, Verification, VerificationEvent, verification_event::Detail,
    },
};

use crate::{
    backup::{copy, copy_log},
    encryption::files,
    log::{ALL, new_event},
    simulated_disk::{EIO, Fault, SimulatedDisk},
    support::{PATIENCE, log_config},
};

/// How many events are summarized together.
const BLOCK: u64 = 64;

/// Small segments make small portions of the index: of 64 events.
fn config(directory: &TempDir, events_max_bytes: u64) -> LogConfig {
    LogConfig {
        segment_bytes: 8000,
        retention: Retention {
            events_max_bytes,
            ..Default::default()
        },
        ..log_config(directory.path())
    }
}

fn open(disk: &SimulatedDisk, config: &LogConfig) -> EmbeddedLog {
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), config, Uuid::from_u128(7));
    log.expect("a log")
}

/// One of a few values, of which one is empty, or of very many.
fn value(rng: &mut Rng, name: &str) -> String {
    match rng.u32(..8) {
        0 => String::new(),
        1..5 => format!("{name}-{}", rng.u32(..3)),
        _ => format!("{name}-{}", rng.u32(..1000)),
    }
}

fn values(rng: &mut Rng, name: &str) -> Vec<String> {
    let count = [1, 1, 2, 40][rng.usize(..4)];
    let values: BTreeSet<_> = (0..count).map(|_| value(rng, name)).collect();
    values.into_iter().collect()
}

/// Some are rare.
fn outcome(rng: &mut Rng) -> i32 {
    let outcome = match rng.u32(..100) {
        0 => Outcome::Waived,
        1..10 => Outcome::Expired,
        10..50 => Outcome::Rejected,
        _ => Outcome::Approved,
    };
    outcome.into()
}

fn verification(rng: &mut Rng) -> Verification {
    Verification {
        verification_id: value(rng, "verification"),
        outcome: outcome(rng),
        finality: rng.i32(0..=2),
        ..Default::default()
    }
}

/// An event, encoded. One in thirty cannot be read, one in ten says things twice.
fn encoded(rng: &mut Rng) -> EncodedEvent {
    let one = VerificationEvent {
        source: Some(Source {
            provider: value(rng, "provider"),
            account: value(rng, "account"),
            environment: rng.i32(0..=2),
            ..Default::default()
        }),
        subject: rng.bool().then(|| Subject {
            provider_subject_id: value(rng, "subject"),
            external_id: value(rng, "external"),
            ..Default::default()
        }),
        detail: match rng.u32(..10) {
            0 => None,
            1 => Some(Detail::SubjectChange(SubjectChange::default())),
            2 => Some(Detail::CredentialShare(CredentialShare::default())),
            _ => Some(Detail::Verification(verification(rng))),
        },
        ..Default::default()
    };
    let mut encoded = event::encode(one);
    match rng.u32(..30) {
        0 => {
            let cut = encoded.event.len().saturating_sub(1);
            encoded.event = [&encoded.event[..cut], b"\x12\x05"].concat().into();
        }
        1..4 => {
            let again = VerificationEvent {
                detail: Some(Detail::Verification(verification(rng))),
                ..Default::default()
            };
            let again = again.encode_to_vec();
            encoded.event = [&encoded.event[..], &again].concat().into();
        }
        _ => {}
    }
    encoded
}

fn new(rng: &mut Rng, number: u128) -> NewEvent {
    let verification = rng.bool().then(|| rng.u8(..50));
    let event = new_event(number, verification, None);
    NewEvent {
        encoded: encoded(rng),
        origin: match rng.u32(..10) {
            0 if verification.is_some() => Origin::Correction(Uuid::from_u128(number / 2)),
            1 => Origin::Redriven,
            _ => Origin::Received,
        },
        ..event
    }
}

fn filter(rng: &mut Rng) -> Arc<Filter> {
    let mut filter = EventFilter::default();
    for _ in 0..rng.u32(1..4) {
        match rng.u32(..9) {
            0 => filter.providers = values(rng, "provider"),
            1 => filter.accounts = values(rng, "account"),
            2 => filter.environments = vec![rng.i32(1..=2)],
            3 => filter.kinds = vec![rng.i32(1..=EventKind::CredentialShare.into())],
            4 => filter.outcomes = vec![outcome(rng), outcome(rng)],
            5 => filter.subject_ids = values(rng, "subject"),
            6 => filter.external_ids = values(rng, "external"),
            7 => filter.verification_ids = values(rng, "verification"),
            _ => filter.final_only = true,
        }
    }
    let filter = Filter::try_from(filter).expect("known values");
    Arc::new(match rng.u32(..4) {
        0 => filter.within(&Reach::Nothing),
        _ => filter,
    })
}

/// Searches from a place to the end of the log, in steps of any size.
async fn search(
    log: &EmbeddedLog,
    filter: &Arc<Filter>,
    mut after: Position,
    rng: &mut Rng,
) -> Result<Vec<StoredEvent>, ReadError> {
    let mut events = Vec::new();
    while after < log.tail().end() {
        let limit = ReadLimit {
            records: [0, 1, 10, 1000][rng.usize(..4)],
            bytes: [1, 5000, usize::MAX][rng.usize(..3)],
        };
        let found = log.search(after, &filter.wanted(), limit).await?;
        assert!(found.to > after && found.to <= log.tail().end());
        let mut between = found.events.iter().map(|event| event.position);
        assert!(between.all(|position| position > after && position <= found.to));
        events.extend(found.events);
        after = found.to;
    }
    Ok(events)
}

/// Searches for all kinds of events, and looks at every event for comparison.
async fn compare(log: &EmbeddedLog, rng: &mut Rng) -> Result<usize, ReadError> {
    let start = log.start();
    let all = log.read(start, ALL).await?;
    let mut compared = 0;
    for _ in 0..30 {
        let filter = filter(rng);
        let after = match rng.bool() {
            true => start,
            false => Position(rng.u64(start.0..=log.tail().end().0)),
        };
        let behind = all.iter().filter(|event| event.position > after);
        let wanted = behind.filter(|event| filter.matches(&event.event)).cloned();
        let wanted: Vec<StoredEvent> = wanted.collect();
        let found = search(log, &filter, after, rng).await?;
        assert!(found == wanted, "after {after:?}: {filter:?}");
        compared += wanted.len();
    }
    Ok(compared)
}

async fn append(log: &EmbeddedLog, rng: &mut Rng, numbers: std::ops::Range<u128>) {
    let events: Vec<_> = numbers.map(|number| new(rng, number)).collect();
    join_all(events.into_iter().map(|event| log.append(event))).await;
}

/// Appends, erases, kills and closes, and searches in between.
async fn live(seed: u64, events_max_bytes: u64) -> Position {
    let directory = TempDir::new().expect("a directory");
    let config = config(&directory, events_max_bytes);
    let (mut rng, mut disk) = (Rng::with_seed(seed), SimulatedDisk::new(seed));
    let (mut next, mut compared) = (1, 0);
    for _ in 0..10 {
        let log = open(&disk, &config);
        for _ in 0..rng.u32(1..4) {
            let count = u128::from(rng.u32(..150));
            append(&log, &mut rng, next..next + count).await;
            next += count;
            let end = log.tail().end().0;
            let erased = (0..5).map(|_| Position(rng.u64(0..=end)));
            log.erase(erased.collect()).await.expect("all is encrypted");
            // Retention may come in between.
            compared += loop {
                match compare(&log, &mut rng).await {
                    Err(ReadError::NotRetained) => {}
                    compared => break compared.expect("events"),
                }
            };
        }
        if rng.bool() {
            // From a certain write on it is killed.
            disk.power_off_after(disk.crash_points() + rng.u64(0..5));
            append(&log, &mut rng, next..next + 100).await;
            next += 100;
            drop(log);
            disk = disk.kill();
        }
    }
    assert!(compared > 1000, "{compared}");
    open(&disk, &config).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_passed_over_everything_that_is_wanted_is_found() {
    assert_eq!(live(1, 0).await, Position(0));
    assert!(live(2, 150_000).await > Position(BLOCK));
}

/// A number of blocks of events, each event with ids of its own. Closed and opened again, so that all are in the tables.
async fn blocks(disk: &SimulatedDisk, config: &LogConfig, count: u64) -> EmbeddedLog {
    let log = open(disk, config);
    for number in 1..=u128::from(count * BLOCK) {
        let encoded = event::encode(VerificationEvent {
            source: Some(Source {
                provider: "provider".to_owned(),
                account: "account".to_owned(),
                environment: Environment::Live.into(),
                ..Default::default()
            }),
            subject: Some(Subject {
                provider_subject_id: format!("subject-{number}"),
                external_id: format!("external-{number}"),
                ..Default::default()
            }),
            detail: Some(Detail::Verification(Verification {
                verification_id: format!("verification-{number}"),
                outcome: Outcome::Approved.into(),
                finality: Finality::Final.into(),
                ..Default::default()
            })),
            ..Default::default()
        });
        let event = NewEvent {
            encoded,
            ..new_event(number, None, None)
        };
        assert!(matches!(log.append(event).await, Ok(Appended::New(_))));
    }
    drop(log);
    open(disk, config)
}

/// Filters each of which asks for another field, with a value that no event has.
fn for_nothing() -> Vec<EventFilter> {
    let none = || vec!["none".to_owned()];
    let empty = EventFilter::default;
    vec![
        EventFilter {
            providers: none(),
            ..empty()
        },
        EventFilter {
            accounts: none(),
            ..empty()
        },
        EventFilter {
            environments: vec![Environment::Sandbox.into()],
            ..empty()
        },
        EventFilter {
            kinds: vec![EventKind::SubjectChange.into()],
            ..empty()
        },
        EventFilter {
            outcomes: vec![Outcome::Rejected.into()],
            ..empty()
        },
        EventFilter {
            subject_ids: none(),
            ..empty()
        },
        EventFilter {
            external_ids: none(),
            ..empty()
        },
        EventFilter {
            verification_ids: none(),
            ..empty()
        },
        EventFilter {
            verification_ids: vec!["verification-1".to_owned()],
            providers: none(),
            ..empty()
        },
    ]
}

#[tokio::test]
async fn blocks_without_anything_that_is_wanted_are_not_read() {
    const BLOCKS: u64 = 20;
    let directory = TempDir::new().expect("a directory");
    let disk = SimulatedDisk::new(1);
    let log = blocks(&disk, &config(&directory, 0), BLOCKS).await;
    let end = Position(BLOCKS * BLOCK);
    assert_eq!(log.tail().end(), end);
    // Whoever reads now is told.
    disk.fail_reads(Some(Fault::always(EIO)));
    for wanted in for_nothing() {
        let filter = Arc::new(Filter::try_from(wanted.clone()).expect("a filter"));
        for after in [0, 1, 100, end.0 - 1] {
            let found = log.search(Position(after), &filter.wanted(), ALL).await;
            let found = found.unwrap_or_else(|error| panic!("{wanted:?}: {error}"));
            assert_eq!((found.events.len(), found.to), (0, end));
        }
    }
    // Up to the block with the event that is wanted.
    let wanted = EventFilter {
        subject_ids: vec!["subject-1000".to_owned()],
        ..Default::default()
    };
    let filter = Arc::new(Filter::try_from(wanted).expect("a filter"));
    let found = log.search(Position(10), &filter.wanted(), ALL).await;
    assert_eq!(found.expect("nothing yet").to, Position(15 * BLOCK));
    let failed = log
        .search(Position(15 * BLOCK), &filter.wanted(), ALL)
        .await;
    assert!(matches!(failed, Err(ReadError::Unavailable(_))));
    disk.fail_reads(None);
    let found = log.search(Position(0), &filter.wanted(), ALL).await;
    let found = found.expect("events");
    assert_eq!((found.events.len(), found.to), (1, end));
    assert_eq!(found.events[0].position, Position(1000));
}

#[tokio::test]
async fn what_retention_has_deleted_is_not_passed_over_in_silence() {
    let directory = TempDir::new().expect("a directory");
    let disk = SimulatedDisk::new(1);
    // Deleted are a few segments at a time, so all of it is summarized before.
    drop(blocks(&disk, &config(&directory, 0), 20).await);
    let log = open(&disk, &config(&directory, 100_000));
    let deleted = async {
        while log.start() < Position(BLOCK) {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let deleted = time::timeout(PATIENCE, deleted).await;
    deleted.expect("it is deleted by itself");
    for wanted in for_nothing() {
        let filter = Arc::new(Filter::try_from(wanted).expect("a filter"));
        for after in [0, log.start().0 - 1] {
            let found = log.search(Position(after), &filter.wanted(), ALL).await;
            assert!(matches!(found, Err(ReadError::NotRetained)), "{found:?}");
        }
    }
}

/// An event about a subject of its own.
fn about(number: u128) -> NewEvent {
    let subject = Subject {
        external_id: format!("external-{number}"),
        ..Default::default()
    };
    NewEvent {
        encoded: event::encode(VerificationEvent {
            subject: Some(subject),
            ..Default::default()
        }),
        ..new_event(number, None, None)
    }
}

/// A copy of a log is opened and goes its own way; then it is given the log's newer files, and keeps its own index.
#[tokio::test]
async fn the_index_of_another_history_hides_nothing() {
    let (ours, copied) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let grow = async |directory: &TempDir, opening, numbers: std::ops::Range<u128>| {
        let config = config(directory, 0);
        let log = EmbeddedLog::open(&config, Uuid::from_u128(opening)).unwrap();
        join_all(numbers.map(|number| log.append(about(number)))).await;
    };
    grow(&ours, 1, 1..101).await;
    copy_log(ours.path(), copied.path());
    grow(&copied, 2, 1001..1401).await;
    grow(&ours, 3, 2001..2601).await;

    let index = TempDir::new().unwrap();
    copy(&copied.path().join("index"), index.path());
    fs::remove_dir_all(copied.path()).unwrap();
    copy_log(ours.path(), copied.path());
    copy(index.path(), &copied.path().join("index"));
    let log = EmbeddedLog::open(&config(&copied, 0), Uuid::from_u128(4)).unwrap();
    assert_eq!(log.tail().end(), Position(700));
    let mut rng = Rng::with_seed(1);
    for number in [1, 100, 2001, 2100, 2200, 2300, 2400, 2500, 2600] {
        let filter = EventFilter {
            external_ids: vec![format!("external-{number}")],
            ..Default::default()
        };
        let filter = Arc::new(Filter::try_from(filter).unwrap());
        let found = search(&log, &filter, Position(0), &mut rng).await.unwrap();
        assert_eq!(found.len(), 1, "{number}");
    }
    // Nor does anything pass for known that the copy knew.
    let appended = log.append(about(1001)).await.unwrap();
    assert!(matches!(appended, Appended::New(_)));
}

#[tokio::test]
async fn a_flipped_bit_of_a_table_hides_nothing() {
    const BLOCKS: u64 = 10;
    let (directory, whole) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let config = config(&directory, 0);
    let disk = SimulatedDisk::new(1);
    drop(blocks(&disk, &config, BLOCKS).await);
    let index = directory.path().join("index");
    let broken = index.with_extension("broken");
    copy(&index, whole.path());
    let mut rng = Rng::with_seed(1);
    let mut made_anew = 0;
    for _ in 0..100 {
        fs::remove_dir_all(&index).unwrap();
        let _ = fs::remove_file(&broken);
        copy(whole.path(), &index);
        let mut tables = files(&index);
        tables.retain(|file| file.parent().unwrap().ends_with("tables"));
        tables.sort();
        let table = &tables[rng.usize(..tables.len())];
        let mut bytes = fs::read(table).unwrap();
        // Where the entries lie. At damage behind them fjall may ask for so much memory that the process is aborted.
        let at = rng.usize(..bytes.len() / 2);
        bytes[at] ^= 1 << rng.u32(..8);
        fs::write(table, bytes).unwrap();
        let log = open(&disk, &config);
        for _ in 0..10 {
            let number = rng.u64(1..=BLOCKS * BLOCK);
            let wanted = EventFilter {
                subject_ids: vec![format!("subject-{number}")],
                ..Default::default()
            };
            let filter = Arc::new(Filter::try_from(wanted).unwrap());
            let found = search(&log, &filter, Position(0), &mut rng).await.unwrap();
            let found: Vec<_> = found.iter().map(|event| event.position).collect();
            assert_eq!(found, [Position(number)], "{}: byte {at}", table.display());
        }
        drop(log);
        made_anew += usize::from(broken.exists());
    }
    assert!(made_anew > 10, "{made_anew}");
}
