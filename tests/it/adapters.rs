//! One contract for all adapters: whatever a provider sends, and whatever someone makes of it.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::SignedDuration;
use verdict::{
    event,
    proto::{QuarantineReason, Reason, ReasonCode, VerificationEvent, verification_event::Detail},
    provider::{
        Headers, Normalized, PROVIDERS, Provider, RawWebhook, Sample,
        signature::{Recipe, Scheme, Secret, VerifyError},
    },
    source::Source,
};

use crate::support::{fixtures, now, other_secret, plain_source, secret, secrets};

/// Every sample of every provider, signed by its scheme.
fn signed_samples() -> Vec<(Source, RawWebhook)> {
    let mut signed = Vec::new();
    for provider in PROVIDERS {
        for sample in provider.samples() {
            let source = plain_source(*provider, sample.scheme);
            let webhook = sign(&source, sample.body);
            signed.push((source, webhook));
        }
    }
    signed
}

fn sign(source: &Source, body: &str) -> RawWebhook {
    let body = Bytes::from(body.to_owned());
    source.schemes[0].sign(body, &secret(), now()).unwrap()
}

fn verify(source: &Source, webhook: RawWebhook) -> Result<String, VerifyError> {
    let verified = source.verify(webhook, now());
    verified.map(|webhook| webhook.secret_id().to_owned())
}

fn normalize(source: &Source, webhook: RawWebhook) -> Normalized {
    let webhook = source.verify(webhook, now()).unwrap();
    source.normalize(&webhook).unwrap()
}

fn event_of(source: &Source, body: &str) -> VerificationEvent {
    match normalize(source, sign(source, body)) {
        Normalized::Event(normalized) => normalized.event,
        Normalized::Ignored => panic!("ignored: {body}"),
    }
}

#[test]
fn what_an_adapter_does_not_read_costs_no_allocation() {
    for (source, sample) in signed_samples() {
        let allocations = |unused: usize| {
            let webhook = sign(&source, &with_unused(&sample.payload, unused));
            let take = || {
                let verified = source.verify(webhook, now()).unwrap();
                assert!(source.normalize(&verified).is_ok());
            };
            allocation_counter::measure(take).count_total
        };
        // What is made once for all webhooks.
        allocations(1);
        let name = source.schemes[0].name;
        // With the first one, the parser makes room to keep track of where it is.
        assert_eq!(allocations(1), allocations(200), "{name}");
    }
}

/// A body with so many more members, and as many in the object that it is about.
fn with_unused(body: &[u8], unused: usize) -> String {
    let unused: String = (0..unused)
        .map(|number| format!(r#""unused_{number}":{{"a":[{number},"b\n\u00e9",null],"c":15}},"#))
        .collect();
    let body = std::str::from_utf8(body).unwrap().to_owned();
    let objects = ["{", r#""data":{"#, r#""payload":{"#];
    objects.iter().fold(body, |body, object| {
        body.replacen(object, &format!("{object}{unused}"), 1)
    })
}

#[test]
fn every_provider_has_one_name_and_a_sample_for_each_scheme() {
    let names: Vec<&str> = PROVIDERS.iter().map(|provider| provider.name()).collect();
    assert!(names.is_sorted(), "{names:?}");
    for provider in PROVIDERS {
        let name = provider.name();
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        );
        let schemes: BTreeSet<&str> = provider
            .schemes()
            .iter()
            .map(|scheme| scheme.name)
            .collect();
        let sampled: BTreeSet<&str> = provider
            .samples()
            .iter()
            .map(|sample| sample.scheme)
            .collect();
        assert_eq!(schemes, sampled, "{name}");
        assert_eq!(
            schemes.len(),
            provider.schemes().len(),
            "{name} names a scheme twice"
        );
    }
}

#[test]
fn every_scheme_has_a_fixture() {
    let mut unproved: BTreeSet<(&str, &str)> = PROVIDERS
        .iter()
        .flat_map(|provider| {
            provider
                .schemes()
                .iter()
                .map(|scheme| (provider.name(), scheme.name))
        })
        .collect();
    for fixture in fixtures() {
        let name = fixture.provider.name();
        let source = crate::support::fixture_source(name);
        let verified = source.verify(fixture.webhook, now());
        let verified = verified.unwrap_or_else(|error| panic!("{name}/{}: {error}", fixture.case));
        unproved.remove(&(name, verified.scheme().name));
    }
    assert!(unproved.is_empty(), "{unproved:?}");
}

#[test]
fn a_signed_sample_is_genuine_and_becomes_the_same_event_each_time() {
    for (source, webhook) in signed_samples() {
        // The first live secret is the older one; the one that matched is named.
        assert_eq!(verify(&source, webhook.clone()), Ok("current".to_owned()));
        let Normalized::Event(first) = normalize(&source, webhook.clone()) else {
            panic!("a sample of {} is ignored", source.provider.name());
        };
        let Normalized::Event(second) = normalize(&source, webhook) else {
            panic!("normalized differently the second time");
        };
        assert_eq!(first.key, second.key);
        assert_eq!(event::encode(first.event), event::encode(second.event));
    }
}

#[test]
fn every_changed_byte_of_what_is_signed_is_noticed() {
    for (source, webhook) in signed_samples() {
        let signed = signed_range(source.schemes[0], &webhook.payload);
        for index in signed {
            let mut payload = webhook.payload.to_vec();
            payload[index] ^= 1;
            let changed = RawWebhook {
                payload: payload.into(),
                headers: webhook.headers.clone(),
            };
            let name = source.provider.name();
            assert!(verify(&source, changed).is_err(), "{name}: byte {index}");
        }
    }
}

/// Where in a body the signed bytes lie.
fn signed_range(scheme: &Scheme, body: &[u8]) -> std::ops::Range<usize> {
    match scheme.recipe {
        Recipe::Body { .. } | Recipe::TimestampedBody { .. } => 0..body.len(),
        Recipe::Member { signed, .. } => {
            // In the samples it is the last member.
            let name = format!("\"{signed}\":");
            let text = std::str::from_utf8(body).unwrap();
            text.find(&name).unwrap() + name.len()..body.len() - 1
        }
    }
}

#[test]
fn another_secret_is_noticed() {
    for (source, webhook) in signed_samples() {
        let source = Source {
            keyring: secrets(vec![
                other_secret(),
                Secret::new("x".to_owned(), b"x".to_vec()),
            ]),
            ..source
        };
        assert_eq!(verify(&source, webhook), Err(VerifyError::Mismatch));
    }
}

#[test]
fn a_missing_signature_is_noticed() {
    for (source, webhook) in signed_samples() {
        let bare = RawWebhook {
            payload: without_sign(&webhook.payload),
            headers: Headers::default(),
        };
        assert!(matches!(
            verify(&source, bare),
            Err(VerifyError::Missing(_))
        ));
    }
}

/// The body with its member `sign` under another name.
fn without_sign(body: &Bytes) -> Bytes {
    let text = std::str::from_utf8(body).unwrap();
    Bytes::from(text.replacen("\"sign\":", "\"sing\":", 1))
}

#[test]
fn a_signature_that_is_given_twice_is_refused() {
    for (source, webhook) in signed_samples() {
        let headers: Vec<(String, String)> = webhook
            .headers
            .iter()
            .map(|(name, value)| (name.to_uppercase(), value.to_owned()))
            .collect();
        let twice = match headers.is_empty() {
            false => RawWebhook {
                headers: [
                    webhook
                        .headers
                        .iter()
                        .map(|(n, v)| (n.to_owned(), v.to_owned()))
                        .collect(),
                    headers,
                ]
                .concat()
                .into_iter()
                .collect(),
                ..webhook
            },
            true => RawWebhook {
                payload: {
                    let text = std::str::from_utf8(&webhook.payload).unwrap();
                    Bytes::from(text.replacen('{', r#"{"sign":"00","#, 1))
                },
                ..webhook
            },
        };
        let refused = verify(&source, twice);
        assert!(
            matches!(
                refused,
                Err(VerifyError::Repeated(_) | VerifyError::NothingSigned)
            ),
            "{refused:?}"
        );
    }
}

#[test]
fn malformed_signatures_are_refused() {
    let values = [
        "",
        " ",
        "=",
        ",",
        "t=,v1=",
        "t=1,v1=00",
        "v1=00,t=1",
        "sha256=",
        "sha1=zz",
        "0",
        "é",
        &"0".repeat(64 << 10),
    ];
    for (source, webhook) in signed_samples() {
        let Some((header, right)) = webhook.headers.iter().next() else {
            let body = std::str::from_utf8(&webhook.payload).unwrap();
            let (before, rest) = body.split_once("\"sign\":\"").unwrap();
            let (right, after) = rest.split_once('"').unwrap();
            let upper = right.to_uppercase();
            let with = |sign: &str| RawWebhook {
                payload: Bytes::from(format!("{before}\"sign\":{sign}{after}")),
                headers: Headers::default(),
            };
            assert!(verify(&source, with(&format!("\"{upper}\""))).is_ok());
            for sign in [
                "5",
                "null",
                "{}",
                "\"\"",
                "\"zz\"",
                &format!("\"{}\"", &right[..40]),
                &format!("\"{right}00\""),
            ] {
                let refused = verify(&source, with(sign));
                assert_eq!(refused, Err(VerifyError::Malformed("sign")), "{sign}");
            }
            continue;
        };
        let mut wrong: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        wrong.push(right[..right.len() - 1].to_owned());
        wrong.push(format!("{right}00"));
        wrong.push(format!("{right},t=1"));
        for value in wrong {
            let malformed = RawWebhook {
                headers: Headers::from_iter([(header.to_owned(), value.clone())]),
                ..webhook.clone()
            };
            assert!(verify(&source, malformed).is_err(), "{value:?}");
        }
    }
}

#[test]
fn a_signed_time_is_held_against_the_tolerance() {
    let mut timestamped = 0;
    for (source, webhook) in signed_samples() {
        let Recipe::TimestampedBody { .. } = source.schemes[0].recipe else {
            continue;
        };
        timestamped += 1;
        for (seconds, fresh) in [
            (0, true),
            (300, true),
            (-300, true),
            (301, false),
            (-301, false),
        ] {
            let then = now() + SignedDuration::from_secs(seconds);
            let verified = source.verify(webhook.clone(), then);
            match fresh {
                true => assert!(verified.is_ok(), "{seconds} s away"),
                false => assert_eq!(verified.unwrap_err(), VerifyError::Stale(301)),
            }
        }
    }
    assert!(timestamped > 0);
}

#[test]
fn a_cut_off_body_never_panics() {
    for (source, webhook) in signed_samples() {
        for length in 0..webhook.payload.len() {
            let body = &webhook.payload[..length];
            // Signed again, so that the adapter gets to read it.
            let Ok(cut) = source.schemes[0].sign(Bytes::copy_from_slice(body), &secret(), now())
            else {
                continue;
            };
            let Ok(cut) = source.verify(cut, now()) else {
                continue;
            };
            assert!(
                source.normalize(&cut).is_err(),
                "{}: {length} bytes",
                source.provider.name()
            );
        }
    }
}

#[test]
fn a_source_accepts_only_the_schemes_that_it_pins() {
    for provider in PROVIDERS {
        for sample in provider.samples() {
            let signer = plain_source(*provider, sample.scheme);
            let webhook = sign(&signer, sample.body);
            let others = provider.schemes().iter();
            let others = others.filter(|scheme| {
                let same_recipe = scheme.recipe == signer.schemes[0].recipe;
                // The readings of `sign` agree where nothing is written differently.
                let both_members = matches!(scheme.recipe, Recipe::Member { .. })
                    && matches!(signer.schemes[0].recipe, Recipe::Member { .. });
                !same_recipe && !both_members
            });
            for scheme in others {
                let pinned = plain_source(*provider, scheme.name);
                assert!(verify(&pinned, webhook.clone()).is_err(), "{}", scheme.name);
            }
        }
    }
}

fn sample_of(provider: &str, scheme: &str, index: usize) -> (Source, &'static Sample) {
    let provider: &'static dyn Provider = verdict::provider::find(provider).unwrap();
    let mut samples = provider
        .samples()
        .iter()
        .filter(|sample| sample.scheme == scheme);
    (plain_source(provider, scheme), samples.nth(index).unwrap())
}

/// The reasons of a sample in which one code is replaced by another.
fn reasons(provider: &str, scheme: &str, index: usize, code: &str, by: &str) -> Vec<Reason> {
    let (source, sample) = sample_of(provider, scheme, index);
    assert!(sample.body.contains(code), "{} has no {code}", sample.body);
    let event = event_of(&source, &sample.body.replace(code, by));
    match event.detail {
        Some(Detail::Verification(verification)) => verification.reasons,
        other => panic!("not a verification: {other:?}"),
    }
}

/// The codes that the providers document, each with a sample to put it into and the code to replace there.
#[test]
fn every_documented_code_has_a_word_of_ours() {
    const DIDIT: &str = "ID_DOCUMENT_IN_BLOCKLIST BARCODE_NOT_DETECTED BARCODE_VALIDATION_FAILED QR_NOT_DETECTED \
        QR_VALIDATION_FAILED MRZ_NOT_DETECTED MRZ_VALIDATION_FAILED MRZ_AND_DATA_EXTRACTED_FROM_OCR_NOT_SAME \
        MINIMUM_AGE_NOT_MET DATA_INCONSISTENT COULD_NOT_RECOGNIZE_DOCUMENT PORTRAIT_IMAGE_NOT_DETECTED \
        DOCUMENT_NUMBER_NOT_DETECTED DATE_OF_BIRTH_NOT_DETECTED EXPIRATION_DATE_NOT_DETECTED NAME_NOT_DETECTED \
        INVALID_DATE DOCUMENT_EXPIRED DOCUMENT_NOT_SUPPORTED_FOR_APPLICATION POSSIBLE_DUPLICATED_USER \
        LOW_FACE_MATCH_SIMILARITY AGE_BELOW_MINIMUM AGE_NOT_DETECTED NO_FACE_DETECTED LIVENESS_FACE_ATTACK \
        FACE_IN_BLOCKLIST NO_REFERENCE_IMAGE IP_ADDRESS_IN_BLOCKLIST DEVICE_FINGERPRINT_IN_BLOCKLIST \
        COULD_NOT_DETECT_DOCUMENT_TYPE DOCUMENT_SIDES_MISMATCH DOCUMENT_NUMBER_FORMAT_MISMATCH \
        PERSONAL_NUMBER_FORMAT_MISMATCH UNPARSED_ADDRESS SCREEN_CAPTURE_DETECTED PRINTED_COPY_DETECTED \
        PORTRAIT_MANIPULATION_DETECTED ID_VERIFICATION_DATA_MISMATCH_BETWEEN_DOCUMENTS \
        DOCUMENT_NAME_DIFFERENT_FROM_OTHER_APPROVED_DOCUMENTS COUNTRY_MISMATCH_WITH_PROVIDED \
        DOB_MISMATCH_WITH_PROVIDED FULL_NAME_MISMATCH_WITH_PROVIDED GENDER_MISMATCH_WITH_PROVIDED \
        IDENTIFICATION_NUMBER_MISMATCH_WITH_PROVIDED NATIONALITY_MISMATCH_WITH_PROVIDED LOW_LIVENESS_SCORE \
        DUPLICATED_FACE POSSIBLE_DUPLICATED_FACE POSSIBLE_FACE_IN_BLOCKLIST MULTIPLE_FACES_DETECTED LOW_FACE_QUALITY \
        LOW_FACE_LUMINANCE HIGH_FACE_LUMINANCE FACE_MATCH_MAX_ATTEMPTS_EXCEEDED \
        LOW_FRONT_CAMERA_FACE_MATCH_SIMILARITY PRIVATE_NETWORK_DETECTED \
        COUNTRY_FROM_DOCUMENT_DOES_NOT_MATCH_COUNTRY_FROM_IP EXPECTED_IP_ADDRESS_MISMATCH DUPLICATED_IP_ADDRESS \
        DUPLICATED_DEVICE_FINGERPRINT DEVICE_RECOVERED_HIGH_CONFIDENCE POSSIBLE_MATCH_FOUND \
        COULD_NOT_PERFORM_DATABASE_VALIDATION DATABASE_VALIDATION_PARTIAL_MATCH DATABASE_VALIDATION_NO_MATCH";
    const KAYLE: &str = "document_authenticity_failed document_active_authentication_failed \
        document_chip_authentication_failed document_anti_cloning_attestation_failed document_data_invalid \
        liveness_failed selfie_face_mismatch passport_authenticity_failed passport_active_authentication_failed \
        passport_chip_authentication_failed passport_anti_cloning_attestation_failed";
    const RALIO: &str = "EXPIRED_DOCUMENT NO_MATCH LOW_CONFIDENCE KYC.DOC.DETERIORATED";
    const FYATU: &str = "DOCUMENT_EXPIRED DOCUMENT_UNREADABLE NAME_MISMATCH UNDER_AGE WATCHLIST_MATCH \
        DUPLICATE_IDENTITY UNSUPPORTED_COUNTRY";
    let documented = [
        ("gu1", "hmac_sha256", 0, "DOCUMENT_EXPIRED", DIDIT),
        ("fyatu", "body_sign", 0, "DUPLICATED_FACE", DIDIT),
        (
            "fyatu",
            "body_sign",
            0,
            "DUPLICATED_FACE",
            "LIVENESS_FAILED",
        ),
        (
            "kayle",
            "v1",
            1,
            "document_anti_cloning_attestation_failed",
            KAYLE,
        ),
        ("ralio", "hmac_sha256", 1, "EXPIRED_DOCUMENT", RALIO),
        ("fyatu", "header_v1", 0, "NAME_MISMATCH", FYATU),
    ];
    for (provider, scheme, index, code, codes) in documented {
        for by in codes.split_whitespace() {
            let reasons = reasons(provider, scheme, index, code, by);
            assert_eq!(reasons.len(), 1, "{provider} {by}");
            assert_eq!(reasons[0].provider_code, by);
            assert_ne!(reasons[0].code(), ReasonCode::Other, "{provider} {by}");
        }
        let unknown = reasons(provider, scheme, index, code, "BRAND_NEW");
        assert_eq!(unknown[0].code(), ReasonCode::Other);
        assert_eq!(unknown[0].provider_code, "BRAND_NEW");
    }
}

#[test]
fn gu1_rejections_of_biometric_sessions_have_words_of_ours() {
    let (source, _) = sample_of("gu1", "hmac_sha256", 1);
    for (code, expected) in [
        ("FACE_MATCH_SCORE_LOW", ReasonCode::FaceMatchLowConfidence),
        ("CROSS_ENTITY", ReasonCode::FaceDuplicate),
        ("CAPTURE_DECLINED", ReasonCode::CaptureDeclined),
        ("BRAND_NEW", ReasonCode::Other),
    ] {
        let body = format!(
            r#"{{"event":"biometric.session_rejected","timestamp":"2026-05-04T12:00:00Z","payload":{{"id":"b","status":"rejected","rejectionCode":"{code}"}}}}"#
        );
        let Some(Detail::Verification(verification)) = event_of(&source, &body).detail else {
            panic!("not a verification");
        };
        assert_eq!(verification.reasons[0].code(), expected, "{code}");
    }
}

#[test]
fn the_payload_of_another_family_may_look_like_anything() {
    let provider = verdict::provider::find("gu1").unwrap();
    let source = plain_source(provider, "hmac_sha256");
    let reason = |body: &str| {
        let webhook = source.verify(sign(&source, body), now()).unwrap();
        match source.normalize(&webhook) {
            Ok(Normalized::Ignored) => None,
            Ok(Normalized::Event(_)) => panic!("an event: {body}"),
            Err(error) => Some(error.reason()),
        }
    };
    for (body, expected) in [
        (r#"{"event":"alert.any","payload":[]}"#, None),
        (r#"{"event":"alert.any","payload":{"id":7}}"#, None),
        (
            r#"{"event":"any.other","payload":[]}"#,
            Some(QuarantineReason::UnknownEventType),
        ),
        // What all families have in common is read of all of them.
        (
            r#"{"event":"alert.any","timestamp":7,"payload":{}}"#,
            Some(QuarantineReason::Unparseable),
        ),
        (
            r#"{"event":"alert.any","event":"alert.any","payload":{}}"#,
            Some(QuarantineReason::Unparseable),
        ),
        (
            r#"{"event":"kyc.validation_approved","payload":{"id":7}}"#,
            Some(QuarantineReason::Unparseable),
        ),
    ] {
        assert_eq!(reason(body), expected, "{body}");
    }
}
