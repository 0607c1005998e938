//! `verdict quarantine`

use clap::{ArgGroup, Subcommand};
use tonic::Status;
use uuid::Uuid;

use super::{
    CliError,
    client::{Connection, EndpointArg, failure},
    output::{self, Format},
};
use crate::proto::{
    Delivery, DiscardQuarantinedRequest, DiscardQuarantinedResponse, GetDeliveryRequest,
    IngestStatus, ListQuarantinedRequest, QuarantineFilter, QuarantineReason, QuarantinedDelivery,
    RedriveRequest, RedriveResponse, RedrivenDelivery, admin_service_client::AdminServiceClient,
    discard_quarantined_request, get_delivery_request, redrive_request,
};

type Client = AdminServiceClient<Connection>;

/// Shows what could not be understood, and what to do with it.
///
/// Genuine deliveries that verdict does not understand wait in the quarantine until a later version does (redrive) or until
/// they are not wanted any more (discard). Sources with keep_unverified have a second quarantine, of deliveries that were
/// not proved genuine; it is meant with --reason unverified, and only then.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Redrive(RedriveArgs),
    Discard(DiscardArgs),
}

/// Lists the deliveries, oldest first.
#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Shows one delivery: why it is here, and with --payload what was received.
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The id of the delivery.
    id: Uuid,

    /// Also show headers and body. They hold personal data. JSON has the body in base64, byte for byte.
    #[arg(long)]
    payload: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs deliveries through the current adapters again.
///
/// What is understood now becomes an event, with the time at which it was received first, and leaves the quarantine. Safe
/// to run again at any time. Of several ids, one that fails does not stop the others. The exit code is 3 when any delivery
/// stays, and 1 when any call failed.
#[derive(Debug, clap::Args)]
struct RedriveArgs {
    #[command(flatten)]
    which: WhichArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Deletes deliveries for good.
#[derive(Debug, clap::Args)]
struct DiscardArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Do it. Needed unless deliveries are named by their ids.
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Which deliveries: some by their ids, or those that match.
#[derive(Debug, clap::Args)]
#[command(group(
    ArgGroup::new("which")
        .args(["ids", "all", "provider", "account", "reason"])
        .required(true)
        .multiple(true)
))]
struct WhichArgs {
    /// The ids of the deliveries.
    #[arg(value_name = "ID", conflicts_with_all = ["all", "provider", "account", "reason"])]
    ids: Vec<Uuid>,

    /// All genuine deliveries.
    #[arg(long, conflicts_with_all = ["provider", "account", "reason"])]
    all: bool,

    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, clap::Args)]
struct FilterArgs {
    /// Only deliveries of this provider.
    #[arg(long)]
    provider: Option<String>,

    /// Only deliveries of this account.
    #[arg(long)]
    account: Option<String>,

    /// Only deliveries that are here for this reason, for example unknown-status. Deliveries that were not proved genuine
    /// are meant with unverified, and only then.
    #[arg(long, value_parser = reason)]
    reason: Option<QuarantineReason>,
}

#[derive(Debug, clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    server: EndpointArg,

    /// How to print. The default is readable on a terminal and JSON lines in a pipe.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

const REASON: &str = "QUARANTINE_REASON_";

fn reason(name: &str) -> Result<QuarantineReason, String> {
    let full = format!("{REASON}{}", name.to_uppercase().replace('-', "_"));
    QuarantineReason::from_str_name(&full)
        .filter(|reason| *reason != QuarantineReason::Unspecified)
        .ok_or_else(|| {
            let known = (1..).map_while(|number| QuarantineReason::try_from(number).ok());
            let known: Vec<String> = known.map(reason_name).collect();
            format!("no reason is called {name}; there are {}", known.join(", "))
        })
}

/// A reason as `--reason` takes it.
fn reason_name(reason: QuarantineReason) -> String {
    let name = output::short(reason.as_str_name(), REASON);
    name.to_lowercase().replace('_', "-")
}

impl From<FilterArgs> for QuarantineFilter {
    fn from(args: FilterArgs) -> Self {
        Self {
            provider: args.provider.unwrap_or_default(),
            account: args.account.unwrap_or_default(),
            reason: args.reason.map_or(0, Into::into),
        }
    }
}

impl CommonArgs {
    async fn connect(&self) -> Result<(Client, Format), CliError> {
        let client = Client::new(self.server.connect().await?);
        Ok((client, Format::or_detect(self.format)))
    }
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    match args.command {
        Command::List(args) => list(args).await,
        Command::Show(args) => show(args).await,
        Command::Redrive(args) => redrive(args).await,
        Command::Discard(args) => discard(args).await,
    }
}

fn list_request(filter: QuarantineFilter) -> ListQuarantinedRequest {
    ListQuarantinedRequest {
        page_size: 1000,
        provider: filter.provider,
        account: filter.account,
        reason: filter.reason,
        ..Default::default()
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let (mut client, format) = args.common.connect().await?;
    let mut request = list_request(args.filter.into());
    if format == Format::Table {
        let head = format!(
            "{:<36} {:<20} {:<24} {:<22} DETAIL",
            "ID", "RECEIVED", "SOURCE", "REASON"
        );
        output::print(output::head(&head));
    }
    loop {
        let page = client.list_quarantined(request.clone()).await;
        let page = page.map_err(|status| failure(&status))?.into_inner();
        for quarantined in &page.quarantined {
            let line = match format {
                Format::Json => output::json(quarantined)?,
                Format::Table => row(quarantined),
            };
            if !output::print(line) {
                return Ok(());
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

fn row(quarantined: &QuarantinedDelivery) -> String {
    let source = format!("{}/{}", quarantined.provider, quarantined.account);
    format!(
        "{:<36} {:<20} {:<24} {:<22} {}",
        output::clip(&quarantined.quarantine_id),
        output::time(quarantined.received_at),
        output::clip(&source),
        reason_name(quarantined.reason()),
        output::plain(&quarantined.detail)
    )
}

async fn show(args: ShowArgs) -> Result<(), CliError> {
    let (mut client, format) = args.common.connect().await?;
    let request = GetDeliveryRequest {
        target: Some(get_delivery_request::Target::QuarantineId(
            args.id.to_string(),
        )),
    };
    let response = client.get_delivery(request).await;
    let response = response.map_err(|status| failure(&status))?.into_inner();
    let delivery = response.delivery.unwrap_or_default();
    let mut summary = summary(&mut client, args.id, &delivery).await?;
    match format {
        Format::Json => {
            summary.delivery = args.payload.then_some(delivery);
            let json = output::json(&summary)?;
            output::print(json);
        }
        Format::Table => {
            output::print(about(&summary, &delivery));
            if args.payload {
                output::print(content(&delivery));
            }
        }
    }
    Ok(())
}

/// Why a delivery is in quarantine. Only the list tells that.
async fn summary(
    client: &mut Client,
    id: Uuid,
    delivery: &Delivery,
) -> Result<QuarantinedDelivery, CliError> {
    let reason = match delivery.signature_scheme.is_empty() {
        true => QuarantineReason::Unverified.into(),
        false => 0,
    };
    let mut request = list_request(QuarantineFilter {
        provider: delivery.provider.clone(),
        account: delivery.account.clone(),
        reason,
    });
    let id = id.to_string();
    loop {
        let page = client.list_quarantined(request.clone()).await;
        let page = page.map_err(|status| failure(&status))?.into_inner();
        let mut quarantined = page.quarantined.into_iter();
        if let Some(found) = quarantined.find(|one| one.quarantine_id == id) {
            return Ok(found);
        }
        if page.next_page_token.is_empty() {
            return Err(CliError::Failed(
                "it has just left the quarantine".to_owned(),
            ));
        }
        request.page_token = page.next_page_token;
    }
}

fn about(summary: &QuarantinedDelivery, delivery: &Delivery) -> String {
    let proof = match delivery.signature_scheme.as_str() {
        "" => "not proved genuine".to_owned(),
        scheme => format!("{scheme}, secret {}", delivery.secret_id),
    };
    let lines = [
        ("id", summary.quarantine_id.clone()),
        (
            "source",
            format!("{}/{}", summary.provider, summary.account),
        ),
        ("received", output::time(summary.received_at)),
        ("reason", reason_name(summary.reason())),
        ("detail", summary.detail.clone()),
        ("signature", proof),
        (
            "size",
            format!(
                "{} bytes, {} headers",
                delivery.payload.len(),
                delivery.headers.len()
            ),
        ),
    ];
    let lines = lines.map(|(name, value)| format!("{name:<9} {}", output::plain(&value)));
    lines.join("\n")
}

/// Headers and body as text. What is not text, or could steer a terminal, is left out.
fn content(delivery: &Delivery) -> String {
    let mut content = String::from("\n");
    for header in &delivery.headers {
        let line = format!("{}: {}", header.name, header.value);
        content.push_str(&output::plain(&line));
        content.push('\n');
    }
    content.push('\n');
    let body = String::from_utf8_lossy(&delivery.payload);
    content + &output::text(&body)
}

async fn redrive(args: RedriveArgs) -> Result<(), CliError> {
    use redrive_request::Target;
    let (mut client, format) = args.common.connect().await?;
    let mut tally = Tally::default();
    let mut failures = Failures::default();
    for id in &args.which.ids {
        let request = RedriveRequest {
            target: Some(Target::QuarantineId(id.to_string())),
            page_token: String::new(),
        };
        match client.redrive(request).await {
            Ok(redriven) => tally.show(&redriven.into_inner(), format)?,
            Err(status) => failures.report(*id, &status),
        }
    }
    if args.which.ids.is_empty() {
        let mut request = RedriveRequest {
            target: Some(Target::Filter(args.which.filter.into())),
            page_token: String::new(),
        };
        loop {
            let page = client.redrive(request.clone()).await;
            let page = page.map_err(|status| failure(&status))?.into_inner();
            tally.show(&page, format)?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
    }
    failures.end(args.which.ids.len())?;
    tally.end(format)
}

/// How many of several deliveries a call failed for. One does not keep the others waiting.
#[derive(Default)]
struct Failures(usize);

impl Failures {
    fn report(&mut self, id: Uuid, status: &Status) {
        self.0 += 1;
        output::complain(&format!("{id}: {}", failure(status)));
    }

    fn end(self, of: usize) -> Result<(), CliError> {
        match self.0 {
            0 => Ok(()),
            failed => Err(CliError::Failed(format!("{failed} of {of} calls failed"))),
        }
    }
}

/// How many deliveries have left the quarantine, and how many have not.
#[derive(Default)]
struct Tally {
    released: u64,
    left: u64,
}

impl Tally {
    /// Prints what became of deliveries. Nobody needs to read it: they are redriven all the same.
    fn show(&mut self, response: &RedriveResponse, format: Format) -> Result<(), CliError> {
        for redriven in &response.redriven {
            match redriven.status() {
                IngestStatus::Accepted | IngestStatus::Duplicate | IngestStatus::Ignored => {
                    self.released += 1;
                }
                IngestStatus::Quarantined | IngestStatus::Unspecified => self.left += 1,
            }
            output::print(match format {
                Format::Json => output::json(redriven)?,
                Format::Table => redriven_row(redriven),
            });
        }
        Ok(())
    }

    fn end(self, format: Format) -> Result<(), CliError> {
        let Self { released, left } = self;
        if left > 0 {
            let total = released + left;
            return Err(CliError::Quarantined(format!(
                "{left} of {total} deliveries are still in quarantine"
            )));
        }
        if format == Format::Table {
            output::print(format!("{released} deliveries have left the quarantine"));
        }
        Ok(())
    }
}

fn redriven_row(redriven: &RedrivenDelivery) -> String {
    let status = match redriven.status() {
        IngestStatus::Unspecified => "NOT_GENUINE",
        status => output::short(status.as_str_name(), "INGEST_STATUS_"),
    };
    format!(
        "{status:<12} {:<36} {}{}",
        output::clip(&redriven.quarantine_id),
        output::clip(&redriven.event_id),
        output::plain(&redriven.detail)
    )
}

async fn discard(args: DiscardArgs) -> Result<(), CliError> {
    use discard_quarantined_request::Target;
    if args.which.ids.is_empty() && !args.yes {
        return Err(CliError::Usage(
            "this deletes every delivery that matches, for good; add --yes to do it".to_owned(),
        ));
    }
    let (mut client, format) = args.common.connect().await?;
    let mut discarded = 0;
    let mut failures = Failures::default();
    for id in &args.which.ids {
        let target = Some(Target::QuarantineId(id.to_string()));
        let response = client
            .discard_quarantined(DiscardQuarantinedRequest { target })
            .await;
        match response {
            Ok(response) => discarded += response.into_inner().discarded,
            Err(status) => failures.report(*id, &status),
        }
    }
    if args.which.ids.is_empty() {
        let target = Some(Target::Filter(args.which.filter.into()));
        let response = client
            .discard_quarantined(DiscardQuarantinedRequest { target })
            .await;
        let response = response.map_err(|status| failure(&status))?;
        discarded = response.into_inner().discarded;
    }
    output::print(match format {
        Format::Json => output::json(&DiscardQuarantinedResponse { discarded })?,
        Format::Table => format!("{discarded} deliveries discarded"),
    });
    failures.end(args.which.ids.len())
}
