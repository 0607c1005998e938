//! Stored deliveries, run through the current adapters again. An event that an earlier version would have made otherwise
//! is put into the log directly.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use tempfile::TempDir;
use tonic::{Status, Streaming};
use uuid::Uuid;
use verdict::{
    event,
    ingest::{self, proto_timestamp},
    log::{Appended, EventLog, NewEvent, Origin, Position},
    proto::{
        Delivery, Environment, EventFilter, Outcome, PersonalData, Reason, RenormalizeRequest,
        RenormalizeResponse, RenormalizeSummary, RenormalizedEvent, TraceContext, Verification,
        VerificationEvent, renormalize_response::Message, verification_event::Detail,
    },
    provider::{Normalized, RawWebhook, jwe},
    source::Source,
};

use crate::support::{
    Server, embedded_log, fixture, fixture_source, fixture_sources, from_earliest, gu1_body,
    memory_log, next_event, now, other_secret, reason, request, secrets, server_config, sign,
    with_first_key,
};

/// Stores a webhook as a version of verdict would have that read it in another way. Returns the event.
pub(crate) async fn store_misread(
    log: &Arc<dyn EventLog>,
    source: &Source,
    webhook: RawWebhook,
    misread: impl FnOnce(&mut VerificationEvent),
) -> VerificationEvent {
    let provider = source.provider.name();
    let received_at = Some(proto_timestamp(now()));
    let verified = source.verify(webhook.clone(), crate::support::real_now());
    let mut verified = verified.expect("a genuine webhook");
    if source.is_encrypted(&verified) {
        let content = source.decrypt(verified.content(), now()).expect("a key");
        verified = verified.with_decrypted(content);
    }
    let Normalized::Event(normalized) = source.normalize(&verified).expect("understood") else {
        panic!("ignored");
    };
    let id = event::event_id(provider, &source.account, &normalized.key);
    let mut event = ingest::describe(source, &verified, id, normalized.event);
    event.received_at = received_at;
    event.normalizer_version = "0.0.1".to_owned();
    event.trace = Some(TraceContext {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        tracestate: String::new(),
    });
    misread(&mut event);
    let delivery = Delivery {
        provider: provider.to_owned(),
        account: source.account.clone(),
        received_at,
        payload: webhook.payload.clone(),
        headers: request(provider, &webhook).headers,
        signature_scheme: verified.scheme().name.to_owned(),
        secret_id: verified.secret_id().to_owned(),
    };
    append(log, event.clone(), delivery.encode_to_vec().into()).await;
    event
}

async fn append(log: &Arc<dyn EventLog>, event: VerificationEvent, delivery: Bytes) {
    let appended = log.append(NewEvent {
        event_id: Uuid::parse_str(&event.event_id).unwrap(),
        content_sha256: [7; 32],
        verification: event::verification_key(&event),
        subject: [0; 32],
        occurred_at: event.occurred_at,
        received_at: event.received_at.unwrap(),
        origin: Origin::Received,
        encoded: event::encode(event),
        delivery,
    });
    assert!(matches!(appended.await.unwrap(), Appended::New(_)));
}

fn verification(event: &mut VerificationEvent) -> &mut Verification {
    match &mut event.detail {
        Some(Detail::Verification(verification)) => verification,
        _ => panic!("not a verification"),
    }
}

/// A rejection of gu1, with a name in it.
fn rejected() -> RawWebhook {
    let gu1 = fixture_source("gu1");
    sign(&gu1, gu1.provider.samples()[0].body)
}

async fn start(
    server: &Server,
    request: RenormalizeRequest,
) -> Result<Streaming<RenormalizeResponse>, Status> {
    let stream = server.admin.clone().renormalize(request).await;
    stream.map(tonic::Response::into_inner)
}

/// What is found from start to end.
async fn renormalize(
    server: &Server,
    request: RenormalizeRequest,
) -> (Vec<RenormalizedEvent>, RenormalizeSummary) {
    let mut stream = start(server, request).await.unwrap();
    let mut changed = Vec::new();
    loop {
        let response = stream.message().await.unwrap().unwrap();
        match response.message.unwrap() {
            Message::Changed(event) => changed.push(event),
            Message::Summary(summary) => {
                assert!(stream.message().await.unwrap().is_none());
                return (changed, summary);
            }
        }
    }
}

fn dry_run() -> RenormalizeRequest {
    RenormalizeRequest {
        dry_run: true,
        filter: None,
    }
}

fn for_real() -> RenormalizeRequest {
    RenormalizeRequest::default()
}

fn changes(event: &RenormalizedEvent) -> Vec<(&str, &str, &str)> {
    let changes = event.changes.iter();
    changes
        .map(|change| (&*change.field, &*change.before, &*change.after))
        .collect()
}

async fn serve(log: &Arc<dyn EventLog>) -> Server {
    Server::start_with(server_config(), Arc::clone(log)).await
}

#[tokio::test]
async fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let log = memory_log();
    let server = serve(&log).await;
    server.accept("1").await;
    let gu1 = fixture_source("gu1");
    let stored = store_misread(&log, &gu1, rejected(), |event| {
        event.subject.as_mut().unwrap().external_id.clear();
        event.personal_data = Some(PersonalData {
            full_name: "Max Mustermann".to_owned(),
            ..Default::default()
        });
        let verification = verification(event);
        verification.outcome = Outcome::Approved.into();
        verification.level = "invented".to_owned();
        verification.reasons.push(Reason::default());
    });
    let stored = stored.await;
    server.accept("2").await;

    let (changed, summary) = renormalize(&server, dry_run()).await;
    let expected = RenormalizeSummary {
        examined: 3,
        unchanged: 2,
        changed: 1,
        ..Default::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(changed.len(), 1);
    let event = &changed[0];
    assert_eq!(event.event_id, stored.event_id);
    assert_eq!(event.provider, "gu1");
    assert_eq!(event.corrected_event_id, "");
    assert_eq!(event.no_longer_an_event, "");
    assert_eq!(
        changes(event),
        [
            ("subject.external_id", "", r#""customer-1""#),
            ("verification.level", r#""invented""#, ""),
            (
                "verification.outcome",
                r#""OUTCOME_APPROVED""#,
                r#""OUTCOME_REJECTED""#
            ),
            ("verification.reasons[1]", "{}", ""),
            ("personal_data", "(not shown)", "(not shown)"),
        ]
    );
    assert_eq!(log.tail().end(), Position(3));
}

#[tokio::test]
async fn a_corrected_event_names_what_it_corrects_and_is_appended_once() {
    let log = memory_log();
    let server = serve(&log).await;
    let gu1 = fixture_source("gu1");
    let misread = |event: &mut VerificationEvent| {
        verification(event).outcome = Outcome::Approved.into();
    };
    let stored = store_misread(&log, &gu1, rejected(), misread).await;

    let (changed, summary) = renormalize(&server, for_real()).await;
    let expected = RenormalizeSummary {
        examined: 1,
        changed: 1,
        appended: 1,
        ..Default::default()
    };
    assert_eq!(summary, expected);
    let mut stream = server.subscribe(from_earliest()).await;
    next_event(&mut stream).await;
    let corrected = next_event(&mut stream).await;
    assert_eq!(corrected.event_id, changed[0].corrected_event_id);
    assert_ne!(corrected.event_id, stored.event_id);
    let mut right = VerificationEvent {
        event_id: corrected.event_id.clone(),
        corrects_event_id: stored.event_id.clone(),
        normalizer_version: event::NORMALIZER_VERSION.to_owned(),
        revision: 2,
        personal_data: None,
        ..stored.clone()
    };
    verification(&mut right).outcome = Outcome::Rejected.into();
    assert_eq!(corrected, right);
    let delivery = log.delivery(Position(2)).await.unwrap();
    assert_eq!(delivery, log.delivery(Position(1)).await.unwrap());
    let whole = log
        .read(Position(1), verdict::subscription::READ_LIMIT)
        .await
        .unwrap();
    let personal_data = log.personal_data(&whole[0]).await.unwrap();
    let whole = VerificationEvent::decode(event::merge(&whole[0].event, &personal_data)).unwrap();
    assert_eq!(whole.personal_data, stored.personal_data);

    // Again: as it was corrected, it is what it would be today.
    let (again, summary) = renormalize(&server, for_real()).await;
    assert_eq!(again, []);
    let expected = RenormalizeSummary {
        examined: 2,
        unchanged: 1,
        corrections: 1,
        ..Default::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(log.tail().end(), Position(2));
}

#[tokio::test]
async fn a_wrong_correction_is_corrected_and_one_that_was_right_can_be_made_again() {
    let log = memory_log();
    let server = serve(&log).await;
    let gu1 = fixture_source("gu1");
    let stored = store_misread(&log, &gu1, rejected(), |_| {}).await;
    let delivery = log.delivery(Position(1)).await.unwrap().unwrap();
    // A bad version has "corrected" what was right, twice, with a good one in between.
    for (id, position) in [(1001, 2), (1002, 4)] {
        let mut wrong = VerificationEvent {
            event_id: Uuid::from_u128(id).to_string(),
            corrects_event_id: stored.event_id.clone(),
            ..stored.clone()
        };
        verification(&mut wrong).outcome = Outcome::Waived.into();
        append(&log, wrong, delivery.clone()).await;
        assert_eq!(log.tail().end(), Position(position));
        let (changed, summary) = renormalize(&server, for_real()).await;
        let expected = [(
            "verification.outcome",
            "\"OUTCOME_WAIVED\"",
            "\"OUTCOME_REJECTED\"",
        )];
        assert_eq!(changes(&changed[0]), expected);
        assert_eq!(summary.appended, 1);
        assert_eq!(log.tail().end(), Position(position + 1));
        let (_, summary) = renormalize(&server, for_real()).await;
        assert_eq!((summary.unchanged, summary.changed), (1, 0));
    }
}

#[tokio::test]
async fn what_no_adapter_decides_on_is_no_difference() {
    let log = memory_log();
    let gone = Source {
        keyring: secrets(vec![other_secret()]),
        environment: Environment::Sandbox,
        ..fixture_source("gu1")
    };
    let webhook = sign(&gone, gu1_body("1"));
    // Another secret, another environment in the configuration, another version, its own time and trace.
    store_misread(&log, &gone, webhook, |_| {}).await;
    let server = serve(&log).await;
    let (changed, summary) = renormalize(&server, dry_run()).await;
    assert_eq!(changed, []);
    assert_eq!((summary.examined, summary.unchanged), (1, 1));
}

#[tokio::test]
async fn an_event_that_would_have_another_id_is_told_and_corrected_once() {
    let log = memory_log();
    let gu1 = fixture_source("gu1");
    let old_id = Uuid::from_u128(1).to_string();
    store_misread(&log, &gu1, rejected(), |event| {
        event.event_id.clone_from(&old_id);
    })
    .await;
    let server = serve(&log).await;
    let (changed, summary) = renormalize(&server, for_real()).await;
    assert_eq!(changed[0].event_id, old_id);
    let changes = changes(&changed[0]);
    assert_eq!((changes.len(), changes[0].0), (1, "event_id"));
    assert_eq!((summary.appended, log.tail().end()), (1, Position(2)));
    let (_, summary) = renormalize(&server, for_real()).await;
    assert_eq!((summary.unchanged, log.tail().end()), (1, Position(2)));
}

#[tokio::test]
async fn what_would_be_no_event_today_is_told_and_left_as_it_is() {
    let log = memory_log();
    let gu1 = fixture_source("gu1");
    let today = |case| fixture("gu1", case);
    for (number, case) in [(1, "unknown_event"), (2, "alert")] {
        let webhook = today(case);
        let delivery = Delivery {
            provider: "gu1".to_owned(),
            account: "default".to_owned(),
            received_at: Some(proto_timestamp(now())),
            headers: request("gu1", &webhook).headers,
            payload: webhook.payload,
            signature_scheme: gu1.schemes[0].name.to_owned(),
            secret_id: String::new(),
        };
        let event = VerificationEvent {
            event_id: Uuid::from_u128(number).to_string(),
            received_at: Some(proto_timestamp(now())),
            ..Default::default()
        };
        append(&log, event, delivery.encode_to_vec().into()).await;
    }
    let server = serve(&log).await;
    let (changed, summary) = renormalize(&server, for_real()).await;
    let why: Vec<&str> = changed.iter().map(|one| &*one.no_longer_an_event).collect();
    assert_eq!(
        why,
        [
            "event type kyc.validation_teleported is not known",
            "it is known, but not about verification"
        ]
    );
    assert!(changed.iter().all(|one| one.changes.is_empty()));
    let expected = RenormalizeSummary {
        examined: 2,
        changed: 2,
        ..Default::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(log.tail().end(), Position(2));
}

#[tokio::test]
async fn what_cannot_be_read_any_more_is_counted() {
    let log = memory_log();
    let kayle = fixture_source("kayle");
    let encrypted = |key: usize, id: &str| {
        let body = format!(
            r#"{{"type":"verification.session.expired","metadata":{{"contract_version":3,"event_id":"{id}","verification_session_id":"vs_a"}},"data":{{}}}}"#
        );
        let jwe = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[key]).unwrap();
        sign(&kayle, jwe)
    };
    let misread = |event: &mut VerificationEvent| {
        verification(event).outcome = Outcome::Approved.into();
    };
    store_misread(&log, &kayle, encrypted(0, "evt_a"), misread).await;
    store_misread(&log, &kayle, encrypted(1, "evt_b"), misread).await;
    let gone = Source {
        account: "gone".to_owned(),
        ..fixture_source("gu1")
    };
    store_misread(&log, &gone, rejected(), misread).await;
    let mut sources = fixture_sources();
    for source in &mut sources {
        source.keyring = with_first_key(source);
    }
    let server = Server::start_from(sources, server_config(), Arc::clone(&log)).await;
    let (changed, summary) = renormalize(&server, dry_run()).await;
    let expected = RenormalizeSummary {
        examined: 3,
        changed: 1,
        without_delivery: 2,
        ..Default::default()
    };
    assert_eq!(summary, expected);
    assert_eq!(changed[0].provider, "kayle");
}

#[tokio::test]
async fn only_the_events_of_the_filter_are_looked_at() {
    let log = memory_log();
    let server = serve(&log).await;
    let gu1 = fixture_source("gu1");
    server.accept("1").await;
    store_misread(&log, &gu1, rejected(), |event| {
        verification(event).outcome = Outcome::Expired.into();
    })
    .await;
    let of = |outcomes: Vec<i32>| RenormalizeRequest {
        dry_run: true,
        filter: Some(EventFilter {
            outcomes,
            ..Default::default()
        }),
    };
    // The stored outcome counts.
    for (outcome, examined, changed) in [
        (Outcome::Expired, 1, 1),
        (Outcome::Approved, 1, 0),
        (Outcome::Rejected, 0, 0),
    ] {
        let (_, summary) = renormalize(&server, of(vec![outcome.into()])).await;
        assert_eq!((summary.examined, summary.changed), (examined, changed));
    }
    let nonsense = start(&server, of(vec![99])).await.unwrap_err();
    assert_eq!(reason(&nonsense), "INVALID_REQUEST");
}

/// Changes one byte of a file of events that holds a text, in the text.
fn damage(directory: &Path, text: &str) {
    let mut damaged = 0;
    for file in fs::read_dir(directory.join("events")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(text.len())
            .position(|at| at == text.as_bytes());
        if let Some(at) = found {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
}

#[tokio::test]
async fn what_is_damaged_is_counted_and_passed_over() {
    let directory = TempDir::new().unwrap();
    let log = embedded_log(&directory);
    let gu1 = fixture_source("gu1");
    for level in ["first one", "second one", "third one"] {
        let webhook = sign(&gu1, gu1_body(level));
        store_misread(&log, &gu1, webhook, |event| {
            verification(event).level = level.to_owned();
        })
        .await;
    }
    let server = serve(&log).await;
    damage(directory.path(), "second one");
    let (changed, summary) = renormalize(&server, dry_run()).await;
    let levels: Vec<&str> = changed.iter().map(|event| changes(event)[0].1).collect();
    // What lies before it is read. The log may not find what lies close behind it, but says so of each.
    assert_eq!(levels[0], r#""first one""#);
    assert!(summary.damaged > 0, "{summary:?}");
    assert_eq!(
        (summary.examined, summary.changed),
        (3, changed.len() as u64)
    );
    assert_eq!(summary.examined, summary.changed + summary.damaged);
}

#[tokio::test]
async fn an_empty_log_ends_at_once() {
    let server = Server::start().await;
    let (changed, summary) = renormalize(&server, for_real()).await;
    assert_eq!((changed, summary), Default::default());
}

#[tokio::test]
async fn a_walk_waits_for_its_reader_and_ends_when_the_server_does() {
    const EVENTS: usize = 1_000;
    let log = memory_log();
    let gu1 = fixture_source("gu1");
    for number in 0..EVENTS {
        let webhook = sign(&gu1, gu1_body(&number.to_string()));
        // Together more than any buffer on the way holds.
        store_misread(&log, &gu1, webhook, |event| {
            verification(event).level = "x".repeat(16 << 10);
        })
        .await;
    }
    let server = serve(&log).await;
    let mut stream = start(&server, dry_run()).await.unwrap();
    let mut changed = 0;
    let ended = loop {
        match stream.message().await {
            Ok(response) => {
                let message = response.and_then(|response| response.message);
                assert!(
                    matches!(message, Some(Message::Changed(_))),
                    "it was not held up"
                );
                changed += 1;
                server.begin_stop();
            }
            Err(ended) => break ended,
        }
    };
    assert_eq!(reason(&ended), "DRAINING");
    assert!((1..EVENTS).contains(&changed), "{changed}");
}
