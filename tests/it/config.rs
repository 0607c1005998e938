//! The configuration: what is refused, in which words, and that every example can be used.

use std::{fs, path::Path};

use tempfile::TempDir;
use verdict::config::{self, LogKind, Variables};

fn variables(variables: &[(&str, &str)]) -> Variables {
    let variables = variables.iter();
    variables
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

const GU1: &str = r#"
[[sources]]
provider = "gu1"
secrets = [{ id = "a", env = "GU1_SECRET" }]
"#;

fn secret() -> Variables {
    variables(&[("GU1_SECRET", "s")])
}

/// What is said about a configuration that must be refused.
fn refusal(text: &str, variables: &Variables) -> String {
    let refused = config::parse(text, variables).and_then(|config| config.check(variables));
    let refused = refused.unwrap_err().to_string();
    assert!(!refused.contains('\n'), "more than one line: {refused}");
    refused
}

#[test]
fn the_file_goes_over_the_defaults_and_the_environment_over_both() {
    let config = config::parse(GU1, &secret()).unwrap();
    assert_eq!(config.server.grpc_listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.log.kind, LogKind::Embedded);

    let text = format!("[server]\nmax_headers = 7\ngrpc_listen = \"127.0.0.1:1\"\n{GU1}");
    let over = [
        ("VERDICT__SERVER__GRPC_LISTEN", "[::1]:2"),
        ("VERDICT__LOG__KIND", "memory"),
        ("VERDICT_CONFIG", "x"),
    ];
    let config = config::parse(&text, &variables(&over)).unwrap();
    assert_eq!(config.server.max_headers, 7);
    assert_eq!(config.server.grpc_listen.to_string(), "[::1]:2");
    assert_eq!(config.log.kind, LogKind::Memory);
}

#[test]
fn what_is_quoted_neither_breaks_the_line_nor_commands_a_terminal() {
    const ESCAPES: &str = r"\n\r\u001b[31m";
    let cases = [
        GU1.replace("gu1", ESCAPES),
        format!("{GU1}account = \"{ESCAPES}\""),
        format!("{GU1}\"{ESCAPES}\" = 1"),
        format!("{GU1}schemes = [\"{ESCAPES}\"]"),
        format!("{GU1}environment = \"{ESCAPES}\""),
        GU1.replace("GU1_SECRET", ESCAPES),
        GU1.replace("env = \"GU1_SECRET\"", &format!("file = \"{ESCAPES}\"")),
        format!("{GU1}[telemetry]\nlog_levels = \"{ESCAPES}\""),
        format!("{GU1}[telemetry.otlp]\nendpoint = \"{ESCAPES}\""),
        format!("{GU1}[telemetry.otlp]\nendpoint = \"https://c\"\nca_file = \"{ESCAPES}\""),
        format!(
            "{GU1}[telemetry.otlp]\nendpoint = \"https://c\"\nheaders = {{ a = {{ file = \"{ESCAPES}\" }} }}"
        ),
        format!(
            "{GU1}[telemetry.otlp]\nendpoint = \"https://c\"\nheaders = {{ \"{ESCAPES}\" = {{ env = \"A\" }} }}"
        ),
    ];
    for case in cases {
        let refused = refusal(&case, &Variables::new());
        assert!(!refused.contains(char::is_control), "{refused:?}");
    }
}

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let none = Variables::new();
    let kayle =
        "[[sources]]\nprovider = \"kayle\"\nsecrets = [{ id = \"a\", env = \"GU1_SECRET\" }]\n";
    let cases = [
        ("", "no [[sources]] are configured"),
        ("[server]\nport = 1", "port"),
        ("[sever]\nport = 1", "sever"),
        ("[server]\ngrpc_listen = \"nowhere\"", "socket address"),
        ("[server]\nmax_headers = -1", "max_headers"),
        (
            "[server]\nmax_headers = 0",
            "server.max_headers must be at least 1",
        ),
        (
            &format!("[server]\nmax_concurrent_calls = 9999999\n{GU1}"),
            "server.max_concurrent_calls must be at most 1048576",
        ),
        (
            &format!("[log]\nsegment_bytes = 8589934592\n{GU1}"),
            "log.segment_bytes must be between 65536 and 1073741824",
        ),
        (
            "[server]\ngrpc_listen = \"0.0.0.0:50051\"",
            "insecure = true",
        ),
        (
            "[server]\nwebhook_listen = \"8080\"",
            "is not an address and a port",
        ),
        (
            "[server]\nwebhook_trusted_proxies = [\"10.0.0.0/33\"]",
            "webhook_trusted_proxies",
        ),
        (
            "[server]\nwebhook_trusted_proxies = [\"::ffff:10.0.0.0/104\"]",
            "is neither an address nor a network",
        ),
        (
            &format!("[server]\nwebhook_listen = \"127.0.0.1:50051\"\n{GU1}"),
            "server.grpc_listen and server.webhook_listen are the same address",
        ),
        (
            &format!("[server]\nwebhook_read_timeout_seconds = 9223372036854775807\n{GU1}"),
            "server.webhook_read_timeout_seconds must be at most 3600",
        ),
        (
            &format!("[server]\nmax_header_bytes = 9223372036854775807\n{GU1}"),
            "server.max_header_bytes must be at most 1048576",
        ),
        (
            "[server]\nwebhook_forwarded_header = \"via\"",
            "webhook_forwarded_header",
        ),
        (
            &format!("[server]\ndrain_delay_seconds = 3601\n{GU1}"),
            "server.drain_delay_seconds must be at most 3600",
        ),
        (
            &format!("{GU1}[telemetry.otlp]\nendpoint = \"collector:4317\""),
            "telemetry.otlp: endpoint must be http://",
        ),
        (
            &format!("{GU1}[telemetry.otlp]\nendpoint = \"http://c\"\nca_file = \"a\""),
            "ca_file does nothing",
        ),
        (
            &format!("{GU1}[telemetry.otlp]\nendpoint = \"https://c\"\nca_file = \"Cargo.toml\""),
            "ca_file: Cargo.toml: it holds no certificate in PEM",
        ),
        (
            &format!("{GU1}[telemetry.otlp]\nendpoint = \"http://c\"\nsample_ratio = 2"),
            "sample_ratio must be between 0 and 1",
        ),
        (
            &format!(
                "{GU1}[telemetry.otlp]\nendpoint = \"http://c\"\nheaders = {{ a = {{ env = \"NO_SUCH\" }} }}"
            ),
            "header a: the environment variable \"NO_SUCH\" is not set",
        ),
        (
            "[log]\nkind = \"jetstream\"",
            "\"jetstream\" is not supported by this version",
        ),
        (&format!("{GU1}account = []"), "account"),
        (&format!("{GU1}account = \"\""), "the account must be"),
        (&format!("{GU1}account = \"a b/c\""), "the account must be"),
        (
            &format!("{GU1}schemes = [\"hmac_sha256\", \"hmac_sha256\"]"),
            "named twice",
        ),
        (&format!("{GU1}secret = 1"), "secret"),
        (&format!("{GU1}{GU1}"), "gu1/default: configured twice"),
        (
            &GU1.replace("gu1", "no_such_provider"),
            "no_such_provider/default: unknown provider; verdict knows ",
        ),
        (
            &format!("{GU1}schemes = [\"md5\"]"),
            "unknown scheme \"md5\"; hmac_sha256 can be accepted",
        ),
        (
            &format!("{GU1}options = {{ allow_plaintext = true }}"),
            "unknown option \"allow_plaintext\"",
        ),
        (
            &format!("{GU1}keep_unverified = \"always\""),
            "keep_unverified",
        ),
        (
            &GU1.replace("{ id = \"a\", env = \"GU1_SECRET\" }", ""),
            "no secrets",
        ),
        (
            &GU1.replace("env = ", "file = \"x\", env = "),
            "name either env or file",
        ),
        (
            &GU1.replace(", env = \"GU1_SECRET\"", ""),
            "name either env or file",
        ),
        (
            &GU1.replace("env = \"GU1_SECRET\"", "value = \"s\""),
            "value",
        ),
        (
            &GU1.replace("GU1_SECRET", "NOT_SET"),
            "the environment variable NOT_SET is not set",
        ),
        (
            &GU1.replace("env = \"GU1_SECRET\"", "file = \"/nowhere\""),
            "cannot read /nowhere",
        ),
        (
            &GU1.replace("}]", "}, { id = \"a\", env = \"GU1_SECRET\" }]"),
            "the id \"a\" is used twice",
        ),
        (
            &format!("{GU1}decryption_keys = [{{ id = \"k\", env = \"GU1_SECRET\" }}]"),
            "not a private key",
        ),
        (kayle, "no decryption_keys are configured"),
        (
            &format!("{kayle}decryption_keys = [{{ id = \"k\", env = \"GU1_SECRET\" }}]"),
            "-----BEGIN PRIVATE KEY-----",
        ),
    ];
    for (text, expected) in cases {
        let said = refusal(text, &secret());
        assert!(said.contains(expected), "{text}\nsaid: {said}");
    }
    let said = refusal(GU1, &none);
    assert!(said.contains("GU1_SECRET is not set"), "{said}");
    let said = config::load(Some(Path::new("/nowhere.toml")), &none)
        .unwrap_err()
        .to_string();
    assert!(said.starts_with("cannot read /nowhere.toml"), "{said}");
}

#[test]
fn a_secret_ends_where_its_line_does_and_is_never_shown() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("secret");
    let text = GU1.replace(
        "env = \"GU1_SECRET\"",
        &format!("file = \"{}\"", file.display()),
    );
    let none = Variables::new();
    for (written, empty) in [
        ("topsecret\n", false),
        ("topsecret\r\n", false),
        ("\n", true),
        ("", true),
    ] {
        fs::write(&file, written).unwrap();
        let checked = config::parse(&text, &none).unwrap().check(&none);
        match empty {
            true => assert!(checked.unwrap_err().to_string().ends_with("is empty")),
            false => {
                let source = &checked.unwrap().sources[0];
                let body = bytes::Bytes::from(crate::support::gu1_body("1"));
                let known = verdict::provider::signature::Secret::new(
                    "a".to_owned(),
                    b"topsecret".to_vec(),
                );
                let webhook = source.schemes[0]
                    .sign(body, &known, crate::support::now())
                    .unwrap();
                assert!(
                    source.verify(webhook, crate::support::now()).is_ok(),
                    "{written:?}"
                );
                assert!(!format!("{source:?}").contains("topsecret"));
            }
        }
    }
}

#[test]
fn plaintext_needs_no_keys() {
    let text = "[[sources]]\nprovider = \"kayle\"\nsecrets = [{ id = \"a\", env = \"GU1_SECRET\" }]\noptions = { allow_plaintext = true }";
    let loaded = config::parse(text, &secret())
        .unwrap()
        .check(&secret())
        .unwrap();
    let source = &loaded.sources[0];
    let webhook = crate::support::sign(source, source.provider.samples()[0].body);
    let webhook = source.verify(webhook, crate::support::real_now()).unwrap();
    assert!(!source.is_encrypted(&webhook));
    assert!(source.normalize(&webhook).is_ok());
}

/// The blocks of a Markdown file that are marked as TOML.
fn toml_blocks(file: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let blocks = text.split("```toml\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_configuration_in_the_readme_can_be_used() {
    let blocks = toml_blocks("README.md");
    assert!(!blocks.is_empty());
    for block in blocks {
        let directory = TempDir::new().unwrap();
        let key = directory.path().join("key.pem");
        fs::copy("tests/fixtures/kayle/k1.pem", &key).unwrap();
        let hash = directory.path().join("sha256");
        fs::write(&hash, base16ct::lower::encode_string(&[7; 32])).unwrap();
        // Whatever a secret is read from is there in the place where the reader has it.
        let mut text = String::new();
        let mut environment = Variables::new();
        for line in block.lines() {
            let mut line = line.to_owned();
            if let Some(variable) = between(&line, "env = \"") {
                environment.insert(variable, "s".to_owned());
            }
            if let Some(file) = between(&line, "file = \"") {
                let there = match file.ends_with("sha256") {
                    true => &hash,
                    false => &key,
                };
                line = line.replace(&file, &there.display().to_string());
            }
            text.push_str(&line);
            text.push('\n');
        }
        // What is about something else leaves the sources out.
        if !text.contains("[[sources]]") {
            text.push_str(GU1);
            environment.insert("GU1_SECRET".to_owned(), "s".to_owned());
        }
        let checked =
            config::parse(&text, &environment).and_then(|config| config.check(&environment));
        checked.unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
}

fn between(line: &str, start: &str) -> Option<String> {
    Some(line.split_once(start)?.1.split('"').next()?.to_owned())
}
