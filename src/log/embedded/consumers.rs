//! How far the consumers have come, in the file `consumers`.

use std::{io, path::Path};

use prost::Message;

use super::{
    OpenError,
    reader::Shared,
    record::{ConsumerRecord, ConsumersRecord},
    request::{Reply, answer},
    segments::WriteError,
    small_file,
    writer::Writer,
};
use crate::log::{
    AppendError, Commit, CommitError, Consumer, Cursor, consumers::Consumers, disk::Disk,
};

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

/// What is to be done to a consumer.
pub(super) enum ConsumerChange {
    Commit(Commit, Reply<(), CommitError>),
    Forget(String, Reply<()>),
}

enum ConsumerReply {
    Commit(Reply<(), CommitError>),
    Forget(Reply<()>),
}

impl Writer {
    /// Makes changes durable, then answers.
    pub(super) fn commit_consumers(&mut self, changes: Vec<ConsumerChange>) {
        if changes.is_empty() {
            return;
        }
        let mut changed = self.shared.consumers().clone();
        let mut decided = Vec::new();
        for change in changes {
            match change {
                ConsumerChange::Commit(commit, reply) => {
                    decided.push((changed.commit(commit), ConsumerReply::Commit(reply)));
                }
                ConsumerChange::Forget(name, reply) => {
                    changed.0.remove(&name);
                    decided.push((Ok(()), ConsumerReply::Forget(reply)));
                }
            }
        }
        let stored = self.store_consumers(changed);
        for (decided, reply) in decided {
            let stored = stored.clone();
            match reply {
                ConsumerReply::Commit(reply) => {
                    answer(reply, decided.and_then(|()| stored.map_err(Into::into)));
                }
                ConsumerReply::Forget(reply) => answer(reply, stored),
            }
        }
    }

    fn store_consumers(&self, changed: Consumers) -> Result<(), AppendError> {
        self.shared.health.has_not_failed()?;
        let Shared {
            disk, directory, ..
        } = self.shared.as_ref();
        let mut consumers = self.shared.consumers();
        if *consumers != changed {
            let stored = write(disk.as_ref(), directory, &changed);
            stored.map_err(|error| self.trouble(WriteError::Write(error)))?;
            *consumers = changed;
        }
        Ok(())
    }
}
