//! The run: a server that is killed again and again, and clients that take down what it does.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time,
};
use tonic::transport::Channel;

use super::{
    consumers::Consumer,
    content::{Content, Filter},
    record::{CursorNo, End, EventNo, History, Message, Moment, Span, Start, Stream},
    recorder::{Recorder, Records},
    senders::Sender,
    server::{Door, Home, Keeper},
    stream_senders::StreamSender,
    subscribers::{Subscriber, next},
};

/// How many clients of each kind there are.
const SENDERS: usize = 64;
const STREAM_SENDERS: usize = 3;
const SUBSCRIBERS: usize = 10;
const CONSUMERS: u32 = 4;

/// How much to do, and which luck to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) operations: u64,
}

impl Settings {
    /// From the environment: `VERDICT_HISTORY_SEED` and `VERDICT_HISTORY_OPERATIONS`.
    pub(crate) fn from_environment(operations: u64) -> Self {
        let number = |name| {
            let text = env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
            )
        };
        Self {
            seed: number("VERDICT_HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..)),
            operations: number("VERDICT_HISTORY_OPERATIONS").unwrap_or(operations),
        }
    }

    fn kills(&self) -> u64 {
        (self.operations / 10_000).clamp(5, 100)
    }
}

/// What all clients share.
pub(crate) struct World {
    pub(crate) seed: u64,
    /// How many operations there are to be.
    pub(crate) target: u64,
    pub(crate) recorder: Recorder,
    pub(crate) sources: Vec<verdict::source::Source>,
    pub(crate) url: String,
    pub(crate) door: watch::Receiver<Door>,
    /// The last cursor of the log, once nothing more is sent.
    end: watch::Receiver<Option<CursorNo>>,
    events: AtomicU32,
    operations: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) reconnects: AtomicU64,
}

impl World {
    /// Counts an operation, which begins now.
    pub(crate) fn begin(&self) -> Moment {
        self.operations.fetch_add(1, Relaxed);
        self.recorder.now()
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Relaxed)
    }

    /// Whether enough was done.
    pub(crate) fn is_done(&self) -> bool {
        self.operations() >= self.target
    }

    pub(crate) fn new_event(&self) -> EventNo {
        self.events.fetch_add(1, Relaxed)
    }

    pub(crate) fn newest_event(&self) -> EventNo {
        self.events.load(Relaxed).saturating_sub(1)
    }

    pub(crate) fn end(&self) -> Option<CursorNo> {
        *self.end.borrow()
    }

    /// A connection to the server, as soon as there is one.
    pub(crate) async fn channel(&self, connection: usize) -> Channel {
        let mut door = self.door.clone();
        let open = door.wait_for(Option::is_some).await;
        let open = open.expect("the keeper outlives the clients");
        let channels = open.as_ref().expect("waited for");
        channels[connection % channels.len()].clone()
    }

    /// Waits while subscribers are far ahead: reading must not leave the senders without a processor.
    pub(crate) async fn pace(&self) {
        const DELIVERIES_PER_OPERATION: u64 = 10;
        const AT_ONCE: u64 = 20_000;
        let allowed = || self.operations() * DELIVERIES_PER_OPERATION + AT_ONCE;
        while self.delivered.load(Relaxed) > allowed() && self.end().is_none() {
            time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn count_delivery(&self) {
        self.delivered.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_stall(&self) {
        self.stalls.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_reconnect(&self) {
        self.reconnects.fetch_add(1, Relaxed);
    }

    /// A stream that begins now, before anything is known of it.
    pub(crate) fn stream(&self, start: Start, filter: Filter) -> Stream {
        Stream {
            start,
            filter,
            stop_when_caught_up: false,
            span: Span {
                invoked: self.begin(),
                completed: 0,
            },
            opened: None,
            messages: Vec::new(),
            end: End::Done,
        }
    }

    /// Reads the whole log.
    async fn read_all(&self) -> Stream {
        let mut stream = self.stream(Start::Earliest, Filter::default());
        stream.stop_when_caught_up = true;
        let mut responses = self.open(&stream).await.expect("a server that runs");
        stream.opened = Some(self.recorder.now());
        while let Some(response) = next(&mut responses).await.expect("no fault") {
            stream.messages.push(self.recorder.message(response).0);
        }
        stream.span.completed = self.recorder.now();
        stream
    }
}

/// Does it all, and tells what happened.
pub(crate) async fn run(settings: Settings) -> (History, Arc<World>) {
    let mut rng = Rng::with_seed(settings.seed);
    let home = Arc::new(Home::new(&mut rng));
    let (door_sender, door) = watch::channel(None);
    let (end_sender, end) = watch::channel(None);
    let keeper = Keeper::start(Arc::clone(&home), door_sender, rng.fork()).await;
    let world = Arc::new(World {
        seed: settings.seed,
        target: settings.operations,
        recorder: Recorder::default(),
        sources: home.sources(),
        url: home.url(),
        door,
        end,
        events: AtomicU32::new(0),
        operations: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        stalls: AtomicU64::new(0),
        reconnects: AtomicU64::new(0),
    });
    let mut history = History::default();
    let empty = world.read_all().await;
    history.origin = caught_up(&empty);
    history.streams.push(empty);

    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        senders.spawn(Sender::new(Arc::clone(&world), rng.fork(), number).run());
    }
    for number in 0..STREAM_SENDERS {
        senders.spawn(StreamSender::new(Arc::clone(&world), rng.fork(), number).run());
    }
    let mut subscribers = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        subscribers.spawn(Subscriber::new(Arc::clone(&world), rng.fork()).run());
    }
    for number in 0..CONSUMERS {
        subscribers.spawn(Consumer::new(Arc::clone(&world), rng.fork(), number).run());
    }
    let keeper: JoinHandle<_> =
        tokio::spawn(keeper.kill_often(Arc::clone(&world), settings.kills()));

    history.add(senders.join_all().await);
    // The server must live until everything has been read.
    let (_keeper, downtimes) = keeper.await.expect("no panic");
    history.downtimes = downtimes;
    let all = world.read_all().await;
    end_sender.send_replace(caught_up(&all));
    history.add(subscribers.join_all().await);
    history.log = all.messages.iter().filter_map(Message::item).collect();
    history.streams.push(all);

    let events = 0..world.events.load(Relaxed);
    history.events = events
        .map(|event| Content::of(settings.seed, event))
        .collect();
    history.items = world.recorder.take_items();
    let errors = home.errors();
    assert!(
        !errors.contains("panicked"),
        "the server panicked: {errors}"
    );
    (history, world)
}

/// The cursor with which a stream had caught up.
fn caught_up(stream: &Stream) -> Option<CursorNo> {
    stream.messages.iter().find_map(|message| match message {
        Message::CaughtUp(cursor) => Some(*cursor),
        _ => None,
    })
}

impl Message {
    fn item(&self) -> Option<u32> {
        match self {
            Self::Event(item) => Some(*item),
            _ => None,
        }
    }
}

impl History {
    fn add(&mut self, clients: Vec<Records>) {
        for records in clients {
            let Records {
                ingests,
                reads,
                streams,
                commits,
            } = records;
            self.ingests.extend(ingests);
            self.reads.extend(reads);
            self.streams.extend(streams);
            self.commits.extend(commits);
        }
    }
}
