//! Room in the newest file: zeros behind the last record, which the next ones are written over. Nobody takes it for anything
//! else.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use tempfile::TempDir;
use uuid::Uuid;
use verdict::{
    config::LogConfig,
    log::{
        Appended, EventLog, NewEvent, Position,
        disk::Disk,
        embedded::{EmbeddedLog, OpenError},
    },
};

use crate::{
    log::{ALL, new_event},
    simulated_disk::{ENOSPC, Fault, SimulatedDisk},
    support::log_config,
};

/// So that there is room for a quarter of this.
const SEGMENT_BYTES: u64 = 300_000;

fn open(disk: &SimulatedDisk, directory: &TempDir) -> Result<EmbeddedLog, OpenError> {
    let config = LogConfig {
        segment_bytes: SEGMENT_BYTES,
        ..log_config(directory.path())
    };
    EmbeddedLog::open_on(Arc::new(disk.clone()), &config, Uuid::from_u128(7))
}

fn first_file(directory: &TempDir) -> PathBuf {
    directory.path().join("events/00000000000000000001.log")
}

fn event(number: u128, delivery_bytes: usize) -> NewEvent {
    NewEvent {
        delivery: vec![7; delivery_bytes].into(),
        ..new_event(number, None, None)
    }
}

async fn append(log: &EmbeddedLog, number: u128, delivery_bytes: usize) {
    let appended = log.append(event(number, delivery_bytes)).await;
    let position = Position(number as u64);
    assert_eq!(appended.expect("the disk is well"), Appended::New(position));
}

#[tokio::test]
async fn small_batches_do_not_change_the_length_of_the_file() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let size = || disk.contents(first_file(&directory)).len() as u64;
    let log = open(&disk, &directory).unwrap();
    let mut sizes = BTreeSet::new();
    for number in 1..=100 {
        append(&log, number, 1000).await;
        sizes.insert(size());
    }
    // Of 100 writes, two made room. There is never much of it.
    assert_eq!(sizes.len(), 2, "{sizes:?}");
    let records = log.stats().size_bytes;
    assert!((records..=records + SEGMENT_BYTES / 4).contains(&size()));

    // Nor is there any behind a large batch that does not fit in.
    append(&log, 101, 100_000).await;
    assert_eq!(size(), log.stats().size_bytes);
    append(&log, 102, 1000).await;
    assert_eq!(size(), log.stats().size_bytes + SEGMENT_BYTES / 4);

    let events = log.read(Position(0), ALL).await.unwrap();
    let records = log.stats().size_bytes;
    drop(log);
    assert_eq!(size(), records);
    let log = open(&disk, &directory).unwrap();
    assert_eq!(log.read(Position(0), ALL).await.unwrap(), events);
}

#[tokio::test]
async fn a_finished_file_has_no_room() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, &directory).unwrap();
    let mut number = 0;
    let files = loop {
        number += 1;
        append(&log, number, 10_000).await;
        let events = directory.path().join("events");
        let of_events = |path: &PathBuf| path.starts_with(&events);
        let mut files: Vec<_> = disk.paths().into_iter().filter(of_events).collect();
        files.retain(|path| path.extension().is_some_and(|found| found == "log"));
        if files.len() == 2 {
            break files;
        }
    };
    let room = SEGMENT_BYTES / 4;
    let sizes = files.iter().map(|path| disk.contents(path).len() as u64);
    assert_eq!(sizes.sum::<u64>(), log.stats().size_bytes + room);
    let killed = disk.kill();
    drop(log);
    let log = open(&killed, &directory).unwrap();
    assert_eq!(log.tail().end(), Position(number as u64));
}

#[tokio::test]
async fn room_is_no_damage() {
    let directory = TempDir::new().unwrap();
    let mut disk = SimulatedDisk::new(1);
    for end in 1..=20 {
        let log = open(&disk, &directory).unwrap();
        append(&log, end, 50).await;
        let content = disk.contents(first_file(&directory));
        assert!(content.ends_with(&[0; 1000]));
        let events = log.read(Position(0), ALL).await.unwrap();
        disk = disk.kill();
        drop(log);
        let log = open(&disk, &directory).unwrap();
        assert_eq!(log.read(Position(0), ALL).await.unwrap(), events);
    }
}

/// A record that cannot be read is damaged if later ones can, be it zeros: as in a copy that read the room before they were
/// written over it, and what is behind them after.
#[tokio::test]
async fn room_hides_no_damage() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, &directory).unwrap();
    let mut ends = Vec::new();
    for number in 1..=20 {
        append(&log, number, 50).await;
        let content = disk.contents(first_file(&directory));
        ends.push(content.iter().rposition(|byte| *byte != 0).unwrap() as u64);
    }
    let killed = disk.kill();
    drop(log);
    for offset in (ends[0]..ends[18]).step_by(61) {
        // Which knows what was acknowledged.
        std::fs::remove_dir_all(directory.path().join("index")).unwrap();
        let damaged = killed.kill();
        damaged.flip_bit(first_file(&directory), offset, 0);
        let opened = open(&damaged, &directory);
        assert!(matches!(opened, Err(OpenError::Damaged(_))), "{offset}");
    }
    let path = first_file(&directory);
    for (first, last) in [(0, 1), (4, 9), (9, 18)] {
        std::fs::remove_dir_all(directory.path().join("index")).unwrap();
        let damaged = killed.kill();
        let zeros = vec![0; (ends[last] - ends[first]) as usize];
        damaged
            .open(&path)
            .unwrap()
            .write_at(&zeros, ends[first] + 1)
            .unwrap();
        let opened = open(&damaged, &directory);
        assert!(matches!(opened, Err(OpenError::Damaged(_))), "{first}");
    }
}

#[tokio::test]
async fn events_are_written_where_there_is_no_room() {
    let mut refused = 0;
    for write in 0..5 {
        let directory = TempDir::new().unwrap();
        let disk = SimulatedDisk::new(1);
        let log = open(&disk, &directory).unwrap();
        disk.fail_writes(Some(Fault::once(ENOSPC).after(write)));
        refused += u32::from(log.append(event(1, 50)).await.is_err());
        disk.fail_writes(None);
        if write == 4 {
            assert!(disk.contents(first_file(&directory)).len() < 1000);
            append(&log, 2, 50).await;
            drop(log);
            let log = open(&disk, &directory).unwrap();
            assert_eq!(log.tail().end(), Position(2));
        }
    }
    // Three of them make keys, the fourth is the event, and the fifth the room.
    assert_eq!(refused, 4);
}
