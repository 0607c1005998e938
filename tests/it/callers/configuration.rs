//! Callers and issuers in the configuration: what is refused, and in which words.

use std::fs;

use tempfile::TempDir;
use verdict::config::{self, Variables};

use super::{caller, issuer::Issuer};

/// What is said about a configuration that must be refused.
fn refusal(text: &str) -> String {
    let secrets = [("GU1_SECRET", "s"), ("HASH", "not a hash")];
    let variables = secrets.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let variables = Variables::from(variables);
    let source =
        "[[sources]]\nprovider = \"gu1\"\nsecrets = [{ id = \"a\", env = \"GU1_SECRET\" }]\n";
    let config = config::parse(&format!("{text}\n{source}"), &variables);
    let checked = config.and_then(|config| config.check(&variables));
    let refused = checked.expect_err(text).to_string();
    assert!(!refused.contains('\n'), "more than one line: {refused}");
    refused
}

#[test]
fn what_is_wrong_with_a_caller_is_said_in_one_line() {
    let good = caller("risk", &[("subscribe", "")]);
    let hash = "a".repeat(64);
    let tokens = |tokens: &str| {
        format!(
            "[[callers]]\nname = \"risk\"\ntokens = [{tokens}]\n[[callers.grants]]\nscopes = [\"admin\"]\n"
        )
    };
    let grant = |scopes: &str, limits: &str| caller("risk", &[(scopes, limits)]);
    let credentials =
        |line: &str| good.replace("[[callers.grants]]", &format!("{line}\n[[callers.grants]]"));
    let cases = [
        (
            good.replace("risk\"\n", "Risk\"\n"),
            "caller \"Risk\": the name must be 1 to 64 lower-case",
        ),
        (good.replace("risk\"\n", "a/b\"\n"), "the name must be"),
        (format!("{good}{good}"), "caller \"risk\": configured twice"),
        (
            tokens(""),
            "no credentials: give it tokens, certificates or subjects",
        ),
        (caller("risk", &[]), "no grants: add [[callers.grants]]"),
        (
            good.replace("[\"subscribe\"]", "[]"),
            "a grant without scopes",
        ),
        (
            grant("root", ""),
            "unknown scope \"root\"; there are ingest, subscribe",
        ),
        (
            grant("backfill", ""),
            "the scope backfill only adds to ingest",
        ),
        (
            grant("personal_data ingest", ""),
            "the scope personal_data only adds to subscribe or admin",
        ),
        (
            grant("admin", "providers = [\"gu2\"]"),
            "unknown provider \"gu2\" in a grant; verdict knows",
        ),
        (
            grant("admin", "accounts = [\"a b\"]"),
            "the account \"a b\" in a grant",
        ),
        (grant("admin", "account = [\"a\"]"), "account"),
        (
            tokens(&format!("{{ id = \"\", sha256 = \"{hash}\" }}")),
            "the id of a token",
        ),
        (
            tokens(&format!(
                "{{ id = \"a\", sha256 = \"{hash}\" }}, {{ id = \"a\", env = \"HASH\" }}"
            )),
            "the token id \"a\" is used twice",
        ),
        (
            tokens("{ id = \"a\" }"),
            "token \"a\": name one of sha256, env and file",
        ),
        (
            tokens(&format!(
                "{{ id = \"a\", env = \"HASH\", sha256 = \"{hash}\" }}"
            )),
            "name one of",
        ),
        (
            tokens("{ id = \"a\", env = \"NOWHERE\" }"),
            "the environment variable NOWHERE is not set",
        ),
        (
            tokens("{ id = \"a\", file = \"/nowhere\" }"),
            "cannot read /nowhere",
        ),
        (
            tokens("{ id = \"a\", sha256 = \"vdt_secret\" }"),
            "must be 64 hex digits, not the token itself",
        ),
        (
            tokens("{ id = \"a\", env = \"HASH\" }"),
            "must be 64 hex digits",
        ),
        (
            tokens(&format!(
                "{{ id = \"a\", sha256 = \"{hash}\" }}, {{ id = \"b\", sha256 = \"{}\" }}",
                hash.to_uppercase()
            )),
            "token \"b\" is the token of another entry too",
        ),
        (
            credentials("certificates = [\"a b\"]"),
            "the certificate name \"a b\" is neither",
        ),
        (credentials("certificates = [\"*.internal\"]"), "neither"),
        (
            credentials("certificates = [\"a.internal\", \"A.internal\"]"),
            "the certificate name \"A.internal\" is used twice",
        ),
        (
            credentials("certificates = [\"a.internal\"]"),
            "it has certificates, and clients are not asked for any",
        ),
        (
            credentials("subjects = [{ issuer = \"corp\", subject = \"a\" }]"),
            "the issuer \"corp\" of a subject is not among [[issuers]]",
        ),
    ];
    for (text, said) in cases {
        let refused = refusal(&text);
        assert!(refused.contains(said), "{refused}\ninstead of\n{said}");
        assert!(!refused.contains("vdt_secret") && !refused.contains("not a hash"));
    }
}

#[test]
fn what_is_wrong_with_an_issuer_is_said_in_one_line() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("jwks.json");
    let issuer = Issuer::new().config(&path);
    let subject = "subjects = [{ issuer = \"corp\", subject = \"a\" }]";
    let caller = caller("risk", &[("subscribe", "")]).replace(
        "[[callers.grants]]",
        &format!("{subject}\n[[callers.grants]]"),
    );
    let file = format!("jwks_file = \"{}\"", path.display());
    let with = |old: &str, new: &str| format!("{caller}{}", issuer.replace(old, new));
    let url = |url: &str| with(&file, &format!("jwks_url = \"{url}\""));
    let second = |issuer: &str| format!("{caller}{issuer}");
    let empty = directory.path().join("empty.json");
    fs::write(&empty, "{\"keys\":[{\"kty\":\"oct\",\"k\":\"YQ\"}]}").expect("a file");
    let cases = [
        (
            issuer.clone(),
            "issuer \"corp\": no caller has a subject of it",
        ),
        (
            second(&format!("{issuer}{issuer}")),
            "issuer \"corp\": configured twice",
        ),
        (
            with("name = \"corp\"", "name = \"Corp\""),
            "the issuer \"corp\" of a subject",
        ),
        (with("[\"verdict\"]", "[]"), "audiences is empty"),
        (with("[\"verdict\"]", "[\"\"]"), "audiences is empty"),
        (with("https://login.example.com", ""), "issuer is empty"),
        (
            with("RS256", "HS256"),
            "the algorithm HS256 is not safe here",
        ),
        (with("RS256", "none"), "the algorithm none is not safe here"),
        (with("RS256", "ES512"), "unknown algorithm \"ES512\"; RS256"),
        (
            with("audiences", "leeway_seconds = 601\naudiences"),
            "leeway_seconds must be at most 600",
        ),
        (with(&file, ""), "name either jwks_file or jwks_url"),
        (
            with(&file, &format!("{file}\njwks_url = \"https://a/keys\"")),
            "name either",
        ),
        (
            url("http://login.example.com/keys"),
            "http:// is taken only to loopback",
        ),
        (url("http://127.0.0.1.example.com/keys"), "only to loopback"),
        (
            url("http://localhost@example.com/keys"),
            "jwks_url must have no user or password",
        ),
        (
            url("https://verdict:secret@login.example.com/keys"),
            "jwks_url must have no user or password",
        ),
        (url("ftp://localhost/keys"), "jwks_url must be https"),
        (url("/keys"), "jwks_url must be https"),
        (
            with(
                &file,
                "jwks_url = \"https://a/keys\"\njwks_refresh_seconds = 1",
            ),
            "at least 10",
        ),
        (
            with("jwks.json", "nowhere.json"),
            "nowhere.json: No such file",
        ),
        (
            with("jwks.json", "empty.json"),
            "holds no key for signatures that verdict knows",
        ),
    ];
    for (text, said) in cases {
        let refused = refusal(&text);
        assert!(refused.contains(said), "{refused}\ninstead of\n{said}");
    }
}

#[test]
fn the_example_of_the_defaults_can_be_used() {
    let defaults = include_str!("../../../src/config.default.toml");
    let (_, example) = defaults.split_once("# [[callers]]\n").expect("an example");
    let (example, _) = example.split_once("\n[log]").expect("an end");
    let lines = example
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or_default());
    let text = format!("[[callers]]\n{}", lines.collect::<Vec<_>>().join("\n"));
    let directory = TempDir::new().expect("a directory");
    let jwks = directory.path().join("jwks.json");
    fs::write(&jwks, Issuer::new().jwks()).expect("a file");
    let hash = directory.path().join("hash");
    fs::write(&hash, "b".repeat(64)).expect("a file");
    let text = text
        .replace("/etc/verdict/jwks.json", &jwks.to_string_lossy())
        .replace("/run/secrets/risk-token-sha256", &hash.to_string_lossy());
    let tls = "[server.tls]\ncert_file = \"a\"\nkey_file = \"b\"\nclient_certificates = \"optional\"\nclient_ca_file = \"c\"\n";
    let loaded = super::load(&format!("{tls}{text}"));
    assert_eq!(loaded.callers.names().collect::<Vec<_>>(), ["risk-engine"]);
}
