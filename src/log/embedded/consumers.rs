//! How far the consumers have come, in the file `consumers`.

use std::{io, path::Path};

use prost::Message;

use super::{
    OpenError,
    record::{ConsumerRecord, ConsumersRecord},
    small_file,
};
use crate::log::{Consumer, Cursor, consumers::Consumers, disk::Disk};

const CONSUMERS: &str = "consumers";

pub(super) fn read(disk: &dyn Disk, directory: &Path) -> Result<Consumers, OpenError> {
    let Some(bytes) = small_file::read(disk, &directory.join(CONSUMERS))? else {
        return Ok(Consumers::default());
    };
    let damaged = || OpenError::Damaged("the file consumers cannot be read".to_owned());
    let record = ConsumersRecord::decode(bytes).map_err(|_| damaged())?;
    let mut consumers = Consumers::default();
    for record in record.consumers {
        let consumer = Consumer {
            cursor: Cursor::decode(&record.cursor).map_err(|_| damaged())?,
            committed_at: record.committed_at.unwrap_or_default(),
            name: record.name,
        };
        consumers.0.insert(consumer.name.clone(), consumer);
    }
    Ok(consumers)
}

/// Writes all of them, durably.
pub(super) fn write(disk: &dyn Disk, directory: &Path, consumers: &Consumers) -> io::Result<()> {
    let records = consumers.0.values().map(|consumer| ConsumerRecord {
        name: consumer.name.clone(),
        cursor: consumer.cursor.encode(),
        committed_at: Some(consumer.committed_at),
    });
    let record = ConsumersRecord {
        consumers: records.collect(),
    };
    small_file::write(disk, &directory.join(CONSUMERS), &record.encode_to_vec())
}
