//! The metrics: their names, that they are right, and that nobody outside can make more of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use prometheus_parse::{Scrape, Value};
use tempfile::TempDir;
use tonic::transport::Channel;
use verdict::proto::{
    CommitCursorRequest, IngestRequest, SubscribeRequest,
    verdict_service_client::VerdictServiceClient,
};

use crate::{
    ops::{Operated, ask},
    support::{
        embedded_log, fixture, from_earliest, gu1_body, gu1_request, memory_log, next_event,
        real_now, request,
    },
};

const OPEN_METRICS: &str = "accept: application/openmetrics-text; version=1.0.0\r\n";

/// Every metric with its type and labels, as the text format names them. Dashboards and alerts hold these names: a change is
/// a breaking one, and goes into the changelog.
const NAMES: &str = "
process_cpu_seconds_total counter
process_max_fds gauge
process_open_fds gauge
process_resident_memory_bytes gauge
process_start_time_seconds gauge
process_threads gauge
process_virtual_memory_bytes gauge
verdict_build_info gauge version
verdict_callers_refused_total counter reason
verdict_capacity_in_use gauge resource
verdict_capacity_limit gauge resource
verdict_consumer_committed_timestamp_seconds gauge consumer
verdict_consumer_lag_events gauge consumer
verdict_ingest_duration_seconds histogram le provider
verdict_ingest_rejected_total counter provider reason
verdict_ingest_step_duration_seconds histogram le step
verdict_ingest_total counter provider status
verdict_ingest_unverified_total counter fate provider
verdict_log_batch_events histogram le
verdict_log_disk_free_bytes gauge directory
verdict_log_disk_min_free_bytes gauge directory
verdict_log_encrypting gauge
verdict_log_first_position gauge
verdict_log_format gauge
verdict_log_index_wait_seconds_total counter
verdict_log_key_files gauge
verdict_log_key_files_to_rewrap gauge
verdict_log_last_position gauge
verdict_log_segments_without_keys gauge
verdict_log_size_bytes gauge
verdict_log_sync_duration_seconds histogram le
verdict_log_writable gauge
verdict_quarantine_deliveries gauge kind
verdict_quarantine_dropped_total counter kind
verdict_quarantine_size_bytes gauge kind
verdict_ready gauge
verdict_rpc_calls_total counter code method
verdict_rpc_duration_seconds histogram le method
verdict_secret_known_since_timestamp_seconds gauge account kind provider secret_id
verdict_secret_last_used_timestamp_seconds gauge account kind provider secret_id
verdict_secret_uses_total counter account kind provider secret_id
verdict_stream_ends_total counter code method
verdict_subscription_events_total counter
verdict_subscription_fell_behind_total counter
verdict_tls_certificate_expiry_timestamp_seconds gauge
verdict_traces_spans_lost_total counter
verdict_webhook_answers_total counter provider status
verdict_webhook_duration_seconds histogram le provider
verdict_webhook_memory_bytes gauge
verdict_webhook_memory_limit_bytes gauge
";

/// A scrape in the older format, parsed.
struct Metrics {
    text: String,
    scrape: Scrape,
}

impl Metrics {
    async fn of(server: &Operated) -> Self {
        let text = server.get("/metrics").await.body;
        let lines = text.lines().map(|line| Ok(line.to_owned()));
        let scrape = Scrape::parse(lines).expect("metrics");
        Self { text, scrape }
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Value> {
        let has = |sample: &&prometheus_parse::Sample| {
            let mut labels = labels.iter();
            sample.metric == name
                && labels.all(|(key, value)| sample.labels.get(key) == Some(value))
        };
        let mut found = self.scrape.samples.iter().filter(has);
        let first = found.next().map(|sample| &sample.value);
        assert!(found.next().is_none(), "several {name} have {labels:?}");
        first
    }

    /// The value of a counter or gauge.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.find(name, labels) {
            Some(Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) => *value,
            other => panic!("{name} {labels:?} is {other:?} in\n{}", self.text),
        }
    }

    /// Every series, without its value.
    fn series(&self) -> BTreeSet<String> {
        let samples = self.text.lines().filter(|line| !line.starts_with('#'));
        let series = samples.map(|sample| sample.rsplit_once(' ').expect("a value").0.to_owned());
        series.collect()
    }
}

fn unknown_event() -> IngestRequest {
    request("gu1", &fixture("gu1", "unknown_event"))
}

fn forged() -> IngestRequest {
    let mut forged = gu1_request(gu1_body("forged"));
    forged.payload = [&forged.payload[..], b" "].concat().into();
    forged
}

async fn commit(client: &VerdictServiceClient<Channel>, consumer: &str, cursor: &str) {
    let request = CommitCursorRequest {
        consumer: consumer.to_owned(),
        cursor: cursor.to_owned(),
        ..Default::default()
    };
    client.clone().commit_cursor(request).await.unwrap();
}

#[tokio::test]
async fn names_types_and_labels_are_these() {
    let directory = TempDir::new().unwrap();
    let server = Operated::start(embedded_log(&directory)).await;
    let took = Duration::from_millis(2);
    let metrics = &server.telemetry.metrics;
    metrics.step(verdict::telemetry::metrics::Step::Verify, took);
    metrics.called("/verdict.v1.VerdictService/Ingest", "OK", took, None);
    metrics.webhook("gu1", 200, took, None);
    let ingest = gu1_request(gu1_body("1"));
    let cursor = server
        .client
        .clone()
        .ingest(ingest)
        .await
        .unwrap()
        .into_inner()
        .cursor;
    commit(&server.client, "risk", &cursor).await;

    let scraped = Metrics::of(&server).await;
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    for line in scraped.text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            assert_eq!(types.insert(name, kind), None, "{name} is there twice");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let family = name.strip_suffix(suffix)?;
            (types.get(family) == Some(&"histogram")).then_some(family)
        });
        let labels = labels.entry(family.unwrap_or(name)).or_default();
        let pairs = rest
            .split(['{', ',', '}'])
            .filter_map(|pair| pair.split_once("=\""));
        labels.extend(pairs.map(|(label, _)| label));
    }
    let table: Vec<String> = types
        .iter()
        .map(|(name, kind)| {
            let labels = labels.get(name).into_iter().flatten();
            let words = [*name, *kind].into_iter().chain(labels.copied());
            words.collect::<Vec<_>>().join(" ")
        })
        .collect();
    let expected: Vec<&str> = NAMES.trim().lines().collect();
    assert_eq!(table, expected);
    for name in types.keys() {
        let help = format!("# HELP {name} ");
        let help = scraped
            .text
            .lines()
            .find_map(|line| line.strip_prefix(&help));
        let help = help.unwrap_or_else(|| panic!("{name} has no help"));
        assert!(help.ends_with('.') && help.len() > 5, "{name}: {help}");
    }
}

#[tokio::test]
async fn who_asks_for_open_metrics_is_given_units_exemplars_and_an_end() {
    let server = Operated::start(memory_log()).await;
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736".to_owned();
    let trace = Some(verdict::telemetry::metrics::Trace { trace_id });
    let took = Duration::from_millis(3);
    server.telemetry.metrics.ingested("gu1", took, trace);
    let answer = ask(server.ops, "GET", "/metrics", OPEN_METRICS).await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(content_type));
    let text = answer.body;
    assert_eq!(text.matches("# EOF\n").count(), 1);
    assert!(text.ends_with("\n# EOF\n"));
    for line in [
        "# TYPE verdict_ingest counter",
        "# TYPE verdict_build info",
        "# TYPE verdict_ingest_duration_seconds histogram",
        "# UNIT verdict_ingest_duration_seconds seconds",
        "# UNIT verdict_log_size_bytes bytes",
        "# UNIT process_resident_memory_bytes bytes",
        "# UNIT verdict_consumer_lag_events events",
        r#"verdict_ingest_total{provider="gu1",status="accepted"} 0"#,
        r#"verdict_ingest_duration_seconds_bucket{le="0.005",provider="gu1"} 1 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.003"#,
    ] {
        assert!(
            text.contains(&format!("\n{line}\n")),
            "no {line} in\n{text}"
        );
    }
    // A unit is the end of the name.
    for line in text.lines().filter_map(|line| line.strip_prefix("# UNIT ")) {
        let (name, unit) = line.split_once(' ').unwrap();
        assert!(name.ends_with(&format!("_{unit}")), "{line}");
    }
    let old = server.get("/metrics").await;
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(old.header("content-type"), Some(content_type));
    assert!(!old.body.contains("trace_id"));
}

#[tokio::test]
async fn all_outcomes_are_shown_from_the_start() {
    let server = Operated::start(memory_log()).await;
    let metrics = Metrics::of(&server).await;
    for provider in verdict::provider::PROVIDERS {
        let provider = ("provider", provider.name());
        for status in ["accepted", "duplicate", "quarantined", "ignored"] {
            let labels = [provider, ("status", status)];
            assert_eq!(metrics.value("verdict_ingest_total", &labels), 0.0);
        }
        for reason in ["signature_mismatch", "log_unavailable", "payload_too_large"] {
            let labels = [provider, ("reason", reason)];
            assert_eq!(metrics.value("verdict_ingest_rejected_total", &labels), 0.0);
        }
    }
    let reason = [("reason", "unknown_token")];
    assert_eq!(metrics.value("verdict_callers_refused_total", &reason), 0.0);
    assert_eq!(
        metrics.value("verdict_subscription_fell_behind_total", &[]),
        0.0
    );
    let version = [("version", verdict::event::NORMALIZER_VERSION)];
    assert_eq!(metrics.value("verdict_build_info", &version), 1.0);
    let never = metrics.find("verdict_secret_last_used_timestamp_seconds", &[]);
    assert_eq!(never, None);
}

#[tokio::test]
async fn values_are_right_after_known_traffic() {
    let before = real_now().as_second() as f64;
    let directory = TempDir::new().unwrap();
    let server = Operated::start(embedded_log(&directory)).await;
    let mut cursors = Vec::new();
    for id in ["1", "2", "3", "3"] {
        let response = server
            .client
            .clone()
            .ingest(gu1_request(gu1_body(id)))
            .await;
        cursors.push(response.unwrap().into_inner().cursor);
    }
    server.ingest(unknown_event()).await;
    server
        .ingest(request("gu1", &fixture("gu1", "transaction_created")))
        .await;
    server.ingest(forged()).await;
    commit(&server.client, "risk", &cursors[0]).await;
    let stream = server.client.clone().subscribe(from_earliest()).await;
    let mut stream = stream.unwrap().into_inner();
    next_event(&mut stream).await;

    let metrics = Metrics::of(&server).await;
    let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels);
    for (status, expected) in [
        ("accepted", 3.0),
        ("duplicate", 1.0),
        ("quarantined", 1.0),
        ("ignored", 1.0),
    ] {
        let labels = [("provider", "gu1"), ("status", status)];
        assert_eq!(value("verdict_ingest_total", &labels), expected, "{status}");
        let labels = [("provider", "kayle"), ("status", status)];
        assert_eq!(value("verdict_ingest_total", &labels), 0.0);
    }
    let risk = [("consumer", "risk")];
    assert_eq!(value("verdict_consumer_lag_events", &risk), 2.0);
    assert!(value("verdict_consumer_committed_timestamp_seconds", &risk) >= before);
    for (kind, expected) in [("genuine", 1.0), ("unverified", 0.0)] {
        let kind = [("kind", kind)];
        assert_eq!(value("verdict_quarantine_deliveries", &kind), expected);
        assert_eq!(
            value("verdict_quarantine_size_bytes", &kind) > 0.0,
            expected > 0.0
        );
        assert_eq!(value("verdict_quarantine_dropped_total", &kind), 0.0);
    }
    let secret = [
        ("provider", "gu1"),
        ("account", "default"),
        ("kind", "signature"),
        ("secret_id", "fixtures"),
    ];
    // Of the seven webhooks one was not genuine.
    assert_eq!(value("verdict_secret_uses_total", &secret), 6.0);
    assert!(value("verdict_secret_last_used_timestamp_seconds", &secret) >= before);
    assert!(value("verdict_secret_known_since_timestamp_seconds", &secret) >= before);
    let key = [
        ("provider", "kayle"),
        ("kind", "decryption"),
        ("secret_id", "k1"),
    ];
    assert_eq!(value("verdict_secret_uses_total", &key), 0.0);

    for (resource, least) in [("connections", 1.0), ("subscriptions", 1.0), ("calls", 0.0)] {
        let resource = [("resource", resource)];
        let in_use = value("verdict_capacity_in_use", &resource);
        assert!((least..3.0).contains(&in_use), "{resource:?}: {in_use}");
        assert!(value("verdict_capacity_limit", &resource) > 100.0);
    }
    assert_eq!(value("verdict_webhook_memory_bytes", &[]), 0.0);
    assert_eq!(
        value("verdict_webhook_memory_limit_bytes", &[]),
        67_108_864.0
    );
    assert_eq!(value("verdict_log_first_position", &[]), 0.0);
    assert_eq!(value("verdict_log_last_position", &[]), 3.0);
    assert_eq!(
        value("verdict_log_size_bytes", &[]),
        server.log.stats().size_bytes as f64
    );
    assert_eq!(
        (
            value("verdict_log_writable", &[]),
            value("verdict_ready", &[])
        ),
        (1.0, 1.0)
    );
    for (directory, min_free) in [("log", 268_435_456.0), ("keys", 67_108_864.0)] {
        let of = [("directory", directory)];
        assert_eq!(value("verdict_log_disk_min_free_bytes", &of), min_free);
        assert!(value("verdict_log_disk_free_bytes", &of) > 0.0);
    }
    assert_eq!(value("verdict_log_encrypting", &[]), 1.0);
    assert_eq!(value("verdict_log_segments_without_keys", &[]), 0.0);
    // One after the other: three batches, of one event each.
    assert_eq!(value("verdict_log_batch_events_count", &[]), 3.0);
    assert_eq!(value("verdict_log_batch_events_sum", &[]), 3.0);
    assert_eq!(value("verdict_log_sync_duration_seconds_count", &[]), 3.0);
    assert_eq!(value("verdict_log_index_wait_seconds_total", &[]), 0.0);
    assert!(value("process_resident_memory_bytes", &[]) > 1e6);
    assert!(value("process_open_fds", &[]) < value("process_max_fds", &[]));
    let start = value("process_start_time_seconds", &[]);
    assert!(start <= before + 2.0 && start > before - 86400.0, "{start}");
}

/// Tries everything that somebody without a secret can make up, once.
async fn attack(server: &Operated, number: usize) {
    let name = format!("made-up-{number}");
    let unknown = IngestRequest {
        provider: name.clone(),
        ..forged()
    };
    let account = IngestRequest {
        account: name.clone(),
        ..forged()
    };
    for request in [unknown, account, forged()] {
        server.ingest(request).await;
    }
    let subscription = SubscribeRequest {
        consumer: name.clone(),
        ..from_earliest()
    };
    drop(server.client.clone().subscribe(subscription).await);
    let headers = format!("x-{name}: {name}\r\ncontent-length: 0\r\naccept: {name}/{name}\r\n");
    for (to, method, path) in [
        (server.webhook, "POST", format!("/webhooks/{name}")),
        (server.webhook, "POST", format!("/webhooks/gu1/{name}")),
        (server.webhook, "POST", "/webhooks/gu1".to_owned()),
        (server.webhook, name.as_str(), "/webhooks/gu1".to_owned()),
        (server.ops, name.as_str(), "/metrics".to_owned()),
        (server.ops, "GET", format!("/metrics?{name}")),
        (server.ops, "GET", format!("/{name}")),
    ] {
        ask(to, method, &path, &headers).await;
    }
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/verdict.v1.VerdictService/{name}")
        .parse()
        .unwrap();
    let codec = tonic_prost::ProstCodec::<IngestRequest, IngestRequest>::default();
    let unknown = grpc.unary(tonic::Request::new(forged()), path, codec).await;
    assert!(unknown.is_err());
}

#[tokio::test]
async fn nobody_outside_can_make_more_of_them() {
    let server = Operated::start(memory_log()).await;
    attack(&server, 0).await;
    let before = Metrics::of(&server).await.series();
    for number in 1..=1000 {
        attack(&server, number).await;
    }
    let after = Metrics::of(&server).await;
    let new: Vec<String> = after.series().difference(&before).cloned().collect();
    assert!(new.is_empty(), "{new:#?}");
    assert!(!after.text.contains("made-up"));
}

/// The names of metrics that a file speaks of.
fn spoken_of(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("verdict_") || word.starts_with("process_"));
    names.map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_and_documents_speak_of_no_others() {
    let known: BTreeMap<&str, &str> = NAMES
        .trim()
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap(), words.next().unwrap())
        })
        .collect();
    for path in [
        "helm/verdict/dashboards/verdict.json",
        "helm/verdict/rules/verdict.yaml",
        "helm/verdict/rules/verdict_test.yaml",
        "docs/operations.md",
    ] {
        let names = spoken_of(path);
        assert!(names.len() > 10, "{path}");
        for name in names.iter().filter(|name| *name != "verdict_test") {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                let family = name.strip_suffix(suffix)?;
                (known.get(family) == Some(&"histogram")).then_some(family)
            });
            let is_known = known.contains_key(family.unwrap_or(name));
            assert!(is_known, "{path} speaks of {name}");
        }
    }
    let shown = spoken_of("helm/verdict/dashboards/verdict.json");
    for name in known.keys().filter(|name| name.starts_with("verdict_")) {
        let shown = shown.iter().any(|shown| shown.starts_with(name));
        // It never changes.
        assert!(
            shown || *name == "verdict_log_format",
            "no panel shows {name}"
        );
    }
}

#[test]
fn each_alert_has_a_section_that_says_what_to_do() {
    let rules = fs::read_to_string("helm/verdict/rules/verdict.yaml").unwrap();
    let document = fs::read_to_string("docs/operations.md").unwrap();
    let (_, sections) = document.split_once("## When an alert fires").unwrap();
    let (sections, _) = sections.split_once("\n## ").unwrap();
    let mut sections: BTreeMap<&str, &str> = sections
        .split("\n### ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap())
        .collect();
    for rule in rules.split("- alert: ").skip(1) {
        let (alert, rule) = rule.split_once('\n').unwrap();
        let text = sections.remove(alert);
        let text = text.unwrap_or_else(|| panic!("{alert} has no section"));
        assert!(text.trim().len() > 80, "{alert}");
        let runbook = format!("runbook: docs/operations.md#{}\n", alert.to_lowercase());
        assert!(rule.contains(&runbook), "{alert}");
        for key in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(key), "{alert} has no {key}");
        }
    }
    assert!(sections.is_empty(), "no such alerts: {:?}", sections.keys());
}
