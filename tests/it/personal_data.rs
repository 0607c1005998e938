//! Nobody's data leaves verdict unasked: a mark is planted in every field of every fixture, one field at a time, and looked
//! for in everything that the real binary gives out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time;
use tonic::transport::Channel;
use verdict::{
    event,
    proto::{
        GetStatusRequest, IngestRequest, ListQuarantinedRequest, ListSourcesRequest,
        QuarantineReason, SubscribeMessage, SubscribeRequest,
        admin_service_client::AdminServiceClient, verdict_service_client::VerdictServiceClient,
    },
    provider::{PROVIDERS, RawWebhook, signature::Secret},
    source::Source,
};

use crate::{
    otlp::{self, Receiver},
    support::{
        Fixture, PATIENCE, connect, decode, fixture_source, fixtures, from_earliest, next, now,
        plain_source, real_now, request,
    },
};

/// Fields whose values may be seen by those who may not see personal data: ids, and words from the vocabulary of the
/// provider. Indices are left out.
const IMPERSONAL: &[(&str, &[&str])] = &[
    (
        "fractal",
        &[
            "/data/credential_id",
            "/data/idos_human_id",
            "/data/level",
            "/data/user_id",
            "/id",
            "/status",
            "/type",
        ],
    ),
    (
        "fyatu",
        &[
            "/data/cardholderId",
            "/data/externalId",
            "/data/kycLevel",
            "/data/kycRejectionReason",
            "/data/kycStatus",
            "/data/reason#/feature",
            "/data/reason#/risk",
            "/data/status",
            "/event",
            "/eventId",
            "/version",
        ],
    ),
    (
        "gu1",
        &[
            "/data/status",
            "/data/validationId",
            "/event",
            "/payload/decision/aml_screenings/status",
            "/payload/decision/face_match/status",
            "/payload/decision/face_matches/status",
            "/payload/decision/id_verifications/status",
            "/payload/decision/ip_analyses/status",
            "/payload/decision/liveness/status",
            "/payload/decision/liveness_checks/status",
            "/payload/entity/externalId",
            "/payload/entityId",
            "/payload/externalId",
            "/payload/id",
            "/payload/mode",
            "/payload/rejectionCode",
            "/payload/status",
            "/payload/validationId",
            "/payload/warnings",
            "/payload/warnings/feature",
            "/payload/warnings/risk",
            "/type",
        ],
    ),
    (
        "kayle",
        &[
            "/data/claims/kayle_human_id",
            "/data/failure_code",
            "/data/outcome",
            "/data/reason",
            "/metadata/event_id",
            "/metadata/verification_session_id",
            "/type",
        ],
    ),
    (
        "ralio",
        &[
            "/data/checks/reasons/category",
            "/data/checks/reasons/code",
            "/data/checks/reasons/type",
            "/data/checks/state",
            "/data/checks/type",
            "/data/kycSession/id",
            "/data/relatedParty/id",
            "/data/relatedParty/status",
            "/data/relatedPartyId",
            "/data/sessionId",
            "/data/state",
            "/data/userId",
            "/data/user_id",
            "/event",
            "/eventId",
            "/eventType",
            "/id",
        ],
    ),
];

/// What is planted, and what a search for it finds. A search must not find one inside another.
fn mark(number: usize) -> String {
    format!("Zq{number:06}qZ")
}

/// The marks in a text.
fn marks(text: &str) -> BTreeSet<usize> {
    let found = text.match_indices("Zq").filter_map(|(at, _)| {
        let digits = text.get(at + 2..at + 8)?;
        let ends = text.get(at + 8..at + 10) == Some("qZ");
        digits.parse().ok().filter(|_| ends)
    });
    found.collect()
}

/// A webhook with a mark in one place.
struct Marked {
    provider: &'static str,
    /// The field, as `case:path`, and its path without indices.
    field: String,
    path: String,
    request: IngestRequest,
}

/// Every fixture that is JSON, with a mark in each of its texts in turn, signed as it was.
fn marked() -> Vec<Marked> {
    let mut all = Vec::new();
    for Fixture {
        provider,
        case,
        webhook,
    } in fixtures()
    {
        let source = fixture_source(provider.name());
        let verified = source.verify(webhook.clone(), now()).expect("genuine");
        let scheme = verified.scheme().name;
        let content = match source.is_encrypted(&verified) {
            true => source
                .decrypt(verified.content(), now())
                .unwrap_or_default(),
            false => webhook.payload.clone(),
        };
        let Ok(body) = serde_json::from_slice::<Value>(&content) else {
            continue;
        };
        let source = plain_source(provider, scheme);
        for (account, pointer) in texts(&body, "").into_iter().enumerate() {
            assert!(account < ACCOUNTS);
            let number = all.len();
            let mut body = body.clone();
            plant(&mut body, &pointer, &mark(number));
            let webhook = sign(&source, &body);
            all.push(Marked {
                provider: provider.name(),
                field: format!("{case}:{pointer}"),
                path: without_indices(&pointer),
                request: IngestRequest {
                    account: account.to_string(),
                    ..request(provider.name(), &webhook)
                },
            });
        }
    }
    all
}

fn sign(source: &Source, body: &Value) -> RawWebhook {
    let secret = Secret::new("current".to_owned(), SECRET.as_bytes().to_vec());
    let signed = source.schemes[0].sign(body.to_string().into(), &secret, real_now());
    signed.expect("a body that can be signed")
}

/// The pointers to all texts and numbers in a value; into JSON inside of texts too, behind a `#`.
fn texts(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| texts(value, &format!("{at}/{name}")))
            .collect(),
        Value::Array(elements) => elements
            .iter()
            .enumerate()
            .flat_map(|(index, value)| texts(value, &format!("{at}/{index}")))
            .collect(),
        Value::String(text) => match nested(text) {
            Some(inner) => texts(&inner, &format!("{at}#")),
            None => vec![at.to_owned()],
        },
        _ => Vec::new(),
    }
}

fn nested(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text).ok()?;
    (value.is_object() || value.is_array()).then_some(value)
}

fn plant(value: &mut Value, pointer: &str, mark: &str) {
    let (outer, inner) = match pointer.split_once('#') {
        Some((outer, inner)) => (outer, Some(inner)),
        None => (pointer, None),
    };
    let place = value.pointer_mut(outer).expect("it was found there");
    *place = match inner {
        None => mark.into(),
        Some(inner) => {
            let mut nested = nested(place.as_str().unwrap()).unwrap();
            plant(&mut nested, inner, mark);
            nested.to_string().into()
        }
    };
}

fn without_indices(pointer: &str) -> String {
    let parts = pointer
        .split('/')
        .filter(|part| part.parse::<usize>().is_err());
    parts.collect::<Vec<_>>().join("/")
}

const SECRET: &str = "a secret of the tests";

/// How many accounts each provider has: the versions of a fixture differ in one field, which may be none that tells one event
/// from another.
const ACCOUNTS: usize = 100;

/// The real binary, telling everything that it can.
struct Verdict {
    directory: TempDir,
    process: Child,
    url: OnceLock<String>,
}

impl Verdict {
    /// With its traces sent to this receiver.
    fn start(receiver: &Receiver) -> Self {
        let directory = TempDir::new().unwrap();
        let log = directory.path().join("log");
        let mut config = format!(
            "[server]\ngrpc_listen = \"127.0.0.1:0\"\nwebhook_listen = \"127.0.0.1:0\"\nops_listen = \"127.0.0.1:0\"\n[log]\npath = \"{}\"\n[telemetry.otlp]\nendpoint = \"{}\"\n",
            log.display(),
            receiver.url
        );
        let accounts = |provider| (0..ACCOUNTS).map(move |account| (provider, account));
        for (provider, account) in PROVIDERS.iter().flat_map(accounts) {
            let schemes: Vec<_> = provider
                .schemes()
                .iter()
                .map(|scheme| scheme.name)
                .collect();
            let options = provider
                .options()
                .iter()
                .map(|name| format!("{name} = true"));
            let options: Vec<_> = options.collect();
            config.push_str(&format!(
                "[[sources]]\nprovider = \"{}\"\naccount = \"{account}\"\nsecrets = [{{ id = \"current\", env = \"SECRET\" }}]\n\
                 schemes = {schemes:?}\nkeep_unverified = true\noptions = {{ {} }}\n",
                provider.name(),
                options.join(", ")
            ));
        }
        let file = directory.path().join("verdict.toml");
        fs::write(&file, config).unwrap();
        let output = File::create(directory.path().join("output")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_verdict"))
            .args(["serve", "--config"])
            .arg(file)
            .env("SECRET", SECRET)
            .env("VERDICT__TELEMETRY__LOG_LEVELS", "trace")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("the binary runs");
        Self {
            directory,
            process,
            url: OnceLock::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap()
    }

    async fn channel(&self) -> Channel {
        let address = async {
            loop {
                let output = self.output();
                let mut lines = output
                    .lines()
                    .filter_map(|line| serde_json::from_str(line).ok());
                let address =
                    lines.find_map(|line: Value| Some(line["server.address"].as_str()?.to_owned()));
                match address {
                    Some(address) => return format!("http://{address}"),
                    None => time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let url = time::timeout(PATIENCE, address).await.expect("it starts");
        connect(self.url.get_or_init(|| url)).await
    }

    /// Stops it, so that it sends what it has left.
    fn end(&mut self) {
        let pid = self.process.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.expect("the shell's").success());
        assert!(self.process.wait().expect("it ends").success());
    }

    /// What a command prints.
    fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_verdict"))
            .args(arguments)
            .env("VERDICT_ENDPOINT", self.url.get().unwrap())
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).expect("UTF-8")
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What is given out.
#[derive(Default)]
struct Given {
    /// To whoever operates verdict, or watches it: nothing of a webhook belongs here.
    about: String,
    /// Of the webhooks themselves, to those who may not see personal data.
    of: String,
    /// Of the webhooks, to those who may see personal data.
    personal: String,
}

/// Sends everything, and one delivery in four forged too.
async fn send(client: &mut VerdictServiceClient<Channel>, marked: &[Marked], given: &mut Given) {
    for (number, Marked { request, .. }) in marked.iter().enumerate() {
        let mut request = request.clone();
        request.return_event = true;
        match client.ingest(request.clone()).await {
            Ok(response) => {
                let mut response = response.into_inner();
                if let Some(event) = response.event.take() {
                    given.of.push_str(&event::to_json(&event).unwrap());
                }
                given.about.push_str(&format!("{response:?}\n"));
            }
            Err(status) => panic!("{}: {status:?}", marked[number].field),
        }
        if number % 4 == 0 {
            match request.headers.first_mut() {
                Some(signature) => signature.value.push('0'),
                None => {
                    let body = String::from_utf8_lossy(&request.payload);
                    request.payload = body.replace("\"sign\":\"", "\"sign\":\"0").into();
                }
            }
            let forged = client.ingest(request).await.expect_err("forged");
            given.about.push_str(&format!("{forged:?} {forged}\n"));
        }
    }
}

/// Reads what verdict tells of it, in every way.
async fn read(verdict: &Verdict, client: &mut VerdictServiceClient<Channel>, given: &mut Given) {
    let mut admin = AdminServiceClient::new(verdict.channel().await);
    for include_personal_data in [false, true] {
        let subscribe = SubscribeRequest {
            include_personal_data,
            stop_when_caught_up: true,
            ..from_earliest()
        };
        let mut stream = client.subscribe(subscribe).await.unwrap().into_inner();
        loop {
            let response = next(&mut stream).await;
            given.about.push_str(&format!("{response:?}\n"));
            match response.message {
                Some(SubscribeMessage::Event(event)) => {
                    let event = decode(event);
                    given.of.push_str(&format!("{event:?}\n"));
                    let json = event::to_json(&event).unwrap();
                    match include_personal_data {
                        true => given.personal.push_str(&json),
                        false => given.of.push_str(&json),
                    }
                }
                Some(SubscribeMessage::CaughtUp(_)) => break,
                _ => {}
            }
        }
    }
    for reason in [QuarantineReason::Unspecified, QuarantineReason::Unverified] {
        let mut page = ListQuarantinedRequest {
            page_size: 1000,
            reason: reason.into(),
            ..Default::default()
        };
        loop {
            let listed = admin
                .list_quarantined(page.clone())
                .await
                .unwrap()
                .into_inner();
            given.of.push_str(&format!("{:?}\n", listed.quarantined));
            page.page_token = listed.next_page_token;
            if page.page_token.is_empty() {
                break;
            }
        }
    }
    let sources = admin.list_sources(ListSourcesRequest {}).await.unwrap();
    given.about.push_str(&format!("{sources:?}"));
    let status = admin.get_status(GetStatusRequest {}).await.unwrap();
    given.about.push_str(&format!("{status:?}"));
    for command in [&["sources"][..], &["status"], &["consumers", "list"]] {
        given.about.push_str(&verdict.command(command));
    }
    let tail = ["tail", "--from", "earliest", "--until-caught-up"];
    for command in [
        &tail[..],
        &["quarantine", "list"],
        &["renormalize", "--dry-run"],
    ] {
        for format in ["json", "table"] {
            let command = [command, &["--format", format]].concat();
            given.of.push_str(&verdict.command(&command));
        }
    }
}

#[tokio::test]
async fn a_mark_in_any_field_is_seen_only_where_the_field_belongs() {
    let marked = marked();
    assert!(marked.len() > 500, "only {} fields", marked.len());
    let receiver = Receiver::start();
    let mut verdict = Verdict::start(&receiver);
    let mut client = VerdictServiceClient::new(verdict.channel().await);
    let mut given = Given::default();
    send(&mut client, &marked, &mut given).await;
    read(&verdict, &mut client, &mut given).await;
    verdict.end();
    given.about.push_str(&verdict.output());
    assert!(given.about.contains("TRACE"), "the log tells everything");
    let is_of_webhooks = |span: &&otlp::Span| span.attributes.contains_key("provider.name");
    let seen = receiver.spans().iter().filter(is_of_webhooks).count();
    assert!(
        seen > marked.len(),
        "only {seen} webhooks are seen in traces"
    );
    given.about.push_str(&receiver.text());

    let of = |text: &str| -> Vec<&Marked> {
        let marks = marks(text).into_iter();
        marks.filter_map(|number| marked.get(number)).collect()
    };
    let strays: Vec<_> = of(&given.about)
        .iter()
        .map(|marked| &marked.field)
        .collect();
    assert_eq!(strays, Vec::<&String>::new(), "seen by who only watches");

    let by_provider = |text: &str| {
        let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for marked in of(text) {
            let paths = seen.entry(marked.provider).or_default();
            paths.insert(&marked.path);
        }
        seen
    };
    let seen = by_provider(&given.of);
    let expected = IMPERSONAL
        .iter()
        .map(|(provider, paths)| (*provider, paths.iter().copied().collect()));
    assert_eq!(seen, expected.collect());
    // What was not seen was there to be seen.
    for (provider, paths) in by_provider(&given.personal) {
        assert!(paths.difference(&seen[provider]).count() > 0, "{provider}");
    }
}
