//! A copy of the log's directory, of one moment, is a backup. The log need not be closed for it.

use std::{fs, path::Path};

use tempfile::TempDir;
use uuid::Uuid;
use verdict::log::{Appended, EventLog, OutOfRange, Position, embedded::EmbeddedLog};

use crate::{
    log::{ALL, new_event},
    support::log_config,
};

/// Copies the directory of a log as the README says: without the index.
pub(crate) fn copy_log(from: &Path, to: &Path) {
    copy(from, to);
    fs::remove_dir_all(to.join("index")).unwrap();
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (name, path) = (entry.file_name(), entry.path());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&path, &to.join(name)),
            false => {
                fs::copy(path, to.join(name)).unwrap();
            }
        }
    }
}

async fn append(log: &EmbeddedLog, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        let appended = log.append(new_event(number, Some(1), None)).await.unwrap();
        assert!(matches!(appended, Appended::New(_)));
    }
}

#[tokio::test]
async fn a_restored_backup_refuses_cursors_of_what_it_never_had() {
    let directory = TempDir::new().unwrap();
    let backup = TempDir::new().unwrap();
    let log = EmbeddedLog::open(&log_config(directory.path()), Uuid::from_u128(1)).unwrap();
    append(&log, 1..=10).await;
    copy_log(directory.path(), backup.path());
    append(&log, 11..=15).await;
    let kept = log.cursor(Position(10));
    let lost = log.cursor(Position(12));
    drop(log);

    let log = EmbeddedLog::open(&log_config(backup.path()), Uuid::from_u128(2)).unwrap();
    assert_eq!(log.read(Position(0), ALL).await.unwrap().len(), 10);
    assert_eq!(log.resolve(&lost), Err(OutOfRange::OtherLog));
    // Other events come to lie at the positions of those that were lost.
    append(&log, 21..=30).await;
    assert_eq!(log.resolve(&lost), Err(OutOfRange::OtherLog));
    assert_eq!(log.resolve(&kept), Ok(Position(10)));
    let cursor = log.cursor(Position(12));
    assert_eq!(log.resolve(&cursor), Ok(Position(12)));
    assert_eq!(
        log.resolve(&log.cursor(Position(99))),
        Err(OutOfRange::Ahead)
    );
    drop(log);

    // An event has one cursor for ever.
    let log = EmbeddedLog::open(&log_config(backup.path()), Uuid::from_u128(3)).unwrap();
    assert_eq!(log.cursor(Position(10)), kept);
    assert_eq!(log.cursor(Position(12)), cursor);
    assert_eq!(log.resolve(&lost), Err(OutOfRange::OtherLog));
}
