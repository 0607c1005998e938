//! A subject is erased: from the log and the quarantine, for every caller, and for good. And what the server writes about a
//! person is in none of its files as it is.

use std::{fs, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tempfile::TempDir;
use tokio::time;
use tonic::{Code, Status};
use uuid::Uuid;
use verdict::{
    event,
    log::{Appended, EventLog, NewEvent, Origin, QuarantineKind},
    proto::{
        EraseSubjectRequest, EraseSubjectResponse, GetDeliveryRequest, GetEventRequest,
        IngestRequest, IngestStatus, PersonalData, RenormalizeRequest, Source, Subject,
        SubscribeRequest, Verification, VerificationEvent,
        admin_service_client::AdminServiceClient, erase_subject_request::Subject as Id,
        get_delivery_request::Target, renormalize_response::Message as Renormalized,
        verdict_service_client::VerdictServiceClient, verification_event::Detail,
    },
};

use crate::{
    cli::{Place, run, run_at, verdict},
    log::at,
    quarantine::keeping,
    renormalize::store_misread,
    support::{
        NOW, PATIENCE, Server, connect, embedded_log, fixture_source, from_earliest, gu1_request,
        memory_log, next_event, reason, request, server_config, sign,
    },
};

/// A webhook of gu1 about somebody, who is known there and to us by ids, and has a name.
fn body(id: &str, status: &str, person: &str) -> String {
    format!(
        r#"{{"event":"kyc.validation_{status}","timestamp":"{NOW}","payload":{{"id":"{id}","entityId":"ent-{person}","status":"{status}","extractedData":{{"documentNumber":"number of {person}"}},"entity":{{"id":"ent-{person}","externalId":"ours-{person}","name":"name of {person}"}}}}}}"#
    )
}

async fn accept(server: &Server, body: String) -> String {
    let response = server.ingest(gu1_request(body)).await.unwrap();
    assert_eq!(response.status(), IngestStatus::Accepted);
    response.event_id
}

async fn erase(server: &Server, id: Id) -> Result<EraseSubjectResponse, Status> {
    let request = EraseSubjectRequest {
        provider: "gu1".to_owned(),
        account: String::new(),
        subject: Some(id),
    };
    let erased = server.admin.clone().erase_subject(request).await;
    erased.map(tonic::Response::into_inner)
}

fn subject_id(person: &str) -> Id {
    Id::ProviderSubjectId(format!("ent-{person}"))
}

fn erased(events: u64, discarded: u64, unattributed: u64) -> EraseSubjectResponse {
    EraseSubjectResponse {
        events,
        quarantined_discarded: discarded,
        quarantined_unattributed: unattributed,
    }
}

async fn personal_data(server: &Server, event_id: &str) -> PersonalData {
    let request = GetEventRequest {
        event_id: event_id.to_owned(),
        include_personal_data: true,
    };
    let event = server.client.clone().get_event(request).await.unwrap();
    let event = event.into_inner().event.unwrap();
    assert!(!event.event_id.is_empty() && event.subject.is_some());
    event.personal_data.unwrap()
}

async fn delivery(server: &Server, target: Target) -> Result<Bytes, Status> {
    let request = GetDeliveryRequest {
        target: Some(target),
    };
    let response = server.admin.clone().get_delivery(request).await?;
    Ok(response.into_inner().delivery.unwrap().payload)
}

async fn is_erased(server: &Server, event_id: &str) -> bool {
    let personal_data = personal_data(server, event_id).await;
    let delivery = delivery(server, Target::EventId(event_id.to_owned())).await;
    let only_erased = PersonalData {
        erased: true,
        ..Default::default()
    };
    match personal_data == only_erased {
        true => {
            assert_eq!(reason(&delivery.unwrap_err()), "DELIVERY_NOT_FOUND");
            true
        }
        false => {
            assert!(personal_data.full_name.starts_with("name of"));
            assert!(!delivery.unwrap().is_empty());
            false
        }
    }
}

/// Servers with a log of each kind.
async fn servers(directory: &TempDir) -> [Server; 2] {
    let start = async |log| Server::start_from(keeping(), server_config(), log).await;
    [
        start(memory_log()).await,
        start(embedded_log(directory)).await,
    ]
}

#[tokio::test]
async fn a_subject_is_erased_and_nobody_else() {
    let directory = TempDir::new().unwrap();
    for server in servers(&directory).await {
        let mut of_anna = Vec::new();
        for (number, status) in ["in_progress", "approved", "rejected"]
            .into_iter()
            .enumerate()
        {
            let id = format!("a{number}");
            of_anna.push(accept(&server, body(&id, status, "anna")).await);
        }
        let of_berta = accept(&server, body("b", "approved", "berta")).await;
        // Quarantined: about Anna (other content for a known event), of nobody knows whom, and not genuine.
        let conflict = body("a1", "approved", "anna").replace("name of", "another name of");
        let conflict = server.ingest(gu1_request(conflict)).await.unwrap();
        assert_eq!(conflict.status(), IngestStatus::Quarantined);
        let conflict = conflict.quarantine_id;
        let unknown = server
            .ingest(gu1_request(body("b", "unheard_of", "berta")))
            .await
            .unwrap();
        assert_eq!(unknown.status(), IngestStatus::Quarantined);
        let mut forged = gu1_request(body("c", "approved", "carla"));
        forged.headers.clear();
        server.ingest(forged).await.unwrap_err();
        let kept = async {
            while server.log.stats().unverified.deliveries < 1 {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, kept).await.unwrap();
        assert!(
            delivery(&server, Target::QuarantineId(conflict.clone()))
                .await
                .is_ok()
        );

        let answer = erase(&server, subject_id("anna")).await.unwrap();
        assert_eq!(answer, erased(3, 1, 2));
        let answer = erase(&server, Id::ExternalId("ours-anna".to_owned())).await;
        assert_eq!(answer.unwrap(), erased(3, 0, 2));
        for event_id in &of_anna {
            assert!(is_erased(&server, event_id).await);
        }
        assert!(!is_erased(&server, &of_berta).await);
        let gone = delivery(&server, Target::QuarantineId(conflict)).await;
        assert_eq!(reason(&gone.unwrap_err()), "DELIVERY_NOT_FOUND");
        let left = Target::QuarantineId(unknown.quarantine_id);
        assert!(delivery(&server, left).await.is_ok());

        // A stream shows it too, in the old order, and redeliveries are redeliveries.
        let mut stream = server
            .subscribe(SubscribeRequest {
                include_personal_data: true,
                ..from_earliest()
            })
            .await;
        for event_id in &of_anna {
            let event = next_event(&mut stream).await;
            assert_eq!(event.event_id, *event_id);
            assert!(event.personal_data.unwrap().erased);
        }
        assert!(!next_event(&mut stream).await.personal_data.unwrap().erased);
        let again = server
            .ingest(gu1_request(body("a1", "approved", "anna")))
            .await;
        assert_eq!(again.unwrap().status(), IngestStatus::Duplicate);

        // What comes later is of a subject that can be erased again.
        let later = accept(&server, body("a9", "approved", "anna")).await;
        assert!(!is_erased(&server, &later).await);
        assert_eq!(
            erase(&server, subject_id("anna")).await.unwrap(),
            erased(4, 0, 2)
        );
        assert!(is_erased(&server, &later).await);
        assert_eq!(
            erase(&server, subject_id("nobody")).await.unwrap(),
            erased(0, 0, 2)
        );

        // Without its delivery an event cannot be normalized again.
        let request = RenormalizeRequest {
            dry_run: true,
            filter: None,
        };
        let stream = server.admin.clone().renormalize(request).await.unwrap();
        let mut stream = stream.into_inner();
        let Some(Renormalized::Summary(summary)) = stream.message().await.unwrap().unwrap().message
        else {
            panic!("nothing is different");
        };
        assert_eq!((summary.without_delivery, summary.unchanged), (4, 1));
        server.stop().await;
    }
}

/// An event as adapters make them, with whatever ids.
async fn append(log: &Arc<dyn EventLog>, number: u128, verification_id: &str, subject_id: &str) {
    append_other(log, number, verification_id, subject_id, |_| {}).await;
}

async fn append_other(
    log: &Arc<dyn EventLog>,
    number: u128,
    verification_id: &str,
    subject_id: &str,
    change: impl FnOnce(&mut VerificationEvent),
) {
    let mut event = VerificationEvent {
        event_id: Uuid::from_u128(number).to_string(),
        source: Some(Source {
            provider: "gu1".to_owned(),
            account: "default".to_owned(),
            ..Default::default()
        }),
        subject: Some(Subject {
            provider_subject_id: subject_id.to_owned(),
            ..Default::default()
        }),
        detail: Some(Detail::Verification(Verification {
            verification_id: verification_id.to_owned(),
            ..Default::default()
        })),
        personal_data: Some(PersonalData {
            full_name: format!("name of {number}"),
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut event);
    let corrected = Uuid::parse_str(&event.corrects_event_id);
    let appended = log.append(NewEvent {
        event_id: Uuid::from_u128(number),
        content_sha256: [0; 32],
        verification: event::verification_key(&event),
        subject: event::subject_key(&event),
        occurred_at: None,
        received_at: at(0),
        origin: corrected.map_or(Origin::Received, Origin::Correction),
        encoded: event::encode(event),
        delivery: Bytes::from_static(b"delivery"),
    });
    assert!(matches!(appended.await.unwrap(), Appended::New(_)));
}

async fn erased_numbers(log: &Arc<dyn EventLog>) -> Vec<u64> {
    let mut numbers = Vec::new();
    for stored in log.read(log.start(), crate::log::ALL).await.unwrap() {
        if log.personal_data(&stored).await.unwrap() == event::erased() {
            numbers.push(stored.position.0);
        }
    }
    numbers
}

#[tokio::test]
async fn what_a_verification_said_before_its_subject_was_known_is_erased_with_it() {
    let directory = TempDir::new().unwrap();
    for server in servers(&directory).await {
        let log = &server.log;
        append(log, 1, "v1", "").await;
        append(log, 2, "v2", "").await;
        append(log, 3, "v1", "other").await;
        append(log, 4, "v1", "anna").await;
        append(log, 5, "v1", "").await;
        append(log, 6, "v3", "anna").await;
        append(log, 7, "v2", "").await;
        let answer = erase(&server, Id::ProviderSubjectId("anna".to_owned())).await;
        assert_eq!(answer.unwrap(), erased(4, 0, 0));
        assert_eq!(erased_numbers(log).await, [1, 4, 5, 6]);
        // One that never came to be known is known by its verification.
        let answer = erase(&server, Id::VerificationId("v2".to_owned())).await;
        assert_eq!(answer.unwrap(), erased(2, 0, 0));
        assert_eq!(erased_numbers(log).await, [1, 2, 4, 5, 6, 7]);
        server.stop().await;
    }
}

#[tokio::test]
async fn an_event_is_erased_with_what_it_corrects_and_what_corrects_it() {
    let directory = TempDir::new().unwrap();
    for server in servers(&directory).await {
        let log = &server.log;
        let correct = async |number, corrected: u128, verification_id: &str, subject_id: &str| {
            append_other(log, number, verification_id, subject_id, |event| {
                event.corrects_event_id = Uuid::from_u128(corrected).to_string();
            })
            .await;
        };
        // The first correction that knew whom it is about comes late.
        append(log, 1, "", "").await;
        append(log, 2, "", "other").await;
        correct(3, 1, "", "").await;
        correct(4, 1, "", "wrong").await;
        correct(5, 1, "", "anna").await;
        correct(6, 1, "", "").await;
        // A correction that no longer knows whom it is about.
        append(log, 7, "v1", "anna").await;
        correct(8, 7, "v1", "other").await;
        correct(9, 2, "", "other").await;
        // Before the verification was known to be hers, and corrected.
        append(log, 10, "v2", "").await;
        correct(11, 10, "v2", "").await;
        correct(12, 10, "v2", "anna").await;
        for _ in 0..2 {
            let answer = erase(&server, Id::ProviderSubjectId("anna".to_owned())).await;
            assert_eq!(answer.unwrap(), erased(10, 0, 0));
            assert_eq!(erased_numbers(log).await, [1, 3, 4, 5, 6, 7, 8, 10, 11, 12]);
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn exactly_the_events_that_name_an_id_are_erased_wherever_segments_end() {
    let directory = TempDir::new().unwrap();
    for server in servers(&directory).await {
        let log = &server.log;
        let known_to_us = |event: &mut VerificationEvent| {
            event.subject.as_mut().unwrap().external_id = "ours".to_owned();
        };
        append(log, 1, "v1", "anna").await;
        append_other(log, 2, "v2", "anna", known_to_us).await;
        append_other(log, 3, "v3", "", known_to_us).await;
        append(log, 4, "v2", "anna").await;
        let answer = erase(&server, Id::VerificationId("v1".to_owned())).await;
        assert_eq!(answer.unwrap(), erased(1, 0, 0));
        assert_eq!(erased_numbers(log).await, [1]);
        let answer = erase(&server, Id::ExternalId("ours".to_owned())).await;
        assert_eq!(answer.unwrap(), erased(2, 0, 0));
        assert_eq!(erased_numbers(log).await, [1, 2, 3]);
        server.stop().await;
    }
}

#[tokio::test]
async fn who_was_erased_does_not_come_back_with_a_correction() {
    let directory = TempDir::new().unwrap();
    let log = embedded_log(&directory);
    let server = Server::start_with(server_config(), Arc::clone(&log)).await;
    let gu1 = fixture_source("gu1");
    let webhook = sign(&gu1, body("a", "approved", "anna"));
    let stored = store_misread(&log, &gu1, webhook, |event| {
        event.subject = None;
        event.detail = None;
    });
    let stored = stored.await;
    let renormalize = async || {
        let mut admin = server.admin.clone();
        let stream = admin.renormalize(RenormalizeRequest::default()).await;
        let mut stream = stream.unwrap().into_inner();
        loop {
            if let Some(Renormalized::Summary(summary)) =
                stream.message().await.unwrap().unwrap().message
            {
                return summary;
            }
        }
    };
    assert_eq!(renormalize().await.appended, 1);
    // The original does not name her; its correction does.
    let answer = erase(&server, subject_id("anna")).await.unwrap();
    assert_eq!(answer, erased(2, 0, 0));
    let original = delivery(&server, Target::EventId(stored.event_id)).await;
    assert_eq!(reason(&original.unwrap_err()), "DELIVERY_NOT_FOUND");
    let summary = renormalize().await;
    assert_eq!((summary.appended, summary.without_delivery), (0, 1));
    assert_eq!(erased_numbers(&log).await, [1, 2]);
    server.stop().await;
}

#[tokio::test]
async fn a_subject_is_erased_from_thousands_of_events_while_more_come_in() {
    let directory = TempDir::new().unwrap();
    let server = Server::start_with(server_config(), embedded_log(&directory)).await;
    let log = &server.log;
    let appends = (1..=3000).map(|number| {
        let person = ["anna", "berta"][number as usize % 2];
        append(log, number, "", person)
    });
    futures_util::future::join_all(appends).await;
    let more = async {
        for number in 3001..=3200 {
            append(log, number, "", "berta").await;
        }
    };
    let erase = erase(&server, Id::ProviderSubjectId("anna".to_owned()));
    let (answer, ()) = futures_util::future::join(erase, more).await;
    assert_eq!(answer.unwrap(), erased(1500, 0, 0));
    assert_eq!(erased_numbers(log).await.len(), 1500);
    server.stop().await;
}

#[tokio::test]
async fn whom_to_erase_must_be_said() {
    let server = Server::start().await;
    let ask = async |provider: &str, subject: Option<Id>| {
        let request = EraseSubjectRequest {
            provider: provider.to_owned(),
            account: String::new(),
            subject,
        };
        server.admin.clone().erase_subject(request).await
    };
    for (provider, subject) in [
        ("", Some(subject_id("anna"))),
        ("gu1", None),
        ("gu1", Some(Id::ProviderSubjectId(String::new()))),
        ("gu1", Some(Id::ExternalId(String::new()))),
        ("gu1", Some(Id::VerificationId(String::new()))),
    ] {
        let refused = ask(provider, subject).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_REQUEST");
    }
    // A source may be gone from the configuration, and its events be there still.
    let unknown = ask("gone", Some(subject_id("anna"))).await.unwrap();
    assert_eq!(unknown.into_inner(), erased(0, 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn who_is_not_encrypted_is_told_of() {
    let directory = TempDir::new().unwrap();
    let mut config = crate::support::log_config(directory.path());
    config.encryption.enabled = false;
    let log = verdict::transport::open_log(&config).unwrap();
    let server = Server::start_with(server_config(), log).await;
    let event_id = accept(&server, body("a", "approved", "anna")).await;
    let refused = erase(&server, subject_id("anna")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "NOT_ENCRYPTED");
    assert!(refused.message().starts_with("1 events"));
    assert!(!is_erased(&server, &event_id).await);
    server.stop().await;
}

/// Words about persons, each in another kind of delivery.
const MARKERS: [&str; 3] = ["marked-accepted", "marked-quarantined", "marked-unverified"];

fn marked(marker: &str, status: &str) -> IngestRequest {
    let webhook = sign(
        &fixture_source("gu1"),
        body(marker, status, "somebody").replace("of somebody", marker),
    );
    request("gu1", &webhook)
}

/// Which of the markers are in any file of a directory.
fn found(directory: &Path) -> [bool; 3] {
    let mut found = [false; 3];
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let here = match path.is_dir() {
            true => self::found(&path),
            // A file may have gone meanwhile.
            false => {
                let content = fs::read(&path).unwrap_or_default();
                MARKERS.map(|marker| {
                    let name = format!("name {marker}");
                    let mut parts = content.windows(name.len());
                    parts.any(|part| part == name.as_bytes())
                })
            }
        };
        for (found, here) in found.iter_mut().zip(here) {
            *found |= here;
        }
    }
    found
}

#[tokio::test]
async fn no_file_of_the_server_holds_what_a_person_is() {
    for enabled in [true, false] {
        let place = Place::new();
        let secret = std::env::current_dir()
            .unwrap()
            .join("tests/fixtures/gu1/secret");
        place.configure(&format!(
            "[[sources]]\nprovider = \"gu1\"\naccount = \"kept\"\nkeep_unverified = true\nsecrets = [{{ id = \"one\", file = \"{}\" }}]",
            secret.display()
        ));
        place.configure(&format!("[log.encryption]\nenabled = {enabled}"));
        let mut serving = place.serve();
        let log = place.path("log");
        let mut client = VerdictServiceClient::new(connect(&serving.endpoint).await);
        let [accepted, quarantined, unverified] = MARKERS;
        let response = client.ingest(marked(accepted, "approved")).await.unwrap();
        let response = response.into_inner();
        assert_eq!(response.status(), IngestStatus::Accepted);
        let event_id = response.event_id;
        let response = client.ingest(marked(quarantined, "unheard_of")).await;
        assert_eq!(
            response.unwrap().into_inner().status(),
            IngestStatus::Quarantined
        );
        let forged = IngestRequest {
            account: "kept".to_owned(),
            headers: Vec::new(),
            ..marked(unverified, "approved")
        };
        client.ingest(forged).await.unwrap_err();
        let kept = async {
            let mut admin = AdminServiceClient::new(connect(&serving.endpoint).await);
            loop {
                let status = admin.get_status(verdict::proto::GetStatusRequest {}).await;
                let unverified = status.unwrap().into_inner().unverified.unwrap();
                if unverified.deliveries == 1 {
                    return;
                }
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        time::timeout(PATIENCE, kept).await.unwrap();
        let event = client
            .get_event(GetEventRequest {
                event_id,
                include_personal_data: true,
            })
            .await
            .unwrap();
        let event = event.into_inner().event.unwrap();
        assert_eq!(
            event.personal_data.unwrap().full_name,
            format!("name {accepted}")
        );

        // While it runs, after it was stopped, and after it was killed.
        assert_eq!(found(&log), [!enabled; 3]);
        assert!(serving.end("-TERM").success());
        assert_eq!(found(&log), [!enabled; 3]);
        let mut serving = place.serve();
        let mut client = VerdictServiceClient::new(connect(&serving.endpoint).await);
        client.ingest(marked("later", "approved")).await.unwrap();
        serving.kill();
        assert_eq!(found(&log), [!enabled; 3]);
    }
}

#[tokio::test]
async fn quarantined_deliveries_of_whom_nobody_knows_are_counted_once() {
    let directory = TempDir::new().unwrap();
    let server = Server::start_from(keeping(), server_config(), embedded_log(&directory)).await;
    let response = server
        .ingest(gu1_request(body("a", "unheard_of", "anna")))
        .await
        .unwrap();
    let stored = server
        .log
        .quarantined(QuarantineKind::Genuine, 0, crate::log::ALL)
        .await
        .unwrap();
    assert!(verdict::proto::Delivery::decode(stored[0].delivery.clone()).is_ok());
    assert_eq!(
        erase(&server, subject_id("anna")).await.unwrap(),
        erased(0, 0, 1)
    );
    let id = Uuid::parse_str(&response.quarantine_id).unwrap();
    assert!(server.log.find_quarantined(id).await.unwrap().is_some());
    server.stop().await;
}

#[tokio::test]
async fn the_command_erases_only_when_told_so() {
    let directory = TempDir::new().unwrap();
    let server = Server::start_with(server_config(), embedded_log(&directory)).await;
    let event_id = accept(&server, body("a", "approved", "anna")).await;
    let erase = ["erase", "--provider", "gu1", "--external-id", "ours-anna"];
    let refused = run_at(&server, &erase).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("add --yes"));
    let nobody = run_at(&server, &["erase", "--provider", "gu1", "--yes"]).await;
    assert_eq!(nobody.status.code(), Some(2));
    assert!(!is_erased(&server, &event_id).await);

    let erased = run_at(&server, &[&erase[..], &["--yes"]].concat()).await;
    assert!(erased.status.success(), "{erased:?}");
    let told: serde_json::Value = serde_json::from_slice(&erased.stdout).unwrap();
    assert_eq!(told["events"], "1");
    assert!(is_erased(&server, &event_id).await);
    let status = run_at(&server, &["status", "--format", "table"]).await;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("encryption  master key "), "{status}");
    server.stop().await;
}

#[test]
fn a_new_master_key_is_another_each_time() {
    let lines = [(); 2].map(|()| run(verdict().args(["keys", "new"])).stdout);
    assert_ne!(lines[0], lines[1]);
    for line in lines {
        let line = String::from_utf8(line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        // 32 bytes in base64.
        assert!(words.len() == 2 && words[1].len() == 44, "{line}");
    }
}
