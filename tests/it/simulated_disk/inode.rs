//! The content of a file, and what is left of it after a power cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use fastrand::Rng;

use super::journal::Journal;

/// What a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    journal: Journal<Operation>,
}

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Write { offset: u64, bytes: Vec<u8> },
    SetSize(u64),
}

impl Inode {
    pub(super) fn contents(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn change(&mut self, operation: Operation) {
        operation.apply(&mut self.current);
        self.journal.push(operation);
    }

    pub(super) fn sync(&mut self) {
        for operation in self.journal.sync() {
            operation.apply(&mut self.durable);
        }
    }

    pub(super) fn doubt(&mut self) {
        self.journal.doubt();
    }

    pub(super) fn damage(&mut self, damage: impl FnOnce(&mut Vec<u8>)) {
        damage(&mut self.current);
        self.durable.clone_from(&self.current);
        self.journal.clear();
    }

    /// The file after a power cut.
    pub(super) fn land(&self, rng: &mut Rng) -> Self {
        let landing = Landing::choose(&self.journal, rng);
        let mut content = self.landed_sectors(&landing, rng);
        content.resize(self.landed_size(&landing) as usize, 0);
        Self {
            durable: content.clone(),
            current: content,
            journal: Journal::default(),
        }
    }

    /// The bytes after a power cut, not yet as long as the file will be.
    fn landed_sectors(&self, landing: &Landing, rng: &mut Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        let mut certain_size = content.len() as u64;
        let mut written = BTreeSet::new();
        for (index, operation, is_certain) in self.journal.iter() {
            if is_certain {
                certain_size = operation.size_after(certain_size);
            }
            if operation.is_set_size() && (is_certain || index < landing.size_cutoff) {
                operation.apply(&mut content);
                continue;
            }
            let can_be_garbage = landing.garbage && !operation.is_set_size();
            for piece in operation.pieces(content.len() as u64) {
                let start = piece.sector * SECTOR_BYTES;
                if is_certain || index < landing.cutoff(piece.sector) {
                    operation.apply_piece(&piece, &mut content);
                    written.insert(piece.sector);
                } else if can_be_garbage
                    && start >= certain_size
                    && !written.contains(&piece.sector)
                {
                    overwrite(&mut content, start, &garbage(rng));
                }
            }
        }
        content
    }

    fn landed_size(&self, landing: &Landing) -> u64 {
        let mut size = self.durable.len() as u64;
        for (index, operation, is_certain) in self.journal.iter() {
            if is_certain || index < landing.size_cutoff {
                size = operation.size_after(size);
            } else if index == landing.size_cutoff {
                size = size.max(landing.torn_at);
            }
        }
        size
    }
}

impl Operation {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => overwrite(content, *offset, bytes),
            Self::SetSize(size) => content.resize(*size as usize, 0),
        }
    }

    /// Whether the operation is one on the length of the file. It is on the disk as a whole when the length is.
    fn is_set_size(&self) -> bool {
        matches!(self, Self::SetSize(_))
    }

    fn size_after(&self, size: u64) -> u64 {
        match self {
            Self::Write { offset, bytes } => size.max(offset + bytes.len() as u64),
            Self::SetSize(size) => *size,
        }
    }

    /// The bytes that become others in a file of a size, sector by sector. A cut makes zeros of the bytes it takes.
    fn pieces(&self, size: u64) -> impl Iterator<Item = Piece> + use<> {
        let Range { mut start, end } = match self {
            Self::Write { offset, bytes } => *offset..offset + bytes.len() as u64,
            Self::SetSize(smaller) => *smaller..size,
        };
        std::iter::from_fn(move || {
            let sector = start / SECTOR_BYTES;
            let piece_end = end.min((sector + 1) * SECTOR_BYTES);
            let bytes = start..piece_end;
            start = piece_end;
            (!bytes.is_empty()).then_some(Piece { sector, bytes })
        })
    }

    fn apply_piece(&self, piece: &Piece, content: &mut Vec<u8>) {
        let length = (piece.bytes.end - piece.bytes.start) as usize;
        match self {
            Self::Write { offset, bytes } => {
                let from = (piece.bytes.start - offset) as usize;
                overwrite(content, piece.bytes.start, &bytes[from..from + length]);
            }
            Self::SetSize(_) => overwrite(content, piece.bytes.start, &vec![0; length]),
        }
    }
}

/// The part of an operation within one sector.
struct Piece {
    sector: u64,
    bytes: Range<u64>,
}

/// What a power cut lets through. An operation has reached a sector if it comes before the sector's cutoff, so a sector
/// is always as it once was in memory. What a good sync made certain does not ask here.
struct Landing {
    /// How many operations the length of the file knows.
    size_cutoff: usize,
    /// How far the write after those has made the file longer, if it has.
    torn_at: u64,
    /// How many operations have reached a sector. The others are like the length.
    cutoffs: BTreeMap<u64, usize>,
    /// Whether missing sectors are garbage rather than zeros.
    garbage: bool,
}

impl Landing {
    fn choose(journal: &Journal<Operation>, rng: &mut Rng) -> Self {
        let cutoffs = journal.cutoffs();
        match rng.u8(..6) {
            0 => Self::first(*cutoffs.start()),
            1 => Self::first(*cutoffs.end()),
            2 => Self::first(rng.usize(cutoffs)),
            3 => Self::torn(journal, rng),
            _ => Self::scattered(journal, rng),
        }
    }

    /// The first operations, each as a whole.
    fn first(size_cutoff: usize) -> Self {
        Self {
            size_cutoff,
            torn_at: 0,
            cutoffs: BTreeMap::new(),
            garbage: false,
        }
    }

    /// The first operations, and the first sectors of the next.
    fn torn(journal: &Journal<Operation>, rng: &mut Rng) -> Self {
        let size_cutoff = rng.usize(journal.cutoffs());
        let mut torn = Self::first(size_cutoff);
        if let Some(operation @ Operation::Write { .. }) = journal.get(size_cutoff) {
            torn.torn_at = tear(operation, rng);
            let landed = operation.pieces(0).map(|piece| piece.sector);
            let landed = landed.take_while(|sector| sector * SECTOR_BYTES < torn.torn_at);
            torn.cutoffs = landed.map(|sector| (sector, size_cutoff + 1)).collect();
        }
        torn
    }

    /// Any length that the file could have had, and any of the sectors.
    fn scattered(journal: &Journal<Operation>, rng: &mut Rng) -> Self {
        let size_cutoff = scattered_cutoff(journal, 0.5, rng);
        let share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]).unwrap_or_default();
        let mut cutoffs = BTreeMap::new();
        for (_, operation, _) in journal.iter() {
            for piece in operation.pieces(0) {
                let cutoff = cutoffs.entry(piece.sector);
                cutoff.or_insert_with(|| scattered_cutoff(journal, share, rng));
            }
        }
        let next = journal.get(size_cutoff);
        Self {
            size_cutoff,
            torn_at: next.map_or(0, |operation| tear(operation, rng)),
            cutoffs,
            garbage: rng.bool(),
        }
    }

    fn cutoff(&self, sector: u64) -> usize {
        let cutoff = self.cutoffs.get(&sector);
        cutoff.copied().unwrap_or(self.size_cutoff)
    }
}

/// Where a write is torn: between two of its sectors.
fn tear(operation: &Operation, rng: &mut Rng) -> u64 {
    let sectors: Vec<u64> = operation.pieces(0).map(|piece| piece.sector).collect();
    rng.choice(sectors)
        .map_or(0, |sector| sector * SECTOR_BYTES)
}

/// All of the operations for this share of the draws; none or the first few for the others.
fn scattered_cutoff(journal: &Journal<Operation>, share: f64, rng: &mut Rng) -> usize {
    if rng.f64() < share {
        *journal.cutoffs().end()
    } else if rng.bool() {
        *journal.cutoffs().start()
    } else {
        rng.usize(journal.cutoffs())
    }
}

/// What can stand where a file has grown and the bytes have not come.
fn garbage(rng: &mut Rng) -> [u8; SECTOR_BYTES as usize] {
    let mut garbage = [0; SECTOR_BYTES as usize];
    rng.fill(&mut garbage);
    garbage
}

fn overwrite(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(bytes);
}
