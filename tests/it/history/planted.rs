//! The checker must find what is planted into a history, and must name it.

use super::{
    checker::{Kind, check},
    content::{Content, Filter, Source},
    record::{Answer, CommitAnswer, End, Failure, History, Item, ItemNo, Message, Place, Start},
    story::{ORIGIN, Story, change, content},
};

/// The streams of the story, in its order.
const BEFORE_RESTART: usize = 0;
const RESUMED: usize = 1;
const FILTERED: usize = 2;
const COMMITTED: usize = 3;
const LATEST: usize = 4;
const SINCE: usize = 5;

/// The ingests of the story that something is done to.
const REDELIVERY: usize = 3;
const CONTRADICTION: usize = 6;

/// A history in which everything happens once: two providers with a verification of the same name, events out of order
/// and at the same time, a redelivery, a contradiction, a kill, and streams of all kinds.
fn story() -> History {
    let mut story = Story::new();
    let first = story.ingest_new(content(Source::Gu1, 1, Some(10)));
    let second = story.ingest_new(content(Source::Gu1, 1, Some(30)));
    let other = story.ingest_new(content(Source::Ralio, 1, Some(20)));
    story.ingest(second, 0);
    story.read(Start::Earliest, Filter::default());
    story.ingest_new(content(Source::Gu1, 1, Some(15)));
    story.ingest_new(content(Source::Ralio, 1, Some(20)));
    story.ingest(other, 1);
    story.commit(0, story.cursor(second), CommitAnswer::Stored);
    story.commit(0, story.cursor(first), CommitAnswer::Behind);
    story.commit(1, story.cursor(first), CommitAnswer::Stored);
    story.commit(1, story.cursor(second), CommitAnswer::Stored);

    let unanswered = story.event(change());
    story.ingest_and_kill(unanswered);
    story.ingest(unanswered, 0);
    story.read(Start::Resume(story.cursor(other)), Filter::default());
    let gu1 = Filter {
        source: Some(Source::Gu1),
        ..Filter::default()
    };
    let filtered = story.read(Start::Earliest, gu1);
    story.history.streams[filtered].stop_when_caught_up = true;
    story.history.streams[filtered].end = End::Done;
    story.read(Start::Committed(0), Filter::default());
    let latest = story.open(Start::Latest, Filter::default());
    story.serve(latest);
    story.ingest_new(change());
    story.serve(latest);
    story.read(Start::Since(15), Filter::default());
    story.find(other);
    // Nobody but the last reader sees these.
    story.ingest_new(change());
    story.ingest_new(change());
    story.history
}

/// Plants something, and asserts that it alone is found.
fn assert_found(kind: Kind, plant: impl FnOnce(&mut History)) {
    let mut history = story();
    plant(&mut history);
    let violations = check(&history);
    let mut kinds: Vec<Kind> = violations.iter().map(|violation| violation.kind).collect();
    kinds.dedup();
    assert_eq!(kinds, [kind], "{violations:?}");
}

fn messages(history: &mut History, stream: usize) -> &mut Vec<Message> {
    &mut history.streams[stream].messages
}

/// Something else that was read, which differs from an item.
fn add_item(history: &mut History, item: ItemNo, change: impl FnOnce(&mut Item)) -> ItemNo {
    let mut other = history.items[item as usize].clone();
    change(&mut other);
    history.items.push(other);
    history.items.len() as ItemNo - 1
}

fn place_of(history: &History, item: usize) -> Place {
    Place {
        event_id: history.items[item].event_id,
        cursor: history.items[item].cursor,
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(check(&story()), []);
    assert_eq!(check(&Story::new().history), []);
}

#[test]
fn a_lost_event_is_found() {
    assert_found(Kind::Lost, |history| {
        history.log.pop();
        history.items.pop();
    });
}

#[test]
fn a_wrong_answer_is_found() {
    assert_found(Kind::AcceptedAgain, |history| {
        let place = place_of(history, 1);
        history.ingests[REDELIVERY].answer = Answer::Accepted(place);
    });
    assert_found(Kind::DuplicateOfNothing, |history| {
        let first = &mut history.ingests[0];
        first.answer = Answer::Duplicate(first.answer.place().expect("an answer"));
    });
    assert_found(Kind::Misjudged, |history| {
        history.ingests[REDELIVERY].answer = Answer::Quarantined;
    });
    assert_found(Kind::Misjudged, |history| {
        history.ingests[REDELIVERY].answer = Answer::Ignored;
    });
    assert_found(Kind::DuplicateOfNothing, |history| {
        let place = place_of(history, 2);
        history.ingests[CONTRADICTION].answer = Answer::Duplicate(place);
    });
    assert_found(Kind::AcceptedAgain, |history| {
        let place = place_of(history, 2);
        history.ingests[CONTRADICTION].answer = Answer::Accepted(place);
    });
}

#[test]
fn an_answer_that_names_something_else_is_found() {
    assert_found(Kind::WrongPlace, |history| {
        let place = place_of(history, 0);
        history.ingests[REDELIVERY].answer = Answer::Duplicate(place);
    });
    assert_found(Kind::WrongPlace, |history| {
        let cursor = history.items[0].cursor;
        let place = place_of(history, 1);
        history.ingests[REDELIVERY].answer = Answer::Duplicate(Place { cursor, ..place });
    });
    assert_found(Kind::WrongPlace, |history| {
        history.reads[0].found = Ok(Some(0))
    });
    assert_found(Kind::ReadMissed, |history| {
        history.reads[0].found = Ok(None)
    });
}

#[test]
fn an_invented_event_is_found() {
    assert_found(Kind::Invented, |history| {
        let item = add_item(history, 0, |item| item.sent = None);
        history.log.push(item);
    });
    // Known, but never sent.
    assert_found(Kind::Invented, |history| {
        let event = history.events.len() as u32;
        history.events.push(change());
        let item = add_item(history, 5, |item| {
            item.sent = Some((event, change()[0]));
            item.cursor = 100;
        });
        history.log.push(item);
    });
    // Sent, but not with this content.
    assert_found(Kind::Invented, |history| {
        let (event, content) = history.items[8].sent.expect("an event");
        let occurred_at = Some(1);
        history.items[8].sent = Some((
            event,
            Content {
                occurred_at,
                ..content
            },
        ));
        // The sender was told nothing.
        history.ingests.last_mut().expect("the last event").answer =
            Answer::Failed(Failure::Unknown);
        history.downtimes[0].restarted = u64::MAX;
    });
}

#[test]
fn a_log_that_cannot_have_come_about_is_found() {
    assert_found(Kind::RepeatedInLog, |history| history.log.push(5));
    assert_found(Kind::RevisionHole, |history| history.items[4].revision += 1);
    assert_found(Kind::RevisionHole, |history| history.items[5].revision += 1);
    assert_found(Kind::WrongLate, |history| history.items[3].late = false);
    assert_found(Kind::WrongLate, |history| history.items[4].late = true);
    // The last two events, each acknowledged before the next was sent, lie the other way round.
    assert_found(Kind::OutOfOrder, |history| {
        let ingests = history.ingests.len();
        history.items.swap(7, 8);
        history.items[7].cursor = 8;
        history.items[8].cursor = 9;
        for (ingest, item) in [(ingests - 2, 8), (ingests - 1, 7)] {
            let place = place_of(history, item);
            history.ingests[ingest].answer = Answer::Accepted(place);
        }
    });
}

#[test]
fn an_event_that_does_not_stay_as_it_was_is_found() {
    assert_found(Kind::Vanished, |history| {
        let event = history.events.len() as u32;
        history.events.push(change());
        let item = add_item(history, 5, |item| {
            item.sent = Some((event, change()[0]));
            item.cursor = 100;
        });
        messages(history, BEFORE_RESTART).insert(3, Message::Event(item));
    });
    assert_found(Kind::Changed, |history| {
        let item = add_item(history, 1, |item| item.digest = 1000);
        messages(history, BEFORE_RESTART)[1] = Message::Event(item);
    });
    // The second and the third event lay the other way round before the restart.
    assert_found(Kind::Moved, |history| {
        let second = add_item(history, 2, |item| item.cursor = 2);
        let third = add_item(history, 1, |item| item.cursor = 3);
        messages(history, BEFORE_RESTART)[1] = Message::Event(second);
        messages(history, BEFORE_RESTART)[2] = Message::Event(third);
    });
}

#[test]
fn a_stream_out_of_order_is_found() {
    assert_found(Kind::Repeated, |history| {
        let again = messages(history, BEFORE_RESTART)[1];
        messages(history, BEFORE_RESTART).insert(3, again);
    });
    assert_found(Kind::Reordered, |history| {
        messages(history, RESUMED).swap(0, 1)
    });
    assert_found(Kind::Reordered, |history| {
        messages(history, BEFORE_RESTART).swap(1, 2);
    });
    assert_found(Kind::CursorBehind, |history| {
        messages(history, BEFORE_RESTART).push(Message::Sign(1));
    });
    assert_found(Kind::UnknownCursor, |history| {
        messages(history, BEFORE_RESTART).push(Message::Sign(1000));
    });
}

#[test]
fn a_stream_with_a_gap_is_found() {
    for stream in [BEFORE_RESTART, LATEST, SINCE] {
        assert_found(Kind::Gap, |history| {
            messages(history, stream).remove(1);
        });
    }
    assert_found(Kind::Gap, |history| {
        messages(history, BEFORE_RESTART).remove(0);
    });
    assert_found(Kind::GapAfterReconnect, |history| {
        messages(history, RESUMED).remove(0);
    });
    assert_found(Kind::FilterMissed, |history| {
        messages(history, FILTERED).remove(1);
    });
    // A heartbeat with a cursor that leads over what was not sent.
    assert_found(Kind::Gap, |history| {
        messages(history, BEFORE_RESTART)[2] = Message::Sign(3);
    });
}

#[test]
fn a_stream_with_more_than_was_asked_for_is_found() {
    assert_found(Kind::FilterLeaked, |history| {
        messages(history, FILTERED).insert(2, Message::Event(2));
    });
    for stream in [RESUMED, LATEST, SINCE] {
        assert_found(Kind::BeforeStart, |history| {
            messages(history, stream).insert(0, Message::Event(0));
        });
    }
}

#[test]
fn a_stream_that_has_caught_up_too_early_is_found() {
    assert_found(Kind::CaughtUpEarly, |history| {
        messages(history, BEFORE_RESTART).insert(2, Message::CaughtUp(2));
    });
    assert_found(Kind::CaughtUpEarly, |history| {
        messages(history, FILTERED).truncate(2);
        messages(history, FILTERED).push(Message::CaughtUp(2));
    });
}

#[test]
fn a_stream_that_ends_wrongly_is_found() {
    assert_found(Kind::EndedUnasked, |history| {
        history.streams[RESUMED].end = End::Done
    });
    assert_found(Kind::NotStopped, |history| {
        messages(history, FILTERED).push(Message::Sign(6));
    });
    let refused = Failure::Refused(tonic::Code::OutOfRange);
    for (kind, failure) in [(Kind::Refused, refused), (Kind::Hung, Failure::Hung)] {
        assert_found(kind, |history| {
            history.streams[RESUMED].end = End::Failed(failure);
        });
    }
    assert_found(Kind::FailedWithoutFault, |history| {
        history.downtimes.clear()
    });
}

#[test]
fn a_lost_commit_is_found() {
    assert_found(Kind::CommitIgnored, |history| {
        messages(history, COMMITTED).insert(0, Message::Event(1));
    });
    assert_found(Kind::CommitIgnored, |history| {
        messages(history, COMMITTED).remove(0);
    });
    assert_found(Kind::CommitMovedBack, |history| {
        history.commits[1].answer = CommitAnswer::Stored;
    });
    assert_found(Kind::CommitRefused, |history| {
        history.commits[3].answer = CommitAnswer::Behind;
    });
}

/// Whether a commit or a delivery took effect when the server was killed is open, and both are right.
#[test]
fn what_was_in_flight_may_have_happened_or_not() {
    let told = |committed_at| {
        let mut story = Story::new();
        let first = story.ingest_new(change());
        story.ingest_new(change());
        let killed = story.event(change());
        story.ingest_and_kill(killed);
        let cursor = story.cursor(first);
        story.commit(0, cursor, CommitAnswer::Failed(Failure::Unknown));
        story.history.commits[0].span = story.history.ingests[2].span;
        story
            .history
            .commits
            .insert(0, story.history.commits[0].clone());
        story.history.commits[0].answer = CommitAnswer::Stored;
        story.history.commits[0].cursor = committed_at;
        let stream = story.read(Start::Committed(0), Filter::default());
        story.history.commits.remove(0);
        (story.history, stream)
    };
    for committed_at in [ORIGIN, 1] {
        assert_eq!(check(&told(committed_at).0), []);
    }
    let (mut history, stream) = told(ORIGIN);
    messages(&mut history, stream).remove(0);
    messages(&mut history, stream).remove(0);
    assert_eq!(check(&history)[0].kind, Kind::CommitIgnored);

    // The event that nobody acknowledged need not be in the log.
    let (mut history, _) = told(1);
    history.streams.clear();
    history.log.pop();
    history.items.pop();
    assert_eq!(check(&history), []);
}
