//! The newest file is preallocated: behind its last record are zeros, which the next ones are written over. Nobody takes them
//! for anything else.

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

/// A quarter of it is preallocated at once.
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
    // Two of 100 writes preallocated, and never much.
    assert_eq!(sizes.len(), 2, "{sizes:?}");
    let records = log.stats().size_bytes;
    assert!((records..=records + SEGMENT_BYTES / 4).contains(&size()));

    // A large batch that does not fit in does not.
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
async fn a_finished_file_ends_with_its_records() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let log = open(&disk, &directory).unwrap();
    let size = || disk.contents(first_file(&directory)).len() as u64;
    let (mut number, mut before) = (0, 0);
    let files = loop {
        number += 1;
        before = before.max(size());
        append(&log, number, 10_000).await;
        let events = directory.path().join("events");
        let of_events = |path: &PathBuf| path.starts_with(&events);
        let mut files: Vec<_> = disk.paths().into_iter().filter(of_events).collect();
        files.retain(|path| path.extension().is_some_and(|found| found == "log"));
        if files.len() == 2 {
            break files;
        }
    };
    assert!(size() < before, "nothing was cut off");
    let sizes = files.iter().map(|path| disk.contents(path).len() as u64);
    let preallocated = SEGMENT_BYTES / 4;
    assert_eq!(sizes.sum::<u64>(), log.stats().size_bytes + preallocated);
    let killed = disk.kill();
    drop(log);
    let log = open(&killed, &directory).unwrap();
    assert_eq!(log.tail().end(), Position(number as u64));
}

#[tokio::test]
async fn zeros_at_the_end_are_no_damage() {
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

/// A record that cannot be read is damaged if later ones can, be it zeros: as in a copy of a file that was being written.
#[tokio::test]
async fn zeros_hide_no_damage() {
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
async fn what_cannot_be_preallocated_is_written_all_the_same() {
    let mut refused = 0;
    for write in 0..5 {
        let directory = TempDir::new().unwrap();
        let disk = SimulatedDisk::new(1);
        let log = open(&disk, &directory).unwrap();
        disk.fail_writes(Some(Fault::once(ENOSPC).after(write).short()));
        let failed = log.append(event(1, 50)).await.is_err();
        refused += u32::from(failed);
        disk.fail_writes(None);
        if !failed {
            assert!(disk.contents(first_file(&directory)).len() < 75_000);
            append(&log, 2, 50).await;
            drop(log);
            let log = open(&disk, &directory).unwrap();
            assert_eq!(log.tail().end(), Position(2));
        }
    }
    // Three of them make keys, the fourth is the event, and the fifth preallocates.
    assert_eq!(refused, 4);
}

#[tokio::test]
async fn not_more_than_256_kib_are_preallocated() {
    let directory = TempDir::new().unwrap();
    let disk = SimulatedDisk::new(1);
    let config = log_config(directory.path());
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), &config, Uuid::from_u128(7)).unwrap();
    append(&log, 1, 50).await;
    let size = disk.contents(first_file(&directory)).len() as u64;
    assert_eq!(size, log.stats().size_bytes + (256 << 10));
}
