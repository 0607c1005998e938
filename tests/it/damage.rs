//! A disk that fails, runs full or forgets: what is damaged is named and never served, what cannot be written is never
//! acknowledged, and what can be read is read.

use std::{path::Path, sync::Arc, time::Duration};

use fastrand::Rng;
use tempfile::TempDir;
use tokio::time;
use uuid::Uuid;
use verdict::{
    config::{LogConfig, Retention},
    log::{
        AppendError, Appended, Commit, CommitError, Consumer, EventLog, Health, NewEvent,
        NewQuarantined, Position, QuarantineKind, ReadError, StoredEvent,
        embedded::{EmbeddedLog, OpenError},
    },
};

use crate::{
    log::{ALL, new_event},
    simulated_disk::{EIO, ENOSPC, EROFS, Fault, SimulatedDisk},
    support::{PATIENCE, log_config},
};

/// Files small enough that a few events make several of them.
fn config(directory: &TempDir) -> LogConfig {
    LogConfig {
        segment_bytes: 2000,
        ..log_config(directory.path())
    }
}

fn open(disk: &SimulatedDisk, directory: &TempDir) -> Result<EmbeddedLog, OpenError> {
    let id = Uuid::from_u128(7);
    EmbeddedLog::open_on(Arc::new(disk.clone()), &config(directory), id)
}

fn event(number: u128) -> NewEvent {
    new_event(number, Some((number % 3) as u8), Some(number as i64))
}

fn quarantined(number: u128) -> NewQuarantined {
    NewQuarantined {
        id: Uuid::from_u128(number),
        kind: QuarantineKind::Genuine,
        received_at: Default::default(),
        summary: format!("summary {number}").into(),
        delivery: format!("delivery {number}").into(),
    }
}

/// A log of 30 events and 9 quarantined deliveries that was closed.
async fn written(directory: &TempDir) -> (SimulatedDisk, Vec<StoredEvent>) {
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, directory).unwrap();
    for number in 1..=30 {
        let _ = log.append(event(number)).await.unwrap();
    }
    for number in 1..=9 {
        log.quarantine(quarantined(number)).await.unwrap();
    }
    let commit = Commit {
        consumer: Consumer {
            name: "risk".to_owned(),
            cursor: log.cursor(Position(3)),
            committed_at: Default::default(),
        },
        force: false,
    };
    log.commit(commit).await.unwrap();
    let events = log.read(Position(0), ALL).await.unwrap();
    drop(log);
    (disk, events)
}

fn is_of_keys(path: &Path) -> bool {
    path.ancestors().any(|path| path.ends_with("keys"))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Whether a text says which file is damaged, or at least of what kind it is and which number it should reach.
fn is_named(what: &str, path: &Path) -> bool {
    let directory = name(path.parent().unwrap());
    what.contains(&name(path)) || what.contains("was acknowledged") || what.starts_with(&directory)
}

/// Reads everything, one event at a time. What is served must be what was written; what is damaged must be named. Says
/// whether anything was.
async fn is_noticed(log: &EmbeddedLog, events: &[StoredEvent], file: &str) -> bool {
    let mut noticed = false;
    let mut named = |error: ReadError| {
        let ReadError::Damaged { place, .. } = &error else {
            panic!("{error}");
        };
        assert!(place.contains(file), "{place} does not name {file}");
        noticed = true;
    };
    for (before, written) in (0..).zip(events) {
        let one = verdict::log::ReadLimit {
            records: 1,
            bytes: 1,
        };
        match log.read(Position(before), one).await {
            Ok(served) => assert_eq!(served, std::slice::from_ref(written)),
            Err(error) => named(error),
        }
        let expected = event(u128::from(before) + 1);
        match log.delivery(written.position).await {
            Ok(delivery) => assert_eq!(delivery, Some(expected.delivery)),
            Err(error) => named(error),
        }
        match log.personal_data(written).await {
            Ok(served) => assert_eq!(served, expected.encoded.personal_data),
            Err(error) => named(error),
        }
    }
    for number in 1..=9 {
        let expected = quarantined(number);
        match log.find_quarantined(expected.id).await {
            Ok(found) => {
                let found = found.expect("it is in the quarantine");
                assert_eq!(
                    (found.summary, found.delivery),
                    (expected.summary, expected.delivery)
                );
            }
            Err(error) => named(error),
        }
    }
    noticed
}

#[tokio::test]
async fn a_flipped_bit_is_named_and_never_served() {
    let directory = TempDir::new().unwrap();
    let (disk, events) = written(&directory).await;
    let mut rng = Rng::with_seed(1);
    let paths = disk.paths();
    let segments: Vec<_> = paths
        .iter()
        .filter(|path| name(path).ends_with(".log"))
        .collect();
    assert!(segments.len() > 4);
    for _ in 0..200 {
        let path = rng.choice(&segments).unwrap();
        let Some(last) = disk.contents(path).len().checked_sub(1) else {
            continue;
        };
        let damaged = disk.kill();
        let (offset, bit) = (rng.u64(0..=last as u64), rng.u8(0..8));
        damaged.flip_bit(path, offset, bit);
        let noticed = match open(&damaged, &directory) {
            Ok(log) => is_noticed(&log, &events, &name(path)).await,
            Err(OpenError::Damaged(what)) => is_named(&what, path),
            Err(error) => panic!("{error}"),
        };
        // The record at the beginning of a finished file is only looked at when the file has no index.
        let is_mark = offset < 72;
        assert!(
            noticed || is_mark,
            "{}: byte {offset}, bit {bit}",
            path.display()
        );
    }
}

#[tokio::test]
async fn a_flipped_bit_of_a_key_is_named_or_harmless() {
    let directory = TempDir::new().unwrap();
    let (disk, events) = written(&directory).await;
    let mut rng = Rng::with_seed(1);
    let paths = disk.paths();
    let keys: Vec<_> = paths.iter().filter(|path| is_of_keys(path)).collect();
    let mut named = 0;
    for number in 0..400 {
        let path = keys[number % keys.len()];
        let damaged = disk.kill();
        let size = disk.contents(path).len() as u64;
        // Most slots of a new file are not used yet.
        let offset = rng.u64(0..size.min(512 + 64 * 4));
        damaged.flip_bit(path, offset, rng.u8(0..8));
        let noticed = match open(&damaged, &directory) {
            Ok(log) => is_noticed(&log, &events, &name(path)).await,
            Err(OpenError::Keys(what)) => {
                // Another id in the file of master keys is missed by the first of the others.
                assert!(
                    what.contains(&name(path)) || what.contains("master"),
                    "{what}"
                );
                true
            }
            Err(error) => panic!("{error}"),
        };
        named += u32::from(noticed);
    }
    assert!(named > 100, "{named}");
}

#[tokio::test]
async fn a_cut_file_is_named_and_never_served() {
    let directory = TempDir::new().unwrap();
    let (disk, _) = written(&directory).await;
    let mut rng = Rng::with_seed(1);
    let paths = disk.paths();
    let segments: Vec<_> = paths
        .iter()
        .filter(|path| name(path).ends_with(".log"))
        .collect();
    for path in segments {
        if path.parent().unwrap().ends_with("unverified") {
            continue;
        }
        let size = disk.contents(path).len() as u64;
        for _ in 0..5 {
            let damaged = disk.kill();
            damaged.truncate(path, rng.u64(0..size));
            let Err(OpenError::Damaged(what)) = open(&damaged, &directory) else {
                panic!("{} was cut, and nobody noticed", path.display());
            };
            assert!(is_named(&what, path), "{what}");
        }
    }
}

#[tokio::test]
async fn files_beside_the_events_are_made_again_or_named() {
    let directory = TempDir::new().unwrap();
    let (disk, events) = written(&directory).await;
    for path in disk.paths() {
        let file = name(&path);
        if file.ends_with(".log") || is_of_keys(&path) {
            continue;
        }
        let damaged = disk.kill();
        damaged.flip_bit(&path, disk.contents(&path).len() as u64 / 2, 3);
        match open(&damaged, &directory) {
            // What follows from the events is made again.
            Ok(log) => {
                assert!(file.ends_with(".index"), "{file}");
                assert!(!is_noticed(&log, &events, &file).await);
            }
            Err(OpenError::Damaged(what)) => {
                assert!(["meta", "consumers"].contains(&&*file), "{file}");
                assert!(what.contains(&file), "{what}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn an_index_that_is_lost_or_damaged_is_made_again() {
    let directory = TempDir::new().unwrap();
    let (disk, events) = written(&directory).await;
    let index = directory.path().join("index");
    for damage in [
        (|index: &Path| std::fs::remove_dir_all(index).unwrap()) as fn(&Path),
        |index| std::fs::write(index.join("version"), "nonsense").unwrap(),
        |index| std::fs::write(index.with_extension("broken"), "").unwrap(),
    ] {
        let old = index.join("old");
        std::fs::write(&old, "").unwrap();
        damage(&index);
        let log = open(&disk, &directory).unwrap();
        assert!(!old.exists());
        for (number, stored) in (1..).zip(&events) {
            let id = Uuid::from_u128(number);
            assert_eq!(log.find(id).await.unwrap().as_ref(), Some(stored));
            let again = log.append(event(number)).await.unwrap();
            assert_eq!(again, Appended::Duplicate(stored.position));
        }
        let history = log.verification([1; 32]).await.unwrap().unwrap();
        assert_eq!((history.revision, history.last), (10, Position(28)));
    }
    // And no other.
    std::fs::write(index.join("old"), "").unwrap();
    drop(open(&disk, &directory).unwrap());
    assert!(index.join("old").exists());
}

#[tokio::test]
async fn an_index_that_knows_more_than_the_log_betrays_a_loss() {
    let directory = TempDir::new().unwrap();
    let (disk, _) = written(&directory).await;
    let last = disk
        .paths()
        .into_iter()
        .rfind(|path| name(path).ends_with(".log") && path.parent().unwrap().ends_with("events"))
        .unwrap();
    let whole = disk.contents(&last);
    let good = disk.kill();
    // Nothing is cut off of what is known to have been acknowledged, not even behind the damage.
    for size in [0, 50, 72, whole.len() as u64 - 1] {
        let disk = good.kill();
        disk.truncate(&last, size);
        for _ in 0..2 {
            let Err(OpenError::Damaged(what)) = open(&disk, &directory) else {
                panic!("events are lost, and nobody noticed");
            };
            assert!(what.contains(&name(&last)), "{what}");
            assert_eq!(disk.contents(&last).len() as u64, size);
        }
    }
}

async fn healthy(log: &EmbeddedLog) {
    let mut health = log.health();
    let well = health.wait_for(|health| *health == Health::Well);
    time::timeout(PATIENCE, well).await.unwrap().unwrap();
}

fn unavailable(appended: Result<Appended, AppendError>) {
    assert!(
        matches!(appended, Err(AppendError::Unavailable(_))),
        "{appended:?}"
    );
}

#[tokio::test]
async fn a_full_or_read_only_disk_stops_writing_until_it_is_well_again() {
    for errno in [ENOSPC, EROFS, EIO] {
        let directory = TempDir::new().unwrap();
        let (disk, events) = written(&directory).await;
        let log = open(&disk, &directory).unwrap();
        disk.fail_writes(Some(Fault::always(errno).short()));
        for number in 31..36 {
            unavailable(log.append(event(number)).await);
        }
        assert!(matches!(*log.health().borrow(), Health::Unwritable(_)));
        // Reading goes on, and shows nothing that was not acknowledged.
        assert_eq!(log.read(Position(0), ALL).await.unwrap(), events);
        // What is durable already is a duplicate all the same.
        let known = log.append(event(1)).await.unwrap();
        assert_eq!(known, Appended::Duplicate(Position(1)));

        disk.fail_writes(None);
        healthy(&log).await;
        let appended = log.append(event(31)).await.unwrap();
        assert_eq!(appended, Appended::New(Position(31)));
        drop(log);
        let log = open(&disk.cut(&mut Rng::with_seed(1)), &directory).unwrap();
        assert_eq!(log.read(Position(0), ALL).await.unwrap().len(), 31);
    }
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, &directory).unwrap();
    let _ = log.append(event(1)).await.unwrap();
    disk.set_free_bytes(config(&directory).min_free_bytes - 1);
    let mut health = log.health();
    let full = health.wait_for(|health| matches!(health, Health::Unwritable(_)));
    time::timeout(PATIENCE, full).await.unwrap().unwrap();
    unavailable(log.append(event(2)).await);
    disk.set_free_bytes(config(&directory).min_free_bytes);
    healthy(&log).await;
    assert_eq!(
        log.append(event(2)).await.unwrap(),
        Appended::New(Position(2))
    );
}

#[tokio::test]
async fn so_is_one_without_room_for_keys() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, &directory).unwrap();
    let keys = config(&directory).keys_path();
    disk.set_free_bytes_of(&keys, (64 << 20) - 1);
    let mut health = log.health();
    let full = health.wait_for(
        |health| matches!(health, Health::Unwritable(why) if why.contains("disk of the keys")),
    );
    drop(time::timeout(PATIENCE, full).await.unwrap().unwrap());
    unavailable(log.append(event(1)).await);
    disk.set_free_bytes_of(&keys, 64 << 20);
    healthy(&log).await;
    let appended = log.append(event(1)).await.unwrap();
    assert_eq!(appended, Appended::New(Position(1)));
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged_until_a_new_start() {
    for seed in 0..20 {
        let directory = TempDir::new().unwrap();
        let (disk, events) = written(&directory).await;
        let log = open(&disk, &directory).unwrap();
        disk.fail_syncs(Some(Fault::once(EIO)));
        unavailable(log.append(event(31)).await);
        // The disk is well again, but nobody knows what it holds.
        time::sleep(Duration::from_millis(1)).await;
        unavailable(log.append(event(32)).await);
        assert!(matches!(*log.health().borrow(), Health::Failed(_)));
        let commit = Commit {
            consumer: Consumer {
                name: "risk".to_owned(),
                cursor: log.cursor(Position(9)),
                committed_at: Default::default(),
            },
            force: false,
        };
        assert!(matches!(
            log.commit(commit).await,
            Err(CommitError::Append(_))
        ));
        assert_eq!(log.read(Position(0), ALL).await.unwrap(), events);
        drop(log);

        // What the system shows after a failed sync may not be on the disk: the new start writes it once more.
        let log = open(&disk, &directory).unwrap();
        let appended = log.append(event(31)).await.unwrap();
        let expected = [
            Appended::New(Position(31)),
            Appended::Duplicate(Position(31)),
        ];
        assert!(expected.contains(&appended), "{appended:?}");
        drop(log);
        let disk = disk.cut(&mut Rng::with_seed(seed));
        let log = open(&disk, &directory).unwrap();
        assert_eq!(
            log.append(event(31)).await.unwrap(),
            Appended::Duplicate(Position(31))
        );
    }
}

#[tokio::test]
async fn one_damaged_event_takes_no_other_along() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    // One file for all, so that the damaged event lies among others.
    let config = log_config(directory.path());
    let open = |disk: &SimulatedDisk| {
        EmbeddedLog::open_on(Arc::new(disk.clone()), &config, Uuid::from_u128(7)).unwrap()
    };
    let log = open(&disk);
    for number in 1..=40 {
        let _ = log.append(event(number)).await.unwrap();
    }
    let events = log.read(Position(0), ALL).await.unwrap();
    // While the log is open, so that nobody looks at all of it again.
    let path = directory.path().join("events/00000000000000000001.log");
    let content = disk.contents(&path);
    let id = Uuid::from_u128(20).to_string();
    let found = content
        .windows(id.len())
        .position(|part| part == id.as_bytes());
    disk.flip_bit(&path, found.unwrap() as u64, 0);

    let before = log.read(Position(0), ALL).await.unwrap();
    assert_eq!(before, events[..19]);
    let damaged = log.read(Position(19), ALL).await.unwrap_err();
    let ReadError::Damaged { position, place } = damaged else {
        panic!("{damaged}");
    };
    assert_eq!(position, Position(20));
    assert!(place.contains("00000000000000000001.log: byte"), "{place}");
    for after in 20..40 {
        let behind = log.read(Position(after), ALL).await.unwrap();
        assert_eq!(behind, events[after as usize..]);
    }
    for number in (1..=40).filter(|number| *number != 20) {
        let delivery = log.delivery(Position(number)).await.unwrap();
        assert_eq!(delivery, Some(event(number.into()).delivery));
    }
}

#[tokio::test]
async fn a_new_file_that_cannot_be_begun_leaves_the_log_whole() {
    let mut refused = 0;
    for write in 0..24 {
        let directory = TempDir::new().unwrap();
        let disk = SimulatedDisk::new(1);
        let config = LogConfig {
            retention: Retention {
                events_max_age_seconds: 1,
                ..Default::default()
            },
            ..log_config(directory.path())
        };
        let id = Uuid::from_u128(7);
        let log = EmbeddedLog::open_on(Arc::new(disk.clone()), &config, id).unwrap();
        // Old at once, so that its file is finished and deleted after the write, whose place in the order is tried out.
        disk.fail_writes(Some(Fault::once(ENOSPC).after(write).short()));
        let first = log.append(event(1)).await;
        refused += u32::from(first.is_err());
        disk.fail_writes(None);
        healthy(&log).await;
        for number in 2..6 {
            let _ = log.append(event(number)).await.unwrap();
        }
        let end = log.tail().end();
        drop(log);
        let log = EmbeddedLog::open_on(Arc::new(disk.clone()), &config, id)
            .unwrap_or_else(|error| panic!("write {write} failed, and now: {error}"));
        assert_eq!(log.tail().end(), end);
    }
    // Three of them make the keys, before the event itself is written.
    assert_eq!(refused, 4);
}

/// A record as the log writes it, which claims that very many records are durable. Whoever may send a webhook without
/// proof can put it into the quarantine of such webhooks.
fn forged_record() -> Vec<u8> {
    let mut record = [0; 40];
    record[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    record[24..32].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
    let checksum = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    [&record[..], &[0; 64]].concat()
}

#[tokio::test]
async fn what_nobody_was_promised_cannot_keep_the_log_from_opening() {
    let directory = TempDir::new().unwrap();
    let (disk, events) = written(&directory).await;
    let log = open(&disk, &directory).unwrap();
    for number in 1..=3 {
        let delivery = NewQuarantined {
            kind: QuarantineKind::Unverified,
            delivery: forged_record().into(),
            ..quarantined(100 + number)
        };
        log.quarantine(delivery).await.unwrap();
    }
    let written = async {
        while log.stats().unverified.deliveries < 3 {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(PATIENCE, written).await.unwrap();
    drop(log);
    let path = directory.path().join("unverified/00000000000000000001.log");
    for offset in (0..disk.contents(&path).len() as u64).step_by(20) {
        let damaged = disk.kill();
        damaged.flip_bit(&path, offset, 0);
        let log = open(&damaged, &directory).unwrap();
        assert_eq!(log.read(Position(0), ALL).await.unwrap(), events);
    }
}
