//! How far the consumers have come.

use std::collections::BTreeMap;

use super::{Commit, CommitError, Consumer, MAX_CONSUMERS};

/// The consumers of a log, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Consumers(pub(super) BTreeMap<String, Consumer>);

impl Consumers {
    /// Takes a commit, unless it lies before an earlier one.
    pub(super) fn commit(&mut self, commit: Commit) -> Result<(), CommitError> {
        let Commit { consumer, force } = commit;
        match self.0.get(&consumer.name) {
            Some(known) if consumer.cursor.position < known.cursor.position && !force => {
                return Err(CommitError::Behind);
            }
            None if self.0.len() >= MAX_CONSUMERS => return Err(CommitError::TooMany),
            _ => {}
        }
        self.0.insert(consumer.name.clone(), consumer);
        Ok(())
    }
}
