//! `verdict renormalize`

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CliError,
    client::{EndpointArg, failure},
    filter::FilterArgs,
    output::{self, Format},
};
use crate::proto::{
    FieldChange, RenormalizeRequest, RenormalizeSummary, RenormalizedEvent,
    admin_service_client::AdminServiceClient, renormalize_response::Message,
};

/// Runs every stored delivery through the current adapters again.
///
/// What an adapter of today understands in another way is appended as a corrected event that names the event it corrects;
/// the log is never rewritten. Look at it with --dry-run first. It can be run again at any time: nothing is appended
/// twice.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only tell what would change.
    #[arg(long)]
    dry_run: bool,

    /// Do it. Needed without --dry-run.
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,

    #[command(flatten)]
    filter: FilterArgs,

    /// How to print. The default is readable on a terminal and JSON lines in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    server: EndpointArg,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    if !args.dry_run && !args.yes {
        return Err(CliError::Usage(
            "this appends a corrected event for each one that differs; look with --dry-run first, then add --yes".to_owned(),
        ));
    }
    let format = Format::or_detect(args.format);
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let request = RenormalizeRequest {
        dry_run: args.dry_run,
        filter: Some(args.filter.into()),
    };
    let stream = client.renormalize(request).await;
    let mut stream = stream.map_err(|status| failure(&status))?.into_inner();
    let mut totals = Totals::default();
    while let Some(response) = stream.message().await.map_err(|status| failure(&status))? {
        let text = match (format, &response.message) {
            (Format::Json, _) => output::json(&response)?,
            (Format::Table, Some(Message::Changed(event))) => {
                totals.add(event);
                lines(event)
            }
            (Format::Table, Some(Message::Summary(summary))) => {
                format!("{}{}", totals.table(), total(summary))
            }
            (Format::Table, None) => continue,
        };
        // Who appends must go on to the end, whether anyone reads or not.
        let read = output::print(text);
        if !read && args.dry_run {
            return Ok(());
        }
    }
    Ok(())
}

/// One line for each difference of an event.
fn lines(event: &RenormalizedEvent) -> String {
    let head = format!(
        "{:<9} {:<36}",
        output::clip(&event.provider),
        output::clip(&event.event_id)
    );
    if !event.no_longer_an_event.is_empty() {
        let why = output::plain(&event.no_longer_an_event);
        return format!("{head} {NO_EVENT}: {why}");
    }
    let changes = event.changes.iter();
    let lines = changes.map(|change| {
        let field = output::plain(&change.field);
        format!("{head} {field}: {}", difference(change))
    });
    lines.collect::<Vec<_>>().join("\n")
}

const NO_EVENT: &str = "no longer an event";

fn difference(change: &FieldChange) -> String {
    let value = |value: &str| match value {
        "" => "(not set)".to_owned(),
        value => output::clip(value),
    };
    format!("{} → {}", value(&change.before), value(&change.after))
}

/// How many events differ, by provider and field, with an example of each.
#[derive(Default)]
struct Totals(BTreeMap<(String, String), (u64, String)>);

impl Totals {
    fn add(&mut self, event: &RenormalizedEvent) {
        let mut seen = BTreeSet::new();
        let mut count = |field: String, example: String| {
            let key = (output::clip(&event.provider), field);
            if seen.insert(key.clone()) {
                self.0.entry(key).or_insert((0, example)).0 += 1;
            }
        };
        if !event.no_longer_an_event.is_empty() {
            let why = output::clip(&event.no_longer_an_event);
            count(NO_EVENT.to_owned(), why);
        }
        for change in &event.changes {
            count(without_indices(&change.field), difference(change));
        }
    }

    fn table(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let head = format!(
            "\n{:<9} {:<36} {:>8} EXAMPLE",
            "PROVIDER", "FIELD", "EVENTS"
        );
        let mut table = format!("{}\n", output::head(&head));
        for ((provider, field), (events, example)) in &self.0 {
            table += &format!("{provider:<9} {field:<36} {events:>8} {example}\n");
        }
        table + "\n"
    }
}

/// The path of a field with all elements of a list taken together.
fn without_indices(field: &str) -> String {
    let in_brackets = |c: char| c.is_ascii_digit();
    let parts = output::plain(field);
    let parts = parts.split('[').enumerate();
    let parts = parts.map(|(index, part)| match index {
        0 => part.to_owned(),
        _ => format!("[{}", part.trim_start_matches(in_brackets)),
    });
    parts.collect()
}

fn total(summary: &RenormalizeSummary) -> String {
    let RenormalizeSummary {
        examined,
        unchanged,
        changed,
        appended,
        without_delivery,
        corrections,
        damaged,
    } = summary;
    format!(
        "{examined} examined: {unchanged} unchanged, {changed} changed, {without_delivery} without a delivery, \
         {corrections} corrections, {damaged} damaged; {appended} corrected events appended"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elements_of_a_list_are_one_field() {
        for (field, expected) in [
            ("event_id", "event_id"),
            ("verification.reasons[12]", "verification.reasons[]"),
            (
                "verification.checks[0].reasons[1].code",
                "verification.checks[].reasons[].code",
            ),
        ] {
            assert_eq!(without_indices(field), expected);
        }
    }
}
