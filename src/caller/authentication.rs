//! Authentication: which caller of the configuration it is that calls.
//!
//! A caller shows a bearer token in the metadata, opaque or a JWT, or a client certificate on the connection. With both,
//! the token decides, also when it is wrong: what somebody says of himself on a call is meant for this call, and a proxy
//! with a certificate of its own speaks for many.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future;
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::{Caller, Issuer, Refused, Token, TokenHash, jwt, token::FollowedToken};
use crate::reload::Reload;

/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// How a caller has proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// Not at all: callers are not asked.
    None,
    /// With a token that has this id in the configuration.
    Token {
        /// The id.
        id: Arc<str>,
    },
    /// With a JWT.
    Subject {
        /// The name of the issuer in the configuration.
        issuer: Arc<str>,
        /// For whom it was issued.
        subject: Arc<str>,
    },
    /// With a client certificate.
    Certificate {
        /// Its name that the configuration knows.
        name: Arc<str>,
    },
}

/// How long a proof lasts. Streams that were opened with it end when it does not.
#[derive(Clone, Debug, Default)]
pub struct Validity {
    /// When it ends by itself; `None` is never.
    pub until: Option<Timestamp>,
    /// Cancelled when it is withdrawn; `None` if it cannot be while we run.
    pub withdrawn: Option<CancellationToken>,
}

impl Validity {
    /// Whether it lasts as long as we run.
    pub fn is_endless(&self) -> bool {
        self.until.is_none() && self.withdrawn.is_none()
    }

    /// Waits until it is over.
    pub async fn over(self, now: Timestamp) {
        let ends = async {
            match self.until {
                // What has ended already ends now.
                Some(until) => {
                    let left = Duration::try_from(until.duration_since(now));
                    time::sleep(left.unwrap_or_default()).await;
                }
                None => future::pending().await,
            }
        };
        let is_withdrawn = async {
            match self.withdrawn {
                Some(withdrawn) => withdrawn.cancelled_owned().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = ends => {}
            () = is_withdrawn => {}
        }
    }
}

/// Who calls, and how that was proved.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who calls.
    pub caller: Caller,
    /// How that was proved.
    pub credential: Credential,
    /// How long the proof lasts.
    pub validity: Validity,
}

/// A caller, with the credentials that are its own.
#[derive(Debug)]
pub struct Member {
    /// The caller.
    pub caller: Caller,
    /// The tokens that it may show.
    pub tokens: Vec<Arc<Token>>,
    /// The names of its client certificates: URIs and DNS names.
    pub certificates: Vec<String>,
}

/// All callers of the configuration.
#[derive(Debug)]
pub struct Callers {
    /// `None` when callers are not asked who they are.
    known: Option<Known>,
    /// How often each reason has refused someone, in the order of [`Refused::ALL`].
    refused: [AtomicU64; Refused::ALL.len()],
    /// When the operator was warned of each of them last.
    warned: Mutex<[Option<Instant>; Refused::ALL.len()]>,
}

/// How often the operator is warned of callers who are refused for one reason. Strangers must not fill the log.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Known {
    members: Vec<Member>,
    certificates: HashMap<String, usize>,
    issuers: Vec<Arc<Issuer>>,
}

impl Callers {
    /// Nobody is asked: whoever can connect may do everything.
    pub fn anyone() -> Self {
        Self {
            known: None,
            refused: Default::default(),
            warned: Mutex::default(),
        }
    }

    /// These and nobody else. `issuers` know which of their subjects are which caller.
    pub fn new(members: Vec<Member>, issuers: Vec<Issuer>) -> Self {
        let names = members.iter().enumerate().flat_map(|(index, member)| {
            let names = member.certificates.iter();
            names.map(move |name| (certificate_name(name), index))
        });
        Self {
            known: Some(Known {
                certificates: names.collect(),
                members,
                issuers: issuers.into_iter().map(Arc::new).collect(),
            }),
            refused: Default::default(),
            warned: Mutex::default(),
        }
    }

    /// Whether callers are asked who they are.
    pub fn are_asked(&self) -> bool {
        self.known.is_some()
    }

    /// The names of all callers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let members = self.known.iter().flat_map(|known| &known.members);
        members.filter_map(|member| member.caller.name())
    }

    /// How often someone was refused for this reason.
    pub fn refused(&self, reason: Refused) -> u64 {
        self.count(reason).load(Ordering::Relaxed)
    }

    fn count(&self, reason: Refused) -> &AtomicU64 {
        // The variants are in the order of the list.
        &self.refused[reason as usize]
    }

    /// Finds out who calls. `certificate_names` are the URIs and DNS names of the certificate that the client has shown,
    /// if it was verified.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate_names: &[String],
    ) -> Result<Identity, Refused> {
        let Some(known) = &self.known else {
            return Ok(Identity {
                caller: Caller::anyone(),
                credential: Credential::None,
                validity: Validity::default(),
            });
        };
        let found = known.find(headers, certificate_names).await;
        if let Err(reason) = &found {
            let refused = self.count(*reason).fetch_add(1, Ordering::Relaxed) + 1;
            if self.is_to_be_told(*reason, Instant::now()) {
                tracing::warn!(
                    reason = reason.name(),
                    refused,
                    "callers are refused, because their credentials are missing or not valid; more of the same are told \
                     in a minute at the earliest"
                );
            }
        }
        found
    }

    fn is_to_be_told(&self, reason: Refused, now: Instant) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut warned[reason as usize];
        let is_recent = |then| now.duration_since(then) < WARNING_INTERVAL;
        if last.is_some_and(is_recent) {
            return false;
        }
        *last = Some(now);
        true
    }

    /// The tokens and keys that are followed in files.
    pub fn followed(&self) -> impl Iterator<Item = Arc<dyn Reload>> {
        let members = self.known.iter().flat_map(|known| &known.members);
        let all: Arc<[_]> = members.flat_map(|member| member.tokens.clone()).collect();
        let tokens = (0..all.len()).map(move |index| {
            let among = Arc::clone(&all);
            Arc::new(FollowedToken { among, index }) as Arc<dyn Reload>
        });
        let issuers = self.known.iter().flat_map(|known| &known.issuers);
        let issuers = issuers.map(|issuer| Arc::clone(issuer) as Arc<dyn Reload>);
        let followed = tokens.chain(issuers);
        followed.filter(|followed| !followed.paths().is_empty())
    }

    /// Follows the sets of keys at URLs that JWTs are checked against, for ever.
    pub async fn keep_fresh(&self) {
        let Some(known) = &self.known else {
            return future::pending().await;
        };
        let issuers = known.issuers.iter();
        let keys = issuers.map(|issuer| issuer.keys.keep_fresh(&issuer.name));
        future::join_all(keys).await;
    }
}

impl Known {
    async fn find(
        &self,
        headers: &HeaderMap,
        certificate_names: &[String],
    ) -> Result<Identity, Refused> {
        match bearer(headers)? {
            Some(token) if jwt::is_jwt(token) => jwt::authenticate(&self.issuers, token).await,
            Some(token) => self.with_token(token),
            None if certificate_names.is_empty() => Err(Refused::Missing),
            None => self.with_certificate(certificate_names),
        }
    }

    fn with_token(&self, token: &str) -> Result<Identity, Refused> {
        let shown = TokenHash::of(token.as_bytes());
        let mut found = None;
        // All of them are compared, whichever it is.
        for member in &self.members {
            for token in &member.tokens {
                if let Some(validity) = token.matches(&shown) {
                    found = Some((member, token, validity));
                }
            }
        }
        let (member, token, validity) = found.ok_or(Refused::UnknownToken)?;
        Ok(Identity {
            caller: member.caller.clone(),
            credential: Credential::Token {
                id: Arc::clone(token.id()),
            },
            validity,
        })
    }

    fn with_certificate(&self, names: &[String]) -> Result<Identity, Refused> {
        let known = |name: &String| {
            let name = certificate_name(name);
            let index = self.certificates.get(&name)?;
            Some((*index, name))
        };
        let mut found = names.iter().filter_map(known);
        let (index, name) = found.next().ok_or(Refused::UnknownCertificate)?;
        if found.any(|(other, _)| other != index) {
            return Err(Refused::AmbiguousCertificate);
        }
        Ok(Identity {
            caller: self.members[index].caller.clone(),
            credential: Credential::Certificate { name: name.into() },
            // That of the connection, which has an end of its own.
            validity: Validity::default(),
        })
    }
}

/// A name of a certificate in the one way in which it is compared: case counts in a URI, not in a DNS name.
pub(crate) fn certificate_name(name: &str) -> String {
    match name.contains(':') {
        true => name.to_owned(),
        false => name.to_ascii_lowercase(),
    }
}

/// The token of `authorization: Bearer <token>`, where it is given. As RFC 6750 writes it, and nothing else.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(Refused::Repeated);
    }
    let value = value.to_str().map_err(|_| Refused::Malformed)?;
    let (scheme, token) = value.split_once(' ').ok_or(Refused::Malformed)?;
    let in_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Refused::Malformed);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refused::TooLong);
    }
    match token.bytes().all(in_token) {
        true => Ok(Some(token)),
        false => Err(Refused::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[tokio::test]
    async fn a_certificate_names_one_caller_and_a_token_decides() {
        let member = |name: &str, certificates: &[&str]| Member {
            caller: Caller::new(name, []),
            tokens: vec![Arc::new(Token::new("t", TokenHash::of(name.as_bytes())))],
            certificates: certificates.iter().map(|name| (*name).to_owned()).collect(),
        };
        let members = vec![
            member("a", &["spiffe://corp/A", "a.internal"]),
            member("b", &["b.internal"]),
        ];
        let callers = Callers::new(members, Vec::new());
        let found = async |names: &[&str], token: Option<&'static str>| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let token = token.map(|token| (AUTHORIZATION, HeaderValue::from_static(token)));
            let headers = HeaderMap::from_iter(token);
            let found = callers.authenticate(&headers, &names).await?;
            Ok::<_, Refused>(found.caller.name().unwrap_or_default().to_owned())
        };
        let a = Ok("a".to_owned());
        assert_eq!(found(&["spiffe://corp/A"], None).await, a);
        assert_eq!(
            found(&["other", "A.Internal", "spiffe://corp/A"], None).await,
            a
        );
        assert_eq!(found(&["b.internal"], Some("Bearer a")).await, a);
        for (names, token, refused) in [
            (&["spiffe://corp/a"][..], None, Refused::UnknownCertificate),
            (
                &["a.internal.evil", "*.internal", ""],
                None,
                Refused::UnknownCertificate,
            ),
            (
                &["a.internal", "b.internal"],
                None,
                Refused::AmbiguousCertificate,
            ),
            (&[], None, Refused::Missing),
            (&["a.internal"], Some("Bearer x"), Refused::UnknownToken),
            (&["a.internal"], Some(""), Refused::Malformed),
        ] {
            assert_eq!(found(names, token).await, Err(refused), "{names:?}");
        }
    }

    #[test]
    fn an_operator_is_told_of_each_reason_once_in_a_while() {
        let callers = Callers::anyone();
        let begin = Instant::now();
        let told =
            |reason, seconds| callers.is_to_be_told(reason, begin + Duration::from_secs(seconds));
        assert!(told(Refused::Missing, 0) && !told(Refused::Missing, 59));
        assert!(told(Refused::Expired, 59) && told(Refused::Missing, 60));
    }

    #[test]
    fn a_token_is_taken_only_as_it_is_written_in_rfc_6750() {
        let read = |value: &'static [u8]| {
            let value = HeaderValue::from_bytes(value).expect("a value");
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        for good in [&b"Bearer abc"[..], b"bearer abc", b"BEARER abc"] {
            assert_eq!(read(good), Ok(Some("abc".to_owned())));
        }
        for bad in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer  abc",
            b"Bearer abc ",
            b"Bearer\tabc",
            b"Bearer a bc",
            b"Bearer abc,Bearer abc",
            b"Bearer \xc3\xa4bc",
            b" Bearer abc",
            b"Basic abc",
            b"abc",
        ] {
            assert_eq!(read(bad), Err(Refused::Malformed), "{bad:?}");
        }
    }
}
