//! What people see: one line an event, and nothing that could steer their terminal.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use prost::{Message, Name};
use prost_types::Timestamp;

use super::CliError;
use crate::{
    event,
    proto::{
        Outcome, Reason, ReasonCode, SubjectChangeKind, Verification, VerificationEvent,
        verification_event::Detail,
    },
};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people: a line with columns, or indented JSON where there is only one thing to show.
    Table,
    /// For programs: a JSON object on a line.
    Json,
}

impl Format {
    /// The chosen format; else a table on a terminal, and JSON in a pipe.
    pub(super) fn or_detect(chosen: Option<Self>) -> Self {
        chosen.unwrap_or_else(|| match io::stdout().is_terminal() {
            true => Self::Table,
            false => Self::Json,
        })
    }
}

/// Prints a line. `false` when nobody reads any more, as in `verdict tail | head`.
pub(super) fn print(line: impl fmt::Display) -> bool {
    writeln!(anstream::stdout(), "{line}").is_ok()
}

/// Prints a line for people beside the results.
pub(super) fn complain(line: &str) {
    anstream::eprintln!("{}", text(line));
}

/// A message as JSON on one line.
pub(super) fn json<M: Message + Name>(message: &M) -> Result<String, CliError> {
    let json = event::to_json(message).map_err(CliError::failed)?;
    Ok(escape(&json))
}

/// A message as indented JSON.
pub(super) fn pretty_json<M: Message + Name>(message: &M) -> Result<String, CliError> {
    let json = event::to_pretty_json(message).map_err(CliError::failed)?;
    Ok(escape(&json))
}

/// JSON with everything escaped that could steer a terminal. It stands in strings only, but for the line breaks between.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_steering(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped
}

/// Whether a character could steer a terminal, or make text look like another: control characters, those that change the
/// direction of what follows, and those that nobody sees.
fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The head of a table.
pub(super) fn head(columns: &str) -> String {
    let style = Style::new().bold();
    format!("{style}{columns}{style:#}")
}

/// A time to the second.
pub(super) fn time(time: Option<Timestamp>) -> String {
    let time = time.unwrap_or_default();
    let time = jiff::Timestamp::new(time.seconds, time.nanos).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A number of bytes in the largest unit that it fills.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// The head of the table of events.
pub(super) fn event_head() -> String {
    let columns = columns(
        "RECEIVED",
        "PROVIDER",
        "WHAT",
        Style::new(),
        "SUBJECT",
        "WHY",
    );
    head(&columns)
}

/// The row of an event.
pub(super) fn event_row(event: &VerificationEvent) -> String {
    let source = event.source.as_ref();
    let provider = source.map_or("", |source| &source.provider);
    let subject = event.subject.as_ref();
    let subject = subject.map_or("-", |subject| &subject.provider_subject_id);
    let (what, style, why) = match &event.detail {
        Some(Detail::Verification(verification)) => {
            let outcome = verification.outcome();
            let style = outcome_style(outcome);
            (
                short(outcome.as_str_name(), "OUTCOME_"),
                style,
                why(event, verification),
            )
        }
        Some(Detail::SubjectChange(change)) => {
            let kind = SubjectChangeKind::as_str_name(&change.kind());
            (
                short(kind, "SUBJECT_CHANGE_KIND_"),
                Style::new(),
                clip(&change.level),
            )
        }
        Some(Detail::CredentialShare(share)) => (
            "CREDENTIAL_SHARED",
            Style::new(),
            clip(&share.credential_id),
        ),
        None => ("-", Style::new(), String::new()),
    };
    let received_at = event.received_at.unwrap_or_default();
    let time = jiff::Timestamp::new(received_at.seconds, received_at.nanos).unwrap_or_default();
    let time = time.strftime("%H:%M:%SZ").to_string();
    columns(&time, provider, what, style, subject, &why)
}

fn columns(
    time: &str,
    provider: &str,
    what: &str,
    style: Style,
    subject: &str,
    why: &str,
) -> String {
    let subject = clip(subject);
    let provider = clip(provider);
    format!("{time:<10} {provider:<9} {style}{what:<17}{style:#} {subject:<36} {why}")
}

/// Text from outside: nothing in it may steer the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !is_steering(*c)).collect()
}

/// Text of several lines from outside: nothing in it may steer the terminal either.
pub(super) fn text(text: &str) -> String {
    let shown = |c: &char| matches!(c, '\n' | '\t') || !is_steering(*c);
    text.chars().filter(shown).collect()
}

/// Text from outside that fits a column.
pub(super) fn clip(text: &str) -> String {
    const WIDTH: usize = 36;
    let text = plain(text);
    match text.char_indices().nth(WIDTH) {
        None => text,
        Some(_) => text.chars().take(WIDTH - 1).chain(['…']).collect(),
    }
}

fn why(event: &VerificationEvent, verification: &Verification) -> String {
    let mut words = Vec::new();
    if !verification.level.is_empty() {
        words.push(format!("level {}", clip(&verification.level)));
    }
    words.extend(verification.reasons.iter().map(reason));
    if event.late {
        words.push("late".to_owned());
    }
    words.join(", ")
}

fn reason(reason: &Reason) -> String {
    let code = short(ReasonCode::as_str_name(&reason.code()), "REASON_CODE_");
    match reason.provider_code.as_str() {
        "" => code.to_owned(),
        provider_code => format!("{code} ({})", clip(provider_code)),
    }
}

pub(super) fn short<'n>(name: &'n str, prefix: &str) -> &'n str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn outcome_style(outcome: Outcome) -> Style {
    let color = match outcome {
        Outcome::Approved => AnsiColor::Green,
        Outcome::Rejected | Outcome::Revoked | Outcome::Failed => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    Style::new().fg_color(Some(color.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::proto::SourceInfo;

    #[test]
    fn nothing_that_is_printed_steers_a_terminal() {
        let text = "a\u{1b}[31m\u{7f}\u{9b}2J\u{202e}b\u{200b}\u{feff}\u{e0041}\r\nç";
        let message = SourceInfo {
            provider: text.to_owned(),
            ..Default::default()
        };
        for json in [json(&message).unwrap(), pretty_json(&message).unwrap()] {
            let raw = json.chars().find(|c| *c != '\n' && is_steering(*c));
            assert_eq!(raw, None, "{json}");
            let parsed: Value = serde_json::from_str(&json).unwrap();
            assert_eq!(parsed["provider"], text);
        }
        assert_eq!(plain(text), "a[31m2Jbç");
        assert_eq!(super::text(text), "a[31m2Jb\nç");
    }
}
