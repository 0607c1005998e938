//! Signatures that this code did not compute: those that the provider dossiers record, and two of Python's `hmac`.

use bytes::Bytes;
use verdict::provider::{
    self, Headers, RawWebhook,
    signature::{self, Secret, VerifyError},
};

use crate::support::now;

/// Whether a webhook with this signature is genuine.
fn verify(
    provider: &str,
    scheme: &str,
    secret: &str,
    header: Option<(&str, &str)>,
    body: &str,
) -> Result<(), VerifyError> {
    let provider = provider::find(provider).unwrap();
    let scheme = provider
        .schemes()
        .iter()
        .find(|s| s.name == scheme)
        .unwrap();
    let webhook = RawWebhook {
        payload: Bytes::from(body.to_owned()),
        headers: Headers::from_iter(
            header.map(|(name, value)| (name.to_owned(), value.to_owned())),
        ),
    };
    let secret = Secret::new("known".to_owned(), secret.as_bytes().to_vec());
    let tolerance = std::time::Duration::from_secs(300);
    signature::verify(webhook, &[scheme], &[secret], tolerance, now()).map(|_| ())
}

#[test]
fn kayle_v1() {
    let header = "t=1780000000,v1=eedcd0c3c59a73a287e065748de0a11ac35fec4d45c1a50a24d52a24ac3de7b3";
    let header = Some(("X-Kayle-Signature", header));
    assert_eq!(
        verify("kayle", "v1", "whsec_demo", header, "aaa.bbb.ccc.ddd.eee"),
        Ok(())
    );
}

#[test]
fn ralio_hmac_sha256() {
    let header = "515cdd9fc410248d325552ddbeaaf7c27ce110b5d7dd4917611ffcbafbc80aff";
    let header = Some(("X-Signature", header));
    let body = r#"{"eventId":"e-1","eventType":"kyc_session_verified","timestamp":"2026-01-02T03:04:05.000Z","data":{"sessionId":"s-1","userId":"u-1","entityType":"user"}}"#;
    assert_eq!(
        verify("ralio", "hmac_sha256", "demo-secret", header, body),
        Ok(())
    );
}

#[test]
fn fyatu_body_sign() {
    let sign = "d699559ce9d379938dd6b82723a82972c50b6d189d2443f86ab25a5b9c729edf";
    let data = r#"{"cardholderId":"c-1","status":"REJECTED","reason":"plain text","timestamp":"2026-01-02T03:04:05+00:00"}"#;
    let body = format!(r#"{{"event":"cardholder.kyc_rejected","sign":"{sign}","data":{data}}}"#);
    for scheme in ["body_sign", "body_sign_json"] {
        assert_eq!(
            verify("fyatu", scheme, "demo-secret", None, &body),
            Ok(()),
            "{scheme}"
        );
    }
    // The same answer for all three readings: this data holds nothing that they write differently.
    assert_eq!(
        verify("fyatu", "body_sign_php", "demo-secret", None, &body),
        Ok(())
    );
}

#[test]
fn fyatu_body_sign_rewritten() {
    let data = r#"{ "cardholderId": "c-1", "firstName": "Zoë", "status": "REJECTED", "reason": "card/passport" }"#;
    let signs = [
        (
            "body_sign_json",
            "c41bd9885284ce87656ab98775465ad94f001f7e5d83a3bdbb06eb1aabc9fb48",
        ),
        (
            "body_sign_php",
            "9a2ec2ee2ae8252e2ef9df77d5b1103b6bc63b1a9ca96280252739999c74f486",
        ),
    ];
    for (signed_by, sign) in signs {
        let body =
            format!(r#"{{"event":"cardholder.kyc_rejected","sign":"{sign}","data":{data}}}"#);
        for scheme in ["body_sign", "body_sign_json", "body_sign_php"] {
            let expected = if scheme == signed_by {
                Ok(())
            } else {
                Err(VerifyError::Mismatch)
            };
            assert_eq!(
                verify("fyatu", scheme, "demo-secret", None, &body),
                expected,
                "{scheme}"
            );
        }
    }
}

#[test]
fn fyatu_header_v1() {
    let header = "t=1780000000,v1=b64874dc81718ebc0b21220ba7a3d0f744274fc7a3e0530a81c5e3f4a60d8d73";
    let header = Some(("X-Fyatu-Signature", header));
    let body = r#"{"event":"CARDHOLDER_KYC_APPROVED","eventId":"evt_1"}"#;
    assert_eq!(
        verify("fyatu", "header_v1", "whsec_demo", header, body),
        Ok(())
    );
}

#[test]
fn gu1_hmac_sha256() {
    let hex = "3e0e51ca8a0a2a9a075e33436c22d3646b8887a313e369658f469a39ba502505";
    let body = r#"{"event":"kyc.validation_approved","payload":{"id":"v-1"}}"#;
    for value in [hex.to_owned(), format!("sha256={hex}"), hex.to_uppercase()] {
        let header = Some(("X-Webhook-Signature", value.as_str()));
        assert_eq!(
            verify("gu1", "hmac_sha256", "demo-secret", header, body),
            Ok(()),
            "{value}"
        );
    }
}

#[test]
fn fractal_classic_sha1() {
    let header = Some((
        "X-Fractal-Signature",
        "sha1=1361b8ef04072bb81def00fcda9c4b24b562f381",
    ));
    let body = r#"{"type":"verification_approved","data":{"level":"plus","user_id":"u-1","timestamp":"2024-01-02T03:04:05Z"}}"#;
    assert_eq!(
        verify("fractal", "classic_sha1", "demo-token", header, body),
        Ok(())
    );
}

#[test]
fn fractal_kraken_sha256() {
    let hex = "20f183d4b3204a9a7912a5aea82990d7ff2ea2e28db45d071b4b98af9d2077ed";
    let body = r#"{"id":"u-1","status":"approved"}"#;
    for value in [hex.to_owned(), format!("sha256={hex}")] {
        let header = Some(("X-Fractal-Signature", value.as_str()));
        assert_eq!(
            verify("fractal", "kraken_sha256", "demo-secret", header, body),
            Ok(())
        );
        // The sender must not choose the older scheme by the shape of its signature.
        let chosen = verify("fractal", "classic_sha1", "demo-secret", header, body);
        assert_eq!(chosen, Err(VerifyError::Malformed("x-fractal-signature")));
    }
}
