//! An issuer of JWTs, with keys that it makes itself.

use std::path::Path;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::real_now;

pub(super) const ISSUER: &str = "https://login.example.com";

/// The issuer.
pub(super) struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    pub(super) fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            ed: Ed25519KeyPair::generate().expect("a key"),
        }
    }

    /// Its public keys; a secret that is none of its own is among them.
    pub(super) fn jwks(&self) -> String {
        let rsa = self.rsa.public_key();
        let point = self.ec.public_key().as_ref();
        let keys = json!({ "keys": [
            { "kty": "RSA", "kid": "rsa", "use": "sig",
              "n": base64(rsa.modulus().big_endian_without_leading_zero()),
              "e": base64(rsa.exponent().big_endian_without_leading_zero()) },
            { "kty": "EC", "kid": "ec", "crv": "P-256", "alg": "ES256",
              "x": base64(&point[1..33]), "y": base64(&point[33..]) },
            { "kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": base64(self.ed.public_key()) },
            { "kty": "oct", "kid": "oct", "alg": "HS256", "k": base64(b"everybody knows") },
            { "kty": "RSA", "kid": "enc", "use": "enc",
              "n": base64(rsa.modulus().big_endian_without_leading_zero()), "e": "AQAB" },
            { "kty": "new", "kid": "new" },
        ]});
        keys.to_string()
    }

    /// What an attacker knows of its RSA key and might use as a secret.
    pub(super) fn public_rsa(&self) -> Vec<u8> {
        self.rsa.public_key().as_ref().to_vec()
    }

    /// The configuration of it.
    pub(super) fn config(&self, jwks: &Path) -> String {
        std::fs::write(jwks, self.jwks()).expect("a file");
        format!(
            "[[issuers]]\nname = \"corp\"\nissuer = \"{ISSUER}\"\naudiences = [\"verdict\"]\n\
             jwks_file = \"{}\"\nalgorithms = [\"RS256\", \"PS256\", \"ES256\", \"EdDSA\"]\n",
            jwks.display()
        )
    }

    /// A token that it would sign for a subject.
    pub(super) fn token(&self, subject: &str) -> String {
        self.sign(
            &json!({ "alg": "RS256", "kid": "rsa", "typ": "JWT" }),
            &claims(subject),
        )
    }

    /// A token with this header and these claims, signed as the header says.
    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let message = signed.as_bytes();
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            let signed = self.rsa.sign(padding, &random, message, &mut signature);
            signed.expect("a signature");
            signature
        };
        let signature = match header["alg"].as_str() {
            Some("RS256") => rsa(&RSA_PKCS1_SHA256),
            Some("PS256") => rsa(&RSA_PSS_SHA256),
            Some("ES256") => {
                let signature = self.ec.sign(&random, message);
                signature.expect("a signature").as_ref().to_vec()
            }
            Some("EdDSA") => self.ed.sign(message).as_ref().to_vec(),
            other => panic!("{other:?} is not signed here"),
        };
        format!("{signed}.{}", base64(signature))
    }
}

/// A token that is signed with a secret.
pub(super) fn with_secret(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let signed = unsigned(header, claims);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", base64(tag))
}

/// A header and claims, without a signature.
pub(super) fn unsigned(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        base64(header.to_string()),
        base64(claims.to_string())
    )
}

/// What a good token says.
pub(super) fn claims(subject: &str) -> Value {
    let now = real_now().as_second();
    json!({ "iss": ISSUER, "aud": "verdict", "sub": subject, "iat": now, "exp": now + 300 })
}

/// Good claims with one that differs; `null` leaves it out.
pub(super) fn claims_but(name: &str, value: Value) -> Value {
    let mut claims = claims("engine");
    match value {
        Value::Null => claims.as_object_mut().expect("an object").remove(name),
        value => claims
            .as_object_mut()
            .expect("an object")
            .insert(name.to_owned(), value),
    };
    claims
}
