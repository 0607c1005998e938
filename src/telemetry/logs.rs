//! Log lines: how they look, and which there are.
//!
//! A line that is written on the way of a call tells the trace and the span, where traces are sent.

use std::{
    env, fmt,
    io::{self, IsTerminal},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry::trace::{SpanId, TraceId};
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, Targets, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Writer},
    },
    registry::LookupSpan,
    reload,
};

use super::traces;
use crate::config::{self, LogFormat};

/// Which log lines there are, and were to be by the configuration. It can be changed while the server runs.
#[derive(Clone, Debug, Default)]
pub struct LogLevels {
    configured: Levels,
    current: Arc<Mutex<Levels>>,
    /// `None` where no lines are written.
    filter: Option<reload::Handle<Targets, Registry>>,
}

impl LogLevels {
    /// Those that are in force.
    pub fn current(&self) -> Levels {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in force, `None` those of the configuration, and returns those that were before and those that are now.
    /// There is a line about it if either of them let it pass.
    pub fn set(&self, levels: Option<Levels>) -> (Levels, Levels) {
        let levels = levels.unwrap_or_else(|| self.configured.clone());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = || tracing::info!(previous = %current, %levels, "the log levels are changed");
        let is_told = current.targets.would_enable(module_path!(), &Level::INFO);
        let is_change = *current != levels;
        if is_change && is_told {
            tell();
        }
        if let Some(filter) = &self.filter {
            // It can only fail when the subscriber is gone, and lasts as long as the process.
            let _ = filter.reload(levels.targets.clone());
        }
        if is_change && !is_told {
            tell();
        }
        let previous = std::mem::replace(&mut *current, levels.clone());
        (previous, levels)
    }

    /// Whether there are lines of verdict of this level.
    pub(super) fn show(&self, level: Level) -> bool {
        self.current().targets.would_enable(crate_name(), &level)
    }
}

/// The target of the lines, and the spans, of verdict itself begins with this.
pub(super) fn crate_name() -> &'static str {
    env!("CARGO_CRATE_NAME")
}

/// Libraries that tell at the level info what only their makers want to know. Unless a list names them, they have no more
/// than their warnings.
const TALKATIVE: [&str; 2] = ["fjall", "lsm_tree"];

/// Levels by module: a list like `info,verdict::ingest=debug`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Levels {
    text: String,
    targets: Targets,
}

/// Why a text says nothing about levels.
#[derive(Debug, thiserror::Error)]
pub enum LevelsError {
    /// Much more than anybody writes.
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// One of its parts is neither a level nor a module with one.
    #[error(
        "holds {0:?}, which is neither off, error, warn, info, debug or trace, nor <module>=<one of these>"
    )]
    Malformed(String),
}

const MAX_BYTES: usize = 1024;

impl FromStr for Levels {
    type Err = LevelsError;

    fn from_str(text: &str) -> Result<Self, LevelsError> {
        if text.len() > MAX_BYTES {
            return Err(LevelsError::TooLong);
        }
        let mut targets = Targets::new();
        for part in text.split(',').map(str::trim) {
            let malformed = || LevelsError::Malformed(part.to_owned());
            targets = match part.split_once('=') {
                Some((module, name)) if is_module(module) => {
                    targets.with_target(module, level(name).ok_or_else(malformed)?)
                }
                Some(_) => return Err(malformed()),
                // A module alone would mean all of its lines and no others: a mistyped level would silence everything.
                None => targets.with_default(level(part).ok_or_else(malformed)?),
            };
        }
        let default = targets.default_level().unwrap_or(LevelFilter::OFF);
        for module in TALKATIVE {
            if !targets.iter().any(|(named, _)| named == module) {
                targets = targets.with_target(module, default.min(LevelFilter::WARN));
            }
        }
        let text = text.trim().to_owned();
        Ok(Self { text, targets })
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_module(text: &str) -> bool {
    let may_be_in = |c: char| c.is_ascii_alphanumeric() || "_:.-".contains(c);
    !text.is_empty() && text.chars().all(may_be_in)
}

fn level(name: &str) -> Option<LevelFilter> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    let mut levels = LEVELS.into_iter();
    let found = levels.find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, level)| level)
}

/// What writes log lines to standard error, and what says which.
pub(super) fn lines(
    config: &config::Telemetry,
) -> (LogLevels, Box<dyn Layer<Registry> + Send + Sync>) {
    let levels = config.log_levels.clone();
    let (filter, handle) = reload::Layer::new(levels.targets.clone());
    let log_levels = LogLevels {
        configured: levels.clone(),
        current: Arc::new(Mutex::new(levels)),
        filter: Some(handle),
    };
    // Spans are for traces: without these they cost nothing.
    let is_line = filter_fn(|metadata| metadata.is_event());
    let filter = filter.and(is_line.with_max_level_hint(LevelFilter::TRACE));
    let is_terminal = io::stderr().is_terminal();
    let as_json = match config.log_format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match as_json {
        true => {
            let format = format::json().flatten_event(true);
            let format = format.with_current_span(false).with_span_list(false);
            lines
                .json()
                .event_format(Json(format))
                .with_filter(filter)
                .boxed()
        }
        false => {
            let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let color = is_terminal && !no_color;
            let lines = lines.with_ansi(color);
            let format = Text(format::format().with_ansi(color));
            lines.event_format(format).with_filter(filter).boxed()
        }
    };
    (log_levels, lines)
}

/// JSON lines that tell the trace.
struct Json<F>(F);

/// Lines for people that tell the trace.
struct Text<F>(F);

impl<S, N, F> FormatEvent<S, N> for Json<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        with_trace(&self.0, context, writer, event, "}\n", |(trace, span)| {
            format!(r#","trace_id":"{trace}","span_id":"{span}"}}"#)
        })
    }
}

impl<S, N, F> FormatEvent<S, N> for Text<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        with_trace(&self.0, context, writer, event, "\n", |(trace, span)| {
            format!(" trace_id={trace} span_id={span}")
        })
    }
}

/// Writes a line, and if it is part of a trace, what tells so in front of its end.
fn with_trace<S, N>(
    format: &impl FormatEvent<S, N>,
    context: &FmtContext<'_, S, N>,
    mut writer: Writer<'_>,
    event: &Event<'_>,
    end: &str,
    told: impl FnOnce((TraceId, SpanId)) -> String,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let Some(ids) = traces::current_ids() else {
        return format.format_event(context, writer, event);
    };
    let mut line = String::new();
    format.format_event(context, Writer::new(&mut line), event)?;
    let line = line.strip_suffix(end).unwrap_or(&line);
    writeln!(writer, "{line}{}", told(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn talkative_libraries_only_warn_unless_they_are_named() {
        let shows = |levels: &str, module: &str, level| {
            let levels: Levels = levels.parse().unwrap();
            levels.targets.would_enable(module, &level)
        };
        for levels in ["info", "debug", "verdict=warn,trace", "debug,lsm_tree=info"] {
            assert!(shows(levels, "fjall::batch", Level::WARN), "{levels}");
            assert!(!shows(levels, "fjall::batch", Level::INFO), "{levels}");
            assert!(shows(levels, "hyper", Level::INFO), "{levels}");
        }
        assert!(shows("info,fjall=debug", "fjall::batch", Level::DEBUG));
        assert!(shows(
            "info,fjall::batch=debug",
            "fjall::batch",
            Level::DEBUG
        ));
        assert!(!shows("error", "lsm_tree", Level::WARN));
        assert!(!shows("off", "lsm_tree", Level::ERROR));
    }

    #[test]
    fn a_text_that_would_silence_everything_by_mistake_is_refused() {
        for good in [
            "info",
            " off ",
            "WARN,fjall=warn",
            "verdict::log=trace, info",
        ] {
            assert_eq!(good.parse::<Levels>().unwrap().to_string(), good.trim());
        }
        for bad in [
            "",
            "inof",
            "fjall",
            "info,",
            "info,=warn",
            "a=",
            "a=loud",
            "[x]=info",
            "5",
        ] {
            assert!(bad.parse::<Levels>().is_err(), "{bad}");
        }
        assert!("info,".repeat(1000).parse::<Levels>().is_err());
    }
}
