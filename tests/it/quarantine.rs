//! The two quarantines from outside: what comes in, what is listed, and the two ways out.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use prost::Message;
use tonic::Status;
use tonic_types::StatusExt;
use uuid::Uuid;
use verdict::{
    ingest::proto_timestamp,
    log::{EventLog, NewQuarantined, QuarantineKind},
    proto::{
        Delivery, DiscardQuarantinedRequest, GetDeliveryRequest, GetEventRequest, Header,
        IngestStatus, ListQuarantinedRequest, ListSourcesRequest, QuarantineFilter,
        QuarantineReason, QuarantinedDelivery, RedriveRequest, RedriveResponse, RedrivenDelivery,
        VerificationEvent, discard_quarantined_request::Target as Discard,
        get_delivery_request::Target as Get, redrive_request::Target as Redrive,
    },
    provider::{RawWebhook, jwe},
    source::Source,
};

use crate::support::{
    Server, embedded_log, fixture, fixture_source, fixture_sources, gu1_body, gu1_request,
    memory_log, other_secret, real_now, reason, request, secrets, server_config, sign,
    with_first_key,
};
use crate::troubled_log::TroubledLog;

/// The sources of all fixtures, all of which keep what is not genuine.
pub(crate) fn keeping() -> Vec<Source> {
    let keep = |source| Source {
        keep_unverified: true,
        ..source
    };
    fixture_sources().into_iter().map(keep).collect()
}

/// The same, with one of them changed.
fn keeping_but(provider: &str, change: impl Fn(&mut Source)) -> Vec<Source> {
    let mut sources = keeping();
    let changed = sources
        .iter_mut()
        .find(|source| source.provider.name() == provider);
    change(changed.unwrap());
    sources
}

async fn serve(sources: Vec<Source>, log: &Arc<dyn EventLog>) -> Server {
    Server::start_from(sources, server_config(), Arc::clone(log)).await
}

async fn list(server: &Server, filter: QuarantineFilter) -> Vec<QuarantinedDelivery> {
    let request = ListQuarantinedRequest {
        provider: filter.provider,
        account: filter.account,
        reason: filter.reason,
        page_size: 1000,
        ..Default::default()
    };
    let page = server.admin.clone().list_quarantined(request).await;
    page.unwrap().into_inner().quarantined
}

fn of_reason(reason: QuarantineReason) -> QuarantineFilter {
    QuarantineFilter {
        reason: reason.into(),
        ..Default::default()
    }
}

fn unverified() -> QuarantineFilter {
    of_reason(QuarantineReason::Unverified)
}

async fn genuine_and_unverified(server: &Server) -> (usize, usize) {
    let genuine = list(server, QuarantineFilter::default()).await.len();
    (genuine, list(server, unverified()).await.len())
}

async fn redrive_page(server: &Server, request: RedriveRequest) -> Result<RedriveResponse, Status> {
    let redriven = server.admin.clone().redrive(request).await;
    redriven.map(tonic::Response::into_inner)
}

async fn redrive_one(server: &Server, id: &str) -> RedrivenDelivery {
    let request = RedriveRequest {
        target: Some(Redrive::QuarantineId(id.to_owned())),
        ..Default::default()
    };
    let mut response = redrive_page(server, request).await.unwrap();
    assert!(response.next_page_token.is_empty() && response.redriven.len() == 1);
    let redriven = response.redriven.remove(0);
    assert_eq!(redriven.quarantine_id, id);
    redriven
}

async fn redrive_all(server: &Server, filter: QuarantineFilter) -> Vec<RedrivenDelivery> {
    let request = RedriveRequest {
        target: Some(Redrive::Filter(filter)),
        ..Default::default()
    };
    let response = redrive_page(server, request).await.unwrap();
    assert!(response.next_page_token.is_empty());
    response.redriven
}

async fn discard(server: &Server, target: Option<Discard>) -> Result<u64, Status> {
    let request = DiscardQuarantinedRequest { target };
    let discarded = server.admin.clone().discard_quarantined(request).await;
    discarded.map(|response| response.into_inner().discarded)
}

async fn event(server: &Server, event_id: &str) -> VerificationEvent {
    let get = GetEventRequest {
        event_id: event_id.to_owned(),
        ..Default::default()
    };
    let got = server.client.clone().get_event(get).await.unwrap();
    got.into_inner().event.unwrap()
}

async fn delivery(server: &Server, target: Get) -> Delivery {
    let request = GetDeliveryRequest {
        target: Some(target),
    };
    let response = server.admin.clone().get_delivery(request).await.unwrap();
    response.into_inner().delivery.unwrap()
}

fn long_ago() -> Timestamp {
    "2025-01-02T03:04:05Z".parse().unwrap()
}

/// Puts a delivery into a quarantine as an earlier version of verdict would have. Without a scheme it is one that was
/// not proved genuine. Returns its id.
pub(crate) async fn put(
    log: &Arc<dyn EventLog>,
    source: &str,
    webhook: &RawWebhook,
    scheme: Option<&str>,
    received_at: Timestamp,
) -> String {
    let (kind, reason) = match scheme {
        Some(_) => (QuarantineKind::Genuine, QuarantineReason::UnknownStatus),
        None => (QuarantineKind::Unverified, QuarantineReason::Unverified),
    };
    let (provider, account) = source.split_once('/').unwrap_or((source, "default"));
    let received_at = proto_timestamp(received_at);
    let delivery = Delivery {
        provider: provider.to_owned(),
        account: account.to_owned(),
        received_at: Some(received_at),
        payload: webhook.payload.clone(),
        headers: request(provider, webhook).headers,
        signature_scheme: scheme.unwrap_or_default().to_owned(),
        secret_id: scheme.map_or("", |_| "gone by now").to_owned(),
    };
    let delivery: Bytes = delivery.encode_to_vec().into();
    let id = Uuid::new_v5(&Uuid::nil(), &delivery);
    let summary = QuarantinedDelivery {
        quarantine_id: id.to_string(),
        provider: provider.to_owned(),
        account: account.to_owned(),
        received_at: Some(received_at),
        reason: reason.into(),
        detail: String::new(),
        delivery: None,
    };
    let quarantined = NewQuarantined {
        id,
        kind,
        received_at,
        summary: summary.encode_to_vec().into(),
        delivery,
    };
    log.quarantine(quarantined).await.unwrap();
    id.to_string()
}

#[tokio::test]
async fn what_is_not_genuine_is_kept_where_asked_for_and_nobody_is_told() {
    let log = memory_log();
    let keeping = serve(keeping(), &log).await;
    let plain = Server::start().await;
    let mut forged = gu1_request(gu1_body("1"));
    forged.payload = gu1_body("2").into();
    forged.headers.push(Header {
        name: "authorization".to_owned(),
        value: "Bearer hop".to_owned(),
    });
    let mut answers = Vec::new();
    for server in [&keeping, &plain, &keeping] {
        let refused = server.ingest(forged.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), "SIGNATURE_INVALID");
        answers.push((refused.code(), refused.message().to_owned()));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));

    assert_eq!(genuine_and_unverified(&plain).await, (0, 0));
    // Twice the same is one.
    assert_eq!(genuine_and_unverified(&keeping).await, (0, 1));
    let kept = list(&keeping, unverified()).await.remove(0);
    assert_eq!((&*kept.provider, &*kept.account), ("gu1", "default"));
    assert_eq!(kept.reason(), QuarantineReason::Unverified);
    assert_eq!(kept.detail, "the signature matches no secret");
    let evidence = delivery(&keeping, Get::QuarantineId(kept.quarantine_id)).await;
    assert_eq!(evidence.payload, forged.payload);
    assert_eq!(evidence.headers, forged.headers[..1]);
    assert_eq!(
        (evidence.signature_scheme, evidence.secret_id),
        Default::default()
    );
    assert_eq!(log.tail().end().0, 0);

    let mut admin = keeping.admin.clone();
    let sources = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    let sources = sources.into_inner().sources;
    assert!(sources.iter().all(|source| source.keep_unverified));
    let gu1 = sources.iter().find(|source| source.provider == "gu1");
    let counts = gu1.unwrap().counts.unwrap();
    assert_eq!((counts.signature_invalid, counts.unverified_kept), (2, 2));
    assert_eq!(counts.quarantined, 0);
}

#[tokio::test]
async fn of_many_forged_calls_only_some_are_kept() {
    const CALLS: u64 = 400;
    let server = serve(keeping(), &memory_log()).await;
    let begun = Instant::now();
    for number in 0..CALLS {
        let mut forged = gu1_request(gu1_body("1"));
        forged.payload = gu1_body(&number.to_string()).into();
        forged.headers[0].value = "00".repeat(32);
        server.ingest(forged).await.unwrap_err();
    }
    let seconds = begun.elapsed().as_secs() + 1;
    let mut admin = server.admin.clone();
    let sources = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    let sources = sources.into_inner().sources;
    let gu1 = sources.iter().find(|source| source.provider == "gu1");
    let counts = gu1.unwrap().counts.unwrap();
    assert_eq!(counts.signature_invalid, CALLS);
    let (kept, dropped) = (counts.unverified_kept, counts.unverified_dropped);
    assert_eq!(kept + dropped, CALLS);
    assert!((100..=100 + 20 * seconds).contains(&kept), "{kept}");
    assert_eq!(server.log.stats().unverified.deliveries, kept);
}

#[tokio::test]
async fn a_forged_call_takes_no_place_of_a_genuine_one() {
    let server = serve(keeping(), &memory_log()).await;
    let genuine = request("gu1", &fixture("gu1", "unknown_event"));
    // The same payload with a wrong signature comes first, and the genuine one is quarantined all the same.
    let mut forged = genuine.clone();
    for header in &mut forged.headers {
        if header.name.eq_ignore_ascii_case("x-webhook-signature") {
            header.value = "00".repeat(32);
        }
    }
    server.ingest(forged.clone()).await.unwrap_err();
    let quarantined = server.ingest(genuine.clone()).await.unwrap();
    assert_eq!(quarantined.status(), IngestStatus::Quarantined);
    assert_eq!(genuine_and_unverified(&server).await, (1, 1));

    // Where the secret is wrong, a forged call with the same payload is another delivery too.
    let log = memory_log();
    let wrong = keeping_but("gu1", |gu1| gu1.keyring = secrets(vec![other_secret()]));
    let server = serve(wrong, &log).await;
    for request in [&forged, &genuine] {
        server.ingest(request.clone()).await.unwrap_err();
    }
    let kept = list(&server, unverified()).await;
    assert_eq!(kept.len(), 2);
    let evidence = Get::QuarantineId(kept[1].quarantine_id.clone());
    assert_eq!(delivery(&server, evidence).await.headers, genuine.headers);
}

async fn what_came_while_a_secret_was_wrong_is_redriven_when_it_is_right(log: Arc<dyn EventLog>) {
    let wrong = keeping_but("gu1", |gu1| gu1.keyring = secrets(vec![other_secret()]));
    let server = serve(wrong, &log).await;
    for request in [
        gu1_request(gu1_body("1")),
        request("gu1", &fixture("gu1", "unknown_event")),
        request("gu1", &fixture("gu1", "alert")),
    ] {
        server.ingest(request).await.unwrap_err();
    }
    let kept = list(&server, unverified()).await;
    let mut forged = gu1_request(gu1_body("2"));
    forged.payload = gu1_body("3").into();
    server.ingest(forged).await.unwrap_err();

    // Nothing has changed yet.
    let again = redrive_all(&server, unverified()).await;
    assert_eq!(again.len(), 4);
    for redriven in again {
        assert_eq!(redriven.status(), IngestStatus::Unspecified);
        assert_eq!(redriven.detail, "the signature matches no secret");
    }
    assert_eq!(genuine_and_unverified(&server).await, (0, 4));
    server.stop().await;

    let server = serve(keeping(), &log).await;
    // They are in the other quarantine.
    assert_eq!(redrive_all(&server, QuarantineFilter::default()).await, []);
    let redriven = redrive_all(&server, unverified()).await;
    let statuses: Vec<IngestStatus> = redriven.iter().map(RedrivenDelivery::status).collect();
    use IngestStatus::{Accepted, Ignored, Quarantined, Unspecified};
    assert_eq!(statuses, [Accepted, Quarantined, Ignored, Unspecified]);
    assert_eq!(genuine_and_unverified(&server).await, (1, 1));

    let accepted = event(&server, &redriven[0].event_id).await;
    assert_eq!(accepted.received_at, kept[0].received_at);
    assert_eq!(accepted.source.unwrap().secret_id, "fixtures");
    let evidence = Get::EventId(redriven[0].event_id.clone());
    let evidence = delivery(&server, evidence).await;
    assert_eq!(evidence.signature_scheme, "hmac_sha256");
    assert_eq!(evidence.received_at, kept[0].received_at);

    // Proved genuine, but not understood.
    let moved = list(&server, QuarantineFilter::default()).await.remove(0);
    assert_eq!(moved.reason(), QuarantineReason::UnknownEventType);
    assert_eq!(moved.received_at, kept[1].received_at);
    assert!(redriven[1].detail.contains(&moved.quarantine_id));
    assert!(redriven[1].detail.contains("is not known"));
    // It is where a redelivery would be.
    let redelivered = request("gu1", &fixture("gu1", "unknown_event"));
    let redelivered = server.ingest(redelivered).await.unwrap();
    assert_eq!(redelivered.quarantine_id, moved.quarantine_id);
}

async fn a_signed_time_is_judged_as_of_the_time_of_receipt(log: Arc<dyn EventLog>) {
    let kayle = fixture_source("kayle");
    let body = r#"{"type":"verification.session.expired","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    let jwe: Bytes = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[0])
        .unwrap()
        .into();
    let signed_at = |seconds: i64| {
        let at = long_ago() + SignedDuration::from_secs(seconds);
        kayle.schemes[0]
            .sign(jwe.clone(), &kayle.keys().secrets[0], at)
            .unwrap()
    };
    let late = put(&log, "kayle", &signed_at(-301), None, long_ago()).await;
    let timely = put(&log, "kayle", &signed_at(-300), None, long_ago()).await;
    let server = serve(keeping(), &log).await;
    let refused = redrive_one(&server, &late).await;
    assert_eq!(refused.status(), IngestStatus::Unspecified);
    assert_eq!(refused.detail, "the signed time is 301 s away");
    let accepted = redrive_one(&server, &timely).await;
    assert_eq!(accepted.status(), IngestStatus::Accepted);
    let received_at = event(&server, &accepted.event_id).await.received_at;
    assert_eq!(received_at, Some(proto_timestamp(long_ago())));
    assert_eq!(genuine_and_unverified(&server).await, (0, 1));
}

async fn a_genuine_delivery_is_redriven_without_its_secret_and_only_once(log: Arc<dyn EventLog>) {
    // Signed with a secret that is gone by now.
    let gone = Source {
        keyring: secrets(vec![other_secret()]),
        ..fixture_source("gu1")
    };
    let webhook = sign(&gone, gu1_body("1"));
    let scheme = Some("hmac_sha256");
    let id = put(&log, "gu1", &webhook, scheme, long_ago()).await;
    let evidence = log.find_quarantined(id.parse().unwrap()).await.unwrap();
    let server = serve(keeping(), &log).await;

    let accepted = redrive_one(&server, &id).await;
    assert_eq!(accepted.status(), IngestStatus::Accepted);
    let redriven = event(&server, &accepted.event_id).await;
    assert_eq!(redriven.received_at, Some(proto_timestamp(long_ago())));
    assert_eq!(redriven.source.unwrap().secret_id, "gone by now");
    let stored = log.delivery(verdict::log::Position(1)).await.unwrap();
    assert_eq!(stored, Some(evidence.unwrap().delivery));
    assert_eq!(genuine_and_unverified(&server).await, (0, 0));

    // The server went down after the event was stored, before the delivery was released.
    let again = put(&log, "gu1", &webhook, scheme, long_ago()).await;
    assert_eq!(again, id);
    let duplicate = redrive_one(&server, &id).await;
    assert_eq!(
        (duplicate.status(), duplicate.event_id),
        (IngestStatus::Duplicate, accepted.event_id)
    );
    assert_eq!(genuine_and_unverified(&server).await, (0, 0));
    assert_eq!(log.tail().end().0, 1);
    // And the provider's own redelivery is one too.
    let redelivered = server.ingest(gu1_request(gu1_body("1"))).await.unwrap();
    assert_eq!(redelivered.status(), IngestStatus::Duplicate);
}

#[tokio::test]
async fn a_redriven_event_does_not_pass_for_the_newest() {
    let log = memory_log();
    let gu1 = fixture_source("gu1");
    // Neither has a time of the provider: only the time of receipt can tell.
    let body = |status: &str| {
        format!(
            r#"{{"event":"kyc.validation_{status}","payload":{{"id":"v","status":"{status}"}}}}"#
        )
    };
    let early = sign(&gu1, body("in_progress"));
    let id = put(&log, "gu1", &early, Some("hmac_sha256"), long_ago()).await;
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let newest = server.ingest(gu1_request(body("approved"))).await.unwrap();
    let redriven = redrive_one(&server, &id).await;
    assert_eq!(redriven.status(), IngestStatus::Accepted);
    let (newest, redriven) = (
        event(&server, &newest.event_id).await,
        event(&server, &redriven.event_id).await,
    );
    assert_eq!((newest.revision, newest.late), (1, false));
    assert_eq!((redriven.revision, redriven.late), (2, true));
}

async fn what_is_still_not_understood_stays_and_it_is_said_why(log: Arc<dyn EventLog>) {
    let ralio = fixture_source("ralio");
    let body = |name: &str| {
        Bytes::from(format!(
            r#"{{"eventId":"e-1","eventType":"kyc_session_{name}","timestamp":"2026-05-04T09:30:00.000Z","data":{{"sessionId":"s-1","userId":"u-1"}}}}"#
        ))
    };
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let first = request("ralio", &sign(&ralio, body("verified")));
    let first = server.ingest(first).await.unwrap();
    let conflict = request("ralio", &sign(&ralio, body("failed")));
    let conflict = server.ingest(conflict).await.unwrap().quarantine_id;
    let unknown = request("gu1", &fixture("gu1", "unknown_event"));
    let unknown = server.ingest(unknown).await.unwrap().quarantine_id;
    let webhook = fixture("gu1", "kyc_approved");
    let gone = put(&log, "gu1/gone", &webhook, Some("hmac_sha256"), long_ago()).await;
    let scheme = put(&log, "gu1", &webhook, Some("no_such_scheme"), long_ago()).await;
    let unproven = put(&log, "gu1/gone", &webhook, None, long_ago()).await;

    use IngestStatus::{Quarantined, Unspecified};
    for (id, status, why) in [
        (&conflict, Quarantined, &*first.event_id),
        (
            &unknown,
            Quarantined,
            "kyc.validation_teleported is not known",
        ),
        (
            &gone,
            Quarantined,
            "no source with its provider and account",
        ),
        (&scheme, Quarantined, "the scheme that proved it genuine"),
        (
            &unproven,
            Unspecified,
            "no source with its provider and account",
        ),
    ] {
        let redriven = redrive_one(&server, id).await;
        assert_eq!(redriven.status(), status, "{redriven:?}");
        assert!(redriven.detail.contains(why), "{redriven:?}");
        assert!(redriven.event_id.is_empty());
    }
    assert_eq!(genuine_and_unverified(&server).await, (4, 1));
    assert_eq!(log.tail().end().0, 1);
}

async fn what_could_not_be_decrypted_is_redriven_once_the_key_is_there(log: Arc<dyn EventLog>) {
    let kayle = fixture_source("kayle");
    let body = r#"{"type":"verification.session.expired","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    let jwe = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[1]).unwrap();
    let webhook = request("kayle", &sign(&kayle, jwe));
    let without_key = keeping_but("kayle", |kayle| kayle.keyring = with_first_key(kayle));
    let server = serve(without_key, &log).await;
    let quarantined = server.ingest(webhook.clone()).await.unwrap();
    assert_eq!(quarantined.status(), IngestStatus::Quarantined);
    let still = redrive_one(&server, &quarantined.quarantine_id).await;
    assert_eq!(still.status(), IngestStatus::Quarantined);
    server.stop().await;

    let server = serve(keeping(), &log).await;
    let redriven = redrive_one(&server, &quarantined.quarantine_id).await;
    assert_eq!(redriven.status(), IngestStatus::Accepted);
    // Every attempt of Kayle is encrypted anew, and is the same event all the same.
    let again = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[0]).unwrap();
    let again = server.ingest(request("kayle", &sign(&kayle, again))).await;
    let again = again.unwrap();
    assert_eq!(
        (again.status(), again.event_id),
        (IngestStatus::Duplicate, redriven.event_id)
    );
}

async fn redriving_by_filter_goes_on_page_by_page_and_leaves_nothing_out(log: Arc<dyn EventLog>) {
    const DELIVERIES: usize = 1_100;
    let gu1 = fixture_source("gu1");
    for number in 0..DELIVERIES {
        let webhook = sign(&gu1, gu1_body(&number.to_string()));
        put(&log, "gu1", &webhook, Some("hmac_sha256"), real_now()).await;
    }
    let fyatu = fixture("fyatu", "f2_rejected");
    put(&log, "fyatu", &fyatu, Some("body_sign"), real_now()).await;
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let filter = QuarantineFilter {
        provider: "gu1".to_owned(),
        account: "default".to_owned(),
        reason: QuarantineReason::UnknownStatus.into(),
    };
    let mut request = RedriveRequest {
        target: Some(Redrive::Filter(filter)),
        ..Default::default()
    };
    let mut pages = Vec::new();
    loop {
        let page = redrive_page(&server, request.clone()).await.unwrap();
        let accepted = |one: &RedrivenDelivery| one.status() == IngestStatus::Accepted;
        assert!(page.redriven.iter().all(accepted));
        pages.push(page.redriven.len());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(pages, [500, 500, 100]);
    assert_eq!(log.tail().end().0, DELIVERIES as u64);
    // In the order in which they came.
    let stored = log.read(verdict::log::Position(0), all()).await.unwrap();
    let subjects: Vec<usize> = stored
        .iter()
        .map(|stored| {
            let event = VerificationEvent::decode(stored.event.clone()).unwrap();
            let subject = event.subject.unwrap().provider_subject_id;
            subject["ent-".len()..].parse().unwrap()
        })
        .collect();
    assert!(subjects.into_iter().eq(0..DELIVERIES));
    assert_eq!(genuine_and_unverified(&server).await, (1, 0));
}

fn all() -> verdict::log::ReadLimit {
    verdict::log::ReadLimit {
        records: usize::MAX,
        bytes: usize::MAX,
    }
}

/// Two genuine deliveries of gu1, one of fyatu for the account `eu`, one that is not genuine. Returns the ids.
async fn four_kinds(log: &Arc<dyn EventLog>) -> [String; 4] {
    let scheme = Some("hmac_sha256");
    let gu1 = |case| fixture("gu1", case);
    [
        put(log, "gu1", &gu1("unknown_event"), scheme, long_ago()).await,
        put(log, "gu1", &gu1("unknown_status"), scheme, long_ago()).await,
        put(
            log,
            "fyatu/eu",
            &fixture("fyatu", "name_swapped"),
            Some("body_sign"),
            long_ago(),
        )
        .await,
        put(log, "gu1", &gu1("kyc_approved"), None, long_ago()).await,
    ]
}

async fn the_quarantines_are_listed_by_provider_account_and_reason(log: Arc<dyn EventLog>) {
    let [first, second, of_eu, unproven] = four_kinds(&log).await;
    let server = serve(keeping(), &log).await;
    let of_provider = |provider: &str| QuarantineFilter {
        provider: provider.to_owned(),
        ..Default::default()
    };
    let of_account = |account: &str| QuarantineFilter {
        account: account.to_owned(),
        ..Default::default()
    };
    let cases = [
        (QuarantineFilter::default(), vec![&first, &second, &of_eu]),
        (of_provider("gu1"), vec![&first, &second]),
        (of_account("eu"), vec![&of_eu]),
        (of_reason(QuarantineReason::Contradiction), vec![]),
        (
            of_reason(QuarantineReason::UnknownStatus),
            vec![&first, &second, &of_eu],
        ),
        (unverified(), vec![&unproven]),
    ];
    for (filter, expected) in cases {
        let listed = list(&server, filter.clone()).await;
        let ids: Vec<&String> = listed.iter().map(|one| &one.quarantine_id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    // The page of one quarantine does not go on in the other.
    let request = |reason: QuarantineReason, page_token: &str| ListQuarantinedRequest {
        page_size: 1,
        page_token: page_token.to_owned(),
        reason: reason.into(),
        ..Default::default()
    };
    let mut admin = server.admin.clone();
    let page = admin
        .list_quarantined(request(QuarantineReason::Unspecified, ""))
        .await;
    let token = page.unwrap().into_inner().next_page_token;
    assert!(!token.is_empty());
    let other = admin
        .list_quarantined(request(QuarantineReason::Unverified, &token))
        .await;
    assert_eq!(reason(&other.unwrap_err()), "INVALID_REQUEST");
    let redriven = RedriveRequest {
        target: Some(Redrive::Filter(QuarantineFilter::default())),
        page_token: token,
    };
    let redriven = redrive_page(&server, redriven).await.unwrap_err();
    assert_eq!(reason(&redriven), "INVALID_REQUEST");
}

async fn what_is_discarded_is_gone_and_nothing_else(log: Arc<dyn EventLog>) {
    let [first, second, of_eu, _] = four_kinds(&log).await;
    let server = serve(keeping(), &log).await;
    let one = || Some(Discard::QuarantineId(first.clone()));
    assert_eq!(discard(&server, one()).await.unwrap(), 1);
    let again = discard(&server, one()).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
    assert_eq!(reason(&again), "DELIVERY_NOT_FOUND");
    assert_eq!(genuine_and_unverified(&server).await, (2, 1));

    let of_eu_only = QuarantineFilter {
        account: "eu".to_owned(),
        ..Default::default()
    };
    let by_filter = |filter| discard(&server, Some(Discard::Filter(filter)));
    assert_eq!(by_filter(of_eu_only.clone()).await.unwrap(), 1);
    assert_eq!(by_filter(of_eu_only).await.unwrap(), 0);
    assert_ne!(of_eu, second);
    let left = list(&server, QuarantineFilter::default()).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].quarantine_id, second);

    // Without a reason only the genuine ones are meant.
    let everything = QuarantineFilter::default();
    assert_eq!(by_filter(everything).await.unwrap(), 1);
    assert_eq!(genuine_and_unverified(&server).await, (0, 1));
    four_kinds(&log).await;
    assert_eq!(by_filter(unverified()).await.unwrap(), 1);
    assert_eq!(genuine_and_unverified(&server).await, (3, 0));
}

#[tokio::test]
async fn discarding_by_filter_reaches_every_page() {
    let log = memory_log();
    let gu1 = fixture_source("gu1");
    for number in 0..600 {
        let webhook = sign(&gu1, gu1_body(&number.to_string()));
        put(&log, "gu1", &webhook, Some("hmac_sha256"), long_ago()).await;
    }
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let everything = Discard::Filter(QuarantineFilter::default());
    assert_eq!(discard(&server, Some(everything)).await.unwrap(), 600);
    assert_eq!(log.stats().genuine.deliveries, 0);
}

#[tokio::test]
async fn a_request_that_names_nothing_or_nonsense_is_refused() {
    let server = Server::start().await;
    let unknown = "00000000-0000-4000-8000-000000000000".to_owned();
    let nonsense = QuarantineFilter {
        reason: 99,
        ..Default::default()
    };
    let cases = [
        (None, "", "INVALID_REQUEST"),
        (
            Some(Redrive::QuarantineId(unknown.clone())),
            "",
            "DELIVERY_NOT_FOUND",
        ),
        (
            Some(Redrive::QuarantineId(unknown)),
            "rg",
            "INVALID_REQUEST",
        ),
        (
            Some(Redrive::QuarantineId("1".to_owned())),
            "",
            "INVALID_REQUEST",
        ),
        (
            Some(Redrive::Filter(nonsense.clone())),
            "",
            "INVALID_REQUEST",
        ),
        (
            Some(Redrive::Filter(QuarantineFilter::default())),
            "nonsense",
            "INVALID_REQUEST",
        ),
    ];
    for (target, page_token, expected) in cases {
        let page_token = page_token.to_owned();
        let request = RedriveRequest { target, page_token };
        let refused = redrive_page(&server, request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{request:?}");
    }
    for target in [
        None,
        Some(Discard::QuarantineId("1".to_owned())),
        Some(Discard::Filter(nonsense)),
    ] {
        let refused = discard(&server, target).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
    }
}

/// Three genuine deliveries that are understood today, in a log that can get into trouble.
async fn three_deliveries() -> (Arc<TroubledLog>, Server) {
    let log = TroubledLog::new();
    let as_log: Arc<dyn EventLog> = log.clone();
    for number in ["1", "2", "3"] {
        let webhook = sign(&fixture_source("gu1"), gu1_body(number));
        put(&as_log, "gu1", &webhook, Some("hmac_sha256"), long_ago()).await;
    }
    let server = Server::start_with(server_config(), as_log).await;
    (log, server)
}

#[tokio::test]
async fn a_damaged_record_hides_no_other() {
    let (log, server) = three_deliveries().await;
    log.damage_quarantined(2);
    let listed = list(&server, QuarantineFilter::default()).await;
    let details: Vec<&str> = listed.iter().map(|one| &*one.detail).collect();
    assert_eq!(details, ["", "this record is damaged", ""]);
    assert_eq!(
        listed[1],
        QuarantinedDelivery {
            detail: "this record is damaged".to_owned(),
            ..Default::default()
        }
    );
    let of_gu1 = QuarantineFilter {
        provider: "gu1".to_owned(),
        ..Default::default()
    };
    assert_eq!(list(&server, of_gu1.clone()).await.len(), 2);
    // Page by page too.
    let mut request = ListQuarantinedRequest {
        page_size: 1,
        ..Default::default()
    };
    let mut paged = Vec::new();
    loop {
        let page = server.admin.clone().list_quarantined(request.clone()).await;
        let page = page.unwrap().into_inner();
        paged.extend(page.quarantined);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(paged, listed);

    let redriven = redrive_all(&server, QuarantineFilter::default()).await;
    let statuses: Vec<IngestStatus> = redriven.iter().map(RedrivenDelivery::status).collect();
    use IngestStatus::{Accepted, Quarantined};
    assert_eq!(statuses, [Accepted, Quarantined, Accepted]);
    assert_eq!(redriven[1].detail, "this record is damaged");
    let everything = Discard::Filter(QuarantineFilter::default());
    assert_eq!(discard(&server, Some(everything)).await.unwrap(), 0);
    assert_eq!(list(&server, QuarantineFilter::default()).await.len(), 1);
    assert_eq!(list(&server, of_gu1).await, []);
}

#[tokio::test]
async fn what_was_redriven_before_the_log_failed_is_told() {
    let (log, server) = three_deliveries().await;
    log.go_away_after(2);
    let mut request = RedriveRequest {
        target: Some(Redrive::Filter(QuarantineFilter::default())),
        ..Default::default()
    };
    let page = redrive_page(&server, request.clone()).await.unwrap();
    let statuses: Vec<IngestStatus> = page.redriven.iter().map(RedrivenDelivery::status).collect();
    assert_eq!(statuses, [IngestStatus::Accepted; 2]);
    request.page_token = page.next_page_token;
    // Nothing more can be done now.
    let failed = redrive_page(&server, request.clone()).await.unwrap_err();
    assert_eq!(reason(&failed), "LOG_UNAVAILABLE");
    log.come_back();
    let page = redrive_page(&server, request).await.unwrap();
    assert_eq!(page.redriven.len(), 1);
    assert_eq!(page.redriven[0].status(), IngestStatus::Accepted);
    assert!(page.next_page_token.is_empty());
    assert_eq!(genuine_and_unverified(&server).await, (0, 0));
}

async fn a_delivery_that_is_not_understood_for_another_reason_moves_there(log: Arc<dyn EventLog>) {
    let kayle = fixture_source("kayle");
    let body = r#"{"type":"verification.session.teleported","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    let webhook = || {
        let jwe = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[1]).unwrap();
        request("kayle", &sign(&kayle, jwe))
    };
    let without_key = keeping_but("kayle", |kayle| kayle.keyring = with_first_key(kayle));
    let server = serve(without_key, &log).await;
    let first = server.ingest(webhook()).await.unwrap().quarantine_id;
    let received_at = list(&server, QuarantineFilter::default()).await[0].received_at;
    server.stop().await;

    let server = serve(keeping(), &log).await;
    let redriven = redrive_one(&server, &first).await;
    assert_eq!(redriven.status(), IngestStatus::Quarantined);
    let listed = list(&server, QuarantineFilter::default()).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].reason(), QuarantineReason::UnknownEventType);
    assert_eq!(listed[0].received_at, received_at);
    let second = &listed[0].quarantine_id;
    assert!(second != &first && redriven.detail.contains(second));
    // A redelivery makes no second entry, and neither does redriving again.
    let redelivered = server.ingest(webhook()).await.unwrap();
    assert_eq!(&redelivered.quarantine_id, second);
    let again = redrive_one(&server, second).await;
    assert_eq!(again.status(), IngestStatus::Quarantined);
    assert_eq!(list(&server, QuarantineFilter::default()).await, listed);
}

#[tokio::test]
async fn evidence_that_is_damaged_is_named_by_its_place() {
    let log = memory_log();
    let id = Uuid::from_u128(1);
    let quarantined = NewQuarantined {
        id,
        kind: QuarantineKind::Genuine,
        received_at: proto_timestamp(long_ago()),
        summary: Bytes::new(),
        delivery: Bytes::from_static(b"\xff"),
    };
    log.quarantine(quarantined).await.unwrap();
    let server = Server::start_with(server_config(), log).await;
    let request = GetDeliveryRequest {
        target: Some(Get::QuarantineId(id.to_string())),
    };
    let failed = server.admin.clone().get_delivery(request).await;
    let failed = failed.unwrap_err();
    assert_eq!(reason(&failed), "LOG_DAMAGED");
    let metadata = failed.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["position"], "1");
}

/// Runs each of them on a log in memory and on one on disk.
macro_rules! on_both_logs {
    ($($test:ident),* $(,)?) => {
        mod in_memory {$(
            #[tokio::test]
            async fn $test() {
                super::$test(super::memory_log()).await;
            }
        )*}

        mod on_disk {$(
            #[tokio::test]
            async fn $test() {
                let directory = tempfile::TempDir::new().unwrap();
                super::$test(super::embedded_log(&directory)).await;
            }
        )*}
    };
}

on_both_logs!(
    what_came_while_a_secret_was_wrong_is_redriven_when_it_is_right,
    a_signed_time_is_judged_as_of_the_time_of_receipt,
    a_genuine_delivery_is_redriven_without_its_secret_and_only_once,
    what_is_still_not_understood_stays_and_it_is_said_why,
    what_could_not_be_decrypted_is_redriven_once_the_key_is_there,
    a_delivery_that_is_not_understood_for_another_reason_moves_there,
    the_quarantines_are_listed_by_provider_account_and_reason,
    what_is_discarded_is_gone_and_nothing_else,
    redriving_by_filter_goes_on_page_by_page_and_leaves_nothing_out,
);
