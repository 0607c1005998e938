//! What senders, readers and committers were told, each call by itself.

use std::collections::HashMap;

use super::{
    Evidence, Kind, Violation,
    facts::{Facts, HighWater},
};
use crate::history::record::{Answer, Commit, CommitAnswer, Failure, Ingest, Place, Read};

pub(super) fn check(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    for ingests in facts.ingests_by_event() {
        let event = Event::new(facts, ingests);
        for number in ingests {
            let evidence = Evidence::Ingest(*number);
            let kind = event.wrong(*number);
            violations.extend(kind.map(|kind| Violation { kind, evidence }));
        }
    }
    for (number, read) in facts.history.reads.iter().enumerate() {
        let evidence = Evidence::Read(number);
        let kind = wrong_read(facts, read);
        violations.extend(kind.map(|kind| Violation { kind, evidence }));
    }
    check_commits(facts, violations);
}

/// All deliveries of one event.
struct Event<'a> {
    facts: &'a Facts<'a>,
    index: Option<usize>,
    /// In the order of their invocation.
    ingests: Vec<(usize, &'a Ingest)>,
}

impl<'a> Event<'a> {
    fn new(facts: &'a Facts<'a>, ingests: &[usize]) -> Self {
        let ingests: Vec<(usize, &Ingest)> = ingests
            .iter()
            .map(|number| (*number, &facts.history.ingests[*number]))
            .collect();
        Self {
            facts,
            index: facts.index_of_event(ingests[0].1.event),
            ingests,
        }
    }

    fn wrong(&self, number: usize) -> Option<Kind> {
        let ingest = &self.facts.history.ingests[number];
        match ingest.answer {
            Answer::Failed(failure) => self.facts.history.fault(&ingest.span, failure),
            Answer::Ignored => Some(Kind::Misjudged),
            Answer::Quarantined => {
                let other = 1 - ingest.variant;
                let right = !self.log_has(ingest.variant) && self.can_be_written(other, number);
                (!right).then_some(Kind::Misjudged)
            }
            Answer::Duplicate(place) => {
                let nothing = !self.can_be_written(ingest.variant, number);
                let wrong = nothing.then_some(Kind::DuplicateOfNothing);
                wrong.or_else(|| self.wrong_place(number, place))
            }
            Answer::Accepted(place) => {
                let again = self.is_accepted_again(number);
                let wrong = again.then_some(Kind::AcceptedAgain);
                wrong.or_else(|| self.wrong_place(number, place))
            }
        }
    }

    /// Whether the log holds the event with this content. Where an event has only one content, it has it twice.
    fn log_has(&self, variant: usize) -> bool {
        let contents = self.facts.history.events[self.ingests[0].1.event as usize];
        let sent = self.index.and_then(|index| self.facts.sent_at(index));
        sent.is_some_and(|(_, content)| content == contents[variant])
    }

    /// Whether another delivery can have written this content before this one was decided.
    fn can_be_written(&self, variant: usize, number: usize) -> bool {
        let decided = self.facts.history.ingests[number].span.completed;
        self.ingests.iter().any(|(other, earlier)| {
            let wrote = match earlier.answer {
                Answer::Accepted(_) => true,
                Answer::Failed(failure) => !matches!(failure, Failure::Refused(_)),
                _ => false,
            };
            *other != number
                && wrote
                && earlier.variant == variant
                && earlier.span.invoked < decided
        })
    }

    fn is_accepted_again(&self, number: usize) -> bool {
        let invoked = self.facts.history.ingests[number].span.invoked;
        let before = self
            .ingests
            .iter()
            .take_while(|(other, _)| *other != number);
        let mut accepted = before.filter(|(_, other)| matches!(other.answer, Answer::Accepted(_)));
        let known = |index| self.facts.is_acknowledged_before(index, invoked);
        accepted.next().is_some() || self.index.is_some_and(known)
    }

    fn wrong_place(&self, number: usize, place: Place) -> Option<Kind> {
        let Some(index) = self.index else {
            let mut told = self
                .ingests
                .iter()
                .filter(|(_, other)| other.answer.place().is_some());
            // A loss is told once.
            let first = told.next().is_some_and(|(first, _)| *first == number);
            return first.then_some(Kind::Lost);
        };
        if !self.log_has(self.facts.history.ingests[number].variant) {
            return Some(Kind::Misjudged);
        }
        let right = self.facts.at(index).event_id == place.event_id
            && self.facts.place(place.cursor) == Some(index + 1);
        (!right).then_some(Kind::WrongPlace)
    }
}

fn wrong_read(facts: &Facts<'_>, read: &Read) -> Option<Kind> {
    let index = facts.index_of_event(read.event);
    match read.found {
        Err(failure) => facts.history.fault(&read.span, failure),
        Ok(None) => {
            let known = facts.is_acknowledged_before(index?, read.span.invoked);
            known.then_some(Kind::ReadMissed)
        }
        Ok(Some(item)) => {
            let right = facts
                .item(item)
                .sent
                .is_some_and(|(event, _)| event == read.event);
            (!right).then_some(Kind::WrongPlace)
        }
    }
}

/// A commit is stored unless it lies behind the last one that was.
fn check_commits(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    let mut by_consumer: HashMap<_, Vec<(usize, &Commit)>> = HashMap::new();
    for (number, commit) in facts.history.commits.iter().enumerate() {
        by_consumer
            .entry(commit.consumer)
            .or_default()
            .push((number, commit));
    }
    for commits in by_consumer.values() {
        let stored = |commit: &&Commit| commit.answer == CommitAnswer::Stored;
        let possible = |commit: &&Commit| commit.can_be_stored();
        let all = || commits.iter().map(|(_, commit)| *commit);
        let certain = all().filter(stored).map(|commit| {
            (
                commit.span.completed,
                facts.place(commit.cursor).unwrap_or(0),
            )
        });
        let certain = HighWater::new(certain.collect());
        let possible = all()
            .filter(possible)
            .map(|commit| (commit.span.invoked, facts.place(commit.cursor).unwrap_or(0)));
        let possible = HighWater::new(possible.collect());
        for (number, commit) in commits {
            let place = facts.place(commit.cursor).unwrap_or(0);
            let kind = match commit.answer {
                CommitAnswer::Failed(failure) => facts.history.fault(&commit.span, failure),
                CommitAnswer::Stored => certain
                    .before(commit.span.invoked)
                    .is_some_and(|stored| place < stored)
                    .then_some(Kind::CommitMovedBack),
                CommitAnswer::Behind => possible
                    .before(commit.span.completed)
                    .is_none_or(|stored| stored <= place)
                    .then_some(Kind::CommitRefused),
            };
            let evidence = Evidence::Commit(*number);
            violations.extend(kind.map(|kind| Violation { kind, evidence }));
        }
    }
}
