//! The names in a directory.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::journal::Journal;

/// What a file is, whatever its name.
pub(super) type InodeId = u64;

type Names = BTreeMap<String, InodeId>;

#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    durable: Names,
    current: Names,
    journal: Journal<Placing>,
}

/// From now on the only name of the inode is this: it was created, renamed or, without a name, removed.
#[derive(Clone, Debug)]
struct Placing {
    inode: InodeId,
    name: Option<String>,
}

impl Directory {
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.current.keys()
    }

    pub(super) fn inodes(&self) -> impl Iterator<Item = InodeId> {
        self.current.values().copied()
    }

    pub(super) fn find(&self, name: &str) -> Option<InodeId> {
        self.current.get(name).copied()
    }

    pub(super) fn place(&mut self, inode: InodeId, name: Option<&str>) {
        let name = name.map(str::to_owned);
        let placing = Placing { inode, name };
        placing.apply(&mut self.current);
        self.journal.push(placing);
    }

    pub(super) fn sync(&mut self) {
        for placing in self.journal.sync() {
            placing.apply(&mut self.durable);
        }
    }

    pub(super) fn doubt(&mut self) {
        self.journal.doubt();
    }

    /// The directory after a power cut: with none, all or the first few of the changes.
    pub(super) fn land(&self, rng: &mut Rng) -> Self {
        let cutoffs = self.journal.cutoffs();
        let cutoff = match rng.u8(..3) {
            0 => *cutoffs.start(),
            1 => *cutoffs.end(),
            _ => rng.usize(cutoffs),
        };
        let mut names = self.durable.clone();
        for (index, placing, is_certain) in self.journal.iter() {
            if is_certain || index < cutoff {
                placing.apply(&mut names);
            }
        }
        Self {
            durable: names.clone(),
            current: names,
            journal: Journal::default(),
        }
    }
}

impl Placing {
    fn apply(&self, names: &mut Names) {
        names.retain(|_, inode| *inode != self.inode);
        if let Some(name) = &self.name {
            names.insert(name.clone(), self.inode);
        }
    }
}
