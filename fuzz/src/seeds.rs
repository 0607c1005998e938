//! The inputs that follow from verdict's fixtures.

use std::{fs, path::Path};

use bytes::Bytes;
use verdict::{
    config::{self, Variables},
    http_file,
    log::{Cursor, Position},
    provider::{
        Headers, PROVIDERS, Provider, RawWebhook,
        signature::{Recipe, Scheme},
    },
    source::Source,
};

use crate::{now, read, repository};

/// An input with the name of its file.
pub type Seed = (String, Vec<u8>);

/// Writes all of them, each into the folder of its target.
pub fn write(corpus: &Path) {
    for provider in PROVIDERS {
        let target = format!("normalize_{}", provider.name());
        write_all(&corpus.join(target), requests(*provider));
    }
    write_all(&corpus.join("signature"), signatures());
    write_all(&corpus.join("jwe"), tokens());
    write_all(
        &corpus.join("jwe"),
        [seed("round_trip", "encrypt:{\"a\": 1}")],
    );
    write_all(&corpus.join("cursor"), cursors());
    write_all(&corpus.join("config"), configurations());
}

fn write_all(folder: &Path, seeds: impl IntoIterator<Item = Seed>) {
    fs::create_dir_all(folder).expect("the corpus can be written");
    for (name, content) in seeds {
        fs::write(folder.join(name), content).expect("the corpus can be written");
    }
}

fn seed(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Seed {
    (name.into(), content.into())
}

/// The webhooks of a provider's fixtures.
fn fixtures(provider: &str) -> Vec<(String, RawWebhook)> {
    let folder = repository("tests/fixtures").join(provider);
    let mut fixtures = Vec::new();
    for entry in fs::read_dir(folder).expect("every provider has fixtures") {
        let path = entry.expect("a folder can be read").path();
        if path.extension().is_none_or(|extension| extension != "http") {
            continue;
        }
        let name = path.file_stem().expect("a name").to_string_lossy();
        let webhook = http_file::parse(&read(&path).into()).expect("fixtures are requests");
        fixtures.push((name.into_owned(), webhook));
    }
    fixtures
}

/// The source that the fixtures of a provider belong to. Its paths begin at the root of the repository.
fn fixture_source(provider: &str) -> Source {
    let path = repository("tests/fixtures")
        .join(provider)
        .join("source.toml");
    let text = String::from_utf8(read(&path)).expect("TOML is UTF-8");
    let root = repository("tests/");
    let root = root.to_str().expect("a path in UTF-8");
    let config = config::parse(
        &text.replace("\"tests/", &format!("\"{root}/")),
        &Variables::new(),
    );
    let loaded = config.and_then(|config| config.check(&Variables::new()));
    let mut loaded = loaded.expect("a good configuration");
    loaded.sources.pop().expect("one source")
}

/// Requests with the bodies that the adapter gets to read, and the headers that are not of the signature.
fn requests(provider: &dyn Provider) -> Vec<Seed> {
    let source = fixture_source(provider.name());
    let signature_headers: Vec<&str> = provider.schemes().iter().filter_map(header).collect();
    let mut seeds = Vec::new();
    for (name, webhook) in fixtures(provider.name()) {
        let payload = match provider.encrypted() {
            // One that cannot be decrypted is plain.
            true => source
                .decrypt(&webhook.payload, now())
                .unwrap_or(webhook.payload),
            false => webhook.payload,
        };
        let read_by_adapter = |name: &str| name.to_ascii_lowercase().starts_with("x-");
        let headers = webhook.headers.iter();
        let headers = headers
            .filter(|(name, _)| read_by_adapter(name))
            .filter(|(name, _)| {
                !signature_headers
                    .iter()
                    .any(|h| h.eq_ignore_ascii_case(name))
            })
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let request = RawWebhook { payload, headers };
        seeds.push(seed(name, http_file::write(provider.name(), &request)));
    }
    let samples = provider.samples().iter().enumerate();
    seeds.extend(samples.map(|(number, sample)| {
        let request = RawWebhook {
            payload: Bytes::from_static(sample.body.as_bytes()),
            headers: Headers::default(),
        };
        let file = http_file::write(provider.name(), &request);
        seed(format!("sample_{number}"), file)
    }));
    seeds
}

fn header(scheme: &Scheme) -> Option<&'static str> {
    match scheme.recipe {
        Recipe::Body { header, .. } | Recipe::TimestampedBody { header } => Some(header),
        Recipe::Member { .. } => None,
    }
}

/// Requests that each scheme accepts, or nearly.
fn signatures() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for provider in PROVIDERS {
        for scheme in provider.schemes() {
            let texts: Vec<String> = match scheme.recipe {
                Recipe::Body { header, prefixes } => prefixes
                    .iter()
                    .map(|prefix| format!("POST /\n{header}: {prefix}$MAC\n\n{{}}"))
                    .collect(),
                Recipe::TimestampedBody { header } => {
                    let t = now().as_second();
                    let request = |value: &str| format!("POST /\n{header}: {value}\n\n{{}}");
                    vec![
                        request(&format!("t={t},v1=$MAC")),
                        request(&format!("v0=x, v1=$OLD, v1=$MAC, t={t}")),
                        request(&format!("t={},v1=$OLD", t - 3600)),
                        request(&format!("t={t},v1=")),
                    ]
                }
                Recipe::Member {
                    signature, signed, ..
                } => vec![
                    format!("POST /\n\n{{\"{signature}\":\"$MAC\",\"{signed}\":{{\"a\":1.0}}}}"),
                    format!(
                        "POST /\n\n{{\"event\":\"\", \"{signed}\" : [\"\\u00e9/é\", 1e3],\"{signature}\":\"$MAC\"}}"
                    ),
                ],
            };
            let name = format!("{}_{}", provider.name(), scheme.name);
            let texts = texts.into_iter().enumerate();
            seeds.extend(texts.map(|(number, text)| seed(format!("{name}_{number}"), text)));
        }
    }
    seeds
}

/// The tokens of Kayle's fixtures.
pub fn tokens() -> Vec<Seed> {
    let fixtures = fixtures("kayle").into_iter();
    fixtures
        .map(|(name, webhook)| seed(name, webhook.payload.trim_ascii()))
        .filter(|(_, token)| !token.starts_with(b"{"))
        .collect()
}

fn cursors() -> Vec<Seed> {
    let cursor = |position| {
        let log = "08fa7e8a-2b81-5383-88b2-abbe691a7d37".parse();
        let log = log.expect("a UUID");
        Cursor {
            log,
            position: Position(position),
        }
        .encode()
    };
    vec![
        seed("first", cursor(1)),
        seed("last", cursor(u64::MAX)),
        seed("of_a_page", format!("n{}", cursor(7))),
        seed("short", "AAAA"),
    ]
}

/// The defaults, the sources of the fixtures, and one of everything that a source can be told.
fn configurations() -> Vec<Seed> {
    let mut seeds = vec![
        seed("defaults", read(&repository("src/config.default.toml"))),
        seed("everything", EVERYTHING),
        seed("callers", CALLERS),
    ];
    for provider in PROVIDERS {
        let path = repository("tests/fixtures")
            .join(provider.name())
            .join("source.toml");
        seeds.push(seed(format!("source_{}", provider.name()), read(&path)));
        let schemes: Vec<&str> = provider
            .schemes()
            .iter()
            .map(|scheme| scheme.name)
            .collect();
        let text = format!(
            "[[sources]]\nprovider=\"{}\"\nschemes={schemes:?}\nsecrets=[{{id=\"a\",env=\"SECRET\"}}]\n",
            provider.name()
        );
        seeds.push(seed(format!("all_schemes_{}", provider.name()), text));
    }
    seeds
}

const EVERYTHING: &str = r#"[server]
grpc_listen = "[::1]:1"
max_payload_bytes = 1
[log]
kind = "memory"
segment_bytes = 65536
[log.retention]
events_max_bytes = 1
[[sources]]
provider = "kayle"
account = "a.b_c-d"
environment = "sandbox"
secrets = [{ id = "a", env = "SECRET" }, { id = "b", env = "SECRET" }]
decryption_keys = [{ id = "k", env = "KEY" }]
schemes = ["v1"]
tolerance_seconds = 1
keep_unverified = true
options = { allow_plaintext = true }
"#;

const CALLERS: &str = r#"[audit]
path = "audit.jsonl"
[log.encryption]
enabled = false
keys_path = "keys"
[[sources]]
provider = "gu1"
secrets = [{ id = "a", env = "SECRET" }]
[[callers]]
name = "risk-engine"
tokens = [{ id = "a", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }]
certificates = ["spiffe://corp/risk-engine", "risk.internal"]
subjects = [{ issuer = "corp", subject = "risk" }]
[[callers.grants]]
scopes = ["subscribe", "personal_data"]
providers = ["gu1"]
accounts = ["default"]
[[issuers]]
name = "corp"
issuer = "https://login.example.com"
audiences = ["verdict"]
jwks_url = "https://login.example.com/keys"
jwks_refresh_seconds = 60
algorithms = ["EdDSA"]
leeway_seconds = 1
"#;
