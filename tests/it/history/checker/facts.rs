//! What follows from a history at once, and is looked up again and again.

use std::{collections::HashMap, ops::Range};

use super::{Evidence, Kind, Violation};
use crate::history::{
    content::Content,
    record::{Answer, CursorNo, EventNo, Failure, History, Ingest, Item, ItemNo, Moment},
};

/// A history with its indexes. A place is told as the number of events of the log before it.
pub(super) struct Facts<'a> {
    pub(super) history: &'a History,
    /// By number of the event: where it lies in the log.
    indexes: Vec<Option<usize>>,
    places: HashMap<CursorNo, usize>,
    /// By number of the item: whether its cursor is another event's too.
    moved: Vec<bool>,
    /// The numbers of the ingests, by event and then by invocation.
    by_event: Vec<usize>,
    acknowledged: HighWater,
    written: LowWater,
    /// By index in the log: the moment before which the event cannot have been written.
    written_at: Vec<Moment>,
    /// By index in the log: when somebody knew of the event for the first time.
    acknowledged_at: Vec<Moment>,
    /// By index in the log: when somebody knew of any event that lies there or later.
    later_acknowledged_at: Vec<Moment>,
    /// By index in the log: the latest `received_at` so far.
    received: Vec<i64>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(history: &'a History, violations: &mut Vec<Violation>) -> Self {
        let mut by_event: Vec<usize> = (0..history.ingests.len()).collect();
        by_event.sort_unstable_by_key(|ingest| {
            let ingest = &history.ingests[*ingest];
            (ingest.event, ingest.span.invoked)
        });
        let mut facts = Self {
            history,
            indexes: vec![None; history.events.len()],
            places: HashMap::new(),
            moved: vec![false; history.items.len()],
            by_event,
            acknowledged: HighWater::default(),
            written: LowWater::default(),
            written_at: Vec::new(),
            acknowledged_at: Vec::new(),
            later_acknowledged_at: Vec::new(),
            received: Vec::new(),
        };
        facts.read_log(violations);
        facts.read_cursors(violations);
        facts.read_times();
        facts
    }

    fn read_log(&mut self, violations: &mut Vec<Violation>) {
        let mut latest = i64::MIN;
        for (index, item) in self.history.log.iter().enumerate() {
            let item = self.item(*item);
            latest = latest.max(item.received_at);
            self.received.push(latest);
            let known = item
                .sent
                .and_then(|(event, _)| self.indexes.get_mut(event as usize));
            let kind = match known {
                None => Kind::Invented,
                Some(Some(_)) => Kind::RepeatedInLog,
                Some(unknown) => {
                    *unknown = Some(index);
                    continue;
                }
            };
            let evidence = Evidence::Log(index);
            violations.push(Violation { kind, evidence });
        }
    }

    /// Learns the cursors: first those of the log, then those that came with the same events at other times.
    fn read_cursors(&mut self, violations: &mut Vec<Violation>) {
        let history = self.history;
        if let Some(origin) = history.origin {
            self.places.insert(origin, 0);
        }
        let all = 0..history.items.len() as ItemNo;
        for number in history.log.iter().copied().chain(all) {
            let Some(index) = self.index(number) else {
                continue;
            };
            let place = index + 1;
            let known = *self.places.entry(self.item(number).cursor).or_insert(place);
            if known != place && !self.moved[number as usize] {
                self.moved[number as usize] = true;
                violations.push(Violation {
                    kind: Kind::Moved,
                    evidence: Evidence::Item(number),
                });
            }
        }
    }

    fn read_times(&mut self) {
        let mut acknowledged = vec![Moment::MAX; self.history.log.len()];
        for item in &self.history.items {
            if let Some(index) = self.index_of(item) {
                acknowledged[index] = acknowledged[index].min(item.first_seen);
            }
        }
        let mut written = vec![0; self.history.log.len()];
        for ingests in self.ingests_by_event() {
            let event = self.history.ingests[ingests[0]].event;
            let Some(index) = self.index_of_event(event) else {
                continue;
            };
            let ingests = || ingests.iter().map(|ingest| &self.history.ingests[*ingest]);
            let answered = ingests().filter(|ingest| ingest.answer.place().is_some());
            let first = answered.map(|ingest| ingest.span.completed).min();
            acknowledged[index] = acknowledged[index].min(first.unwrap_or(Moment::MAX));
            written[index] = written_after(ingests());
        }
        let marks =
            |moments: &[Moment], first: usize| moments.iter().copied().zip(first..).collect();
        self.acknowledged = HighWater::new(marks(&acknowledged, 1));
        self.written = LowWater::new(marks(&written, 0));
        self.acknowledged_at.clone_from(&acknowledged);
        for index in (1..acknowledged.len()).rev() {
            acknowledged[index - 1] = acknowledged[index - 1].min(acknowledged[index]);
        }
        self.later_acknowledged_at = acknowledged;
        self.written_at = written;
    }

    pub(super) fn item(&self, item: ItemNo) -> &'a Item {
        &self.history.items[item as usize]
    }

    /// Where the event of an item lies in the log.
    pub(super) fn index(&self, item: ItemNo) -> Option<usize> {
        self.index_of(self.item(item))
    }

    fn index_of(&self, item: &Item) -> Option<usize> {
        item.sent.and_then(|(event, _)| self.index_of_event(event))
    }

    pub(super) fn index_of_event(&self, event: EventNo) -> Option<usize> {
        self.indexes.get(event as usize).copied().flatten()
    }

    /// The item at an index of the log.
    pub(super) fn at(&self, index: usize) -> &'a Item {
        self.item(self.history.log[index])
    }

    /// The event at an index of the log, and what it says. `None` for an invented one.
    pub(super) fn sent_at(&self, index: usize) -> Option<(EventNo, Content)> {
        self.at(index).sent
    }

    pub(super) fn place(&self, cursor: CursorNo) -> Option<usize> {
        self.places.get(&cursor).copied()
    }

    pub(super) fn has_moved(&self, item: ItemNo) -> bool {
        self.moved[item as usize]
    }

    /// The ingests of each event that was sent, in the order of their invocation.
    pub(super) fn ingests_by_event(&self) -> impl Iterator<Item = &[usize]> {
        let event = |ingest: &usize| self.history.ingests[*ingest].event;
        self.by_event
            .chunk_by(move |one, next| event(one) == event(next))
    }

    /// The place after the last event that somebody knew of before this moment.
    pub(super) fn acknowledged_before(&self, moment: Moment) -> usize {
        self.acknowledged.before(moment).unwrap_or(0)
    }

    /// The place before the first event that was certainly written after this moment.
    pub(super) fn written_after(&self, moment: Moment) -> usize {
        let end = self.history.log.len();
        self.written.after(moment).unwrap_or(end)
    }

    pub(super) fn is_acknowledged_before(&self, index: usize, moment: Moment) -> bool {
        self.acknowledged_at[index] < moment
    }

    /// Whether an event was sent only after one that lies behind it was acknowledged.
    pub(super) fn is_out_of_order(&self, index: usize) -> bool {
        let later = self.later_acknowledged_at.get(index + 1);
        later.is_some_and(|acknowledged| *acknowledged < self.written_at[index])
    }

    /// The place before the first event that was received at this time or later.
    pub(super) fn received_since(&self, time: i64) -> usize {
        self.received.partition_point(|received| *received < time)
    }
}

/// The moment before which an event cannot have been written.
fn written_after<'a>(ingests: impl Iterator<Item = &'a Ingest> + Clone) -> Moment {
    let accepted = ingests
        .clone()
        .filter(|ingest| matches!(ingest.answer, Answer::Accepted(_)));
    let unknown = ingests.filter(|ingest| {
        matches!(
            ingest.answer,
            Answer::Failed(Failure::Unknown | Failure::Hung)
        )
    });
    let first = |moments: Option<Moment>| moments.unwrap_or(0);
    match accepted.map(|ingest| ingest.span.invoked).min() {
        Some(moment) => moment,
        None => first(unknown.map(|ingest| ingest.span.invoked).min()),
    }
}

/// How far something had come at a moment.
#[derive(Default)]
pub(super) struct HighWater(Vec<(Moment, usize)>);

impl HighWater {
    pub(super) fn new(mut marks: Vec<(Moment, usize)>) -> Self {
        marks.sort_unstable();
        let mut highest = 0;
        for (_, mark) in &mut marks {
            highest = highest.max(*mark);
            *mark = highest;
        }
        Self(marks)
    }

    /// The highest mark from before a moment.
    pub(super) fn before(&self, moment: Moment) -> Option<usize> {
        let marks = self.0.partition_point(|(marked, _)| *marked < moment);
        Some(self.0[marks.checked_sub(1)?].1)
    }
}

/// How far something was to come after a moment.
#[derive(Default)]
struct LowWater(Vec<(Moment, usize)>);

impl LowWater {
    fn new(mut marks: Vec<(Moment, usize)>) -> Self {
        marks.sort_unstable();
        let mut lowest = usize::MAX;
        for (_, mark) in marks.iter_mut().rev() {
            lowest = lowest.min(*mark);
            *mark = lowest;
        }
        Self(marks)
    }

    /// The lowest mark from after a moment.
    fn after(&self, moment: Moment) -> Option<usize> {
        let marks: Range<usize> = self.0.partition_point(|(m, _)| *m <= moment)..self.0.len();
        self.0[marks].first().map(|(_, mark)| *mark)
    }
}
