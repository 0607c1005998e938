//! The log as it was read at the end, and all items against it.

use std::collections::HashMap;

use super::{Evidence, Kind, Violation, facts::Facts};
use crate::history::{content::Source, record::ItemNo};

pub(super) fn check(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    check_contents(facts, violations);
    check_verifications(facts, violations);
    check_real_time(facts, violations);
    check_items(facts, violations);
}

/// Every event of the log was sent by someone, with what it says.
fn check_contents(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    let history = facts.history;
    let mut sent = vec![[false; 2]; history.events.len()];
    for ingest in &history.ingests {
        sent[ingest.event as usize][ingest.variant] = true;
    }
    for index in 0..history.log.len() {
        // What cannot be any client's was told when the log was read.
        let Some((event, content)) = facts.sent_at(index) else {
            continue;
        };
        let Some(contents) = history.events.get(event as usize) else {
            continue;
        };
        let mut variants = contents.iter().zip(sent[event as usize]);
        if !variants.any(|(variant, sent)| sent && *variant == content) {
            violations.push(Violation {
                kind: Kind::Invented,
                evidence: Evidence::Log(index),
            });
        }
    }
}

/// What the log knows of a verification.
#[derive(Default)]
struct Progress {
    revision: u64,
    occurred_at: Option<i64>,
}

/// Revisions are counted, and an event is late if it occurred strictly before an earlier one.
fn check_verifications(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    let mut verifications: HashMap<(Source, u32), Progress> = HashMap::new();
    for index in 0..facts.history.log.len() {
        let item = facts.at(index);
        let Some((_, content)) = item.sent else {
            continue;
        };
        let (mut revision, mut late) = (0, false);
        if let Some(verification) = content.verification {
            let key = (content.source, verification);
            let progress = verifications.entry(key).or_default();
            revision = progress.revision + 1;
            late = content.occurred_at.is_some() && content.occurred_at < progress.occurred_at;
            // One hole is told once.
            progress.revision = item.revision;
            progress.occurred_at = progress.occurred_at.max(content.occurred_at);
        }
        let wrong = [
            (item.revision != revision, Kind::RevisionHole),
            (item.late != late, Kind::WrongLate),
        ];
        for (_, kind) in wrong.into_iter().filter(|(wrong, _)| *wrong) {
            let evidence = Evidence::Log(index);
            violations.push(Violation { kind, evidence });
        }
    }
}

/// What was acknowledged before something else was sent lies before it.
fn check_real_time(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    for index in 0..facts.history.log.len() {
        if facts.is_out_of_order(index) {
            violations.push(Violation {
                kind: Kind::OutOfOrder,
                evidence: Evidence::Log(index),
            });
        }
    }
}

/// Whatever a client saw at any time is in the log, and is there as it was.
fn check_items(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    for (number, item) in facts.history.items.iter().enumerate() {
        let kind = match facts.index(number as ItemNo) {
            // Told when the log was read.
            None if facts.history.log.contains(&(number as ItemNo)) => continue,
            None => Kind::Vanished,
            Some(index) if facts.at(index).digest != item.digest => Kind::Changed,
            Some(_) => continue,
        };
        let evidence = Evidence::Item(number as ItemNo);
        violations.push(Violation { kind, evidence });
    }
}
