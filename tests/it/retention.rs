//! What need not be kept is deleted, and the disk gets its space back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time;
use uuid::Uuid;
use verdict::{
    config::{LogConfig, Retention, UnverifiedLimits},
    log::{
        Appended, EventLog, NewEvent, NewQuarantined, OutOfRange, Position, QuarantineKind,
        ReadError, embedded::EmbeddedLog,
    },
};

use crate::{
    backup::copy_log,
    log::{ALL, at, new_event},
    support::{PATIENCE, log_config, real_now},
};

fn open(config: &LogConfig) -> EmbeddedLog {
    EmbeddedLog::open(config, Uuid::from_u128(7)).unwrap()
}

/// An event of a kilobyte, received now.
fn event(number: u128) -> NewEvent {
    NewEvent {
        received_at: at(real_now().as_second()),
        delivery: Bytes::from(vec![number as u8; 1000]),
        ..new_event(number, Some((number % 3) as u8), None)
    }
}

/// What encryption adds to a delivery.
const SEALED: u64 = 28;

/// Waits until something has become true by itself.
async fn eventually(mut is_true: impl FnMut() -> bool) {
    let waited = async {
        while !is_true() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, waited)
        .await
        .expect("it becomes true in time");
}

/// The bytes that the files in a directory take, without the zeros at the end of the newest. One that is deleted meanwhile
/// takes none.
fn size_bytes(directory: &Path) -> u64 {
    sizes(directory, &["log", "heads", "index"])
}

/// The same of those that hold events.
fn log_files(directory: &Path) -> u64 {
    sizes(directory, &["log", "heads"])
}

fn sizes(directory: &Path, extensions: &[&str]) -> u64 {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        extensions
            .iter()
            .any(|wanted| path.extension().unwrap() == *wanted)
    });
    let newest = paths
        .iter()
        .filter(|path| path.extension().unwrap() == "log")
        .max();
    let size = |path: &PathBuf| match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        content => {
            let content = content.unwrap();
            match Some(path) == newest {
                true => content
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .map_or(0, |last| last + 1),
                false => content.len(),
            }
        }
    };
    paths.iter().map(size).sum::<usize>() as u64
}

#[tokio::test]
async fn the_oldest_events_go_when_there_are_too_many() {
    const MAX_BYTES: u64 = 80_000;
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            events_max_bytes: MAX_BYTES,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    let first = log.cursor(Position(0));
    for number in 1..=500 {
        let _ = log.append(event(number)).await.unwrap();
    }
    let events = directory.path().join("events");
    eventually(|| size_bytes(&events) <= MAX_BYTES).await;
    let start = log.start();
    assert!(start.0 > 400 && start.0 < 490, "{start:?}");
    assert_eq!(log.tail().end(), Position(500));
    // A record may end in a zero or two.
    assert!(log.stats().size_bytes - log_files(&events) < 8);

    // What is gone is out of range, and never skipped silently.
    assert_eq!(log.resolve(&first), Err(OutOfRange::NotRetained));
    let behind = log.read(Position(start.0 - 1), ALL).await;
    assert!(matches!(behind, Err(ReadError::NotRetained)), "{behind:?}");
    assert_eq!(log.resolve(&log.cursor(start)), Ok(start));
    assert_eq!(
        log.read(start, ALL).await.unwrap().len() as u64,
        500 - start.0
    );
    assert_eq!(log.position_before(at(0)).await.unwrap(), start);
    assert_eq!(log.find(Uuid::from_u128(1)).await.unwrap(), None);
    assert_eq!(log.delivery(Position(1)).await.unwrap(), None);

    // The ids go with their events, and so does a history that has reached its end.
    let newest = log.append(event(500)).await.unwrap();
    assert_eq!(newest, Appended::Duplicate(Position(500)));
    let again = log.append(event(1)).await.unwrap();
    assert_eq!(again, Appended::New(Position(501)));
    let state = log.verification([1; 32]).await.unwrap().unwrap();
    let history = log.history(state.last, 1000).await.unwrap();
    assert!(history.next.is_none() && history.events.len() < 40);
    assert!(state.revision > 160);

    // A new start finds the same.
    let start = log.start();
    drop(log);
    let log = open(&config);
    assert_eq!((log.start(), log.tail().end()), (start, Position(501)));
}

#[tokio::test]
async fn a_file_that_was_deleted_and_is_there_again_is_deleted_again() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            events_max_bytes: 80_000,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    let _ = log.append(event(1)).await.unwrap();
    let first = directory.path().join("events/00000000000000000001.log");
    for number in 2..=20 {
        let _ = log.append(event(number)).await.unwrap();
    }
    let kept = fs::read(&first).unwrap();
    for number in 21..=500 {
        let _ = log.append(event(number)).await.unwrap();
    }
    eventually(|| !first.exists() && log.start() > Position(300)).await;
    drop(log);
    // As a power cut brings it back when the sync of its directory had failed.
    fs::write(&first, kept).unwrap();
    let log = open(&config);
    assert!(!first.exists() && log.start() > Position(300));
    assert_eq!(log.tail().end(), Position(500));
}

#[tokio::test]
async fn events_go_when_they_are_too_old_even_if_nothing_comes() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            events_max_age_seconds: 3600,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    let old = |number| NewEvent {
        received_at: at(1000),
        ..event(number)
    };
    for number in 1..=10 {
        let _ = log.append(old(number)).await.unwrap();
    }
    eventually(|| log.start() == log.tail().end()).await;
    assert_eq!(log.tail().end(), Position(10));
    assert_eq!(log.verification([1; 32]).await.unwrap(), None);

    let young = log.append(event(11)).await.unwrap();
    assert_eq!(young, Appended::New(Position(11)));
    let events = directory.path().join("events");
    eventually(|| log_files(&events) < 2500).await;
    assert_eq!(log.read(Position(10), ALL).await.unwrap().len(), 1);
}

#[tokio::test]
async fn raw_deliveries_may_go_before_their_events() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            deliveries_max_bytes: 40_000,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    for number in 1..=200 {
        let _ = log.append(event(number)).await.unwrap();
    }
    let events = directory.path().join("events");
    // Of 200 kB of deliveries there are 40 kB left, and all heads.
    eventually(|| log_files(&events) < 110_000).await;
    assert_eq!(log.start(), Position(0));
    drop(log);
    for _ in 0..2 {
        let log = open(&config);
        assert_eq!(log.read(Position(0), ALL).await.unwrap().len(), 200);
        assert_eq!(log.delivery(Position(1)).await.unwrap(), None);
        let newest = log.delivery(Position(200)).await.unwrap();
        assert_eq!(newest, Some(event(200).delivery));
        let again = log.append(event(1)).await.unwrap();
        assert_eq!(again, Appended::Duplicate(Position(1)));
    }
}

fn quarantined(number: u128, kind: QuarantineKind, received_at: i64) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind,
        received_at: at(received_at),
        summary: Bytes::from_static(b"summary"),
        delivery: Bytes::from(vec![0; 1000]),
    }
}

#[tokio::test]
async fn the_quarantine_is_bounded_by_age_and_size() {
    let now = real_now().as_second();
    for (retention, received_at) in [
        (
            Retention {
                quarantine_max_age_seconds: 3600,
                ..Default::default()
            },
            1000,
        ),
        (
            Retention {
                quarantine_max_bytes: 80_000,
                ..Default::default()
            },
            now,
        ),
    ] {
        let directory = TempDir::new().unwrap();
        let config = LogConfig {
            retention,
            ..log_config(directory.path())
        };
        let log = open(&config);
        let kind = QuarantineKind::Genuine;
        for number in 1..=300 {
            let delivery = quarantined(number, kind, received_at);
            log.quarantine(delivery).await.unwrap();
        }
        let files = directory.path().join("quarantine");
        // A file goes a moment before its deliveries are no longer counted.
        eventually(|| {
            let size_bytes = size_bytes(&files);
            size_bytes <= 80_000 && log.stats().genuine.size_bytes <= size_bytes
        })
        .await;
        let stats = log.stats().genuine;
        assert_eq!(stats.deliveries + stats.dropped, 300);
        assert!(stats.dropped > 200 && stats.size_bytes == stats.deliveries * (1007 + SEALED));
        let first = log.find_quarantined(Uuid::from_u128(1)).await.unwrap();
        assert!(first.is_none());
        let listed = log.quarantined(kind, 0, ALL).await.unwrap();
        assert_eq!(listed.len() as u64, stats.deliveries);
        // What is gone can come again.
        let delivery = quarantined(1, kind, now);
        log.quarantine(delivery).await.unwrap();
        assert_eq!(log.stats().genuine.deliveries, stats.deliveries + 1);
    }
}

#[tokio::test]
async fn a_file_of_the_quarantine_that_was_deleted_and_is_there_again_is_deleted_again() {
    let directory = TempDir::new().unwrap();
    let config = LogConfig {
        retention: Retention {
            quarantine_max_bytes: 80_000,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let log = open(&config);
    let kind = QuarantineKind::Genuine;
    let now = real_now().as_second();
    log.quarantine(quarantined(1, kind, now)).await.unwrap();
    let first = directory.path().join("quarantine/00000000000000000001.log");
    for number in 2..=20 {
        log.quarantine(quarantined(number, kind, now))
            .await
            .unwrap();
    }
    let kept = fs::read(&first).unwrap();
    for number in 21..=300 {
        log.quarantine(quarantined(number, kind, now))
            .await
            .unwrap();
    }
    eventually(|| !first.exists() && log.stats().genuine.dropped > 200).await;
    drop(log);
    // As a power cut brings it back when the sync of its directory had failed.
    fs::write(&first, kept).unwrap();
    let log = open(&config);
    assert!(!first.exists());
    let deliveries = log.stats().genuine.deliveries;
    assert!((1..100).contains(&deliveries), "{deliveries}");
    let newest = log.find_quarantined(Uuid::from_u128(300)).await.unwrap();
    assert!(newest.is_some());
}

#[tokio::test]
async fn a_quarantine_that_begins_anew_keeps_what_comes() {
    let (directory, crashed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let config = |directory: &TempDir| LogConfig {
        retention: Retention {
            quarantine_max_bytes: 80_000,
            ..Default::default()
        },
        ..log_config(directory.path())
    };
    let now = real_now().as_second();
    let fill = async |log: &EmbeddedLog, numbers: std::ops::Range<u128>| {
        for number in numbers {
            let delivery = quarantined(number, QuarantineKind::Genuine, now);
            log.quarantine(delivery).await.unwrap();
        }
    };
    let log = open(&config(&directory));
    fill(&log, 1..301).await;
    eventually(|| log.stats().genuine.dropped > 200).await;
    // As a crash leaves it, without a note of what there was; and then somebody puts the files aside.
    copy_log(directory.path(), crashed.path());
    let quarantine = crashed.path().join("quarantine");
    fs::remove_dir_all(&quarantine).unwrap();
    let config = config(&crashed);
    let log = open(&config);
    // More than one file of them.
    fill(&log, 1001..1041).await;
    assert!(fs::read_dir(&quarantine).unwrap().count() > 2);
    drop(log);
    for _ in 0..2 {
        assert_eq!(open(&config).stats().genuine.deliveries, 40);
    }
}

#[tokio::test]
async fn what_is_released_takes_no_space() {
    let directory = TempDir::new().unwrap();
    let config = log_config(directory.path());
    let log = open(&config);
    for number in 0..20 {
        let delivery = NewQuarantined {
            delivery: Bytes::from(vec![0; 1 << 20]),
            ..quarantined(number, QuarantineKind::Genuine, 0)
        };
        log.quarantine(delivery).await.unwrap();
    }
    let files = directory.path().join("quarantine");
    assert!(size_bytes(&files) > 20 << 20);
    for number in 0..20 {
        assert!(log.release(Uuid::from_u128(number)).await.unwrap());
        assert!(!log.release(Uuid::from_u128(number)).await.unwrap());
    }
    assert_eq!(log.stats().genuine, Default::default());
    // A file of 8 MiB is the one that is being written.
    eventually(|| size_bytes(&files) < 9 << 20).await;
    drop(log);
    assert_eq!(open(&config).stats().genuine.deliveries, 0);
}

#[tokio::test]
async fn unverified_deliveries_make_room_for_new_ones() {
    let kind = QuarantineKind::Unverified;
    for limits in [
        UnverifiedLimits {
            max_deliveries: 10,
            max_bytes: u64::MAX,
        },
        UnverifiedLimits {
            max_deliveries: u64::MAX,
            max_bytes: 16_000,
        },
    ] {
        let directory = TempDir::new().unwrap();
        let config = LogConfig {
            unverified: limits,
            ..log_config(directory.path())
        };
        let log = open(&config);
        for number in 1..=100 {
            log.quarantine(quarantined(number, kind, 0)).await.unwrap();
        }
        let files = directory.path().join("unverified");
        // Nobody waits for them to be written.
        eventually(|| {
            let stats = log.stats().unverified;
            stats.dropped > 80 && stats.deliveries + stats.dropped == 100
        })
        .await;
        assert!(size_bytes(&files) < 9 << 20);
        let listed = log.quarantined(kind, 0, ALL).await.unwrap();
        let newest = log.find_quarantined(Uuid::from_u128(100)).await.unwrap();
        assert_eq!(listed.last(), newest.as_ref());
        assert!(newest.is_some());
        // The quarantine of genuine deliveries is another one.
        let genuine = log
            .quarantined(QuarantineKind::Genuine, 0, ALL)
            .await
            .unwrap();
        assert!(genuine.is_empty());
        drop(log);
        let log = open(&config);
        eventually(|| log.stats().unverified.deliveries == listed.len() as u64).await;
    }
}
