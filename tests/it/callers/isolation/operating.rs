//! Handing over webhooks, and operating.

use futures_util::StreamExt;
use tonic::Status;
use verdict::{
    ingest::proto_timestamp,
    log::{QuarantineKind, ReadLimit},
    proto::{
        DeleteConsumerRequest, DiscardQuarantinedRequest, EraseSubjectRequest, GetStatusRequest,
        IngestRequest, IngestStatus, IngestStreamRequest, ListQuarantinedRequest,
        ListSourcesRequest, QuarantineFilter, RedriveRequest, RenormalizeRequest,
        SetLogLevelsRequest, discard_quarantined_request as discard,
        erase_subject_request::Subject, ingest_stream_response::Result as Answered,
        redrive_request as redrive, renormalize_response::Message as Renormalized,
    },
    provider::jwe,
};

use super::{callers, filled, told, webhook};
use crate::{
    callers::{House, by, caller, sources},
    support::{gu1_body, real_now, request, sign},
};

#[tokio::test]
async fn nobody_hands_over_webhooks_of_others_or_learns_whether_there_are_any() {
    let house = House::open(&callers()).await;
    let mut client = house.client.clone();
    let before = house.log.tail().end();
    let nowhere = |provider: &str, account: &str| IngestRequest {
        provider: provider.to_owned(),
        account: account.to_owned(),
        ..webhook(0, "event")
    };
    let attempts = [
        webhook(1, "event"),
        webhook(2, "event"),
        nowhere("gu1", "nowhere"),
        nowhere("nobody", "default"),
        nowhere("GU1", ""),
    ];
    let answers = attempts.clone().map(|attempt| {
        let mut client = client.clone();
        async move { told(client.ingest(by("a", attempt)).await) }
    });
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers[0].1, "SCOPE_MISSING");
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );

    let requests = attempts.clone().map(|request| IngestStreamRequest {
        correlation_id: String::new(),
        request: Some(request),
    });
    let stream = client
        .ingest_stream(by("a", tokio_stream::iter(requests)))
        .await;
    let answers: Vec<_> = stream.expect("a stream").into_inner().collect().await;
    assert_eq!(answers.len(), attempts.len());
    for answer in answers {
        match answer.expect("no end").result {
            Some(Answered::Error(error)) => assert_eq!(error.reason, "SCOPE_MISSING"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(house.log.tail().end(), before);
    house.close().await;
}

#[tokio::test]
async fn operators_of_one_source_touch_no_other() {
    let house = House::open(&callers()).await;
    let content = filled(&house).await;
    let mut admin = house.admin.clone();
    let listed = admin
        .list_sources(by("b", ListSourcesRequest {}))
        .await
        .expect("a list");
    let listed = listed.into_inner().sources;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].account, "other");
    for include_deliveries in [false, true] {
        let list = ListQuarantinedRequest {
            include_deliveries,
            ..Default::default()
        };
        let listed = admin
            .list_quarantined(by("b", list))
            .await
            .expect("a list")
            .into_inner();
        let listed: Vec<_> = listed
            .quarantined
            .into_iter()
            .map(|one| one.quarantine_id)
            .collect();
        assert_eq!(listed, [content.quarantined[1].clone()]);
        let list = ListQuarantinedRequest {
            include_deliveries,
            provider: "fyatu".to_owned(),
            ..Default::default()
        };
        let listed = admin
            .list_quarantined(by("b", list))
            .await
            .expect("a list")
            .into_inner();
        assert_eq!(listed, Default::default());
    }
    let nothing = uuid::Uuid::from_u128(1).to_string();
    for other in [0, 2] {
        let redrive = |id: &str| RedriveRequest {
            target: Some(redrive::Target::QuarantineId(id.to_owned())),
            ..Default::default()
        };
        let missing = told(admin.redrive(by("b", redrive(&nothing))).await);
        assert_eq!(
            told(
                admin
                    .redrive(by("b", redrive(&content.quarantined[other])))
                    .await
            ),
            missing
        );
        let discard = |id: &str| DiscardQuarantinedRequest {
            target: Some(discard::Target::QuarantineId(id.to_owned())),
        };
        let missing = told(admin.discard_quarantined(by("b", discard(&nothing))).await);
        assert_eq!(
            told(
                admin
                    .discard_quarantined(by("b", discard(&content.quarantined[other])))
                    .await
            ),
            missing
        );
    }
    for filter in [
        QuarantineFilter::default(),
        QuarantineFilter {
            provider: "fyatu".to_owned(),
            ..Default::default()
        },
    ] {
        let request = RedriveRequest {
            target: Some(redrive::Target::Filter(filter.clone())),
            ..Default::default()
        };
        let redriven = admin
            .redrive(by("b", request))
            .await
            .expect("an answer")
            .into_inner();
        assert!(
            redriven
                .redriven
                .iter()
                .all(|one| one.quarantine_id == content.quarantined[1])
        );
    }
    let renormalize = RenormalizeRequest::default();
    let stream = admin
        .renormalize(by("b", renormalize))
        .await
        .expect("a walk")
        .into_inner();
    let messages: Vec<_> = stream.collect().await;
    match messages
        .last()
        .expect("a summary")
        .as_ref()
        .expect("no error")
        .message
        .as_ref()
    {
        Some(Renormalized::Summary(summary)) => assert_eq!(summary.examined, 1),
        other => panic!("{other:?}"),
    }
    // What is about all sources is for those only who operate all.
    assert_eq!(
        told(admin.get_status(by("b", GetStatusRequest {})).await).1,
        "SCOPE_MISSING"
    );
    let delete = DeleteConsumerRequest {
        consumer: "all/c".to_owned(),
    };
    assert_eq!(
        told(admin.delete_consumer(by("b", delete)).await).1,
        "SCOPE_MISSING"
    );
    let silence = SetLogLevelsRequest {
        levels: Some("off".to_owned()),
    };
    assert_eq!(
        told(admin.set_log_levels(by("b", silence)).await).1,
        "SCOPE_MISSING"
    );
    let erase = EraseSubjectRequest {
        provider: "fyatu".to_owned(),
        subject: Some(Subject::ProviderSubjectId("anyone".to_owned())),
        ..Default::default()
    };
    assert_eq!(
        told(admin.erase_subject(by("b", erase)).await).1,
        "SCOPE_MISSING"
    );

    let all = DiscardQuarantinedRequest {
        target: Some(discard::Target::Filter(QuarantineFilter::default())),
    };
    let discarded = admin
        .discard_quarantined(by("b", all))
        .await
        .expect("an answer")
        .into_inner();
    assert_eq!(discarded.discarded, 1);
    let limit = ReadLimit {
        records: 10,
        bytes: 1 << 20,
    };
    let left = house
        .log
        .quarantined(QuarantineKind::Genuine, 0, limit)
        .await
        .expect("the quarantine");
    assert_eq!(left.len(), 2);
    house.close().await;
}

#[tokio::test]
async fn only_who_may_backfill_says_when_a_webhook_was_received() {
    let ingesting = caller("ingesting", &[("ingest subscribe", "")]);
    let partly = caller(
        "partly",
        &[
            ("ingest subscribe", ""),
            ("backfill", "accounts = [\"other\"]"),
        ],
    );
    let house = House::open(&format!("{}{ingesting}{partly}", callers())).await;
    let mut client = house.client.clone();
    let then: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
    let mut send = async |token: &str, id: &str, received_at| {
        let source = &sources()[0];
        let request = IngestRequest {
            received_at: Some(proto_timestamp(received_at)),
            return_event: true,
            ..request("gu1", &sign(source, gu1_body(id)))
        };
        let answer = client.ingest(by(token, request)).await?;
        Ok::<_, Status>(answer.into_inner().event.expect("an event").received_at)
    };
    assert_eq!(
        send("all", "1", then).await.expect("taken"),
        Some(proto_timestamp(then))
    );
    for token in ["ingesting", "partly"] {
        let received = send(token, token, then)
            .await
            .expect("taken")
            .expect("a time");
        assert!(
            received.seconds > then.as_second() + 1000,
            "{token} is believed"
        );
    }
    let future = real_now() + jiff::SignedDuration::from_secs(3600);
    assert_eq!(told(send("all", "2", future).await).1, "INVALID_REQUEST");

    // A signed time is checked against the time that is believed.
    let kayle = &sources()[3];
    let body = r#"{"type":"verification.session.expired","metadata":{"contract_version":3,"event_id":"evt_a","verification_session_id":"vs_a"},"data":{}}"#;
    let encrypted =
        jwe::encrypt(body.as_bytes(), &kayle.keys().decryption_keys[0]).expect("encrypted");
    let signed = kayle.schemes[0].sign(encrypted.into(), &kayle.keys().secrets[0], then);
    let old = |received_at| IngestRequest {
        received_at,
        ..request("kayle", &signed.clone().expect("signed"))
    };
    let then = Some(proto_timestamp(then));
    for (token, received_at) in [("ingesting", then), ("partly", then), ("all", None)] {
        let refused = house
            .client
            .clone()
            .ingest(by(token, old(received_at)))
            .await;
        assert_eq!(told(refused).1, "SIGNATURE_INVALID", "{token}");
    }
    let accepted = house
        .client
        .clone()
        .ingest(by("all", old(then)))
        .await
        .expect("genuine then");
    assert_eq!(accepted.into_inner().status(), IngestStatus::Accepted);
    house.close().await;
}
