//! Forged webhooks, through the real `Ingest`. The table is in `attempts.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tonic::{Code, Status};
use verdict::{
    log::EventLog,
    proto::{
        IngestRequest, IngestStatus, ListQuarantinedRequest, ListSourcesRequest, OutcomeCounts,
        QuarantineReason, SourceInfo,
    },
    provider::{
        PROVIDERS, Provider, RawWebhook,
        signature::{Recipe, Scheme},
    },
    source::Source,
};

use super::{
    attempts::{Kind, is_timed, kinds},
    forger::Forger,
};
use crate::support::{
    Server, memory_log, other_secret, plain_source, real_now, reason, request, secret, secrets,
    server_config,
};

/// Fewer attempts than this would be a hole in the table.
const LEAST_ATTEMPTS: usize = 150;

/// Every scheme of every provider.
fn schemes() -> impl Iterator<Item = (&'static dyn Provider, &'static Scheme)> {
    let providers = PROVIDERS.iter().copied();
    providers.flat_map(|provider| {
        provider
            .schemes()
            .iter()
            .map(move |scheme| (provider, scheme))
    })
}

/// The account whose source accepts a scheme.
fn account(scheme: &Scheme) -> String {
    scheme.name.to_owned()
}

/// The account that accepts the same scheme with another secret.
fn other_account(scheme: &Scheme) -> String {
    format!("{}-other", scheme.name)
}

/// Two sources for each scheme, with a secret each.
fn sources(tolerance: Duration) -> Vec<Source> {
    let mut sources = Vec::new();
    for (provider, scheme) in schemes() {
        for (account, secret) in [
            (account(scheme), secret()),
            (other_account(scheme), other_secret()),
        ] {
            sources.push(Source {
                account,
                keyring: secrets(vec![secret]),
                tolerance,
                ..plain_source(provider, scheme.name)
            });
        }
    }
    sources
}

async fn start(log: &Arc<dyn EventLog>, tolerance_seconds: u64) -> Server {
    let sources = sources(Duration::from_secs(tolerance_seconds));
    Server::start_from(sources, server_config(), Arc::clone(log)).await
}

fn to_account(provider: &dyn Provider, account: &str, webhook: &RawWebhook) -> IngestRequest {
    IngestRequest {
        account: account.to_owned(),
        ..request(provider.name(), webhook)
    }
}

/// How the deliveries to each provider and account have ended.
type Counted = BTreeMap<(String, String), OutcomeCounts>;

async fn counted(server: &Server) -> Counted {
    let mut admin = server.admin.clone();
    let response = admin.list_sources(ListSourcesRequest {}).await;
    let sources = response.unwrap().into_inner().sources;
    let counts = |source: SourceInfo| {
        let counts = source.counts.expect("every source counts");
        ((source.provider, source.account), counts)
    };
    sources.into_iter().map(counts).collect()
}

/// One more delivery to a source that is not genuine, and nothing else.
fn count_refused(counted: &mut Counted, provider: &str, account: &str) {
    let source = (provider.to_owned(), account.to_owned());
    let counts = counted.get_mut(&source).expect("a source of the test");
    counts.signature_invalid += 1;
}

/// Everything that a caller can tell one refusal from another by.
fn face(status: &Status) -> (Code, String, String) {
    (status.code(), reason(status), status.message().to_owned())
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "how much was tried")]
async fn nothing_forged_gets_in() {
    let log = memory_log();
    let server = start(&log, 300).await;
    let mut faces = BTreeSet::new();
    let mut tried: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut expected = counted(&server).await;
    for (provider, scheme) in schemes() {
        let name = format!("{}/{}", provider.name(), scheme.name);
        let attempts = Forger::new(provider, scheme, real_now()).attempts();
        let of_kinds: BTreeSet<Kind> = attempts.iter().map(|attempt| attempt.kind).collect();
        assert_eq!(of_kinds, kinds(scheme), "{name}");
        for attempt in attempts {
            let account = match attempt.to_other_account {
                true => other_account(scheme),
                false => account(scheme),
            };
            let forged = to_account(provider, &account, &attempt.webhook);
            let status = match server.ingest(forged).await {
                Err(status) => status,
                Ok(answer) => panic!("{name} let in {attempt}: {answer:?}"),
            };
            faces.insert(format!("{:?}", face(&status)));
            assert_eq!(reason(&status), "SIGNATURE_INVALID", "{name}: {attempt}");
            count_refused(&mut expected, provider.name(), &account);
            assert_eq!(counted(&server).await, expected, "{name}: {attempt}");
            *tried.entry(attempt.kind).or_default() += 1;
        }
    }
    assert_eq!(faces.len(), 1, "the sender learns why: {faces:?}");
    assert_untouched(&server).await;

    let attempts: usize = tried.values().sum();
    println!("{attempts} forged webhooks refused: {tried:?}");
    assert!(attempts >= LEAST_ATTEMPTS);
}

/// Neither the log nor a quarantine holds anything.
async fn assert_untouched(server: &Server) {
    assert_eq!(server.log.tail().end().0, 0);
    for reason in [QuarantineReason::Unspecified, QuarantineReason::Unverified] {
        let request = ListQuarantinedRequest {
            reason: reason.into(),
            ..Default::default()
        };
        let listed = server.admin.clone().list_quarantined(request).await;
        assert_eq!(listed.unwrap().into_inner().quarantined.len(), 0);
    }
}

/// The table would be empty words if its server refused everything: what is harmlessly different is let in.
#[tokio::test]
async fn what_is_only_written_differently_gets_in() {
    let server = start(&memory_log(), 300).await;
    for (provider, scheme) in schemes() {
        let forger = Forger::new(provider, scheme, real_now());
        let mut expected = IngestStatus::Accepted;
        for (what, webhook) in forger.harmless() {
            let good = to_account(provider, &account(scheme), &webhook);
            let answer = server.ingest(good).await;
            let answer = answer.unwrap_or_else(|status| {
                panic!("{}/{}: {what}: {status}", provider.name(), scheme.name)
            });
            // All of them are the same event.
            assert_eq!(answer.status(), expected, "{}: {what}", scheme.name);
            expected = IngestStatus::Duplicate;
        }
    }
}

/// What a wiretapper has: a good delivery, byte for byte.
#[tokio::test]
async fn a_delivery_that_is_replayed_writes_nothing() {
    const MINUTE: i64 = 60;
    let log = memory_log();
    // Today, and half an hour ago: the server of then is one that takes for fresh what is half an hour old.
    let then = start(&log, 3600).await;
    let today = start(&log, 300).await;
    for (provider, scheme) in schemes() {
        let forger = Forger::new(provider, scheme, real_now());
        let webhook = forger.signed_at(-30 * MINUTE);
        let call = to_account(provider, &account(scheme), &webhook);
        let answer = then.ingest(call.clone()).await.unwrap();
        assert_eq!(answer.status(), IngestStatus::Accepted);

        let end = log.tail().end();
        let mut expected = counted(&today).await;
        match today.ingest(call).await {
            Err(status) => {
                assert!(is_timed(scheme), "{}: {status}", scheme.name);
                assert_eq!(reason(&status), "SIGNATURE_INVALID");
                count_refused(&mut expected, provider.name(), &account(scheme));
                assert_eq!(counted(&today).await, expected);
            }
            Ok(again) => {
                assert!(!is_timed(scheme), "{} is replayed", scheme.name);
                assert_eq!(again.status(), IngestStatus::Duplicate);
                assert_eq!(again.event_id, answer.event_id);
            }
        }
        assert_eq!(log.tail().end(), end, "{}", scheme.name);
    }
}

impl Forger {
    /// The good webhook, and the ways to write it that mean the same.
    fn harmless(&self) -> Vec<(String, RawWebhook)> {
        let mut same = vec![("as it is".to_owned(), self.good.clone())];
        let mut add = |what: String, webhook: RawWebhook| same.push((what, webhook));
        let (place, value, mac) = (self.place(), self.value(&self.good), self.mac(&self.good));
        let upper = mac.to_uppercase();
        add("hex in upper case".to_owned(), self.with_mac(&upper));
        let mut more = self.good.clone();
        more.headers.push("x-request-id", "1");
        more.headers.push("cookie", "a=b");
        add("further headers".to_owned(), more);
        match self.scheme.recipe {
            Recipe::Member { .. } => {
                let escaped = format!("\"\\u{:04x}{}\"", place.as_bytes()[0], &place[1..]);
                let value = format!("\"{value}\"");
                add(
                    "an escaped name".to_owned(),
                    self.with_member(&[(&escaped, &value)]),
                );
                let spaced =
                    self.with_member(&[(&format!(" \"{place}\" "), &format!(" {value} "))]);
                add("spaces around the member".to_owned(), spaced);
                return same;
            }
            Recipe::Body { prefixes, .. } => {
                for prefix in prefixes {
                    let value = format!("{prefix}{mac}");
                    add(value.clone(), self.with_value(&value));
                }
            }
            Recipe::TimestampedBody { .. } => {
                let (t, v1) = value.split_once(',').expect("a time and a signature");
                for value in [
                    format!("{v1},{t}"),
                    format!("{t}, {v1}"),
                    format!("{t},v0=of an older scheme,{v1}"),
                    format!("{t},v1={},{v1}", "0".repeat(mac.len())),
                ] {
                    add(value.clone(), self.with_value(&value));
                }
            }
        }
        for name in [place.to_uppercase(), place.replace("x-", "X-")] {
            add(name.clone(), self.with_name(&name));
        }
        let spaced = format!(" \t{value} ");
        add(
            "spaces around the value".to_owned(),
            self.with_value(&spaced),
        );
        same
    }
}
