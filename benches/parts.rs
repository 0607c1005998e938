//! The pure parts of the way of a webhook, on the fixtures of each provider that become events.
//!
//! Beside criterion's times there is a table of ratios: what [`Source::verify`] and [`Source::normalize`] cost next to the
//! *floor*, which is the HMAC over what is signed and one `serde_json` parse into the very struct that the adapter reads the
//! body into. Nobody who proves and understands a webhook can do less. Times of a shared machine say little, and a ratio
//! whose two sides are measured in turn says what is ours.
//!
//! Each fixture is measured as its provider would send it to a source that accepts the one scheme and has the one secret
//! that prove it. Opening Kayle's JWEs takes a hundred times as long as everything here, and is left out.

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha1::Sha1;
use sha2::Sha256;
use verdict::{
    config::{self, Variables},
    event, http_file,
    ingest::{self, Receipt},
    keyring::{Keyring, Keys},
    log::{NewEvent, Origin},
    marks::{self, Marks},
    provider::{
        Normalized, NormalizedEvent, PROVIDERS, RawWebhook, VerifiedWebhook, fractal, fyatu, gu1,
        jwe, kayle, ralio,
        signature::{Hash, Recipe},
    },
    source::Source,
};

/// The moment of all fixtures.
const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

/// How often the two sides of a ratio are measured in turn, and how often they take all of their webhooks each time.
const ROUNDS: usize = 301;
const PASSES: usize = 10;

/// Webhooks that are signed in the same way.
struct Group {
    provider: &'static str,
    scheme: &'static str,
    cases: Vec<Case>,
}

/// A webhook that becomes an event.
struct Case {
    /// Accepts the scheme and has the secret that prove it.
    source: Source,
    webhook: RawWebhook,
    /// The webhook when it is proved genuine and opened.
    verified: VerifiedWebhook,
    /// What the signature covers, as far as it lies in the payload.
    signed: Bytes,
}

impl Case {
    /// `None` for a webhook that becomes no event.
    fn new(provider: &str, webhook: RawWebhook) -> Option<Self> {
        let mut source = source(provider);
        let verified = source.verify(webhook.clone(), NOW).expect("it is genuine");
        let keys = source.keys();
        let mut secrets = keys.secrets.iter();
        let secret = secrets.find(|secret| secret.id() == verified.secret_id());
        source.schemes = vec![verified.scheme()];
        source.keyring = Keyring::from(Keys {
            secrets: secret.cloned().into_iter().collect(),
            ..Keys::default()
        });
        let verified = match source.is_encrypted(&verified) {
            true => {
                let opened = jwe::decrypt(verified.content(), &keys.decryption_keys, NOW);
                verified.with_decrypted(opened.ok()?.into())
            }
            false => verified,
        };
        let Ok(Normalized::Event(_)) = source.normalize(&verified) else {
            return None;
        };
        Some(Self {
            signed: signed(&verified),
            source,
            webhook,
            verified,
        })
    }

    fn verify(&self, webhook: RawWebhook) -> VerifiedWebhook {
        self.source.verify(webhook, NOW).expect("it is genuine")
    }

    fn normalize(&self) -> Box<NormalizedEvent> {
        match self.source.normalize(&self.verified) {
            Ok(Normalized::Event(normalized)) => normalized,
            _ => panic!("it became an event before"),
        }
    }

    fn complete(&self, normalized: NormalizedEvent) -> NewEvent {
        let receipt = Receipt {
            received_at: ingest::proto_timestamp(NOW),
            trace: None,
            origin: Origin::Received,
        };
        ingest::complete(&self.source, &self.verified, normalized, receipt)
    }

    fn event(&self) -> NewEvent {
        self.complete(*self.normalize())
    }

    /// What nobody can do without: the MAC of what is signed, and the body as the adapter reads it. The webhook is dropped, as
    /// it is behind [`Case::verify`].
    fn floor(&self, _: RawWebhook) {
        let scheme = self.verified.scheme();
        match scheme.hash {
            Hash::Sha1 => black_box(mac::<Hmac<Sha1>>(&self.signed)),
            Hash::Sha256 => black_box(mac::<Hmac<Sha256>>(&self.signed)),
        };
        let body = self.verified.content();
        match (self.source.provider.name(), scheme.name) {
            ("fractal", "kraken_sha256") => parse::<fractal::Kraken>(body),
            ("fractal", _) => parse::<fractal::Classic>(body),
            ("fyatu", _) => parse::<fyatu::Body>(body),
            ("gu1", _) => parse::<gu1::Body>(body),
            ("kayle", _) => parse::<kayle::Body>(body),
            ("ralio", _) => parse::<ralio::Body>(body),
            (provider, _) => panic!("what does the adapter of {provider} read?"),
        }
    }
}

/// What filters pass over events by.
fn marks_of(event: &NewEvent) -> Option<Marks> {
    marks::of_event(&event.encoded.event)
}

fn mac<M: Mac + KeyInit>(signed: &[u8]) -> bool {
    let mut mac = <M as KeyInit>::new_from_slice(b"a secret of 32 bytes, of no use.").unwrap();
    mac.update(signed);
    mac.verify_slice(b"no MAC").is_ok()
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) {
    black_box(serde_json::from_slice::<T>(body).is_ok());
}

/// The bytes of a payload that its signature covers.
fn signed(webhook: &VerifiedWebhook) -> Bytes {
    let payload = &webhook.raw().payload;
    let Recipe::Member { signed, .. } = webhook.scheme().recipe else {
        return payload.clone();
    };
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(payload).unwrap();
    payload.slice_ref(members[signed].get().as_bytes())
}

fn folder(provider: &str) -> PathBuf {
    Path::new("tests/fixtures").join(provider)
}

/// The source that a provider's fixtures belong to.
fn source(provider: &str) -> Source {
    let path = folder(provider).join("source.toml");
    let mut loaded = config::load(Some(&path), &Variables::new()).expect("a good configuration");
    loaded.sources.pop().expect("one source")
}

fn groups() -> Vec<Group> {
    let mut groups = BTreeMap::<_, Vec<Case>>::new();
    for name in PROVIDERS.iter().map(|provider| provider.name()) {
        let folder = fs::read_dir(folder(name)).expect("every provider has fixtures");
        let mut paths: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|found| found == "http"));
        for path in paths {
            let file = Bytes::from(fs::read(path).unwrap());
            let webhook = http_file::parse(&file).expect("fixtures are requests");
            if let Some(case) = Case::new(name, webhook) {
                let scheme = case.verified.scheme().name;
                groups.entry((name, scheme)).or_default().push(case);
            }
        }
    }
    let group = |((provider, scheme), cases)| Group {
        provider,
        scheme,
        cases,
    };
    groups.into_iter().map(group).collect()
}

impl Group {
    fn webhooks(&self) -> Vec<RawWebhook> {
        self.cases.iter().map(|case| case.webhook.clone()).collect()
    }

    fn bench(&self, criterion: &mut Criterion) {
        let name = format!("{}/{}", self.provider, self.scheme);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(self.cases.len() as u64));
        let cases = || self.cases.iter();
        let mut consuming = |name: &str, run: &dyn Fn(&Case, RawWebhook)| {
            let run_all = |webhooks: Vec<_>| {
                cases()
                    .zip(webhooks)
                    .for_each(|(case, webhook)| run(case, webhook));
            };
            group.bench_function(name, |bencher| {
                bencher.iter_batched(|| self.webhooks(), run_all, BatchSize::SmallInput);
            });
        };
        consuming("floor", &Case::floor);
        consuming("verify", &|case, webhook| {
            drop(black_box(case.verify(webhook)))
        });
        group.bench_function("normalize", |bencher| {
            bencher.iter(|| cases().for_each(|case| drop(black_box(case.normalize()))));
        });
        group.bench_function("key", |bencher| {
            let normalized: Vec<_> = cases().map(Case::normalize).collect();
            let id = |normalized: &NormalizedEvent| {
                black_box(event::event_id(self.provider, "default", &normalized.key));
            };
            bencher.iter(|| normalized.iter().for_each(|normalized| id(normalized)));
        });
        group.bench_function("encode", |bencher| {
            let complete = |normalized: Vec<Box<NormalizedEvent>>| {
                for (case, normalized) in cases().zip(normalized) {
                    black_box(case.complete(*normalized));
                }
            };
            let normalized = || cases().map(Case::normalize).collect();
            bencher.iter_batched(normalized, complete, BatchSize::SmallInput);
        });
        group.bench_function("marks", |bencher| {
            let events: Vec<_> = cases().map(Case::event).collect();
            bencher.iter(|| {
                for event in &events {
                    black_box(marks_of(event));
                }
            });
        });
        group.finish();
    }

    /// Nanoseconds for one webhook: the floor, and verify with normalize.
    fn measure(&self) -> (f64, f64) {
        let (mut floors, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floors.push(self.timed(Case::floor));
            ours.push(self.timed(|case, webhook| {
                black_box(case.verify(webhook));
                black_box(case.normalize());
            }));
        }
        let webhooks = (PASSES * self.cases.len()) as f64;
        let each = |times| median(times).as_nanos() as f64 / webhooks;
        (each(floors), each(ours))
    }

    fn timed(&self, run: impl Fn(&Case, RawWebhook)) -> Duration {
        let webhooks: Vec<_> = (0..PASSES).map(|_| self.webhooks()).collect();
        let start = Instant::now();
        for webhooks in webhooks {
            let cases = self.cases.iter().zip(webhooks);
            cases.for_each(|(case, webhook)| run(case, webhook));
        }
        start.elapsed()
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the table is what it is run for")]
fn print_ratios(groups: &[Group]) {
    println!("\n## Verifying and normalizing, next to the least that anybody can do\n");
    println!("provider | scheme         | floor    | verify + normalize | ratio");
    println!("---------|----------------|---------:|-------------------:|-----:");
    for group in groups {
        let (provider, scheme) = (group.provider, group.scheme);
        let (floor, ours) = group.measure();
        let ratio = ours / floor;
        println!("{provider:8} | {scheme:14} | {floor:5.0} ns | {ours:15.0} ns | {ratio:4.2}");
    }
}

/// One webhook's turn in a part, with what the part takes. What it makes is dropped in the part, and counted with it.
enum Work<'a> {
    Verify(&'a Case, RawWebhook),
    Normalize(&'a Case),
    Encode(&'a Case, Box<NormalizedEvent>),
    Marks(&'a NewEvent),
}

/// Takes the webhooks of each provider through one part after the other.
fn count_all(groups: &[Group]) {
    for provider in PROVIDERS.iter().map(|provider| provider.name()) {
        let groups = || groups.iter().filter(|group| group.provider == provider);
        let cases = || groups().flat_map(|group| &group.cases);
        let events: Vec<_> = cases().map(Case::event).collect();
        let verify = cases().map(|case| Work::Verify(case, case.webhook.clone()));
        let encode = cases().map(|case| Work::Encode(case, case.normalize()));
        count(provider, "verify", verify.collect());
        count(
            provider,
            "normalize",
            cases().map(Work::Normalize).collect(),
        );
        count(provider, "encode", encode.collect());
        count(provider, "marks", events.iter().map(Work::Marks).collect());
    }
}

/// Prints what was counted, and for how many webhooks. `scripts/instructions` reads it, and has callgrind write down its
/// count behind each call.
#[inline(never)]
#[expect(clippy::print_stdout, reason = "the script reads it")]
fn count(provider: &str, part: &str, work: Vec<Work<'_>>) {
    let webhooks = work.len();
    counted(work);
    println!("{provider} {part} {webhooks}");
}

/// The only function in which callgrind counts.
#[inline(never)]
fn counted(work: Vec<Work<'_>>) {
    for work in work {
        match work {
            Work::Verify(case, webhook) => drop(black_box(case.verify(webhook))),
            Work::Normalize(case) => drop(black_box(case.normalize())),
            Work::Encode(case, normalized) => drop(black_box(case.complete(*normalized))),
            Work::Marks(event) => {
                black_box(marks_of(event));
            }
        }
    }
}

fn main() {
    let groups = groups();
    if env::args().skip(1).eq(["count"]) {
        return count_all(&groups);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for group in &groups {
        group.bench(&mut criterion);
    }
    criterion.final_summary();
    print_ratios(&groups);
}
