//! Summaries of events, by which a search passes over those that hold nothing it wants.
//!
//! A *block* is a run of events at fixed positions. Its summary is a Bloom filter of the marks of its events: it can tell that
//! no event of the block has a mark, never that one has it. The log does not know what marks stand for.
//!
//! Only a whole block has a summary, made of every one of its events. What has none (the newest events, a block in which a
//! start or an event that cannot be read lies, all that an older version wrote) is read. Events never change, so a summary stays
//! true as long as any of them is retained.

use std::ops::RangeInclusive;

use crate::{
    log::{Position, Wanted},
    marks::{self, Marks},
};

/// How many events a block has.
const BLOCK_EVENTS: u64 = 64;

/// With about 200 marks in a block that differ, one in 7,000 others seems to be there. A filter may ask for a thousand.
const BITS: usize = 4096;
const PROBES: u64 = 8;

/// The length of a summary as it is stored: the position of the block's last event, the version of the marks, the bits.
const STORED_BYTES: usize = 8 + 1 + BITS / 8;

/// The number of the block that holds an event.
pub(super) fn block_of(position: Position) -> u64 {
    (position.0 - 1) / BLOCK_EVENTS
}

/// The positions of the events of a block.
pub(super) fn positions(block: u64) -> RangeInclusive<u64> {
    let first = block.saturating_mul(BLOCK_EVENTS).saturating_add(1);
    first..=first.saturating_add(BLOCK_EVENTS - 1)
}

/// The summary of a block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) block: u64,
    pub(super) stored: Box<[u8; STORED_BYTES]>,
}

/// Whether a block with this stored summary holds nothing that is wanted. A summary of another version says nothing.
pub(super) fn rules_out(stored: &[u8], wanted: &Wanted) -> bool {
    let Ok(stored) = <&[u8; STORED_BYTES]>::try_from(stored) else {
        return false;
    };
    let [_, _, _, _, _, _, _, _, marks::VERSION, bits @ ..] = stored else {
        return false;
    };
    let may_have = |mark: &u64| probes(*mark).all(|(byte, bit)| bits[byte] & bit != 0);
    !wanted
        .marks
        .iter()
        .all(|any_of| any_of.iter().any(may_have))
}

/// Where the bits of a mark are: the byte of each, and the bit in it.
fn probes(mark: u64) -> impl Iterator<Item = (usize, u8)> {
    // Two halves of a hash make as many places as are needed. An odd step leads to different ones.
    let (first, step) = (mark >> 32, mark | 1);
    (0..PROBES).map(move |probe| {
        let at = first.wrapping_add(probe.wrapping_mul(step)) as usize % BITS;
        (at / 8, 1 << (at % 8))
    })
}

/// Makes the summaries of events that come one after another.
#[derive(Debug)]
pub(super) struct Summarizer {
    /// The event that the block goes on with; 0 if it cannot become whole any more.
    next: u64,
    bits: [u8; BITS / 8],
}

impl Default for Summarizer {
    fn default() -> Self {
        Self {
            next: 0,
            bits: [0; BITS / 8],
        }
    }
}

impl Summarizer {
    /// Adds an event, by its marks if it can be read. The summary of its block if that is whole now.
    pub(super) fn add(&mut self, position: Position, marks: Option<&Marks>) -> Option<Summary> {
        let block = block_of(position);
        let events = positions(block);
        if position.0 == *events.start() {
            *self = Self {
                next: position.0,
                ..Default::default()
            };
        }
        let marks = marks.filter(|_| position.0 == self.next);
        self.next = 0;
        for (byte, bit) in marks?.iter().copied().flat_map(probes) {
            self.bits[byte] |= bit;
        }
        self.next = position.0 + 1;
        (position.0 == *events.end()).then(|| {
            let mut stored = Box::new([0; STORED_BYTES]);
            stored[..8].copy_from_slice(&position.0.to_be_bytes());
            stored[8] = marks::VERSION;
            stored[9..].copy_from_slice(&self.bits);
            Summary { block, stored }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(marks: &[&[u64]]) -> Wanted {
        let marks = marks.iter().map(|any_of| any_of.to_vec());
        Wanted::new(|_| true, marks.collect())
    }

    /// Numbers as a hash makes them.
    fn mark(number: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&number.to_be_bytes())
    }

    /// The marks of an event: six that others have too, and three of its own.
    fn marks(position: u64) -> Marks {
        std::array::from_fn(|at| match at as u64 {
            at @ 0..6 => mark(at),
            at => mark(position * 9 + at),
        })
    }

    fn add(summarizer: &mut Summarizer, positions: RangeInclusive<u64>) -> Vec<Summary> {
        positions
            .filter_map(|position| summarizer.add(Position(position), Some(&marks(position))))
            .collect()
    }

    fn blocks(summaries: &[Summary]) -> Vec<u64> {
        summaries.iter().map(|summary| summary.block).collect()
    }

    #[test]
    fn a_summary_has_every_mark_of_its_block_and_few_others() {
        let summaries = add(&mut Summarizer::default(), 1..=192);
        assert_eq!(blocks(&summaries), [0, 1, 2]);
        for summary in &summaries {
            let stored = &summary.stored[..];
            let end = positions(summary.block).end().to_be_bytes();
            assert_eq!(stored[..8], end);
            for position in positions(summary.block) {
                for mark in marks(position) {
                    assert!(!rules_out(stored, &wanted(&[&[mark]])));
                }
            }
            let others = (10_000..20_000).map(mark);
            let found = others.filter(|other| !rules_out(stored, &wanted(&[&[*other]])));
            assert!(found.count() < 10);
        }
    }

    #[test]
    fn a_block_is_ruled_out_if_one_of_the_lists_has_none_of_its_marks() {
        let summaries = add(&mut Summarizer::default(), 1..=64);
        let stored = &summaries[0].stored[..];
        let (one, two) = (marks(1)[6], marks(64)[8]);
        let (other, another) = (mark(1_000_000), mark(1_000_001));
        for (lists, is_ruled_out) in [
            (&[][..], false),
            (&[&[one][..], &[two]], false),
            (&[&[one, other], &[another, two]], false),
            (&[&[other, another]], true),
            (&[&[one], &[other]], true),
        ] {
            assert_eq!(rules_out(stored, &wanted(lists)), is_ruled_out);
        }
        // Of another version, or no summary at all.
        let mut of_another = summaries[0].stored.clone();
        of_another[8] += 1;
        for nonsense in [&of_another[..], &stored[1..], &[]] {
            assert!(!rules_out(nonsense, &wanted(&[&[other]])));
        }
    }

    #[test]
    fn only_whole_blocks_have_summaries() {
        // The beginning of a block is missing.
        let mut summarizer = Summarizer::default();
        assert_eq!(blocks(&add(&mut summarizer, 2..=128)), [1]);
        // An event in the middle is missing, or cannot be read.
        assert!(add(&mut summarizer, 129..=140).is_empty());
        assert_eq!(blocks(&add(&mut summarizer, 142..=256)), [3]);
        assert!(add(&mut summarizer, 257..=300).is_empty());
        assert_eq!(summarizer.add(Position(301), None), None);
        assert_eq!(blocks(&add(&mut summarizer, 302..=384)), [5]);
        // The first one, and the last one.
        for position in [385, 512] {
            let mut summarizer = Summarizer::default();
            for added in 385..=512 {
                let marks = marks(added);
                let marks = (added != position).then_some(&marks);
                let summary = summarizer.add(Position(added), marks);
                let is_whole = added.is_multiple_of(64) && added.abs_diff(position) >= 64;
                assert_eq!(summary.is_some(), is_whole);
            }
        }
        // What was begun and comes again is as if it had come once.
        let whole = add(&mut Summarizer::default(), 1..=64);
        let mut summarizer = Summarizer::default();
        assert!(add(&mut summarizer, 1..=10).is_empty());
        assert_eq!(add(&mut summarizer, 1..=64), whole);
    }

    /// What is stored must be found by every later version.
    #[test]
    fn a_stored_summary_is_this_for_ever() {
        let summaries = add(&mut Summarizer::default(), 1..=64);
        let hash = xxhash_rust::xxh3::xxh3_64(&summaries[0].stored[..]);
        assert_eq!(hash, 0xf20d_25a0_3ced_26e4);
    }
}
