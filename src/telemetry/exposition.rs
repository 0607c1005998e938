//! How metrics are written for those who collect them: OpenMetrics 1.0, and the older text format of Prometheus.

use std::fmt::{self, Write};

use prometheus_client::{encoding::text, registry::Registry};

/// A format that metrics can be asked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, which has units and exemplars.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, which everybody reads.
    Text,
}

impl Format {
    /// What the `Accept` headers of a request ask for: whoever names OpenMetrics can read it, and would not name it if it
    /// did not want it.
    pub fn asked_for<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let mut ranges = accept.into_iter().flat_map(|value| value.split(','));
        let is_open_metrics = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let refused = quality.is_some_and(|quality| quality.parse() == Ok(0.0));
            media_type.eq_ignore_ascii_case("application/openmetrics-text") && !refused
        };
        match ranges.any(is_open_metrics) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The `Content-Type` of an answer in it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes everything that a registry shows.
    pub fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut open_metrics = String::new();
        text::encode(&mut open_metrics, registry)?;
        match self {
            Self::OpenMetrics => Ok(open_metrics),
            Self::Text => older(&open_metrics),
        }
    }
}

/// The same in the text format 0.0.4: it names a family as its samples are named, and has neither units nor exemplars, nor a
/// mark at the end.
fn older(open_metrics: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap_or((described, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            writeln!(text, "# HELP {name}{suffix} {help}")?;
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with('#') {
            writeln!(text, "{}", without_exemplar(line))?;
        }
    }
    Ok(text)
}

/// A sample without what may follow its value. A label may hold anything, also what looks like an exemplar.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in sample.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'#' if !quoted => return sample[..index].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::{Metrics, Trace};

    const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,\
        application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

    #[test]
    fn open_metrics_is_for_who_names_it() {
        for (accept, expected) in [
            (&[PROMETHEUS][..], Format::OpenMetrics),
            (
                &["text/html", "Application/OpenMetrics-Text"],
                Format::OpenMetrics,
            ),
            (
                &["application/openmetrics-text ; q=0.1"],
                Format::OpenMetrics,
            ),
            (&[], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/plain;version=0.0.4"], Format::Text),
            (&["application/openmetrics-text;q=0"], Format::Text),
            (
                &["application/openmetrics-text; q=0.000, */*"],
                Format::Text,
            ),
            (&["application/openmetrics-texts", ";;q=,,q"], Format::Text),
        ] {
            assert_eq!(
                Format::asked_for(accept.iter().copied()),
                expected,
                "{accept:?}"
            );
        }
    }

    #[test]
    fn only_open_metrics_has_exemplars_and_units_and_an_end() {
        let metrics = Metrics::default();
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736".to_owned();
        metrics.ingested("gu1", Duration::from_millis(3), Some(Trace { trace_id }));
        metrics.rejected("gu1", "signature_mismatch");
        let mut registry = Registry::with_prefix("verdict");
        metrics.register(&mut registry);
        let new = Format::OpenMetrics.encode(&registry).unwrap();
        let bucket = r#"verdict_ingest_duration_seconds_bucket{le="0.005",provider="gu1"} 1"#;
        let exemplar = r#" # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.003"#;
        assert!(new.contains(&format!("\n{bucket}{exemplar}")), "{new}");
        assert!(new.contains("\n# UNIT verdict_ingest_duration_seconds seconds\n"));
        assert!(new.contains("\n# TYPE verdict_ingest_rejected counter\n"));
        assert!(new.ends_with("\n# EOF\n"));
        let old = Format::Text.encode(&registry).unwrap();
        assert!(old.contains(&format!("\n{bucket}\n")), "{old}");
        assert!(
            old.contains("\n# TYPE verdict_ingest_rejected_total counter\n"),
            "{old}"
        );
        for absent in ["trace_id", "# UNIT", "# EOF", " # "] {
            assert!(!old.contains(absent), "{old}");
        }
    }

    #[test]
    fn a_label_that_looks_like_an_exemplar_stays() {
        for (sample, expected) in [
            (r#"a{b="1 # {"} 2"#, r#"a{b="1 # {"} 2"#),
            (r#"a{b="\" # {"} 2 # {c="d"} 1"#, r#"a{b="\" # {"} 2"#),
            (r#"a{b="\\"} 2 # {} 1"#, r#"a{b="\\"} 2"#),
            ("a 2 # {} 1", "a 2"),
            ("a 2", "a 2"),
        ] {
            assert_eq!(without_exemplar(sample), expected);
        }
    }
}
