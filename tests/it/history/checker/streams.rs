//! Every stream against the log: from where it was asked to begin, exactly the events that it was asked for.

use super::{Evidence, Kind, Violation, facts::Facts};
use crate::history::record::{
    Commit, CommitAnswer, ConsumerNo, CursorNo, End, EventNo, Failure, ItemNo, Message, Start,
    Stream,
};

pub(super) fn check(facts: &Facts<'_>, violations: &mut Vec<Violation>) {
    for (number, stream) in facts.history.streams.iter().enumerate() {
        let walks = starts(facts, stream).into_iter().map(|between| {
            let mut walk = Walk::new(facts, number, between);
            walk.run();
            walk.violations
        });
        // Where a stream may have begun at several places, it is right if it is for one of them.
        violations.extend(walks.min_by_key(Vec::len).unwrap_or_default());
    }
}

/// The places at which a stream may begin: each at the first place, at the second, or between them.
fn starts(facts: &Facts<'_>, stream: &Stream) -> Vec<(usize, usize)> {
    let known = facts.acknowledged_before(stream.span.invoked);
    let exactly = |place: usize| vec![(place, place)];
    match stream.start {
        Start::Earliest => exactly(0),
        // A cursor without a place is that of an event which vanished, and told as such.
        Start::After(cursor) | Start::Resume(cursor) => match facts.place(cursor) {
            Some(place) => exactly(place),
            None => vec![(0, facts.history.log.len())],
        },
        Start::Latest => {
            let opened = stream.opened.unwrap_or(stream.span.completed);
            vec![(known, known.max(facts.written_after(opened)))]
        }
        // If there was no such event yet, the stream begins at the end that the log had then.
        Start::Since(time) => {
            let place = facts.received_since(time);
            vec![(place.min(known), place)]
        }
        Start::Committed(consumer) => {
            let places = committed(facts, stream, consumer);
            places.into_iter().map(|place| (place, place)).collect()
        }
    }
}

/// The places that a consumer may have committed when a stream of it began: the last one that was acknowledged, and
/// those in flight.
fn committed(facts: &Facts<'_>, stream: &Stream, consumer: ConsumerNo) -> Vec<usize> {
    let commits = facts.history.commits.iter();
    let commits = commits.filter(|commit| commit.consumer == consumer);
    let place = |commit: &Commit| facts.place(commit.cursor).unwrap_or(0);
    let stored = commits.clone().filter(|commit| {
        commit.answer == CommitAnswer::Stored && commit.span.precedes(&stream.span)
    });
    let certain = stored.map(place).max().unwrap_or(0);
    let opened = stream.opened.unwrap_or(stream.span.completed);
    let in_flight = commits.filter(|commit| commit.can_be_stored() && commit.span.invoked < opened);
    let mut places: Vec<usize> = in_flight.map(place).filter(|p| *p > certain).collect();
    places.push(certain);
    places
}

impl Commit {
    pub(super) fn can_be_stored(&self) -> bool {
        match self.answer {
            CommitAnswer::Stored => true,
            CommitAnswer::Behind => false,
            CommitAnswer::Failed(failure) => !matches!(failure, Failure::Refused(_)),
        }
    }
}

/// A walk along the log, led by a stream.
struct Walk<'a> {
    facts: &'a Facts<'a>,
    number: usize,
    stream: &'a Stream,
    /// The stream has come to one of the places from `least` to `most`. They are the same once it has told where it is.
    least: usize,
    most: usize,
    begun: bool,
    /// The message that is looked at.
    message: usize,
    violations: Vec<Violation>,
}

impl<'a> Walk<'a> {
    fn new(facts: &'a Facts<'a>, number: usize, (least, most): (usize, usize)) -> Self {
        Self {
            facts,
            number,
            stream: &facts.history.streams[number],
            least,
            most,
            begun: false,
            message: 0,
            violations: Vec::new(),
        }
    }

    fn run(&mut self) {
        let mut stopped = false;
        for (number, message) in self.stream.messages.iter().enumerate() {
            self.message = number;
            if stopped {
                self.wrong(Kind::NotStopped, None);
            }
            match message {
                Message::Event(item) => self.event(*item),
                Message::Sign(cursor) => self.sign(*cursor),
                Message::CaughtUp(cursor) => {
                    self.sign(*cursor);
                    self.caught_up();
                    stopped = self.stream.stop_when_caught_up;
                }
            }
        }
        self.message = self.stream.messages.len();
        match self.stream.end {
            End::Done if !stopped => self.wrong(Kind::EndedUnasked, None),
            End::Done | End::Left => {}
            End::Failed(failure) => {
                if let Some(kind) = self.facts.history.fault(&self.stream.span, failure) {
                    self.wrong(kind, None);
                }
            }
        }
    }

    fn event(&mut self, item: ItemNo) {
        // Told when the items were read.
        let (Some(index), Some((event, content))) =
            (self.facts.index(item), self.facts.item(item).sent)
        else {
            return;
        };
        if self.facts.has_moved(item) {
            self.come_to(self.most.max(index + 1));
            return;
        }
        if index < self.least {
            self.went_back(event);
            return;
        }
        self.pass(index);
        self.come_to(index + 1);
        if !self.stream.filter.matches(&content) {
            self.wrong(Kind::FilterLeaked, Some(event));
        }
    }

    /// A message that tells nothing but where the stream is.
    fn sign(&mut self, cursor: CursorNo) {
        match self.facts.place(cursor) {
            Some(place) if place < self.least => {
                let kind = self.at_start(Kind::BeforeStart);
                let kind = if self.begun { Kind::CursorBehind } else { kind };
                self.wrong(kind, None);
            }
            Some(place) => {
                self.pass(place);
                self.come_to(place);
            }
            None if self.is_of_vanished(cursor) => {}
            None => self.wrong(Kind::UnknownCursor, None),
        }
    }

    /// Whatever was acknowledged before the call has been sent.
    fn caught_up(&mut self) {
        let known = self.facts.acknowledged_before(self.stream.span.invoked);
        let first = self.wanted(self.most, known).next();
        if let Some(event) = first {
            self.wrong(Kind::CaughtUpEarly, Some(event));
        }
    }

    fn come_to(&mut self, place: usize) {
        (self.least, self.most) = (place, place);
        self.begun = true;
    }

    /// Nothing that is asked for lies between where the stream was and this place.
    fn pass(&mut self, place: usize) {
        // What comes out of its order is no gap.
        let mut skipped = self
            .wanted(self.most, place)
            .filter(|event| !self.holds(*event));
        let Some(event) = skipped.next() else {
            return;
        };
        drop(skipped);
        let kind = match self.stream.filter.is_all() {
            true => Kind::Gap,
            false => Kind::FilterMissed,
        };
        let kind = if self.begun {
            kind
        } else {
            self.at_start(kind)
        };
        self.wrong(kind, Some(event));
    }

    fn went_back(&mut self, event: EventNo) {
        let kind = if self.held(event) {
            Kind::Repeated
        } else if self.begun {
            Kind::Reordered
        } else {
            self.at_start(Kind::BeforeStart)
        };
        self.wrong(kind, Some(event));
    }

    /// What is wrong at the start is told by the promise of the start.
    fn at_start(&self, otherwise: Kind) -> Kind {
        match (self.stream.start, otherwise) {
            (Start::Committed(_), _) => Kind::CommitIgnored,
            (Start::Resume(_), Kind::Gap | Kind::FilterMissed) => Kind::GapAfterReconnect,
            _ => otherwise,
        }
    }

    /// The events between two places that are asked for.
    fn wanted(&self, from: usize, to: usize) -> impl Iterator<Item = EventNo> {
        let sent = (from..to).filter_map(|index| self.facts.sent_at(index));
        let wanted = sent.filter(|(_, content)| self.stream.filter.matches(content));
        wanted.map(|(event, _)| event)
    }

    fn holds(&self, event: EventNo) -> bool {
        let mut messages = self.stream.messages.iter();
        messages.any(|message| self.is(message, event))
    }

    /// Whether the stream held an event before the message that is looked at.
    fn held(&self, event: EventNo) -> bool {
        let mut messages = self.stream.messages[..self.message].iter();
        messages.any(|message| self.is(message, event))
    }

    fn is(&self, message: &Message, event: EventNo) -> bool {
        let Message::Event(item) = message else {
            return false;
        };
        self.facts
            .item(*item)
            .sent
            .is_some_and(|(sent, _)| sent == event)
    }

    fn is_of_vanished(&self, cursor: CursorNo) -> bool {
        self.facts
            .history
            .items
            .iter()
            .any(|item| item.cursor == cursor)
    }

    fn wrong(&mut self, kind: Kind, event: Option<EventNo>) {
        let evidence = Evidence::Stream {
            stream: self.number,
            message: self.message,
            event,
        };
        self.violations.push(Violation { kind, evidence });
    }
}
