//! The table of forged webhooks: what can be tried against each scheme, by how the scheme describes itself.

use std::{collections::BTreeSet, fmt};

use verdict::provider::{
    RawWebhook,
    signature::{Hash, Recipe, Scheme},
};

use super::forger::{Forger, sign};
use crate::support::{other_secret, secret};

/// What is wrong with a forged webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Missing,
    Malformed,
    Truncated,
    OtherSecret,
    OtherBody,
    OtherAccount,
    Stale,
    Future,
    Downgraded,
    Duplicated,
    Case,
    Whitespace,
    NullBytes,
    Homoglyphs,
}

/// A forged webhook.
pub(super) struct Attempt {
    pub(super) kind: Kind,
    pub(super) what: String,
    pub(super) webhook: RawWebhook,
    /// Whether it is sent to an account with another secret.
    pub(super) to_other_account: bool,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

/// Every kind of attempt that a scheme can be exposed to. One without a time has none that is too old.
pub(super) fn kinds(scheme: &Scheme) -> BTreeSet<Kind> {
    let mut kinds = BTreeSet::from([
        Kind::Missing,
        Kind::Malformed,
        Kind::Truncated,
        Kind::OtherSecret,
        Kind::OtherBody,
        Kind::OtherAccount,
        Kind::Downgraded,
        Kind::Duplicated,
        Kind::Case,
        Kind::Whitespace,
        Kind::NullBytes,
        Kind::Homoglyphs,
    ]);
    if is_timed(scheme) {
        kinds.extend([Kind::Stale, Kind::Future]);
    }
    kinds
}

pub(super) fn is_timed(scheme: &Scheme) -> bool {
    matches!(scheme.recipe, Recipe::TimestampedBody { .. })
}

impl Forger {
    /// Everything that can be tried against the scheme.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = Attempts(Vec::new());
        self.missing(&mut attempts);
        self.malformed(&mut attempts);
        self.truncated(&mut attempts);
        self.of_others(&mut attempts);
        self.other_body(&mut attempts);
        self.other_time(&mut attempts);
        self.downgraded(&mut attempts);
        self.duplicated(&mut attempts);
        self.case(&mut attempts);
        self.whitespace(&mut attempts);
        self.null_bytes(&mut attempts);
        self.homoglyphs(&mut attempts);
        attempts.0
    }

    fn missing(&self, attempts: &mut Attempts) {
        let place = self.place();
        for name in [
            format!("{place}-2"),
            format!("x-{place}"),
            place[1..].to_owned(),
            place[..place.len() - 1].to_owned(),
            "authorization".to_owned(),
        ] {
            attempts.add(Kind::Missing, &name, self.with_name(&name));
        }
        if self.in_header() {
            let bare = self.with_headers(&[]);
            attempts.add(Kind::Missing, "no headers", bare);
            // In the body, where another provider has it.
            let body = format!(r#"{{"sign":"{}"}}"#, self.mac(&self.good));
            let mut webhook = self.with_headers(&[]);
            webhook.payload = body.into();
            attempts.add(Kind::Missing, "a member instead of a header", webhook);
        } else {
            let value = self.value(&self.good);
            let mut webhook = self.with_member(&[("\"x\"", "0")]);
            webhook.headers.push(self.place(), value);
            attempts.add(Kind::Missing, "a header instead of a member", webhook);
        }
    }

    fn malformed(&self, attempts: &mut Attempts) {
        let mac = self.mac(&self.good);
        for value in [
            "",
            "=",
            ",",
            "0",
            "null",
            "true",
            "not hex",
            "é",
            "t=,v1=",
            "t=1,v1=",
            "v1=00,t=1",
            "sha256=",
            "sha1=zz",
            "$MAC",
            "%00",
            "*",
        ] {
            attempts.add(Kind::Malformed, value, self.with_value(value));
        }
        for mac in [
            mac.replace(&mac[..1], "g"),
            format!("0x{mac}"),
            format!("\"{mac}\""),
            format!("{mac},{mac}"),
            format!("{mac};"),
            "0".repeat(64 << 7),
        ] {
            attempts.add(Kind::Malformed, &mac, self.with_mac(&mac));
        }
        if !self.in_header() {
            let name = format!("\"{}\"", self.place());
            for value in ["5", "null", "true", "{}", "[]", &format!("[\"{mac}\"]")] {
                let webhook = self.with_member(&[(&name, value)]);
                attempts.add(Kind::Malformed, value, webhook);
            }
        }
    }

    fn truncated(&self, attempts: &mut Attempts) {
        let mac = self.mac(&self.good);
        let length = mac.len();
        for kept in [1, 2, length / 2, length - 2, length - 1] {
            let what = format!("{kept} digits of the signature");
            attempts.add(Kind::Truncated, &what, self.with_mac(&mac[..kept]));
        }
        attempts.add(Kind::Truncated, "the end", self.with_mac(&mac[2..]));
        let longer = format!("{mac}00");
        attempts.add(Kind::Truncated, "one byte too much", self.with_mac(&longer));
        let payload = &self.good.payload;
        for kept in [1, payload.len() / 2, payload.len() - 1] {
            let what = format!("{kept} bytes of the body");
            attempts.add(
                Kind::Truncated,
                &what,
                self.with_body(payload.slice(..kept)),
            );
        }
    }

    fn of_others(&self, attempts: &mut Attempts) {
        for (what, secret) in [
            ("an empty secret", &b""[..]),
            ("a guessed secret", b"secret"),
            ("the secret in upper case", b"A SECRET OF THE TESTS"),
            ("the secret with a line break", b"a secret of the tests\n"),
            ("the id of the secret", b"current"),
        ] {
            attempts.add(Kind::OtherSecret, what, self.signed_by(secret));
        }
        let zeroes = "0".repeat(self.mac(&self.good).len());
        attempts.add(Kind::OtherSecret, "no secret", self.with_mac(&zeroes));

        let of_other = sign(self.scheme, self.body, &other_secret(), self.now);
        attempts.add(Kind::OtherAccount, "the other account's secret", of_other);
        attempts.add(
            Kind::OtherAccount,
            "sent to the other account",
            self.good.clone(),
        );
        let last = attempts.0.last_mut().expect("just added");
        last.to_other_account = true;
    }

    fn other_body(&self, attempts: &mut Attempts) {
        let body = std::str::from_utf8(&self.good.payload).expect("JSON");
        // In the samples, what is signed is the whole body or its last member.
        let last_quote = body.rfind('"').expect("a string");
        let (before, after) = body.split_at(last_quote);
        for (what, changed) in [
            ("a letter more", format!("{before}x{after}")),
            (
                "a letter less",
                format!("{}{after}", &before[..before.len() - 1]),
            ),
            ("an escaped letter more", format!("{before}\\u0078{after}")),
            ("the end missing", before.to_owned()),
            ("another document", "{}".to_owned()),
            ("no JSON", "x".to_owned()),
            ("a list", "[]".to_owned()),
        ] {
            assert_ne!(changed, body, "{what}");
            attempts.add(Kind::OtherBody, what, self.with_body(changed));
        }
        if self.in_header() {
            for (what, changed) in [
                ("a space before it", format!(" {body}")),
                ("a line break after it", format!("{body}\n")),
                ("a byte order mark", format!("\u{feff}{body}")),
            ] {
                attempts.add(Kind::OtherBody, what, self.with_body(changed));
            }
        }
    }

    fn other_time(&self, attempts: &mut Attempts) {
        if !is_timed(self.scheme) {
            return;
        }
        // The server's clock goes on while this is sent, hence a little more than the tolerance of 300 s into the future.
        for (kind, seconds) in [
            (Kind::Stale, -301),
            (Kind::Stale, -86_400),
            (Kind::Stale, -self.now.as_second()),
            (Kind::Future, 360),
            (Kind::Future, 86_400),
            (Kind::Future, 100_000_000_000),
        ] {
            let what = format!("signed {seconds} s from now");
            attempts.add(kind, &what, self.signed_at(seconds));
        }
        // An old signature under a time of now, and a time that is said twice.
        let old = self.signed_at(-301);
        let (then, now) = (self.now.as_second() - 301, self.now.as_second());
        let mac = self.mac(&old);
        for value in [
            format!("t={now},v1={mac}"),
            format!("t={then},t={now},v1={mac}"),
            format!("t={now},t={then},v1={mac}"),
        ] {
            attempts.add(Kind::Stale, &value, self.with_value(&value));
        }
        let mac = self.mac(&self.good);
        for t in [
            "",
            "-1",
            "+1",
            "1e9",
            "0x1",
            "99999999999999999999",
            "1.5",
            "NaN",
        ] {
            let value = format!("t={t},v1={mac}");
            attempts.add(Kind::Future, &value, self.with_value(&value));
        }
    }

    fn downgraded(&self, attempts: &mut Attempts) {
        let mac = self.mac(&self.good);
        if self.scheme.hash != Hash::Sha1 {
            let weaker = Scheme {
                hash: Hash::Sha1,
                ..*self.scheme
            };
            let webhook = sign(&weaker, self.body, &secret(), self.now);
            let sha1 = self.mac(&webhook);
            attempts.add(Kind::Downgraded, "SHA-1", webhook);
            let padded = format!("{sha1:0<64}");
            attempts.add(Kind::Downgraded, "SHA-1, padded", self.with_mac(&padded));
            for prefix in ["sha1=", "md5="] {
                let value = format!("{prefix}{sha1}");
                attempts.add(Kind::Downgraded, &value, self.with_value(&value));
            }
        }
        for prefix in ["none=", "plain=", "sha512=", "v0=", "hmac-sha256="] {
            let value = format!("{prefix}{mac}");
            attempts.add(Kind::Downgraded, &value, self.with_value(&value));
        }
        if is_timed(self.scheme) {
            let now = self.now.as_second();
            let untimed = Scheme {
                recipe: Recipe::Body {
                    header: self.place(),
                    prefixes: &[""],
                },
                ..*self.scheme
            };
            let untimed = sign(&untimed, self.body, &secret(), self.now);
            let untimed_mac = self.mac(&untimed);
            attempts.add(Kind::Downgraded, "without a time", untimed);
            for value in [
                format!("v1={untimed_mac}"),
                format!("t={now},v1={untimed_mac}"),
                format!("t={now},v0={mac}"),
                format!("t={now},v2={mac}"),
                format!("t={now}"),
            ] {
                attempts.add(Kind::Downgraded, &value, self.with_value(&value));
            }
        }
        for other in self.provider.schemes() {
            if reads_the_same(self.scheme, other) {
                continue;
            }
            // Some have nothing to sign in this body.
            let signed = other.sign(self.body.into(), &secret(), self.now);
            if let Ok(webhook) = signed {
                attempts.add(Kind::Downgraded, other.name, webhook);
            }
        }
    }

    fn duplicated(&self, attempts: &mut Attempts) {
        let (place, right) = (self.place(), self.value(&self.good));
        let wrong = self.value(&self.with_mac(&"0".repeat(self.mac(&self.good).len())));
        for (what, first, second) in [
            ("the right one twice", &right, &right),
            ("a wrong one first", &wrong, &right),
            ("a wrong one last", &right, &wrong),
        ] {
            let webhook = self.with_two((place, first), (place, second));
            attempts.add(Kind::Duplicated, what, webhook);
        }
        if self.in_header() {
            let upper = place.to_uppercase();
            let webhook = self.with_two((place, &right), (&upper, &right));
            attempts.add(Kind::Duplicated, "in another case", webhook);
            let webhook = self.with_two((place, &right), (place, ""));
            attempts.add(Kind::Duplicated, "an empty one", webhook);
        } else {
            let escaped = format!("\\u{:04x}{}", place.as_bytes()[0], &place[1..]);
            let webhook = self.with_two((place, &right), (&escaped, &right));
            attempts.add(Kind::Duplicated, "escaped", webhook);
        }
        let (first, second) = match is_timed(self.scheme) {
            true => (right.clone(), right.clone()),
            false => (right.clone(), wrong),
        };
        for separator in [",", ", ", ";"] {
            let value = format!("{first}{separator}{second}");
            attempts.add(Kind::Duplicated, &value, self.with_value(&value));
        }
    }

    fn case(&self, attempts: &mut Attempts) {
        let (value, place) = (self.value(&self.good), self.place());
        // The names inside a signature are of one case; only its hex and the names of headers have none.
        match value.rsplit_once('=') {
            Some((names, mac)) => {
                let upper = format!("{}={mac}", names.to_uppercase());
                attempts.add(Kind::Case, &upper, self.with_value(&upper));
                let title = format!("{}{}={mac}", names[..1].to_uppercase(), &names[1..]);
                attempts.add(Kind::Case, &title, self.with_value(&title));
            }
            None => {
                let prefixed = format!("SHA256={value}");
                attempts.add(Kind::Case, &prefixed, self.with_value(&prefixed));
            }
        }
        if !self.in_header() {
            let upper = place.to_uppercase();
            attempts.add(Kind::Case, &upper, self.with_name(&upper));
        }
    }

    fn whitespace(&self, attempts: &mut Attempts) {
        let (mac, place) = (self.mac(&self.good), self.place());
        let (first, second) = mac.split_at(mac.len() / 2);
        for space in [" ", "\t", "\n", "\r\n", "\u{a0}", "\u{200b}"] {
            let split = format!("{first}{space}{second}");
            let what = format!("{split:?}");
            attempts.add(Kind::Whitespace, &what, self.with_mac(&split));
            for name in [format!("{place}{space}"), format!("{space}{place}")] {
                let what = format!("{name:?}");
                attempts.add(Kind::Whitespace, &what, self.with_name(&name));
            }
        }
        // Folded, as HTTP once allowed.
        let folded = format!("{first}\r\n {second}");
        attempts.add(Kind::Whitespace, "folded", self.with_mac(&folded));
        if !self.in_header() {
            let spaced = format!(" {mac} ");
            attempts.add(Kind::Whitespace, "around it", self.with_value(&spaced));
        }
    }

    fn null_bytes(&self, attempts: &mut Attempts) {
        let (mac, place) = (self.mac(&self.good), self.place());
        let (first, second) = mac.split_at(mac.len() / 2);
        for changed in [
            format!("{mac}\0"),
            format!("\0{mac}"),
            format!("{first}\0{second}"),
            format!("{mac}\0{mac}"),
        ] {
            let what = format!("{changed:?}");
            attempts.add(Kind::NullBytes, &what, self.with_mac(&changed));
        }
        for name in [
            format!("{place}\0"),
            format!("\0{place}"),
            format!("{place}\0-2"),
        ] {
            let what = format!("{name:?}");
            attempts.add(Kind::NullBytes, &what, self.with_name(&name));
        }
        let body = std::str::from_utf8(&self.good.payload).expect("JSON");
        for body in [format!("{body}\0"), format!("\0{body}")] {
            attempts.add(Kind::NullBytes, "in the body", self.with_body(body));
        }
    }

    fn homoglyphs(&self, attempts: &mut Attempts) {
        let place = self.place();
        // Cyrillic and fullwidth letters that look the same; the long s and the Kelvin sign are letters of ASCII once
        // their case is changed as Unicode does it.
        let alike = [
            ("a", "а"),
            ("e", "е"),
            ("i", "і"),
            ("s", "ѕ"),
            ("x", "х"),
            ("s", "ſ"),
            ("k", "\u{212a}"),
            ("g", "ｇ"),
            ("-", "‐"),
            ("-", "−"),
            ("-", "_"),
            ("n", "ո"),
            ("i", "ı"),
        ];
        for (letter, other) in alike {
            if place.contains(letter) {
                let name = place.replacen(letter, other, 1);
                attempts.add(Kind::Homoglyphs, &name, self.with_name(&name));
            }
        }
        let mac = self.mac(&self.good);
        for (letters, others) in [
            ("a", "а"),
            ("c", "с"),
            ("e", "е"),
            ("0", "０"),
            ("1", "１"),
            ("2", "２"),
        ] {
            if mac.contains(letters) {
                let changed = mac.replace(letters, others);
                attempts.add(Kind::Homoglyphs, &changed, self.with_mac(&changed));
            }
        }
    }
}

/// Whether one webhook can be good under both schemes: the readings of `sign` agree where nothing is written in two ways.
fn reads_the_same(one: &Scheme, other: &Scheme) -> bool {
    let in_members = |scheme: &Scheme| matches!(scheme.recipe, Recipe::Member { .. });
    one.name == other.name || in_members(one) && in_members(other)
}

/// Attempts, as they are collected.
struct Attempts(Vec<Attempt>);

impl Attempts {
    fn add(&mut self, kind: Kind, what: &str, webhook: RawWebhook) {
        self.0.push(Attempt {
            kind,
            what: what.chars().take(100).collect(),
            webhook,
            to_other_account: false,
        });
    }
}
