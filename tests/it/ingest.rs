//! Ingest from outside: the four ways in which a genuine webhook ends, and what is kept of each.

use std::sync::Arc;

use tempfile::TempDir;
use verdict::{
    event,
    proto::{
        Delivery, GetDeliveryRequest, GetEventRequest, Header, IngestStatus,
        ListQuarantinedRequest, ListSourcesRequest, Outcome, QuarantineReason, SecretInfo,
        get_delivery_request::Target, verification_event::Detail,
    },
    provider::{
        NormalizeError, Normalized, Posting, Provider, Sample, VerifiedWebhook, jwe,
        signature::Scheme,
    },
    source::Source,
};

use crate::support::{
    Server, embedded_log, fixture_source, from_earliest, gu1_body, gu1_request, memory_log,
    next_event, reason, request, server_config, sign,
};

async fn delivery(server: &Server, target: Target) -> Delivery {
    let request = GetDeliveryRequest {
        target: Some(target),
    };
    let response = server.admin.clone().get_delivery(request).await.unwrap();
    response.into_inner().delivery.unwrap()
}

#[tokio::test]
async fn a_new_event_is_accepted_stored_and_streamed() {
    let server = Server::start().await;
    let mut request = gu1_request(gu1_body("1"));
    request.return_event = true;
    request.headers.push(Header {
        name: "Authorization".to_owned(),
        value: "Bearer hop".to_owned(),
    });
    request.headers.push(Header {
        name: "X-Webhook-ID".to_owned(),
        value: "wh_1".to_owned(),
    });
    let response = server.ingest(request.clone()).await.unwrap();
    assert_eq!(response.status(), IngestStatus::Accepted);
    assert!(response.quarantine_id.is_empty());

    let event = response.event.unwrap();
    assert_eq!(event.event_id, response.event_id);
    let source = event.source.as_ref().unwrap();
    assert_eq!(
        (source.provider.as_str(), source.account.as_str()),
        ("gu1", "default")
    );
    assert_eq!(source.provider_event_id, "wh_1");
    assert_eq!(source.secret_id, "fixtures");
    let Some(Detail::Verification(verification)) = &event.detail else {
        panic!("not a verification");
    };
    assert_eq!(verification.outcome(), Outcome::Approved);
    assert_eq!(event.revision, 1);

    let mut stream = server.subscribe(from_earliest()).await;
    assert_eq!(next_event(&mut stream).await, event);

    let get = GetEventRequest {
        event_id: response.event_id.clone(),
        ..Default::default()
    };
    let got = server
        .client
        .clone()
        .get_event(get)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((got.event, got.cursor), (Some(event), response.cursor));

    let evidence = delivery(&server, Target::EventId(response.event_id)).await;
    assert_eq!(evidence.payload, request.payload);
    assert_eq!(evidence.signature_scheme, "hmac_sha256");
    let names: Vec<&str> = evidence
        .headers
        .iter()
        .map(|header| header.name.as_str())
        .collect();
    assert_eq!(names, ["x-webhook-signature", "X-Webhook-ID"]);
}

#[tokio::test]
async fn a_redelivery_is_a_duplicate_before_and_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let mut first = None;
    for expected in [IngestStatus::Accepted, IngestStatus::Duplicate] {
        let server = Server::start_with(server_config(), embedded_log(&directory)).await;
        let response = server.ingest(gu1_request(gu1_body("1"))).await.unwrap();
        assert_eq!(response.status(), expected);
        let first = first.get_or_insert_with(|| response.clone());
        let again = server.ingest(gu1_request(gu1_body("1"))).await.unwrap();
        for response in [&response, &again] {
            assert_eq!(response.event_id, first.event_id);
            assert_eq!(response.cursor, first.cursor);
        }
        assert_eq!(again.status(), IngestStatus::Duplicate);
        server.stop().await;
    }
}

#[tokio::test]
async fn an_unsigned_id_does_not_make_a_redelivery_new() {
    let server = Server::start().await;
    for (id, expected) in [
        ("wh_1", IngestStatus::Accepted),
        ("wh_2", IngestStatus::Duplicate),
    ] {
        let mut request = gu1_request(gu1_body("1"));
        request.headers.push(Header {
            name: "X-Webhook-ID".to_owned(),
            value: id.to_owned(),
        });
        assert_eq!(server.ingest(request).await.unwrap().status(), expected);
    }
    // Fyatu's `eventId` lies in the body, but outside of what is signed.
    let webhook = crate::support::fixture("fyatu", "f2_rejected");
    let mut request = request("fyatu", &webhook);
    assert_eq!(
        server.ingest(request.clone()).await.unwrap().status(),
        IngestStatus::Accepted
    );
    let body = String::from_utf8(request.payload.to_vec()).unwrap();
    request.payload = body
        .replace("f2000000-0000-4000-8000-000000000001", "other")
        .into();
    assert_eq!(
        server.ingest(request).await.unwrap().status(),
        IngestStatus::Duplicate
    );
}

#[tokio::test]
async fn what_is_not_understood_is_quarantined_with_its_reason() {
    let server = Server::start().await;
    let cases = [
        ("gu1", "unknown_event", QuarantineReason::UnknownEventType),
        ("gu1", "unknown_status", QuarantineReason::UnknownStatus),
        (
            "gu1",
            "status_contradicts_name",
            QuarantineReason::Contradiction,
        ),
        ("fyatu", "name_swapped", QuarantineReason::Contradiction),
        (
            "fractal",
            "unknown_type",
            QuarantineReason::UnknownEventType,
        ),
    ];
    for (provider, case, _) in cases {
        let webhook = crate::support::fixture(provider, case);
        // Sent twice: a redelivery is the same quarantined delivery.
        let first = server.ingest(request(provider, &webhook)).await.unwrap();
        let second = server.ingest(request(provider, &webhook)).await.unwrap();
        assert_eq!(first.status(), IngestStatus::Quarantined);
        assert!(first.event_id.is_empty() && first.cursor.is_empty());
        assert_eq!(first, second);
        let evidence = delivery(&server, Target::QuarantineId(first.quarantine_id)).await;
        assert_eq!(evidence.payload, webhook.payload);
    }

    let mut admin = server.admin.clone();
    let mut listed = Vec::new();
    let mut request = ListQuarantinedRequest {
        page_size: 2,
        include_deliveries: true,
        ..Default::default()
    };
    loop {
        let page = admin
            .list_quarantined(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.quarantined.len() <= 2);
        listed.extend(page.quarantined);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let found: Vec<_> = listed
        .iter()
        .map(|one| (one.provider.as_str(), one.reason()))
        .collect();
    assert_eq!(found, cases.map(|(provider, _, reason)| (provider, reason)));
    assert_eq!(
        listed[0].detail,
        "event type kyc.validation_teleported is not known"
    );
    assert!(
        listed
            .iter()
            .all(|one| !one.delivery.as_ref().unwrap().payload.is_empty())
    );

    // A cursor of events is no page token.
    let cursor = server.log.cursor(verdict::log::Position(1));
    let request = ListQuarantinedRequest {
        page_token: cursor.encode(),
        ..Default::default()
    };
    assert_eq!(
        reason(&admin.list_quarantined(request).await.unwrap_err()),
        "INVALID_REQUEST"
    );

    let of_fyatu = ListQuarantinedRequest {
        provider: "fyatu".to_owned(),
        ..Default::default()
    };
    let page = admin.list_quarantined(of_fyatu).await.unwrap().into_inner();
    assert_eq!(page.quarantined.len(), 1);
    assert_eq!(page.quarantined[0].delivery, None);

    // Subscribers never see any of it.
    assert_eq!(server.log.tail().end().0, 0);
}

#[tokio::test]
async fn the_same_event_with_other_content_is_quarantined() {
    let server = Server::start().await;
    let body = |outcome: &str| {
        format!(
            r#"{{"eventId":"e-1","eventType":"kyc_session_{outcome}","timestamp":"2026-05-04T09:30:00.000Z","data":{{"sessionId":"s-1","userId":"u-1"}}}}"#
        )
    };
    let ralio = fixture_source("ralio");
    let verified = server
        .ingest(request("ralio", &sign(&ralio, body("verified"))))
        .await
        .unwrap();
    assert_eq!(verified.status(), IngestStatus::Accepted);
    let failed = server
        .ingest(request("ralio", &sign(&ralio, body("failed"))))
        .await
        .unwrap();
    assert_eq!(failed.status(), IngestStatus::Quarantined);
    let page = server
        .admin
        .clone()
        .list_quarantined(ListQuarantinedRequest::default())
        .await
        .unwrap();
    let quarantined = &page.get_ref().quarantined[0];
    assert_eq!(quarantined.reason(), QuarantineReason::ConflictingContent);
    assert!(
        quarantined.detail.contains(&verified.event_id),
        "{}",
        quarantined.detail
    );
}

#[tokio::test]
async fn other_families_are_ignored_and_nothing_is_kept() {
    let server = Server::start().await;
    for (provider, case) in [
        ("gu1", "transaction_created"),
        ("fyatu", "f4_card"),
        ("fyatu", "f1_card"),
    ] {
        let webhook = crate::support::fixture(provider, case);
        // Fixtures with a signed time are too old for the server's clock; these are signed anew.
        let source = fixture_source(provider);
        let webhook = match case {
            "f4_card" => {
                let scheme = source
                    .schemes
                    .iter()
                    .find(|scheme| scheme.name == "header_v1")
                    .unwrap();
                scheme
                    .sign(
                        webhook.payload,
                        &source.keys().secrets[0],
                        crate::support::real_now(),
                    )
                    .unwrap()
            }
            _ => webhook,
        };
        let response = server.ingest(request(provider, &webhook)).await.unwrap();
        assert_eq!(
            response.status(),
            IngestStatus::Ignored,
            "{provider} {case}"
        );
        assert!(response.event_id.is_empty() && response.quarantine_id.is_empty());
    }
    assert_eq!(server.log.tail().end().0, 0);
}

#[tokio::test]
async fn an_encrypted_webhook_goes_the_whole_way() {
    let server = Server::start().await;
    let kayle = fixture_source("kayle");
    let body = r#"{"type":"verification.session.expired","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    // Each attempt is encrypted anew and to any of the keys, and is the same event all the same.
    let mut ids = Vec::new();
    for key in [0, 1, 0] {
        let jwe = jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[key]).unwrap();
        let response = server
            .ingest(request("kayle", &sign(&kayle, jwe)))
            .await
            .unwrap();
        ids.push((response.status(), response.event_id));
    }
    assert_eq!(ids[0].0, IngestStatus::Accepted);
    assert_eq!(ids[1], (IngestStatus::Duplicate, ids[0].1.clone()));
    assert_eq!(ids[2], ids[1]);
}

#[tokio::test]
async fn a_late_event_does_not_pass_for_the_newest() {
    let server = Server::start().await;
    let body = |status: &str, time: &str| {
        format!(
            r#"{{"event":"kyc.validation_{status}","timestamp":"{time}","payload":{{"id":"v","status":"{status}"}}}}"#
        )
    };
    for (status, time, place) in [
        ("approved", "2026-05-04T10:00:00Z", (1, false)),
        ("rejected", "2026-05-04T09:00:00Z", (2, true)),
    ] {
        let mut request = gu1_request(body(status, time));
        request.return_event = true;
        let event = server.ingest(request).await.unwrap().event.unwrap();
        assert_eq!((event.revision, event.late), place, "{status}");
    }
}

#[tokio::test]
async fn the_time_and_trace_of_an_event_are_those_of_the_call() {
    let server = Server::start().await;
    let before = crate::support::real_now().as_second();
    let mut call = gu1_request(gu1_body("1"));
    call.return_event = true;
    let mut call = tonic::Request::new(call);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let event = server
        .client
        .clone()
        .ingest(call)
        .await
        .unwrap()
        .into_inner()
        .event
        .unwrap();
    assert!(event.received_at.unwrap().seconds >= before);
    assert_eq!(event.trace.unwrap().traceparent, traceparent);
    assert_eq!(event.normalizer_version, event::NORMALIZER_VERSION);
}

#[tokio::test]
async fn personal_data_is_sent_only_when_asked_for() {
    let server = Server::start().await;
    let mut request = request("gu1", &crate::support::fixture("gu1", "kyc_approved"));
    request.return_event = true;
    let response = server.ingest(request).await.unwrap();
    assert_eq!(response.event.unwrap().personal_data, None);

    for include_personal_data in [false, true] {
        let get = GetEventRequest {
            event_id: response.event_id.clone(),
            include_personal_data,
        };
        let event = server
            .client
            .clone()
            .get_event(get)
            .await
            .unwrap()
            .into_inner()
            .event
            .unwrap();
        assert_eq!(event.personal_data.is_some(), include_personal_data);

        let mut subscribe = from_earliest();
        subscribe.include_personal_data = include_personal_data;
        let event = next_event(&mut server.subscribe(subscribe).await).await;
        let name = event.personal_data.map(|data| data.full_name);
        assert_eq!(
            name.as_deref(),
            include_personal_data.then_some("Erika Güeno")
        );
    }
}

#[tokio::test]
async fn personal_data_that_is_nested_deeply_can_be_read_by_all() {
    let server = Server::start().await;
    for depth in [20, 40, 60] {
        let nested = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let body = gu1_body(&depth.to_string()).replace(
            r#""status":"#,
            &format!(r#""extractedData":{nested},"status":"#),
        );
        let response = server.ingest(gu1_request(body)).await.unwrap();
        assert_eq!(response.status(), IngestStatus::Accepted);
        let get = GetEventRequest {
            event_id: response.event_id,
            include_personal_data: true,
        };
        let event = server
            .client
            .clone()
            .get_event(get)
            .await
            .unwrap()
            .into_inner()
            .event
            .unwrap();
        assert!(event.personal_data.is_some());
        assert!(event::to_json(&event).unwrap().contains("claims"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let server = Server::start().await;
    let unknown = "00000000-0000-4000-8000-000000000000";
    let get = |event_id: &str| GetEventRequest {
        event_id: event_id.to_owned(),
        ..Default::default()
    };
    let missing = server
        .client
        .clone()
        .get_event(get(unknown))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    assert_eq!(reason(&missing), "EVENT_NOT_FOUND");
    let malformed = server.client.clone().get_event(get("1")).await.unwrap_err();
    assert_eq!(reason(&malformed), "INVALID_REQUEST");
    for target in [
        Target::EventId(unknown.to_owned()),
        Target::QuarantineId(unknown.to_owned()),
    ] {
        let request = GetDeliveryRequest {
            target: Some(target),
        };
        let missing = server
            .admin
            .clone()
            .get_delivery(request)
            .await
            .unwrap_err();
        assert_eq!(reason(&missing), "DELIVERY_NOT_FOUND");
    }
    let empty = server
        .admin
        .clone()
        .get_delivery(GetDeliveryRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&empty), "INVALID_REQUEST");
}

#[tokio::test]
async fn every_delivery_is_counted_once() {
    let server = Server::start().await;
    server.accept("1").await;
    let _ = server.ingest(gu1_request(gu1_body("1"))).await.unwrap();
    for case in ["unknown_event", "alert"] {
        let webhook = crate::support::fixture("gu1", case);
        let _ = server.ingest(request("gu1", &webhook)).await.unwrap();
    }
    let mut forged = gu1_request(gu1_body("2"));
    forged.payload = gu1_body("3").into();
    let _ = server.ingest(forged).await.unwrap_err();

    let response = server
        .admin
        .clone()
        .list_sources(ListSourcesRequest {})
        .await
        .unwrap();
    let sources = response.into_inner().sources;
    let names = sources.iter().map(|source| source.provider.as_str());
    let known = verdict::provider::PROVIDERS.iter();
    assert!(names.eq(known.map(|provider| provider.name())));
    let of = |provider: &str| {
        sources
            .iter()
            .find(|source| source.provider == provider)
            .unwrap()
    };
    let ids = |of: &[SecretInfo]| of.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&of("kayle").decryption_keys), ["k1", "k2"]);
    assert_eq!(ids(&of("fractal").secrets), ["approved", "others"]);
    let counts = of("gu1").counts.unwrap();
    assert_eq!(
        [
            counts.accepted,
            counts.duplicate,
            counts.quarantined,
            counts.ignored,
            counts.signature_invalid,
            counts.log_unavailable
        ],
        [1, 1, 1, 1, 1, 0]
    );
}

#[tokio::test]
async fn many_webhooks_at_once_get_places_of_their_own() {
    let directory = TempDir::new().unwrap();
    let server = Arc::new(Server::start_with(server_config(), embedded_log(&directory)).await);
    let ingests: Vec<_> = (0..200)
        .map(|number| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.accept(&number.to_string()).await.cursor })
        })
        .collect();
    let mut cursors = std::collections::BTreeSet::new();
    for ingest in ingests {
        cursors.insert(ingest.await.unwrap());
    }
    assert_eq!(cursors.len(), 200);
    assert_eq!(server.log.tail().end().0, 200);
}

/// An adapter with a bug.
#[derive(Debug)]
pub(crate) struct Panicking;

impl Provider for Panicking {
    fn name(&self) -> &'static str {
        "gu1"
    }

    fn schemes(&self) -> &'static [Scheme] {
        fixture_source("gu1").provider.schemes()
    }

    fn posting(&self) -> Posting {
        fixture_source("gu1").provider.posting()
    }

    fn normalize(&self, _webhook: &VerifiedWebhook) -> Result<Normalized, NormalizeError> {
        panic!("a bug of the adapter")
    }

    fn samples(&self) -> &'static [Sample] {
        &[]
    }
}

#[tokio::test]
async fn a_webhook_that_we_fail_over_is_to_be_sent_again_and_is_counted() {
    let source = Source {
        provider: &Panicking,
        ..fixture_source("gu1")
    };
    let server = Server::start_from(vec![source], server_config(), memory_log()).await;
    let failed = server.ingest(gu1_request(gu1_body("1"))).await.unwrap_err();
    assert_eq!(reason(&failed), "LOG_UNAVAILABLE");
    let sources = server
        .admin
        .clone()
        .list_sources(ListSourcesRequest {})
        .await;
    let counts = sources.unwrap().into_inner().sources[0].counts.unwrap();
    assert_eq!((counts.failed, counts.log_unavailable), (1, 0));
}
