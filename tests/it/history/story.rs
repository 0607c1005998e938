//! A server that keeps its promises, in a few lines: it tells histories with which nothing is wrong.

use verdict::proto::Outcome;

use super::{
    content::{Content, Filter, Source},
    record::{
        Answer, Commit, CommitAnswer, ConsumerNo, CursorNo, Downtime, End, EventNo, Failure,
        History, Ingest, Item, ItemNo, Message, Moment, Place, Read, Span, Start, Stream,
    },
};

/// The cursor of the place before the first event. That of an event is one more than its index.
pub(crate) const ORIGIN: CursorNo = 0;

/// A history while it happens. The index of an event in the log is the number of its item too.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) history: History,
    clock: Moment,
    /// By number of the stream: the place up to which it was served.
    served: Vec<usize>,
}

/// What an event says.
pub(crate) fn content(source: Source, verification: u32, occurred_at: Option<i64>) -> [Content; 2] {
    let content = |outcome| Content {
        source,
        verification: Some(verification),
        outcome,
        occurred_at,
    };
    [Outcome::Approved, Outcome::Rejected].map(content)
}

/// A change of a subject's record.
pub(crate) fn change() -> [Content; 2] {
    [Content {
        source: Source::Gu1,
        verification: None,
        outcome: Outcome::Unspecified,
        occurred_at: None,
    }; 2]
}

impl Story {
    pub(crate) fn new() -> Self {
        let mut story = Self::default();
        story.history.origin = Some(ORIGIN);
        story
    }

    fn now(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    /// What takes no time: nothing else happens meanwhile.
    fn span(&mut self) -> Span {
        Span {
            invoked: self.now(),
            completed: self.now(),
        }
    }

    pub(crate) fn event(&mut self, contents: [Content; 2]) -> EventNo {
        self.history.events.push(contents);
        self.history.events.len() as EventNo - 1
    }

    /// Delivers an event, which the log takes if it is new.
    pub(crate) fn ingest(&mut self, event: EventNo, variant: usize) {
        let span = self.span();
        let known = self.index(event);
        let index = known.unwrap_or_else(|| self.append(event, variant, span.completed));
        let place = Place {
            event_id: self.history.items[index].event_id,
            cursor: self.history.items[index].cursor,
        };
        let same = self.history.items[index].sent
            == Some((event, self.history.events[event as usize][variant]));
        let answer = match known {
            None => Answer::Accepted(place),
            Some(_) if same => Answer::Duplicate(place),
            Some(_) => Answer::Quarantined,
        };
        self.history.ingests.push(Ingest {
            event,
            variant,
            span,
            answer,
        });
    }

    /// A new event and its delivery.
    pub(crate) fn ingest_new(&mut self, contents: [Content; 2]) -> EventNo {
        let event = self.event(contents);
        self.ingest(event, 0);
        event
    }

    /// The server writes an event and is killed before it answers.
    pub(crate) fn ingest_and_kill(&mut self, event: EventNo) {
        let invoked = self.now();
        let killed = self.now();
        let span = Span {
            invoked,
            completed: self.now(),
        };
        let restarted = self.now();
        self.append(event, 0, Moment::MAX);
        self.history.downtimes.push(Downtime { killed, restarted });
        self.history.ingests.push(Ingest {
            event,
            variant: 0,
            span,
            answer: Answer::Failed(Failure::Unknown),
        });
    }

    fn append(&mut self, event: EventNo, variant: usize, first_seen: Moment) -> usize {
        let index = self.history.log.len();
        let content = self.history.events[event as usize][variant];
        let key = content.verification.map(|id| (content.source, id));
        let same = |item: &&Item| {
            let (_, other) = item.sent.expect("a story invents nothing");
            key.is_some() && other.verification.map(|id| (other.source, id)) == key
        };
        let earlier: Vec<&Item> = self.history.items.iter().filter(same).collect();
        let times = earlier.iter().filter_map(|item| item.sent?.1.occurred_at);
        let late = times.max().is_some_and(|latest| {
            content
                .occurred_at
                .is_some_and(|occurred_at| occurred_at < latest)
        });
        let item = Item {
            sent: Some((event, content)),
            event_id: 1000 + u128::from(event),
            cursor: index as CursorNo + 1,
            revision: key.map_or(0, |_| earlier.len() as u64 + 1),
            late,
            received_at: 10 * index as i64,
            digest: index as u64,
            first_seen,
        };
        self.history.items.push(item);
        self.history.log.push(index as ItemNo);
        index
    }

    fn index(&self, event: EventNo) -> Option<usize> {
        let mut items = self.history.items.iter();
        items.position(|item| item.sent.is_some_and(|(sent, _)| sent == event))
    }

    /// The cursor of an event of the log.
    pub(crate) fn cursor(&self, event: EventNo) -> CursorNo {
        self.index(event).expect("an event of the log") as CursorNo + 1
    }

    /// Opens a stream, and returns its number.
    pub(crate) fn open(&mut self, start: Start, filter: Filter) -> usize {
        let committed = |consumer| {
            let stored = |c: &&Commit| c.consumer == consumer && c.answer == CommitAnswer::Stored;
            self.history
                .commits
                .iter()
                .filter(stored)
                .map(|c| c.cursor)
                .max()
        };
        let place = match start {
            Start::Earliest => 0,
            Start::Latest => self.history.log.len(),
            Start::After(cursor) | Start::Resume(cursor) => cursor as usize,
            Start::Since(time) => (time as usize).div_ceil(10),
            Start::Committed(consumer) => committed(consumer).unwrap_or(ORIGIN) as usize,
        };
        self.served.push(place);
        let span = self.span();
        self.history.streams.push(Stream {
            start,
            filter,
            stop_when_caught_up: false,
            span,
            opened: Some(span.completed),
            messages: Vec::new(),
            end: End::Left,
        });
        self.history.streams.len() - 1
    }

    /// Sends a stream all that there is, and that it has caught up.
    pub(crate) fn serve(&mut self, stream: usize) {
        let end = self.history.log.len();
        let completed = self.now();
        let History { items, streams, .. } = &mut self.history;
        let stream_of = &mut streams[stream];
        for (number, item) in items.iter().enumerate().skip(self.served[stream]) {
            let (_, content) = item.sent.expect("a story invents nothing");
            if stream_of.filter.matches(&content) {
                stream_of.messages.push(Message::Event(number as ItemNo));
            }
        }
        stream_of.messages.push(Message::CaughtUp(end as CursorNo));
        self.served[stream] = end;
        stream_of.span.completed = completed;
    }

    /// A stream of all that there is.
    pub(crate) fn read(&mut self, start: Start, filter: Filter) -> usize {
        let stream = self.open(start, filter);
        self.serve(stream);
        stream
    }

    pub(crate) fn find(&mut self, event: EventNo) {
        let span = self.span();
        let found = Ok(self.index(event).map(|index| index as ItemNo));
        self.history.reads.push(Read { event, span, found });
    }

    pub(crate) fn commit(&mut self, consumer: ConsumerNo, cursor: CursorNo, answer: CommitAnswer) {
        let span = self.span();
        self.history.commits.push(Commit {
            consumer,
            cursor,
            span,
            answer,
        });
    }
}
