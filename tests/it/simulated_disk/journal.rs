//! The operations that a power cut can take back, of one file or one directory, in their order.

use std::ops::RangeInclusive;

#[derive(Clone, Debug)]
pub(super) struct Journal<O> {
    entries: Vec<Entry<O>>,
}

#[derive(Clone, Debug)]
struct Entry<O> {
    operation: O,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    /// No sync has come yet.
    Pending,
    /// A sync failed. No later one can say that this is on the disk.
    Doubtful,
    /// Synced, but it waits here for its place after something doubtful.
    Durable,
}

impl<O> Journal<O> {
    pub(super) fn push(&mut self, operation: O) {
        let standing = Standing::Pending;
        self.entries.push(Entry {
            operation,
            standing,
        });
    }

    /// After a good sync: takes out the operations that are on the disk and have nothing doubtful before them.
    pub(super) fn sync(&mut self) -> impl Iterator<Item = O> {
        self.settle(Standing::Durable);
        let durable = self.entries.iter();
        let durable = durable.take_while(|entry| entry.standing == Standing::Durable);
        let durable = durable.count();
        self.entries.drain(..durable).map(|entry| entry.operation)
    }

    /// After a failed sync.
    pub(super) fn doubt(&mut self) {
        self.settle(Standing::Doubtful);
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many of the operations, from the first, a power cut can let through.
    pub(super) fn cutoffs(&self) -> RangeInclusive<usize> {
        0..=self.entries.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&O> {
        self.entries.get(index).map(|entry| &entry.operation)
    }

    /// The operations with their index, and whether they are certain to be on the disk.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &O, bool)> {
        let entries = self.entries.iter().enumerate();
        entries.map(|(index, entry)| {
            let is_certain = entry.standing == Standing::Durable;
            (index, &entry.operation, is_certain)
        })
    }

    fn settle(&mut self, standing: Standing) {
        let pending = self.entries.iter_mut();
        let pending = pending.filter(|entry| entry.standing == Standing::Pending);
        pending.for_each(|entry| entry.standing = standing);
    }
}

impl<O> Default for Journal<O> {
    fn default() -> Self {
        let entries = Vec::new();
        Self { entries }
    }
}
